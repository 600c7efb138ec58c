"""`functional.info_nce`, forward and backward of the mean loss, compared with other libraries and with a floor.

The floor is the matrix products of a loss that caches nothing: similarities are symmetric, so the forward pass needs
half a product of 2N x 2N x D, and the backward pass the same half again, recomputed, and one for the gradient. Ours
caches some exponentials and needs 1.5 products where all fit. On a GPU the floor has float32's rate without tensor
cores, which the loss uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import losses
from benchmarks.benchmark import Benchmark, Case, Contender, View, Work
from benchmarks.targets import Exponent, FloorShare, Memory, Ratio

D = 128
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LARGE_SIZES = (8192, 16384)  # for ours alone
SQUARE = 2048  # side of the matrices whose product measures the machine's rate


def case(n: int) -> Case:
    return Case(f"N = {n}", {"n": n, "d": D}, flop=2 * 2.0 * (2 * n) ** 2 * D)


def inputs(case: Case, precision: str) -> tuple[Tensor, Tensor]:
    return losses.views(case.size["n"], case.size["d"], precision)


def oracle(case: Case, precision: str) -> dict[str, Tensor]:
    return losses.oracle(*inputs(case, precision))


def loss_work(
    make: Callable[[], losses.Loss], precision: str = "float32", compiled: bool = False
) -> Callable[[Case, str], Work]:
    """Forward and backward of a loss; compiled for one shape, which suits the peers best."""

    def build(case: Case, device: str) -> Work:
        loss = torch.compile(make(), fullgraph=True, dynamic=False) if compiled else make()
        leaves = [x.to(device).requires_grad_() for x in inputs(case, precision)]

        def check(value: Tensor, truth: dict[str, Any] | None) -> dict[str, float]:
            assert truth is not None
            gradient = torch.cat([leaf.grad for leaf in leaves])
            expected = torch.cat((truth["gradient"], truth["gradient_prime"]))
            return {
                "value": losses.relative_error(value, truth["value"]),
                "gradient": losses.relative_error(gradient, expected),
            }

        return Work(losses.forward_backward(loss, leaves), check)

    return build


def metric_learning() -> losses.Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(losses.TEMPERATURE))  # type: ignore[no-any-return]


def matrix_product(case: Case, device: str) -> Work:
    """A product of square matrices, large enough to measure the machine's rate."""
    a, b = torch.randn(2, SQUARE, SQUARE, device=device)
    return Work(lambda: a @ b, amount=2.0 * SQUARE**3)


def small(case: Case) -> bool:
    return bool(case.size["n"] <= max(SIZES))


def medium(case: Case) -> bool:
    return bool(256 <= case.size["n"] <= max(SIZES))


def contender(
    name: str, label: str, make: Callable[[], losses.Loss], takes: Callable[[Case], bool] = small
) -> Contender:
    compiled = name.endswith("_compiled")
    return Contender(name, label, loss_work(make, compiled=compiled), takes, compiled=compiled)


COLUMNS = (
    *("ours", "ours_compiled", "ours_bf16"),
    *("plain", "plain_compiled", "lightly", "solo_learn", "metric_learning"),
)


def ratio(n: int, name: str, peer: str, text: str, limit: float) -> Ratio:
    return Ratio(f"{text}, N = {n}", name, limit, f"N = {n}", peer)


PLAIN, COMPILED = "time over the plain formula's", "time over the plain formula's, both compiled"

BENCHMARK = Benchmark(
    module=__name__,
    title="InfoNCE",
    note=f"Forward and backward of the mean loss over 2N rows of width {D}, temperature {losses.TEMPERATURE}.",
    contenders=(
        contender("ours", "ours", losses.ours, lambda case: True),
        contender("ours_compiled", "ours, compiled", losses.ours),
        # Tolerance: bfloat16 has 8 bits; rounding a gradient to them changes it by up to 2^-9 of itself.
        Contender("ours_bf16", "ours, bf16", loss_work(losses.ours, "bfloat16"), medium, False, "bfloat16", 8e-3),
        contender("plain", "plain formula", lambda: losses.plain),
        contender("plain_compiled", "plain, compiled", lambda: losses.plain),
        contender("lightly", "lightly", losses.lightly),
        contender("solo_learn", "solo-learn's formula", lambda: losses.solo_learn),
        contender("metric_learning", "pytorch-metric-learning", metric_learning),
        Contender("product", "matrix product", matrix_product),
    ),
    cases=tuple(case(n) for n in (*SIZES, *LARGE_SIZES)),
    quick_cases=(case(16),),
    views=(
        View("Time", "time", COLUMNS),
        View("Extra memory at the peak", "memory", COLUMNS),
        View("First call with compilation", "first call", ("ours_compiled", "plain_compiled")),
    ),
    targets=(
        ratio(1024, "ours", "plain_compiled", "time over the plain formula's, compiled", 0.45),
        ratio(1024, "ours", "lightly", "time over lightly's", 0.3),
        ratio(4096, "ours", "plain_compiled", "time over the plain formula's, compiled", 0.35),
        ratio(4096, "ours", "lightly", "time over lightly's", 0.125),
        # At small N ours is the plain formula too, with the mask added within the product.
        *(ratio(n, "ours", "plain", PLAIN, 1.05) for n in (32, 64, 128, 256)),
        *(ratio(n, "ours_compiled", "plain_compiled", COMPILED, 1.05) for n in (32, 64, 128, 256)),
        *(ratio(n, "ours_bf16", "ours", "bf16's time over float32's", 1 / 1.5) for n in (1024, 4096)),
        Memory("extra memory, N = 4096", "ours", 64, "N = 4096"),
        Memory("extra memory, N = 16384", "ours", 250, "N = 16384"),
        Exponent(
            *("exponent of time in N, 4096 to 16384", "ours", 2.1),
            cases=tuple(f"N = {n}" for n in (4096, *LARGE_SIZES)),
        ),
        FloorShare("share of the matrix product's floor, N = 4096", "ours", 0.85, "N = 4096", "product"),
    ),
    oracle=oracle,
    floor="product",
    axis="n",
)
