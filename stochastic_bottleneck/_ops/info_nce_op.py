"""NT-Xent without the matrix of all pairs, as one operator to autograd and to the compiler.

With n_i and x_i as in `info_nce` and g_i the gradient of loss_i,

    dL/ds_ik = g_i sigmoid(x_i) / n_i exp(s_ik)  for a negative,        dL/ds_ip(i) = -g_i sigmoid(x_i)

so that with a_i = g_i sigmoid(x_i) / (n_i tau) and q_i = -g_i sigmoid(x_i) / tau

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

Unit rows bound every logit by 1 / tau, so the exponentials need no running maximum: down to a temperature of
`COLDEST_IN_FLOAT32`, float32 holds them and their sums with room for any number of rows and any sensible g. Below
it the exponentials are float64. Half precision inputs are normalised and summed in float32. From
`ROWS_FOR_BFLOAT16` rows on, bfloat16 inputs are multiplied in bfloat16 where the hardware is faster at that. Three
roundings of relative size 2^-9 then reach a logit (both rows, their product) and one its exponential, so that a
loss is off by at most 2^-9 (3 / tau + 1), and by far less in practice, as the roundings of many pairs average out.
At temperatures below `COLDEST_IN_BFLOAT16` that bound says little, and float32 is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck._ops import unit_rows
from stochastic_bottleneck._ops.info_nce import plain
from stochastic_bottleneck._ops.pairs import AnyPairs, fuses, pairs_of
from stochastic_bottleneck._ops.precision import at_least_float32
from stochastic_bottleneck._ops.tiles import Precision, kept_bytes

Options = tuple[float, Precision, int | None]  # temperature, precision and block size, as `Pairs` takes them
COLDEST_IN_FLOAT32 = 0.025
COLDEST_IN_BFLOAT16 = 0.05
ROWS_FOR_BFLOAT16 = 1024
ROWS_OF_JVP = 1024  # rows whose pairs the forward-mode derivative holds at a time


def info_nce(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None) -> Tensor:
    """`info_nce.plain` in tiles of at most `block_size` rows and columns, None to fit the processor's cache."""
    needs_grad = torch.is_grad_enabled() and (v.requires_grad or v_prime.requires_grad)
    function = _InfoNCE if torch.compiler.is_compiling() else _BothModes
    losses: Tensor = function.apply(v, v_prime, temperature, block_size, keeps(needs_grad, block_size, v))[0]
    return losses


class _InfoNCE(torch.autograd.Function):
    """The operators' gradient; a Function of its own, as those of torch.library know no torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        v, v_prime, ctx.temperature, ctx.block_size, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(v, v_prime, *output[1:])
        ctx.set_materialize_grads(False)  # zeros as large as all that is kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *saved = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # to be differentiated again
            formula = partial(plain, temperature=ctx.temperature)
            return *torch.func.vjp(formula, v, v_prime)[1](grads[0]), None, None, None
        grad = _backward(grads[0], *saved, ctx.temperature, ctx.block_size, v.dtype)
        return *unstack(grad, v), None, None, None


class _BothModes(_InfoNCE):
    """With the derivative of forward mode, which the compiler refuses to trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _InfoNCE.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime = ctx.saved_tensors
        # From the inputs, so that a derivative of this one reaches them.
        u, length = unit_rows.with_lengths(stack(v, v_prime))
        given = next(t for t in tangents if t is not None)
        tangent = stack(*(torch.zeros_like(given) if t is None else t for t in tangents[:2])).to(u.dtype)
        along = (tangent - u * (u * tangent).sum(dim=-1, keepdim=True)) / length
        losses = torch.stack([_jvp(*each, ctx.temperature) for each in zip(u, along, strict=True)])
        return losses.view(*given.shape[:-2], -1), *(None,) * 5


def _jvp(u: Tensor, tangent: Tensor, temperature: float) -> Tensor:
    """Tangent of one loss's rows from that of its unit rows, a block of rows at a time. Shape: (2, N, D)."""
    n = u.shape[1]
    u, tangent = u.flatten(0, 1), tangent.flatten(0, 1)
    found = []
    for rows in torch.split(torch.arange(2 * n, device=u.device), ROWS_OF_JVP):
        logits = (u[rows] @ u.T / temperature).scatter(1, rows[:, None], -math.inf)
        change = (tangent[rows] @ u.T + u[rows] @ tangent.T) / temperature
        positive = change.gather(1, (rows[:, None] + n) % (2 * n)).squeeze(1)
        found.append((logits.softmax(1) * change).sum(1) - positive)
    return torch.cat(found)


