"""Accuracy of a random forest against the number of bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stochastic_bottleneck._arrays import sequence
from stochastic_bottleneck._checks import integer, seed_of
from stochastic_bottleneck.evaluation._inputs import Features, Labels, as_arrays, sklearn

__all__ = ["ForestCurve", "forest_curve"]


class ForestCurve(NamedTuple):
    """A random forest's score against its number of features.

    Args:
        counts: numbers of features used, ascending.
        f1: mean over classes of the F1 score on the test set, one for each count, between 0 and 1.
        ranking: all features, the most important first.
    """

    counts: tuple[int, ...]
    f1: tuple[float, ...]
    ranking: tuple[int, ...]


def forest_curve(
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    *,
    counts: Sequence[int] = (1, 2, 5, 11, 25, 50),
    trees: int = 200,
    seed: int = 0,
    jobs: int = -1,
) -> ForestCurve:
    """F1 of a random forest on the most important features, for several numbers of them.

    Features are ranked by a forest's importances on the training set; then one forest is fitted for each count and
    one for all features.

    Args:
        train_features: bits or other features. Shape: (N, D)
        train_labels: integer classes. Shape: (N,)
        test_features: Shape: (M, D)
        test_labels: Shape: (M,)
        counts: numbers of features to use; D and above mean all of them.
        trees: trees per forest.
        seed: of the forests.
        jobs: threads for fitting; -1 for all cores.

    Returns:
        Counts, scores and the ranking.

    Raises:
        ValueError: for features and labels that do not fit together, missing labels, or a number out of its range.
        TypeError: for labels that are not integers, or features that are not numbers.
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> bits = np.random.default_rng(0).integers(0, 2, (200, 8))
        >>> curve = forest_curve(bits, bits[:, 3], bits, bits[:, 3], counts=(1,), trees=10, jobs=1)
        >>> curve.counts, curve.f1[0], curve.ranking[0]
        ((1, 8), 1.0, 3)

    Source:
        StochCon (arXiv 2110.00552), multi-class random forest against the number of bits.
    """
    x, y, x_test, y_test = as_arrays(train_features, train_labels, test_features, test_labels)
    counts = sequence(counts, "counts", "positive ints", integer, empty=True)
    trees, seed, jobs = integer("trees", trees), seed_of(seed), integer("jobs", jobs, least=-1)
    if jobs == 0:
        raise ValueError("jobs must be a positive int, or -1 for all cores, got 0")
    forest = sklearn("ensemble").RandomForestClassifier(trees, random_state=seed, n_jobs=jobs)
    f1_score = sklearn("metrics").f1_score
    of_all = forest.fit(x, y).predict(x_test)
    ranking = forest.feature_importances_.argsort()[::-1]
    used = sorted({min(count, x.shape[1]) for count in (*counts, x.shape[1])})
    scores = []
    for count in used:
        best = ranking[:count]
        predicted = of_all if count == len(ranking) else forest.fit(x[:, best], y).predict(x_test[:, best])
        scores.append(float(f1_score(y_test, predicted, average="macro")))
    return ForestCurve(tuple(used), tuple(scores), tuple(int(i) for i in ranking))
