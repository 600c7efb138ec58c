"""NT-Xent without the matrix of all pairs, as one custom operator for autograd and the compiler.

With n_i and x_i as in `nt_xent` and g_i the gradient of loss_i,

    dL/ds_ik = g_i sigmoid(x_i) / n_i exp(s_ik)  for a negative,        dL/ds_ip(i) = -g_i sigmoid(x_i)

so that with a_i = g_i sigmoid(x_i) / (n_i tau) and q_i = -g_i sigmoid(x_i) / tau

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

The sums over k are computed by the kernel that `nt_xent_dispatch` chooses.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck.kernels import l2_normalize as normalization
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent
from stochastic_bottleneck.kernels.nt_xent_dispatch import (
    Pairs,
    choose_precision,
    make_pairs,
    row_functions,
    sums_dtype,
    unit_rows_dtype,
    uses_triton,
)
from stochastic_bottleneck.kernels.nt_xent_tiled import Precision, cache_bytes

PairsOptions = tuple[float, Precision, int | None]  # temperature, precision, block_size
JVP_BLOCK = 1024  # rows of the matrix of pairs that forward-mode differentiation holds at a time


def blockwise_nt_xent(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None) -> Tensor:
    """`plain_nt_xent` in tiles of at most `block_size` rows and columns; None to fit the processor's cache."""
    needs_grad = torch.is_grad_enabled() and (v.requires_grad or v_prime.requires_grad)
    function = _CompiledNTXent if torch.compiler.is_compiling() else _NTXent
    cache = caches_exponentials(needs_grad, block_size, v)
    losses: Tensor = function.apply(v, v_prime, temperature, block_size, cache)[0]
    return losses


class _CompiledNTXent(torch.autograd.Function):
    """Gradient of the operators; a Function, because operators registered with torch.library lack torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _nt_xent_forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        v, v_prime, ctx.temperature, ctx.block_size, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(v, v_prime, *output[1:])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the cache

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *saved = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # with create_graph=True
            formula = partial(plain_nt_xent, temperature=ctx.temperature)
            return *torch.func.vjp(formula, v, v_prime)[1](grads[0]), None, None, None
        grad = _nt_xent_backward(grads[0], *saved, ctx.temperature, ctx.block_size, v.dtype)
        return *unstack_views(grad, v), None, None, None


class _NTXent(_CompiledNTXent):
    """Adds forward-mode differentiation, which torch.compile cannot trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _CompiledNTXent.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2], *output[1:])  # as many as for backward, as vmap's rule needs

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *_ = ctx.saved_tensors
        # Recomputed from the inputs, so that second derivatives reach them.
        u, norm = normalization.l2_normalize_with_norm(stack_views(v, v_prime))
        given = next(t for t in tangents if t is not None)
        tangent = stack_views(*(torch.zeros_like(given) if t is None else t for t in tangents[:2]))
        tangent = tangent.to(u.dtype)
        tangent_u = (tangent - u * (u * tangent).sum(dim=-1, keepdim=True)) / norm
        losses = torch.stack([_jvp(*x, ctx.temperature) for x in zip(u, tangent_u, strict=True)])
        return losses.view(*given.shape[:-2], -1), *(None,) * 5


def _jvp(u: Tensor, tangent: Tensor, temperature: float) -> Tensor:
    """Tangent of the losses from the tangent of the unit rows, a block of rows at a time. Shape: (2, N, D)."""
    n = u.shape[1]
    u, tangent = u.flatten(0, 1), tangent.flatten(0, 1)
    tangents = []
    for rows in torch.split(torch.arange(2 * n, device=u.device), JVP_BLOCK):
        logits = (u[rows] @ u.T / temperature).scatter(1, rows[:, None], -math.inf)
        tangent_logits = (tangent[rows] @ u.T + u[rows] @ tangent.T) / temperature
        tangent_positive = tangent_logits.gather(1, (rows[:, None] + n) % (2 * n)).squeeze(1)
        tangents.append((logits.softmax(1) * tangent_logits).sum(1) - tangent_positive)
    return torch.cat(tangents)


