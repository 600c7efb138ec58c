"""Block sizes of the Triton kernels, for every GPU with tensor cores for bfloat16 and TF32 (compute capability 8.0).

`nt_xent_blocks.json` holds the fastest block sizes by compute capability, as `python -m benchmarks.autotune` measured
them. For a kernel that is not in it, the first of `candidates` whose shared memory fits the device is used; nothing is
timed during training, since block sizes set the order of sums, and a resumed run has to give the same bits. Registers
need no such rule: all these GPUs have 65,536 in a multiprocessor and 255 in a thread, and with the blocks that are
chosen no kernel spills on the six that it was compiled for (benchmarks/results/triton/compilation.json).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_suffix(".json")
NARROW = 128
"""Width up to which a program holds whole rows of bfloat16 in shared memory, and their gradient in registers."""
RESERVED = 1 << 10
"""Bytes of shared memory for barriers and reductions, of which a kernel takes a few hundred."""
SHARED_MEMORY = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
"""Largest shared memory of a block, for releases of torch that do not tell; 99 KiB otherwise."""


class BlockSizes(NamedTuple):
    """Launch configuration of a kernel."""

    rows: int
    columns: int
    width: int
    """Numbers of each row that a product takes at a time."""
    warps: int
    stages: int


class Kind(NamedTuple):
    """A kernel with what its block sizes depend on."""

    kernel: str
    """sums, gradients, weights or product, see `nt_xent_triton_kernels`"""
    products: torch.dtype
    narrow: bool

    def __str__(self) -> str:
        return f"{self.kernel}, {str(self.products).removeprefix('torch.')}, {'narrow' if self.narrow else 'wide'}"


def kind_of(kernel: str, products: torch.dtype, width: int) -> Kind:
    """The kind of a kernel for rows of this width; one TF32 product instead of three needs less of everything."""
    return Kind(kernel, torch.bfloat16 if products == torch.bfloat16 else torch.float32, width <= NARROW)


_BFLOAT16 = (BlockSizes(128, 128, 64, 8, 3), BlockSizes(128, 64, 64, 4, 3), BlockSizes(64, 64, 64, 4, 3))
_FLOAT32 = (BlockSizes(128, 64, 32, 8, 3), BlockSizes(64, 64, 32, 4, 3), BlockSizes(64, 32, 32, 4, 2))
_RESIDENT = (BlockSizes(128, 128, NARROW, 8, 3), BlockSizes(128, 64, NARROW, 8, 3), BlockSizes(64, 64, NARROW, 4, 2))
_GRADIENTS = (BlockSizes(64, 64, NARROW, 4, 2),)
_PRODUCT_BFLOAT16 = (BlockSizes(128, 64, 128, 8, 3), BlockSizes(64, 64, 64, 4, 3))
_PRODUCT_FLOAT32 = (BlockSizes(128, 32, 64, 8, 3), BlockSizes(64, 32, 64, 4, 2))


def candidates(kind: Kind) -> tuple[BlockSizes, ...]:
    """The block sizes to choose from, the most promising first; none if a kernel is not used for this kind."""
    bfloat16 = kind.products == torch.bfloat16
    if kind.kernel == "gradients":
        return _GRADIENTS if bfloat16 and kind.narrow else ()
    if kind.kernel == "product":
        return _PRODUCT_BFLOAT16 if bfloat16 else _PRODUCT_FLOAT32
    if kind.kernel == "sums" and bfloat16 and kind.narrow:
        return _RESIDENT
    return _BFLOAT16 if bfloat16 else _FLOAT32


def block_sizes(kernel: str, products: torch.dtype, width: int, device: torch.device) -> BlockSizes:
    """Block sizes of a kernel for rows of this width on this device."""
    return choose(kernel, products, width, *limits(device))


@functools.cache
def choose(
    kernel: str, products: torch.dtype, width: int, capability: tuple[int, int], shared_memory: int
) -> BlockSizes:
    """Block sizes of a kernel for rows of this width on a device with these limits."""
    kind = kind_of(kernel, products, width)
    measured = load().get(".".join(map(str, capability)), {}).get(str(kind))
    if measured is not None:
        blocks = BlockSizes(*measured)
    else:
        fitting = (blocks for blocks in candidates(kind) if shared_bytes(kind, blocks) <= shared_memory)
        blocks = next(fitting, candidates(kind)[-1])
    # Narrower rows leave the rest of a block empty.
    return blocks._replace(width=min(blocks.width, max(16, 1 << (width - 1).bit_length())))


@functools.cache
def load() -> dict[str, dict[str, list[int]]]:
    """Measured block sizes, by compute capability and kind."""
    table: dict[str, dict[str, list[int]]] = json.loads(TABLE.read_text(encoding="utf-8"))["blocks"]
    return table


@functools.cache
def limits(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability, and bytes of shared memory that a block may take."""
    if device.type != "cuda":
        return (0, 0), 1 << 30  # Triton's interpreter
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    known = SHARED_MEMORY.get(capability, 99 << 10)
    return capability, int(getattr(properties, "shared_memory_per_block_optin", known))


def shared_bytes(kind: Kind, blocks: BlockSizes) -> int:
    """Upper bound of the shared memory of a kernel: operands, once per stage, their parts in float32, and weights.

    A float32 product is three products of the operands' leading and trailing bits, which Hopper's tensor cores read
    from shared memory.
    """
    itemsize = 2 if kind.products == torch.bfloat16 else 4
    rows, columns = blocks.rows * blocks.width, blocks.columns * blocks.width
    if kind.kernel == "product":
        rows = blocks.rows * blocks.columns
    resident = kind.kernel == "gradients" or (kind.kernel == "sums" and kind.narrow and itemsize == 2)
    operands = rows + blocks.stages * columns if resident else blocks.stages * (rows + columns)
    parts = 0 if itemsize == 2 else rows + columns
    weights = blocks.rows * blocks.columns * 4  # rearranged before they are written, or multiplied
    if kind.kernel == "gradients":
        return operands * itemsize + weights + RESERVED
    return max((operands + parts) * itemsize, weights if kind.kernel == "weights" else 0) + RESERVED
