"""Row sums and gradients of exponentiated similarities, computed in tiles that fit the processor's cache.

With rows r_i, columns c_j, and the excluded pairs (those on `diagonals`) left out of every sum,

    E_ij = exp(r_i . c_j / tau),        row_sums_i = sum_j E_ij
    G_ij = E_ij (a_i + b_j),            grad r_i = sum_j G_ij c_j,        grad c_j = sum_i G_ij r_i

If the columns are the rows, E is symmetric: a tile above the diagonal contributes to its rows and, transposed, to its
columns, so that only half of E is computed.

The exponentials of the first tiles are cached for backward, up to `CACHE_BYTES` in all; those of the other tiles are
recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 9 << 18}  # 2.25 MiB, the second-level caches of the two cores on which it was tuned
DEFAULT_TILE_BYTES = 16 << 20  # fits into the second-level cache of a large GPU
CACHE_BYTES = 28 << 20  # below 32 MiB, from which on the C library maps new pages for every allocation
_CACHE_LINE = 64  # bytes


class Precision(NamedTuple):
    """dtypes of the matrix products, of the exponentials and of their sums."""

    products: torch.dtype
    exponentials: torch.dtype
    sums: torch.dtype


class Tile(NamedTuple):
    """A block of pairs."""

    row_block: int
    column_block: int
    shape: tuple[int, int]
    diagonal_shift: int
    """Index of its first row less index of its first column: diagonal d of the matrix is d + shift in the tile."""
    cache_offset: int | None
    """Position of its exponentials in the cache; None if they are recomputed."""


class TileBuffer:
    """Memory for one tile at a time, with a view for each shape."""

    def __init__(self, like: Tensor, size: int, dtype: torch.dtype) -> None:
        # A matrix unit for half precision may read a tile's padding and multiply it by zero: NaN there would stay NaN.
        allocate = like.new_zeros if dtype.itemsize == 2 else like.new_empty
        self.memory = allocate(size, dtype=dtype)
        self.views: dict[tuple[int, int], Tensor] = {}

    def view(self, shape: tuple[int, int], stride: int) -> Tensor:
        """Shape: (R, C)."""
        if shape not in self.views:
            self.views[shape] = self.memory.as_strided(shape, (stride, 1))
        return self.views[shape]


class TiledPairs:
    """Similarities of rows with columns, or of the rows with each other.

    Args:
        rows: unit rows, float32 or float64. Shape: (R, D)
        columns: unit rows in the same dtype; None for the rows themselves. Shape: (C, D)
        diagonals: offsets d of the excluded pairs (i, i + d).
        temperature: tau.
        precision: dtypes of products, exponentials and sums.
        block_size: largest number of rows and of columns in a tile; None to fit the processor's cache.
        cached_exponentials: bytes that `row_sums` writes and `gradients` reads; may be empty. Shape: (B,)
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        diagonals: tuple[int, ...],
        temperature: float,
        precision: Precision,
        block_size: int | None,
        cached_exponentials: Tensor,
    ) -> None:
        self.symmetric = columns is None
        self.rows = rows.to(precision.products)
        self.columns = self.rows if columns is None else columns.to(precision.products)
        self.scale = math.log2(math.e) / temperature  # for exp2, which is cheaper than exp
        self.diagonals = diagonals
        self.precision = precision
        tile_bytes = TILE_BYTES.get(rows.device.type, DEFAULT_TILE_BYTES)
        side = math.isqrt(tile_bytes // precision.exponentials.itemsize) // 64 * 64
        self.side = side if block_size is None else min(side, block_size)
        # An empty row of a matrix may have an address that `view` refuses.
        cache = cached_exponentials if cached_exponentials.numel() else cached_exponentials.new_empty(0)
        self.cache = cache.view(precision.exponentials)
        # All views are created here: creating one takes a hundredth of the time of a tile's product.
        self.row_blocks = torch.split(self.rows, self.side)
        self.column_blocks = torch.split(self.columns, self.side)
        self.column_blocks_t = [block.t() for block in self.column_blocks]

    def row_sums(self) -> Tensor:
        """Sum of each row's exponentials, in the dtype of sums. Shape: (R,)."""
        return self._sums(columns_too=False)[0]

    def row_and_column_sums(self) -> tuple[Tensor, Tensor]:
        """The sums of each column too, for columns that are not the rows. Shape: (R,) and (C,)."""
        return self._sums(columns_too=True)

    def row_sum_parts(self) -> Tensor:
        """Row sums in parts to be added, here one. Shape: (1, R)."""
        return self.row_sums()[None]

    def gradient_parts(self, a: Tensor) -> Tensor:
        """Gradient of the rows in the symmetric case, in parts to be added, here one. Shape: (1, R, D)."""
        return self.gradients(a)[0][None]

    def _sums(self, columns_too: bool) -> tuple[Tensor, Tensor]:
        dtype = self.precision.sums
        row_sums = self.rows.new_zeros(self.rows.shape[0], dtype=dtype)
        column_sums = row_sums if self.symmetric else row_sums.new_zeros(self.columns.shape[0] if columns_too else 0)
        row_sum_blocks, column_sum_blocks = (torch.split(x, self.side) for x in (row_sums, column_sums))
        buffer, logits = self._new_buffer(self.precision.exponentials), self._logits_buffer()
        for tile in self._tiles():
            memory = self._view(buffer, tile) if tile.cache_offset is None else self._cached(tile)
            exponentials = self._exponentials(tile, memory, logits)
            row_sum_blocks[tile.row_block].add_(exponentials.sum(1, dtype=dtype))
            if columns_too or (self.symmetric and tile.row_block != tile.column_block):
                column_sum_blocks[tile.column_block].add_(exponentials.sum(0, dtype=dtype))
        return row_sums, column_sums

    def gradients(self, a: Tensor, b: Tensor | None = None, needs_grad_columns: bool = False) -> tuple[Tensor, Tensor]:
        """Gradients of the rows and of the columns; in the symmetric case, both hold their sum.

        Args:
            a: weight of each row. Shape: (R,)
            b: weight of each column, None for zeros; in the symmetric case `a` is used. Shape: (C,)
            needs_grad_columns: whether to compute the gradient of columns that are not the rows.

        Returns:
            Gradients in float32 or float64. Shape: (R, D) and (C, D), the second (0, D) if not computed.
        """
        dtype = self.rows.dtype if self.rows.dtype == torch.float64 else torch.float32
        grad_rows = torch.zeros_like(self.rows, dtype=dtype)
        if self.symmetric:
            b, grad_columns, needs_grad_columns = a, grad_rows, True
        else:
            grad_columns = torch.zeros_like(self.columns if needs_grad_columns else self.columns[:0], dtype=dtype)
        grad_row_blocks = torch.split(grad_rows, self.side)
        grad_column_blocks = torch.split(grad_columns, self.side)
        a_blocks = torch.split(a.to(self.precision.exponentials)[:, None], self.side)
        b_blocks = None
        if b is not None:
            b_blocks = torch.split(b.to(self.precision.exponentials)[None], self.side, dim=1)
        buffer, weights = (self._new_buffer(self.precision.exponentials) for _ in range(2))
        logits = self._logits_buffer()
        for tile in self._tiles():
            memory, weight = self._view(buffer, tile), a_blocks[tile.row_block]
            if b_blocks is not None:
                weight = torch.add(weight, b_blocks[tile.column_block], out=self._view(weights, tile))
            if tile.cache_offset is not None:
                exponentials = self._cached(tile)  # not overwritten: a second backward pass reads it again
            else:
                exponentials = self._exponentials(tile, memory, logits)
            g = torch.mul(exponentials, weight, out=memory).to(self.precision.products)
            _add_product(grad_row_blocks[tile.row_block], g, self.column_blocks[tile.column_block])
            if needs_grad_columns and not (self.symmetric and tile.row_block == tile.column_block):
                _add_product(grad_column_blocks[tile.column_block], g.t(), self.row_blocks[tile.row_block])
        return grad_rows, grad_columns

    def _tiles(self) -> Iterator[Tile]:
        used = 0
        for i, rows in enumerate(self.row_blocks):
            for j in range(i if self.symmetric else 0, len(self.column_blocks)):
                shape = (rows.shape[0], self.column_blocks[j].shape[0])
                size = shape[0] * self._row_stride(shape[1])
                fits = used + size <= self.cache.numel()
                yield Tile(i, j, shape, (i - j) * self.side, used if fits else None)
                used += size if fits else 0

    def _row_stride(self, n_columns: int) -> int:
        """Elements from one row of a tile to the next."""
        # An odd number of cache lines: rows a power of two apart map to the same cache sets, which makes matrix
        # products up to a third slower.
        per_line = _CACHE_LINE // self.precision.exponentials.itemsize
        return (-(-n_columns // per_line) | 1) * per_line

    def _new_buffer(self, dtype: torch.dtype) -> TileBuffer:
        n_rows, n_columns = (min(self.side, x.shape[0]) for x in (self.rows, self.columns))
        return TileBuffer(self.rows, n_rows * self._row_stride(n_columns), dtype)

    def _logits_buffer(self) -> TileBuffer | None:
        """Memory for products in another dtype than the exponentials."""
        products, exponentials, _ = self.precision
        return None if products == exponentials else self._new_buffer(products)

    def _view(self, buffer: TileBuffer, tile: Tile) -> Tensor:
        return buffer.view(tile.shape, self._row_stride(tile.shape[1]))

    def _cached(self, tile: Tile) -> Tensor:
        start = self.cache.storage_offset() + (tile.cache_offset or 0)
        return self.cache.as_strided(tile.shape, (self._row_stride(tile.shape[1]), 1), start)

    def _exponentials(self, tile: Tile, memory: Tensor, logits: TileBuffer | None) -> Tensor:
        products = memory if logits is None else self._view(logits, tile)
        # With beta = 0, the old content is ignored, even NaN.
        products.addmm_(
            self.row_blocks[tile.row_block], self.column_blocks_t[tile.column_block], beta=0, alpha=self.scale
        )
        if products is not memory:
            memory.copy_(products)
        memory.exp2_()
        for d in self.diagonals:
            diagonal = d + tile.diagonal_shift
            if -tile.shape[0] < diagonal < tile.shape[1]:
                memory.diagonal(diagonal).zero_()
        return memory


def cache_bytes(n_losses: int, n_rows: int, n_columns: int) -> int | torch.SymInt:
    """Bytes of cache for each of `n_losses` independent losses; sizes may be symbolic."""
    largest = 8 * n_rows * (n_columns + n_columns // 32 + 16)  # float64, and at most two more lines per row and tile
    return torch.sym_min(largest, CACHE_BYTES // n_losses // 8 * 8)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to `total`. In half precision, each tile's product is rounded, but not the sum over tiles."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b, out=b.new_empty(total.shape)))
