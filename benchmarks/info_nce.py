"""`functional.info_nce`, forward and backward of the mean loss, beside its peers and its floor.

The floor is two full products of 2N x 2N x D: similarities are symmetric, so the forward pass needs half a product,
the backward pass the same half again, recomputed, and one for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import formulas
from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.targets import Exponent, FloorShare, Memory, Ratio, Target

D = 128
EVERYONE = (32, 64, 128, 256, 512, 1024, 2048, 4096)
OURS_ALONE = (8192, 16384)
SQUARE = 2048  # side of the matrices whose product gives the machine's rate

Loss = Callable[[Tensor, Tensor], Tensor]


def case(n: int, square: int = SQUARE) -> Case:
    return Case(f"N = {n}", {"n": n, "d": D, "square": square}, flop=2 * 2.0 * (2 * n) ** 2 * D)


def loss_work(make: Callable[[], Loss], precision: str = "float32") -> Callable[[Case, str], Work]:
    """Forward and backward of a loss on leaves, their gradients made anew at every call."""

    def build(case: Case, device: str) -> Work:
        loss = make()
        leaves = [x.to(device).requires_grad_() for x in inputs(case, precision)]

        def run() -> Tensor:
            for leaf in leaves:
                leaf.grad = None
            value = loss(*leaves)
            value.backward()
            return value.detach()

        def check(value: Tensor, truth: dict[str, Any] | None) -> dict[str, float]:
            assert truth is not None
            gradient = torch.cat([leaf.grad for leaf in leaves])
            expected = torch.cat((truth["gradient"], truth["gradient_prime"]))
            return {
                "value": formulas.relative_error(value, truth["value"]),
                "gradient": formulas.relative_error(gradient, expected),
            }

        return Work(run, check)

    return build


def inputs(case: Case, precision: str) -> tuple[Tensor, Tensor]:
    return formulas.views(case.size["n"], case.size["d"], precision)


def ours() -> Loss:
    from stochastic_bottleneck import InfoNCELoss

    return InfoNCELoss(formulas.TEMPERATURE)


def compiled(make: Callable[[], Loss]) -> Callable[[], Loss]:
    """For one shape, the way torch.compile serves peers best."""
    return lambda: torch.compile(make(), fullgraph=True, dynamic=False)


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(formulas.TEMPERATURE)
    return loss


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    loss: Loss = SelfSupervisedLoss(NTXentLoss(formulas.TEMPERATURE))
    return loss


def matrix_product(case: Case, device: str) -> Work:
    """One product of square matrices, large enough to show the machine's rate."""
    side = case.size["square"]
    a, b = torch.randn(2, side, side, device=device)
    return Work(lambda: a @ b, amount=(2.0 * side**3, "flop"))


def oracle(case: Case, precision: str) -> dict[str, Tensor]:
    return formulas.oracle(*inputs(case, precision))


def small_enough(case: Case) -> bool:
    return bool(case.size["n"] <= max(EVERYONE))


def not_small(case: Case) -> bool:
    return bool(256 <= case.size["n"] <= max(EVERYONE))


PEERS = ("plain", "plain_compiled", "lightly", "solo_learn", "metric_learning")
COLUMNS = ("ours", "ours_compiled", "ours_bf16", *PEERS)

TARGETS: tuple[Target, ...] = (
    *(
        Ratio(f"{text}, {case(n).name}", "ours", limit, case(n).name, peer)
        for n, peer, text, limit in (
            (1024, "plain_compiled", "time over the plain formula's, compiled", 0.45),
            (1024, "lightly", "time over lightly's", 0.3),
            (4096, "plain_compiled", "time over the plain formula's, compiled", 0.35),
            (4096, "lightly", "time over lightly's", 0.125),
        )
    ),
    # Where both run the same formula the ratio is 1 give or take the noise of a sample.
    *(
        Ratio(f"{text}, {case(n).name}", name, 1.05, case(n).name, peer)
        for name, peer, text in (
            ("ours", "plain", "time over the plain formula's"),
            ("ours_compiled", "plain_compiled", "time over the plain formula's, both compiled"),
        )
        for n in (32, 64, 128, 256)
    ),
    *(
        Ratio(f"bf16's time over float32's, {case(n).name}", "ours_bf16", 1 / 1.5, case(n).name, "ours")
        for n in (1024, 4096)
    ),
    Memory("extra memory, N = 4096", "ours", 64, "N = 4096"),
    Memory("extra memory, N = 16384", "ours", 250, "N = 16384"),
    Exponent(
        "exponent of time in N, 4096 to 16384", "ours", 2.1, tuple(case(n).name for n in (4096, 8192, 16384))
    ),
    FloorShare("share of the matrix product's floor, N = 4096", "ours", 0.85, "N = 4096", "product"),
)

BENCHMARK = Benchmark(
    module=__name__,
    title="InfoNCE",
    note=f"Forward and backward of the mean loss over 2N rows of width {D}, temperature {formulas.TEMPERATURE}.",
    contenders=(
        Contender("ours", "ours", loss_work(ours)),
        Contender("ours_compiled", "ours, compiled", loss_work(compiled(ours)), small_enough, compiled=True),
        # Tolerance: inputs of 8 bits; a gradient rounded to them is off by 2^-9 of itself at most.
        Contender(
            "ours_bf16",
            "ours, bf16",
            loss_work(ours, "bfloat16"),
            not_small,
            precision="bfloat16",
            tolerance=8e-3,
        ),
        Contender("plain", "plain formula", loss_work(lambda: formulas.plain), small_enough),
        Contender(
            "plain_compiled",
            "plain, compiled",
            loss_work(compiled(lambda: formulas.plain)),
            small_enough,
            compiled=True,
        ),
        Contender("lightly", "lightly", loss_work(lightly), small_enough),
        Contender("solo_learn", "solo-learn's formula", loss_work(lambda: formulas.unshifted), small_enough),
        Contender("metric_learning", "pytorch-metric-learning", loss_work(metric_learning), small_enough),
        Contender("product", "matrix product", matrix_product),
    ),
    cases=tuple(case(n) for n in (*EVERYONE, *OURS_ALONE)),
    quick_cases=(case(16, square=256),),
    views=(
        View("Time", "time", COLUMNS),
        View("Extra memory at the peak", "memory", COLUMNS),
        View("First call, compiling included", "first call", ("ours_compiled", "plain_compiled")),
    ),
    targets=TARGETS,
    oracle=oracle,
    floor="product",
    axis="n",
)
