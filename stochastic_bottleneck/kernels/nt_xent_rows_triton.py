"""The functions of `nt_xent_rows` in Triton, each in one launch. Unit rows are in the dtype of the products.

A program has both rows of a few pairs in registers. Pair p = k N + i is row i of loss k in either view. In a stack of
Shape: (K, 2, N, ...), it is rows p + k N and p + (k + 1) N.
"""

# ruff: noqa: N803  (compile-time constants are in capitals)
# mypy: disable-error-code="misc, no-untyped-call, no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochastic_bottleneck.kernels.l2_normalize import MIN_NORM, smallest_scale

NUMBERS = 2048
"""Numbers of one view in a program, 16 a thread, unless a row alone has more."""
LOSSES = 256
"""Losses in a program."""


def unit_rows(v: Tensor, v_prime: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, norms, and the cosine of each row and its positive.

    Args:
        v: first views. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        dtype: of the unit rows; the others are float32.

    Returns:
        Shape: (K, 2, N, D), (K, 2, N, 1) and (K, 2, N)
    """
    stack = (v.shape[0] if v.ndim == 3 else 1, 2, v.shape[-2])
    u = v.new_empty(*stack, v.shape[-1], dtype=dtype)
    norm, positive = v.new_empty(*stack, 1, dtype=torch.float32), v.new_empty(stack, dtype=torch.float32)
    options = _pairs_of(u)
    with torch.cuda.device_of(v):  # Triton launches on the current device
        unit_rows_kernel[options.pop("grid")](
            *(v.contiguous(), v_prime.contiguous(), u, norm, positive),
            *(stack[0] * stack[2], stack[2], smallest_scale(torch.float32)),
            MIN_NORM=MIN_NORM,
            **options,
        )
    return u, norm, positive


def losses_from_sums(row_sums: Tensor, positive: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, weights and pulls; see `nt_xent_rows.losses_from_sums`."""
    losses, weight, pull = (torch.empty_like(positive) for _ in range(3))
    with torch.cuda.device_of(positive):
        losses_kernel[triton.cdiv(positive.numel(), LOSSES),](
            *(row_sums, positive, losses, weight, pull, positive.numel(), len(row_sums), 1 / temperature),
            TINY=torch.finfo(torch.float32).tiny,
            BLOCK=LOSSES,
        )
    return losses, weight, pull


def grad_views(
    grad_u: Tensor, grad_losses: Tensor, pull: Tensor, u: Tensor, norm: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of the stacked views; see `nt_xent_rows.grad_views`."""
    grad, options = torch.empty_like(u, dtype=dtype), _pairs_of(u)
    grad_losses = grad_losses.reshape(-1)  # of a mean, a view with stride 0
    with torch.cuda.device_of(u):
        grad_views_kernel[options.pop("grid")](
            *(grad_u, grad_losses, pull, u, norm, grad),
            *(u.shape[0] * u.shape[2], u.shape[2], u.numel(), len(grad_u), grad_losses.stride(0)),
            LIMIT=torch.finfo(dtype).max,
            **options,
        )
    return grad


def _pairs_of(u: Tensor) -> dict[str, Any]:
    """Grid and compile-time arguments of a kernel that holds the rows of a few pairs."""
    width = triton.next_power_of_2(u.shape[-1])
    n_pairs, block = u.shape[0] * u.shape[2], max(1, NUMBERS // width)
    warps = min(16, max(4, width // 512))
    return {
        "grid": (triton.cdiv(n_pairs, block),),
        "D": u.shape[-1],
        "WIDTH": width,
        "BLOCK": block,
        "num_warps": warps,
    }


@triton.jit
def _normalize(x, smallest_scale, MIN_NORM: tl.constexpr):
    """Unit rows and norms, as `l2_normalize_`."""
    x = x.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 1), smallest_scale)
    x = x / scale[:, None]
    norm = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), MIN_NORM)
    return x / norm[:, None], norm * scale


@triton.jit
def _numbers_of_rows(i, D: tl.constexpr, WIDTH: tl.constexpr):
    return i[:, None].to(tl.int64) * D + tl.arange(0, WIDTH)[None, :]


@triton.jit
def unit_rows_kernel(
    v, v_prime, u, norms, positives, n_pairs, n, smallest_scale,
    MIN_NORM: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalize both rows of a block of pairs, and multiply them."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = p + p // n * n
    inside = p < n_pairs
    mask = inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D)
    numbers = _numbers_of_rows(p, D, WIDTH)
    x, norm = _normalize(tl.load(v + numbers, mask=mask, other=0.0).to(tl.float32), smallest_scale, MIN_NORM)
    y, norm_prime = _normalize(
        tl.load(v_prime + numbers, mask=mask, other=0.0).to(tl.float32), smallest_scale, MIN_NORM
    )
    tl.store(u + _numbers_of_rows(i, D, WIDTH), x.to(u.dtype.element_ty), mask=mask)
    tl.store(u + _numbers_of_rows(i + n, D, WIDTH), y.to(u.dtype.element_ty), mask=mask)
    tl.store(norms + i, norm, mask=inside)
    tl.store(norms + i + n, norm_prime, mask=inside)
    positive = tl.sum(x * y, 1)
    tl.store(positives + i, positive, mask=inside)
    tl.store(positives + i + n, positive, mask=inside)


@triton.jit
def losses_kernel(
    row_sums, positives, losses, row_weights, pulls, n_rows, n_splits, inverse_temperature,
    TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the splits of a block of rows' sums, and compute log(1 + exp(x)) and its derivative."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n_rows
    n = tl.zeros([BLOCK], tl.float32)
    for _ in range(n_splits):
        n += tl.load(row_sums + i, mask=mask, other=1.0)
        row_sums += n_rows
    x = tl.log(n) - tl.load(positives + i, mask=mask, other=0.0) * inverse_temperature
    e = tl.exp(-tl.abs(x))
    # log(1 + e), of which 1 + e keeps few bits of a small e: the error of the sum cancels in the quotient.
    log1p = tl.where(1 + e == 1, e, tl.log(1 + e) * (e / (1 + e - 1)))
    pull = tl.where(x < 0, e, 1.0) / (1 + e) * inverse_temperature
    tl.store(losses + i, tl.maximum(x, 0.0) + log1p, mask=mask)
    tl.store(row_weights + i, pull / tl.maximum(n, TINY), mask=mask)
    tl.store(pulls + i, pull, mask=mask)


@triton.jit
def grad_views_kernel(
    grad_u, grad_losses, pulls, u, norms, grad_views, n_pairs, n, n_numbers, n_splits, stride,
    LIMIT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the splits of the gradient of a block of pairs' unit rows and that by their positives; undo the norms."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = p + p // n * n
    inside = p < n_pairs
    mask = inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D)
    numbers, numbers_prime = _numbers_of_rows(i, D, WIDTH), _numbers_of_rows(i + n, D, WIDTH)
    q = tl.load(grad_losses + i * stride, mask=inside, other=0.0) * tl.load(pulls + i, mask=inside, other=0.0)
    g_prime = tl.load(grad_losses + (i + n) * stride, mask=inside, other=0.0)
    q += g_prime * tl.load(pulls + i + n, mask=inside, other=0.0)
    x = tl.load(u + numbers, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(u + numbers_prime, mask=mask, other=0.0).to(tl.float32)
    grad_x, grad_y = -q[:, None] * y, -q[:, None] * x
    for _ in range(n_splits):
        grad_x += tl.load(grad_u + numbers, mask=mask, other=0.0)
        grad_y += tl.load(grad_u + numbers_prime, mask=mask, other=0.0)
        grad_u += n_numbers
    grad_x = (grad_x - x * tl.sum(grad_x * x, 1)[:, None]) / tl.load(norms + i, mask=inside, other=1.0)[:, None]
    grad_y = (grad_y - y * tl.sum(grad_y * y, 1)[:, None]) / tl.load(norms + i + n, mask=inside, other=1.0)[:, None]
    grad_x = tl.clamp(grad_x, -LIMIT, LIMIT, tl.PropagateNan.ALL)
    grad_y = tl.clamp(grad_y, -LIMIT, LIMIT, tl.PropagateNan.ALL)
    tl.store(grad_views + numbers, grad_x.to(grad_views.dtype.element_ty), mask=mask)
    tl.store(grad_views + numbers_prime, grad_y.to(grad_views.dtype.element_ty), mask=mask)
