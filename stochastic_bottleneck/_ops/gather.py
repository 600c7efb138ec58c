"""All-gather with the exact gradient.

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
