"""NT-Xent of this process's rows with the rows of all processes as negatives, as one custom operator.

The gradient of the sum of all processes' losses in a row i of this process is

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

as in `nt_xent_op`, with k over the rows of all processes. So backward needs only the other rows' weights a_k: one
number per row is sent, instead of D numbers for a sum of every process's gradient of every row. The local pairs are
symmetric, and are computed while the other processes' rows are in transit. These come in blocks, so that the products
with one block overlap with the transfer of the next.

The blocks are gathered from all processes at once and kept for backward. With `ring`, a block is the rows of one
process, which are passed around once in forward and, with their weights, again in backward: memory is that of this
process's rows, whatever the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck.kernels import l2_normalize as normalization
from stochastic_bottleneck.kernels.all_gather import (
    AsyncGather,
    Ring,
    all_gather,
    check_equal_on_all_processes,
    get_group,
)
from stochastic_bottleneck.kernels.nt_xent_dispatch import make_pairs, row_functions, sums_dtype
from stochastic_bottleneck.kernels.nt_xent_op import (
    caches_exponentials,
    empty_unit_rows,
    pairs_among_views,
    pairs_options,
    stack_losses,
    stack_views,
    unstack_views,
)
from stochastic_bottleneck.kernels.nt_xent_tiled import cache_bytes

MAX_BLOCKS = 4  # that rows are gathered in: more are more collectives, each with its latency


def distributed_nt_xent(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, group: str, ring: bool
) -> Tensor:
    """Losses of this process's rows, equal to `plain_nt_xent` over the rows of all processes.

    Backward computes the gradient of the sum of all processes' losses. Every process must run both passes, with rows
    of the same shape and dtype and the same temperature, which is checked before the rows are sent.

    Args:
        v: first views of this process. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau, at least 0.01.
        block_size: largest number of rows and of columns in a tile; None to fit the processor's cache.
        group: name of the process group; "" for all processes.
        ring: whether to pass rows around instead of gathering and keeping all of them.

    Returns:
        Losses in nats, float32 or float64, the rows of `v` first. Shape: (2N,) or (K, 2N)

    Raises:
        ValueError: on every process, if they differ in shape, dtype, device, temperature or need of a gradient.
    """
    needs_grad = torch.is_grad_enabled() and (v.requires_grad or v_prime.requires_grad)
    losses: Tensor = _DistributedNTXent.apply(v, v_prime, temperature, block_size, needs_grad, group, ring)[0]
    return losses


class _DistributedNTXent(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _distributed_forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        v, v_prime, ctx.temperature, ctx.block_size, _, ctx.group, ctx.ring = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(v, v_prime, *output[1:])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the caches

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *saved = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 7
        if torch.is_grad_enabled():  # with create_graph=True
            # Views, since one of the two may have been computed from the other.
            views = [v.view_as(v), v_prime.view_as(v_prime)]
            wanted = [x for x in views if x.requires_grad]
            losses = _differentiable_losses(views[0], views[1], ctx.temperature, ctx.group)
            gradients = iter(torch.autograd.grad(losses, wanted, grads[0], create_graph=True))
            return *(next(gradients) if x.requires_grad else None for x in views), *(None,) * 5
        options = ctx.temperature, ctx.block_size, ctx.group, ctx.ring
        grad = _distributed_backward(grads[0], v, v_prime, *saved, *options)
        return *unstack_views(grad, v), *(None,) * 5


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent_distributed",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, float temperature, SymInt? block_size, bool needs_grad, str group,"
    " bool ring) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _distributed_forward(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str, ring: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then the tensors that `_distributed_backward` takes."""
    check_equal_on_all_processes(v, v_prime, group=group, temperature=temperature, needs_grad=needs_grad)
    stacked = stack_views(v, v_prime)
    local_cache, remote_cache = _new_caches(stacked, caches_exponentials(needs_grad, block_size, v), group, ring)
    remote_rows = _exchange(stacked, group, ring, remote_cache)
    options = pairs_options(v, temperature, block_size, n_processes=_world_size(group))
    functions = row_functions(v, options[1])
    u, norm, positive = functions.unit_rows(v, v_prime, torch.promote_types(v.dtype, torch.float32))
    row_sums = torch.stack([p.row_sums() for p in pairs_among_views(u, options, local_cache)])
    remote_u, end = u.new_empty(len(u), _n_kept(u, group, ring), u.shape[-1]), 0
    for rows in remote_rows:
        memory = u.new_empty(rows.shape) if ring else remote_u[:, end : (end := end + rows.shape[1])]
        block, _ = normalization.l2_normalize_(memory.copy_(rows))
        remote = make_pairs(u.flatten(1, 2), block, (), *options, remote_cache)  # all of them are negatives
        row_sums += torch.stack([p.row_sums() for p in remote])
    losses, weight, pull = functions.losses_from_sums(row_sums.view(1, *positive.shape), positive, temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, norm, remote_u, local_cache, remote_cache


@_distributed_forward.register_fake
def _(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str, ring: bool
) -> tuple[Tensor, ...]:
    u = empty_unit_rows(v)
    k, _, n, d = u.shape
    return (
        u.new_empty(*v.shape[:-2], 2 * n),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        u,
        u.new_empty(*u.shape[:-1], 1),
        u.new_empty(k, _n_kept(u, group, ring), d),
        *_new_caches(u, caches_exponentials(needs_grad, block_size, v), group, ring),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::nt_xent_distributed_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor v, Tensor v_prime, Tensor weight, Tensor pull, Tensor u, Tensor norm,"
    " Tensor remote_u, Tensor local_cache, Tensor remote_cache, float temperature, SymInt? block_size, str group,"
    " bool ring) -> Tensor",
)
def _distributed_backward(
    grad_losses: Tensor,
    v: Tensor,
    v_prime: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    norm: Tensor,
    remote_u: Tensor,
    local_cache: Tensor,
    remote_cache: Tensor,
    temperature: float,
    block_size: int | None,
    group: str,
    ring: bool,
) -> Tensor:
    """Gradient of the sum of all processes' losses in the stacked views, in the inputs' dtype."""
    g = grad_losses.reshape(weight.shape)
    a = g * weight
    remote_rows: Iterable[Any] = Ring(stack_views(v, v_prime), group) if ring else repeat(None)
    remote_a = _exchange(a, group, ring, remote_cache)
    options = pairs_options(v, temperature, block_size, n_processes=_world_size(group))
    local_a = a.flatten(1)
    local = zip(pairs_among_views(u, options, local_cache), local_a, strict=True)
    grad_u, end = stack_losses([p.gradients(a_k)[0] for p, a_k in local]), 0
    for rows, block_a in zip(remote_rows, remote_a, strict=False):
        block = remote_u[:, end : (end := end + block_a.shape[1])]
        if ring:
            block, _ = normalization.l2_normalize_(rows.to(u.dtype, copy=True))
        pairs = zip(make_pairs(u.flatten(1, 2), block, (), *options, remote_cache), local_a, block_a, strict=True)
        grad_u = grad_u.add_(stack_losses([p.gradients(a_k, b_k)[0] for p, a_k, b_k in pairs]))
    functions = row_functions(v, options[1])
    grad: Tensor = functions.grad_views(grad_u.view(1, *u.shape), g, pull, u, norm, v.dtype)
    return grad


@_distributed_backward.register_fake
def _(grad_losses: Tensor, v: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(empty_unit_rows(v), dtype=v.dtype)


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


def _exchange(x: Tensor, group: str, ring: bool, cache: Tensor) -> Iterable[Tensor]:
    """Start sending rows or their weights, and iterate over blocks of the other processes'.

    Args:
        x: Shape: (K, 2, N, ...)
        group: name of the process group.
        ring: see `distributed_nt_xent`.
        cache: for the exponentials of the remote pairs, which are one block if they are cached.

    Returns:
        Blocks of Shape: (K, M, ...)
    """
    if ring:
        return Ring(x, group)
    n_blocks = 1 if cache.numel() else min(_world_size(group) - 1, MAX_BLOCKS)
    gathers = [AsyncGather(block, group) for block in x.chunk(n_blocks, dim=2)]
    return (gather.wait() for gather in gathers)


def _n_kept(u: Tensor, group: str, ring: bool) -> int:
    """Number of the other processes' rows that are kept for backward."""
    return 0 if ring else 2 * u.shape[2] * (_world_size(group) - 1)


def _new_caches(x: Tensor, cache: bool, group: str, ring: bool) -> tuple[Tensor, Tensor]:
    """Memory for the cached exponentials of local and of remote pairs; none of these with a ring."""
    k, _, n, _ = x.shape
    columns = (2 * n, 2 * n * (_world_size(group) - 1))
    sizes = [cache_bytes(2 * k, 2 * n, n_columns) if cache else 0 for n_columns in columns]
    local, remote = (x.new_empty(k, size, dtype=torch.uint8) for size in (sizes[0], 0 if ring else sizes[1]))
    return local, remote
