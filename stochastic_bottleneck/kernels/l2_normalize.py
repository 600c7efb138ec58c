"""L2 normalization of rows of any magnitude.

A row is first divided by its largest entry, so that squares neither overflow nor underflow. With scale s, y = x / s
and norm n = s max(|y|, 1/2),

    u = y / max(|y|, 1/2),        dL/dx = (g - u (u . g)) / n        for dL/du = g

The scale is treated as a constant, which is exact because x / |x| does not depend on it. The largest entry of y is 1,
so |y| >= 1, and only rows whose entries all lie below the lower bound of s reach the maximum with 1/2. Those shrink to
zero with their magnitude instead of being normalized, and their gradient is an approximation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck.kernels.elementwise import at_least_float32

# Below 1, the smallest norm of a scaled row: the clamp, whose gradient at a tie is lost, acts on tiny rows only.
MIN_NORM = 0.5


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of `x` scaled to norm 1, in float32 or better; zero rows stay zero with a finite gradient."""
    return l2_normalize_with_norm(x)[0]


def l2_normalize_with_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and the norms they were divided by. Shapes: (..., D) and (..., 1)."""
    x = at_least_float32(x)
    scale = _scale(x.detach())
    x = x / scale
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(MIN_NORM)
    return x / norm, norm * scale


def l2_normalize_(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize rows in place, without autograd.

    Args:
        x: float32 or float64; overwritten by the unit rows. Shape: (..., D)

    Returns:
        Unit rows of Shape: (..., D), and their norms. Shape: (..., 1)
    """
    scale = _scale(x)
    y = x.div_(scale)
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(MIN_NORM)
    return y.div_(norm), norm.mul_(scale).contiguous()


def l2_normalize_backward_(grad: Tensor, u: Tensor, norm: Tensor) -> Tensor:
    """Gradient of the rows from the gradient of the unit rows, which is overwritten. Shape: (..., D)."""
    projection = (grad * u).sum(dim=-1, keepdim=True)
    return grad.addcmul_(u, projection, value=-1.0).div_(norm)


def smallest_scale(dtype: torch.dtype) -> float:
    """3e-32 in float32: 1 / scale, times upstream gradients to 1e7 (loss scaling over a low temperature), is finite."""
    return float(torch.finfo(dtype).tiny ** (5 / 6))


def _scale(x: Tensor) -> Tensor:
    return x.abs().amax(dim=-1, keepdim=True).clamp_min_(smallest_scale(x.dtype))
