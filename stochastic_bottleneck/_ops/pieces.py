"""Long chains of elementwise operations, done in pieces that stay in the processor's cache.

A chain of k operations on a tensor that is larger than the cache reads and writes main memory k times, and
every new tensor of that size comes from the operating system, page by page. Done piece by piece, only the
inputs and the results travel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Elements a thread handles at a time: half a megabyte of float32. Smaller pieces win nothing more (the third
# level of cache holds them too) and let the threads wait for one another more often.
_PIECE = 2**17


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]], first: Tensor, *others: Tensor | None
) -> tuple[Tensor, ...]:
    """`function(first, *others)`, which must act on each element, or on each row, alone.

    In one piece where gradients are recorded (a backward pass that is differentiated again) and on devices
    other than a CPU, where pieces would only mean more launches.

    Args:
        function: maps tensors to a tuple of tensors.
        first: gives the shape. Shape: (..., D)
        others: of the shape of `first`, one a row, Shape: (..., 1), one for all, Shape: (), or None.

    Returns:
        What `function` returns. Shapes: (..., D) or (..., 1)
    """
    size = _PIECE * torch.get_num_threads()
    rows = (*first.shape[:-1], 1)
    shapes = {x.shape for x in others if x is not None and x.ndim}
    whole = torch.is_grad_enabled() or first.device.type != "cpu" or first.numel() <= size
    if whole or not shapes <= {first.shape, rows}:
        return function(first, *others)
    width = first.shape[-1] if rows in shapes else 1
    step = max(1, size // width)

    def flat(x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim == 0:
            return x
        return x.reshape(-1) if width == 1 else x.reshape(-1, x.shape[-1])

    inputs = [flat(x) for x in (first, *others)]
    n = first.numel() // width
    results: list[Tensor] = []
    for start in range(0, n, step):
        piece = function(*(x if x is None or x.ndim == 0 else x[start : start + step] for x in inputs))
        if not results:
            results = [x.new_empty((n, *x.shape[1:])) for x in piece]
        for result, part in zip(results, piece, strict=True):
            result[start : start + step] = part
    return tuple(x.view(first.shape if x.numel() == first.numel() else rows) for x in results)
