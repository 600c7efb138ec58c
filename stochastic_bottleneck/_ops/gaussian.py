"""Gaussian latents: the reparameterised sampler and the closed forms against N(0, I).

With mean m and log standard deviation s, z = m + exp(s) e for standard normal e, and

    KL(N(m, exp(s)^2) || N(0, 1)) = (m^2 + expm1(2 s)) / 2 - s

where expm1 keeps the divergence accurate next to the prior.
"""

from __future__ import annotations

import math

from torch import Tensor

from stochastic_bottleneck._ops.precision import at_least_float32


def rsample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Reparameterised sample."""
    return (at_least_float32(mean) + at_least_float32(log_std).exp() * noise).to(mean.dtype)


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL from N(0, 1) of each dimension, in nats."""
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    return (mean.square() + (2 * log_std).expm1()) / 2 - log_std


def entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Differential entropy of each dimension, in nats."""
    return at_least_float32(log_std).expand_as(mean) + 0.5 * (1 + math.log(2 * math.pi))


def log_prob(mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """Log density of each dimension, in nats."""
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    standardised = (z.to(mean.dtype) - mean) * (-log_std).exp()
    return -standardised.square() / 2 - log_std - 0.5 * math.log(2 * math.pi)
