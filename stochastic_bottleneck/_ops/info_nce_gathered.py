"""NT-Xent of this process's rows against the rows of all processes, as one operator.

The sum of all processes' losses has, for a row i of this process, the gradient

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

of `info_nce_op`, with k over all processes' rows. So the backward pass needs no gradient from elsewhere, only the
other rows' weights a_k: one number a row travels, where summing every process's gradient of every row would send D.
The pairs among local rows are symmetric, and are computed while the others' rows are on their way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck._ops import unit_rows
from stochastic_bottleneck._ops.gather import Gathering, all_gather, check_alike, resolve
from stochastic_bottleneck._ops.info_nce import plain
from stochastic_bottleneck._ops.info_nce_op import (
    Options,
    among,
    cosine,
    fake_rows,
    from_sums,
    keeps,
    lower,
    precision,
    pull_together,
    stack,
    stack_of,
    sums_dtype,
    unstack,
)
from stochastic_bottleneck._ops.pairs import AnyPairs, pairs_of
from stochastic_bottleneck._ops.precision import at_least_float32
from stochastic_bottleneck._ops.tiles import kept_bytes


def info_nce(v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, group: str) -> Tensor:
    """NT-Xent of this process's rows against the rows of all processes, exact to `info_nce.plain` over all rows.

    The backward pass gives the gradient of the sum of all processes' losses. Every process has to call both passes,
    with rows of one shape and dtype at one temperature, which is checked before the rows travel.

    Args:
        v: first views of this process. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau, at least 0.01.
        block_size: rows and columns handled at a time; None to fit the processor's cache.
        group: name of the group of processes; "" for all.

    Returns:
        Losses in nats, float32 or float64, the rows of `v` first. Shape: (2N,) or (K, 2N)

    Raises:
        ValueError: on every process, when they differ in shape, dtype, device, temperature or need of a gradient.
    """
    needs_grad = torch.is_grad_enabled() and (v.requires_grad or v_prime.requires_grad)
    losses: Tensor = _GatheredInfoNCE.apply(v, v_prime, temperature, block_size, needs_grad, group)[0]
    return losses


class _GatheredInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        v, v_prime, ctx.temperature, ctx.block_size, _, ctx.group = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(v, v_prime, *output[1:])
        ctx.set_materialize_grads(False)  # zeros as large as all that is kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, v_prime, *saved = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 6
        if torch.is_grad_enabled():  # to be differentiated again
            # Views, since one of the two may have been made from the other.
            views = [v.view_as(v), v_prime.view_as(v_prime)]
            wanted = [x for x in views if x.requires_grad]
            losses = _plain(views[0], views[1], ctx.temperature, ctx.group)
            found = iter(torch.autograd.grad(losses, wanted, grads[0], create_graph=True))
            return *(next(found) if x.requires_grad else None for x in views), *(None,) * 4
        grad = _backward(grads[0], *saved, ctx.temperature, ctx.block_size, v.dtype, ctx.group)
        return *unstack(grad, v), *(None,) * 4


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce_gathered",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, float temperature, SymInt? block_size, bool needs_grad, str group)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then what `_backward` asks for first; `c` are the other processes' unit rows."""
    check_alike(v, v_prime, group=group, temperature=temperature, needs_grad=needs_grad)
    others = Gathering(stack(v, v_prime), group)
    u, length = unit_rows.forward(at_least_float32(stack(v, v_prime)))
    kept, kept_remote = _kept(u, keeps(needs_grad, block_size, v), group)
    options = _options(v.dtype, u, temperature, block_size, group)
    sums = torch.stack([p.sums() for p in among(u, options, kept)])
    c, _ = unit_rows.forward(others.wait().to(u.dtype))
    sums += torch.stack([p.sums() for p in _remote(u, c, options, kept_remote)])
    losses, weight, pull = from_sums(sums.view(u.shape[:-1]), cosine(u[:, 0], u[:, 1]), temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, length, c, kept, kept_remote


@_forward.register_fake
def _(
    v: Tensor, v_prime: Tensor, temperature: float, block_size: int | None, needs_grad: bool, group: str
) -> tuple[Tensor, ...]:
    u = fake_rows(v)
    k, _, n, d = u.shape
    return (
        u.new_empty(*v.shape[:-2], 2 * n),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        u,
        u.new_empty(*u.shape[:-1], 1),
        u.new_empty(k, 2 * n * (_processes(group) - 1), d),
        *_kept(u, keeps(needs_grad, block_size, v), group),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce_gathered_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor weight, Tensor pull, Tensor u, Tensor length, Tensor c, Tensor kept,"
    " Tensor kept_remote, float temperature, SymInt? block_size, ScalarType dtype, str group) -> Tensor",
)
def _backward(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    c: Tensor,
    kept: Tensor,
    kept_remote: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
    group: str,
) -> Tensor:
    """Gradient of the stacked views in the inputs' dtype, of the sum of all processes' losses."""
    g = grad_losses.reshape(weight.shape)
    a = g * weight
    others = Gathering(a, group)
    options, weights = _options(dtype, u, temperature, block_size, group), a.flatten(1)
    local = among(u, options, kept)
    grad = stack_of([p.gradients(w)[0] for p, w in zip(local, weights, strict=True)])
    remote = zip(_remote(u, c, options, kept_remote), weights, others.wait(), strict=True)
    grad = grad.add_(stack_of([p.gradients(w, b)[0] for p, w, b in remote])).view_as(u)
    pull_together(grad, g * -pull, u)
    return lower(unit_rows.backward(grad, u, length), dtype)


@_backward.register_fake
def _(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    c: Tensor,
    kept: Tensor,
    kept_remote: Tensor,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
    group: str,
) -> Tensor:
    return torch.empty_like(u, dtype=dtype)


def _plain(v: Tensor, v_prime: Tensor, temperature: float, group: str) -> Tensor:
    columns, columns_prime = all_gather(torch.stack((v, v_prime)), dim=-2, group=group).unbind(0)
    first = dist.get_rank(resolve(group)) * v.shape[-2]
    return plain(v, v_prime, temperature, (columns, columns_prime), first)


def _processes(group: str) -> int:
    return dist.get_world_size(resolve(group))


def _options(
    dtype: torch.dtype, u: Tensor, temperature: float, block_size: int | None, group: str
) -> Options:
    columns = 2 * u.shape[2] * _processes(group)
    return temperature, precision(dtype, columns, temperature, u.device), block_size


def _remote(u: Tensor, c: Tensor, options: Options, kept: Tensor) -> list[AnyPairs]:
    """The pairs of this process's rows and the others', for each loss: negatives all of them."""
    rows = u.flatten(1, 2)
    return [pairs_of(r, columns, (), *options, own) for r, columns, own in zip(rows, c, kept, strict=True)]


def _kept(u: Tensor, keep: bool, group: str) -> tuple[Tensor, Tensor]:
    """Memory for the exponentials of local and of remote pairs."""
    k, _, n, _ = u.shape
    widths = (2 * n, 2 * n * (_processes(group) - 1))
    sizes = [kept_bytes(2 * k, 2 * n, width) if keep else 0 for width in widths]
    local, remote = (u.new_empty(k, size, dtype=torch.uint8) for size in sizes)
    return local, remote
