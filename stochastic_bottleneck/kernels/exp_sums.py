"""Sums of exponentiated similarities of rows with columns, differentiable, without the matrix of all pairs.

With the excluded pairs (those on `diagonals`) left out of every sum,

    E_ij = exp(r_i . c_j / tau),        row_sums_i = sum_j E_ij,        column_sums_j = sum_i E_ij

The gradients a_i and b_j of these sums give G_ij = E_ij (a_i + b_j), and

    grad r_i = 1 / tau sum_j G_ij c_j,        grad c_j = 1 / tau sum_i G_ij r_i

which is what `nt_xent_tiled` and `nt_xent_triton` compute. A loss is then a function of the sums, whose gradient
autograd knows.

A temperature that is a tensor divides the rows instead, and tau above is 1. The logits are the same, and so is the
bound 1 / tau of their size. Nothing waits for the device, and the gradient of the temperature is that of a division:

    sum_i (grad r_i / tau) . r_i (-1)  =  -1 / tau^2 sum_ij G_ij r_i . c_j  =  sum_ij dL/ds_ij ds_ij/dtau

If the columns are the rows, they are divided by sqrt(tau), since both sides of a pair are.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochastic_bottleneck.kernels.nt_xent_dispatch import Pairs, choose_precision, make_pairs, sums_dtype
from stochastic_bottleneck.kernels.nt_xent_op import caches_exponentials, stack_losses
from stochastic_bottleneck.kernels.nt_xent_tiled import cache_bytes


class _ClampFromBelow(torch.autograd.Function):
    """A clamp with a gradient at the bound if a step along it leads back inside; with none, a parameter would stay."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, least: float) -> Tensor:
        return x.clamp_min(least)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.least = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0].masked_fill((x <= ctx.least) & (grads[0] > 0), 0), None


class Options(NamedTuple):
    """What all sums of a loss have in common."""

    temperature: float | Tensor
    least_temperature: float
    """Lower bound of the temperature, by which the precision is chosen."""
    dtype: torch.dtype
    """Of the inputs, before rows were normalized in float32 or better."""
    block_size: int | None


def make_options(temperature: float | Tensor, min_temperature: float, v: Tensor, block_size: int | None) -> Options:
    """Options for the rows `v`; a tensor's values below `min_temperature` count as that."""
    if not isinstance(temperature, Tensor):
        return Options(temperature, temperature, v.dtype, block_size)
    # Of the dtype of the normalized rows.
    tau: Tensor = _ClampFromBelow.apply(temperature.to(torch.promote_types(v.dtype, torch.float32)), min_temperature)
    least = min_temperature
    if tau.device.type == "cpu" and not torch.compiler.is_compiling():
        with suppress(RuntimeError):  # of several under torch.vmap
            least = max(least, tau.item())  # costs nothing there, and allows a lower precision
    return Options(tau, least, v.dtype, block_size)


def exp_sums(
    rows: Tensor, columns: Tensor | None, diagonals: tuple[int, ...], options: Options, both: bool = False
) -> tuple[Tensor, Tensor]:
    """Row sums and, if `both`, column sums.

    Args:
        rows: unit rows, float32 or float64. Shape: (R, D), or (K, R, D) for K independent matrices
        columns: unit rows in the same dtype; None for the rows themselves. Shape: (C, D) or (K, C, D)
        diagonals: offsets d, at most three, of the excluded pairs (i, i + d).
        options: see `Options`.
        both: whether to compute column sums too, of columns that are not the rows.

    Returns:
        Sums in float64 for a `least_temperature` that needs it, otherwise in the dtype of the rows. Shape: (R,) or
        (K, R); and (C,) or (K, C), or (0,) or (K, 0) if not computed.
    """
    temperature = options.temperature
    if isinstance(temperature, Tensor):
        rows, temperature = rows / (temperature.sqrt() if columns is None else temperature), 1.0
    stacked = [x if x is None or x.ndim == 3 else x.unsqueeze(0) for x in (rows, columns)]
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in stacked)
    cache = caches_exponentials(needs_grad, options.block_size, rows)
    sums: tuple[Tensor, ...] = _ExpSums.apply(*stacked, diagonals, temperature, *options[1:], both, cache)
    row_sums, column_sums = sums[:2]
    return (row_sums, column_sums) if rows.ndim == 3 else (row_sums[0], column_sums[0])


