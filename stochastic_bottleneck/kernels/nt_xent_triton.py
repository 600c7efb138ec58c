"""The row sums and gradients of `nt_xent_tiled` in Triton, for GPUs; each product is consumed in registers.

A program computes a block of rows against a split of the columns, block by block. Exponentials never reach memory:
only row sums, or the gradient of the rows, are written, once per split, and splits are added in a fixed order. If the
columns are the rows, every pair is computed twice, once from either side. That takes one product more than
`nt_xent_tiled` and saves what is scarcer on a GPU: memory traffic, and launches, of which there are two.

float32 rows are multiplied on tensor cores in three TF32 products (hi hi, hi lo, lo hi), which is float32 except for
the last bits; bfloat16 rows in one product. Exponentials and sums are float32.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator"
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

UNUSED_DIAGONAL = -(1 << 31)
"""A diagonal that contains no pair."""


class BlockSizes(NamedTuple):
    """Launch configuration of a kernel."""

    rows: int
    columns: int
    warps: int
    stages: int


# By the dtype of the products: the fastest on an H100 in benchmarks/results/h100/fused_blocks.csv.
SUMS_BLOCKS = {torch.bfloat16: BlockSizes(128, 128, 8, 3), torch.float32: BlockSizes(128, 64, 8, 2)}
GRADIENTS_BLOCKS = {torch.bfloat16: BlockSizes(64, 64, 4, 2), torch.float32: BlockSizes(128, 64, 8, 2)}
INPUT_PRECISION = {torch.bfloat16: "ieee", torch.float32: "tf32x3"}
"""`input_precision` of tl.dot; it has no effect on bfloat16."""


class TritonPairs:
    """Similarities of rows with columns, or of the rows with each other; see `TiledPairs`.

    Args:
        rows: unit rows in float32. Shape: (R, D), D at most `MAX_TRITON_WIDTH`
        columns: unit rows in float32; None for the rows themselves. Shape: (C, D)
        diagonals: offsets d, at most three, of the excluded pairs (i, i + d).
        temperature: tau.
        products: float32 or bfloat16.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        diagonals: tuple[int, ...],
        temperature: float,
        products: torch.dtype,
    ) -> None:
        self.rows = rows.to(products).contiguous()
        self.columns = self.rows if columns is None else columns.to(products).contiguous()
        self.symmetric = columns is None
        self.scale = math.log2(math.e) / temperature
        self.diagonals = diagonals

    def row_sums(self) -> Tensor:
        """Sum of each row's exponentials, in float32. Shape: (R,)."""
        blocks = SUMS_BLOCKS[self.rows.dtype]
        n_splits, split_size = _split_columns(self.rows, self.columns, blocks)
        sums = self.rows.new_empty(n_splits, len(self.rows), dtype=torch.float32)
        with torch.cuda.device_of(self.rows):  # Triton launches on the current device
            _row_sums_kernel[triton.cdiv(len(self.rows), blocks.rows), n_splits](
                *(self.rows, self.columns, sums, len(self.rows), len(self.columns), split_size, self.scale),
                *_pad_diagonals(self.diagonals),
                **_launch_options(self.rows, blocks),
            )
        return sums.sum(0) if n_splits > 1 else sums[0]

    def gradients(self, a: Tensor, b: Tensor | None = None, needs_grad_columns: bool = False) -> tuple[Tensor, Tensor]:
        """Gradients of the rows and of the columns in float32; in the symmetric case, both are their sum.

        Args:
            a: weight of each row. Shape: (R,)
            b: weight of each column, None for zeros; in the symmetric case `a` is used. Shape: (C,)
            needs_grad_columns: whether to compute the gradient of columns that are not the rows.

        Returns:
            Shape: (R, D) and (C, D), the second (0, D) if not computed.
        """
        if self.symmetric:
            grad_rows = _grad_rows(self.rows, self.rows, a, a, self.diagonals, self.scale)
            return grad_rows, grad_rows
        if b is None:
            b = a.new_zeros(len(self.columns))
        grad_rows = _grad_rows(self.rows, self.columns, a, b, self.diagonals, self.scale)
        if not needs_grad_columns:
            return grad_rows, grad_rows[:0]
        transposed = tuple(-d for d in self.diagonals)
        return grad_rows, _grad_rows(self.columns, self.rows, b, a, transposed, self.scale)


