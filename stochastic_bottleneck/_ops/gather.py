"""Rows of all processes: an all-gather with the exact gradient, one without, and a check before they travel.

Process r's rows x_r go to every process, so the gradient of the sum of all processes' losses L_s is

    dL / dx_r = sum_s dL_s / dx_r

The backward pass adds up what every process has found for every row, and each process keeps its own rows' sum. That
sum is linear, and its own gradient is an all-gather again.

A group of processes is named by a string, which operators and pickles can hold; "" stands for all processes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def resolve(group: str) -> dist.ProcessGroup | None:
    """The group of that name, None for all processes."""
    if not group:
        return None
    # What torch's own functional collectives use; there is no public name for it.
    resolved: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    found: dist.ProcessGroup = resolved(group)
    return found


def several_processes(group: str = "") -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(resolve(group)) > 1


def group_name(group: dist.ProcessGroup | None) -> str:
    """Name of a process group, "" for None, by which the functions here know it.

    Raises:
        TypeError: for anything but a process group that this process belongs to.
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
        return torch.stack(_gathered(x.contiguous(), group))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _OwnSum.apply(grad_outputs[0], ctx.group), None


class _OwnSum(torch.autograd.Function):
    """Sum over processes of what each has for this one. Shape: (processes, ...) to (...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=resolve(group))
        return total[dist.get_rank(resolve(group))]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _AllGather.apply(grad_outputs[0], ctx.group), None


def _gathered(x: Tensor, group: str) -> list[Tensor]:
    blocks = [torch.empty_like(x) for _ in range(dist.get_world_size(resolve(group)))]
    dist.all_gather(blocks, x, group=resolve(group))
    return blocks


def all_gather(x: Tensor, dim: int, group: str = "") -> Tensor:
    """Every process's `x`, joined along `dim` in rank order; one shape on all processes."""
    blocks: Tensor = _AllGather.apply(x, group)
    return torch.cat(blocks.unbind(0), dim=dim)


class Gathering:
    """The other processes' tensors of one shape, on their way until `wait`.

    Args:
        x: Shape: (K, 2, N, ...)
        group: name of the group.
    """

    def __init__(self, x: Tensor, group: str) -> None:
        self._group = resolve(group)
        processes = dist.get_world_size(self._group)
        self._blocks = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes)]
        self._work = dist.all_gather(self._blocks, x.contiguous(), group=self._group, async_op=True)

    def wait(self) -> Tensor:
        """All rows but this process's. Shape: (K, (processes - 1) x 2N, ...)."""
        if self._work is not None:
            self._work.wait()
        rank = dist.get_rank(self._group)
        return torch.stack(self._blocks[:rank] + self._blocks[rank + 1 :], dim=1).flatten(1, 3)


FIXES = {
    "batch shape": "use drop_last=True with a DistributedSampler, or the same batch_size everywhere",
    "dtype": "convert them alike, or run every process under the same autocast",
    "device": "move every process's rows to a device of the same type",
    "requires_grad": "run every process with or without torch.no_grad() alike",
    "temperature": "set it alike on every process",
    "usable input": "see the error of the process that refused its own",
}
"""What has to be alike on all processes, and what helps where it is not."""


def check_alike(
    *tensors: object,
    group: str = "",
    temperature: float | None = None,
    needs_grad: bool | None = None,
    failed: bool = False,
    needed_by: str = "gather_distributed",
) -> None:
    """Compare what each process is about to send: an uneven collective hangs, corrupts or aborts.

    To be called before any check that only one process might fail, which would leave the others waiting. Anything
    may be passed for a tensor.

    Args:
        *tensors: what is to be gathered. Shape: (...)
        group: name of the group.
        temperature: of the loss.
        needs_grad: whether a backward pass, which gathers too, will follow.
        failed: whether this process has refused its own input; its other options are not compared then.
        needed_by: what the error names.

    Raises:
        ValueError: on every process, when they differ.
    """
    dense = [x for x in tensors if isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested]
    own = {
        "batch shape": _words(tensors, dense, lambda x: tuple(x.shape)),
        "dtype": _words(tensors, dense, lambda x: x.dtype if x.is_floating_point() else "not floating point"),
        "device": _words(tensors, dense, lambda x: x.device.type),
        "requires_grad": str(needs_grad),
        "temperature": str(temperature),
        "usable input": str(not failed),
    }
    # One number a process says whether all is well; who differs, and in what, is asked only if it is not.
    digest = int.from_bytes(hashlib.blake2b(repr(own).encode(), digest_size=8).digest(), "big", signed=True)
    found = _gathered(torch.tensor([digest], device=_device(group)), group)
    if torch.cat(found).eq(digest).all():
        return
    everyone: list[Any] = [None] * len(found)
    dist.all_gather_object(everyone, own, group=resolve(group))
    for what, fix in FIXES.items():
        values = [one[what] for one in everyone]
        compared = [value for value in values if value != "None"]
        if any(value != compared[0] for value in compared):
            by_rank = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
            raise ValueError(f"{needed_by} needs one {what} on every process, got {by_rank}; {fix}")


def _words(tensors: tuple[object, ...], dense: list[Tensor], of: Any) -> str:
    """Of each tensor, or what it is instead of a dense one."""
    words = [
        str(of(x)).removeprefix("torch.") if any(x is y for y in dense) else f"no dense tensor but {_kind(x)}"
        for x in tensors
    ]
    return " and ".join(words) or "none"


def _kind(x: object) -> str:
    return f"a {str(x.layout).removeprefix('torch.')} one" if isinstance(x, Tensor) else type(x).__name__


def _device(group: str) -> torch.device:
    """A device that the group's backend serves, the same whatever this process was handed."""
    backends = str(dist.get_backend_config(resolve(group)))  # such as "cpu:gloo,cuda:nccl"
    if "cuda:nccl" in backends or "cpu:" not in backends:
        return torch.device("cuda" if "cuda:nccl" in backends else backends.partition(":")[0])
    return torch.device("cpu")