# ---- the operators: both views stacked, Shape: (K, 2, N, D), for K losses -----------------------------------------


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, float temperature, SymInt? block_size, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then what `_backward` asks for first."""
    u, length = unit_rows.forward(at_least_float32(stack(v, v_prime)))
    kept = _kept(v, keep)
    pairs = among(u, _options(v.dtype, u, temperature, block_size), kept)
    sums = torch.stack([p.sums() for p in pairs]).view(u.shape[:-1])
    losses, weight, pull = from_sums(sums, cosine(u[:, 0], u[:, 1]), temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, length, kept


@_forward.register_fake
def _(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, keep: bool
) -> tuple[Tensor, ...]:
    u = fake_rows(v)
    return (
        u.new_empty(*v.shape[:-2], 2 * v.shape[-2]),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        u,
        u.new_empty(*u.shape[:-1], 1),
        _kept(v, keep),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor weight, Tensor pull, Tensor u, Tensor length, Tensor kept,"
    " float temperature, SymInt? block_size, ScalarType dtype) -> Tensor",
)
def _backward(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    kept: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the stacked views, in the inputs' dtype."""
    g = grad_losses.reshape(weight.shape)
    a, q = g * weight, g * -pull
    pairs = among(u, _options(dtype, u, temperature, block_size), kept)
    grad = stack_of([p.gradients(w.flatten())[0] for p, w in zip(pairs, a, strict=True)]).view_as(u)
    pull_together(grad, q, u)
    return lower(unit_rows.backward(grad, u, length), dtype)


@_backward.register_fake
def _(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    kept: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(u, dtype=dtype)


# ---- what the operators share ----------------------------------------------------------------------------------


def keeps(needs_grad: bool, block_size: int | None, v: Tensor) -> bool:
    """Whether exponentials are kept for a backward pass; a block size asks for little memory instead."""
    return needs_grad and block_size is None and not fuses(v)


def stack(v: Tensor, v_prime: Tensor) -> Tensor:
    """Both views in a new tensor. Shape: (K, 2, N, D)."""
    return torch.stack((v, v_prime), dim=-3).view(-1, 2, *v.shape[-2:])


def unstack(both: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The views of a stack, in the shape of `v`."""
    first, second = both.unbind(1)
    return first.reshape(v.shape), second.reshape(v.shape)


def fake_rows(v: Tensor) -> Tensor:
    """A tensor of the unit rows' shape and dtype, of no content."""
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return v.new_empty(v.shape[0] if v.ndim == 3 else 1, 2, *v.shape[-2:], dtype=dtype)


def lower(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """`grad` in the inputs' dtype, saturated at its range as in `precision`."""
    if grad.dtype == dtype:
        return grad
    limit = torch.finfo(dtype).max
    return grad.clamp_(-limit, limit).to(dtype)


def precision(dtype: torch.dtype, columns: int, temperature: float, device: torch.device) -> Precision:
    """Where a loss of inputs of this dtype rounds; see the top of this file."""
    if dtype == torch.float64:
        return Precision(torch.float64, torch.float64, torch.float64)
    sums = sums_dtype(dtype, temperature)
    low = dtype == torch.bfloat16 and temperature >= COLDEST_IN_BFLOAT16 and columns >= ROWS_FOR_BFLOAT16
    if low and _multiplies_bfloat16(device):
        return Precision(torch.bfloat16, torch.bfloat16, sums)
    return Precision(torch.float32, sums, sums)


def sums_dtype(dtype: torch.dtype, temperature: float) -> torch.dtype:
    """Of the sums of exponentials."""
    return torch.float64 if dtype == torch.float64 or temperature < COLDEST_IN_FLOAT32 else torch.float32


def from_sums(sums: Tensor, positive: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and sigmoid(x) / (n tau) and sigmoid(x) / tau for their gradient.

    Args:
        sums: n, over each row's negatives. Shape: (K, 2, N)
        positive: cosine of each row and its other view. Shape: (K, 2, N)
        temperature: tau.
    """
    x = sums.log() - positive / temperature  # -inf where a row has no negatives
    pull = x.sigmoid() / temperature
    weight = pull / sums.clamp_min(torch.finfo(sums.dtype).tiny)
    # Above the threshold, log(1 + exp(x)) is x to the last bit of float64.
    return F.softplus(x, threshold=40).to(positive.dtype), weight, pull.to(positive.dtype)


def cosine(u: Tensor, u_prime: Tensor) -> Tensor:
    """Of each row and its other view, for both views. Shape: (K, 2, N)."""
    once = (u * u_prime).sum(dim=-1)
    return torch.stack((once, once), dim=1)


def pull_together(grad: Tensor, q: Tensor, u: Tensor) -> None:
    """Add what the positives send back, (q_i + q_p(i)) u_p(i). Shapes: (K, 2, N, D), (K, 2, N) and (K, 2, N, D)."""
    both = q.sum(dim=1).unsqueeze(-1)
    grad[:, 0].addcmul_(both, u[:, 1])
    grad[:, 1].addcmul_(both, u[:, 0])


def stack_of(tensors: list[Tensor]) -> Tensor:
    """`torch.stack`, without a copy of the only one."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def among(u: Tensor, options: Options, kept: Tensor) -> list[AnyPairs]:
    """The pairs among the rows of each loss. Shape: (K, 2, N, D)."""
    n = u.shape[2]
    return [
        pairs_of(x, None, (0, n, -n), *options, own) for x, own in zip(u.flatten(1, 2), kept, strict=True)
    ]


def _options(dtype: torch.dtype, u: Tensor, temperature: float, block_size: int | None) -> Options:
    return temperature, precision(dtype, 2 * u.shape[2], temperature, u.device), block_size


def _kept(v: Tensor, keep: bool) -> Tensor:
    """Memory for the exponentials of each loss."""
    k, n = v.shape[0] if v.ndim == 3 else 1, v.shape[-2]
    return v.new_empty(k, kept_bytes(k, 2 * n, 2 * n) if keep else 0, dtype=torch.uint8)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster one to multiply; no where torch does not say."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
