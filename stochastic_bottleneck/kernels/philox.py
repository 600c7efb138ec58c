"""Counter-based random numbers in plain tensor operations, which the compiler fuses and vectorizes.

Philox2x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter (c0, c1) and a
key k, all 32-bit, to two random words by ten rounds of

    c0, c1 = high(M c0) xor k xor c1, low(M c0)        k = k + W

where high and low are the halves of the 64-bit product. c0 is the index of the element, so that each element is
independent of the others, computed in the kernel that uses it, and recomputed in backward instead of stored. torch's
compiler does the same for CUDA; on a CPU it generates one element after another, which takes longer than the rest of
a sampler.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIER = 0xD256D193  # M and W of the paper for two 32-bit words
_WEYL = 0x9E3779B9
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox(c0: Tensor, c1: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two random words for each counter; all are 32-bit words stored as int64."""
    for _ in range(_ROUNDS):
        product = c0 * _MULTIPLIER  # may overflow int64, which keeps the 64 bits correct
        c0, c1 = ((product >> 32) & _MASK) ^ key ^ c1, product & _MASK
        key = (key + _WEYL) & _MASK
    return c0, c1


def uniform(shape: torch.Size, seed: Tensor) -> Tensor:
    """Uniform float32 noise in [0, 1] from a seed of two words, Shape: (2,)."""
    first, _ = _random_words(shape, seed)
    return first.float() * 2.0**-32


def normal(shape: torch.Size, seed: Tensor) -> Tensor:
    """Standard normal float32 noise (Box-Muller) from a seed of two words, Shape: (2,)."""
    first, second = _random_words(shape, seed)
    radius = (-2 * ((first + 1).float() * 2.0**-32).log()).sqrt()  # a uniform number in (0, 1]
    return radius * torch.cos(second.float() * (2 * math.pi * 2.0**-32))


def _random_words(shape: torch.Size, seed: Tensor) -> tuple[Tensor, Tensor]:
    index = torch.arange(shape.numel(), device=seed.device).view(shape)
    return philox(index, seed[0], seed[1])
