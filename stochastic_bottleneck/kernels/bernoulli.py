r"""Bernoulli latents: the Binary Concrete sampler and the closed forms against Bernoulli(0.5).

With logits l, s = sigmoid(l) and standard logistic noise e, a relaxed sample is z = sigmoid((l + e) / tau)
(Maddison et al., arXiv 1611.00712; Jang et al., arXiv 1611.01144); l + e > 0 has probability s exactly. With
x = logit(z) = (l + e) / tau,

    dz/dl = dz/de = z (1 - z) / tau        dz/dtau = -z (1 - z) x / tau

The divergence from the fair coin, log 2 - H(s), is even in l, and with q = sigmoid(-|l|)

    KL = log 2 + log(1 - q) - |l| q        dKL/dl = l s (1 - s)

which cancels near l = 0. With t = tanh(l / 2), also

    KL = l t / 2 + log(1 - t^2) / 2

whose terms are l^2 / 4 and -l^2 / 8 near zero, without cancellation. float64 uses that form there; in float32, a
Chebyshev interpolation of the smooth function KL / l^2 of l^2 is cheaper. Each is accurate to a few units in the last
place where it is used.

At infinite logits every formula returns its limit: logits are clamped to a magnitude at which the product is already
0, because infinity times zero would be NaN.

Backward saves only logits, temperature and z: x is recovered from z, which is accurate enough because dz/dl vanishes
where z rounds to 0 or 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels.elementwise import at_least_float32, in_chunks, is_transformed

_MAX_LOGIT = 1e20  # magnitude at which every smooth function of a logit has reached its limit
_NEAR = 2.0  # |logit| at which both forms are accurate to a few units in the last place

# KL / l^2 in powers of l^2, for |l| <= 2: interpolation at the 8 Chebyshev nodes of [0, 4], error at most 9e-9.
# Multiplications and additions alone are much cheaper on a CPU than tanh and log1p.
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


def uniform_to_logistic_(uniform: Tensor) -> Tensor:
    """Standard logistic noise from uniform noise in [0, 1], in place; finite at 0 and 1."""
    return uniform.logit_(torch.finfo(uniform.dtype).eps / 2)


def relaxed_rsample(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor) -> Tensor:
    """Binary Concrete sample; `hard` returns exact bits with the relaxed sample's gradient."""
    outputs = _apply(at_least_float32(logits), noise, temperature, hard, False)
    return outputs[-1].to(logits.dtype)


