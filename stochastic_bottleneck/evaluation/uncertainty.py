"""Measures of uncertainty: rejection curve, area under the ROC curve, calibration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array, class_labels
from stochastic_bottleneck._checks import integer
from stochastic_bottleneck.evaluation._inputs import check_finite_rows, sklearn

__all__ = ["RejectionCurve", "auroc", "expected_calibration_error", "rejection_curve"]

Numbers = Tensor | NDArray[Any]


class RejectionCurve(NamedTuple):
    """Accuracy on the remaining images when the least certain are rejected.

    Args:
        coverage: share of images not rejected, 1/N to 1. Shape: (N,)
        accuracy: on those, between 0 and 1. Shape: (N,)
        area: mean of `accuracy`: 1 minus the area under the risk-coverage curve (AURC).
    """

    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    area: float


def rejection_curve(uncertainty: Numbers, correct: Numbers) -> RejectionCurve:
    """Accuracy against coverage: the share of images that are not rejected, the most certain first.

    Images of equal uncertainty count as in random order: the curve is the expectation over it, and does not depend on
    the order of the input. An uninformative uncertainty gives a flat curve at the accuracy on all images.

    Args:
        uncertainty: one finite number per image, such as `posterior.entropy()`; higher is less certain. Shape: (N,)
        correct: whether a classifier was right, as booleans or 0 and 1. Shape: (N,)

    Returns:
        One point per number of images, and the area under the curve.

    Raises:
        ValueError: for shapes that do not fit, uncertainty that is not finite (overflowed values have lost their
            order), or `correct` other than 0 and 1.

    Example:
        >>> import numpy as np
        >>> curve = rejection_curve(np.array([0.3, 0.1, 0.9, 0.2]), np.array([True, True, False, True]))
        >>> curve.accuracy.tolist()
        [1.0, 1.0, 1.0, 0.75]

    Source:
        Accuracy-rejection curves: Nadeem, Zucker and Hanczar (PMLR 8, 2009); AURC: arXiv 1805.08206.
    """
    u = _scores(uncertainty, "uncertainty")
    right = _binary(correct, "correct", len(u))
    _, group, size = np.unique(u, return_inverse=True, return_counts=True)
    rate = np.bincount(group, weights=right) / size  # accuracy among images of equal uncertainty
    count = np.arange(1, len(u) + 1)
    accuracy = np.cumsum(np.repeat(rate, size)) / count
    return RejectionCurve(count / len(u), accuracy, float(accuracy.mean()))


def auroc(scores: Numbers, positive: Numbers) -> float:
    """Area under the ROC curve: how well an uncertainty detects errors or out-of-distribution images.

    Args:
        scores: one finite number per image; higher should mean positive. Shape: (N,)
        positive: what to detect, as booleans or 0 and 1: errors, corrupted or out-of-distribution images. Shape: (N,)

    Returns:
        Probability that a positive image has a higher score than a negative one, ties counting half: 0.5 for an
        uninformative score, 1 for a perfect one.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, as in `rejection_curve`, or `positive` other
            than 0 and 1, or all 0 or all 1.
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> auroc(np.array([0.9, 0.1, 0.4, 0.3]), np.array([1, 0, 1, 0]))
        1.0
    """
    s = _scores(scores, "scores")
    found = _binary(positive, "positive", len(s))
    if found.min() == found.max():
        raise ValueError(
            f"positive must hold both 0 and 1, got {len(found)} times {found[0]:.0f}; the area is undefined without "
            "both"
        )
    return float(sklearn("metrics").roc_auc_score(found, s))


def expected_calibration_error(probabilities: Numbers, labels: Numbers, *, bins: int = 15) -> float:
    """Mean gap between a classifier's confidence and its accuracy (ECE).

    Images are binned by the probability of the predicted class, in bins of equal width that include their upper edge.
    The gaps between mean confidence and accuracy are weighted by the number of images per bin.

    Args:
        probabilities: of each class; rows sum to 1. Shape: (N, C)
        labels: integer classes from 0 to C - 1. Shape: (N,)
        bins: number of bins.

    Returns:
        Error, between 0 and 1.

    Raises:
        ValueError: for shapes that do not fit, rows that are not distributions, labels that are missing or out of
            range, or bins below 1.
        TypeError: for labels that are not integers.

    Example:
        >>> import numpy as np
        >>> certain = np.eye(2)[[0, 1, 0, 0]]
        >>> expected_calibration_error(certain, np.array([0, 1, 0, 1]))  # certain of all, correct for three of four
        0.25

    Source:
        Guo et al. (arXiv 1706.04599), equation 3.
    """
    bins = integer("bins", bins, hint="15 is usual")
    p = array(probabilities, "probabilities").astype(np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise ValueError(f"probabilities must have shape (N, C) with N and C at least 1, got {p.shape}")
    rounding = 2**-7 if getattr(probabilities, "dtype", None) == torch.bfloat16 else 1e-3
    wrong = ~((p >= 0).all(axis=1) & np.isclose(p.sum(axis=1), 1, atol=rounding))
    if wrong.any():
        raise ValueError(
            f"probabilities must be rows of at least 0 that sum to 1, got {wrong.sum()} of {len(p)} that do not, "
            f"such as row {wrong.argmax()}; take the softmax of the logits first"
        )
    y = class_labels(labels, len(p), "labels")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be integers from 0 to {p.shape[1] - 1}, got values from {y.min()} to {y.max()}")
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    chosen = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(chosen, weights=right - confidence)
    return float(np.abs(gaps).sum() / len(p))


def _scores(x: Numbers, name: str) -> NDArray[np.float64]:
    scores = array(x, name).astype(np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must have shape (N,) with N at least 1, one number per image, got {scores.shape}")
    check_finite_rows(np.isfinite(scores), name)
    return scores


def _binary(x: Numbers, name: str, count: int) -> NDArray[np.float64]:
    values = array(x, name)
    if values.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per image, got {values.shape}")
    if not np.isin(values, (0, 1)).all():
        others = np.unique(values[~np.isin(values, (0, 1))])
        raise ValueError(f"{name} must be booleans, or 0 and 1, got {', '.join(map(str, others[:5]))}")
    return values.astype(np.float64)
