"""What kernels share: casts to float32, no autocast, and evaluation in chunks that fit the processor's cache.

A chain of k operations on a tensor larger than the cache reads and writes main memory k times, and the operating
system maps every new tensor of that size page by page. Evaluated chunk by chunk, only inputs and results travel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Elements per thread and chunk: half a megabyte of float32. Smaller chunks gain nothing more (the third-level cache
# holds these too) and make threads synchronize more often.
_CHUNK = 2**17


class _CompiledUpcast(torch.autograd.Function):
    """Upcast whose gradient saturates at the narrow type's range instead of overflowing to infinity.

    The gradient of a normalized row grows as 1 / norm, and float16 ends at 65504: without saturation, a row of norm
    1e-6 would send infinity into the encoder.
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
        return saturating_cast(grad_outputs[0], ctx.dtype)


class _Upcast(_CompiledUpcast):
    """Adds forward-mode differentiation, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].float()


def at_least_float32(x: Tensor) -> Tensor:
    """Cast float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    if x.dtype in (torch.float16, torch.bfloat16):
        function = _CompiledUpcast if torch.compiler.is_compiling() else _Upcast
        upcast: Tensor = function.apply(x)
        return upcast
    return x


def saturating_cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a gradient, clamped to the range of `dtype`."""
    limit = torch.finfo(dtype).max
    return grad if grad.dtype == dtype else grad.clamp(-limit, limit).to(dtype)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Turn autocast off for a type of device."""
    # Devices without autocast raise even when it is turned off; torch 2.4 cannot compile the condition.
    if torch.compiler.is_compiling() or (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def is_transformed() -> bool:
    """Whether a function transform is active, such as torch.vmap, which hides a dimension of some tensors."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_chunks(function: Callable[..., tuple[Tensor, ...]], first: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """Evaluate `function(first, *others)`, which must act on each element or each row alone, chunk by chunk.

    A single call where gradients are recorded (a backward pass that is differentiated again) and on devices other
    than a CPU, where chunks would only mean more launches.

    Args:
        function: maps tensors to a tuple of tensors.
        first: sets the shape. Shape: (..., D)
        others: tensors of the shape of `first`, of one value per row, Shape: (..., 1), or of one value, Shape: (); or
            None.

    Returns:
        The result of `function`. Shapes: (..., D) or (..., 1)
    """
    size = _CHUNK * torch.get_num_threads()
    row_shape = (*first.shape[:-1], 1)
    shapes = {x.shape for x in others if x is not None and x.ndim}
    whole = torch.is_grad_enabled() or first.device.type != "cpu" or first.numel() <= size
    if whole or not shapes <= {first.shape, row_shape}:
        return function(first, *others)
    width = first.shape[-1] if row_shape in shapes else 1
    step = max(1, size // width)

    def flat(x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim == 0:
            return x
        return x.reshape(-1) if width == 1 else x.reshape(-1, x.shape[-1])

    inputs = [flat(x) for x in (first, *others)]
    n = first.numel() // width
    results: list[Tensor] = []
    for start in range(0, n, step):
        chunk = function(*(x if x is None or x.ndim == 0 else x[start : start + step] for x in inputs))
        if not results:
            results = [x.new_empty((n, *x.shape[1:])) for x in chunk]
        for result, values in zip(results, chunk, strict=True):
            result[start : start + step] = values
    return tuple(x.view(first.shape if x.numel() == first.numel() else row_shape) for x in results)
