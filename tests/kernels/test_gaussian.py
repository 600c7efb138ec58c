"""Gaussian latents in `functional`: values and gradients, accuracy, limits and the law of the samples."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import normal
from test_bernoulli import SIGMAS, N, derivatives
from tolerances import DTYPES, LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck import GaussianPosterior, functional

F64 = torch.float64
SHAPE = (3, 4)
NOISE, Z = normal(*SHAPE, seed=3), normal(*SHAPE, seed=5)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_width = pytest.mark.parametrize("width", [4, 1])


def parameters(width, dtype=F64):
    """Mean and log standard deviation, as leaves."""
    mean, log_std = normal(*SHAPE, dtype=dtype), normal(3, width, scale=0.7, seed=1, dtype=dtype)
    return mean.requires_grad_(), log_std.requires_grad_()


# name: (function, oracle), of mean and log_std
FUNCTIONS = {
    "rsample": (
        lambda m, s: functional.gaussian_rsample(m, s, NOISE.to(m.dtype)),
        lambda m, s, noise: oracles.gaussian_sample(m, s, noise),
    ),
    "kl": (functional.gaussian_kl, lambda m, s, _: oracles.gaussian_kl(m, s)),
    "entropy": (functional.gaussian_entropy, lambda m, s, _: oracles.gaussian_entropy(m, s)),
    "log_prob": (
        lambda m, s: functional.gaussian_log_prob(m, s, Z),
        lambda m, s, _: oracles.gaussian_log_prob(m, s, Z),
    ),
}


@each_dtype
@each_width
@pytest.mark.parametrize("name", FUNCTIONS)
def test_follows_the_loop(name, width, dtype):
    function, oracle = FUNCTIONS[name]
    inputs = parameters(width, dtype)
    exact = [oracles.as_float64(x) for x in inputs]
    result, expected = function(*inputs), oracle(*exact, NOISE.to(dtype).double())
    assert result.shape == SHAPE
    assert result.dtype == (dtype if name == "rsample" or dtype == F64 else torch.float32)
    assert_close(result, expected)
    (-2 * result.sum()).backward()
    (-2 * expected.sum()).backward()
    for x, y in zip(inputs, exact, strict=True):
        if y.grad is None or not y.grad.any():  # the entropy does not depend on the mean
            assert x.grad is None or not x.grad.any()
        else:
            assert_close(x.grad, y.grad)


@each_width
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "entropy"])
def test_derivatives(name, width):
    function = FUNCTIONS[name][0]
    inputs = parameters(width)
    assert gradcheck(lambda m, s: -1.5 * function(m, s), inputs)
    assert gradgradcheck(function, inputs)
    transposed = normal(4, 3).requires_grad_(), normal(width, 3, scale=0.7, seed=1).requires_grad_()
    assert gradcheck(lambda m, s: function(m.T, s.T), transposed)


# ---- accuracy ----------------------------------------------------------------------------------------------


def divergence_of_scale(s):
    """expm1(2 s) / 2 - s in float64, by its power series where the two terms cancel."""
    near = s.clamp(-1, 1)
    series = sum((2 * near) ** k / (2.0 * math.factorial(k)) for k in range(2, 30))
    return torch.where(s.abs() < 0.7, series, (2 * s).expm1() / 2 - s)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_divergence_has_full_relative_accuracy(dtype, fresh_compiler):
    """Value and derivatives, in units of the last place; the series ends at |log_std| = 1/2."""
    eps = torch.finfo(dtype).eps
    size = torch.cat([torch.logspace(-15, 1, 20_000, dtype=F64), torch.linspace(0.45, 0.55, 2000, dtype=F64)])
    s = torch.cat([size, -size]).to(dtype).requires_grad_()
    exact_s = s.detach().double()
    exact, slope = divergence_of_scale(exact_s), (2 * exact_s).expm1()

    def divergence(x):
        return functional.gaussian_kl(torch.zeros_like(x), x)

    def error(found, right):
        return ((found.double() - right) / right).abs().max() / eps

    for value, (gradient,), forward in derivatives(divergence, s):
        assert error(value, exact) < 5
        assert error(gradient, slope) < 8
        assert error(forward, slope) < 3
    (gradient,) = torch.autograd.grad(divergence(s).sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), s)
    torch.testing.assert_close(second.double(), 2 * (2 * exact_s).exp(), rtol=4 * eps, atol=4 * eps)
    with_mean = functional.gaussian_kl(s.detach().flip(0), s.detach())
    assert error(with_mean, exact + exact_s.flip(0).square() / 2) < 5


@given(st.floats(-100, 100), st.floats(-10, 10))
def test_the_divergence_is_not_negative_and_zero_at_the_prior_only(mean, log_std):
    for dtype in (torch.float32, F64):
        kl = functional.gaussian_kl(torch.tensor([mean]).to(dtype), torch.tensor([log_std]).to(dtype))
        assert kl.isfinite().all()
        assert kl.item() >= -1e-7
        assert kl.item() > 0 or max(abs(mean), abs(log_std)) < 1e-2
    assert functional.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 1)).eq(0).all()


# ---- limits ------------------------------------------------------------------------------------------------

LOG_STD = [-math.inf, -200.0, math.inf]
AT_INFINITY = {  # for mean 0: function, values, derivatives in log_std; None is not checked
    "kl": (functional.gaussian_kl, [math.inf, 199.5, math.inf], [-1.0, -1.0, math.inf]),
    "entropy": (functional.gaussian_entropy, [-math.inf, -198.58106, math.inf], [1.0] * 3),
    "log_prob at the mean": (
        lambda m, s: functional.gaussian_log_prob(m, s, torch.zeros(3)),
        [math.inf, 199.08106, -math.inf],
        [-1.0] * 3,
    ),
    "log_prob elsewhere": (
        lambda m, s: functional.gaussian_log_prob(m, s, torch.full((3,), 1e-3)),
        [-math.inf, None, -math.inf],
        None,
    ),
}


@each_dtype
def test_infinite_scales_have_the_limits(dtype, fresh_compiler):
    mean = torch.zeros(3, dtype=dtype)
    limit = torch.finfo(dtype).max if dtype in LOW_DTYPES[1:] else math.inf  # where a gradient saturates
    for name, (function, expected, slope) in AT_INFINITY.items():
        log_std = torch.tensor(LOG_STD, dtype=dtype, requires_grad=True)
        for value, (gradient,), forward in derivatives(lambda s, f=function: f(mean, s), log_std):
            for x in (value, gradient, forward):
                assert not x.isnan().any(), name
            for found, right in zip(value, expected, strict=True):
                if right is not None:
                    assert found.item() == pytest.approx(right, rel=1e-5), name
            if slope is not None:
                assert_close(gradient, [min(x, limit) for x in slope])
                assert_close(forward, slope)


# ---- the law of the samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 1])
def test_samples_are_normal(width):
    mean, log_std = (torch.tensor(x, dtype=F64) for x in ([-1.0, 0.0, 30.0], [-1.0, 0.0, 2.0][:width]))
    posterior = GaussianPosterior(mean.expand(N, 3), log_std.expand(N, width))
    z = posterior.rsample(generator=torch.Generator().manual_seed(7))
    std = log_std.exp().expand(3)
    for d in range(3):
        reference = torch.distributions.Normal(mean[d], std[d])
        assert oracles.kolmogorov_smirnov(z[:, d], reference.cdf) < oracles.kolmogorov_smirnov_limit(N)
        log_prob = functional.gaussian_log_prob(mean[d : d + 1], std[d : d + 1].log(), z[:1, d])
        assert_close(log_prob, reference.log_prob(z[:1, d]))
    assert ((z.mean(0) - mean).abs() < SIGMAS * std / math.sqrt(N)).all()
    assert ((z.var(0) / std**2 - 1).abs() < SIGMAS * math.sqrt(2 / N)).all()
