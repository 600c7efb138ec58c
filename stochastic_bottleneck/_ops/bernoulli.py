r"""Bernoulli latents: the Binary Concrete sampler and the closed forms against Bernoulli(0.5).

With logits l, s = sigmoid(l) and standard logistic noise e, a relaxed sample is z = sigmoid((l + e) / tau)
(Maddison et al., arXiv 1611.00712; Jang et al., arXiv 1611.01144); l + e > 0 has probability s exactly. With
x = logit(z) = (l + e) / tau,

    dz/dl = dz/de = z (1 - z) / tau        dz/dtau = -z (1 - z) x / tau

The divergence from the fair coin, log 2 - H(s), is even in l, and with q = sigmoid(-|l|)

    KL = log 2 + log(1 - q) - |l| q        dKL/dl = l s (1 - s)

which cancels near l = 0. With t = tanh(l / 2) the divergence is also

    KL = l t / 2 + log(1 - t^2) / 2

whose two terms are l^2 / 4 and -l^2 / 8 near zero, so nothing cancels. That form serves float64 there; in
float32 the smooth function KL / l^2 of l^2 is cheaper taken from its Chebyshev interpolation. All are accurate
to a few units in the last place where they are used.

At infinite logits every formula takes its limit: what would be infinity times zero is computed at the largest
magnitude at which the product is still exact, and zero.

Only logits, temperature and z are kept for the backward pass: x is recovered from z, which is exact enough
because the slope vanishes where z rounds to 0 or 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck._ops.pieces import in_pieces
from stochastic_bottleneck._ops.precision import at_least_float32

_LARGEST = 1e20  # magnitude of a logit beyond which every smooth function of it has long reached its limit
_NEAR = 2.0  # |logit| at which both forms are accurate to a few units in the last place

# KL / l^2 in powers of l^2, for |l| <= 2: interpolation at the 8 Chebyshev nodes of [0, 4], 9e-9 off at most.
# Multiplications and additions only, which cost a CPU a fraction of tanh and log1p.
_KL_SERIES = (
    0.12499999897985693,
    -0.01562496725127578,
    0.0017359363837873613,
    -0.00018410120016832852,
    1.8847771735529252e-05,
    -1.7658874869707762e-06,
    1.2832330555134306e-07,
    -4.985211048355109e-09,
)


def logistic_noise(uniform: Tensor) -> Tensor:
    """Standard logistic noise from uniform noise in [0, 1], kept off the two infinities; overwrites it."""
    return uniform.logit_(torch.finfo(uniform.dtype).eps / 2)


def relaxed_rsample(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor) -> Tensor:
    """Binary Concrete sample; `hard` gives exact bits with the relaxed sample's gradient."""
    outputs = _apply(at_least_float32(logits), noise, temperature, hard, False)
    return outputs[-1].to(logits.dtype)


def relaxed_rsample_kl(
    logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """The sample and the divergence below, in one pass."""
    outputs = _apply(at_least_float32(logits), noise, temperature, hard, True)
    return outputs[-2].to(logits.dtype), outputs[-1]


def kl(logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(l)) || Bernoulli(0.5)) of each logit, in nats."""
    logits = at_least_float32(logits)
    result: Tensor = _kl(logits) if torch.compiler.is_compiling() else _KL.apply(logits)
    return result


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each bit, in nats."""
    logits = at_least_float32(logits)
    near = logits.abs() < _NEAR
    magnitude = torch.where(near, torch.full_like(logits, _NEAR), logits.abs().clamp_max(_LARGEST))
    large = F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)
    return torch.where(near, math.log(2) - kl(torch.where(near, logits, torch.zeros_like(logits))), large)


