"""Rows scaled to norm 1, for rows of any size.

A row is divided by its largest magnitude first, so that squares neither overflow nor underflow. With scale s,
y = x / s and length l = s max(|y|, 1/2),

    u = y / max(|y|, 1/2),        dL/dx = (g - u (u . g)) / l

for dL/du = g; the scale is a constant to the gradient, which is exact because x / |x| does not depend on it. The
largest entry of y is 1, so |y| >= 1, and the maximum, where it has no gradient, is only met by rows whose entries all
lie below the floor of s. Those shrink to zero with their size instead of being normalised, and `backward`, which
projects their gradient too, is an approximation for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck._ops.precision import at_least_float32

# Below 1, the smallest norm of a scaled row: only rows under the floor meet the clamp, which has no gradient there.
_LEAST = 0.5


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` scaled to norm 1, in float32 or better; zero rows stay zero with a finite gradient."""
    return with_lengths(x)[0]


def with_lengths(x: Tensor) -> tuple[Tensor, Tensor]:
    """`unit_rows`, and what rows were divided by. Shapes: (..., D) and (..., 1)."""
    x = at_least_float32(x)
    scale = _scale(x.detach())
    x = x / scale
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_LEAST)
    return x / norm, norm * scale


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """`unit_rows` without autograd, and the lengths that `backward` needs.

    Args:
        x: float32 or float64; overwritten by the unit rows. Shape: (..., D)

    Returns:
        Unit rows of Shape: (..., D), and their lengths. Shape: (..., 1)
    """
    scale = _scale(x)
    y = x.div_(scale)
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(_LEAST)
    return y.div_(norm), norm.mul_(scale).contiguous()


def backward(grad: Tensor, u: Tensor, length: Tensor) -> Tensor:
    """Gradient of the rows from `grad`, that of the unit rows, which is overwritten. Shape: (..., D)."""
    along = (grad * u).sum(dim=-1, keepdim=True)
    return grad.addcmul_(u, along, value=-1.0).div_(length)


def _scale(x: Tensor) -> Tensor:
    # 3e-32 in float32: 1 / scale, times upstream gradients to 1e7 (loss scaling over a low temperature), stays finite.
    floor = torch.finfo(x.dtype).tiny ** (5 / 6)
    return x.abs().amax(dim=-1, keepdim=True).clamp_min_(floor)
