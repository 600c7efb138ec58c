"""All-gather of rows and all-reduce with the exact gradient, and a check before any rows are sent.

The rows x_r of rank r are sent to every process, so the gradient of the sum of all processes' losses L_s is

    dL / dx_r = sum_s dL_s / dx_r

Backward adds up the gradients that all processes computed for every row, and each process keeps the sum for its own
rows. That sum is linear, and its own gradient is an all-gather.

A process group is identified by its name, a string that operators and pickles can hold; "" means all processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def get_group(name: str) -> dist.ProcessGroup | None:
    """The process group of this name, None for all processes."""
    if not name:
        return None
    # As torch's functional collectives do; there is no public function for it.
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    group: dist.ProcessGroup = resolve(name)
    return group


def has_several_processes(group: str = "") -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(get_group(group)) > 1


def group_name(group: dist.ProcessGroup | None) -> str:
    """Name of a process group, "" for None.

    Raises:
        TypeError: if it is not a process group that this process belongs to.
    """
    if group is None:
        return ""
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"group must be a process group that this process belongs to, or None for all processes, got {group!r}; "
            "pass what torch.distributed.new_group returned, or mesh.get_group() of a device mesh"
        )
    return group.group_name


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return torch.stack(_gather(x.contiguous(), group))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _ReduceScatter.apply(grad_outputs[0], ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    """Sum over processes of what each holds for this one. Shape: (processes, ...) to (...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=get_group(group))
        return total[dist.get_rank(get_group(group))]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _AllGather.apply(grad_outputs[0], ctx.group), None


def _gather(x: Tensor, group: str) -> list[Tensor]:
    shards = [torch.empty_like(x) for _ in range(dist.get_world_size(get_group(group)))]
    dist.all_gather(shards, x, group=get_group(group))
    return shards


def all_gather(x: Tensor, dim: int, group: str = "") -> Tensor:
    """Concatenate every process's `x` along `dim` in rank order; shapes must be equal on all processes."""
    shards: Tensor = _AllGather.apply(x, group)
    return torch.cat(shards.unbind(0), dim=dim)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _AllReduce.apply(grad_outputs[0])  # type: ignore[no-any-return]


def all_reduce(x: Tensor) -> Tensor:
    """Sum over all processes; backward sums their gradients."""
    return _AllReduce.apply(x)  # type: ignore[no-any-return]


class AsyncGather:
    """Start gathering the other processes' tensors of the same shape; `wait` returns them.

    Args:
        x: Shape: (K, 2, N, ...)
        group: name of the process group.
    """

    def __init__(self, x: Tensor, group: str) -> None:
        self._group = get_group(group)
        n_processes = dist.get_world_size(self._group)
        self._shards = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n_processes)]
        self._work = dist.all_gather(self._shards, x.contiguous(), group=self._group, async_op=True)

    def wait(self) -> Tensor:
        """All rows except those of this process. Shape: (K, (processes - 1) x 2N, ...)."""
        if self._work is not None:
            self._work.wait()
        rank = dist.get_rank(self._group)
        return torch.stack(self._shards[:rank] + self._shards[rank + 1 :], dim=1).flatten(1, 3)


class Ring:
    """Pass tensors of the same shape around the processes, each on to the next one; iterate over those received.

    Sending starts at once, and a tensor is sent on while the caller uses it. A process holds two of them at a time.

    Args:
        x: Shape: (K, 2, N, ...)
        group: name of the process group.
    """

    def __init__(self, x: Tensor, group: str) -> None:
        self._group = get_group(group)
        self._rank, self._n_processes = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._send(x.contiguous())

    def _send(self, x: Tensor) -> None:
        self._received = torch.empty_like(x)
        operations = []
        for operation, tensor, step in ((dist.isend, x, 1), (dist.irecv, self._received, -1)):
            peer = (self._rank + step) % self._n_processes
            peer = peer if self._group is None else dist.get_global_rank(self._group, peer)
            operations.append(dist.P2POp(operation, tensor, peer, self._group))
        self._works = dist.batch_isend_irecv(operations)

    def __iter__(self) -> Iterator[Tensor]:
        """The tensor of each other process, which must not be changed. Shape: (K, 2N, ...)."""
        for remaining in reversed(range(self._n_processes - 1)):
            for work in self._works:
                work.wait()
            x = self._received
            if remaining:
                self._send(x)
            yield x.flatten(1, 2)


