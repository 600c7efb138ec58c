"""Rejection, detection and calibration, against slow loops and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stochastic_bottleneck.evaluation import auroc, expected_calibration_error, rejection_curve

RNG = np.random.default_rng(0)


def exhaustive_curve(uncertainty, correct):
    """Mean over all orders of the images with ascending uncertainty."""
    n, curves = len(uncertainty), []
    for order in itertools.permutations(range(n)):
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order)):
            curves.append([np.mean([correct[i] for i in order[:count]]) for count in range(1, n + 1)])
    return np.mean(curves, axis=0)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.7]), st.booleans()), min_size=1, max_size=6))
def test_the_rejection_curve_is_the_mean_over_orders_of_ties(images):
    uncertainty, correct = (np.array(column) for column in zip(*images, strict=True))
    curve = rejection_curve(uncertainty, correct)
    assert curve.accuracy == pytest.approx(exhaustive_curve(uncertainty, correct))
    assert curve.coverage == pytest.approx(np.arange(1, len(images) + 1) / len(images))
    assert curve.area == pytest.approx(curve.accuracy.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_arrays_give_the_same(dtype):
    uncertainty, correct = torch.rand(50).to(dtype), torch.rand(50) < 0.5
    ours = rejection_curve(uncertainty, correct)
    assert ours.area == rejection_curve(uncertainty.float().numpy(), correct.numpy()).area
    assert auroc(uncertainty, correct) == auroc(uncertainty.float().numpy(), correct.numpy())


def test_probabilities_in_bfloat16_are_taken_as_they_round():
    p = torch.randn(200, 100).softmax(1)
    labels = p.argmax(1)
    found, exact = (expected_calibration_error(x, labels) for x in (p.bfloat16(), p))
    assert found == pytest.approx(exact, abs=0.01)


def test_doubles_are_compared_in_double_precision():
    """In float32 these are equal."""
    scores, flags = torch.tensor([1, 1 + 1e-12], dtype=torch.float64), [0, 1]
    assert auroc(scores, flags) == auroc(scores.tolist(), flags) == 1.0


def test_auroc_is_the_share_of_ordered_pairs():
    scores, positive = RNG.integers(0, 4, 40), RNG.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))


def slow_ece(probabilities, labels, bins):
    """The sum over bins (lower, upper] of arXiv 1706.04599, equation 3."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            gap = (predicted[inside] == labels[inside]).mean() - confidence[inside].mean()
            total += inside.sum() / len(labels) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_calibration_error_is_the_sum_over_bins(bins, sharpness):
    logits = sharpness * RNG.standard_normal((400, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = RNG.integers(0, 5, 400)
    expected = slow_ece(probabilities, labels, bins)
    assert expected_calibration_error(probabilities, labels, bins=bins) == pytest.approx(expected)
    ours = expected_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), bins=bins)
    assert ours == pytest.approx(expected, rel=1e-4)


def test_bins_include_their_upper_edge():
    """0.5 and 0.4 share the lower of two bins, where their gaps cancel."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]])
    assert expected_calibration_error(probabilities, np.array([0, 1]), bins=2) == pytest.approx(0.05)


V, T = ValueError, TypeError
calibration = expected_calibration_error
REFUSED = [  # more of them: tests/bad_calls.py
    (lambda: rejection_curve([[0.1], [1, 2]], [0, 1]), V, "uncertainty must be .* got list: setting"),
    (lambda: auroc(np.ones(3), np.ones(3)), V, "positive must hold both 0 and 1, got 3 times 1"),
    (lambda: calibration(np.eye(2), [0, 2]), V, "integers from 0 to 1.*from 0 to 2"),
    (lambda: calibration(np.ones((3, 2)), np.ones(3)), V, "sum to 1, got 3 of 3 that do not, .* row 0; .*softmax"),
    (lambda: calibration([[2.0, -1.0]], [0]), V, "rows of at least 0 that sum to 1, got 1 of 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
