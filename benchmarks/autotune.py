"""Times the blocks that the fused loss could use on a GPU: `python -m benchmarks.fused_blocks > FILE.csv`.

Each row is a kernel with its blocks, its error against float64 at N = 1024, and the median time of a launch at three
sizes (`triton.testing.do_bench`), of 2N unit rows of width 128 at a temperature of 0.2. Times far below 0.1 ms include
launch overhead. `kernels/nt_xent_triton.py` uses the fastest blocks; run this to find them for another GPU.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels import nt_xent_triton

SIZES = (1024, 4096, 16384)
CHECKED = SIZES[0]
WIDTH, TEMPERATURE = 128, 0.2
BLOCKS = (
    *((128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 128, 8, 2), (64, 64, 8, 2)),
    *((64, 64, 4, 2), (64, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
)
PRECISIONS = ((torch.bfloat16, "ieee"), (torch.float32, "tf32x3"), (torch.float32, "ieee"))
KERNELS = {"sums": nt_xent_triton.SUMS_BLOCKS, "gradients": nt_xent_triton.GRADIENTS_BLOCKS}
HEADER = ("kernel", "dtype", "precision", "rows", "columns", "warps", "stages", "error")


def main() -> None:
    """Write a row for each kernel, dtype and block that the device can launch."""
    data = {n: batch(n) for n in SIZES}
    exact = oracle(*data[CHECKED])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*HEADER, *(f"ms N = {n}" for n in SIZES)))
    for kernel, table in KERNELS.items():
        for (dtype, precision), blocks in itertools.product(PRECISIONS, BLOCKS):
            chosen = mock.patch.dict(table, {dtype: nt_xent_triton.BlockSizes(*blocks)})
            with chosen, mock.patch.dict(nt_xent_triton.INPUT_PRECISION, {dtype: precision}):
                measured = measure(kernel, dtype, data, exact[kernel])
            if measured is not None:
                name = str(dtype).removeprefix("torch.")
                said = name if dtype == torch.bfloat16 else precision
                writer.writerow((kernel, name, said, *blocks, *measured))
                sys.stdout.flush()


def batch(n: int) -> tuple[Tensor, Tensor]:
    """Unit rows, and their weights in the gradient. Shapes: (2N, D) and (2N,)."""
    g = torch.Generator("cuda").manual_seed(n)
    rows = torch.randn(2 * n, WIDTH, device="cuda", generator=g)
    return F.normalize(rows, dim=1), torch.randn(2 * n, device="cuda", generator=g)


def oracle(rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Sums and gradient in float64, from the matrix of all pairs."""
    u, a = rows.double(), weights.double()
    e = (u @ u.T / TEMPERATURE).exp()
    i = torch.arange(len(u), device=u.device)
    e[i, i] = e[i, i.roll(len(u) // 2)] = 0
    return {"sums": e.sum(1), "gradients": (e * (a[:, None] + a)) @ u}


def measure(kernel: str, dtype: torch.dtype, data: dict[int, Any], exact: Tensor) -> tuple[str, ...] | None:
    """Error and times of a kernel with the blocks that it now has; None where they do not fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    cells = []
    try:
        for n, (rows, weights) in data.items():
            pairs = nt_xent_triton.TritonPairs(rows, None, (0, n, -n), TEMPERATURE, dtype)
            work: Callable[[], Tensor] = (
                pairs.row_sums if kernel == "sums" else lambda p=pairs, a=weights: p.gradients(a)[0]  # type: ignore[misc]
            )
            if n == CHECKED:
                cells.append(f"{((work() - exact).norm() / exact.norm()).item():.1e}")
            cells.append(f"{do_bench(work, warmup=5, rep=30, return_mode='median'):.3f}")
    except OutOfResources:
        return None
    return tuple(cells)


if __name__ == "__main__":
    main()