FIXES = {
    "batch shape": "use drop_last=True with a DistributedSampler, or the same batch_size everywhere",
    "dtype": "convert them alike, or run every process under the same autocast",
    "device": "move every process's rows to a device of the same type",
    "requires_grad": "run every process with or without torch.no_grad() alike",
    "temperature": "set it alike on every process",
    "usable input": "see the error of the process that refused its own",
}
"""Properties that must be equal on all processes, and how to fix a difference."""


def check_equal_on_all_processes(
    *tensors: object,
    group: str = "",
    temperature: float | None = None,
    needs_grad: bool | None = None,
    failed: bool = False,
    caller: str = "gather_distributed",
) -> None:
    """Compare the inputs of all processes: an uneven collective hangs, corrupts or aborts.

    Call it before raising any error that only one process may raise, since the others would wait forever.

    Args:
        *tensors: tensors to be gathered; anything else is reported. Shape: (...)
        group: name of the process group.
        temperature: of the loss.
        needs_grad: whether a backward pass, which gathers too, will follow.
        failed: whether this process has refused its input; then its options are not compared.
        caller: name in the error message.

    Raises:
        ValueError: on every process, if they differ.
    """
    dense = [x for x in tensors if isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested]
    properties = {
        "batch shape": _describe(tensors, dense, lambda x: tuple(x.shape)),
        "dtype": _describe(tensors, dense, lambda x: x.dtype if x.is_floating_point() else "not floating point"),
        "device": _describe(tensors, dense, lambda x: x.device.type),
        "requires_grad": str(needs_grad),
        "temperature": str(temperature),
        "usable input": str(not failed),
    }
    # Compare one hash per process; only if they differ, gather the properties themselves.
    digest = hashlib.blake2b(repr(properties).encode(), digest_size=8).digest()
    own_hash = int.from_bytes(digest, "big", signed=True)
    hashes = _gather(torch.tensor([own_hash], device=_collective_device(group)), group)
    if torch.cat(hashes).eq(own_hash).all():
        return
    gathered: list[Any] = [None] * len(hashes)
    dist.all_gather_object(gathered, properties, group=get_group(group))
    for name, fix in FIXES.items():
        values = [by_name[name] for by_name in gathered]
        given = [value for value in values if value != "None"]
        if any(value != given[0] for value in given):
            by_rank = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
            raise ValueError(f"{caller} needs one {name} on every process, got {by_rank}; {fix}")


def gather_checked(
    *tensors: Tensor, group: str, caller: str, temperature: float | None = None
) -> tuple[tuple[Tensor, ...], int]:
    """Rows of all processes, after `check_equal_on_all_processes`, and the index of this process's first one.

    Args:
        *tensors: Shape: (..., N, D) each.
        group: name of the process group.
        caller: name in the error message.
        temperature: of the loss.
    """
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    check_equal_on_all_processes(*tensors, group=group, temperature=temperature, needs_grad=needs_grad, caller=caller)
    # One collective for all tensors: a small gather costs latency, not bandwidth.
    gathered = all_gather(torch.stack(tensors), dim=-2, group=group)
    return tuple(gathered.unbind(0)), dist.get_rank(get_group(group)) * tensors[0].shape[-2]


def _describe(tensors: tuple[object, ...], dense: list[Tensor], get: Callable[[Tensor], object]) -> str:
    """A property of each tensor, or the type of an argument that is not a dense tensor."""
    words = [
        str(get(x)).removeprefix("torch.")
        if isinstance(x, Tensor) and any(x is y for y in dense)
        else f"no dense tensor but {_type_name(x)}"
        for x in tensors
    ]
    return " and ".join(words) or "none"


def _type_name(x: object) -> str:
    return f"a {str(x.layout).removeprefix('torch.')} one" if isinstance(x, Tensor) else type(x).__name__


def _collective_device(group: str) -> torch.device:
    """A device that the group's backend supports, independent of this process's inputs."""
    backends = str(dist.get_backend_config(get_group(group)))  # such as "cpu:gloo,cuda:nccl"
    if "cuda:nccl" in backends or "cpu:" not in backends:
        return torch.device("cuda" if "cuda:nccl" in backends else backends.partition(":")[0])
    return torch.device("cpu")
