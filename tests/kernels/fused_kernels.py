"""Runs `_ops.fused` without a device: `interpret` compares it with the tiles, `compile` makes machine code of it.

Triton decides when it is imported whether kernels are interpreted, so this is a program of its own. Its interpreter has
no bfloat16 products.
"""

import json
import os
import sys

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional as F

from stochastic_bottleneck._ops import fused, info_nce, info_nce_op, pairs
from stochastic_bottleneck._ops.tiles import Pairs, Precision

F64 = torch.float64
CASES = {  # rows, columns, width, diagonals
    "among themselves": (150, None, 20, (0, 75, -75)),
    "against others": (70, 201, 33, (5, 105)),
    "nothing left out": (64, 64, 128, ()),
    "one row": (1, 300, 7, (299,)),
    "no others": (5, 0, 7, ()),
}


def interpret():
    """Largest relative error of sums and gradients against tiles in float64, over small and large temperatures."""
    found = {}
    for multiprocessors in (1, 4):  # columns in one share, or in several
        fused._multiprocessors = lambda _, n=multiprocessors: n
        for name, (r, c, d, diagonals) in CASES.items():
            for temperature in (0.03, 0.5):
                found[f"{name}, {multiprocessors}, {temperature}"] = errors(r, c, d, diagonals, temperature)
    pairs.fuses = info_nce_op.fuses = lambda rows: True
    found["one-hot rows"] = loss_error(torch.eye(4), torch.eye(4) + 0.3)
    found["one dimension"] = loss_error(*torch.randn(2, 70, 1, generator=torch.Generator().manual_seed(0)))
    return found


def loss_error(v, v_prime):
    """Largest error of the whole loss and its gradient against the plain formula in float64."""

    def losses_and_gradients(loss, inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        losses = loss(*inputs)
        return [losses, *torch.autograd.grad(losses.sum(), inputs)]

    found = losses_and_gradients(lambda v, w: info_nce_op.info_nce(v, w, 0.5, None), (v, v_prime))
    exact = losses_and_gradients(lambda v, w: info_nce.plain(v, w, 0.5), (v.double(), v_prime.double()))
    return max(float((x - y).abs().max()) for x, y in zip(found, exact, strict=True))


def errors(r, c, d, diagonals, temperature):
    g = torch.Generator().manual_seed(0)
    rows, columns = (
        None if n is None else F.normalize(torch.randn(n, d, generator=g, dtype=F64), dim=1) for n in (r, c)
    )
    a, b = (None if n is None else torch.randn(n, generator=g, dtype=F64) for n in (r, c))
    exact = Pairs(
        rows,
        columns,
        diagonals,
        temperature,
        Precision(F64, F64, F64),
        None,
        torch.empty(0, dtype=torch.uint8),
    )
    single = [None if x is None else x.float() for x in (rows, columns, a, b)]
    ours = fused.FusedPairs(*single[:2], diagonals, temperature, torch.float32)
    compared = [(ours.sums(), exact.sums())]
    compared += zip(ours.gradients(*single[2:], True), exact.gradients(a, b, True), strict=True)
    if c is not None:
        compared += zip(ours.gradients(single[2]), exact.gradients(a), strict=True)
    return max(float((x - y).norm() / y.norm().clamp_min(1e-30)) for x, y in compared)


def compile_all():
    """Shared memory, instructions and cubin of every kernel for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = {}
    for kernel, blocks_of in ((fused._sums, fused.SUMS), (fused._gradients, fused.GRADIENTS)):
        for dtype, blocks in blocks_of.items():
            constants = fused._constants(torch.empty(1, 128, dtype=dtype), blocks)
            options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
            kind = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            kinds = dict.fromkeys(("total", "a", "b", "grad"), "*fp32") | {"scale": "fp32"}
            kinds |= {"rows": kind, "columns": kind} | dict.fromkeys(constants, "constexpr")
            names = kernel.arg_names
            aligned = ("rows", "columns", "n_rows", "n_columns", "per_share")
            source = ASTSource(
                fn=kernel,
                signature={name: kinds.get(name, "i32") for name in names},
                constexprs={(names.index(name),): value for name, value in constants.items()},
                attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
            )
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            found[f"{kernel.__name__}, {dtype}"] = {
                "shared": made.metadata.shared,
                "tensor cores": "wgmma.mma_async" in made.asm["ptx"],
                "machine code": made.asm["cubin"].startswith(b"\x7fELF"),
            }
    return found


if __name__ == "__main__":
    json.dump(interpret() if sys.argv[1] == "interpret" else compile_all(), sys.stdout)
