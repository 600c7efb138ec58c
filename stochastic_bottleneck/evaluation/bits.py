"""Summary statistics of binary codes."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck import codes

__all__ = ["BitStatistics", "bit_statistics"]


class BitStatistics(NamedTuple):
    """Summary statistics of the bits of some images.

    Args:
        share_of_ones: mean over bits and images; 0.5 is balanced.
        entropy: mean over bits of each bit's entropy, in bits; 1 if all are balanced.
        correlation: mean absolute correlation between bits, 0 for independent ones; nan with fewer than two that vary.
        effective: number of uncorrelated bits that the code is worth, from 0 to D; see `codes.effective_bits`.
        distinct: number of distinct codes divided by the number of images.
        class_information: mean over bits of the mutual information between bit and class, in bits; None without labels.
    """

    share_of_ones: float
    entropy: float
    correlation: float
    effective: float
    distinct: float
    class_information: float | None


def bit_statistics(bits: Tensor | NDArray[Any], labels: Tensor | NDArray[Any] | None = None) -> BitStatistics:
    """Balance, redundancy and class information of the bits of some images.

    Balance alone does not show that capacity is used: copies of one bit are balanced too. `codes` has the measures for
    each bit.

    Args:
        bits: 0/1 values. Shape: (N, D)
        labels: integer classes. Shape: (N,)

    Returns:
        Means over the bits.

    Raises:
        ValueError: for anything but 0 and 1, shapes that do not fit, or missing labels.
        TypeError: for bits that are not an array or a tensor, or labels that are not integers.

    Example:
        >>> import numpy as np
        >>> bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> statistics = bit_statistics(bits, labels=bits[:, 0])
        >>> statistics.entropy, statistics.correlation, statistics.distinct, statistics.class_information
        (1.0, 0.0, 1.0, 0.5)

    Source:
        Counting metrics of StochCon (arXiv 2110.00552).
    """
    information = None if labels is None else float(codes.bit_class_information(bits, labels).mean())
    return BitStatistics(
        float(codes.share_of_ones(bits).mean()),
        float(codes.bit_entropy(bits).mean()),
        codes.bit_correlation(bits),
        codes.effective_bits(bits),
        codes.distinct_codes(bits) / len(bits),
        information,
    )
