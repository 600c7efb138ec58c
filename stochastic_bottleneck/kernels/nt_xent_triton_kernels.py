"""Triton kernels of `nt_xent_triton`: exponentials of similarities, consumed in registers or written once as weights.

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
