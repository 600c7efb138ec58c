r"""Gaussian latents: the reparameterised sampler and the closed forms against N(0, I).

With mean m, log standard deviation s and standard normal e, z = m + exp(s) e, so dz/dm = 1, dz/ds = exp(s) e and

    KL(N(m, exp(s)^2) || N(0, 1)) = (m^2 + expm1(2 s)) / 2 - s      dKL/dm = m      dKL/ds = exp(2 s) - 1

where expm1 keeps the divergence accurate next to the prior. With t = tanh(s) it is

    expm1(2 s) / 2 = t / (1 + |t|) max(exp(2 s), 1)

which cancels nowhere, shares exp(s) with the sample, and is cheaper on a CPU than expm1 itself.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck._ops.pieces import in_pieces
from stochastic_bottleneck._ops.precision import at_least_float32


def rsample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Reparameterised sample."""
    (z,) = _apply(at_least_float32(mean), at_least_float32(log_std), noise, False)
    return z.to(mean.dtype)


def rsample_kl(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The sample and the divergence below, in one pass."""
    z, divergence = _apply(at_least_float32(mean), at_least_float32(log_std), noise, True)
    return z.to(mean.dtype), divergence


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL from N(0, 1) of each dimension, in nats."""
    return _apply(at_least_float32(mean), at_least_float32(log_std), None, True)[0]


def entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Differential entropy of each dimension, in nats."""
    return at_least_float32(log_std).expand_as(mean) + 0.5 * (1 + math.log(2 * math.pi))


def log_prob(mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """Log density of each dimension, in nats."""
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    standardised = (z.to(mean.dtype) - mean) * (-log_std).exp()
    return -standardised.square() / 2 - log_std - 0.5 * math.log(2 * math.pi)


def _evaluate(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
    """The sample if there is noise, then the divergence if `with_kl`."""
    outputs = []
    std = log_std.exp()
    if noise is not None:
        outputs.append(mean + std * noise)
    if with_kl:
        t = torch.tanh(log_std)
        half_expm1 = t / (1 + t.abs()) * (std * std).clamp_min(1.0)
        outputs.append(mean * mean / 2 + (half_expm1 - log_std))
    return tuple(outputs)


def _apply(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        # One kernel is made of the formula and one of its derivative; of a log_std of one column too, if it
        # is widened once and its gradient so summed once.
        return _evaluate(mean, log_std.expand_as(mean), noise, with_kl)
    fused: tuple[Tensor, ...] = _Gaussian.apply(mean, log_std, noise, with_kl)
    return fused


def _gradients(
    mean: Tensor, log_std: Tensor, noise: Tensor | None, of_z: Tensor | None, of_kl: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean and of the log standard deviation, which may be one a row."""
    std = log_std.exp()
    of_mean = of_log_std = torch.zeros_like(mean)
    if of_z is not None and noise is not None:
        of_mean, of_log_std = of_z, of_z * noise * std
    if of_kl is not None:
        of_mean, of_log_std = of_mean + of_kl * mean, of_log_std + of_kl * (std * std - 1)
    if log_std.shape != mean.shape:
        of_log_std = of_log_std.sum(dim=-1, keepdim=True)
    return of_mean, of_log_std


class _Gaussian(torch.autograd.Function):
    """`_evaluate` with its derivatives; the inputs are all that it keeps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
        return in_pieces(partial(_evaluate, with_kl=with_kl), mean, log_std, noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.with_kl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, log_std, noise = ctx.saved_tensors
        of_z = gradients[0] if noise is not None else None
        of_kl = gradients[-1] if ctx.with_kl else None
        if of_z is None and of_kl is None:
            return None, None, None, None
        of_mean, of_log_std = in_pieces(_gradients, mean, log_std, noise, of_z, of_kl)
        of_noise = of_z * log_std.exp() if of_z is not None and ctx.needs_input_grad[2] else None
        return of_mean, of_log_std, of_noise, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        mean, log_std, noise = ctx.saved_tensors
        by_mean, by_log_std, by_noise = (0.0 if t is None else t for t in tangents[:3])
        std, nothing = log_std.exp(), torch.zeros_like(mean)
        outputs = []
        if noise is not None:
            outputs.append(nothing + by_mean + std * (noise * by_log_std + by_noise))
        if ctx.with_kl:
            outputs.append(nothing + mean * by_mean + (std * std - 1) * by_log_std)
        return tuple(outputs)
