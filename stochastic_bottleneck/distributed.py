"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck._ops.gather import all_gather, resolve
from stochastic_bottleneck._ops.gather import check_alike as check_alike
from stochastic_bottleneck._ops.gather import group_name as group_name
from stochastic_bottleneck._ops.gather import several_processes as several_processes
from stochastic_bottleneck._ops.info_nce_gathered import info_nce as info_nce

__all__ = ["gather_rows"]


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
    needs_grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
    try:
        _check_rows(tensors)
    except (TypeError, ValueError):
        if gathers:  # a process that stops alone leaves the others waiting
            check_alike(*tensors, group=name, failed=True, needed_by="gather_rows")
        raise
    if not gathers:
        return tensors, 0
    check_alike(*tensors, group=name, needs_grad=needs_grad, needed_by="gather_rows")
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
