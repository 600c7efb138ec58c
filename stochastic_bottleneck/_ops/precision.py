"""Where a kernel leaves and re-enters the caller's precision.

Statistics are computed in float32 or better whatever the inputs are; these helpers are the two borders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SaturatingUpcast(torch.autograd.Function):
    """Upcast whose gradient saturates at the narrow type's range instead of overflowing to infinity.

    The gradient of a normalised row grows as 1 / norm; float16 ends at 65504. A row of norm 1e-6 would
    otherwise send infinity into the encoder.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        limit = torch.finfo(ctx.dtype).max
        return grad_outputs[0].clamp(-limit, limit).to(ctx.dtype)


class _Upcast(_SaturatingUpcast):
    """With a rule for forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].float()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float32 or float64."""
    if x.dtype in (torch.float16, torch.bfloat16):
        function = _SaturatingUpcast if torch.compiler.is_compiling() else _Upcast
        upcast: Tensor = function.apply(x)
        return upcast
    return x
