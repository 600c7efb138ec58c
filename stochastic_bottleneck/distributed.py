"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck._ops import info_nce_gathered
from stochastic_bottleneck._ops.gather import all_gather, resolve
from stochastic_bottleneck._ops.gather import check_alike as check_alike

__all__ = ["gather_rows"]


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


def gather_rows(*tensors: Tensor, group: dist.ProcessGroup | None = None) -> tuple[tuple[Tensor, ...], int]:
    """Concatenate each tensor's rows over the processes of a group, in rank order.

    The backward pass sums every process's gradient for the local rows. With losses that are means over local
    rows, DistributedDataParallel's average over processes then equals the gradient of the mean over the whole
    batch.

    Args:
        *tensors: of one shape, dtype and device, on every process. Shape: (..., N, D)
        group: the processes to gather from; None for all.

    Returns:
        The tensors of Shape: (..., N x processes, D), and the index of this process's first row in them.

    Raises:
        ValueError: for tensors that differ in shape, dtype or device; on every process, when those of two do.
        TypeError: for what is no floating point tensor, or no process group.
    """
    name = group_name(group)
    gathers = several_processes(name)
    try:
        _check_rows(tensors)
    except (TypeError, ValueError):
        if gathers:  # a process that stops alone leaves the others waiting
            check_alike(*tensors, group=name)
        raise
    if not gathers:
        return tensors, 0
    check_alike(*tensors, group=name)
    # One collective for all tensors: latency, not bytes, is what a small gather costs.
    gathered = all_gather(torch.stack(tensors), dim=-2, group=name)
    return tuple(gathered.unbind(0)), dist.get_rank(resolve(name)) * tensors[0].shape[-2]


def _check_rows(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ValueError("tensors must hold at least one tensor, got none")
    for i, x in enumerate(tensors):
        _checks.check_floating(x, f"tensors[{i}]")
        if x.ndim < 2 or x.is_meta:
            raise ValueError(
                f"tensors[{i}] must have shape (..., N, D) and hold values, got shape {tuple(x.shape)} on {x.device}"
            )
        first = tensors[0]
        if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"tensors[{i}] must have the shape, dtype and device of tensors[0], {tuple(first.shape)}, "
                f"{first.dtype} and {first.device}, got {tuple(x.shape)}, {x.dtype} and {x.device}"
            )


def info_nce(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None = None, group: str = ""
) -> Tensor:
    """NT-Xent of this process's rows against the rows of all processes; see `functional.info_nce`.

    The backward pass gives the gradient of the sum of all processes' losses. Every process has to call both passes,
    with rows of one shape and dtype at one temperature, which is checked before the rows travel.

    Args:
        v: first views of this process. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau, at least 0.01.
        block_size: rows and columns handled at a time; None to fit the processor's cache.
        group: name of the group of processes, see `group_name`; "" for all.

    Returns:
        Losses in nats, float32 or float64, the rows of `v` first. Shape: (2N,) or (K, 2N)

    Raises:
        ValueError: on every process, when they differ in shape, dtype, device, temperature or need of a gradient.
    """
    return info_nce_gathered.info_nce(v, v_prime, temperature, block_size, group)


def several_processes(group: str = "") -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(resolve(group)) > 1
