"""Reparameterised Gaussians and their divergence from the standard normal, beside torch.distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.samplers import Draw, benchmark


def parameters(n: int, d: int) -> tuple[Tensor, ...]:
    """Means and log standard deviations."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, d, generator=generator), 0.5 * torch.randn(n, d, generator=generator)


def ours() -> Draw:
    from stochastic_bottleneck import functional

    fused = getattr(functional, "gaussian_rsample_kl", None)

    def draw(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        if fused is not None:
            z, kl = fused(mean, log_std)
            return z, kl.sum(dim=-1) if kl.ndim == mean.ndim else kl
        return (
            functional.gaussian_rsample(mean, log_std),
            functional.gaussian_kl(mean, log_std).sum(dim=-1),
        )

    return draw


def theirs() -> Draw:
    from torch.distributions import Normal, kl_divergence

    def draw(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        # Their checks of the arguments read values back and would cost them time; they are off.
        normal = Normal(mean, log_std.exp(), validate_args=False)
        standard = Normal(mean.new_tensor(0.0), mean.new_tensor(1.0), validate_args=False)
        return normal.rsample(), kl_divergence(normal, standard).sum(dim=-1)

    draw(
        torch.zeros(1, 1), torch.zeros(1, 1)
    )  # the first call looks up the formula, which torch.compile cannot trace
    return draw


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Divergence from the standard normal."""
    return ((mean.square() + (2 * log_std).exp() - 1) / 2 - log_std).sum(dim=-1)


BENCHMARK = benchmark(__name__, "Gaussian sample and divergence", ours, theirs, parameters, kl, times=1.5)
