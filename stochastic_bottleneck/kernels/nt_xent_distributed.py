"""NT-Xent of this process's rows with the rows of all processes as negatives, as one custom operator.

The gradient of the sum of all processes' losses in a row i of this process is

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

as in `nt_xent_op`, with k over the rows of all processes. So backward needs only the other rows' weights a_k: one
number per row is sent, instead of D numbers for a sum of every process's gradient of every row. The local pairs are
symmetric, and are computed while the other processes' rows are in transit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck.kernels import l2_normalize as normalization
from stochastic_bottleneck.kernels.all_gather import (
    AsyncGather,
    all_gather,
    check_equal_on_all_processes,
    get_group,
)
from stochastic_bottleneck.kernels.elementwise import at_least_float32, saturating_cast
from stochastic_bottleneck.kernels.nt_xent_dispatch import Pairs, make_pairs, sums_dtype
from stochastic_bottleneck.kernels.nt_xent_op import (
    PairsOptions,
    add_positive_gradient_,
    caches_exponentials,
    empty_unit_rows,
    losses_from_sums,
    pairs_among_views,
    pairs_options,
    positive_cosine,
    stack_losses,
    stack_views,
    unstack_views,
)
from stochastic_bottleneck.kernels.nt_xent_tiled import cache_bytes


def distributed_nt_xent(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, group: str) -> Tensor:
    """Losses of this process's rows, equal to `plain_nt_xent` over the rows of all processes.

    Backward computes the gradient of the sum of all processes' losses. Every process must run both passes, with rows
    of the same shape and dtype and the same temperature, which is checked before the rows are sent.

    Args:
        v: first views of this process. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau, at least 0.01.
        block_size: largest number of rows and of columns in a tile; None to fit the processor's cache.
        group: name of the process group; "" for all processes.

    Returns:
        Losses in nats, float32 or float64, the rows of `v` first. Shape: (2N,) or (K, 2N)

    Raises:
        ValueError: on every process, if they differ in shape, dtype, device, temperature or need of a gradient.
    """
    needs_grad = torch.is_grad_enabled() and (v.requires_grad or v_prime.requires_grad)
    losses: Tensor = _DistributedNTXent.apply(v, v_prime, temperature, block_size, needs_grad, group)[0]
    return losses


class _DistributedNTXent(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _distributed_forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        v, v_prime, ctx.temperature, ctx.block_size, _, ctx.group = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(v, v_prime, *output[1:])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the caches

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *saved = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 6
        if torch.is_grad_enabled():  # with create_graph=True
            # Views, since one of the two may have been computed from the other.
            views = [v.view_as(v), v_prime.view_as(v_prime)]
            wanted = [x for x in views if x.requires_grad]
            losses = _differentiable_losses(views[0], views[1], ctx.temperature, ctx.group)
            gradients = iter(torch.autograd.grad(losses, wanted, grads[0], create_graph=True))
            return *(next(gradients) if x.requires_grad else None for x in views), *(None,) * 4
        grad = _distributed_backward(grads[0], *saved, ctx.temperature, ctx.block_size, v.dtype, ctx.group)
        return *unstack_views(grad, v), *(None,) * 4


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent_distributed",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, float temperature, SymInt? block_size, bool needs_grad, str group)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _distributed_forward(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then the tensors that `_distributed_backward` takes."""
    check_equal_on_all_processes(v, v_prime, group=group, temperature=temperature, needs_grad=needs_grad)
    remote_rows = AsyncGather(stack_views(v, v_prime), group)
    u, norm = normalization.l2_normalize_(at_least_float32(stack_views(v, v_prime)))
    caches = _new_caches(u, caches_exponentials(needs_grad, block_size, v), group)
    options = pairs_options(v.dtype, u, temperature, block_size, _world_size(group))
    row_sums = torch.stack([p.row_sums() for p in pairs_among_views(u, options, caches[0])])
    remote_u, _ = normalization.l2_normalize_(remote_rows.wait().to(u.dtype))
    row_sums += torch.stack([p.row_sums() for p in _remote_pairs(u, remote_u, options, caches[1])])
    losses, weight, pull = losses_from_sums(row_sums.view(u.shape[:-1]), positive_cosine(u), temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, norm, remote_u, *caches


@_distributed_forward.register_fake
def _(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str
) -> tuple[Tensor, ...]:
    u = empty_unit_rows(v)
    k, _, n, d = u.shape
    return (
        u.new_empty(*v.shape[:-2], 2 * n),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        u,
        u.new_empty(*u.shape[:-1], 1),
        u.new_empty(k, 2 * n * (_world_size(group) - 1), d),
        *_new_caches(u, caches_exponentials(needs_grad, block_size, v), group),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent_distributed_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor weight, Tensor pull, Tensor u, Tensor norm, Tensor remote_u,"
    " Tensor local_cache, Tensor remote_cache, float temperature, SymInt? block_size, ScalarType dtype, str group)"
    " -> Tensor",
)
def _distributed_backward(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    norm: Tensor,
    remote_u: Tensor,
    local_cache: Tensor,
    remote_cache: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
    group: str,
) -> Tensor:
    """Gradient of the sum of all processes' losses in the stacked views, in the inputs' dtype."""
    g = grad_losses.reshape(weight.shape)
    a = g * weight
    remote_a = AsyncGather(a, group)
    options = pairs_options(dtype, u, temperature, block_size, _world_size(group))
    local_a = a.flatten(1)
    local = zip(pairs_among_views(u, options, local_cache), local_a, strict=True)
    grad_u = stack_losses([p.gradients(a_k)[0] for p, a_k in local])
    remote = zip(_remote_pairs(u, remote_u, options, remote_cache), local_a, remote_a.wait(), strict=True)
    grad_u = grad_u.add_(stack_losses([p.gradients(a_k, b_k)[0] for p, a_k, b_k in remote])).view_as(u)
    add_positive_gradient_(grad_u, g * -pull, u)
    return saturating_cast(normalization.l2_normalize_backward_(grad_u, u, norm), dtype)


@_distributed_backward.register_fake
def _(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    norm: Tensor,
    remote_u: Tensor,
    local_cache: Tensor,
    remote_cache: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
    group: str,
) -> Tensor:
    return torch.empty_like(u, dtype=dtype)


def _differentiable_losses(v: Tensor, v_prime: Tensor, temperature: float, group: str) -> Tensor:
    """The losses from the matrix of all pairs, differentiable to any order. Shape: (2N,) or (K, 2N)."""
    u = normalization.l2_normalize(torch.cat((v, v_prime), dim=-2))
    views = all_gather(torch.stack((v, v_prime)), dim=-2, group=group)
    columns = normalization.l2_normalize(torch.cat(views.unbind(0), dim=-2))
    n, n_all = v.shape[-2], views.shape[-2]
    column = torch.arange(n, device=v.device) + dist.get_rank(get_group(group)) * n
    itself, positive = torch.cat((column, column + n_all)), torch.cat((column + n_all, column))
    logits = u @ columns.mT / temperature
    is_self = itself[:, None] == torch.arange(2 * n_all, device=v.device)
    positive_logits = logits.take_along_dim(positive[:, None].expand(*logits.shape[:-1], 1), dim=-1)
    return logits.masked_fill(is_self, -math.inf).logsumexp(-1) - positive_logits.squeeze(-1)


def _world_size(group: str) -> int:
    return dist.get_world_size(get_group(group))


def _remote_pairs(u: Tensor, remote_u: Tensor, options: PairsOptions, cache: Tensor) -> list[Pairs]:
    """Pairs of this process's rows with the other processes', for each loss; all of them are negatives."""
    losses = zip(u.flatten(1, 2), remote_u, cache, strict=True)
    return [make_pairs(rows, columns, (), *options, row_cache) for rows, columns, row_cache in losses]


def _new_caches(u: Tensor, cache: bool, group: str) -> tuple[Tensor, Tensor]:
    """Memory for the cached exponentials of local and of remote pairs."""
    k, _, n, _ = u.shape
    n_columns = (2 * n, 2 * n * (_world_size(group) - 1))
    sizes = [cache_bytes(2 * k, 2 * n, columns) if cache else 0 for columns in n_columns]
    local, remote = (u.new_empty(k, size, dtype=torch.uint8) for size in sizes)
    return local, remote
