"""Choose the kernel for a loss, `nt_xent_triton` on recent GPUs by NVIDIA, else `nt_xent_tiled`, and its precision.

Unit rows bound every logit by 1 / tau, so exponentials need no running maximum: down to a temperature of
`MIN_TEMPERATURE_FLOAT32`, float32 holds them and their sums, with headroom for any number of rows and any reasonable
upstream gradient. Below it, exponentials are float64. Half-precision inputs are normalized and summed in float32.

From `MIN_ROWS_BFLOAT16` rows on, bfloat16 inputs are multiplied in bfloat16 if the hardware is faster at that. Three
roundings of relative size 2^-9 then affect a logit (both rows and their product) and one its exponential, so that a
loss is off by at most 2^-9 (3 / tau + 1), and by far less in practice, because the roundings of many pairs average
out. At temperatures below `MIN_TEMPERATURE_BFLOAT16` that bound is too weak, and products are float32. Under the same
conditions the Triton kernels multiply float16 inputs in TF32, which drops at most 2^-10 of either factor, so that a
loss is off by at most 2^-9 / tau.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch
from torch import Tensor

from stochastic_bottleneck.kernels import nt_xent
from stochastic_bottleneck.kernels.nt_xent_tiled import Precision, TiledPairs

if TYPE_CHECKING:
    from stochastic_bottleneck.kernels.nt_xent_triton import TritonPairs

Pairs: TypeAlias = Union[TiledPairs, "TritonPairs"]
MIN_TEMPERATURE_FLOAT32 = 0.025
MIN_TEMPERATURE_BFLOAT16 = 0.05
MIN_ROWS_BFLOAT16 = 1024
MIN_CAPABILITY = 8
"""Major compute capability from which on tensor cores multiply bfloat16 and TF32."""


def make_pairs(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
    precision: Precision,
    block_size: int | None,
    cached_exponentials: Tensor,
) -> list[Pairs]:
    """`TritonPairs` or `TiledPairs` of each of K losses, with their arguments. Shape: (K, ...) of all tensors."""
    losses = zip(rows, [None] * len(rows) if columns is None else columns, cached_exponentials, strict=True)
    if uses_triton(rows) and precision.sums == torch.float32:
        from stochastic_bottleneck.kernels.nt_xent_triton import TritonPairs

        return [TritonPairs(r, c, diagonals, temperature, precision.products) for r, c, _ in losses]
    return [TiledPairs(r, c, diagonals, temperature, precision, block_size, cache) for r, c, cache in losses]


def row_functions(like: Tensor, precision: Precision) -> ModuleType:
    """`nt_xent_triton` or `nt_xent`, for their functions of pairs of positives."""
    if uses_triton(like) and precision.sums == torch.float32:
        from stochastic_bottleneck.kernels import nt_xent_triton

        return nt_xent_triton
    return nt_xent


def unit_rows_dtype(like: Tensor, precision: Precision) -> torch.dtype:
    """Dtype of the unit rows; the Triton kernels need them for products alone."""
    if precision.products == torch.bfloat16 and uses_triton(like) and precision.sums == torch.float32:
        return torch.bfloat16
    return torch.float64 if precision.products == torch.float64 else torch.float32


def uses_triton(rows: Tensor) -> bool:
    """Whether the Triton kernels take rows like these, except in float64 and at very low temperatures."""
    return rows.device.type == "cuda" and _supports_triton(rows.device)


def choose_precision(dtype: torch.dtype, n_columns: int, temperature: float, device: torch.device) -> Precision:
    """Dtypes of products, exponentials and sums for inputs of this dtype."""
    if dtype == torch.float64:
        return Precision(torch.float64, torch.float64, torch.float64)
    sums = sums_dtype(dtype, temperature)
    suits_half = temperature >= MIN_TEMPERATURE_BFLOAT16 and n_columns >= MIN_ROWS_BFLOAT16
    if dtype == torch.bfloat16 and suits_half and has_fast_bfloat16(device):
        return Precision(torch.bfloat16, torch.bfloat16, sums)
    if dtype == torch.float16 and suits_half and device.type == "cuda" and _supports_triton(device):
        return Precision(torch.float16, torch.float32, sums)
    return Precision(torch.float32, sums, sums)


def sums_dtype(dtype: torch.dtype, temperature: float) -> torch.dtype:
    """Dtype of the sums of exponentials."""
    float64 = dtype == torch.float64 or temperature < MIN_TEMPERATURE_FLOAT32
    return torch.float64 if float64 else torch.float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _supports_triton(device: torch.device) -> bool:
    if not _is_triton_installed():
        return False
    return torch.cuda.get_device_capability(device)[0] >= MIN_CAPABILITY


@functools.cache
def _is_triton_installed() -> bool:
    # The kernels are tuned for NVIDIA's tensor cores, which ROCm devices do not have.
    is_cuda = torch.version.cuda is not None and torch.cuda.is_available()
    return is_cuda and importlib.util.find_spec("triton") is not None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32; False if torch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
