"""Random words as a function of a counter, in plain tensor operations that a compiler fuses and vectorises.

Philox2x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter (c0, c1)
and a key k, all of 32 bits, into two words by ten rounds of

    c0, c1 = high(M c0) xor k xor c1, low(M c0)        k = k + W

high and low being the halves of the 64-bit product. An element's index is its c0, so that every element is
drawn alone, in the kernel that uses it, and a backward pass can draw it again instead of storing it. torch's
compiler does the same for CUDA; for a CPU its generator draws one element after another, which takes longer
than everything else that a sampler does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIER = 0xD256D193  # M and W as the paper gives them for two words of 32 bits
_WEYL = 0x9E3779B9
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox(c0: Tensor, c1: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two random words for each counter; all are words of 32 bits in int64."""
    for _ in range(_ROUNDS):
        product = c0 * _MULTIPLIER  # may wrap; its 64 bits are right all the same
        c0, c1 = ((product >> 32) & _MASK) ^ key ^ c1, product & _MASK
        key = (key + _WEYL) & _MASK
    return c0, c1


def uniform(shape: torch.Size, seed: Tensor) -> Tensor:
    """Uniform float32 noise in [0, 1]. seed: two words, Shape: (2,)."""
    first, _ = _words(shape, seed)
    return first.float() * 2.0**-32


def normal(shape: torch.Size, seed: Tensor) -> Tensor:
    """Standard normal float32 noise (Box and Muller). seed: two words, Shape: (2,)."""
    first, second = _words(shape, seed)
    radius = (-2 * ((first + 1).float() * 2.0**-32).log()).sqrt()  # of a uniform number in (0, 1]
    return radius * torch.cos(second.float() * (2 * math.pi * 2.0**-32))


def _words(shape: torch.Size, seed: Tensor) -> tuple[Tensor, Tensor]:
    index = torch.arange(shape.numel(), device=seed.device).view(shape)
    return philox(index, seed[0], seed[1])
