"""What the two samplers' benchmarks share: a sample and its divergence, backwards through both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.formulas import relative_error
from benchmarks.targets import Ratio

SHAPES = ((256, 128), (1024, 512), (4096, 2048))
QUICK = ((8, 16),)
LARGEST = "4096 x 2048"

Draw = Callable[..., tuple[Tensor, Tensor]]
"""From the distribution's parameters to a sample of Shape: (N, D) and its divergence of Shape: (N,)."""


def sampler_work(
    draw: Callable[[], Draw],
    parameters: Callable[[int, int], tuple[Tensor, ...]],
    kl: Draw,
    compiled: bool = False,
) -> Callable[[Case, str], Work]:
    """Noise, sample and divergence forward, and backward from random upstream gradients, as in training.

    Args:
        draw: makes the function that is measured.
        parameters: makes the distribution's parameters.
        kl: the divergence alone, written plainly, for float64.
        compiled: run it through torch.compile.
    """

    def build(case: Case, device: str) -> Work:
        n, d = case.size["n"], case.size["d"]
        function = torch.compile(draw(), dynamic=False) if compiled else draw()
        leaves = [x.to(device).requires_grad_() for x in parameters(n, d)]
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(n, d, generator=generator).to(device)
        upstream_kl = torch.randn(n, generator=generator).to(device)

        def run(gradient: Tensor = upstream) -> tuple[Tensor, Tensor]:
            for leaf in leaves:
                leaf.grad = None
            z, divergence = function(*leaves)
            torch.autograd.backward((z, divergence), (gradient, upstream_kl))
            return z.detach(), divergence.detach()

        def check(_: Any, truth: dict[str, Any] | None) -> dict[str, float]:
            # Samplers draw their own noise; a zero gradient into the sample leaves what does not depend on it.
            _, divergence = run(torch.zeros_like(upstream))
            exact = [x.detach().cpu().double().requires_grad_() for x in leaves]
            expected = kl(*exact)
            expected.backward(upstream_kl.cpu().double())
            errors = {"kl": relative_error(divergence, expected.detach())}
            for i, (leaf, wanted) in enumerate(zip(leaves, exact, strict=True)):
                errors[f"kl_gradient_{i}"] = relative_error(leaf.grad, wanted.grad)
            return errors

        return Work(run, check)

    return build


def benchmark(
    module: str,
    title: str,
    ours: Callable[[], Draw],
    theirs: Callable[[], Draw],
    parameters: Callable[[int, int], tuple[Tensor, ...]],
    kl: Callable[..., Tensor],
    times: float,
) -> Benchmark:
    """A sampler's benchmark: ours and torch.distributions, eager and compiled.

    Args:
        module: the benchmark's `__name__`.
        title: heading.
        ours: makes our function.
        theirs: makes torch.distributions' function.
        parameters: makes the distribution's parameters.
        kl: the divergence, written plainly.
        times: how often as fast ours must be.
    """
    makers = {"ours": ours, "distributions": theirs}
    labels = {"ours": "ours", "distributions": "torch.distributions"}
    contenders = tuple(
        Contender(
            f"{name}_compiled" if compiled else name,
            f"{labels[name]}, compiled" if compiled else labels[name],
            sampler_work(make, parameters, kl, compiled),
            compiled=compiled,
        )
        for name, make in makers.items()
        for compiled in (False, True)
    )
    names = tuple(c.name for c in contenders)
    cases, quick = (
        tuple(Case(f"{n} x {d}", {"n": n, "d": d}) for n, d in shapes) for shapes in (SHAPES, QUICK)
    )
    return Benchmark(
        module=module,
        title=title,
        note="Noise, a sample and its divergence of an N x D batch, and backward from random gradients of both.",
        contenders=contenders,
        cases=cases,
        quick_cases=quick,
        views=(
            View("Time", "time", names),
            View("Extra memory at the peak", "memory", names),
            View(
                "First call, compiling included",
                "first call",
                tuple(c.name for c in contenders if c.compiled),
            ),
        ),
        targets=(
            Ratio(f"time over torch.distributions', {LARGEST}", "ours", 1 / times, LARGEST, "distributions"),
        ),
    )
