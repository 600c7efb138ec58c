r"""Gaussian latents: the reparameterised sampler and the closed forms against N(0, I).

With mean m, log standard deviation s and standard normal e, z = m + exp(s) e, so dz/dm = 1, dz/ds = exp(s) e and

    KL(N(m, exp(s)^2) || N(0, 1)) = (m^2 + expm1(2 s)) / 2 - s      dKL/dm = m      dKL/ds = exp(2 s) - 1

In f(s) = expm1(2 s) / 2 - s the two terms cancel near the prior, where f is about s^2. With q = s coth(s) - 1, which
is a power series in s^2,

    f(s) = s (s - q) / (1 - (s - q))        for |s| <= 1/2

For larger |s|, with s = i + o and i the closest number in that range,

    f(i + o) = exp(2 o) f(i) + (i + 1/2) expm1(2 o) - o

without cancellation. This holds for every s, so the code needs no selection between two formulas.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck.kernels.elementwise import at_least_float32, in_chunks, is_transformed

_NEAR = 0.5  # |log_std| up to which the series is used

# s coth(s) - 1 in powers of s^2: 2^(2 n) B_2n / (2 n)!; float32 uses the first four.
_SERIES = (
    0.3333333333333333,
    -0.022222222222222223,
    0.0021164021164021165,
    -0.00021164021164021165,
    2.1377799155576935e-05,
    -2.1644042808063972e-06,
    2.1925947851873778e-07,
    -2.2214608789979678e-08,
    2.2507846516808994e-09,
    -2.2805151204592183e-10,
)


def rsample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Reparameterised sample."""
    (z,) = _apply(at_least_float32(mean), at_least_float32(log_std), noise, False)
    return z.to(mean.dtype)


def rsample_kl(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`rsample` and `kl` in one pass."""
    z, divergence = _apply(at_least_float32(mean), at_least_float32(log_std), noise, True)
    return z.to(mean.dtype), divergence


def kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(m, exp(s)^2) || N(0, 1)) of each dimension, in nats."""
    return _apply(at_least_float32(mean), at_least_float32(log_std), None, True)[0]


def entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Differential entropy of each dimension, in nats."""
    return at_least_float32(log_std).expand_as(mean) + 0.5 * (1 + math.log(2 * math.pi))


def log_prob(mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """Log density of each dimension, in nats."""
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    distance = z.to(mean.dtype) - mean
    # The density of a point mass is infinite at the mean and 0 elsewhere; infinity times zero would be NaN.
    at_point_mass = (distance == 0) & (log_std <= -math.log(torch.finfo(mean.dtype).max))
    squared = (distance * (-log_std.masked_fill(at_point_mass, 0.0)).exp()).square()
    return -squared / 2 - log_std.masked_fill(squared.isinf(), 0.0) - 0.5 * math.log(2 * math.pi)


def _evaluate(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
    """The sample if `noise` is given, then the KL divergence if `with_kl`."""
    outputs = []
    if noise is not None:
        outputs.append(torch.addcmul(mean, log_std.exp(), noise))
    if with_kl:
        outputs.append(torch.addcmul(_kl_of_scale(log_std), mean, mean, value=0.5))
    return tuple(outputs)


def _kl_of_scale(log_std: Tensor) -> Tensor:
    """expm1(2 s) / 2 - s; mostly in place, since new memory costs a CPU more than the arithmetic."""
    series = _SERIES[:4] if log_std.dtype == torch.float32 else _SERIES
    near = log_std.clamp(-_NEAR, _NEAR)
    beyond = log_std - near
    square = near * near
    q = square * series[-1]
    for coefficient in series[-2::-1]:
        q = q.add_(coefficient).mul_(square)
    d = q.neg_().add_(near)
    growth = (2 * beyond).exp_()
    result = (near * d).div_(1 - d).mul_(growth).add_((growth - 1).mul_(near + 0.5))
    # 100 is negligible next to exp(200) / 2, and infinity minus infinity would be NaN.
    return result.sub_(beyond.clamp_max_(100.0))


def _apply(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        # Inductor fuses the formula, and its derivative, into one kernel each; a log_std of one column is expanded
        # once, so that its gradient is summed once.
        return _evaluate(mean, log_std.expand_as(mean), noise, with_kl)
    if noise is not None and with_kl and is_transformed():  # one pass adds gradients, whose dimensions may differ
        return *_GaussianSample.apply(mean, log_std, noise, False), *_GaussianSample.apply(mean, log_std, None, True)
    result: tuple[Tensor, ...] = _GaussianSample.apply(mean, log_std, noise, with_kl)
    return result


def _grad_parameters(
    mean: Tensor, log_std: Tensor, noise: Tensor | None, grad_z: Tensor | None, grad_kl: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean and of the log standard deviation, which may have one column."""
    std = log_std.exp()
    grad_mean = grad_log_std = torch.zeros_like(mean)
    if grad_z is not None and noise is not None:
        grad_mean, grad_log_std = grad_z, grad_z * noise * std
    if grad_kl is not None:
        grad_mean = grad_mean + grad_kl * mean
        grad_log_std = grad_log_std + grad_kl * torch.expm1(2 * log_std)
    if log_std.shape != mean.shape:
        grad_log_std = grad_log_std.sum(dim=-1, keepdim=True)
    return grad_mean, grad_log_std


class _GaussianSample(torch.autograd.Function):
    """`_evaluate` and its derivatives; saves its inputs only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
        return in_chunks(partial(_evaluate, with_kl=with_kl), mean, log_std, noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.with_kl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, log_std, noise = ctx.saved_tensors
        grad_z = grad_outputs[0] if noise is not None else None
        grad_kl = grad_outputs[-1] if ctx.with_kl else None
        if grad_z is None and grad_kl is None:
            return None, None, None, None
        grad_mean, grad_log_std = in_chunks(_grad_parameters, mean, log_std, noise, grad_z, grad_kl)
        grad_noise = grad_z * log_std.exp() if grad_z is not None and ctx.needs_input_grad[2] else None
        return grad_mean, grad_log_std, grad_noise, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        mean, log_std, noise = ctx.saved_tensors
        t_mean, t_log_std, t_noise = (0.0 if t is None else t for t in tangents[:3])
        std, zeros = log_std.exp(), torch.zeros_like(mean)
        outputs = []
        if noise is not None:
            outputs.append(zeros + t_mean + std * (noise * t_log_std + t_noise))
        if ctx.with_kl:
            outputs.append(zeros + mean * t_mean + torch.expm1(2 * log_std) * t_log_std)
        return tuple(outputs)
