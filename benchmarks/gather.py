"""`InfoNCELoss(gather_distributed=True)` in two processes over gloo, beside lightly's.

One call is the local loss, its backward pass and every exchange on the way; the first process is timed, and a second
one, started by it, does the same at the same time with the other half of the rows and of the threads.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import formulas
from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.formulas import TEMPERATURE
from benchmarks.targets import Exponent, Ratio

D = 128
WORLD = 2
LIMIT = timedelta(seconds=300)

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[], Tensor]


def case(n: int) -> Case:
    return Case(f"N = {WORLD} x {n}", {"n": n, "d": D})


def ours() -> Loss:
    from stochastic_bottleneck import InfoNCELoss

    return InfoNCELoss(TEMPERATURE, gather_distributed=True)


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(TEMPERATURE, gather_distributed=True)
    return loss


LOSSES: dict[str, Callable[[], Loss]] = {"ours": ours, "lightly": lightly}


def local_step(name: str, case: Case, rank: int) -> tuple[Step, list[Tensor]]:
    """One process's loss, and its leaves: the rows of its rank."""
    n, loss = case.size["n"], LOSSES[name]()
    everyone = formulas.views(WORLD * n, case.size["d"], "float32")
    leaves = [x[rank * n : (rank + 1) * n].clone().requires_grad_() for x in everyone]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()
        return value.detach()

    return step, leaves


def join(rank: int, folder: str) -> None:
    """Enter the group of both processes, with half of the threads."""
    torch.set_num_threads(max(1, torch.get_num_threads() // WORLD))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD, timeout=LIMIT
    )


def second(connection: Connection, name: str, folder: str, threads: int) -> None:
    """The other process: it builds and steps whenever the first says so, and leaves when that is gone."""
    torch.set_num_threads(threads)
    join(1, folder)
    step: Step | None = None
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        if case is not None:
            step, _ = local_step(name, case, 1)
        elif step is not None:
            step()


class Pair:
    """The second process, kept from case to case."""

    connection: Connection | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None  # where the processes meet; kept as long as they

    @classmethod
    def start(cls, name: str) -> Connection:
        if cls.connection is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit threads that do not run
            cls.folder = tempfile.TemporaryDirectory()
            cls.connection, other = context.Pipe()
            arguments = (other, name, cls.folder.name, torch.get_num_threads())
            context.Process(target=second, args=arguments, daemon=True).start()
            other.close()
            join(0, cls.folder.name)
        return cls.connection


def gather_work(name: str) -> Callable[[Case, str], Work]:
    def build(case: Case, device: str) -> Work:
        if device != "cpu":
            raise RuntimeError("two processes over gloo are measured on the CPU only")
        other = Pair.start(name)
        other.send(case)
        step, leaves = local_step(name, case, 0)

        def run() -> Tensor:
            other.send(None)
            return step()

        def check(value: Tensor, truth: dict[str, Any] | None) -> dict[str, float]:
            assert truth is not None
            n = case.size["n"]
            expected = torch.cat((truth["gradient"][:n], truth["gradient_prime"][:n]))
            gradient = torch.cat([leaf.grad for leaf in leaves])
            # Each process's loss is a mean over its own rows; DistributedDataParallel divides by their number.
            return {"gradient": formulas.relative_error(gradient / WORLD, expected)}

        return Work(run, check)

    return build


def oracle(case: Case, precision: str) -> dict[str, Tensor]:
    return formulas.oracle(*formulas.views(WORLD * case.size["n"], case.size["d"], precision))


CONTENDERS = (
    Contender("ours", "ours, gathered", gather_work("ours")),
    Contender("lightly", "lightly, gathered", gather_work("lightly")),
)
NAMES = tuple(c.name for c in CONTENDERS)
SIZES = (128, 512, 1024, 2048)

BENCHMARK = Benchmark(
    module=__name__,
    title="InfoNCE gathered from two processes of N",
    note=f"Local rows against the gathered ones, both processes at once, over gloo; width {D}. "
    "Time and memory are the first process's.",
    contenders=CONTENDERS,
    cases=tuple(case(n) for n in SIZES),
    quick_cases=(case(8),),
    views=(View("Time", "time", NAMES), View("Extra memory at the peak", "memory", NAMES)),
    targets=(
        *(
            Ratio(f"time over lightly's, {case(n).name}", "ours", 1.0, case(n).name, "lightly")
            for n in SIZES[1:]
        ),
        Exponent(
            "exponent of memory in N, 512 to 2048 a process",
            "ours",
            1.2,
            tuple(case(n).name for n in SIZES[1:]),
            metric="memory",
        ),
    ),
    oracle=oracle,
    axis="n",
)
