"""Rejection, detection and calibration, beside slow loops and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stochastic_bottleneck.evaluation import auroc, expected_calibration_error, rejection_curve

RNG = np.random.default_rng(0)


def exhaustive_curve(uncertainty, correct):
    """Mean over every order of the images that keeps uncertainty ascending."""
    n, curves = len(uncertainty), []
    for order in itertools.permutations(range(n)):
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order)):
            curves.append([np.mean([correct[i] for i in order[:kept]]) for kept in range(1, n + 1)])
    return np.mean(curves, axis=0)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.7]), st.booleans()), min_size=1, max_size=6))
def test_the_rejection_curve_is_the_mean_over_the_orders_of_equals(images):
    uncertainty, correct = (np.array(column) for column in zip(*images, strict=True))
    curve = rejection_curve(uncertainty, correct)
    assert curve.accuracy == pytest.approx(exhaustive_curve(uncertainty, correct))
    assert curve.coverage == pytest.approx(np.arange(1, len(images) + 1) / len(images))
    assert curve.area == pytest.approx(curve.accuracy.mean())


def test_the_rejection_curve_does_not_depend_on_the_order_of_the_images():
    uncertainty, correct = RNG.integers(0, 5, 200), RNG.random(200) < 0.7
    order = RNG.permutation(200)
    a, b = rejection_curve(uncertainty, correct), rejection_curve(uncertainty[order], correct[order])
    assert a.accuracy == pytest.approx(b.accuracy, abs=1e-12)


def test_the_area_is_the_aurc_of_its_definition():
    """1 less the mean over thresholds of the error on what is kept (arXiv 1805.08206, section 2)."""
    uncertainty, correct = RNG.random(300), RNG.random(300) < 0.6
    risks = [1 - correct[uncertainty <= threshold].mean() for threshold in uncertainty]
    assert rejection_curve(uncertainty, correct).area == pytest.approx(1 - np.mean(risks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_taken_as_arrays_are(dtype):
    uncertainty, correct = torch.rand(50).to(dtype), torch.rand(50) < 0.5
    ours = rejection_curve(uncertainty, correct)
    assert ours.area == rejection_curve(uncertainty.float().numpy(), correct.numpy()).area
    assert auroc(uncertainty, correct) == auroc(uncertainty.float().numpy(), correct.numpy())


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinite_scores_get_one_answer(infinity):
    """What has overflowed is in no order any more."""
    scores, flags = np.array([0.5, infinity, 0.2, infinity]), np.array([0, 1, 0, 1])
    for function, name in ((rejection_curve, "uncertainty"), (auroc, "scores")):
        with pytest.raises(
            ValueError, match=rf"{name} must be finite, got nan or inf in 2 of 4 rows \(1, 3\)"
        ):
            function(scores, flags)


def test_doubles_are_ordered_as_doubles():
    """In float32 these are equal."""
    scores, flags = torch.tensor([1, 1 + 1e-12], dtype=torch.float64), [0, 1]
    assert auroc(scores, flags) == auroc(scores.tolist(), flags) == 1.0


def test_auroc_is_the_share_of_pairs_in_order():
    scores, positive = RNG.integers(0, 4, 40), RNG.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auroc(scores, positive) == roc_auc_score(positive, scores)


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


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """0.5 and 0.4 share the lower of two bins, where their gaps cancel; 0.5 would be alone in the upper one."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]])
    assert expected_calibration_error(probabilities, np.array([0, 1]), bins=2) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (
            lambda: rejection_curve(["a", "b"], [0, 1]),
            TypeError,
            "uncertainty must be .* got list of dtype <U1",
        ),
        (lambda: rejection_curve([0.1, None], [0, 1]), TypeError, "uncertainty must be .* of dtype object"),
        (
            lambda: rejection_curve([[0.1], [1, 2]], [0, 1]),
            ValueError,
            "uncertainty must be .* got list: setting",
        ),
        (lambda: auroc([1.0, 2.0], ["0", "1"]), TypeError, "positive must be .* got list of dtype <U1"),
        (lambda: expected_calibration_error(np.eye(2), [0, np.nan]), ValueError, "labels .* 1 of 2 missing"),
        (lambda: expected_calibration_error(np.eye(2), [0.0, 1.0]), TypeError, "labels must be integers"),
        (
            lambda: expected_calibration_error(np.eye(2), [0, 1], bins=2.5),
            ValueError,
            "bins must be .* got 2.5",
        ),
        (
            lambda: expected_calibration_error(np.eye(2), [0, 1], bins="15"),
            TypeError,
            "bins must be .* got '15'",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused(work, error, message):
    with pytest.raises(error, match=message):
        work()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda: rejection_curve(np.ones((3, 1)), np.ones(3)),
            r"uncertainty must have shape \(N,\).*\(3, 1\)",
        ),
        (lambda: rejection_curve(np.ones(0), np.ones(0)), "N at least 1"),
        (lambda: rejection_curve(np.ones(3), np.ones(2)), r"correct must have shape \(3,\).*got \(2,\)"),
        (
            lambda: rejection_curve(np.ones(3), np.array([0, 1, 2])),
            "correct must be booleans, or 0 and 1, got 2",
        ),
        (
            lambda: rejection_curve(np.array([0, np.nan]), np.ones(2)),
            r"uncertainty must be finite, got nan or inf in 1 of 2 rows \(1\)",
        ),
        (lambda: auroc(np.ones(3), np.ones(3)), "positive must hold both kinds, 0 and 1, got 3 times 1"),
        (lambda: auroc(np.ones(3), np.ones(4)), r"positive must have shape \(3,\).*got \(4,\)"),
        (
            lambda: expected_calibration_error(np.ones(3), np.ones(3)),
            r"probabilities must have shape \(N, C\)",
        ),
        (
            lambda: expected_calibration_error(np.ones((3, 2)), np.ones(3)),
            "add up to 1, got 3 of 3 that are not, such as row 0; .*softmax",
        ),
        (
            lambda: expected_calibration_error(np.array([[2.0, -1.0]]), np.zeros(1)),
            "rows of at least 0 that add up to 1, got 1 of 1",
        ),
        (
            lambda: expected_calibration_error(np.eye(2), np.zeros(3)),
            r"labels must have shape \(2,\).*\(3,\)",
        ),
        (
            lambda: expected_calibration_error(np.eye(2), np.array([0, 2])),
            "integers from 0 to 1.*from 0 to 2",
        ),
        (
            lambda: expected_calibration_error(np.eye(2), np.zeros(2), bins=0),
            "bins must be a positive int, got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(work, message):
    with pytest.raises(ValueError, match=message):
        work()