class _ExpSums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _exp_sums_forward(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rows, columns, *ctx.options, ctx.both, _ = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(rows, columns, output[2])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the cache

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, columns, cache = ctx.saved_tensors
        a, b = grads[0], grads[1] if ctx.both else None  # compiled, it is zeros instead of None
        nothing = (None,) * 7
        if a is None and b is None:
            return None, None, *nothing
        if torch.is_grad_enabled():  # with create_graph=True
            diagonals, temperature = ctx.options[:2]
            formula = partial(_differentiable_sum, a=a, b=b, diagonals=diagonals, temperature=temperature)
            if columns is None:
                return *torch.func.vjp(formula, rows)[1](rows.new_ones(())), None, *nothing
            return *torch.func.vjp(formula, rows, columns)[1](rows.new_ones(())), *nothing
        if a is None:
            a = rows.new_zeros(rows.shape[:-1])
        needs_columns = columns is not None and ctx.needs_input_grad[1]
        grad_rows, grad_columns = _exp_sums_backward(a, b, rows, columns, cache, *ctx.options, needs_columns)
        return grad_rows, grad_columns if needs_columns else None, *nothing


def _differentiable_sum(
    rows: Tensor,
    columns: Tensor | None = None,
    *,
    a: Tensor | None,
    b: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """Weighted sum of all sums, from the matrix of all pairs. Shape: ()."""
    columns = rows if columns is None else columns
    weights = a if a is not None else b
    dtype = rows.dtype if weights is None else weights.dtype  # that of the sums
    e = (rows @ columns.mT / temperature).to(dtype).exp()
    offset = torch.arange(e.shape[2], device=e.device) - torch.arange(e.shape[1], device=e.device)[:, None]
    for d in diagonals:
        e = e.masked_fill(offset == d, 0)
    total = e.new_zeros(()) if a is None else (e.sum(2) * a).sum()
    return total if b is None else total + (e.sum(1) * b).sum()


# ---- operators: Shape (K, R, D) and (K, C, D) --------------------------------------------------------------------


@torch.library.custom_op(
    "stochastic_bottleneck::exp_sums",
    mutates_args=(),
    schema="(Tensor rows, Tensor? columns, SymInt[] diagonals, float temperature, float least_temperature,"
    " ScalarType dtype, SymInt? block_size, bool both, bool cache) -> (Tensor, Tensor, Tensor)",
)
def _exp_sums_forward(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
    least_temperature: float,
    dtype: torch.dtype,
    block_size: int | None,
    both: bool,
    cache: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums, column sums, and exponentials for `_exp_sums_backward`."""
    cached_exponentials = _new_cache(rows, columns, cache)
    pairs = _pairs(rows, columns, diagonals, (temperature, least_temperature, dtype, block_size), cached_exponentials)
    if both and columns is not None:
        row_sums, column_sums = (
            stack_losses([*x]) for x in zip(*(p.row_and_column_sums() for p in pairs), strict=True)
        )
        return row_sums, column_sums, cached_exponentials
    row_sums = stack_losses([p.row_sums() for p in pairs])
    return row_sums, row_sums.new_empty(len(rows), 0), cached_exponentials


@_exp_sums_forward.register_fake
def _(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
    least_temperature: float,
    dtype: torch.dtype,
    block_size: int | None,
    both: bool,
    cache: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sums = sums_dtype(dtype, least_temperature)
    return (
        rows.new_empty(rows.shape[:2], dtype=sums),
        rows.new_empty(rows.shape[0], columns.shape[1] if both and columns is not None else 0, dtype=sums),
        _new_cache(rows, columns, cache),
    )


@torch.library.custom_op(
    "stochastic_bottleneck::exp_sums_backward",
    mutates_args=(),
    schema="(Tensor a, Tensor? b, Tensor rows, Tensor? columns, Tensor cached_exponentials, SymInt[] diagonals,"
    " float temperature, float least_temperature, ScalarType dtype, SymInt? block_size, bool needs_columns)"
    " -> (Tensor, Tensor)",
)
def _exp_sums_backward(
    a: Tensor,
    b: Tensor | None,
    rows: Tensor,
    columns: Tensor | None,
    cached_exponentials: Tensor,
    diagonals: tuple[int, ...],
    temperature: float,
    least_temperature: float,
    dtype: torch.dtype,
    block_size: int | None,
    needs_columns: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the columns, the second empty if not needed."""
    options = (temperature, least_temperature, dtype, block_size)
    pairs = _pairs(rows, columns, diagonals, options, cached_exponentials)
    a = a / temperature
    b = None if b is None else b / temperature
    grads = [p.gradients(a[k], None if b is None else b[k], needs_columns) for k, p in enumerate(pairs)]
    grad_rows = stack_losses([grad for grad, _ in grads])
    if columns is None or not needs_columns:  # the symmetric case returns one tensor twice
        return grad_rows, grad_rows.new_empty(len(rows), 0, rows.shape[2])
    return grad_rows, stack_losses([grad for _, grad in grads])


@_exp_sums_backward.register_fake
def _(a: Tensor, b: Tensor | None, rows: Tensor, columns: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    n_columns = columns.shape[1] if columns is not None and others[-1] else 0
    return torch.empty_like(rows), rows.new_empty(rows.shape[0], n_columns, rows.shape[2])


def _pairs(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    options: tuple[float, float, torch.dtype, int | None],
    cached_exponentials: Tensor,
) -> list[Pairs]:
    """The pairs of each of K matrices."""
    temperature, least_temperature, dtype, block_size = options
    n_columns = (rows if columns is None else columns).shape[1]
    precision = choose_precision(dtype, n_columns, least_temperature, rows.device)
    return make_pairs(rows, columns, tuple(diagonals), temperature, precision, block_size, cached_exponentials)


def _new_cache(rows: Tensor, columns: Tensor | None, cache: bool) -> Tensor:
    """Memory for the cached exponentials of each matrix."""
    k, n_rows = rows.shape[:2]
    n_columns = n_rows if columns is None else columns.shape[1]
    return rows.new_empty(k, cache_bytes(k, n_rows, n_columns) if cache else 0, dtype=torch.uint8)
