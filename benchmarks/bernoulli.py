"""Relaxed bits and their divergence from fair coins, beside torch.distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.samplers import Draw, benchmark

TEMPERATURE = 1.0


def parameters(n: int, d: int) -> tuple[Tensor, ...]:
    """Logits as the bottleneck gives them: normalised to a standard deviation of 2."""
    return (2 * torch.randn(n, d, generator=torch.Generator().manual_seed(0)),)


def ours() -> Draw:
    from stochastic_bottleneck import functional

    fused = getattr(functional, "relaxed_bernoulli_rsample_kl", None)

    def draw(logits: Tensor) -> tuple[Tensor, Tensor]:
        if fused is not None:
            z, kl = fused(logits, TEMPERATURE)
            return z, kl.sum(dim=-1) if kl.ndim == logits.ndim else kl
        z = functional.relaxed_bernoulli_rsample(logits, TEMPERATURE)
        return z, functional.bernoulli_kl(logits).sum(dim=-1)

    return draw


def theirs() -> Draw:
    from torch.distributions import Bernoulli, RelaxedBernoulli, kl_divergence

    def draw(logits: Tensor) -> tuple[Tensor, Tensor]:
        # Their checks of the arguments read values back and would cost them time; they are off.
        z = RelaxedBernoulli(logits.new_tensor(TEMPERATURE), logits=logits, validate_args=False).rsample()
        coin = Bernoulli(logits.new_tensor(0.5), validate_args=False)
        kl = kl_divergence(Bernoulli(logits=logits, validate_args=False), coin)
        return z, kl.sum(dim=-1)

    draw(torch.zeros(1, 1))  # the first call looks up the formula, which torch.compile cannot trace
    return draw


def kl(logits: Tensor) -> Tensor:
    """Divergence of bits from fair coins: log 2 less their entropy."""
    p = torch.sigmoid(logits)
    entropy = torch.nn.functional.softplus(logits) - logits * p
    return (math.log(2) - entropy).sum(dim=-1)


BENCHMARK = benchmark(
    __name__, "Relaxed Bernoulli sample and divergence", ours, theirs, parameters, kl, times=3.0
)
