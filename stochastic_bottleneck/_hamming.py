"""Hamming distances of packed codes in words of eight bytes, for arrays and tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

HOST_CHUNK, DEVICE_CHUNK = 2**16, 2**22
"""Pairs per chunk: on the host what fits its caches, on a device enough to amortise a kernel launch."""


def distances(a: Any, b: Any) -> Any:
    """Hamming distances, computed in chunks of the result so that temporaries stay small."""
    on_host = isinstance(a, np.ndarray)
    lib: Any = np if on_host else torch
    shape: tuple[int, ...] = lib.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    chunks = math.prod(shape) // (HOST_CHUNK if on_host else DEVICE_CHUNK)
    if torch.compiler.is_compiling() or chunks < 2:  # compiled code fuses the temporaries
        return _distance(a, b)
    total = np.empty(shape, np.int64) if on_host else a.new_empty(shape, dtype=torch.int64)
    split, axis = np.array_split if on_host else torch.tensor_split, shape.index(max(shape))
    whole = (total, *(lib.broadcast_to(codes, (*shape, codes.shape[-1])) for codes in (a, b)))
    for chunk, x, y in zip(*(split(v, min(chunks, max(shape)), axis) for v in whole), strict=True):
        chunk[...] = _distance(_unexpanded(x), _unexpanded(y))
    return total


def _unexpanded(codes: Any) -> Any:
    """Codes with broadcast dimensions (stride 0) reduced to size 1; the comparison broadcasts them again."""
    strides = codes.strides if isinstance(codes, np.ndarray) else codes.stride()
    return codes[tuple(slice(1 if stride == 0 else None) for stride in strides[:-1])]


def _distance(a: Any, b: Any) -> Any:
    """Hamming distances, eight bytes at a time."""
    words = (_popcount(_word(a, first) ^ _word(b, first)) for first in range(0, a.shape[-1], 8))
    distance: Any = sum(words)
    return distance.reshape(distance.shape[:-1])


def _word(codes: Any, first: int) -> Any:
    """Eight bytes of each code as one int64, padded with zeros. Shape: (..., 1)."""
    word = codes[..., first : first + 8]
    if isinstance(word, np.ndarray):
        padded_word = np.zeros((*word.shape[:-1], 8), np.uint8)
        padded_word[..., : word.shape[-1]] = word
        return padded_word.view(np.int64)
    padded = torch.nn.functional.pad(word, (0, 8 - word.shape[-1]))
    # torch views bytes as words only if all strides are contiguous, also those of dimensions of size 1.
    return padded.clone(memory_format=torch.contiguous_format).view(torch.int64)


def _popcount(words: Any) -> Any:
    """Number of ones in each int64."""
    if isinstance(words, np.ndarray) and hasattr(np, "bitwise_count"):  # since numpy 2
        return np.bitwise_count(words.view(np.uint64)).astype(np.int64)
    # Sums over 2, 4 and 8 bits, side by side, and then over the bytes (Warren, "Hacker's Delight", section 5-1).
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    for bits in (8, 16, 32):
        words = words + (words >> bits)
    return words & 0x7F
