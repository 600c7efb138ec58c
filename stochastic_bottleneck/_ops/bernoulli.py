"""Bernoulli latents: the Binary Concrete sampler and the closed forms against Bernoulli(0.5).

With logits l, p = sigmoid(l) and standard logistic noise e, a relaxed sample is sigmoid((l + e) / tau)
(Maddison et al., arXiv 1611.00712; Jang et al., arXiv 1611.01144); l + e > 0 has probability p exactly.

The divergence from the fair coin, log 2 - H(p), cancels near l = 0. With t = tanh(l / 2) it is also

    KL = l t / 2 + log(1 - t^2) / 2

whose two terms are t^2 and -t^2 / 2 near zero, so nothing cancels; far from zero 1 - t^2 underflows and
H(p) = softplus(-|l|) + |l| sigmoid(-|l|) is exact instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck._ops.precision import at_least_float32

_NEAR = 2.0  # |logit| at which both forms are accurate to a few units in the last place


def logistic_noise(uniform: Tensor) -> Tensor:
    """Standard logistic noise from uniform noise in [0, 1), kept off the two infinities."""
    eps = torch.finfo(uniform.dtype).eps
    uniform = uniform.clamp(eps / 2, 1 - eps)
    return uniform.log() - torch.log1p(-uniform)


def relaxed_rsample(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor) -> Tensor:
    """Binary Concrete sample; `hard` gives exact bits with the relaxed sample's gradient."""
    perturbed = at_least_float32(logits) + noise
    z = torch.sigmoid(perturbed / temperature)
    if hard:
        # z - z.detach() is exactly zero, so the bits stay exact.
        z = (perturbed > 0).to(z.dtype) + (z - z.detach())
    return z.to(logits.dtype)


def kl(logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(l)) || Bernoulli(0.5)) of each logit, in nats."""
    logits = at_least_float32(logits)
    near = logits.abs() < _NEAR
    inside = torch.where(near, logits, torch.zeros_like(logits))
    t = torch.tanh(inside / 2)
    small = inside * t / 2 + torch.log1p(-t * t) / 2
    magnitude = torch.where(near, torch.full_like(logits, _NEAR), logits.abs())
    large = math.log(2) - F.softplus(-magnitude) - magnitude * torch.sigmoid(-magnitude)
    return torch.where(near, small, large)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each bit, in nats."""
    logits = at_least_float32(logits)
    near = logits.abs() < _NEAR
    magnitude = torch.where(near, torch.full_like(logits, _NEAR), logits.abs())
    large = F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)
    return torch.where(near, math.log(2) - kl(torch.where(near, logits, torch.zeros_like(logits))), large)


def log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Log mass of each bit, in nats; linear in z between the two bits."""
    logits = at_least_float32(logits)
    z = z.to(logits.dtype)
    return z * F.logsigmoid(logits) + (1 - z) * F.logsigmoid(-logits)


def relaxed_log_prob(logits: Tensor, temperature: Tensor | float, z: Tensor) -> Tensor:
    """Log density of each relaxed sample in (0, 1), in nats (arXiv 1611.00712, appendix C.3.2)."""
    logits = at_least_float32(logits)
    z = z.to(logits.dtype)
    tau = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    log_z, log_rest = z.log(), torch.log1p(-z)
    shifted = logits - tau * (log_z - log_rest)
    # softplus(x) = -logsigmoid(-x); torch's softplus drops the exponential above 20, 2e-9 off.
    return tau.log() + shifted - log_z - log_rest + 2 * F.logsigmoid(-shifted)
