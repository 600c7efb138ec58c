r"""Gaussian latents: the reparameterised sampler and the closed forms against N(0, I).

With mean m, log standard deviation s and standard normal e, z = m + exp(s) e, so dz/dm = 1, dz/ds = exp(s) e and

    KL(N(m, exp(s)^2) || N(0, 1)) = (m^2 + expm1(2 s)) / 2 - s      dKL/dm = m      dKL/ds = exp(2 s) - 1

In f(s) = expm1(2 s) / 2 - s the two terms cancel next to the prior, where f is about s^2. With
q = s coth(s) - 1, which is a power series in s^2 there,

    f(s) = s (s - q) / (1 - (s - q))        for |s| <= 1/2

and beyond it, for s = i + o with i the nearest number inside,

    f(i + o) = exp(2 o) f(i) + (i + 1/2) expm1(2 o) - o

in which nothing cancels; it holds for every s, so that no element has to be chosen from two results.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck._ops.pieces import in_pieces
from stochastic_bottleneck._ops.precision import at_least_float32

_NEAR = 0.5  # |log_std| up to which the series below is used

# s coth(s) - 1 in powers of s^2: 2^(2 n) B_2n / (2 n)!, the first four for float32.
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
    distance = z.to(mean.dtype) - mean
    # A point mass has an infinite density where it lies and none elsewhere; no infinity may meet a zero.
    on_it = (distance == 0) & (log_std <= -math.log(torch.finfo(mean.dtype).max))
    squared = (distance * (-log_std.masked_fill(on_it, 0.0)).exp()).square()
    return -squared / 2 - log_std.masked_fill(squared.isinf(), 0.0) - 0.5 * math.log(2 * math.pi)


def _evaluate(mean: Tensor, log_std: Tensor, noise: Tensor | None, with_kl: bool) -> tuple[Tensor, ...]:
    """The sample if there is noise, then the divergence if `with_kl`."""
    outputs = []
    if noise is not None:
        outputs.append(torch.addcmul(mean, log_std.exp(), noise))
    if with_kl:
        outputs.append(torch.addcmul(_kl_of_scale(log_std), mean, mean, value=0.5))
    return tuple(outputs)


def _kl_of_scale(log_std: Tensor) -> Tensor:
    """expm1(2 s) / 2 - s; in place where it can be, since new memory costs a CPU more than the arithmetic."""
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
    # 100 is lost beside exp(200) / 2; infinity less infinity would be NaN.
    return result.sub_(beyond.clamp_max_(100.0))


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
        of_mean, of_log_std = of_mean + of_kl * mean, of_log_std + of_kl * torch.expm1(2 * log_std)
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
            outputs.append(nothing + mean * by_mean + torch.expm1(2 * log_std) * by_log_std)
        return tuple(outputs)
