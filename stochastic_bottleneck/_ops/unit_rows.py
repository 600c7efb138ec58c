"""Rows scaled to norm 1, for rows of any size.

A row is divided by its largest magnitude first, so that squares neither overflow nor underflow. With scale s,
y = x / s and length l = s max(|y|, 1),

    u = y / max(|y|, 1),        dL/dx = (g - u (u . g)) / l

for dL/du = g; the scale is a constant to the gradient, which is exact because x / |x| does not depend on it. Only
rows that are (next to) zero, below the floor of s, have |y| < 1: they stay as they are, and u (u . g) next to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck._ops.precision import at_least_float32


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` scaled to norm 1, in float32 or better; zero rows stay zero with a finite gradient."""
    x = at_least_float32(x)
    x = x / _scale(x.detach())
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(1.0)


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """`unit_rows` without autograd, and the lengths that `backward` needs.

    Args:
        x: float32 or float64; overwritten by the unit rows. Shape: (..., D)

    Returns:
        Unit rows of Shape: (..., D), and their lengths. Shape: (..., 1)
    """
    scale = _scale(x)
    y = x.div_(scale)
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(1.0)
    return y.div_(norm), norm.mul_(scale).contiguous()


def backward(grad: Tensor, u: Tensor, length: Tensor) -> Tensor:
    """Gradient of the rows from `grad`, that of the unit rows, which is overwritten. Shape: (..., D)."""
    along = (grad * u).sum(dim=-1, keepdim=True)
    return grad.addcmul_(u, along, value=-1.0).div_(length)


def _scale(x: Tensor) -> Tensor:
    # The cube root of the smallest normal number: 1 / scale, times any upstream gradient, stays finite.
    floor = torch.finfo(x.dtype).tiny ** (1 / 3)
    return x.abs().amax(dim=-1, keepdim=True).clamp_min_(floor)
