"""Shared by the benchmarks of both samplers: a sample and its KL divergence, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.benchmark import Benchmark, Case, Contender, View, Work
from benchmarks.losses import relative_error
from benchmarks.targets import Ratio

SHAPES = ((256, 128), (1024, 512), (4096, 2048))
QUICK_SHAPES = ((8, 16),)
LARGEST = "4096 x 2048"

Sampler = Callable[..., tuple[Tensor, Tensor]]
"""From the distribution's parameters to a sample, Shape: (N, D), and its KL divergence, Shape: (N,)."""


def sampler_work(
    make: Callable[[], Sampler],
    parameters: Callable[[int, int], tuple[Tensor, ...]],
    kl: Callable[..., Tensor],
    compiled: bool,
) -> Callable[[Case, str], Work]:
    """Noise, sample and KL divergence forward, and backward from random upstream gradients, as in training."""

    def build(case: Case, device: str) -> Work:
        n, d = case.size["n"], case.size["d"]
        function = torch.compile(make(), dynamic=False) if compiled else make()
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
            # Each sampler draws its own noise; with a zero gradient into the sample the rest does not depend on it.
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
    ours: Callable[[], Sampler],
    distributions: Callable[[], Sampler],
    parameters: Callable[[int, int], tuple[Tensor, ...]],
    kl: Callable[..., Tensor],
    limit: float,
) -> Benchmark:
    """A sampler's benchmark: ours and torch.distributions, eager and compiled.

    `parameters` makes the distribution's parameters, `kl` is the plain formula, `limit` the largest ratio of times.
    """
    contenders = tuple(
        Contender(
            f"{name}_compiled" if compiled else name,
            f"{label}, compiled" if compiled else label,
            sampler_work(make, parameters, kl, compiled),
            compiled=compiled,
        )
        for name, label, make in (
            ("ours", "ours", ours),
            ("distributions", "torch.distributions", distributions),
        )
        for compiled in (False, True)
    )
    names = tuple(c.name for c in contenders)
    cases, quick_cases = (
        tuple(Case(f"{n} x {d}", {"n": n, "d": d}) for n, d in shapes) for shapes in (SHAPES, QUICK_SHAPES)
    )
    target = Ratio(f"time over torch.distributions', {LARGEST}", "ours", limit, LARGEST, "distributions")
    return Benchmark(
        module=module,
        title=title,
        note="Noise, a sample and its KL divergence of an N x D batch, and backward from random gradients of both.",
        contenders=contenders,
        cases=cases,
        quick_cases=quick_cases,
        views=(
            View("Time", "time", names),
            View("Extra memory at the peak", "memory", names),
            View("First call with compilation", "first call", ("ours_compiled", "distributions_compiled")),
        ),
        targets=(target,),
    )
