"""Save and restore what a forward pass changes besides gradients: random states and buffers; seed and restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stochastic_bottleneck.kernels import elementwise


class Buffer(NamedTuple):
    """A module's buffer, and a copy of its values."""

    module: nn.Module
    name: str
    tensor: Tensor
    values: Tensor


def buffers(model: nn.Module) -> list[Buffer]:
    """All buffers, with copies of their current values."""
    return [
        Buffer(module, name, tensor, tensor.clone())
        for module in model.modules()
        for name, tensor in module.named_buffers(recurse=False)
    ]


def set_buffers(saved: Sequence[Buffer]) -> None:
    """Restore buffers to the values copied by `buffers`."""
    with torch.no_grad():
        for module, name, tensor, values in saved:
            tensor.copy_(values)
            if getattr(module, name) is not tensor:  # the model has replaced it
                setattr(module, name, tensor)


def devices_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[torch.device]:
    """Devices in use other than the CPU."""
    found = {x.device for x in (*inputs, *model.parameters(), *model.buffers())}
    return [device for device in found if device.type not in ("cpu", "meta")]


def random_states(devices: Sequence[torch.device]) -> list[Tensor]:
    """States of the global generators, the CPU's first; they are stored on the host, so nothing synchronizes."""
    return [torch.get_rng_state(), *(getattr(torch, d.type).get_rng_state(*_index(d)) for d in devices)]


def set_random_states(devices: Sequence[torch.device], states: Sequence[Tensor]) -> None:
    """Restore the states returned by `random_states`."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        getattr(torch, device.type).set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that names the device; torch.mps has only one and takes none."""
    return () if device.type == "mps" else (device,)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[Callable[[int], None]]:
    """Seed the generators of the CPU and of one device, and restore them afterwards; the function seeds them again.

    `torch.manual_seed` would seed those of all devices, also where CUDA has not been initialized yet.
    """
    others = [] if device.type == "cpu" else [device]

    def seed_again(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        for other in others:
            with torch.cuda.device(other) if other.type == "cuda" else nullcontext():
                getattr(torch, other.type).manual_seed(seed)

    states = random_states(others)
    try:
        seed_again(seed)
        yield seed_again
    finally:
        set_random_states(others, states)


@contextmanager
def preserve_state(model: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """Restore random states and buffers on exit."""
    saved, states = buffers(model), random_states(devices)
    try:
        yield
    finally:
        set_buffers(saved)
        set_random_states(devices, states)


class RecomputedState(AbstractContextManager[None]):
    """A recomputed batch sees the buffers of its first pass, such as spectral norm's vectors, and changes none.

    Created before the first pass. Each backward pass over the same graph enters it again. Of other layers than batch
    norms, only buffers that have been written since are restored: a graph may have saved the others.
    """

    def __init__(self, module: nn.Module) -> None:
        norm = nn.modules.batchnorm._NormBase
        self.norms = [m for m in module.modules() if isinstance(m, norm)]
        others = (m for m in module.modules() if not isinstance(m, norm))
        found = ((m, name, x) for m in others for name, x in m.named_buffers(recurse=False))
        kept = ((m, name, x) for m, name, x in found if not (is_lazy(x) or x.is_inference()))
        self.before = [(Buffer(m, name, x, x.clone()), x._version) for m, name, x in kept]

    def __enter__(self) -> None:
        self.saved = [(m.momentum, m.num_batches_tracked) for m in self.norms]
        for m, (_, count) in zip(self.norms, self.saved, strict=True):
            m.momentum = 0.0
            m.num_batches_tracked = None if count is None else count.clone()  # SyncBatchNorm requires one
        written = [b for b, v in self.before if getattr(b.module, b.name) is not b.tensor or b.tensor._version != v]
        now = [(b, getattr(b.module, b.name)) for b in written]
        self.after = [Buffer(b.module, b.name, tensor, tensor.clone()) for b, tensor in now]
        set_buffers(written)

    def __exit__(self, *_: object) -> None:
        set_buffers(self.after)
        for m, (momentum, count) in zip(self.norms, self.saved, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count


@contextmanager
def without_autocast(devices: Sequence[torch.device]) -> Iterator[None]:
    """Turn autocast off on the CPU and on devices."""
    with ExitStack() as stack:
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(elementwise.without_autocast(kind))
        yield