def _grad_rows(rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, diagonals: tuple[int, ...], scale: float) -> Tensor:
    if not len(rows):
        return rows.float()
    blocks = GRADIENTS_BLOCKS[rows.dtype]
    n_splits, split_size = _split_columns(rows, columns, blocks)
    grad_rows = rows.new_empty(n_splits, *rows.shape, dtype=torch.float32)
    with torch.cuda.device_of(rows):
        _grad_rows_kernel[triton.cdiv(len(rows), blocks.rows), n_splits](
            *(rows, columns, a.float().contiguous(), b.float().contiguous(), grad_rows),
            *(len(rows), len(columns), split_size, scale),
            *_pad_diagonals(diagonals),
            **_launch_options(rows, blocks),
        )
    return grad_rows.sum(0) if n_splits > 1 else grad_rows[0]


def _split_columns(rows: Tensor, columns: Tensor, blocks: BlockSizes) -> tuple[int, int]:
    """Number of splits that gives every multiprocessor work, and columns per split."""
    n_row_blocks = triton.cdiv(len(rows), blocks.rows)
    n_column_blocks = max(1, triton.cdiv(len(columns), blocks.columns))
    n_splits = min(n_column_blocks, max(1, 2 * _n_multiprocessors(rows.device) // n_row_blocks))
    split_size = triton.cdiv(n_column_blocks, n_splits) * blocks.columns
    return max(1, triton.cdiv(len(columns), split_size)), split_size


def _n_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _pad_diagonals(diagonals: tuple[int, ...]) -> tuple[int, ...]:
    return (*diagonals, *(UNUSED_DIAGONAL,) * (3 - len(diagonals)))


def _launch_options(rows: Tensor, blocks: BlockSizes) -> dict[str, Any]:
    return {
        "D": rows.shape[1],
        "PADDED_D": max(16, triton.next_power_of_2(rows.shape[1])),
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_COLUMNS": blocks.columns,
        "PRECISION": INPUT_PRECISION[rows.dtype],
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


# ---- kernels ---------------------------------------------------------------------------------------------------


@triton.jit
def _masked_exp(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Exponentials of a block, 0 for excluded pairs. r: Shape (BLOCK_ROWS, PADDED_D), c: (BLOCK_COLUMNS, PADDED_D)."""
    e = tl.exp2(tl.dot(r, tl.trans(c), input_precision=PRECISION) * scale)
    d = j[None, :] - i[:, None]
    included = (j[None, :] < n_columns) & (d != d0) & (d != d1) & (d != d2)
    return tl.where(included, e, 0.0)


@triton.jit
def _load_rows(x, i, n, D: tl.constexpr, PADDED_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows i of a matrix of n rows, zeros outside."""
    k = tl.arange(0, PADDED_D)
    return tl.load(x + i[:, None] * D + k[None, :], mask=(i[:, None] < n) & (k[None, :] < D), other=0.0)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def _row_sums_kernel(  # type: ignore[no-untyped-def]
    rows, columns, row_sums, n_rows, n_columns, split_size, scale, d0, d1, d2,
    D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    begin = tl.program_id(1) * split_size
    r = _load_rows(rows, i, n_rows, D, PADDED_D)
    sums = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(begin, tl.minimum(begin + split_size, n_columns), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        c = _load_rows(columns, j, n_columns, D, PADDED_D)
        sums += tl.sum(_masked_exp(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION), 1)
    tl.store(row_sums + tl.program_id(1) * n_rows + i, sums, mask=i < n_rows)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def _grad_rows_kernel(  # type: ignore[no-untyped-def]
    rows, columns, a, b, grad_rows, n_rows, n_columns, split_size, scale, d0, d1, d2,
    D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    begin = tl.program_id(1) * split_size
    r = _load_rows(rows, i, n_rows, D, PADDED_D)
    row_weight = tl.load(a + i, mask=i < n_rows, other=0.0)
    grad = tl.zeros([BLOCK_ROWS, PADDED_D], tl.float32)
    for start in range(begin, tl.minimum(begin + split_size, n_columns), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        c = _load_rows(columns, j, n_columns, D, PADDED_D)
        e = _masked_exp(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION)
        g = e * (row_weight[:, None] + tl.load(b + j, mask=j < n_columns, other=0.0)[None, :])
        grad = tl.dot(g.to(c.dtype), c, grad, input_precision=PRECISION)
    k = tl.arange(0, PADDED_D)
    offset = (tl.program_id(1) * n_rows + i[:, None]) * D + k[None, :]
    tl.store(grad_rows + offset, grad, mask=(i[:, None] < n_rows) & (k[None, :] < D))
