"""Gathering rows of all processes with the exact gradient; the identity without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck._ops.gather import all_gather

__all__ = ["check_alike", "gather_rows"]


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
    if not _several_processes():
        return tensors, 0
    # One collective for all tensors: latency, not bytes, is what a small gather costs.
    gathered = all_gather(torch.stack(tensors), dim=-2)
    return tuple(gathered.unbind(0)), dist.get_rank() * tensors[0].shape[-2]


def check_alike(*tensors: Tensor) -> None:
    """Compare shapes and dtypes before the rows travel: an uneven collective hangs, corrupts or aborts.

    To be called before any check that only one process might fail, which would leave the others waiting.

    Args:
        *tensors: tensors of at most 7 dimensions, as many on every process. Shape: (...)

    Raises:
        ValueError: on every process, when their shapes or dtypes differ.
    """
    if not _several_processes():
        return
    rows = [[_code(x.dtype), x.ndim, *x.shape, *[0] * (7 - x.ndim)] for x in tensors]
    own = torch.tensor(rows, device=tensors[0].device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    found = torch.stack(everyone).tolist()
    shapes = [[str(tuple(row[2 : 2 + row[1]])) for row in rows] for rows in found]
    dtypes = [[_NAMES[row[0]] for row in rows] for rows in found]
    for what, values, fix in (
        (
            "batch shape",
            shapes,
            "use drop_last=True with a DistributedSampler, or the same batch_size everywhere",
        ),
        ("dtype", dtypes, "convert them alike, or run every process under the same autocast"),
    ):
        if any(value != values[0] for value in values):
            by_rank = ", ".join(f"rank {rank}: {' and '.join(value)}" for rank, value in enumerate(values))
            raise ValueError(f"gather_distributed needs one {what} on every process, got {by_rank}; {fix}")


_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAMES = (*(str(dtype).removeprefix("torch.") for dtype in _FLOATING), "not floating point")


def _code(dtype: torch.dtype) -> int:
    return _FLOATING.index(dtype) if dtype in _FLOATING else len(_FLOATING)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
