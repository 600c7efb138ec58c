"""Every claim by its name, and what is measured for them on trained models."""

from __future__ import annotations

from types import ModuleType

from recipes.claims import (
    bits,
    capacity,
    collapse,
    compression,
    counting,
    dims,
    probed,
    search,
    table,
    uncertainty,
)
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
    "probed": probed,
    "settings": search,
}
"""The paper's seven claims in its order, its first promise, and our own questions."""
OURS = ("probed", "settings")
MEASURES: dict[str, Measure] = {
    compression.PART: compression.measure,
    bits.PART: bits.measure,
    capacity.PART: capacity.measure,
    counting.PART: counting.measure,
    uncertainty.PART: uncertainty.measure,
    probed.PART: probed.measure,
}
"""Parts of a run beside those of `cifar10_full.py`; `uncertainty.FASHION` is added where its images are at hand."""
