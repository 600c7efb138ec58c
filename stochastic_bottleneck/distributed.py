"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck._ops import info_nce_gathered
from stochastic_bottleneck._ops.gather import all_gather, check_alike

__all__ = ["check_alike", "gather_rows", "info_nce", "several_processes"]


def gather_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Concatenate each tensor's rows over all processes, in rank order.

    The backward pass sums every process's gradient for the local rows. With losses that are means over local
    rows, DistributedDataParallel's average over processes then equals the gradient of the mean over the whole
    batch.

    Args:
        *tensors: one shape for all and on every process; see `check_alike`. Shape: (..., N, D)

    Returns:
        The tensors of Shape: (..., N x processes, D), and the place of this process's first row in them.
    """
    if not several_processes():
        return tensors, 0
    # One collective for all tensors: latency, not bytes, is what a small gather costs.
    gathered = all_gather(torch.stack(tensors), dim=-2)
    return tuple(gathered.unbind(0)), dist.get_rank() * tensors[0].shape[-2]


def info_nce(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None = None) -> Tensor:
    """NT-Xent of this process's rows against the rows of all processes; see `functional.info_nce`.

    The backward pass gives the gradient of the sum of all processes' losses. Every process has to call both passes,
    with rows of one shape and dtype, which is checked before the rows travel.

    Args:
        v: first views of this process. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau, at least 0.01.
        block_size: rows and columns handled at a time; None to fit the processor's cache.

    Returns:
        Losses in nats, float32 or float64, the rows of `v` first. Shape: (2N,) or (K, 2N)

    Raises:
        ValueError: on every process, when their shapes or dtypes differ.
    """
    return info_nce_gathered.info_nce(v, v_prime, temperature, block_size)


def several_processes() -> bool:
    """Whether there is a process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
