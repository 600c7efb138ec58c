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
KEPT_BYTES = 28 << 20  # below the 32 MiB from which the C library maps new pages for every request
_LINE = 64  # bytes of a cache line


class Precision(NamedTuple):
    """Where rounding happens: in the products, the exponentials, and their sums."""

    products: torch.dtype
    exponentials: torch.dtype
    sums: torch.dtype


class Tile(NamedTuple):
    """A block of pairs."""

    i: int
    """Its block of rows."""
    j: int
    """Its block of columns."""
    shape: tuple[int, int]
    ahead: int
    """Of its first row before its first column: pair (r, c) of the tile is (i, i + d) where c - r = d + ahead."""
    kept: int | None
    """Place of its exponentials among those kept; None for those computed again."""


class Scratch:
    """Memory of one tile after the other, with one view of it for each shape."""

    def __init__(self, like: Tensor, size: int, dtype: torch.dtype) -> None:
        # A matrix unit for half precision may read a tile's padding, times zero: NaN left there by others stays NaN.
        new = like.new_zeros if dtype.itemsize == 2 else like.new_empty
        self.memory = new(size, dtype=dtype)
        self.views: dict[tuple[int, int], Tensor] = {}

    def __call__(self, shape: tuple[int, int], stride: int) -> Tensor:
        """Shape: (R, C)."""
        if shape not in self.views:
            self.views[shape] = self.memory.as_strided(shape, (stride, 1))
        return self.views[shape]


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
        room = TILE_BYTES.get(rows.device.type, TILE_BYTES_ELSEWHERE)
        side = math.isqrt(room // precision.exponentials.itemsize) // 64 * 64
        self.side = side if block_size is None else min(side, block_size)
        # Empty rows of a matrix may begin at any byte.
        self.kept = (kept if kept.numel() else kept.new_empty(0)).view(precision.exponentials)
        # Views are made once: making one takes as long as a hundredth of a tile's product.
        self.row_blocks = torch.split(self.rows, self.side)
        self.column_blocks = torch.split(self.columns, self.side)
        self.turned = [block.t() for block in self.column_blocks]

    def sums(self) -> Tensor:
        """Sum of each row's exponentials, in the precision of sums. Shape: (R,)."""
        dtype = self.precision.sums
        total = self.rows.new_zeros(self.rows.shape[0], dtype=dtype)
        totals = torch.split(total, self.side)
        scratch, logits = self._scratch(self.precision.exponentials), self._logits()
        for tile in self._tiles():
            memory = self._memory(tile, scratch) if tile.kept is None else self._kept(tile)
            exponentials = self._exponentials(tile, memory, logits)
            totals[tile.i].add_(exponentials.sum(1, dtype=dtype))
            if self.symmetric and tile.i != tile.j:
                totals[tile.j].add_(exponentials.sum(0, dtype=dtype))
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
        grads, transposes = torch.split(grad, self.side), torch.split(transposed, self.side)
        of_rows = torch.split(a.to(self.precision.exponentials)[:, None], self.side)
        of_columns_each = None
        if b is not None:
            of_columns_each = torch.split(b.to(self.precision.exponentials)[None], self.side, dim=1)
        scratch, weights = (self._scratch(self.precision.exponentials) for _ in range(2))
        logits = self._logits()
        for tile in self._tiles():
            memory, weight = self._memory(tile, scratch), of_rows[tile.i]
            if of_columns_each is not None:
                weight = torch.add(weight, of_columns_each[tile.j], out=self._memory(tile, weights))
            # What was kept may be read again by a second backward pass: it is not overwritten.
            kept = tile.kept is not None
            exponentials = self._kept(tile) if kept else self._exponentials(tile, memory, logits)
            g = torch.mul(exponentials, weight, out=memory).to(self.precision.products)
            _accumulate(grads[tile.i], g, self.column_blocks[tile.j])
            if of_columns and not (self.symmetric and tile.i == tile.j):
                _accumulate(transposes[tile.j], g.t(), self.row_blocks[tile.i])
        return grad, transposed

    def _tiles(self) -> Iterator[Tile]:
        used = 0
        for i, rows in enumerate(self.row_blocks):
            for j in range(i if self.symmetric else 0, len(self.column_blocks)):
                shape = (rows.shape[0], self.column_blocks[j].shape[0])
                size = shape[0] * self._stride(shape[1])
                fits = used + size <= self.kept.numel()
                yield Tile(i, j, shape, (i - j) * self.side, used if fits else None)
                used += size if fits else 0

    def _stride(self, width: int) -> int:
        """Elements from one row of a tile's memory to the next."""
        # An odd number of cache lines: rows a power of two apart would compete for the same places in the cache,
        # and matrix products with them take up to a third longer.
        line = _LINE // self.precision.exponentials.itemsize
        return (-(-width // line) | 1) * line

    def _scratch(self, dtype: torch.dtype) -> Scratch:
        height, width = (min(self.side, x.shape[0]) for x in (self.rows, self.columns))
        return Scratch(self.rows, height * self._stride(width), dtype)

    def _logits(self) -> Scratch | None:
        """Memory for products of another precision than the exponentials'."""
        products, exponentials, _ = self.precision
        return None if products == exponentials else self._scratch(products)

    def _memory(self, tile: Tile, scratch: Scratch) -> Tensor:
        return scratch(tile.shape, self._stride(tile.shape[1]))

    def _kept(self, tile: Tile) -> Tensor:
        start = self.kept.storage_offset() + (tile.kept or 0)
        return self.kept.as_strided(tile.shape, (self._stride(tile.shape[1]), 1), start)

    def _exponentials(self, tile: Tile, memory: Tensor, logits: Scratch | None) -> Tensor:
        products = memory if logits is None else self._memory(tile, logits)
        # With beta = 0 what the memory held does not matter, not even NaN.
        products.addmm_(self.row_blocks[tile.i], self.turned[tile.j], beta=0, alpha=self.scale)
        if products is not memory:
            memory.copy_(products)
        memory.exp2_()
        for d in self.diagonals:
            inside = d + tile.ahead
            if -tile.shape[0] < inside < tile.shape[1]:
                memory.diagonal(inside).zero_()
        return memory


def kept_bytes(groups: int, rows: int, columns: int) -> int | torch.SymInt:
    """Bytes to set aside for each of `groups` independent sets of pairs; sizes may be symbolic."""
    most = 8 * rows * (columns + columns // 32 + 16)  # float64, and up to two lines more a row and tile
    return torch.sym_min(most, KEPT_BYTES // groups // 8 * 8)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b. In half precision the product of one tile is rounded, not the sum over tiles."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b, out=b.new_empty(total.shape)))
