"""Triton kernels of `nt_xent_triton`: exponentials of similarities, consumed in registers or written once as weights.

At the end those that take the pairs of positives: unit rows, losses from the sums, and the gradient of the views.

All matrices have contiguous rows of width D, except where strides are passed. A product takes WIDTH of the D numbers of
a row at a time; with WIDTH >= D, the rows of a program are loaded once. Sums are float32, in an order that the block
sizes fix: there are no atomic operations, so that a launch gives the same bits every time.
"""

# ruff: noqa: N803  (compile-time constants are in capitals)
# mypy: disable-error-code="misc, no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(x, i, k, n, D: tl.constexpr, WIDTH: tl.constexpr):
    """WIDTH numbers k of rows i of a matrix of n rows, zeros outside."""
    mask = i[:, None] < n
    if D % WIDTH != 0:
        mask = mask & (k[None, :] < D)
    return tl.load(x + i[:, None].to(tl.int64) * D + k[None, :], mask=mask, other=0.0)


@triton.jit
def _similarities(
    rows, columns, i, j, n_rows, n_columns,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of rows i with columns j, WIDTH numbers of each at a time."""
    s = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, D, WIDTH):
        k = start + tl.arange(0, WIDTH)
        r = _load_rows(rows, i, k, n_rows, D, WIDTH)
        c = _load_rows(columns, j, k, n_columns, D, WIDTH)
        s = tl.dot(r, tl.trans(c), s, input_precision=PRECISION)
    return s


@triton.jit
def _masked_exp(s, i, j, n_columns, scale, d0, d1, d2):
    """Exponentials of a block of similarities, 0 for excluded pairs."""
    d = j[None, :] - i[:, None]
    included = (j[None, :] < n_columns) & (d != d0) & (d != d1) & (d != d2)
    return tl.where(included, tl.exp2(s * scale), 0.0)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def row_sums_kernel(
    rows, columns, row_sums, n_rows, n_columns, split_size, scale, d0, d1, d2,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of the exponentials of a block of rows over a split of the columns."""
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    begin = tl.program_id(1) * split_size
    k = tl.arange(0, WIDTH)
    if D <= WIDTH:
        r = _load_rows(rows, i, k, n_rows, D, WIDTH)
    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(begin, tl.minimum(begin + split_size, n_columns), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        if D <= WIDTH:
            c = _load_rows(columns, j, k, n_columns, D, WIDTH)
            s = tl.dot(r, tl.trans(c), input_precision=PRECISION)
        else:
            s = _similarities(rows, columns, i, j, n_rows, n_columns, D, WIDTH, BLOCK_ROWS, BLOCK_COLUMNS, PRECISION)
        sums += tl.sum(_masked_exp(s, i, j, n_columns, scale, d0, d1, d2), 1)
    tl.store(row_sums + tl.program_id(1) * n_rows + i, sums, mask=i < n_rows)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def grad_rows_kernel(
    rows, columns, a, b, grad_rows, n_rows, n_columns, split_size, scale, d0, d1, d2,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of rows, D <= WIDTH, from a split of the columns."""
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    begin = tl.program_id(1) * split_size
    k = tl.arange(0, WIDTH)
    r = _load_rows(rows, i, k, n_rows, D, WIDTH)
    row_weight = tl.load(a + i, mask=i < n_rows, other=0.0)
    grad = tl.zeros([BLOCK_ROWS, WIDTH], tl.float32)
    for start in range(begin, tl.minimum(begin + split_size, n_columns), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        c = _load_rows(columns, j, k, n_columns, D, WIDTH)
        s = tl.dot(r, tl.trans(c), input_precision=PRECISION)
        e = _masked_exp(s, i, j, n_columns, scale, d0, d1, d2)
        g = e * (row_weight[:, None] + tl.load(b + j, mask=j < n_columns, other=0.0)[None, :])
        grad = tl.dot(g.to(c.dtype), c, grad, input_precision=PRECISION)
    i = tl.program_id(1).to(tl.int64) * n_rows + i
    n_valid = (tl.program_id(1) + 1).to(tl.int64) * n_rows
    tl.store(grad_rows + i[:, None] * D + k[None, :], grad, mask=(i[:, None] < n_valid) & (k[None, :] < D))


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def weights_kernel(
    rows, columns, a, b, weights, n_rows, n_columns, stride, scale, d0, d1, d2,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of G, E_ij (a_i + b_j), written to memory. weights: Shape (n_rows, n_columns), rows `stride` apart."""
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    s = _similarities(rows, columns, i, j, n_rows, n_columns, D, WIDTH, BLOCK_ROWS, BLOCK_COLUMNS, PRECISION)
    e = _masked_exp(s, i, j, n_columns, scale, d0, d1, d2)
    row_weight = tl.load(a + i, mask=i < n_rows, other=0.0)
    g = e * (row_weight[:, None] + tl.load(b + j, mask=j < n_columns, other=0.0)[None, :])
    mask = (i[:, None] < n_rows) & (j[None, :] < n_columns)
    tl.store(weights + i[:, None] * stride + j[None, :], g.to(weights.dtype.element_ty), mask=mask)


@triton.jit
def add_product_kernel(
    total, weights, columns, n_rows, n_columns, row_stride, column_stride,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add weights @ columns to `total`: a block of rows and WIDTH of the D numbers of each. weights: any strides."""
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    addresses = total + i[:, None].to(tl.int64) * D + k[None, :]
    mask = (i[:, None] < n_rows) & (k[None, :] < D)
    product = tl.zeros([BLOCK_ROWS, WIDTH], tl.float32)
    for start in range(0, n_columns, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        inside = (i[:, None] < n_rows) & (j[None, :] < n_columns)
        g = tl.load(weights + i[:, None] * row_stride + j[None, :] * column_stride, mask=inside, other=0.0)
        product = tl.dot(g, _load_rows(columns, j, k, n_columns, D, WIDTH), product, input_precision=PRECISION)
    tl.store(addresses, tl.load(addresses, mask=mask, other=0.0) + product, mask=mask)


# ---- the pairs of positives ----------------------------------------------------------------------------------------
# A program has both rows of a few pairs in registers. Pair p = k N + i is row i of loss k in either view; in a stack of
# Shape: (K, 2, N, ...), these are rows p + k N and p + (k + 1) N.


@triton.jit
def _normalize(x, smallest_scale, MIN_NORM: tl.constexpr):
    """Unit rows and norms, as `l2_normalize_`."""
    x = x.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 1), smallest_scale)
    x = x / scale[:, None]
    norm = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), MIN_NORM)
    return x / norm[:, None], norm * scale


@triton.jit
def _block_of_pairs(n_pairs, n, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Pairs of a program, their rows of the first view, and which pairs and numbers exist."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < n_pairs
    return p, p + p // n * n, inside, inside[:, None] & (tl.arange(0, WIDTH)[None, :] < D)


@triton.jit
def _row_offsets(i, D: tl.constexpr, WIDTH: tl.constexpr):
    return i[:, None].to(tl.int64) * D + tl.arange(0, WIDTH)[None, :]


@triton.jit
def unit_rows_kernel(
    v, v_prime, u, norms, positives, n_pairs, n, smallest_scale,
    MIN_NORM: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalize both rows of a block of pairs, and multiply them."""
    p, i, inside, mask = _block_of_pairs(n_pairs, n, D, WIDTH, BLOCK)
    offsets = _row_offsets(p, D, WIDTH)
    x, norm = _normalize(tl.load(v + offsets, mask=mask, other=0.0).to(tl.float32), smallest_scale, MIN_NORM)
    y, norm_prime = _normalize(
        tl.load(v_prime + offsets, mask=mask, other=0.0).to(tl.float32), smallest_scale, MIN_NORM
    )
    tl.store(u + _row_offsets(i, D, WIDTH), x.to(u.dtype.element_ty), mask=mask)
    tl.store(u + _row_offsets(i + n, D, WIDTH), y.to(u.dtype.element_ty), mask=mask)
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
    _, i, inside, mask = _block_of_pairs(n_pairs, n, D, WIDTH, BLOCK)
    offsets, offsets_prime = _row_offsets(i, D, WIDTH), _row_offsets(i + n, D, WIDTH)
    q = tl.load(grad_losses + i * stride, mask=inside, other=0.0) * tl.load(pulls + i, mask=inside, other=0.0)
    g_prime = tl.load(grad_losses + (i + n) * stride, mask=inside, other=0.0)
    q += g_prime * tl.load(pulls + i + n, mask=inside, other=0.0)
    x = tl.load(u + offsets, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(u + offsets_prime, mask=mask, other=0.0).to(tl.float32)
    grad_x, grad_y = -q[:, None] * y, -q[:, None] * x
    for _ in range(n_splits):
        grad_x += tl.load(grad_u + offsets, mask=mask, other=0.0)
        grad_y += tl.load(grad_u + offsets_prime, mask=mask, other=0.0)
        grad_u += n_numbers
    grad_x = (grad_x - x * tl.sum(grad_x * x, 1)[:, None]) / tl.load(norms + i, mask=inside, other=1.0)[:, None]
    grad_y = (grad_y - y * tl.sum(grad_y * y, 1)[:, None]) / tl.load(norms + i + n, mask=inside, other=1.0)[:, None]
    grad_x = tl.clamp(grad_x, -LIMIT, LIMIT, tl.PropagateNan.ALL)
    grad_y = tl.clamp(grad_y, -LIMIT, LIMIT, tl.PropagateNan.ALL)
    tl.store(grad_views + offsets, grad_x.to(grad_views.dtype.element_ty), mask=mask)
    tl.store(grad_views + offsets_prime, grad_y.to(grad_views.dtype.element_ty), mask=mask)
