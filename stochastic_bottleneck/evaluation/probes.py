"""Frozen linear probe and nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stochastic_bottleneck._arrays import sequence
from stochastic_bottleneck._checks import MIN_CONCRETE, choice, device_of, integer, real, seed_of
from stochastic_bottleneck.evaluation._inputs import (
    Features,
    Labels,
    as_arrays,
    sklearn,
)
from stochastic_bottleneck.evaluation._logistic import DeviceLogisticRegression

__all__ = ["ProbeResult", "knn_accuracy", "linear_probe"]


class ProbeResult(NamedTuple):
    """Outcome of a linear probe.

    Args:
        accuracy: top-1 on the test set, between 0 and 1.
        f1: mean over classes of the F1 score on the test set, between 0 and 1.
        regularisation: the chosen inverse strength C.
    """

    accuracy: float
    f1: float
    regularisation: float


def linear_probe(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    regularisations: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    validation_share: float = 0.2,
    max_iter: int = 200,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ProbeResult:
    """Multinomial logistic regression on frozen, standardised features.

    The strength of the L2 penalty is chosen on a validation split of the training set, from strong to weak until
    its accuracy falls; the probe is then fitted on the whole training set. The test set is used for the score only.

    Args:
        train_features: Shape: (N, F)
        train_labels: integer classes. Shape: (N,)
        test_features: Shape: (M, F)
        test_labels: Shape: (M,)
        regularisations: inverse strengths C to choose from.
        validation_share: share of the training set in the validation split.
        max_iter: iterations of L-BFGS per fit.
        seed: of the split.
        device: fits the same objective by the same solver in float32 on this device, which holds the training
            features; None for scikit-learn on the CPU.

    Returns:
        Accuracy, F1 and the chosen strength.

    Raises:
        ValueError: for features and labels that do not fit together, missing labels, no regularisations or some that
            are not positive, another number out of its range, a class too small to be split, or a device that is not
            available.
        TypeError: for labels that are not integers, or features that are not numbers.
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> features = np.repeat(np.eye(3), 20, axis=0)
        >>> labels = np.arange(3).repeat(20)
        >>> linear_probe(features, labels, features, labels).accuracy
        1.0

    Source:
        The linear evaluation protocol of SimCLR (arXiv 2002.05709), appendix B.6, by L-BFGS.
    """
    x, y, x_test, y_test = as_arrays(train_features, train_labels, test_features, test_labels)
    strengths = sequence(
        regularisations, "regularisations", "one or more finite numbers above 0", partial(real, above=0)
    )
    share = real("validation_share", validation_share, above=0, below=1, hint="0.2 is usual")
    max_iter, seed = integer("max_iter", max_iter), seed_of(seed)
    target = None if device is None else device_of(device, torch.device("cpu"))
    if len(strengths) > 1:
        _check_split(y, share)
    scaler = sklearn("preprocessing").StandardScaler().fit(x)
    x, x_test = scaler.transform(x), scaler.transform(x_test)
    model: Any
    if target is None:
        model = sklearn("linear_model").LogisticRegression(max_iter=max_iter)
    else:
        model = DeviceLogisticRegression(max_iter, target)
    with warnings.catch_warnings():
        # Stopping at max_iter is fine for a probe.
        warnings.simplefilter("ignore", sklearn("exceptions").ConvergenceWarning)
        chosen = strengths[0]
        if len(strengths) > 1:
            x_fit, x_held, y_fit, y_held = sklearn("model_selection").train_test_split(
                x, y, test_size=share, random_state=seed, stratify=y
            )
            best = -1.0
            for c in sorted(strengths):
                score = model.set_params(C=c).fit(x_fit, y_fit).score(x_held, y_held)
                if score < best:
                    break
                best, chosen = score, c
        predicted = model.set_params(C=chosen).fit(x, y).predict(x_test)
    f1 = sklearn("metrics").f1_score(y_test, predicted, average="macro")
    return ProbeResult(float(np.mean(predicted == y_test)), float(f1), chosen)


def _check_split(labels: NDArray[Any], share: float) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or min(share, 1 - share) * len(labels) < len(classes):
        raise ValueError(
            f"train_labels must hold at least two images of each of the {len(classes)} classes, and enough for one of "
            f"each on both sides of validation_share={share}, got {len(labels)} images, {counts.min()} in the smallest "
            "class; give more images, or a single regularisation"
        )


def knn_accuracy(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    k: int = 20,
    temperature: float = 0.1,
    metric: str = "cosine",
    device: torch.device | str | None = None,
) -> float:
    """Top-1 accuracy of nearest neighbours.

    Args:
        train_features: Shape: (N, F)
        train_labels: integer classes. Shape: (N,)
        test_features: Shape: (M, F)
        test_labels: Shape: (M,)
        k: neighbours that vote.
        temperature: with "cosine", a neighbour of similarity s votes with weight exp(s / temperature).
        metric: "cosine" for features, "hamming" for 0/1 bits (equal votes).
        device: to compute on; None for the CPU. It holds both sets, and 1,000 rows of similarities.

    Returns:
        Accuracy, between 0 and 1.

    Raises:
        ValueError: for features and labels that do not fit together, missing labels, k above N, an unknown metric, a
            temperature below 1e-6, by which float32 cannot divide, or a device that is not available.
        TypeError: for labels that are not integers, or features that are not numbers.

    Source:
        Weighted vote: Wu et al. (arXiv 1805.01978), section 3.4.
    """
    x, y, x_test, y_test = as_arrays(train_features, train_labels, test_features, test_labels)
    k = integer("k", k, most=len(x), hint="at most all training images can vote")
    choice("metric", metric, ("cosine", "hamming"))
    temperature = real("temperature", temperature, least=MIN_CONCRETE, hint="0.1 is usual")
    target = device_of(device, torch.device("cpu"))
    classes, indices = np.unique(y, return_inverse=True)
    if metric == "hamming" and not all(np.isin(bits, (0, 1)).all() for bits in (x, x_test)):
        raise ValueError('metric="hamming" needs features that are 0 or 1; unpack codes, or use "cosine"')
    if metric == "hamming":  # for entries of -1 and 1 the product ranks as the Hamming distance does
        x, x_test = 2 * x - 1, 2 * x_test - 1
    train, test = torch.from_numpy(x).to(target), torch.from_numpy(x_test).to(target)
    train = torch.nn.functional.normalize(train, dim=1)
    class_of, predicted = torch.from_numpy(indices).to(target), []
    for rows in torch.split(torch.nn.functional.normalize(test, dim=1), 1000):
        with torch.autocast(target.type, enabled=False):
            similarity, neighbour = (rows @ train.T).topk(k, dim=1)
        # Relative to the nearest neighbour, which changes no winner and keeps the exponential finite.
        relative = similarity - similarity[:, :1]
        weight = (relative / temperature).exp() if metric == "cosine" else torch.ones_like(similarity)
        votes = weight.new_zeros(len(rows), len(classes)).scatter_add_(1, class_of[neighbour], weight)
        predicted.append(votes.argmax(dim=1))
    return float(np.mean(classes[torch.cat(predicted).cpu().numpy()] == y_test))
