"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows"]


def gather_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Concatenate each tensor's rows over all processes, in rank order.

    The backward pass sums every process's gradient for the local rows. With losses that are means over local
    rows, DistributedDataParallel's average over processes then equals the gradient of the mean over the whole
    batch.

    Args:
        *tensors: one shape for all. Shape: (..., N, D), the same N on every process

    Returns:
        The tensors of Shape: (..., N x processes, D), and the place of this process's first row in them.

    Raises:
        ValueError: on every process, when their shapes differ.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensors, 0
    from torch.distributed.nn.functional import all_gather  # not importable where distributed is left out

    _check_equal_shapes(tensors[0])
    # One collective for all tensors: latency, not bytes, is what a small gather costs.
    parts = all_gather(torch.stack(tensors))  # type: ignore[no-untyped-call]
    gathered = torch.cat(parts, dim=-2)
    return tuple(gathered.unbind(0)), dist.get_rank() * tensors[0].shape[-2]


def _check_equal_shapes(x: Tensor) -> None:
    """Compare shapes before the rows travel: a collective over uneven shapes hangs or corrupts."""
    shape = torch.tensor([x.ndim, *x.shape, *[0] * (8 - x.ndim)], device=x.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    found = [tuple(s[1 : 1 + int(s[0])]) for s in torch.stack(shapes).tolist()]
    if len(set(found)) > 1:
        by_rank = ", ".join(f"rank {rank}: {s}" for rank, s in enumerate(found))
        raise ValueError(
            f"gather_distributed needs one batch shape on every process, got {by_rank}; use drop_last=True with a "
            "DistributedSampler, or the same batch_size everywhere"
        )
