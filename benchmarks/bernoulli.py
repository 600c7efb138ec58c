"""Relaxed Bernoulli samples and their KL divergence from Bernoulli(0.5), compared with torch.distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.samplers import Sampler, benchmark

TEMPERATURE = 1.0


def parameters(n: int, d: int) -> tuple[Tensor, ...]:
    """Logits with a standard deviation of 2, as the bottleneck normalizes them."""
    return (2 * torch.randn(n, d, generator=torch.Generator().manual_seed(0)),)


def ours() -> Sampler:
    from stochastic_bottleneck import functional

    def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = functional.relaxed_bernoulli_rsample_kl(logits, TEMPERATURE)
        return z, kl.sum(dim=-1)

    return sample


def distributions() -> Sampler:
    from torch.distributions import Bernoulli, Distribution, RelaxedBernoulli, kl_divergence

    Distribution.set_default_validate_args(False)  # checks read values back, which costs time

    def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
        z = RelaxedBernoulli(logits.new_tensor(TEMPERATURE), logits=logits).rsample()
        kl = kl_divergence(Bernoulli(logits=logits), Bernoulli(logits.new_tensor(0.5)))
        return z, kl.sum(dim=-1)

    sample(torch.zeros(1, 1))  # the first call looks up the formula, which torch.compile cannot trace
    return sample


def kl(logits: Tensor) -> Tensor:
    """KL divergence from Bernoulli(0.5): log 2 minus the entropy."""
    entropy = torch.nn.functional.softplus(logits) - logits * torch.sigmoid(logits)
    return (math.log(2) - entropy).sum(dim=-1)


BENCHMARK = benchmark(
    __name__, "Relaxed Bernoulli sample and KL divergence", ours, distributions, parameters, kl, limit=1 / 3
)
