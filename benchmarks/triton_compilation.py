"""Compiles the loss's Triton kernels for every architecture; needs no GPU: `python -m benchmarks.triton_compilation`.

Writes `benchmarks/results/triton/compilation.json`: for each kernel with the block sizes that `nt_xent_blocks` chooses,
the registers of a thread, the bytes that spill from them to memory, the shared memory of a block, and the instruction
that its tensor cores run, as Triton's own ptxas reports them.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
import triton
import tyro
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import environment
from stochastic_bottleneck.kernels import nt_xent_blocks as blocks
from stochastic_bottleneck.kernels import nt_xent_triton
from stochastic_bottleneck.kernels import nt_xent_triton_kernels as kernels

PATH = environment.RESULTS / "triton" / "compilation.json"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # A100; 3090; 4090 and L4; H100 and H200; B200; 5090
WIDTHS = (128, 768)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KERNELS = {
    "sums": kernels.row_sums_kernel,
    "gradients": kernels.grad_rows_kernel,
    "weights": kernels.weights_kernel,
    "product": kernels.add_product_kernel,
    "product, transposed": kernels.add_product_kernel,
}
ROWS = {name: getattr(kernels, f"{name}_kernel") for name in ("unit_rows", "losses", "grad_views")}
TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
INTEGERS = {"n_rows", "n_columns", "split_size", "stride", "row_stride", "column_stride", "n_pairs", "n"}
INTEGERS |= {"n_numbers", "n_splits"}
FLOATS = ("scale", "smallest_scale", "inverse_temperature")


def specializations() -> Iterator[tuple[str, torch.dtype, int]]:
    """Kernel, dtype of products and width of everything that a GPU of this architecture may run."""
    for name in (*KERNELS, *ROWS):
        for dtype in DTYPES:
            for width in WIDTHS:
                in_registers = bool(blocks.candidates(blocks.kind_of("gradients", dtype, width)))
                if name in ("sums", *ROWS) or in_registers == (name == "gradients"):
                    yield name, dtype, width


def compile_kernel(arch: int, name: str, dtype: torch.dtype, width: int) -> dict[str, Any]:
    """A row of the table."""
    kernel, used, capability, chosen = (KERNELS | ROWS)[name], name.partition(",")[0], divmod(arch, 10), None
    if name in ROWS:
        constants = nt_xent_triton._pairs_of(torch.empty(1, 2, 1, width, device="meta"))
        constants |= {"BLOCK": nt_xent_triton.LOSSES} if name == "losses" else {}
        constants |= {"TINY": 1e-38, "MIN_NORM": nt_xent_triton.MIN_NORM, "LIMIT": torch.finfo(dtype).max}
        constants = {key: x for key, x in constants.items() if key in (*kernel.arg_names, "num_warps")}
    else:
        chosen = blocks.choose(used, dtype, width, capability, blocks.SHARED_MEMORY.get(capability, 99 << 10))
        constants = nt_xent_triton.launch_options(width, chosen, dtype)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    if used == "product":
        constants["column_stride" if name == used else "row_stride"] = 1
    given = {torch.bfloat16: "*bf16", torch.float16: "*fp16"}.get(dtype, "*fp32")
    types = dict.fromkeys(("v", "v_prime", "grad_views"), given)
    types |= dict.fromkeys(("rows", "columns", "weights", "u"), given if dtype == torch.bfloat16 else "*fp32")
    types |= dict.fromkeys((*INTEGERS, "d0", "d1", "d2"), "i32") | dict.fromkeys(FLOATS, "fp32")
    names, types = kernel.arg_names, types | dict.fromkeys(constants, "constexpr")
    aligned = [x for x in names if types.get(x, "*fp32").startswith("*") or (x in INTEGERS and x not in constants)]
    source = ASTSource(
        fn=kernel,
        signature={x: types.get(x, "*fp32") for x in names},
        constexprs={(names.index(x),): value for x, value in constants.items()},
        attrs={(names.index(x),): [["tt.divisibility", 16]] for x in aligned},
    )
    log = io.StringIO()
    with contextlib.redirect_stdout(log), knobs.nvidia.scope(), knobs.compilation.scope():
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    assert registers is not None, log.getvalue()
    return {
        "arch": arch,
        "kernel": name,
        "products": str(dtype).removeprefix("torch."),
        "width": width,
        "blocks": chosen and list(chosen),
        "registers": int(registers[1]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", log.getvalue()))),
        "shared_bytes": compiled.metadata.shared,
        "tensor_cores": next((x for x in TENSOR_CORES if x in compiled.asm["ptx"]), None),
    }


def versions() -> dict[str, str]:
    """What decides on the machine code."""
    tools = {80: knobs.nvidia.ptxas, 100: knobs.nvidia.ptxas_blackwell}
    return {"triton": triton.__version__} | {f"ptxas from sm_{arch}": x.version for arch, x in tools.items()}


def main() -> None:
    """Compile for all architectures, and write the table."""
    rows = [compile_kernel(arch, *case) for arch in ARCHITECTURES for case in specializations()]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps({"command": "python -m benchmarks.triton_compilation", "versions": versions()}, indent=1)
    environment.write_atomically(PATH, f'{head[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    tyro.cli(main)
