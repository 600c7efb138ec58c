"""Lazy layers, and helpers for evaluation mode and sharded modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy


class LazyLinear(LazyModuleMixin, nn.Linear):
    """`nn.Linear` whose input or output width is inferred from the first batch.

    torch's own LazyLinear infers the input width only; an upsampler back to an unknown feature width needs
    the output too. Until then the parameters are uninitialized; they stay the same objects, so an optimizer
    created before the first batch remains valid.
    """

    cls_to_become = nn.Linear

    def __init__(self, in_features: int | None, out_features: int | None, bias: bool = True) -> None:
        super().__init__(0, 0, False)
        self.in_features, self.out_features = in_features or 0, out_features or 0
        self.weight = UninitializedParameter()
        if bias:
            self.bias = UninitializedParameter()  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        """Initialize once the shape is known."""
        if not is_lazy(self.weight) and self.weight.numel():
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Infer the unknown widths: inputs from the batch, outputs equal to inputs."""
        if is_lazy(self.weight):
            # A tensor created in inference mode cannot be trained.
            with torch.inference_mode(False), torch.no_grad():
                self.in_features = input.shape[-1]
                self.out_features = self.out_features or self.in_features
                self.weight.materialize((self.out_features, self.in_features))
                if is_lazy(self.bias):
                    self.bias.materialize((self.out_features,))
                self.reset_parameters()
        else:  # a state_dict was loaded before the first batch
            self.out_features, self.in_features = self.weight.shape


class _OpenBuffer(UninitializedBuffer):
    """Uninitialized buffer that can be deep-copied, as torch's uninitialized parameters can."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _OpenBuffer:
        cls: Any = type(self)  # torch annotates the constructor as a Tensor's
        copied: _OpenBuffer = memo.setdefault(id(self), cls(False, self.data.device, self.data.dtype))
        return copied


class LazyBatchNorm(nn.LazyBatchNorm1d):
    """`nn.LazyBatchNorm1d` that can be copied before its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.running_mean, self.running_var = _OpenBuffer(), _OpenBuffer()

    def initialize_parameters(self, input: Tensor) -> None:
        """Infer the width from the batch, or from a state_dict that was loaded before it."""
        with torch.inference_mode(False):
            super().initialize_parameters(input)
        self.num_features = self.weight.shape[0]


def linear(in_features: int | None, out_features: int | None, bias: bool = True) -> nn.Linear:
    """Linear map; a width of None is inferred from the first batch (an output width equals the input's)."""
    if in_features and out_features:
        return nn.Linear(in_features, out_features, bias)
    return LazyLinear(in_features, out_features, bias)


def mlp(in_features: int | None, hidden: int | None, out_features: int | None) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear: SimCLR's head (arXiv 2002.05709, section 4.2), widths as `linear`."""
    norm: Any = nn.BatchNorm1d(hidden) if hidden else LazyBatchNorm()
    layers: Any = nn.Sequential(
        linear(in_features, hidden, bias=False), norm, nn.ReLU(inplace=True), linear(hidden, out_features)
    )
    if not hidden:
        layers._norm_hook = layers.register_forward_pre_hook(_initialize_norm)
        layers._register_load_state_dict_pre_hook(_load_norm, with_module=True)
    return layers  # type: ignore[no-any-return]


def named_map(
    name: str, choice: object, in_features: int | None, hidden: int | None, out_features: int | None
) -> nn.Module:
    """The map that an argument `name` chooses: "linear", "mlp", "identity" or a module."""
    if isinstance(choice, nn.Module):
        return choice
    if choice == "linear":
        return linear(in_features, out_features)
    if choice == "mlp":
        return mlp(in_features, hidden, out_features)
    if choice == "identity":
        return nn.Identity()
    message = f'{name} must be "linear", "mlp", "identity" or a module, got {choice!r}'
    raise ValueError(message) if isinstance(choice, str) else TypeError(message)


def _initialize_norm(layers: Any, args: tuple[Tensor]) -> None:
    """Materialize the norm before the first batch."""
    _materialize_norm(layers[1], layers[0].out_features or args[0].shape[-1])
    layers._norm_hook.remove()
    del layers._norm_hook


def _load_norm(layers: Any, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Materialize the norm before its state is loaded."""
    if f"{prefix}1.weight" in state:
        _materialize_norm(layers[1], len(state[f"{prefix}1.weight"]))


def _materialize_norm(norm: Any, width: int) -> None:
    """Materialize a SyncBatchNorm that `convert_sync_batchnorm` made from a LazyBatchNorm; it cannot do so itself."""
    if isinstance(norm, nn.SyncBatchNorm) and is_lazy(norm.weight):
        norm.num_features = width
        with torch.inference_mode(False):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.materialize((width,))
            norm.reset_parameters()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's training flag is restored afterwards."""
    flags = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in flags.items():
            m.training = training


def is_sharded(module: nn.Module) -> bool:
    """Whether the module is under `fully_shard`, so that its parameters are gathered in its own forward only."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported if any module is sharded
    return isinstance(module, getattr(fsdp, "FSDPModule", ()))
