"""Run the Triton kernels of the loss without a GPU: `interpret` compares them with tiles, `compile` compiles them.

Triton reads TRITON_INTERPRET when it is imported, so this is a script of its own. Its interpreter has no bfloat16
products.
"""

import json
import os
import sys

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional as F

from stochastic_bottleneck.kernels import nt_xent_dispatch, nt_xent_op, nt_xent_triton
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent
from stochastic_bottleneck.kernels.nt_xent_tiled import Precision, TiledPairs

F64 = torch.float64
CASES = {  # rows, columns, width, excluded diagonals, temperature
    "symmetric": (150, None, 20, (0, 75, -75), 0.03),
    "rectangular": (70, 201, 33, (5, 105), 0.5),
    "no diagonals": (64, 64, 128, (), 0.03),
    "one row": (1, 300, 7, (299,), 0.5),
    "no columns": (5, 0, 7, (), 0.5),
    "symmetric, warm": (150, None, 20, (0, 75, -75), 0.5),
}


def interpret():
    """Largest relative error of row sums and gradients against tiles in float64, and of whole losses."""
    errors = {}
    for n in (1, 4):  # one split of the columns, or several
        nt_xent_triton._n_multiprocessors = lambda _, n=n: n
        errors |= {f"{name}, {n}": pairs_error(*case) for name, case in CASES.items()}
    nt_xent_dispatch.uses_triton = nt_xent_op.uses_triton = lambda rows: True
    errors["one-hot rows"] = loss_error(torch.eye(4), torch.eye(4) + 0.3)
    g = torch.Generator().manual_seed(0)
    errors["one dimension"] = loss_error(*torch.randn(2, 70, 1, generator=g))
    return errors


def loss_error(v, v_prime):
    """Largest error of the loss and its gradient against the plain formula in float64."""

    def losses_and_gradients(loss, inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        losses = loss(*inputs)
        return [losses, *torch.autograd.grad(losses.sum(), inputs)]

    found = losses_and_gradients(lambda v, w: nt_xent_op.blockwise_nt_xent(v, w, 0.5, None), (v, v_prime))
    exact = losses_and_gradients(lambda v, w: plain_nt_xent(v, w, 0.5), (v.double(), v_prime.double()))
    return max(float((x - y).abs().max()) for x, y in zip(found, exact, strict=True))


def pairs_error(n_rows, n_columns, d, diagonals, temperature):
    g = torch.Generator().manual_seed(0)
    sizes = (n_rows, n_columns)
    rows, columns = (
        None if n is None else F.normalize(torch.randn(n, d, generator=g, dtype=F64), dim=1) for n in sizes
    )
    a, b = (None if n is None else torch.randn(n, generator=g, dtype=F64) for n in sizes)
    cache = torch.empty(0, dtype=torch.uint8)
    exact = TiledPairs(rows, columns, diagonals, temperature, Precision(F64, F64, F64), None, cache)
    rows, columns, a32, b32 = (None if x is None else x.float() for x in (rows, columns, a, b))
    pairs = nt_xent_triton.TritonPairs(rows, columns, diagonals, temperature, torch.float32)
    compared = [(pairs.row_sums(), exact.row_sums())]
    compared += zip(pairs.gradients(a32, b32, True), exact.gradients(a, b, True), strict=True)
    if columns is not None:
        compared += zip(pairs.gradients(a32), exact.gradients(a), strict=True)
    return max(float((x - y).norm() / y.norm().clamp_min(1e-30)) for x, y in compared)


def compile_all():
    """Shared memory, tensor-core instructions and cubin of every kernel, for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    results = {}
    for kernel, blocks_by_dtype in (
        (nt_xent_triton._row_sums_kernel, nt_xent_triton.SUMS_BLOCKS),
        (nt_xent_triton._grad_rows_kernel, nt_xent_triton.GRADIENTS_BLOCKS),
    ):
        for dtype, blocks in blocks_by_dtype.items():
            constants = nt_xent_triton._launch_options(torch.empty(1, 128, dtype=dtype), blocks)
            options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
            matrix = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            types = dict.fromkeys(("row_sums", "a", "b", "grad_rows"), "*fp32") | {"scale": "fp32"}
            types |= {"rows": matrix, "columns": matrix} | dict.fromkeys(constants, "constexpr")
            names = kernel.arg_names
            aligned = ("rows", "columns", "n_rows", "n_columns", "split_size")
            source = ASTSource(
                fn=kernel,
                signature={name: types.get(name, "i32") for name in names},
                constexprs={(names.index(name),): value for name, value in constants.items()},
                attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            results[f"{kernel.__name__}, {dtype}"] = {
                "shared": compiled.metadata.shared,
                "tensor cores": "wgmma.mma_async" in compiled.asm["ptx"],
                "machine code": compiled.asm["cubin"].startswith(b"\x7fELF"),
            }
    return results


if __name__ == "__main__":
    json.dump(interpret() if sys.argv[1] == "interpret" else compile_all(), sys.stdout)
