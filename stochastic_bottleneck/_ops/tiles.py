"""Products of unit rows, a tile at a time: sums of exponentials, and the gradient they send back.

With rows r_i, columns c_j, and the pairs that `diagonals` names left out, over all other pairs (i, j)

    E_ij = exp(r_i . c_j / tau),        sums_i = sum_j E_ij
    G_ij = E_ij (a_i + b_j),            grad r_i = sum_j G_ij c_j,        grad c_j = sum_i G_ij r_i

Where the columns are the rows, E is symmetric: a tile above the diagonal serves its rows and, transposed, its
columns, so that only half of E is ever computed.

What a tile holds is used while it is in the processor's cache. The exponentials of the first tiles are kept for the
backward pass, up to `KEPT_BYTES` in all; the others are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 9 << 18}  # 2.25 MiB: the second-level caches of two cores, where it was tuned
TILE_BYTES_ELSEWHERE = 16 << 20  # what the second-level cache of a large GPU holds, with room to spare
KEPT_BYTES = 16 << 20
_LINE = 64  # bytes of a cache line


class Precision(NamedTuple):
    """Where rounding happens: in the products, the exponentials, and their sums."""

    products: torch.dtype
    exponentials: torch.dtype
    sums: torch.dtype


class Tile(NamedTuple):
    """A block of pairs."""

    rows: slice
    columns: slice
    stride: int
    """Elements from one row of its memory to the next."""
    kept: int | None
    """Place of its exponentials among those kept; None for those computed again."""

    def within(self, memory: Tensor, start: int = 0) -> Tensor:
        """Its part of a flat piece of memory. Shape: (R, C)."""
        shape = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)
        return memory.as_strided(shape, (self.stride, 1), memory.storage_offset() + start)


class Pairs:
    """Rows against columns, or the rows against themselves.

    Args:
        rows: unit rows, float32 or float64. Shape: (R, D)
        columns: unit rows in the same dtype; None for the rows themselves. Shape: (C, D)
        diagonals: pairs (i, i + d) are left out for every d in it.
        temperature: tau.
        precision: of the three stages.
        block_size: most rows and columns of a tile; None to fit the processor's cache.
        kept: bytes filled by `sums` and read by `gradients`; may be none. Shape: (B,)
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        diagonals: tuple[int, ...],
        temperature: float,
        precision: Precision,
        block_size: int | None,
        kept: Tensor,
    ) -> None:
        self.symmetric = columns is None
        self.rows = rows.to(precision.products)
        self.columns = self.rows if columns is None else columns.to(precision.products)
        self.scale = math.log2(math.e) / temperature  # of powers of 2, which are cheaper than those of e
        self.diagonals = diagonals
        self.precision = precision
        self.block_size = block_size
        # Empty rows of a matrix may begin at any byte.
        self.kept = (kept if kept.numel() else kept.new_empty(0)).view(precision.exponentials)

    def sums(self) -> Tensor:
        """Sum of each row's exponentials, in the precision of sums. Shape: (R,)."""
        dtype = self.precision.sums
        total = self.rows.new_zeros(self.rows.shape[0], dtype=dtype)
        scratch = self._scratch(self.precision.exponentials)
        logits = self._logits()
        for tile in self._tiles():
            memory = tile.within(scratch) if tile.kept is None else tile.within(self.kept, tile.kept)
            exponentials = self._exponentials(tile, memory, logits)
            total[tile.rows].add_(exponentials.sum(1, dtype=dtype))
            if self.symmetric and tile.rows != tile.columns:
                total[tile.columns].add_(exponentials.sum(0, dtype=dtype))
        return total

    def gradients(
        self, a: Tensor, b: Tensor | None = None, of_columns: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the rows and the columns; in the symmetric case their sum, once.

        Args:
            a: weight of each row. Shape: (R,)
            b: weight of each column, None for zeros; in the symmetric case it is `a`. Shape: (C,)
            of_columns: whether the gradient of columns that are not the rows is wanted.

        Returns:
            Gradients in float32 or float64. Shape: (R, D) and (C, D), the second (0, D) where not wanted.
        """
        dtype = self.rows.dtype if self.rows.dtype == torch.float64 else torch.float32
        grad = torch.zeros_like(self.rows, dtype=dtype)
        transposed = torch.zeros_like(self.columns if of_columns else self.columns[:0], dtype=dtype)
        if self.symmetric:
            b, transposed, of_columns = a, grad, True
        a = a.to(self.precision.exponentials)
        b = None if b is None else b.to(self.precision.exponentials)
        scratch, weights = (self._scratch(self.precision.exponentials) for _ in range(2))
        logits = self._logits()
        for tile in self._tiles():
            memory = tile.within(scratch)
            weight = a[tile.rows, None]
            if b is not None:
                weight = torch.add(weight, b[None, tile.columns], out=tile.within(weights))
            if tile.kept is None:
                exponentials = self._exponentials(tile, memory, logits)
            else:  # to be read again by a second backward pass: not overwritten
                exponentials = tile.within(self.kept, tile.kept)
            g = torch.mul(exponentials, weight, out=memory).to(self.precision.products)
            _accumulate(grad[tile.rows], g, self.columns[tile.columns])
            if of_columns and not (self.symmetric and tile.rows == tile.columns):
                _accumulate(transposed[tile.columns], g.t(), self.rows[tile.rows])
        return grad, transposed

    def _tiles(self) -> Iterator[Tile]:
        height, width = self.rows.shape[0], self.columns.shape[0]
        side, used = self._side(), 0
        for top in range(0, height, side):
            rows = slice(top, min(top + side, height))
            for left in range(top if self.symmetric else 0, width, side):
                columns = slice(left, min(left + side, width))
                stride = _stride(columns.stop - left, self.precision.exponentials)
                size = (rows.stop - top) * stride
                fits = used + size <= self.kept.numel()
                yield Tile(rows, columns, stride, used if fits else None)
                used += size if fits else 0

    def _side(self) -> int:
        room = TILE_BYTES.get(self.rows.device.type, TILE_BYTES_ELSEWHERE)
        side = math.isqrt(room // self.precision.exponentials.itemsize) // 64 * 64
        return side if self.block_size is None else min(side, self.block_size)

    def _scratch(self, dtype: torch.dtype) -> Tensor:
        """Memory of the largest tile."""
        height, width = (min(self._side(), x.shape[0]) for x in (self.rows, self.columns))
        return self.rows.new_empty(height * _stride(width, self.precision.exponentials), dtype=dtype)

    def _logits(self) -> Tensor | None:
        """Memory for products of another precision than the exponentials'."""
        products, exponentials, _ = self.precision
        return None if products == exponentials else self._scratch(products)

    def _exponentials(self, tile: Tile, memory: Tensor, logits: Tensor | None) -> Tensor:
        products = memory if logits is None else tile.within(logits)
        # With beta = 0 what the memory held does not matter, not even NaN.
        products.addmm_(self.rows[tile.rows], self.columns[tile.columns].t(), beta=0, alpha=self.scale)
        if products is not memory:
            memory.copy_(products)
        memory.exp2_()
        for d in self.diagonals:
            inside = d + tile.rows.start - tile.columns.start
            if -memory.shape[0] < inside < memory.shape[1]:
                memory.diagonal(inside).zero_()
        return memory


def kept_bytes(groups: int, rows: int, columns: int) -> int | torch.SymInt:
    """Bytes to set aside for each of `groups` independent sets of pairs; sizes may be symbolic."""
    most = 8 * rows * (columns + columns // 32 + 16)  # float64, and up to two lines more a row and tile
    return torch.sym_min(most, KEPT_BYTES // groups // 8 * 8)


def _stride(width: int, dtype: torch.dtype) -> int:
    # An odd number of cache lines: rows a power of two apart would compete for the same places in the cache,
    # and matrix products with them take up to a third longer.
    line = _LINE // dtype.itemsize
    return (-(-width // line) | 1) * line


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b. In half precision the product of one tile is rounded, not the sum over tiles."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b, out=b.new_empty(total.shape)))
