"""Standard noise in `functional`, eager and compiled: its law, independence, and the Philox generator."""

import math

import oracles
import pytest
import torch
from test_bernoulli import SIGMAS

from stochastic_bottleneck import functional
from stochastic_bottleneck.kernels import bernoulli, philox

F64 = torch.float64
N = 2**17


def compiled(noise):
    """Noise as compiled code samples it; aot_eager runs the same arithmetic without a C++ compiler."""
    return torch.compile(noise, fullgraph=True, backend="aot_eager")


LAWS = {  # noise, cumulative distribution function, bound of float32 noise
    "logistic": (functional.logistic_noise, lambda x: torch.sigmoid(x.double()), 17),
    "normal": (functional.normal_noise, lambda x: torch.special.ndtr(x.double()), 7),
}
each_law = pytest.mark.parametrize("law", LAWS)
each_way = pytest.mark.parametrize("way", [lambda noise: noise, compiled], ids=["eager", "compiled"])


@each_law
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, F64])
def test_noise_has_its_law(law, way, dtype, fresh_compiler):
    noise, cdf, bound = LAWS[law]
    torch.manual_seed(11)
    e = way(noise)(torch.empty(4, N // 4, dtype=dtype)).flatten()
    assert e.dtype == (F64 if dtype == F64 else torch.float32)
    assert e.isfinite().all()
    if dtype != F64:
        assert e.abs().max() < bound
    limit = oracles.kolmogorov_smirnov_limit(N)
    assert oracles.kolmogorov_smirnov(e, cdf) < limit
    assert oracles.kolmogorov_smirnov(-e, cdf) < limit  # symmetric
    assert oracles.kolmogorov_smirnov(1.1 * e, cdf) > limit  # a scale off by a tenth is detected
    for p in (1e-2, 1e-3, 1e-4):
        for tail in (e, -e):
            count = (cdf(tail) < p).sum().item()
            assert abs(count - N * p) < SIGMAS * math.sqrt(N * p)


@each_law
@each_way
def test_noise_is_independent_and_reproducible(law, way, fresh_compiler):
    noise, cdf, _ = LAWS[law]
    torch.manual_seed(12)
    sample = way(noise)
    rows = torch.stack([sample(torch.empty(N)) for _ in range(3)])
    assert not torch.equal(rows[0], rows[1])
    u = cdf(rows)
    shifted = torch.cat([u, u.roll(1, dims=1)[:1], u.roll(2**10, dims=1)[:1]])
    for moment in (shifted, (shifted - 0.5).square()):
        correlation = torch.corrcoef(moment) - torch.eye(5, dtype=F64)
        assert correlation.abs().max() < SIGMAS / math.sqrt(N)
    torch.manual_seed(12)
    assert torch.equal(sample(torch.empty(N)), rows[0])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_words_of_its_authors(counter, key, words):
    """Known answers for philox2x32 with ten rounds, from the authors' Random123 library."""
    found = philox.philox(torch.tensor(counter[0]), torch.tensor(counter[1]), torch.tensor(key))
    assert tuple(map(int, found)) == words


def test_noise_is_finite_for_extreme_uniform_numbers(monkeypatch):
    words = torch.tensor([0, 0xFFFFFFFF])
    monkeypatch.setattr(philox, "_random_words", lambda shape, seed: (words, words.flip(0)))
    uniform = philox.uniform(torch.Size([2]), torch.zeros(2))
    assert uniform.tolist() == [0.0, 1.0]
    logistic = bernoulli.uniform_to_logistic_(uniform)
    assert logistic[0] == -logistic[1]
    for noise in (logistic, philox.normal(torch.Size([2]), torch.zeros(2))):
        assert noise.isfinite().all()
        assert noise.abs().max() > 6
    for dtype in (torch.float32, F64):
        last = 1 - torch.finfo(dtype).eps / 2  # the largest number torch.rand returns
        noise = bernoulli.uniform_to_logistic_(torch.tensor([0.0, last, 1.0, 0.5], dtype=dtype))
        assert noise.isfinite().all()
        assert noise[0] < -14
        assert noise[1] > 14
        assert noise[3] == 0