def relaxed_rsample_kl(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`relaxed_rsample` and `kl` in one pass."""
    outputs = _apply(at_least_float32(logits), noise, temperature, hard, True)
    return outputs[-2].to(logits.dtype), outputs[-1]


def kl(logits: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(l)) || Bernoulli(0.5)) of each logit, in nats."""
    logits = at_least_float32(logits)
    result: Tensor = _kl_formula(logits) if torch.compiler.is_compiling() else _KL.apply(logits)
    return result


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each bit, in nats."""
    logits = at_least_float32(logits)
    near = logits.abs() < _NEAR
    magnitude = torch.where(near, torch.full_like(logits, _NEAR), logits.abs().clamp_max(_MAX_LOGIT))
    large = F.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)
    return torch.where(near, math.log(2) - kl(torch.where(near, logits, torch.zeros_like(logits))), large)


def log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Log mass of each bit, in nats; linear in z between the two bits."""
    logits = at_least_float32(logits)
    z = z.to(logits.dtype)
    certain = logits.isinf()  # the log mass of the other bit is -inf, and 0 times -inf would be NaN
    log_p_one = F.logsigmoid(logits).masked_fill(certain & (z == 0), 0.0)
    log_p_zero = F.logsigmoid(-logits).masked_fill(certain & (z == 1), 0.0)
    return z * log_p_one + (1 - z) * log_p_zero


def relaxed_log_prob(logits: Tensor, temperature: Tensor | float, z: Tensor) -> Tensor:
    """Log density of each relaxed sample in (0, 1), in nats (arXiv 1611.00712, appendix C.3.2)."""
    logits = at_least_float32(logits)
    # A sample may have rounded to 0 or 1, where the density is undefined; torch.distributions clamps likewise.
    z_info, info = torch.finfo(z.dtype), torch.finfo(logits.dtype)
    z = at_least_float32(z).to(logits.dtype).clamp(max(z_info.tiny, info.tiny), 1 - max(z_info.eps, info.eps))
    tau = _as_tensor(temperature, logits).to(logits.dtype)
    log_z, log_1_z = z.log(), torch.log1p(-z)
    shifted = logits - tau * (log_z - log_1_z)
    # softplus(x) = -logsigmoid(-x); torch's softplus drops the exponential above 20, an error of 2e-9.
    return tau.log() - log_z - log_1_z + (F.logsigmoid(shifted) + F.logsigmoid(-shifted))


def _kl_formula(logits: Tensor) -> Tensor:
    magnitude = logits.abs().clamp_max(_MAX_LOGIT)
    inside = logits.clamp(-_NEAR, _NEAR)  # autograd differentiates both branches, so neither may overflow
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
    """The relaxed sample, then its bits if `hard`, then the KL divergence if `with_kl`."""
    perturbed = logits + noise
    outputs = [torch.sigmoid(perturbed / temperature)]
    if hard:
        outputs.append((perturbed > 0).to(perturbed.dtype))
    if with_kl:
        outputs.append(_kl_formula(logits))
    return tuple(outputs)


def _apply(logits: Tensor, noise: Tensor, temperature: Tensor | float, hard: bool, with_kl: bool) -> tuple[Tensor, ...]:
    hard = bool(hard)
    if torch.compiler.is_compiling():  # Inductor fuses the formula, and its derivative, into one kernel each
        logits = logits.clamp(-_MAX_LOGIT, _MAX_LOGIT)  # the derivative in the temperature is a product with them
        outputs = list(_sample(logits, noise, temperature, hard, with_kl))
        if hard:  # z - z.detach() is exactly zero, so the bits stay exact
            outputs[1] = outputs[1] + (outputs[0] - outputs[0].detach())
        return tuple(outputs)
    temperature = _as_tensor(temperature, logits)
    # One pass adds the gradients of the sample and of the KL, which must then have the same dimensions.
    shape = torch.broadcast_shapes(temperature.shape, logits.shape)  # type: ignore[no-untyped-call]
    one_pass = shape == logits.shape and not is_transformed()
    if with_kl and not one_pass:
        return *_RelaxedSample.apply(logits, noise, temperature, hard, False), _KL.apply(logits)
    result: tuple[Tensor, ...] = _RelaxedSample.apply(logits, noise, temperature, hard, with_kl)
    return result


def _as_tensor(temperature: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        return temperature
    # Filled on the device: copying from the host would synchronize.
    return torch.full((), temperature, dtype=like.dtype, device=like.device)


def _dkl_dlogits(logits: Tensor) -> Tensor:
    e = logits.abs().neg().exp()  # s (1 - s) = e / (1 + e)^2, where 1 - s would round to 0
    return logits.clamp(-_MAX_LOGIT, _MAX_LOGIT) * (e / (1 + e).square())


def _dz_dlogits(z: Tensor, temperature: Tensor) -> Tensor:
    return z * (1 - z) / temperature


def _scaled_logits(z: Tensor) -> Tensor:
    """(l + e) / tau, finite where z has rounded to 0 or 1."""
    return torch.logit(z, torch.finfo(z.dtype).eps / 2)


def _grad_logits(
    logits: Tensor, z: Tensor, temperature: Tensor, grad_z: Tensor | None, grad_kl: Tensor | None
) -> tuple[Tensor, ...]:
    grad = grad_z * _dz_dlogits(z, temperature) if grad_z is not None else torch.zeros_like(logits)
    return (grad if grad_kl is None else grad + grad_kl * _dkl_dlogits(logits),)


class _KL(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return in_chunks(lambda x: (_kl_formula(x),), logits)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return in_chunks(lambda x, g: (g * _dkl_dlogits(x),), *ctx.saved_tensors, *grad_outputs)[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _dkl_dlogits(*ctx.saved_tensors)


class _RelaxedSample(torch.autograd.Function):
    """`_sample` and its derivatives; saves logits, temperature and relaxed sample only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, noise: Tensor, temperature: Tensor, hard: bool, with_kl: bool) -> tuple[Tensor, ...]:
        return in_chunks(partial(_sample, hard=hard, with_kl=with_kl), logits, noise, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, _, temperature, ctx.hard, ctx.with_kl = inputs
        ctx.save_for_backward(logits, temperature, output[0])
        ctx.save_for_forward(logits, temperature, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, temperature, z = ctx.saved_tensors
        grad_z = grad_outputs[0]
        if ctx.hard and grad_outputs[1] is not None:  # straight through: the gradient of the bits is that of z
            grad_z = grad_outputs[1] if grad_z is None else grad_z + grad_outputs[1]
        grad_kl = grad_outputs[-1] if ctx.with_kl else None
        grad_logits = grad_noise = grad_temperature = None
        if ctx.needs_input_grad[0] and (grad_z is not None or grad_kl is not None):
            (grad_logits,) = in_chunks(_grad_logits, logits, z, temperature, grad_z, grad_kl)
        if ctx.needs_input_grad[1] and grad_z is not None:
            grad_noise = grad_z * _dz_dlogits(z, temperature)
        if ctx.needs_input_grad[2] and grad_z is not None:
            dz_dtemperature = -_dz_dlogits(z, temperature) * _scaled_logits(z)
            grad_temperature = (grad_z * dz_dtemperature).sum_to_size(temperature.shape)
        return grad_logits, grad_noise, grad_temperature, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        logits, temperature, z = ctx.saved_tensors
        t_logits, t_noise, t_temperature = (0.0 if t is None else t for t in tangents[:3])
        t_z = _dz_dlogits(z, temperature) * (t_logits + t_noise - _scaled_logits(z) * t_temperature)
        t_kl = (_dkl_dlogits(logits) * t_logits,) if ctx.with_kl else ()
        return (t_z, *(t_z,) * ctx.hard, *t_kl)
