"""Reparameterized Gaussian samples and their KL divergence from N(0, I), compared with torch.distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.samplers import Sampler, benchmark


def parameters(n: int, d: int) -> tuple[Tensor, ...]:
    """Means and log standard deviations."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, d, generator=generator), 0.5 * torch.randn(n, d, generator=generator)


def ours() -> Sampler:
    from stochastic_bottleneck import functional

    def sample(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = functional.gaussian_rsample_kl(mean, log_std)
        return z, kl.sum(dim=-1)

    return sample


def distributions() -> Sampler:
    from torch.distributions import Distribution, Normal, kl_divergence

    Distribution.set_default_validate_args(False)  # checks read values back, which costs time

    def sample(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        normal, standard = Normal(mean, log_std.exp()), Normal(mean.new_tensor(0.0), mean.new_tensor(1.0))
        return normal.rsample(), kl_divergence(normal, standard).sum(dim=-1)

    sample(torch.zeros(1, 1), torch.zeros(1, 1))  # looks up the formula, which torch.compile cannot trace
    return sample


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence from N(0, I)."""
    return ((mean.square() + (2 * log_std).exp() - 1) / 2 - log_std).sum(dim=-1)


BENCHMARK = benchmark(__name__, "Gaussian sample and KL divergence", ours, distributions, parameters, kl, limit=1 / 1.5)
