"""Run the Triton kernels of the loss in Triton's interpreter, and compare them with tiles in float64.

Triton reads TRITON_INTERPRET when it is imported, so this is a script of its own. Its interpreter multiplies the bits
of bfloat16 as integers, and TF32 as float32: the first is corrected here, the second is not.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

from stochastic_bottleneck.kernels import nt_xent_dispatch, nt_xent_op, nt_xent_triton
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent
from stochastic_bottleneck.kernels.nt_xent_tiled import Precision, TiledPairs

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
CASES = {  # rows, columns, width, excluded diagonals, temperature
    "symmetric": (150, None, 20, (0, 75, -75), 0.03),
    "rectangular": (70, 201, 33, (5, 105), 0.5),
    "no diagonals": (64, 64, 128, (), 0.03),
    "one row": (1, 300, 7, (299,), 0.5),
    "no columns": (5, 0, 7, (), 0.5),
    "one number a row": (150, None, 1, (0, 75, -75), 0.5),
    "wide": (150, None, 129, (0, 75, -75), 0.05),
    "wide, rectangular": (131, 140, 200, (5, 105), 0.5),
    "wide, one row": (1, 70, 768, (3,), 0.5),
    "wide, no columns": (5, 0, 200, (), 0.5),
}


def interpret():
    """Relative errors of row sums and of gradients against tiles in float64, and of whole losses."""
    InterpreterBuilder.create_dot = multiply
    nt_xent_triton.CHUNK_BYTES = 4 * 128**2  # several chunks of pairs
    errors = {}
    for n in (1, 4):  # one split of the columns, or several
        nt_xent_triton._n_multiprocessors = lambda _, n=n: n
        for dtype in (F32,) if n == 1 else (F32, BF16):
            errors |= {f"{name}, {n}, {dtype}": pairs_errors(*case, dtype) for name, case in CASES.items()}
    nt_xent_dispatch.uses_triton = nt_xent_op.uses_triton = lambda rows: True
    nt_xent_dispatch.MIN_ROWS_BFLOAT16 = 0
    nt_xent_dispatch.has_fast_bfloat16 = nt_xent_dispatch._supports_triton = lambda device: True
    views = torch.randn(2, 2, 37, 130, generator=torch.Generator().manual_seed(0))
    errors["one-hot rows"] = loss_errors(torch.eye(4), torch.eye(4) + 0.3)
    errors["one row"] = loss_errors(*views[:, 0, :1])
    sizes = 10.0 ** torch.arange(-18, 19)[:, None]
    errors["short and long rows"] = loss_errors(*(views[:, 0] * sizes.masked_fill(sizes == 1, 0)))
    for dtype in (F32, BF16, torch.float16):
        errors[f"two losses, {dtype}"] = loss_errors(*views.to(dtype))
    return errors


def multiply(self, a, b, total, input_precision, max_num_imprecise_acc):
    """The interpreter's product, of float32 that bfloat16 stands for."""
    a, b = (
        (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)
    )
    return TensorHandle(np.matmul(a, b) + total.data, total.dtype.scalar)


def loss_errors(v, v_prime):
    """Relative errors of the mean loss and of its gradient, times the rows' norms, against the plain formula."""

    def loss_and_gradients(loss, inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        mean = loss(*inputs).mean()
        gradients = torch.stack(torch.autograd.grad(mean, inputs)).double()
        return mean, gradients * torch.stack(inputs).double().norm(dim=-1, keepdim=True)

    found = loss_and_gradients(lambda v, w: nt_xent_op.blockwise_nt_xent(v, w, 0.5, None), (v, v_prime))
    exact = loss_and_gradients(lambda v, w: plain_nt_xent(v, w, 0.5), (v.double(), v_prime.double()))
    return [relative_error(*pair) for pair in zip(found, exact, strict=True)]


def pairs_errors(n_rows, n_columns, d, diagonals, temperature, products):
    g = torch.Generator().manual_seed(0)
    sizes = (n_rows, n_columns)
    rows, columns = (None if n is None else F.normalize(torch.randn(n, d, generator=g), dim=1) for n in sizes)
    a, b = (None if n is None else torch.randn(n, generator=g) for n in sizes)
    # Products of float32 have its rows' error; those of bfloat16 are compared for the rows that bfloat16 can represent.
    rows, columns = (None if x is None else x.to(products).float() for x in (rows, columns))
    exact = [None if x is None else x.double() for x in (rows, columns, a, b)]
    tiles = TiledPairs(*exact[:2], diagonals, temperature, Precision(F64, F64, F64), None, torch.empty(0).byte())
    pairs = nt_xent_triton.TritonPairs(rows, columns, diagonals, temperature, products)
    compared = [*zip(pairs.gradients(a, b, True), tiles.gradients(*exact[2:], True), strict=True)]
    if columns is not None:
        compared += zip(pairs.gradients(a), tiles.gradients(exact[2]), strict=True)
    sums = [(x.row_sums(),) if columns is None else x.row_and_column_sums() for x in (pairs, tiles)]
    return [max(relative_error(*pair) for pair in of) for of in (zip(*sums, strict=True), compared)]


def relative_error(x, y):
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


if __name__ == "__main__":
    json.dump(interpret(), sys.stdout)
