"""NT-Xent without the matrix of all pairs, as one operator to autograd and to the compiler.

With n_i and x_i as in `info_nce` and g_i the gradient of loss_i,

    dL/ds_ik = g_i sigmoid(x_i) / n_i exp(s_ik)  for a negative,        dL/ds_ip(i) = -g_i sigmoid(x_i)

so that with a_i = g_i sigmoid(x_i) / (n_i tau) and q_i = -g_i sigmoid(x_i) / tau

    dL/du_i = sum_k exp(s_ik) (a_i + a_k) u_k  +  (q_i + q_p(i)) u_p(i)

where the columns are the rows. Where they are other tensors, the terms in a_k and q_p(i) are theirs.

Unit rows bound every logit by 1 / tau, so the exponentials need no running maximum: down to a temperature of
`COLDEST_IN_FLOAT32`, float32 holds them and their sums with room for any number of rows and any sensible g. Below
it the exponentials are float64. Half precision inputs are normalised and summed in float32. From
`ROWS_FOR_BFLOAT16` rows on, bfloat16 inputs are multiplied in bfloat16 where the hardware is faster at that. Three
roundings of relative size 2^-9 then reach a logit (both rows, their product) and one its exponential, so that a
loss is off by at most 2^-9 (3 / tau + 1), and by far less in practice, as the roundings of many pairs average out.
At temperatures below `COLDEST_IN_BFLOAT16` that bound says little, and float32 is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def info_nce(
    v: Tensor,
    v_prime: Tensor,
    columns: Tensor | None,
    columns_prime: Tensor | None,
    offset: int,
    temperature: float,
    block_size: int | None,
) -> Tensor:
    """`info_nce.plain` in tiles of at most `block_size` rows and columns, None to fit the processor's cache."""
    inputs = (v, v_prime, columns, columns_prime)
    keep = keeps(block_size, *inputs)
    losses: Tensor = _InfoNCE.apply(*inputs, offset, temperature, block_size, keep)[0]
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
        *views, ctx.offset, ctx.temperature, ctx.block_size, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*views, *output[1:])
        ctx.set_materialize_grads(False)  # zeros as large as all that is kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        views, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        options = (None,) * 4
        if grads[0] is None:
            return (None,) * 8
        if torch.is_grad_enabled():  # to be differentiated again
            formula = partial(plain, offset=ctx.offset, temperature=ctx.temperature)
            return *again(formula, views, grads[0]), *options
        arguments = (ctx.offset, ctx.temperature, ctx.block_size, views[0].dtype)
        grad, grad_c = _backward(grads[0], *saved, *arguments)
        of_columns = (None, None) if views[2] is None else unstack(grad_c, views[2])
        return *unstack(grad, views[0]), *of_columns, *options


