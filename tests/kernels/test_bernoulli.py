"""Bernoulli latents in `functional`: values and gradients, accuracy, limits and the law of the samples."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import leaves, normal
from tolerances import DTYPES, LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck import BernoulliPosterior, functional

F64 = torch.float64
SHAPE = (3, 4)
Z = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5), dtype=F64) * 0.96 + 0.02
BITS = (Z > 0.5).double()
NOISE = normal(*SHAPE, seed=3)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# name: (function, oracle), of logits
FUNCTIONS = {
    "rsample": (
        lambda a: functional.relaxed_bernoulli_rsample(a, 0.7, noise=NOISE.to(a.dtype)),
        lambda a, noise: oracles.relaxed_bernoulli_sample(a, 0.7, noise),
    ),
    "kl": (functional.bernoulli_kl, lambda a, _: oracles.bernoulli_kl(a)),
    "entropy": (functional.bernoulli_entropy, lambda a, _: oracles.bernoulli_entropy(a)),
    "log_prob": (lambda a: functional.bernoulli_log_prob(a, BITS), lambda a, _: oracles.bernoulli_log_prob(a, BITS)),
    "relaxed_log_prob": (
        lambda a: functional.relaxed_bernoulli_log_prob(a, 0.7, Z.float() if a.dtype != F64 else Z),
        lambda a, _: oracles.relaxed_bernoulli_log_prob(a, 0.7, Z),
    ),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)

# ---- values and gradients ----------------------------------------------------------------------------------


@each_dtype
@each_function
def test_follows_the_loop(name, dtype):
    function, oracle = FUNCTIONS[name]
    logits = normal(*SHAPE, scale=3.0, dtype=dtype).requires_grad_()
    exact = oracles.as_float64(logits)
    result, expected = function(logits), oracle(exact, NOISE.to(dtype).double())
    assert result.dtype == (dtype if name == "rsample" or dtype == F64 else torch.float32)
    assert_close(result, expected)
    (-2 * result.sum()).backward()
    (-2 * expected.sum()).backward()
    assert_close(logits.grad, exact.grad, factor=10 if name == "rsample" and dtype != F64 else 1)


@each_function
def test_derivatives(name):
    function = FUNCTIONS[name][0]
    # The closed forms change at 2: values on both sides, zero, and large ones.
    logits = torch.tensor([[-9.0, -2.1, -1.9, -1e-3], [0.3, 1.9, 2.1, 30.0], [0.0, 1.0, -1.0, 5.0]], dtype=F64)
    assert gradcheck(lambda a: -1.5 * function(a), (logits.requires_grad_(),))
    assert gradgradcheck(function, (logits,))
    for view, x in ((lambda a: a.T, normal(4, 3)), (lambda a: a[:, ::2], normal(3, 8))):
        assert not view(x).is_contiguous()
        assert gradcheck(lambda a, view=view: function(view(a)), (x.requires_grad_(),))
        assert torch.equal(function(view(x)), function(view(x).contiguous()))


def test_derivatives_in_the_temperature():
    def sample(a, e, tau):
        return functional.relaxed_bernoulli_rsample_kl(a, tau, False, e)

    for tau in (torch.tensor(0.7, dtype=F64), normal(4).abs() + 0.5):  # one for all, and one per dimension
        inputs = leaves(normal(*SHAPE, scale=3.0), NOISE, tau)
        assert gradcheck(sample, inputs)
        assert gradgradcheck(sample, inputs)
        assert gradcheck(lambda a, t: functional.relaxed_bernoulli_log_prob(a, t, Z), inputs[::2])


def test_hard_samples_are_bits_with_the_gradients_of_relaxed_samples():
    """First and second derivatives."""
    results = []
    for hard in (False, True):
        (logits,) = leaves(normal(*SHAPE, scale=3.0))
        z = functional.relaxed_bernoulli_rsample(logits, 0.7, hard, NOISE)
        (first,) = torch.autograd.grad((z * normal(*SHAPE, seed=8)).sum(), logits, create_graph=True)
        results.append((z, first, torch.autograd.grad(first.square().sum(), logits)[0]))
    (soft, *derivatives), (bits, *hard_derivatives) = results
    assert torch.equal(bits, (normal(*SHAPE, scale=3.0) + NOISE > 0).double())
    assert torch.equal(bits, (soft > 0.5).double())
    for found, right in zip(hard_derivatives, derivatives, strict=True):
        assert right.abs().max() > 0.01
        assert_close(found, right)


# ---- accuracy ----------------------------------------------------------------------------------------------


def test_the_float32_divergence_has_full_relative_accuracy():
    """In units of the last place; the textbook form log 2 - H has no correct digit at 1e-4, where KL is 1.25e-9."""
    eps = torch.finfo(torch.float32).eps
    logits = torch.cat([torch.logspace(-12, 4, 20_000), torch.linspace(1.9, 2.1, 2000)])
    near = logits[logits < 1e-2].double()
    exact = functional.bernoulli_kl(near)
    torch.testing.assert_close(exact, near.square() / 8 - near**4 / 64, rtol=1e-9, atol=0)
    for a in (logits, -logits):
        exact = functional.bernoulli_kl(a.double())
        assert ((functional.bernoulli_kl(a) - exact) / exact).abs().max() < 4 * eps
    a = torch.linspace(-40, 40, 801).requires_grad_()
    functional.bernoulli_kl(a).sum().backward()
    s = torch.sigmoid(a.detach().double())
    torch.testing.assert_close(a.grad.double(), a.detach() * s * torch.sigmoid(-a.detach().double()), rtol=1e-5, atol=0)


@given(st.floats(-1e4, 1e4), st.sampled_from(DTYPES))
def test_bounds_of_divergence_and_entropy(logit, dtype):
    logits = torch.tensor([logit]).to(dtype)
    kl, entropy = functional.bernoulli_kl(logits).double(), functional.bernoulli_entropy(logits).double()
    assert 0 <= kl.item() <= math.log(2) * (1 + 1e-6)
    assert -1e-7 <= entropy.item() <= math.log(2) * (1 + 1e-6)
    assert_close((kl + entropy).float(), [math.log(2)])
    assert torch.equal(functional.bernoulli_kl(-logits).double(), kl)


# ---- extreme logits and samples ----------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_large_logits(dtype, temperature):
    logits = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]).to(dtype).requires_grad_()
    z = functional.relaxed_bernoulli_rsample(logits, temperature, noise=torch.zeros(7))
    kl, entropy = functional.bernoulli_kl(logits), functional.bernoulli_entropy(logits)
    log_prob = functional.bernoulli_log_prob(logits, (logits > 0).to(dtype))
    log_2 = math.log(2)
    for value, expected in (
        (z, [0.0, 0.5, 1.0]),
        (kl, [log_2, 0.0, log_2]),
        (entropy, [0.0, log_2, 0.0]),
        (log_prob, [0.0, -log_2, 0.0]),
    ):
        assert_close(value[[0, 3, 6]], expected)
        assert value.isfinite().all()
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert grad.isfinite().all()
    impossible = functional.bernoulli_log_prob(torch.tensor([-1e4]), torch.ones(1))
    assert_close(impossible, torch.tensor([-1e4]))


@pytest.mark.parametrize("hard", [False, True])
def test_a_saturated_sample_leaves_every_gradient_finite(hard):
    tau = torch.tensor(0.01, requires_grad=True)
    logits = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], requires_grad=True)
    z, kl = functional.relaxed_bernoulli_rsample_kl(logits, tau, hard, torch.zeros(5))
    for gradient in torch.autograd.grad(z.sum() + kl.sum(), (logits, tau)):
        assert gradient.isfinite().all()


def derivatives(function, *inputs):
    """Value, gradient and forward-mode derivative; for float32, then those of compiled code."""
    ones = tuple(map(torch.ones_like, inputs))
    _, forward = torch.func.jvp(function, tuple(x.detach() for x in inputs), ones)
    functions = [function]
    if inputs[0].dtype == torch.float32:
        functions.append(torch.compile(function, fullgraph=True, backend="aot_eager"))
    for f in functions:
        value = f(*inputs)
        yield value, torch.autograd.grad(value.sum(), inputs), forward


ONE_PASS = functional.relaxed_bernoulli_rsample_kl
AT_INFINITY = {  # for logits -inf and inf: function, values, derivatives
    "kl": (functional.bernoulli_kl, [math.log(2)] * 2, [0.0, 0.0]),
    "entropy": (functional.bernoulli_entropy, [0.0, 0.0], [0.0, 0.0]),
    "log_prob": (lambda a: functional.bernoulli_log_prob(a, torch.tensor([0.0, 1.0])), [0.0, 0.0], [0.0, 0.0]),
    "log_prob of the other bit": (
        lambda a: functional.bernoulli_log_prob(a, torch.tensor([1.0, 0.0])),
        [-math.inf] * 2,
        [1.0, -1.0],
    ),
    "relaxed_log_prob": (
        lambda a: functional.relaxed_bernoulli_log_prob(a, 0.5, torch.tensor([0.3, 0.3])),
        [-math.inf] * 2,
        [1.0, -1.0],
    ),
    "rsample": (lambda a: ONE_PASS(a, 0.5, noise=torch.ones(2).to(a.dtype))[0], [0.0, 1.0], [0.0, 0.0]),
}


@each_dtype
def test_infinite_logits_have_the_limits(dtype, fresh_compiler):
    for name, (function, expected, slope) in AT_INFINITY.items():
        logits = torch.tensor([-math.inf, math.inf], dtype=dtype, requires_grad=True)
        for value, (gradient,), forward in derivatives(function, logits):
            for found, right in ((value, expected), (gradient, slope), (forward, slope)):
                assert not found.isnan().any(), name
                assert_close(found, right)


def test_infinite_logits_leave_the_other_derivatives_finite(fresh_compiler):
    """The derivative in the temperature, and the second one in the logits."""

    def sample(a, tau):
        return sum(x.sum() for x in ONE_PASS(a, tau, noise=torch.ones(3, dtype=F64)))

    logits = torch.tensor([-math.inf, math.inf, 1.0], dtype=F64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (alone,) = torch.autograd.grad(sample(logits[2:].detach().expand(3), tau), tau)
    for function in (sample, torch.compile(sample, fullgraph=True, backend="aot_eager")):
        _, grad_tau = torch.autograd.grad(function(logits, tau), (logits, tau))
        assert_close(grad_tau, alone / 3)
    (first,) = torch.autograd.grad(sample(logits, tau), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    assert second[:2].eq(0).all()
    assert second[2].isfinite()


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_a_sample_that_rounded_has_the_density_of_torch_distributions(dtype, fresh_compiler):
    logits = normal(256, 128, scale=4.0, dtype=dtype).requires_grad_()
    temperature = torch.tensor(0.5, requires_grad=True)
    posterior = BernoulliPosterior(logits, temperature)
    z = posterior.rsample(generator=torch.Generator().manual_seed(0)).detach().requires_grad_()
    assert ((z == 0) | (z == 1)).any(dim=1).sum() > 40
    # In float64, because torch.distributions overflows for logits above 88.
    reference = torch.distributions.RelaxedBernoulli(temperature.detach().double(), logits=logits.detach().double())
    info = torch.finfo(dtype)
    expected = reference.log_prob(z.detach().double().clamp(info.tiny, 1 - info.eps))
    compiled = torch.compile(functional.relaxed_bernoulli_log_prob, fullgraph=True, backend="aot_eager")
    for function in (functional.relaxed_bernoulli_log_prob, compiled):
        log_prob = function(logits, temperature, z)
        assert_close(log_prob, expected, factor=10)
        for gradient in torch.autograd.grad(log_prob.sum(), (logits, temperature, z)):
            assert gradient.isfinite().all()
    assert_close(posterior.relaxed_log_prob(z), expected.sum(dim=1), factor=10)


def test_the_relaxed_density_is_exact_near_0_and_nan_for_nan():
    logits = normal(4, 8, scale=4.0)
    z = torch.sigmoid(normal(4, 8, scale=20.0, seed=2))
    assert z.min() < 1e-10
    found = functional.relaxed_bernoulli_log_prob(logits, 0.5, z)
    assert_close(found, oracles.relaxed_bernoulli_log_prob(logits, 0.5, z), 1e3)
    z = torch.tensor([math.nan, -0.1, 0.0, 0.5])
    found = functional.relaxed_bernoulli_log_prob(torch.zeros(4), 0.5, z)
    assert found.isnan().tolist() == [True, False, False, False]
    assert found[1] == found[2]


# ---- the law of the samples --------------------------------------------------------------------------------

N = 40_000
SIGMAS = 5  # standard errors; a correct sampler exceeds them once in two million tests


@pytest.mark.parametrize(("logit", "temperature"), [(-2.0, 0.3), (0.0, 1.0), (1.0, 2.0)])
def test_relaxed_samples_are_concrete_variables(logit, temperature):
    logits = torch.full((N,), logit, dtype=F64)
    z = BernoulliPosterior(logits, temperature).rsample(generator=torch.Generator().manual_seed(7))

    def cdf(x):  # P(sigmoid((logit + e) / tau) <= x) for logistic e
        return torch.sigmoid(temperature * torch.logit(x) - logit)

    limit = oracles.kolmogorov_smirnov_limit(N)
    assert oracles.kolmogorov_smirnov(z, cdf) < limit
    assert oracles.kolmogorov_smirnov(z, lambda x: cdf(x * 0.9 + 0.05)) > limit  # another law is detected
    reference = torch.distributions.RelaxedBernoulli(torch.tensor(temperature, dtype=F64), logits=logits)
    log_prob = functional.relaxed_bernoulli_log_prob(logits, temperature, z)
    assert_close(log_prob, reference.log_prob(z), 1e3)


def test_hard_samples_are_bernoulli():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    generator = torch.Generator().manual_seed(7)
    bits = BernoulliPosterior(logits.expand(N, 4), 0.5).rsample(hard=True, generator=generator)
    assert bits.unique().tolist() == [0.0, 1.0]
    p = torch.distributions.Bernoulli(logits=logits).mean
    assert ((bits.mean(0) - p).abs() < SIGMAS * (p * (1 - p) / N).sqrt()).all()
