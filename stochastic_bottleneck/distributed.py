"""Gather rows from all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck.kernels.all_gather import (
    check_equal_on_all_processes as check_equal_on_all_processes,
)
from stochastic_bottleneck.kernels.all_gather import gather_checked
from stochastic_bottleneck.kernels.all_gather import group_name as group_name
from stochastic_bottleneck.kernels.all_gather import has_several_processes as has_several_processes
from stochastic_bottleneck.kernels.nt_xent_distributed import distributed_nt_xent as distributed_nt_xent

__all__ = ["gather_rows"]


def gather_rows(*tensors: Tensor, group: dist.ProcessGroup | None = None) -> tuple[tuple[Tensor, ...], int]:
    """Concatenate the rows of all processes of a group, in rank order.

    Backward sums every process's gradient for the local rows. If losses are means over local rows, the average that
    DistributedDataParallel takes over processes then equals the gradient of the mean over the whole batch.

    Args:
        *tensors: tensors of the same shape, dtype and device, on every process. Shape: (..., N, D)
        group: process group to gather from; None for all processes.

    Returns:
        Tensors of Shape: (..., N x processes, D), and the index of this process's first row in them.

    Raises:
        ValueError: for tensors that differ in shape, dtype or device; on every process, if processes differ.
        TypeError: for anything but floating point tensors and a process group.
    """
    name = group_name(group)
    gathers = has_several_processes(name)
    try:
        _check_rows(tensors)
    except (TypeError, ValueError):
        if gathers:  # the other processes would wait forever
            check_equal_on_all_processes(*tensors, group=name, failed=True, caller="gather_rows")
        raise
    if not gathers:
        return tensors, 0
    return gather_checked(*tensors, group=name, caller="gather_rows")


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
