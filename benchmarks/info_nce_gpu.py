"""InfoNCE end to end on one GPU, against N and the width D: `python -m benchmarks.info_nce_gpu --output FILE.jsonl`.

Forward and backward of the mean loss, in one process, in float32 and bfloat16. A line of the file is one loss at one
size: the median and quartiles of its time (`triton.testing.do_bench`), the memory at the peak beyond the inputs and
their gradients, the relative errors of value and gradient against float64 up to N = 4096, and TFLOP/s counted as
6 (2N)^2 D. "product" is one product of square matrices, in float32 without tensor cores. Two towers have 6 N^2 D: our
ClipLoss, and open_clip's where it is installed. Sizes that matter most come first; the run stops after `seconds`, and
continues if it is started again on the same GPU, with what failed too. `--dry` runs tiny sizes on the CPU, untimed.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import environment, losses

SIZES, WIDTHS = (4096, 1024, 16384, 256, 65536, 2048), (512, 128, 768, 256)
CHECKED = 4096  # largest N that is compared with float64
SQUARE = 8192
PRECISIONS = ("bfloat16", "float32")
CONTENDERS: dict[str, Callable[[], losses.Loss]] = {
    "ours": losses.ours,
    "ours_compiled": losses.ours,
    "plain": lambda: losses.plain,
    "plain_compiled": lambda: losses.plain,
    "lightly": losses.lightly,
    "clip": losses.clip,
    "open_clip": losses.open_clip,
}
TWO_TOWERS = ("clip", "open_clip")  # N^2 pairs; the others have (2N)^2


def measure(name: str, n: int, d: int, precision: str, device: str) -> dict[str, Any]:
    """Time, memory and errors of a loss at a size."""
    loss = CONTENDERS[name]()
    if name.endswith("compiled"):
        torch.compiler.reset()
        backend = "inductor" if device == "cuda" else "eager"
        loss = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
    leaves = [x.to(device).requires_grad_() for x in losses.views(n, d, precision)]
    run = losses.forward_backward(loss, leaves)
    value = run()
    row: dict[str, Any] = {}
    if n <= CHECKED and name not in TWO_TOWERS:
        exact = [x.detach().double().requires_grad_() for x in leaves]
        expected = losses.plain(*exact)
        expected.backward()
        gradients = [torch.cat([x.grad for x in xs]).cpu() for xs in (leaves, exact)]  # type: ignore[misc]
        row["error"] = losses.relative_error(value, expected.detach().cpu())
        row["gradient_error"] = losses.relative_error(*gradients)
        del exact, expected, gradients
    return row | timing(run, device, 6.0 * (n if name in TWO_TOWERS else 2 * n) ** 2 * d)


def product(precision: str, device: str) -> dict[str, Any]:
    """The same of a product of square matrices."""
    side = SQUARE if device == "cuda" else 64
    a, b = torch.randn(2, side, side, device=device, dtype=getattr(torch, precision))
    return timing(lambda: a @ b, device, 2.0 * side**3)


def timing(run: Callable[[], Any], device: str, flop: float) -> dict[str, Any]:
    """Milliseconds, TFLOP/s and bytes at the peak."""
    if device == "cpu":
        run()
        return {"ms": None}
    from triton.testing import do_bench

    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated() - before
    low, ms, high = do_bench(run, warmup=20, rep=150, quantiles=[0.25, 0.5, 0.75])
    return {"ms": ms, "quartiles_ms": [low, high], "tflop_per_s": flop / ms / 1e9, "peak_bytes": peak}


def cases(dry: bool) -> Iterator[tuple[str, int, int, str]]:
    """Name, N, D and precision, in the order in which they are measured."""
    yield from (("product", 0, 0, precision) for precision in PRECISIONS)
    sizes, widths = ((8,), (4, 20)) if dry else (SIZES, WIDTHS)
    names = [name for name in CONTENDERS if name not in TWO_TOWERS[1:] or find_spec(name)]  # which may be missing
    yield from ((name, *size) for *size, name in itertools.product(sizes, widths, PRECISIONS, names))


def main(output: Path, seconds: float = 300, dry: bool = False) -> None:
    """Measure what the file does not have yet."""
    device, begin = "cpu" if dry else "cuda", time.monotonic()
    lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    head, *rows = map(json.loads, lines or ["{}"])
    failures = {tuple(row[x] for x in ("name", "n", "d", "precision")): row.get("failure") for row in rows}
    gpu = None if dry else torch.cuda.get_device_name()
    if head.get("gpu", gpu) != gpu:
        raise SystemExit(f"{output} is of {head['gpu']}, and this is {gpu}; give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        if not lines:
            print(json.dumps({"date": environment.now(), "gpu": gpu, "machine": environment.describe()}), file=file)
        for case in sorted(cases(dry), key=failures.__contains__):  # those that failed before come last
            if case in failures and not failures[case]:
                continue
            name, n, d, precision = case
            if time.monotonic() - begin > seconds:
                raise SystemExit(f"{seconds:g} s are over; start again to measure the rest")
            row: dict[str, Any] = {"name": name, "n": n, "d": d, "precision": precision}
            try:
                row |= product(precision, device) if name == "product" else measure(name, n, d, precision, device)
            except Exception as failure:  # such as too little memory; the others are measured all the same
                row["failure"] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            print(json.dumps(row), file=file, flush=True)
            failures[case] = row.get("failure")
            torch.cuda.empty_cache()
    if dry and (failed := [f"{case}: {failure}" for case, failure in failures.items() if failure]):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    tyro.cli(main)
