"""Choose the kernel for a loss, `nt_xent_triton` on recent GPUs and `nt_xent_tiled` elsewhere, and its precision.

Unit rows bound every logit by 1 / tau, so exponentials need no running maximum: down to a temperature of
`MIN_TEMPERATURE_FLOAT32`, float32 holds them and their sums, with headroom for any number of rows and any reasonable
upstream gradient. Below it, exponentials are float64. Half-precision inputs are normalized and summed in float32.

From `MIN_ROWS_BFLOAT16` rows on, bfloat16 inputs are multiplied in bfloat16 if the hardware is faster at that. Three
roundings of relative size 2^-9 then affect a logit (both rows and their product) and one its exponential, so that a
loss is off by at most 2^-9 (3 / tau + 1), and by far less in practice, because the roundings of many pairs average
out. At temperatures below `MIN_TEMPERATURE_BFLOAT16` that bound is too weak, and products are float32.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch
from torch import Tensor

from stochastic_bottleneck.kernels.nt_xent_tiled import Precision, TiledPairs

if TYPE_CHECKING:
    from stochastic_bottleneck.kernels.nt_xent_triton import TritonPairs

Pairs: TypeAlias = Union[TiledPairs, "TritonPairs"]
MIN_TEMPERATURE_FLOAT32 = 0.025
MIN_TEMPERATURE_BFLOAT16 = 0.05
MIN_ROWS_BFLOAT16 = 1024
MAX_TRITON_WIDTH = 128
"""Width of rows up to which the blocks of the Triton kernels fit into registers."""
MIN_SHARED_MEMORY = 225 << 10
"""Bytes of shared memory that the largest Triton program takes; data-centre GPUs have them from the H100 on."""


def make_pairs(
    rows: Tensor,
    columns: Tensor | None,
    diagonals: tuple[int, ...],
    temperature: float,
    precision: Precision,
    block_size: int | None,
    cached_exponentials: Tensor,
) -> Pairs:
    """`TritonPairs` or `TiledPairs`, whose arguments these are."""
    if uses_triton(rows) and precision.sums == torch.float32:
        from stochastic_bottleneck.kernels.nt_xent_triton import TritonPairs

        return TritonPairs(rows, columns, diagonals, temperature, precision.products)
    return TiledPairs(rows, columns, diagonals, temperature, precision, block_size, cached_exponentials)


def uses_triton(rows: Tensor) -> bool:
    """Whether the Triton kernels take rows like these, except in float64 and at very low temperatures."""
    return rows.device.type == "cuda" and rows.shape[-1] <= MAX_TRITON_WIDTH and _supports_triton(rows.device)


def choose_precision(dtype: torch.dtype, n_columns: int, temperature: float, device: torch.device) -> Precision:
    """Dtypes of products, exponentials and sums for inputs of this dtype."""
    if dtype == torch.float64:
        return Precision(torch.float64, torch.float64, torch.float64)
    sums = sums_dtype(dtype, temperature)
    suits_bfloat16 = temperature >= MIN_TEMPERATURE_BFLOAT16 and n_columns >= MIN_ROWS_BFLOAT16
    if dtype == torch.bfloat16 and suits_bfloat16 and has_fast_bfloat16(device):
        return Precision(torch.bfloat16, torch.bfloat16, sums)
    return Precision(torch.float32, sums, sums)


def sums_dtype(dtype: torch.dtype, temperature: float) -> torch.dtype:
    """Dtype of the sums of exponentials."""
    float64 = dtype == torch.float64 or temperature < MIN_TEMPERATURE_FLOAT32
    return torch.float64 if float64 else torch.float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _supports_triton(device: torch.device) -> bool:
    if not _is_triton_installed():
        return False
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 0)
    return properties.major >= 9 and shared_memory >= MIN_SHARED_MEMORY


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
