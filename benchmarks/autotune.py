"""Finds the fastest block sizes of the loss's Triton kernels on this GPU: `python -m benchmarks.autotune`.

Each kernel runs with a short list of block sizes that fit the device's shared memory, on unit rows of width 128 and
512. A row of `OUTPUT/autotune.csv` is one choice with its relative error against float64 and its median time
(`triton.testing.do_bench`). The fastest of those that are right go to `OUTPUT/nt_xent_blocks.json` and to
`stochastic_bottleneck/kernels/nt_xent_blocks.json`, which the loss reads, under the device's compute capability.

`--dry` runs a few block sizes in Triton's interpreter on the CPU (set TRITON_INTERPRET=1), and changes no table.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import triton
import tyro
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources, PTXASError

from benchmarks import environment
from stochastic_bottleneck.kernels import nt_xent_blocks, nt_xent_triton
from stochastic_bottleneck.kernels.nt_xent_blocks import BlockSizes, Kind, kind_of

KERNELS = ("sums", "gradients", "weights", "product")
WIDTHS = (128, 512)
TEMPERATURE = 0.2
MAX_ERROR = {torch.bfloat16: 8e-3, torch.float32: 4e-6}
"""Relative error above which a kernel is wrong: twice bfloat16's last bit, and of float32 some bits for long sums."""
BFLOAT16 = (
    *((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 128, 32, 8, 4), (64, 128, 64, 4, 3)),
    *((128, 64, 64, 4, 4), (64, 64, 32, 4, 4)),
)
FLOAT32 = ((128, 128, 32, 8, 2), (128, 64, 32, 4, 3), (128, 64, 16, 8, 3), (64, 128, 32, 8, 3), (64, 64, 32, 4, 2))
FLOAT32 += ((64, 64, 16, 4, 3),)
RESIDENT = ((128, 128, 128, 8, 2), (128, 64, 128, 8, 2), (64, 128, 128, 8, 2), (64, 64, 128, 4, 3))
GRADIENTS = ((128, 64, 128, 8, 3), (128, 64, 128, 8, 2), (64, 32, 128, 4, 2), (64, 32, 128, 4, 3))
PRODUCT = ((128, 32, 128, 8, 3), (128, 32, 64, 4, 3), (64, 32, 64, 4, 3), (128, 16, 64, 8, 4), (64, 32, 32, 4, 3))


def search_space(kind: Kind) -> Iterator[BlockSizes]:
    """Block sizes to try, those that would be used without a measurement first."""
    bfloat16 = kind.products == torch.bfloat16
    known = nt_xent_blocks.candidates(kind)
    more = {"gradients": GRADIENTS, "product": PRODUCT}.get(kind.kernel, BFLOAT16 if bfloat16 else FLOAT32)
    if known and known[0].width == nt_xent_blocks.NARROW and kind.kernel == "sums":
        more = RESIDENT
    return (blocks for blocks in (*known, *(BlockSizes(*sizes) for sizes in more)) if known)


def work_and_oracle(
    kernel: str, n_rows: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Callable[[], Tensor], Tensor]:
    """A function that launches the kernel once, and its result in float64."""
    g = torch.Generator().manual_seed(width)
    rows = F.normalize(torch.randn(n_rows, width, generator=g), dim=1).to(device)
    a = torch.rand(n_rows, generator=g).to(device)
    pairs = nt_xent_triton.TritonPairs(rows, None, (0, n_rows // 2, -(n_rows // 2)), TEMPERATURE, dtype)
    u = pairs.rows.double()
    i = torch.arange(n_rows, device=device)
    e = (u @ u.T / TEMPERATURE).exp()
    e[i, i] = e[i, i.roll(n_rows // 2)] = 0
    if kernel == "sums":
        return pairs.row_sums, e.sum(1)
    weights = e * (a[:, None] + a.double())
    if kernel == "gradients":
        return (lambda: pairs.gradients(a)[0]), weights @ u
    if kernel == "product":
        total, factor = torch.zeros_like(pairs.rows, dtype=torch.float32), weights.to(pairs.rows.dtype)

        def add() -> Tensor:
            pairs._add_product(total.zero_(), factor, pairs.rows)
            return total

        return add, factor.double() @ u
    written = torch.empty_like(weights, dtype=pairs.rows.dtype)

    def write() -> Tensor:
        pairs._write_weights(written, pairs.rows, pairs.rows, a, a, 0)
        return written

    return write, weights


def measure(work: Callable[[], Tensor], exact: Tensor, device: str) -> tuple[float, float]:
    """Relative error and milliseconds."""
    error = float((work().double() - exact).norm() / exact.norm())
    if device == "cpu":
        return error, 0.0
    times = [triton.testing.do_bench(work, warmup=5, rep=20, return_mode="median") for _ in range(3)]
    return error, statistics.median(times)


def main(output: Path = environment.ROOT / "runs" / "gpu", dry: bool = False) -> None:
    """Measure and write both files."""
    device = "cpu" if dry else "cuda"
    capability, shared_memory = nt_xent_blocks.limits(torch.device(device))
    output.mkdir(parents=True, exist_ok=True)
    table, results, seen = json.loads(nt_xent_blocks.TABLE.read_text(encoding="utf-8")), {}, set()
    with (output / "autotune.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kernel", *BlockSizes._fields, "error", "ms"))
        for kernel, dtype, width in itertools.product(KERNELS, MAX_ERROR, WIDTHS):
            kind = kind_of(kernel, dtype, width)
            if kernel == "product" and dtype == torch.bfloat16 and not dry:
                continue  # cuBLAS's
            in_registers = bool(nt_xent_blocks.candidates(kind_of("gradients", dtype, width)))
            if {"weights": in_registers, "gradients": not in_registers}.get(kernel):
                continue
            space = [x for x in search_space(kind) if nt_xent_blocks.shared_bytes(kind, x) <= shared_memory]
            work, exact = work_and_oracle(kernel, 40 if dry else 4096, width, dtype, device)
            for blocks in space[:2] if dry else space:
                with mock.patch.object(nt_xent_triton, "block_sizes", lambda *_, blocks=blocks: blocks):
                    try:
                        error, ms = measure(work, exact, device)
                    except (OutOfResources, PTXASError):
                        continue
                seen.add(kind)
                writer.writerow((str(kind), *blocks, f"{error:.1e}", f"{ms:.4f}"))
                file.flush()
                # The interpreter multiplies the bits of bfloat16 as integers, so that only launches are tried.
                if error <= MAX_ERROR[dtype] or (dry and dtype == torch.bfloat16):
                    results[kind] = min(results.get(kind, (ms, blocks)), (ms, blocks))
    if missing := [str(kind) for kind in seen if kind not in results]:
        raise SystemExit(f"no block sizes give the right result for: {'; '.join(missing)}")
    name = "Triton's interpreter" if dry else torch.cuda.get_device_name()
    key = ".".join(map(str, capability))
    source = f"python -m benchmarks.autotune, {name}, torch {torch.__version__}, Triton {triton.__version__}"
    table["measured by"][key] = source
    table["blocks"][key] = {str(kind): list(blocks) for kind, (_, blocks) in results.items()}
    for path in (output / nt_xent_blocks.TABLE.name, *(() if dry else (nt_xent_blocks.TABLE,))):
        environment.write_atomically(path, as_text(table))


def as_text(table: dict[str, dict[str, object]]) -> str:
    """The table as JSON, with a kernel a line."""
    return re.sub(r"\[[^]]*\]", lambda m: " ".join(m[0].split()), json.dumps(table, indent=2)) + "\n"


if __name__ == "__main__":
    tyro.cli(main)
