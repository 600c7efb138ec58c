"""Rows scaled to norm 1, for rows of any size.

A row is divided by its largest magnitude first, so that squares neither overflow nor underflow. With scale s,
y = x / s and r = 1 / max(|y|, 1),

    u = r y,        dL/dx = (g - u (u . g)) r / s

for dL/du = g; the scale is a constant to the gradient, which is exact because x / |x| does not depend on it. A row
with |y| < 1 is (next to) zero, below the floor of s: it stays as it is, and its gradient is g r / s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck._ops.precision import at_least_float32


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` scaled to norm 1, in float32 or better; zero rows stay zero with a finite gradient."""
    x = at_least_float32(x)
    x = x / _scale(x.detach())
    return x * x.square().sum(dim=-1, keepdim=True).clamp_min(1.0).rsqrt()


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """`unit_rows` without autograd, and the two factors that `backward` needs.

    Args:
        x: float32 or float64. Shape: (..., D)

    Returns:
        Unit rows of Shape: (..., D), and the factors of g and of u (u . g). Shape: (..., 2)
    """
    scale = _scale(x)
    y = x / scale
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    r = norm.clamp_min(1.0).reciprocal_()
    u = y.mul_(r)
    factor = r.div_(scale)
    return u, torch.cat((factor, factor * (norm >= 1.0)), dim=-1)


def backward(grad: Tensor, u: Tensor, factors: Tensor) -> Tensor:
    """Gradient of the rows from `grad`, that of the unit rows, which is overwritten. Shape: (..., D)."""
    along = (grad * u).sum(dim=-1, keepdim=True).mul_(factors[..., 1:])
    return grad.mul_(factors[..., :1]).addcmul_(u, along, value=-1.0)


def _scale(x: Tensor) -> Tensor:
    # The cube root of the smallest normal number: 1 / scale, times any upstream gradient, stays finite.
    floor = torch.finfo(x.dtype).tiny ** (1 / 3)
    return x.abs().amax(dim=-1, keepdim=True).clamp_min(floor)
