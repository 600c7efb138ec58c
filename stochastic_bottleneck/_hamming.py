"""Hamming distances of packed codes by words of eight bytes, of arrays and of tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

HOST_CHUNK, DEVICE_CHUNK = 2**16, 2**22
"""Pairs that are compared at once: on the host what its caches hold, elsewhere enough to be worth a launch."""


def distances(a: Any, b: Any) -> Any:
    """Hamming distances in chunks of the result, so that temporaries are small next to it."""
    on_host = isinstance(a, np.ndarray)
    lib: Any = np if on_host else torch
    shape: tuple[int, ...] = lib.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    chunks = math.prod(shape) // (HOST_CHUNK if on_host else DEVICE_CHUNK)
    if torch.compiler.is_compiling() or chunks < 2:  # compiled code fuses what leads to the result
        return _distance(a, b)
    total = np.empty(shape, np.int64) if on_host else a.new_empty(shape, dtype=torch.int64)
    split, axis = np.array_split if on_host else torch.tensor_split, shape.index(max(shape))
    whole = (total, *(lib.broadcast_to(codes, (*shape, codes.shape[-1])) for codes in (a, b)))
    for part, x, y in zip(*(split(v, min(chunks, max(shape)), axis) for v in whole), strict=True):
        part[...] = _distance(_once(x), _once(y))
    return total


def _once(codes: Any) -> Any:
    """Codes without repetition, which broadcasting brings back: a dimension that was broadcast has a stride of 0."""
    strides = codes.strides if isinstance(codes, np.ndarray) else codes.stride()
    return codes[tuple(slice(1 if stride == 0 else None) for stride in strides[:-1])]


def _distance(a: Any, b: Any) -> Any:
    """Hamming distances, eight bytes at a time."""
    words = (_popcount(_word(a, first) ^ _word(b, first)) for first in range(0, a.shape[-1], 8))
    distance: Any = sum(words)
    return distance.reshape(distance.shape[:-1])


def _word(codes: Any, first: int) -> Any:
    """Eight bytes of each code as one int64, with zeros after the last byte. Shape: (..., 1)."""
    part = codes[..., first : first + 8]
    if isinstance(part, np.ndarray):
        word = np.zeros((*part.shape[:-1], 8), np.uint8)
        word[..., : part.shape[-1]] = part
        return word.view(np.int64)
    padded = torch.nn.functional.pad(part, (0, 8 - part.shape[-1]))
    # A copy whose strides are those of its shape, of dimensions of size 1 too, or torch views no bytes as words.
    return padded.clone(memory_format=torch.contiguous_format).view(torch.int64)


def _popcount(words: Any) -> Any:
    """Bits that are 1 in each int64."""
    if isinstance(words, np.ndarray) and hasattr(np, "bitwise_count"):  # since numpy 2
        return np.bitwise_count(words.view(np.uint64)).astype(np.int64)
    # Sums over 2, 4 and 8 bits, side by side, and then over the bytes (Warren, "Hacker's Delight", section 5-1).
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    for bits in (8, 16, 32):
        words = words + (words >> bits)
    return words & 0x7F
