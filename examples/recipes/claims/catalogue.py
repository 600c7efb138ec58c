"""Every claim by its name, and what is measured for them on trained models."""

from __future__ import annotations

from types import ModuleType

from recipes.claims import bits, capacity, collapse, compression, counting, dims, search, table, uncertainty
from recipes.claims.chain import Measure

CLAIMS: dict[str, ModuleType] = {
    "table": table,
    "compression": compression,
    "bits": bits,
    "capacity": capacity,
    "collapse": collapse,
    "dims": dims,
    "counting": counting,
    "uncertainty": uncertainty,
    "settings": search,
}
"""The paper's seven claims in its order, its first promise, and our search for settings."""
MEASURES: dict[str, Measure] = {
    compression.PART: compression.measure,
    bits.PART: bits.measure,
    capacity.PART: capacity.measure,
    counting.PART: counting.measure,
    uncertainty.PART: uncertainty.measure,
}
"""Parts of a run beside those of `cifar10_full.py`; `uncertainty.FASHION` is added where its images are at hand."""
