"""What `tiles` computes, on a GPU: each product is used in the registers that it is made in.

A program takes a block of rows past a share of the columns, a block at a time. Exponentials never reach memory: only
the sums, or the gradient of the rows, are written, one for each share, and the shares are added up in a fixed order.
Where the columns are the rows, every pair is computed twice, once from either side. That costs a product more than
`tiles` needs, and saves what a GPU has less of: memory traffic, and launches, of which there are two.

float32 rows are multiplied on tensor cores in three products of TF32 (hi hi, hi lo, lo hi), which is float32 but for
the last bits; bfloat16 rows in one product. Exponentials and sums are float32 either way.
"""

# mypy: disable-error-code="misc, no-untyped-call, untyped-decorator"
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NOWHERE = -(1 << 31)
"""A diagonal with no pair on it."""


class Blocks(NamedTuple):
    """How a kernel is launched."""

    rows: int
    columns: int
    warps: int
    stages: int


# By the dtype of the products. The fastest on an H100 of those in benchmarks/results/h100/fused_blocks.csv.
SUMS = {torch.bfloat16: Blocks(128, 128, 8, 3), torch.float32: Blocks(128, 64, 8, 2)}
GRADIENTS = {torch.bfloat16: Blocks(64, 64, 4, 2), torch.float32: Blocks(128, 64, 8, 2)}


PRODUCTS = {torch.bfloat16: "ieee", torch.float32: "tf32x3"}
"""Triton's names of how these are multiplied; "ieee" says of bfloat16 no more than that."""


class FusedPairs:
    """Rows against columns, or the rows against themselves; `tiles.Pairs` says what is computed.

    Args:
        rows: unit rows in float32. Shape: (R, D), D at most `WIDEST`
        columns: unit rows in float32; None for the rows themselves. Shape: (C, D)
        diagonals: at most three; pairs (i, i + d) are left out for every d in it.
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

    def sums(self) -> Tensor:
        """Sum of each row's exponentials, in float32. Shape: (R,)."""
        blocks = SUMS[self.rows.dtype]
        shares, per_share = _shares(self.rows, self.columns, blocks)
        total = self.rows.new_empty(shares, len(self.rows), dtype=torch.float32)
        with torch.cuda.device_of(self.rows):  # Triton launches on the current device
            _sums[triton.cdiv(len(self.rows), blocks.rows), shares](
                *(self.rows, self.columns, total, len(self.rows), len(self.columns), per_share, self.scale),
                *_three(self.diagonals),
                **_constants(self.rows, blocks),
            )
        return total.sum(0) if shares > 1 else total[0]

    def gradients(
        self, a: Tensor, b: Tensor | None = None, of_columns: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the rows and the columns, float32; in the symmetric case their sum, once.

        Args:
            a: weight of each row. Shape: (R,)
            b: weight of each column, None for zeros; in the symmetric case it is `a`. Shape: (C,)
            of_columns: whether the gradient of columns that are not the rows is wanted.

        Returns:
            Shape: (R, D) and (C, D), the second (0, D) where not wanted.
        """
        if self.symmetric:
            grad = self._gradient(self.rows, self.rows, a, a, self.diagonals)
            return grad, grad
        b = a.new_zeros(len(self.columns)) if b is None else b
        grad = self._gradient(self.rows, self.columns, a, b, self.diagonals)
        if not of_columns:
            return grad, grad[:0]
        turned = tuple(-d for d in self.diagonals)
        return grad, self._gradient(self.columns, self.rows, b, a, turned)

    def _gradient(
        self, rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, diagonals: tuple[int, ...]
    ) -> Tensor:
        if not len(rows):
            return rows.float()
        blocks = GRADIENTS[rows.dtype]
        shares, per_share = _shares(rows, columns, blocks)
        grad = rows.new_empty(shares, *rows.shape, dtype=torch.float32)
        with torch.cuda.device_of(rows):
            _gradients[triton.cdiv(len(rows), blocks.rows), shares](
                *(rows, columns, a.float().contiguous(), b.float().contiguous(), grad),
                *(len(rows), len(columns), per_share, self.scale),
                *_three(diagonals),
                **_constants(rows, blocks),
            )
        return grad.sum(0) if shares > 1 else grad[0]


def _shares(rows: Tensor, columns: Tensor, blocks: Blocks) -> tuple[int, int]:
    """Into how many shares columns are dealt out so that every multiprocessor has work, and columns of each."""
    programs, most = triton.cdiv(len(rows), blocks.rows), max(1, triton.cdiv(len(columns), blocks.columns))
    shares = min(most, max(1, 2 * _multiprocessors(rows.device) // programs))
    per_share = triton.cdiv(most, shares) * blocks.columns
    return max(1, triton.cdiv(len(columns), per_share)), per_share


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _three(diagonals: tuple[int, ...]) -> tuple[int, ...]:
    return (*diagonals, *(NOWHERE,) * (3 - len(diagonals)))


def _constants(rows: Tensor, blocks: Blocks) -> dict[str, Any]:
    return {
        "D": rows.shape[1],
        "WIDTH": max(16, triton.next_power_of_2(rows.shape[1])),
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "PRECISION": PRODUCTS[rows.dtype],
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


# ---- the kernels -----------------------------------------------------------------------------------------------


@triton.jit
def _exponentials(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a block of pairs, zero for those left out. r has Shape: (ROWS, WIDTH), c (COLUMNS, WIDTH)."""
    e = tl.exp2(tl.dot(r, tl.trans(c), input_precision=PRECISION) * scale)
    ahead = j[None, :] - i[:, None]
    inside = (j[None, :] < n_columns) & (ahead != d0) & (ahead != d1) & (ahead != d2)
    return tl.where(inside, e, 0.0)


@triton.jit
def _block(x, i, n, D: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows i of a matrix of n rows, zeros outside."""
    k = tl.arange(0, WIDTH)
    return tl.load(x + i[:, None] * D + k[None, :], mask=(i[:, None] < n) & (k[None, :] < D), other=0.0)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def _sums(  # type: ignore[no-untyped-def]
    rows, columns, total, n_rows, n_columns, per_share, scale, d0, d1, d2,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * per_share
    r = _block(rows, i, n_rows, D, WIDTH)
    sums = tl.zeros([ROWS], tl.float32)
    for start in range(begin, tl.minimum(begin + per_share, n_columns), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        c = _block(columns, j, n_columns, D, WIDTH)
        sums += tl.sum(_exponentials(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION), 1)
    tl.store(total + tl.program_id(1) * n_rows + i, sums, mask=i < n_rows)


@triton.jit(do_not_specialize=["d0", "d1", "d2"])
def _gradients(  # type: ignore[no-untyped-def]
    rows, columns, a, b, grad, n_rows, n_columns, per_share, scale, d0, d1, d2,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * per_share
    r = _block(rows, i, n_rows, D, WIDTH)
    weight = tl.load(a + i, mask=i < n_rows, other=0.0)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, tl.minimum(begin + per_share, n_columns), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        c = _block(columns, j, n_columns, D, WIDTH)
        e = _exponentials(r, c, i, j, n_columns, scale, d0, d1, d2, PRECISION)
        g = e * (weight[:, None] + tl.load(b + j, mask=j < n_columns, other=0.0)[None, :])
        total = tl.dot(g.to(c.dtype), c, total, input_precision=PRECISION)
    k = tl.arange(0, WIDTH)
    place = (tl.program_id(1) * n_rows + i[:, None]) * D + k[None, :]
    tl.store(grad + place, total, mask=(i[:, None] < n_rows) & (k[None, :] < D))
