"""Logistic regression on a device, against scikit-learn's; its gradient, against autograd."""

import numpy as np
import pytest
import torch
from sklearn import linear_model, preprocessing

from stochastic_bottleneck.evaluation import linear_probe
from stochastic_bottleneck.evaluation._logistic import DeviceLogisticRegression, _loss_and_gradient

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def dataset(classes, n=400, width=24, noise=2.0, seed=0):
    """Standardised features around one centre per class, and labels that do not start at 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, 2 * n)
    features = (centres[labels] + noise * rng.normal(size=(2 * n, width))).astype(np.float32)
    features = preprocessing.StandardScaler().fit_transform(features)
    return features[:n], 5 + labels[:n], features[n:], 5 + labels[n:]


def objective(weights, features, labels, c):
    """scikit-learn's objective in float64: penalty plus C times the sum of cross-entropies."""
    logits = features.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return (weights[:, :-1] ** 2).sum() / 2 - c * log_p[np.arange(len(labels)), labels - 5].sum()


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_it_finds_scikit_learns_minimum(device, c):
    x, y, x_test, _ = dataset(4)
    theirs = linear_model.LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(x.astype(np.float64), y)
    ours = DeviceLogisticRegression(1000, device).set_params(C=c).fit(x, y)
    best = objective(np.c_[theirs.coef_, theirs.intercept_], x, y, c)
    assert objective(ours.weights.double().cpu().numpy(), x, y, c) == pytest.approx(best, rel=1e-4)
    agree = np.mean(ours.predict(x_test) == theirs.predict(x_test))
    assert agree >= 0.99
    assert set(ours.predict(x_test)) <= set(y)


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_two_classes_have_scikit_learns_penalty(device, c):
    x, y, _, _ = dataset(2)
    theirs = linear_model.LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(x.astype(np.float64), y)
    weights = DeviceLogisticRegression(1000, device).set_params(C=c).fit(x, y).weights.double().cpu().numpy()
    difference = weights[1] - weights[0]
    np.testing.assert_allclose(difference[:-1], theirs.coef_[0], atol=0.02 * np.abs(theirs.coef_).max())


def test_max_iter_limits_the_iterations(device):
    x, y, _, _ = dataset(4)
    few, many = (DeviceLogisticRegression(n, device).set_params(C=10.0).fit(x, y).weights for n in (1, 200))
    few, many = (objective(w.double().cpu().numpy(), x, y, 10.0) for w in (few, many))
    assert few > 1.05 * many


def test_the_gradient_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (11, 1), generator=generator)
    w, intercepts = weights[:, :-1], weights[:, -1]
    loss = torch.nn.functional.cross_entropy(x @ w.T + intercepts, y[:, 0]) + 0.15 * w.square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    found = _loss_and_gradient(weights.detach(), x, y, penalty=0.3)
    torch.testing.assert_close(found, torch.cat([loss.detach()[None], gradient.flatten()]))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_on_a_device_scores_as_scikit_learns(device, classes):
    data = dataset(classes, n=1000)
    ours, theirs = linear_probe(*data, device=device), linear_probe(*data)
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.01)
    assert ours.f1 == pytest.approx(theirs.f1, abs=0.01)
    assert theirs.accuracy > 1.5 / classes
    again = linear_probe(*data, device=device)
    assert again == ours
