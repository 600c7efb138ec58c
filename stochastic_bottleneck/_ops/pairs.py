"""Which of the two ways of going through pairs serves: `fused` on a GPU where it can, `tiles` everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, TypeAlias, Union

import torch
from torch import Tensor

from stochastic_bottleneck._ops.tiles import Pairs, Precision

if TYPE_CHECKING:
    from stochastic_bottleneck._ops.fused import FusedPairs

AnyPairs: TypeAlias = Union[Pairs, "FusedPairs"]
WIDEST = 128
"""Width of rows up to which the blocks of `fused` fit into registers."""
SHARED = 225 << 10
"""Bytes of shared memory that its largest program takes: what data-centre GPUs have from the H100 on."""


def pairs_of(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
    precision: Precision,
    block_size: int | None,
    kept: Tensor,
) -> AnyPairs:
    """Rows against columns, or the rows against themselves; arguments are those of `tiles.Pairs`."""
    if fuses(rows) and precision.sums == torch.float32:
        from stochastic_bottleneck._ops.fused import FusedPairs

        return FusedPairs(rows, columns, diagonals, temperature, precision.products)
    return Pairs(rows, columns, diagonals, temperature, precision, block_size, kept)


def fuses(rows: Tensor) -> bool:
    """Whether rows like these are served by `fused`, float64 and very low temperatures aside. Shape: (..., D)."""
    return rows.device.type == "cuda" and rows.shape[-1] <= WIDEST and _has_triton(rows.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_triton(device: torch.device) -> bool:
    if not _finds_triton():
        return False
    found = torch.cuda.get_device_properties(device)
    return found.major >= 9 and getattr(found, "shared_memory_per_block_optin", 0) >= SHARED


@functools.cache
def _finds_triton() -> bool:
    here = (
        torch.version.cuda is not None and torch.cuda.is_available()
    )  # ROCm has tensor cores of its own kind
    return here and importlib.util.find_spec("triton") is not None
