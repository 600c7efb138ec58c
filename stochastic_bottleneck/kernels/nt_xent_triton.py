"""The row sums and gradients of `nt_xent_tiled` in Triton, for GPUs with tensor cores, at any width of rows.

Row sums: a program computes a block of rows against a split of the columns, block by block; exponentials never reach
memory. Only sums are written, once per split, and splits are added in a fixed order.

Gradients, in one of two ways, of which no launch depends on values:

- In registers, for bfloat16 rows of width D <= 128: as the row sums, with the gradient of a block of rows accumulated
  in registers. Every pair is computed twice if the columns are the rows, once from either side.
- In chunks, otherwise: G is computed one chunk of pairs at a time (`CHUNK_BYTES`, whatever the number of rows), written
  to memory in the dtype of the products, and multiplied with the chunk's columns, and transposed with its rows. If the
  columns are the rows, only half of G is computed. The product is cuBLAS's for bfloat16, from the release of torch on
  that accumulates it in float32, and a Triton kernel's otherwise.

Per pair and backward pass, registers cost 2 products of D multiplications and no memory traffic; chunks cost 1.5 and 3
transfers of a number (write, and read twice, for two pairs of a symmetric chunk): 4 D operations beside 3 D operations
and 3 bytes in bfloat16. At 400 TFLOP/s and 3 TB/s that is equal at D = 400, but a program's gradient fills the
registers at D = 128 already: at D = 256 it would have to compute the similarities twice, for 6 D operations, which
chunks beat from D = 134 on. In float32 the parts of three products spill registers at D = 128, so all widths go in
chunks. Both rates are assumptions, not measurements.

float32 rows are multiplied on tensor cores in three TF32 products (hi hi, hi lo, lo hi), which is float32 except for
the last bits; bfloat16 rows in one product; rows of float16 inputs in one TF32 product, which has the 10 bits of
float16's mantissa and the range of float32, without which small weights in G would vanish. Exponentials and sums are
float32.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from stochastic_bottleneck.kernels import nt_xent_triton_kernels as kernels
from stochastic_bottleneck.kernels.l2_normalize import MIN_NORM, smallest_scale
from stochastic_bottleneck.kernels.nt_xent_blocks import BlockSizes, block_sizes, candidates, kind_of

UNUSED_DIAGONAL = -(1 << 31)
"""A diagonal that contains no pair."""
CHUNK_BYTES = 32 << 20
"""Memory of a chunk of G: 4,096 rows and columns in bfloat16, enough for a product to fill the largest GPUs."""
MM_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()
"""Whether torch.mm can write the float32 sums of a bfloat16 product, on CUDA alone; torch 2.8 and later."""
NUMBERS = 2048
"""Numbers of one view in a program that holds rows of both, 16 a thread, unless a row alone has more."""
LOSSES = 256
"""Losses in a program."""
INPUT_PRECISION = {torch.bfloat16: "ieee", torch.float16: "tf32", torch.float32: "tf32x3"}
"""`input_precision` of tl.dot by the dtype of products; it has no effect on bfloat16."""


class TritonPairs:
    """Similarities of rows with columns, or of the rows with each other; see `TiledPairs`.

    Args:
        rows: unit rows in float32, or in bfloat16 for products in it. Shape: (R, D)
        columns: likewise; None for the rows themselves. Shape: (C, D)
        diagonals: offsets d, at most three, of the excluded pairs (i, i + d).
        temperature: tau.
        products: float32, bfloat16, or float16 for one TF32 product.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor | None,
        diagonals: tuple[int, ...],
        temperature: float,
        products: torch.dtype,
    ) -> None:
        dtype = torch.bfloat16 if products == torch.bfloat16 else torch.float32
        self.rows = rows.to(dtype).contiguous()
        self.columns = self.rows if columns is None else columns.to(dtype).contiguous()
        self.symmetric = columns is None
        self.temperature = temperature
        self.scale = math.log2(math.e) / temperature
        self.diagonals = diagonals
        self.products = products

    def row_sums(self) -> Tensor:
        """Sum of each row's exponentials, in float32. Shape: (R,)."""
        return _add(self.row_sum_parts())

    def row_sum_parts(self) -> Tensor:
        """Row sums over each split of the columns. Shape: (S, R)."""
        if not len(self.rows):
            return self.rows.new_empty(1, 0, dtype=torch.float32)
        blocks = self._blocks("sums")
        n_splits, split_size = _split_columns(self.rows, self.columns, blocks)
        sums = self.rows.new_empty(n_splits, len(self.rows), dtype=torch.float32)
        with torch.cuda.device_of(self.rows):  # Triton launches on the current device
            kernels.row_sums_kernel[triton.cdiv(len(self.rows), blocks.rows), n_splits](
                *(self.rows, self.columns, sums, len(self.rows), len(self.columns), split_size, self.scale),
                *_pad_diagonals(self.diagonals),
                **self._options(blocks),
            )
        return sums

    def row_and_column_sums(self) -> tuple[Tensor, Tensor]:
        """The sums of each column too, for columns that are not the rows. Shape: (R,) and (C,)."""
        transposed = TritonPairs(
            self.columns, self.rows, tuple(-d for d in self.diagonals), self.temperature, self.products
        )
        return self.row_sums(), transposed.row_sums()

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
            grad_rows = _add(self.gradient_parts(a))
            return grad_rows, grad_rows
        a = a.float().contiguous()
        b = a.new_zeros(len(self.columns)) if b is None else b.float().contiguous()
        if not self._in_registers():
            return self._gradients_in_chunks(a, b, needs_grad_columns)
        grad_rows = _add(self._grad_rows(self.rows, self.columns, a, b, self.diagonals))
        if not needs_grad_columns:
            return grad_rows, grad_rows[:0]
        transposed = tuple(-d for d in self.diagonals)
        return grad_rows, _add(self._grad_rows(self.columns, self.rows, b, a, transposed))

    def gradient_parts(self, a: Tensor) -> Tensor:
        """Gradient of the rows in the symmetric case, by each split of the columns. Shape: (S, R, D)."""
        a = a.float().contiguous()
        if self._in_registers():
            return self._grad_rows(self.rows, self.columns, a, a, self.diagonals)
        return self._gradients_in_chunks(a, a, True)[0][None]

    def _in_registers(self) -> bool:
        return bool(candidates(kind_of("gradients", self.products, self.rows.shape[1])))

    def _grad_rows(self, rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, diagonals: tuple[int, ...]) -> Tensor:
        if not len(rows):
            return rows.float()[None]
        blocks = self._blocks("gradients")
        n_splits, split_size = _split_columns(rows, columns, blocks)
        grad_rows = rows.new_empty(n_splits, *rows.shape, dtype=torch.float32)
        with torch.cuda.device_of(rows):
            kernels.grad_rows_kernel[triton.cdiv(len(rows), blocks.rows), n_splits](
                *(rows, columns, a, b, grad_rows, len(rows), len(columns), split_size, self.scale),
                *_pad_diagonals(diagonals),
                **self._options(blocks),
            )
        return grad_rows

    def _gradients_in_chunks(self, a: Tensor, b: Tensor, needs_grad_columns: bool) -> tuple[Tensor, Tensor]:
        grad_rows = torch.zeros_like(self.rows, dtype=torch.float32)
        grad_columns = grad_rows
        if not self.symmetric:
            grad_columns = torch.zeros_like(
                self.columns if needs_grad_columns else self.columns[:0], dtype=torch.float32
            )
        side = math.isqrt(CHUNK_BYTES // self.rows.itemsize) // 128 * 128
        # cuBLAS is slow at rows that do not start at a multiple of 16 bytes.
        stride = triton.cdiv(min(side, len(self.columns)), 8) * 8
        memory = self.rows.new_empty(min(side, len(self.rows)), stride)
        for i in range(0, len(self.rows), side):
            rows = self.rows[i : i + side]
            for j in range(i if self.symmetric else 0, len(self.columns), side):
                columns = self.columns[j : j + side]
                weights = memory[: len(rows), : len(columns)]
                self._write_weights(weights, rows, columns, a[i : i + side], b[j : j + side], i - j)
                self._add_product(grad_rows[i : i + side], weights, columns)
                if i != j if self.symmetric else needs_grad_columns:
                    self._add_product(grad_columns[j : j + side], weights.t(), rows)
        return grad_rows, grad_columns

    def _write_weights(
        self, weights: Tensor, rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, diagonal_shift: int
    ) -> None:
        """G of a chunk, in which diagonal d of all pairs is d + `diagonal_shift`."""
        blocks = self._blocks("weights")
        with torch.cuda.device_of(rows):
            kernels.weights_kernel[triton.cdiv(len(rows), blocks.rows), triton.cdiv(len(columns), blocks.columns)](
                *(rows, columns, a, b, weights, len(rows), len(columns), weights.stride(0), self.scale),
                *_pad_diagonals(tuple(d + diagonal_shift for d in self.diagonals)),
                **self._options(blocks),
            )

    def _add_product(self, total: Tensor, weights: Tensor, columns: Tensor) -> None:
        """Add weights @ columns to `total`, accumulated in float32."""
        if MM_HAS_OUT_DTYPE and weights.is_cuda and weights.dtype == torch.bfloat16:
            total.add_(torch.mm(weights, columns, out_dtype=torch.float32))
            return
        blocks = self._blocks("product")
        with torch.cuda.device_of(total):
            kernels.add_product_kernel[triton.cdiv(len(total), blocks.rows), triton.cdiv(total.shape[1], blocks.width)](
                *(total, weights, columns, *weights.shape, *weights.stride()), **self._options(blocks)
            )

    def _blocks(self, kernel: str) -> BlockSizes:
        return block_sizes(kernel, self.products, self.rows.shape[1], self.rows.device)

    def _options(self, blocks: BlockSizes) -> dict[str, Any]:
        return launch_options(self.rows.shape[1], blocks, self.products)


def _add(parts: Tensor) -> Tensor:
    return parts.sum(0) if len(parts) > 1 else parts[0]


def launch_options(width: int, blocks: BlockSizes, products: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments that all kernels have in common."""
    return {
        "D": width,
        "WIDTH": blocks.width,
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_COLUMNS": blocks.columns,
        "PRECISION": INPUT_PRECISION[products],
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


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


# ---- the pairs of positives, with the functions of `nt_xent`, one launch each ---------------------------------------


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
        kernels.unit_rows_kernel[options.pop("grid")](
            *(v.contiguous(), v_prime.contiguous(), u, norm, positive),
            *(stack[0] * stack[2], stack[2], smallest_scale(torch.float32)),
            MIN_NORM=MIN_NORM,
            **options,
        )
    return u, norm, positive


def losses_from_sums(row_sums: Tensor, positive: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, weights and pulls; see `nt_xent.losses_from_sums`."""
    losses, weight, pull = (torch.empty_like(positive) for _ in range(3))
    with torch.cuda.device_of(positive):
        kernels.losses_kernel[triton.cdiv(positive.numel(), LOSSES),](
            *(row_sums, positive, losses, weight, pull, positive.numel(), len(row_sums), 1 / temperature),
            TINY=torch.finfo(torch.float32).tiny,
            BLOCK=LOSSES,
        )
    return losses, weight, pull


def grad_views(
    grad_u: Tensor, grad_losses: Tensor, pull: Tensor, u: Tensor, norm: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of the stacked views; see `nt_xent.grad_views`."""
    grad, options = torch.empty_like(u, dtype=dtype), _pairs_of(u)
    grad_losses = grad_losses.reshape(-1)  # of a mean, a view with stride 0
    with torch.cuda.device_of(u):
        kernels.grad_views_kernel[options.pop("grid")](
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