# ---- operators: both views stacked, Shape: (K, 2, N, D), for K losses -----------------------------------------------


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, float temperature, SymInt? block_size, bool cache)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _nt_xent_forward(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, cache: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then the tensors that `_nt_xent_backward` takes."""
    options = pairs_options(v, temperature, block_size)
    functions = row_functions(v, options[1])
    u, norm, positive = functions.unit_rows(v, v_prime, unit_rows_dtype(v, options[1]))
    cached_exponentials = _new_cache(v, cache)
    pairs = pairs_among_views(u, options, cached_exponentials)
    row_sums = stack_losses([p.row_sum_parts() for p in pairs], 1)
    losses, weight, pull = functions.losses_from_sums(row_sums.view(-1, *positive.shape), positive, temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, norm, cached_exponentials


@_nt_xent_forward.register_fake
def _(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, cache: bool) -> tuple[Tensor, ...]:
    u = empty_unit_rows(v)
    return (
        u.new_empty(*v.shape[:-2], 2 * v.shape[-2]),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        torch.empty_like(u, dtype=unit_rows_dtype(v, pairs_options(v, temperature, block_size)[1])),
        u.new_empty(*u.shape[:-1], 1),
        _new_cache(v, cache),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor weight, Tensor pull, Tensor u, Tensor norm, Tensor cached_exponentials,"
    " float temperature, SymInt? block_size, ScalarType dtype) -> Tensor",
)
def _nt_xent_backward(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    norm: Tensor,
    cached_exponentials: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the stacked views, in the inputs' dtype."""
    g = grad_losses.reshape(weight.shape)
    options = pairs_options(u[:, 0], temperature, block_size, dtype)
    pairs = zip(pairs_among_views(u, options, cached_exponentials), g * weight, strict=True)
    grad_u = stack_losses([p.gradient_parts(a.flatten()) for p, a in pairs], 1)
    functions = row_functions(u, options[1])
    grad: Tensor = functions.grad_views(grad_u.view(-1, *u.shape), g, pull, u, norm, dtype)
    return grad


@_nt_xent_backward.register_fake
def _(grad_losses: Tensor, weight: Tensor, pull: Tensor, u: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(u, dtype=others[-1])


# ---- shared with `nt_xent_distributed` -----------------------------------------------------------------------------


def caches_exponentials(needs_grad: bool, block_size: int | None, v: Tensor) -> bool:
    """Whether to cache exponentials for backward; a block size asks for little memory instead."""
    return needs_grad and block_size is None and not uses_triton(v)


def stack_views(v: Tensor, v_prime: Tensor) -> Tensor:
    """Both views in a new tensor. Shape: (K, 2, N, D)."""
    return torch.stack((v, v_prime), dim=-3).view(-1, 2, *v.shape[-2:])


def unstack_views(stacked: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The two views of a stack, in the shape of `v`."""
    first, second = stacked.unbind(1)
    return first.reshape(v.shape), second.reshape(v.shape)


def empty_unit_rows(v: Tensor) -> Tensor:
    """An uninitialized tensor of the shape and dtype of the unit rows. Shape: (K, 2, N, D)."""
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return v.new_empty(v.shape[0] if v.ndim == 3 else 1, 2, *v.shape[-2:], dtype=dtype)


def stack_losses(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.stack`, without a copy if there is only one tensor."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(tensors, dim)


def pairs_options(
    v: Tensor, temperature: float, block_size: int | None, dtype: torch.dtype | None = None, n_processes: int = 1
) -> PairsOptions:
    """Arguments that all pairs of a loss have in common, for views like `v`, or of another dtype."""
    n_columns = 2 * v.shape[-2] * n_processes
    return temperature, choose_precision(dtype or v.dtype, n_columns, temperature, v.device), block_size


def pairs_among_views(u: Tensor, options: PairsOptions, cached_exponentials: Tensor) -> list[Pairs]:
    """The negative pairs within each of K losses. u: Shape (K, 2, N, D)."""
    n = u.shape[2]
    return make_pairs(u.flatten(1, 2), None, (0, n, -n), *options, cached_exponentials)


def _new_cache(v: Tensor, cache: bool) -> Tensor:
    """Memory for the cached exponentials of each loss."""
    k, n = v.shape[0] if v.ndim == 3 else 1, v.shape[-2]
    return v.new_empty(k, cache_bytes(k, 2 * n, 2 * n) if cache else 0, dtype=torch.uint8)