def log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Log mass of each bit, in nats; linear in z between the two bits."""
    logits = at_least_float32(logits)
    z = z.to(logits.dtype)
    certain = logits.isinf()  # whose other bit weighs nothing, although its log mass is infinite
    of_one = F.logsigmoid(logits).masked_fill(certain & (z == 0), 0.0)
    of_zero = F.logsigmoid(-logits).masked_fill(certain & (z == 1), 0.0)
    return z * of_one + (1 - z) * of_zero


def relaxed_log_prob(logits: Tensor, temperature: Tensor | float, z: Tensor) -> Tensor:
    """Log density of each relaxed sample in (0, 1), in nats (arXiv 1611.00712, appendix C.3.2)."""
    logits = at_least_float32(logits)
    # A sample may have rounded to 0 or 1, where there is no density. The bounds are torch.distributions'.
    own, used = torch.finfo(z.dtype), torch.finfo(logits.dtype)
    z = at_least_float32(z).to(logits.dtype).clamp(max(own.tiny, used.tiny), 1 - max(own.eps, used.eps))
    tau = _as_tensor(temperature, logits).to(logits.dtype)
    log_z, log_rest = z.log(), torch.log1p(-z)
    shifted = logits - tau * (log_z - log_rest)
    # softplus(x) = -logsigmoid(-x); torch's softplus drops the exponential above 20, 2e-9 off.
    return tau.log() - log_z - log_rest + (F.logsigmoid(shifted) + F.logsigmoid(-shifted))


def _kl(logits: Tensor) -> Tensor:
    magnitude = logits.abs().clamp_max(_LARGEST)
    inside = logits.clamp(-_NEAR, _NEAR)  # where autograd follows both forms, neither may overflow
    if logits.dtype == torch.float32:
        square = inside * inside
        near = torch.full_like(square, _KL_SERIES[-1])
        for coefficient in _KL_SERIES[-2::-1]:
            near = near * square + coefficient
        near = near * square
    else:
        t = torch.tanh(inside / 2)
        near = (inside * t + torch.log1p(-t * t)) / 2
    q = torch.sigmoid(-magnitude)
    return torch.where(magnitude < _NEAR, near, math.log(2) + torch.log(1 - q) - magnitude * q)


def _sample(
    logits: Tensor, noise: Tensor, temperature: Tensor | float, hard: bool, with_kl: bool
) -> tuple[Tensor, ...]:
    """The relaxed sample, then its bits if `hard`, then the divergence if `with_kl`."""
    perturbed = logits + noise
    outputs = [torch.sigmoid(perturbed / temperature)]
    if hard:
        outputs.append((perturbed > 0).to(perturbed.dtype))
    if with_kl:
        outputs.append(_kl(logits))
    return tuple(outputs)


def _apply(
    logits: Tensor, noise: Tensor, temperature: Tensor | float, hard: bool, with_kl: bool
) -> tuple[Tensor, ...]:
    hard = bool(hard)
    if torch.compiler.is_compiling():  # one kernel is made of the formula, and one of its derivative
        logits = logits.clamp(-_LARGEST, _LARGEST)  # the derivative in the temperature multiplies by them
        outputs = list(_sample(logits, noise, temperature, hard, with_kl))
        if hard:  # z - z.detach() is exactly zero, so the bits stay exact
            outputs[1] = outputs[1] + (outputs[0] - outputs[0].detach())
        return tuple(outputs)
    fused: tuple[Tensor, ...] = _Sample.apply(logits, noise, _as_tensor(temperature, logits), hard, with_kl)
    return fused


def _as_tensor(temperature: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        return temperature
    # Filled on the device: a copy from the host would wait for it.
    return torch.full((), temperature, dtype=like.dtype, device=like.device)


def _kl_slope(logits: Tensor) -> Tensor:
    s = torch.sigmoid(logits)
    return logits.clamp(-_LARGEST, _LARGEST) * (s * (1 - s))


def _sample_slope(z: Tensor, temperature: Tensor) -> Tensor:
    return z * (1 - z) / temperature


def _scaled(z: Tensor) -> Tensor:
    """(l + e) / tau, kept finite where z has rounded to 0 or 1 and its slope to 0."""
    return torch.logit(z, torch.finfo(z.dtype).eps / 2)


def _gradient(
    logits: Tensor, z: Tensor, temperature: Tensor, of_z: Tensor | None, of_kl: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradient of the logits."""
    gradient = of_z * _sample_slope(z, temperature) if of_z is not None else torch.zeros_like(logits)
    return (gradient if of_kl is None else gradient + of_kl * _kl_slope(logits),)


class _KL(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return in_pieces(lambda x: (_kl(x),), logits)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return in_pieces(lambda x, g: (g * _kl_slope(x),), *ctx.saved_tensors, *gradients)[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _kl_slope(*ctx.saved_tensors)


class _Sample(torch.autograd.Function):
    """`_sample` with its derivatives; logits, temperature and relaxed sample are all that it keeps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, noise: Tensor, temperature: Tensor, hard: bool, with_kl: bool
    ) -> tuple[Tensor, ...]:
        return in_pieces(partial(_sample, hard=hard, with_kl=with_kl), logits, noise, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, _, temperature, ctx.hard, ctx.with_kl = inputs
        ctx.save_for_backward(logits, temperature, output[0])
        ctx.save_for_forward(logits, temperature, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, temperature, z = ctx.saved_tensors
        of_z = gradients[0]
        if ctx.hard and gradients[1] is not None:  # what reaches the bits goes straight through to z
            of_z = gradients[1] if of_z is None else of_z + gradients[1]
        of_kl = gradients[-1] if ctx.with_kl else None
        of_logits = of_noise = of_temperature = None
        if ctx.needs_input_grad[0] and (of_z is not None or of_kl is not None):
            (of_logits,) = in_pieces(_gradient, logits, z, temperature, of_z, of_kl)
        if ctx.needs_input_grad[1] and of_z is not None:
            of_noise = of_z * _sample_slope(z, temperature)
        if ctx.needs_input_grad[2] and of_z is not None:
            slope = -_sample_slope(z, temperature) * _scaled(z)
            of_temperature = (of_z * slope).sum_to_size(temperature.shape)
        return of_logits, of_noise, of_temperature, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        logits, temperature, z = ctx.saved_tensors
        by_logits, by_noise, by_temperature = (0.0 if t is None else t for t in tangents[:3])
        of_z = _sample_slope(z, temperature) * (by_logits + by_noise - _scaled(z) * by_temperature)
        of_kl = (_kl_slope(logits) * by_logits,) if ctx.with_kl else ()
        return (of_z, *(of_z,) * ctx.hard, *of_kl)
