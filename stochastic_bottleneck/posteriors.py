"""Posteriors of the latent given an image, as small named tuples of tensors.

Both have `rsample`, `kl`, both in one pass as `rsample_kl`, `mode`, `entropy` and `log_prob`. Terms are summed over
dimensions, so `kl`, `entropy` and `log_prob` return one number per image, in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stochastic_bottleneck import _checks, functional

__all__ = ["BernoulliPosterior", "GaussianPosterior", "Posterior"]


class BernoulliPosterior(NamedTuple):
    """Independent bits, relaxed for differentiation.

    Args:
        logits: log odds of a one. Shape: (..., D)
        temperature: Concrete temperature of the relaxed samples. Shape: ()

    Example:
        >>> import torch
        >>> posterior = BernoulliPosterior(torch.tensor([[4.0, -4.0]]), torch.tensor(1.0))
        >>> posterior.mode()
        tensor([[1., 0.]])
        >>> posterior.entropy().shape
        torch.Size([1])

    Source:
        StochCon (arXiv 2110.00552), StochCon Bern; relaxation of arXiv 1611.00712.
    """

    logits: Tensor
    temperature: Tensor | float = 1.0

    @property
    def probs(self) -> Tensor:
        """Probability of a one. Shape: (..., D)."""
        _checks.check_floating(self.logits, "logits")
        return torch.sigmoid(self.logits)

    def rsample(
        self, *, hard: bool = False, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Differentiable sample; see `functional.relaxed_bernoulli_rsample`. Shape: (..., D)."""
        if noise is None:
            _checks.check_floating(self.logits, "logits")
            noise = functional.logistic_noise(self.logits, generator)
        return functional.relaxed_bernoulli_rsample(self.logits, self.temperature, hard, noise)

    def rsample_kl(
        self, *, hard: bool = False, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`rsample` and `kl` in one pass. Shapes: (..., D) and (...)."""
        if noise is None:
            _checks.check_floating(self.logits, "logits")
            noise = functional.logistic_noise(self.logits, generator)
        z, kl = functional.relaxed_bernoulli_rsample_kl(self.logits, self.temperature, hard, noise)
        return z, kl.sum(dim=-1)

    def mode(self) -> Tensor:
        """Most probable bits, exactly 0 or 1 (0 for a logit of 0). Shape: (..., D)."""
        _checks.check_floating(self.logits, "logits")
        return (self.logits > 0).to(self.logits.dtype)

    def kl(self) -> Tensor:
        """KL divergence from fair coins, in nats. Shape: (...)."""
        return functional.bernoulli_kl(self.logits).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Entropy of the bits, in nats. Shape: (...)."""
        return functional.bernoulli_entropy(self.logits).sum(dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log mass of bits `z` of Shape: (..., D), in nats. Shape: (...)."""
        return functional.bernoulli_log_prob(self.logits, z).sum(dim=-1)

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        """Log density of relaxed samples `z`, in nats; see `functional.relaxed_bernoulli_log_prob`. Shape: (...)."""
        return functional.relaxed_bernoulli_log_prob(self.logits, self.temperature, z).sum(dim=-1)


class GaussianPosterior(NamedTuple):
    """Independent Gaussians, with one variance per dimension or one per sample.

    Args:
        mean: Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D), or (..., 1) for the isotropic variance

    Example:
        >>> import torch
        >>> posterior = GaussianPosterior(torch.zeros(2, 3), torch.zeros(2, 1))
        >>> posterior.kl()
        tensor([0., 0.])

    Source:
        StochCon (arXiv 2110.00552), StochCon Iso-Gauss.
    """

    mean: Tensor
    log_std: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, in the shape of `log_std`."""
        _checks.check_floating(self.log_std, "log_std")
        return self.log_std.exp()

    def rsample(self, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Differentiable sample; see `functional.gaussian_rsample`. Shape: (..., D)."""
        if noise is None:
            _checks.check_floating(self.mean, "mean")
            noise = functional.normal_noise(self.mean, generator)
        return functional.gaussian_rsample(self.mean, self.log_std, noise)

    def rsample_kl(
        self, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`rsample` and `kl` in one pass. Shapes: (..., D) and (...)."""
        if noise is None:
            _checks.check_floating(self.mean, "mean")
            noise = functional.normal_noise(self.mean, generator)
        z, kl = functional.gaussian_rsample_kl(self.mean, self.log_std, noise)
        return z, kl.sum(dim=-1)

    def mode(self) -> Tensor:
        """The mean. Shape: (..., D)."""
        _checks.check_gaussian(self.mean, self.log_std)
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, I), in nats. Shape: (...)."""
        return functional.gaussian_kl(self.mean, self.log_std).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Differential entropy, in nats. Shape: (...)."""
        return functional.gaussian_entropy(self.mean, self.log_std).sum(dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of `z` of Shape: (..., D), in nats. Shape: (...)."""
        return functional.gaussian_log_prob(self.mean, self.log_std, z).sum(dim=-1)


Posterior = BernoulliPosterior | GaussianPosterior
