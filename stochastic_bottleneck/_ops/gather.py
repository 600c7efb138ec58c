"""Rows of all processes: an all-gather with the exact gradient, one without, and a check before they travel.

Process r's rows x_r go to every process, so the gradient of the sum of all processes' losses L_s is

    dL / dx_r = sum_s dL_s / dx_r

The backward pass adds up what every process has found for every row, and each process keeps its own rows' sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        blocks = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(blocks, x)
        return torch.stack(blocks)

    @staticmethod
    @once_differentiable  # the sum over processes happens in place, out of autograd's sight
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def all_gather(x: Tensor, dim: int) -> Tensor:
    """Every process's `x`, joined along `dim` in rank order; one shape on all processes."""
    blocks: Tensor = _AllGather.apply(x.contiguous())
    return torch.cat(blocks.unbind(0), dim=dim)


class Gathering:
    """The other processes' tensors of one shape, on their way until `wait`.

    Args:
        x: Shape: (K, 2, N, ...)
    """

    def __init__(self, x: Tensor) -> None:
        self._blocks = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        self._work = dist.all_gather(self._blocks, x.contiguous(), async_op=True)

    def wait(self) -> Tensor:
        """All rows but this process's. Shape: (K, (processes - 1) x 2N, ...)."""
        if self._work is not None:
            self._work.wait()
        rank = dist.get_rank()
        return torch.stack(self._blocks[:rank] + self._blocks[rank + 1 :], dim=1).flatten(1, 3)


def check_alike(*tensors: Tensor) -> None:
    """Compare shapes and dtypes before the rows travel: an uneven collective hangs, corrupts or aborts.

    To be called before any check that only one process might fail, which would leave the others waiting.

    Args:
        *tensors: tensors of at most 7 dimensions, as many on every process. Shape: (...)

    Raises:
        ValueError: on every process, when their shapes or dtypes differ.
    """
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
