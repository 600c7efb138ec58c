"""Posteriors and the samplers, divergences, entropies and densities in `functional` behind them."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import DTYPES, LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior, functional
from stochastic_bottleneck._ops import bernoulli as bernoulli_kernel

F64 = torch.float64
SHAPE = (3, 4)


def draw(*shape, scale=1.0, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=g, dtype=F64)).to(dtype).requires_grad_()


def log_std(width=4, dtype=F64):
    return draw(3, width, scale=0.7, seed=1, dtype=dtype)


# ---- values and gradients against the loops ----------------------------------------------------------------

Z = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5), dtype=F64) * 0.96 + 0.02
BITS = (Z > 0.5).double()
NOISE = draw(*SHAPE, seed=3).detach()

# name: (function, oracle), of logits
BERN = {
    "rsample": (
        lambda a: functional.relaxed_bernoulli_rsample(a, 0.7, noise=NOISE.to(a.dtype)),
        lambda a, noise: oracles.relaxed_bernoulli_sample(a, 0.7, noise),
    ),
    "kl": (functional.bernoulli_kl, lambda a, _: oracles.bernoulli_kl(a)),
    "entropy": (functional.bernoulli_entropy, lambda a, _: oracles.bernoulli_entropy(a)),
    "log_prob": (
        lambda a: functional.bernoulli_log_prob(a, BITS),
        lambda a, _: oracles.bernoulli_log_prob(a, BITS),
    ),
    "relaxed_log_prob": (
        lambda a: functional.relaxed_bernoulli_log_prob(a, 0.7, Z.float() if a.dtype != F64 else Z),
        lambda a, _: oracles.relaxed_bernoulli_log_prob(a, 0.7, Z),
    ),
}
# name: (function, oracle), of mean and log_std
GAUSS = {
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BERN)
def test_bernoulli_follows_the_loop(name, dtype):
    function, oracle = BERN[name]
    logits = draw(*SHAPE, scale=3.0, dtype=dtype)
    exact = oracles.as_float64(logits)
    result, expected = function(logits), oracle(exact, NOISE.to(dtype).double())
    assert result.dtype == (dtype if name == "rsample" or dtype == F64 else torch.float32)
    assert_close(result, expected)
    (-2 * result.sum()).backward()
    (-2 * expected.sum()).backward()
    assert_close(logits.grad, exact.grad, factor=10 if name == "rsample" and dtype != F64 else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("name", GAUSS)
def test_gaussian_follows_the_loop(name, width, dtype):
    function, oracle = GAUSS[name]
    inputs = draw(*SHAPE, dtype=dtype), log_std(width, dtype)
    exact = [oracles.as_float64(x) for x in inputs]
    result, expected = function(*inputs), oracle(*exact, NOISE.to(dtype).double())
    assert result.shape == SHAPE
    assert result.dtype == (dtype if name == "rsample" or dtype == F64 else torch.float32)
    assert_close(result, expected)
    (-2 * result.sum()).backward()
    (-2 * expected.sum()).backward()
    for x, wide in zip(inputs, exact, strict=True):
        if wide.grad is None or not wide.grad.any():
            assert x.grad is None or not x.grad.any()
        else:
            assert_close(x.grad, wide.grad)


@pytest.mark.parametrize("name", BERN)
def test_bernoulli_gradients(name):
    function = BERN[name][0]
    # 2 is where the closed forms change over; both sides of it, zero, and far away
    logits = torch.tensor(
        [[-9.0, -2.1, -1.9, -1e-3], [0.3, 1.9, 2.1, 30.0], [0.0, 1.0, -1.0, 5.0]], dtype=F64
    )
    assert gradcheck(lambda a: -1.5 * function(a), (logits.requires_grad_(),))
    assert gradgradcheck(function, (logits,))
    for view, leaf in ((lambda a: a.T, draw(4, 3)), (lambda a: a[:, ::2], draw(3, 8))):
        assert not view(leaf).is_contiguous()
        assert gradcheck(lambda a, view=view: function(view(a)), (leaf,))
        assert torch.equal(function(view(leaf)), function(view(leaf).contiguous()))


@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("name", [n for n in GAUSS if n != "entropy"])
def test_gaussian_gradients(name, width):
    function = GAUSS[name][0]
    inputs = draw(*SHAPE), log_std(width)
    assert gradcheck(lambda m, s: -1.5 * function(m, s), inputs)
    assert gradgradcheck(function, inputs)
    transposed = draw(4, 3), draw(width, 3, scale=0.7, seed=1)
    assert gradcheck(lambda m, s: function(m.T, s.T), transposed)


def test_gaussian_entropy_gradient():
    assert gradcheck(lambda s: functional.gaussian_entropy(draw(*SHAPE), s), (log_std(1),))


def test_the_temperature_carries_a_gradient():
    logits, temperature = draw(*SHAPE), torch.tensor(0.8, dtype=F64, requires_grad=True)
    assert gradcheck(
        lambda a, t: functional.relaxed_bernoulli_rsample(a, t, noise=NOISE), (logits, temperature)
    )
    assert gradcheck(lambda a, t: functional.relaxed_bernoulli_log_prob(a, t, Z), (logits, temperature))


def test_hard_samples_are_bits_with_the_relaxed_gradient():
    soft_logits, hard_logits = draw(64, 8, dtype=torch.float32), draw(64, 8, dtype=torch.float32)
    noise = functional.logistic_noise(soft_logits)
    weights = torch.randn(64, 8)
    soft = functional.relaxed_bernoulli_rsample(soft_logits, 0.5, False, noise)
    hard = functional.relaxed_bernoulli_rsample(hard_logits, 0.5, True, noise)
    assert torch.equal(hard, (soft > 0.5).float())
    assert hard.unique().tolist() == [0.0, 1.0]
    (soft * weights).sum().backward()
    (hard * weights).sum().backward()
    assert hard_logits.grad.abs().max() > 0
    assert torch.equal(hard_logits.grad, soft_logits.grad)


# ---- posteriors are the functions, summed over dimensions --------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_bernoulli_posterior(shape):
    logits = draw(*shape, scale=3.0)
    posterior = BernoulliPosterior(logits, torch.tensor(0.7))
    bits = posterior.mode()
    assert torch.equal(bits, (logits > 0).double())
    assert torch.equal(BernoulliPosterior(torch.zeros(2)).mode(), torch.zeros(2))
    assert_close(posterior.probs, 1 / (1 + (-logits).exp()))
    assert_close(posterior.kl(), oracles.bernoulli_kl(logits).sum(-1))
    assert_close(posterior.entropy(), oracles.bernoulli_entropy(logits).sum(-1))
    assert_close(posterior.log_prob(bits), oracles.bernoulli_log_prob(logits, bits).sum(-1))
    noise = draw(*shape, seed=3).detach()
    z = posterior.rsample(noise=noise)
    assert_close(z, oracles.relaxed_bernoulli_sample(logits, torch.tensor(0.7).double(), noise))
    assert_close(
        posterior.relaxed_log_prob(z), oracles.relaxed_bernoulli_log_prob(logits, 0.7, z).sum(-1), 1e3
    )
    assert torch.equal(posterior.rsample(noise=noise, hard=True), (logits + noise > 0).double())


@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_gaussian_posterior(leading, width):
    mean, s = draw(*leading, 4), draw(*leading, width, scale=0.7, seed=1)
    posterior = GaussianPosterior(mean, s)
    noise = draw(*leading, 4, seed=3).detach()
    assert torch.equal(posterior.mode(), mean)
    assert_close(posterior.std, s.exp())
    z = posterior.rsample(noise=noise)
    assert_close(z, oracles.gaussian_sample(mean, s, noise))
    assert_close(posterior.kl(), oracles.gaussian_kl(mean, s).sum(-1))
    assert_close(posterior.entropy(), oracles.gaussian_entropy(mean, s).sum(-1))
    assert_close(posterior.log_prob(z), oracles.gaussian_log_prob(mean, s, z).sum(-1))


@pytest.mark.parametrize(
    "posterior", [BernoulliPosterior(draw(3, 4)), GaussianPosterior(draw(3, 4), log_std(1))]
)
def test_a_generator_repeats_a_sample_and_leaves_the_global_one_alone(posterior):
    state = torch.get_rng_state()
    first, second, other = (posterior.rsample(generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(posterior.rsample(), first)


# ---- properties and extremes -------------------------------------------------------------------------------


@given(st.floats(-1e4, 1e4), st.sampled_from((*LOW_DTYPES, F64)))
def test_bernoulli_kl_and_entropy_bounds(logit, dtype):
    logits = torch.tensor([logit]).to(dtype)
    kl, entropy = functional.bernoulli_kl(logits).double(), functional.bernoulli_entropy(logits).double()
    assert 0 <= kl.item() <= math.log(2) * (1 + 1e-6)
    assert -1e-7 <= entropy.item() <= math.log(2) * (1 + 1e-6)
    assert_close((kl + entropy).float(), [math.log(2)])
    assert torch.equal(functional.bernoulli_kl(-logits).double(), kl)


@given(st.floats(-100, 100), st.floats(-10, 10))
def test_gaussian_kl_is_not_negative(mean, s):
    for dtype in (torch.float32, F64):
        kl = functional.gaussian_kl(torch.tensor([mean]).to(dtype), torch.tensor([s]).to(dtype))
        assert kl.isfinite().all()
        assert kl.item() >= -1e-7


def test_kl_is_zero_at_the_prior_and_only_there():
    assert functional.bernoulli_kl(torch.zeros(2, 3)).eq(0).all()
    assert functional.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 1)).eq(0).all()
    for small in (1e-2, -1e-2):
        assert functional.bernoulli_kl(torch.tensor([small])) > 0
        assert functional.gaussian_kl(torch.tensor([small]), torch.zeros(1)) > 0
        assert functional.gaussian_kl(torch.zeros(1), torch.tensor([small])) > 0


def test_kl_next_to_the_prior_keeps_its_digits():
    """The textbook form, log 2 - H, has none left in float32: at 1e-4 the divergence is 1.25e-9."""
    logits = torch.tensor([1e-4, -1e-3, 1e-2])
    exact = logits.double().square() / 8 - logits.double() ** 4 / 64
    torch.testing.assert_close(functional.bernoulli_kl(logits).double(), exact, rtol=1e-6, atol=0)
    tiny = torch.tensor([1e-4])
    kl = functional.gaussian_kl(tiny, torch.zeros(1)).double()
    torch.testing.assert_close(kl, tiny.double().square() / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, F64])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_extreme_logits(dtype, temperature):
    logits = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]).to(dtype).requires_grad_()
    posterior = BernoulliPosterior(logits, temperature)
    z = posterior.rsample(noise=torch.zeros(7))
    assert_close(z[[0, 3, 6]], torch.tensor([0.0, 0.5, 1.0]))
    kl, entropy = functional.bernoulli_kl(logits), functional.bernoulli_entropy(logits)
    assert_close(kl[[0, 1, 3, 5, 6]], torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=F64) * math.log(2))
    assert_close(entropy[[0, 3, 6]], torch.tensor([0.0, 1.0, 0.0], dtype=F64) * math.log(2))
    log_prob = functional.bernoulli_log_prob(logits, posterior.mode())
    assert_close(log_prob[[0, 3, 6]], torch.tensor([0.0, -math.log(2), 0.0], dtype=F64))
    for value in (z, kl, entropy, log_prob):
        assert value.isfinite().all()
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert grad.isfinite().all()


# torch loads its own rules for forward mode with it
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, F64])


def derivatives(function, *inputs):
    """Value, gradient and forward-mode derivative of a function of leaves; then the same compiled, without the last."""
    _, forward = torch.func.jvp(
        function, tuple(x.detach() for x in inputs), tuple(map(torch.ones_like, inputs))
    )
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        value = f(*inputs)
        yield value, torch.autograd.grad(value.sum(), inputs), forward


BITS_AT_INFINITY = {  # of logits -inf and inf: value and derivative
    "kl": (functional.bernoulli_kl, [math.log(2)] * 2, [0.0, 0.0]),
    "entropy": (functional.bernoulli_entropy, [0.0, 0.0], [0.0, 0.0]),
    "log_prob": (
        lambda a: functional.bernoulli_log_prob(a, torch.tensor([0.0, 1.0])),
        [0.0, 0.0],
        [0.0, 0.0],
    ),
    "log_prob of the other": (
        lambda a: functional.bernoulli_log_prob(a, torch.tensor([1.0, 0.0])),
        [-math.inf] * 2,
        [1.0, -1.0],
    ),
    "relaxed_log_prob": (
        lambda a: functional.relaxed_bernoulli_log_prob(a, 0.5, torch.tensor([0.3, 0.3])),
        [-math.inf] * 2,
        [1.0, -1.0],
    ),
    "rsample": (
        lambda a: functional.relaxed_bernoulli_rsample(a, 0.5, noise=torch.ones(2).to(a.dtype)),
        [0.0, 1.0],
        [0.0, 0.0],
    ),
    "kl in one pass": (
        lambda a: functional.relaxed_bernoulli_rsample_kl(a, 0.5, noise=torch.ones(2).to(a.dtype))[1],
        [math.log(2)] * 2,
        [0.0, 0.0],
    ),
}


@forward_mode
@EVERY_DTYPE
@pytest.mark.parametrize("name", BITS_AT_INFINITY)
def test_a_certain_bit_has_the_limits(name, dtype, fresh_compiler):
    function, expected, slope = BITS_AT_INFINITY[name]
    logits = torch.tensor([-math.inf, math.inf], dtype=dtype, requires_grad=True)
    for value, (gradient,), forward in derivatives(function, logits):
        assert_close(value, expected)
        assert_close(gradient, slope)
        assert_close(forward, slope)


def test_a_certain_bit_leaves_the_other_derivatives_finite(fresh_compiler):
    """In the temperature, and the second one in the logits."""

    def sample(a, tau):
        return sum(
            x.sum() for x in functional.relaxed_bernoulli_rsample_kl(a, tau, noise=torch.ones(3, dtype=F64))
        )

    logits = torch.tensor([-math.inf, math.inf, 1.0], dtype=F64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (alone,) = torch.autograd.grad(sample(logits[2:].detach().expand(3), tau), tau)
    for function in (sample, torch.compile(sample, fullgraph=True, backend="aot_eager")):
        _, of_tau = torch.autograd.grad(function(logits, tau), (logits, tau))
        assert_close(of_tau, alone / 3)
    (first,) = torch.autograd.grad(sample(logits, tau), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    assert second[:2].eq(0).all()
    assert second[2].isfinite()


POINT = [-math.inf, -200.0, math.inf]  # log standard deviations
GAUSS_AT_INFINITY = {  # of mean 0: function, values, derivative in log_std
    "kl": (functional.gaussian_kl, [math.inf, 199.5, math.inf], [-1.0, -1.0, math.inf]),
    "entropy": (functional.gaussian_entropy, [-math.inf, -198.58106, math.inf], [1.0] * 3),
    "log_prob where it lies": (
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


@forward_mode
@EVERY_DTYPE
@pytest.mark.parametrize("name", GAUSS_AT_INFINITY)
def test_a_point_mass_has_the_limits(name, dtype, fresh_compiler):
    function, expected, slope = GAUSS_AT_INFINITY[name]
    log_std = torch.tensor(POINT, dtype=dtype, requires_grad=True)
    mean = torch.zeros(3, dtype=dtype)
    largest = torch.finfo(dtype).max if dtype in LOW_DTYPES[1:] else math.inf  # where a gradient saturates
    for value, (gradient,), forward in derivatives(lambda s: function(mean, s), log_std):
        for found, right in zip(value, expected, strict=True):
            assert not found.isnan()
            if right is not None:
                torch.testing.assert_close(found.double(), torch.tensor(right, dtype=F64), rtol=1e-5, atol=0)
        assert not gradient.isnan().any()
        assert not forward.isnan().any()
        if slope is not None:
            assert_close(gradient, [min(x, largest) for x in slope])
            assert_close(forward, slope)


@pytest.mark.parametrize("scale", [2.0, 4.0])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_a_sample_that_rounded_has_the_density_of_torch_distributions(scale, dtype, fresh_compiler):
    logits = draw(256, 128, scale=scale, dtype=dtype)
    temperature = torch.tensor(0.5, requires_grad=True)
    z = (
        BernoulliPosterior(logits, 0.5)
        .rsample(generator=torch.Generator().manual_seed(0))
        .detach()
        .requires_grad_()
    )
    assert ((z == 0) | (z == 1)).any(dim=1).sum() > 40
    # torch overflows above 88, and takes a sample of another dtype for one
    theirs = torch.distributions.RelaxedBernoulli(
        temperature.detach().double(), logits=logits.detach().double()
    )
    bounds = torch.finfo(dtype)
    inside = z.detach().double().clamp(bounds.tiny, 1 - bounds.eps)
    compiled = torch.compile(functional.relaxed_bernoulli_log_prob, fullgraph=True, backend="aot_eager")
    for function in (functional.relaxed_bernoulli_log_prob, compiled):
        found = function(logits, temperature, z)
        assert_close(found, theirs.log_prob(inside), factor=10)
        for gradient in torch.autograd.grad(found.sum(), (logits, temperature, z)):
            assert gradient.isfinite().all()
    assert_close(
        BernoulliPosterior(logits, temperature).relaxed_log_prob(z),
        theirs.log_prob(inside).sum(dim=1),
        factor=10,
    )


def test_a_density_inside_is_exact_and_one_of_nan_is_nan():
    logits = draw(4, 8, scale=4.0)
    z = torch.sigmoid(draw(4, 8, scale=20.0, seed=2).detach())
    assert z.min() < 1e-10
    assert_close(
        functional.relaxed_bernoulli_log_prob(logits, 0.5, z),
        oracles.relaxed_bernoulli_log_prob(logits, 0.5, z),
        1e3,
    )
    found = functional.relaxed_bernoulli_log_prob(
        torch.zeros(4), 0.5, torch.tensor([math.nan, -0.1, 0.0, 0.5])
    )
    assert found.isnan().tolist() == [True, False, False, False]
    assert found[1] == found[2]


def test_the_log_mass_of_an_impossible_bit_is_its_logit():
    assert_close(functional.bernoulli_log_prob(torch.tensor([-1e4]), torch.ones(1)), torch.tensor([-1e4]))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_logistic_noise_is_finite_at_the_ends(dtype):
    last = 1 - torch.finfo(dtype).eps / 2  # the largest number torch.rand gives
    noise = bernoulli_kernel.logistic_noise(torch.tensor([0.0, last, 1.0, 0.5], dtype=dtype))
    assert noise.isfinite().all()
    assert noise[0] < -14
    assert noise[1] > 14
    assert noise[3] == 0


# ---- samplers against torch.distributions ------------------------------------------------------------------

N = 40_000
SIGMAS = 5  # standard errors; a correct sampler exceeds them once in two million draws


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_relaxed_samples_are_concrete_variables(logit, temperature):
    logits = torch.full((N,), logit, dtype=F64)
    z = BernoulliPosterior(logits, temperature).rsample(generator=torch.Generator().manual_seed(7))

    def cdf(x):  # P(sigmoid((logit + e) / tau) <= x) for logistic e
        return torch.sigmoid(temperature * torch.logit(x) - logit)

    assert oracles.kolmogorov_smirnov(z, cdf) < oracles.kolmogorov_smirnov_limit(N)
    reference = torch.distributions.RelaxedBernoulli(torch.tensor(temperature, dtype=F64), logits=logits)
    theirs = reference.sample()
    assert oracles.kolmogorov_smirnov(theirs, cdf) < oracles.kolmogorov_smirnov_limit(
        N
    )  # the check can be met
    for power in (1, 2):
        error = math.sqrt(2 / N) * theirs.pow(power).std().item()
        assert abs(z.pow(power).mean() - theirs.pow(power).mean()) < SIGMAS * error
    # and cannot be met by a neighbour
    assert oracles.kolmogorov_smirnov(z, lambda x: cdf(x * 0.9 + 0.05)) > oracles.kolmogorov_smirnov_limit(N)
    small = torch.distributions.RelaxedBernoulli(torch.tensor(temperature, dtype=F64), logits=logits[:99])
    assert_close(
        functional.relaxed_bernoulli_log_prob(logits[:99], temperature, z[:99]), small.log_prob(z[:99]), 1e3
    )


def test_hard_samples_are_bernoulli():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    bits = BernoulliPosterior(logits.expand(N, 4), 0.5).rsample(
        hard=True, generator=torch.Generator().manual_seed(7)
    )
    p = torch.distributions.Bernoulli(logits=logits).mean
    assert ((bits.mean(0) - p).abs() < SIGMAS * (p * (1 - p) / N).sqrt()).all()


@pytest.mark.parametrize("width", [3, 1])
def test_gaussian_samples_are_normal(width):
    mean, s = torch.tensor([-1.0, 0.0, 30.0], dtype=F64), torch.tensor([-1.0, 0.0, 2.0], dtype=F64)[:width]
    posterior = GaussianPosterior(mean.expand(N, 3), s.expand(N, width))
    z = posterior.rsample(generator=torch.Generator().manual_seed(7))
    std = s.exp().expand(3)
    for d in range(3):
        reference = torch.distributions.Normal(mean[d], std[d])
        assert oracles.kolmogorov_smirnov(z[:, d], reference.cdf) < oracles.kolmogorov_smirnov_limit(N)
        assert_close(
            functional.gaussian_log_prob(mean[d : d + 1], std[d : d + 1].log(), z[:1, d]),
            reference.log_prob(z[:1, d]),
        )
    assert ((z.mean(0) - mean).abs() < SIGMAS * std / math.sqrt(N)).all()
    assert ((z.var(0) / std**2 - 1).abs() < SIGMAS * math.sqrt(2 / N)).all()


@pytest.mark.parametrize("noise", [functional.logistic_noise, functional.normal_noise])
def test_noise_is_independent_and_standard(noise):
    e = noise(torch.empty(N, 3, dtype=F64), torch.Generator().manual_seed(7))
    scale = math.pi / math.sqrt(3) if noise is functional.logistic_noise else 1.0
    kurtosis = 4.2 if noise is functional.logistic_noise else 3.0
    assert (e.mean(0).abs() < SIGMAS * scale / math.sqrt(N)).all()
    assert ((e.var(0) / scale**2 - 1).abs() < SIGMAS * math.sqrt((kurtosis - 1) / N)).all()
    correlation = torch.corrcoef(e.T) - torch.eye(3)
    assert correlation.abs().max() < SIGMAS / math.sqrt(N)
    for dtype, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (F64, F64)):
        assert noise(torch.empty(2, dtype=dtype)).dtype == expected


# ---- errors ------------------------------------------------------------------------------------------------

X, INTS = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
CONCRETE = "temperature must be a finite number of at least 1e-06, got "
ERRORS = [
    *(
        (function, args, ValueError, r"z must end in the last dimension of .*, \(4, 3\), got \(4, 1\)")
        for function, args in (
            (functional.bernoulli_log_prob, (torch.zeros(4, 3), torch.ones(4, 1))),
            (functional.relaxed_bernoulli_log_prob, (torch.zeros(4, 3), 1.0, torch.full((4, 1), 0.5))),
            (functional.gaussian_log_prob, (torch.zeros(4, 3), torch.zeros(4, 1), torch.ones(4, 1))),
        )
    ),
    (
        functional.gaussian_kl,
        (torch.zeros(4, 3), torch.zeros(4, 3).long()),
        TypeError,
        "log_std must be a float",
    ),
    (functional.bernoulli_kl, ([0.0],), TypeError, "logits must be a tensor, got list"),
    (
        functional.gaussian_rsample,
        (torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3, device="meta")),
        ValueError,
        "noise must be on the device of mean, cpu, got meta",
    ),
    (
        functional.relaxed_bernoulli_rsample,
        (INTS, 1.0),
        TypeError,
        "logits must be a floating point tensor, got",
    ),
    (functional.relaxed_bernoulli_rsample, (X, 0.0), ValueError, CONCRETE + "0.0"),
    (functional.relaxed_bernoulli_rsample, (X, -1), ValueError, CONCRETE + "-1"),
    (functional.relaxed_bernoulli_rsample, (X, math.inf), ValueError, CONCRETE + "inf"),
    (functional.relaxed_bernoulli_rsample, (X, math.nan), ValueError, CONCRETE + "nan"),
    (
        functional.relaxed_bernoulli_rsample,
        (X, 1.0, False, X[0]),
        ValueError,
        r"noise must have the shape of logits",
    ),
    (functional.relaxed_bernoulli_log_prob, (INTS, 1.0, X), TypeError, "logits must be a floating point"),
    (functional.relaxed_bernoulli_log_prob, (X, 0.0, X), ValueError, CONCRETE + "0.0"),
    (functional.bernoulli_kl, (INTS,), TypeError, "logits must be a floating point"),
    (functional.bernoulli_entropy, (INTS,), TypeError, "logits must be a floating point"),
    (functional.bernoulli_log_prob, (INTS, X), TypeError, "logits must be a floating point"),
    (functional.gaussian_rsample, (INTS, X), TypeError, "mean must be a floating point tensor"),
    (
        functional.gaussian_rsample,
        (X, X[:1]),
        ValueError,
        r"log_std must have the shape of mean, \(2, 3\), or \(2, 1\)",
    ),
    (functional.gaussian_rsample, (X, X, X[:1]), ValueError, "noise must have the shape of mean"),
    (functional.gaussian_kl, (X, X[:, :2]), ValueError, r"log_std must have .* got \(2, 2\)"),
    (functional.gaussian_entropy, (X, X[0]), ValueError, "log_std must have the shape of mean"),
    (functional.gaussian_log_prob, (X, X[0], X), ValueError, "log_std must have the shape of mean"),
    (functional.logistic_noise, (INTS,), TypeError, "like must be a floating point tensor"),
    (functional.normal_noise, (X, 3), TypeError, "generator must be a torch.Generator or None, got 3"),
    (
        functional.relaxed_bernoulli_rsample,
        (X, 1.0, "False"),
        TypeError,
        "hard must be True or False, got 'False'",
    ),
    (
        functional.relaxed_bernoulli_rsample,
        (X, 1.0, False, "x"),
        TypeError,
        "noise must be a tensor, got str",
    ),
    (
        functional.relaxed_bernoulli_rsample,
        (X, torch.tensor(1)),
        TypeError,
        "temperature must be a floating point",
    ),
    (
        functional.relaxed_bernoulli_rsample,
        (X, torch.ones(4)),
        ValueError,
        r"temperature must broadcast with logits, \(2, 3\), got \(4,\)",
    ),
    (functional.relaxed_bernoulli_log_prob, (X, 1.0, INTS), TypeError, "z must be a floating point tensor"),
    (functional.bernoulli_log_prob, (X, None), TypeError, "z must be a tensor, got NoneType"),
    (
        functional.gaussian_log_prob,
        (X, X, torch.zeros(4, 3)),
        ValueError,
        r"z must broadcast with mean, \(2, 3\), got",
    ),
    (
        functional.gaussian_kl,
        (X, X.to("meta")),
        ValueError,
        "log_std must be on the device of mean, cpu, got meta",
    ),
    (BernoulliPosterior("x").mode, (), TypeError, "logits must be a tensor, got str"),
    (GaussianPosterior(X, X[0]).mode, (), ValueError, "log_std must have the shape of mean"),
]


@pytest.mark.parametrize(("function", "args", "error", "message"), ERRORS)
def test_mistakes_are_named(function, args, error, message):
    with pytest.raises(error, match=message):
        function(*args)
