"""`BernoulliPosterior` and `GaussianPosterior`: the functions of `functional`, summed over dimensions."""

import oracles
import pytest
import torch
from oracles import normal
from tolerances import assert_close

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior, functional


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_bernoulli_posterior(shape):
    logits, noise = normal(*shape, scale=3.0), normal(*shape, seed=3)
    posterior = BernoulliPosterior(logits, torch.tensor(0.7))
    bits = posterior.mode()
    assert torch.equal(bits, (logits > 0).double())
    assert torch.equal(BernoulliPosterior(torch.zeros(2)).mode(), torch.zeros(2))
    assert_close(posterior.probs, 1 / (1 + (-logits).exp()))
    assert_close(posterior.kl(), oracles.bernoulli_kl(logits).sum(-1))
    assert_close(posterior.entropy(), oracles.bernoulli_entropy(logits).sum(-1))
    assert_close(posterior.log_prob(bits), oracles.bernoulli_log_prob(logits, bits).sum(-1))
    z = posterior.rsample(noise=noise)
    assert_close(z, oracles.relaxed_bernoulli_sample(logits, torch.tensor(0.7).double(), noise))
    relaxed = oracles.relaxed_bernoulli_log_prob(logits, 0.7, z).sum(-1)
    assert_close(posterior.relaxed_log_prob(z), relaxed, 1e3)
    assert torch.equal(posterior.rsample(noise=noise, hard=True), (logits + noise > 0).double())


@pytest.mark.parametrize("width", [4, 1])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_gaussian_posterior(leading, width):
    mean, log_std = normal(*leading, 4), normal(*leading, width, scale=0.7, seed=1)
    posterior = GaussianPosterior(mean, log_std)
    noise = normal(*leading, 4, seed=3)
    assert torch.equal(posterior.mode(), mean)
    assert_close(posterior.std, log_std.exp())
    z = posterior.rsample(noise=noise)
    assert_close(z, oracles.gaussian_sample(mean, log_std, noise))
    assert_close(posterior.kl(), oracles.gaussian_kl(mean, log_std).sum(-1))
    assert_close(posterior.entropy(), oracles.gaussian_entropy(mean, log_std).sum(-1))
    assert_close(posterior.log_prob(z), oracles.gaussian_log_prob(mean, log_std, z).sum(-1))


@pytest.mark.parametrize(
    ("posterior", "options"),
    [
        (BernoulliPosterior(normal(2, 3, 4), 0.7), {}),
        (BernoulliPosterior(normal(2, 3, 4), 0.7), {"hard": True}),
        (GaussianPosterior(normal(2, 3, 4), normal(2, 3, 1, seed=1)), {}),
    ],
)
def test_rsample_and_rsample_kl_agree_and_a_generator_reproduces_them(posterior, options):
    noise = normal(2, 3, 4, seed=3)
    z, kl = posterior.rsample_kl(noise=noise, **options)
    assert torch.equal(z, posterior.rsample(noise=noise, **options))
    assert kl.shape == (2, 3)
    assert_close(kl, posterior.kl())
    state = torch.get_rng_state()
    first, other = (posterior.rsample(generator=torch.Generator().manual_seed(s), **options) for s in (1, 2))
    again, _ = posterior.rsample_kl(generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is untouched
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(posterior.rsample(**options), first)


# ---- errors: values of a wrong type or out of range are in tests/bad_calls.py ------------------------------

X = torch.zeros(2, 3)
COLUMN = torch.full((4, 1), 0.5)
WIDE = torch.zeros(4, 3)
LAST_DIMENSION = r"z must end in the last dimension of .*, \(4, 3\), got \(4, 1\)"
ERRORS = [
    (functional.bernoulli_log_prob, (WIDE, COLUMN), LAST_DIMENSION),
    (functional.relaxed_bernoulli_log_prob, (WIDE, 1.0, COLUMN), LAST_DIMENSION),
    (functional.gaussian_log_prob, (WIDE, WIDE[:, :1], COLUMN), LAST_DIMENSION),
    (functional.gaussian_log_prob, (X, X, WIDE), r"z must broadcast with mean, \(2, 3\), got"),
    (
        functional.relaxed_bernoulli_rsample,
        (X, torch.ones(4)),
        r"temperature must broadcast with logits, \(2, 3\), got \(4,\)",
    ),
    (functional.gaussian_kl, (X, X[:1]), r"log_std must have the shape of mean, \(2, 3\), or \(2, 1\), got \(1,"),
    (GaussianPosterior(X, X[0]).mode, (), "log_std must have the shape of mean"),
]


@pytest.mark.parametrize(("function", "args", "message"), ERRORS)
def test_arguments_that_do_not_match_are_refused(function, args, message):
    with pytest.raises(ValueError, match=message):
        function(*args)
