"""How many bits some bits really hold: bounds of their joint entropy from a number of images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
GROUP = 8  # bits counted together: 256 codes, of which thousands of images see most


class Bound(NamedTuple):
    """An upper bound of a joint entropy.

    Args:
        bits: the bound.
        group: bits counted together.
    """

    bits: float
    group: int


def plug_in(codes: Bits) -> tuple[float, int]:
    """Entropy of codes as they were counted, in bits, and the number of different ones.

    Biased downward by about (different ones - 1) / (2 N ln 2), and never above log2 N.

    Args:
        codes: one row an image. Shape: (N, G)
    """
    packed = np.packbits(np.asarray(codes).astype(bool), axis=1)
    counts = np.unique(packed, axis=0, return_counts=True)[1]
    p = counts / counts.sum()
    return max(0.0, float(-(p * np.log2(p)).sum())), len(counts)


def miller_madow(codes: Bits) -> float:
    """Entropy of codes with the first-order correction of the count's bias, in bits, at most their number of bits.

    Args:
        codes: one row an image. Shape: (N, G)

    Source:
        Miller, Note on the bias of information estimates, 1955; see Paninski, Neural Computation 15 (2003).
    """
    counted, different = plug_in(codes)
    corrected = counted + (different - 1) / (2 * len(codes) * math.log(2))
    return min(corrected, float(codes.shape[1]))


def upper_bound(bits: Bits, group: int = GROUP, *, seed: int = 0) -> Bound:
    """Sum of the entropies of groups of bits, which their joint entropy cannot pass.

    Bits are put together with those that they are most correlated with, which brings the bound down.

    Args:
        bits: 0/1 values. Shape: (N, D)
        group: bits counted together.
        seed: of the order in which groups are begun.
    """
    x = np.asarray(bits, dtype=np.float64)
    closeness = np.abs(_correlation(x))
    left = list(np.random.default_rng(seed).permutation(x.shape[1]))
    total = 0.0
    while left:
        chosen = [left.pop(0)]
        while left and len(chosen) < group:
            nearest = max(left, key=lambda j: float(closeness[chosen, j].sum()))
            left.remove(nearest)
            chosen.append(nearest)
        total += miller_madow(x[:, chosen])
    return Bound(total, group)


def lower_bound(bits: Bits) -> float:
    """Entropy of the whole codes as they were counted, in bits; on average below the truth, and at most log2 N.

    Args:
        bits: 0/1 values. Shape: (N, D)
    """
    return plug_in(bits)[0]


def effective_bits(bits: Bits) -> float:
    """Participation ratio of the correlation matrix's eigenvalues: D for uncorrelated bits, 1 for copies of one.

    Constant bits do not count.

    Args:
        bits: 0/1 values. Shape: (N, D)
    """
    x = np.asarray(bits, dtype=np.float64)
    x = x[:, x.std(axis=0) > 0]
    if x.shape[1] == 0:
        return 0.0
    correlation = np.atleast_2d(np.corrcoef(x, rowvar=False))
    return float(np.trace(correlation) ** 2 / np.square(correlation).sum())


def _correlation(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations, 0 for constant bits. Shape: (N, D) -> (D, D)."""
    centred = x - x.mean(axis=0)
    scale = np.sqrt(np.square(centred).sum(axis=0))
    unit = centred / np.where(scale > 0, scale, 1.0)
    correlation: NDArray[np.float64] = unit.T @ unit
    return correlation
