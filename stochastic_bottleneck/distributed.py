"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["check_equal_shapes", "gather_rows"]


def gather_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Concatenate each tensor's rows over all processes, in rank order.

    The backward pass sums every process's gradient for the local rows. With losses that are means over local
    rows, DistributedDataParallel's average over processes then equals the gradient of the mean over the whole
    batch.

    Args:
        *tensors: one shape for all and on every process; see `check_equal_shapes`. Shape: (..., N, D)

    Returns:
        The tensors of Shape: (..., N x processes, D), and the place of this process's first row in them.
    """
    if not _several_processes():
        return tensors, 0
    from torch.distributed.nn.functional import all_gather  # not importable where distributed is left out

    # One collective for all tensors: latency, not bytes, is what a small gather costs.
    parts = all_gather(torch.stack(tensors))  # type: ignore[no-untyped-call]
    gathered = torch.cat(parts, dim=-2)
    return tuple(gathered.unbind(0)), dist.get_rank() * tensors[0].shape[-2]


def check_equal_shapes(*tensors: Tensor) -> None:
    """Compare shapes before the rows travel: a collective over uneven shapes hangs or corrupts.

    To be called before any check that only one process might fail, which would leave the others waiting.

    Args:
        *tensors: tensors of at most 7 dimensions, as many on every process. Shape: (...)

    Raises:
        ValueError: on every process, when their shapes differ.
    """
    if not _several_processes():
        return
    shapes = [[x.ndim, *x.shape, *[0] * (7 - x.ndim)] for x in tensors]
    own = torch.tensor(shapes, device=tensors[0].device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    found = [[tuple(s[1 : 1 + s[0]]) for s in shapes] for shapes in torch.stack(everyone).tolist()]
    if any(shapes != found[0] for shapes in found):
        by_rank = ", ".join(f"rank {rank}: {' and '.join(map(str, s))}" for rank, s in enumerate(found))
        raise ValueError(
            f"gather_distributed needs one batch shape on every process, got {by_rank}; use drop_last=True "
            "with a DistributedSampler, or the same batch_size everywhere"
        )


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