# ---- the operators: both views stacked, rows of Shape: (K, 2, N, D), columns (K, 2, M, D), for K losses --------


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce",
    mutates_args=(),
    schema="(Tensor v, Tensor v_prime, Tensor? columns, Tensor? columns_prime, SymInt offset, float temperature,"
    " SymInt? block_size, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    v: Tensor,
    v_prime: Tensor,
    columns: Tensor | None,
    columns_prime: Tensor | None,
    offset: int,
    temperature: float,
    block_size: int | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, then what `_backward` asks for first."""
    u, length = unit_rows.forward(at_least_float32(stack(v, v_prime)))
    c, c_length = u.new_empty(0), u.new_empty(0)
    if columns is not None and columns_prime is not None:
        c, c_length = unit_rows.forward(at_least_float32(stack(columns, columns_prime)))
    kept = _kept(v, columns, keep)
    pairs = _pairs(v.dtype, u, c, kept, offset, temperature, block_size)
    sums = torch.stack([p.sums() for p in pairs]).view(u.shape[:-1])
    positive = cosine(u[:, 0], u[:, 1]) if columns is None else (u * _opposite(u, c, offset)).sum(dim=-1)
    losses, weight, pull = from_sums(sums, positive, temperature)
    return losses.view(*v.shape[:-2], -1), weight, pull, u, length, c, c_length, kept


@_forward.register_fake
def _(
    v: Tensor,
    v_prime: Tensor,
    columns: Tensor | None,
    columns_prime: Tensor | None,
    offset: int,
    temperature: float,
    block_size: int | None,
    keep: bool,
) -> tuple[Tensor, ...]:
    u = fake_rows(v)
    c = u.new_empty(0) if columns is None else fake_rows(columns)
    return (
        u.new_empty(*v.shape[:-2], 2 * v.shape[-2]),
        u.new_empty(u.shape[:-1], dtype=sums_dtype(v.dtype, temperature)),
        u.new_empty(u.shape[:-1]),
        u,
        u.new_empty(*u.shape[:-1], 1),
        c,
        u.new_empty(0) if columns is None else u.new_empty(*c.shape[:-1], 1),
        _kept(v, columns, keep),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::info_nce_backward",
    mutates_args=(),
    schema="(Tensor grad_losses, Tensor weight, Tensor pull, Tensor u, Tensor length, Tensor c, Tensor c_length,"
    " Tensor kept, SymInt offset, float temperature, SymInt? block_size, ScalarType dtype) -> (Tensor, Tensor)",
)
def _backward(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    c: Tensor,
    c_length: Tensor,
    kept: Tensor,
    offset: int,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gradients of the stacked views and of the stacked columns, in the inputs' dtype."""
    g = grad_losses.reshape(weight.shape)
    a, q = g * weight, g * -pull
    pairs = _pairs(dtype, u, c, kept, offset, temperature, block_size)
    n = u.shape[2]
    if not c.numel():
        grad = stack_of([p.gradients(w.flatten())[0] for p, w in zip(pairs, a, strict=True)]).view_as(u)
        pull_together(grad, q, u)
        return lower(unit_rows.backward(grad, u, length), dtype), torch.empty_like(c, dtype=dtype)
    grad, grad_c = torch.empty_like(u), torch.zeros_like(c)
    for i, p in enumerate(pairs):
        loss, view = divmod(i, 2)
        grad[loss, view], of_columns = p.gradients(a[loss, view], of_columns=True)
        grad_c[loss] += of_columns.view_as(grad_c[loss])
    grad.addcmul_(q[..., None], _opposite(u, c, offset))
    grad_c[:, :, offset : offset + n] += (q[..., None] * u).flip(1)
    return (
        lower(unit_rows.backward(grad, u, length), dtype),
        lower(unit_rows.backward(grad_c, c, c_length), dtype),
    )


@_backward.register_fake
def _(
    grad_losses: Tensor,
    weight: Tensor,
    pull: Tensor,
    u: Tensor,
    length: Tensor,
    c: Tensor,
    c_length: Tensor,
    kept: Tensor,
    offset: int,
    temperature: float,
    block_size: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u, dtype=dtype), torch.empty_like(c, dtype=dtype)


# ---- what the operators share ----------------------------------------------------------------------------------


def keeps(block_size: int | None, *inputs: Tensor | None) -> bool:
    """Whether exponentials are kept for a backward pass; who sets a block size wants little memory instead."""
    given = [x for x in inputs if x is not None]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return differentiable and block_size is None and not fuses(given[0])


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


def again(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """The gradient of `formula`, differentiable itself."""
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def among(u: Tensor, options: Options, kept: Tensor) -> list[AnyPairs]:
    """The pairs among the rows of each loss. Shape: (K, 2, N, D)."""
    n = u.shape[2]
    return [
        pairs_of(x, None, (0, n, -n), *options, own) for x, own in zip(u.flatten(1, 2), kept, strict=True)
    ]


def _opposite(u: Tensor, c: Tensor, offset: int) -> Tensor:
    """Each row's other view among the columns."""
    return c[:, :, offset : offset + u.shape[2]].flip(1)


def _pairs(
    dtype: torch.dtype,
    u: Tensor,
    c: Tensor,
    kept: Tensor,
    offset: int,
    temperature: float,
    block_size: int | None,
) -> list[AnyPairs]:
    """Of each loss all rows; with columns, of each loss and view its rows and all columns."""
    n, d = u.shape[-2:]
    m = c.shape[2] if c.numel() else n
    options = (temperature, precision(dtype, 2 * m, temperature, u.device), block_size)
    if not c.numel():
        return among(u, options, kept)
    everything = c.view(-1, 2 * m, d)
    return [
        pairs_of(rows, everything[i // 2], (offset, offset + m), *options, own)
        for i, (rows, own) in enumerate(zip(u.view(-1, n, d), kept, strict=True))
    ]


def _kept(v: Tensor, columns: Tensor | None, keep: bool) -> Tensor:
    """Memory for exponentials, one piece for each item of `_pairs`."""
    k, n = v.shape[0] if v.ndim == 3 else 1, v.shape[-2]
    groups, rows, width = (k, 2 * n, 2 * n) if columns is None else (2 * k, n, 2 * columns.shape[-2])
    return v.new_empty(groups, kept_bytes(groups, rows, width) if keep else 0, dtype=torch.uint8)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster one to multiply; no where torch does not say."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
