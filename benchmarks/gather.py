"""`InfoNCELoss(gather_distributed=True)` in two processes over gloo, compared with lightly's.

One call is the local loss, its backward pass and all communication. The first process is timed; it starts a second one,
which does the same at the same time with the other half of the rows and of the threads.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import losses
from benchmarks.benchmark import Benchmark, Case, Contender, View, Work
from benchmarks.targets import Exponent, Ratio

D = 128
WORLD_SIZE = 2
TIMEOUT = timedelta(seconds=300)
SIZES = (128, 512, 1024, 2048)


def case(n: int) -> Case:
    return Case(f"N = {WORLD_SIZE} x {n}", {"n": n, "d": D})


def local_step(name: str, case: Case, rank: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """One process's loss, and its leaves: the rows of its rank."""
    n, loss = case.size["n"], getattr(losses, name)(gather_distributed=True)
    rows = losses.views(WORLD_SIZE * n, case.size["d"], "float32")
    leaves = [x[rank * n : (rank + 1) * n].clone().requires_grad_() for x in rows]
    return losses.forward_backward(loss, leaves), leaves


def join(rank: int, folder: str, threads: int) -> None:
    """Join the process group with half of the threads."""
    torch.set_num_threads(max(1, threads // WORLD_SIZE))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE, timeout=TIMEOUT
    )


def second_process(connection: Connection, name: str, folder: str, threads: int) -> None:
    """Build a case when it receives one, take a step when it receives None, end when the pipe closes."""
    join(1, folder, threads)
    step: Callable[[], Any] = lambda: None  # noqa: E731
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        if case is None:
            step()
        else:
            step, _ = local_step(name, case, 1)


@functools.cache
def start_second_process(name: str) -> tuple[Connection, tempfile.TemporaryDirectory[str]]:
    """Start it and join it, once for all cases; the folder must live as long as the process group."""
    context = multiprocessing.get_context("spawn")  # a fork would copy threads that do not run
    folder, threads = tempfile.TemporaryDirectory(), torch.get_num_threads()
    connection, other = context.Pipe()
    context.Process(target=second_process, args=(other, name, folder.name, threads), daemon=True).start()
    other.close()
    join(0, folder.name, threads)
    return connection, folder


def gather_work(name: str) -> Callable[[Case, str], Work]:
    def build(case: Case, device: str) -> Work:
        if device != "cpu":
            raise RuntimeError("two processes over gloo are measured on the CPU only")
        other, _folder = start_second_process(name)
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
            # Each process's loss is a mean over its own rows; DistributedDataParallel divides by the world size.
            return {"gradient": losses.relative_error(gradient / WORLD_SIZE, expected)}

        return Work(run, check)

    return build


def oracle(case: Case, precision: str) -> dict[str, Tensor]:
    return losses.oracle(*losses.views(WORLD_SIZE * case.size["n"], case.size["d"], precision))


NAMES = ("ours", "lightly")
LARGE = tuple(case(n).name for n in SIZES[1:])

BENCHMARK = Benchmark(
    module=__name__,
    title="InfoNCE gathered from two processes of N",
    note=f"Local rows against the gathered ones, both processes at once, over gloo; width {D}. "
    "Time and memory are the first process's.",
    contenders=tuple(Contender(name, f"{name}, gathered", gather_work(name)) for name in NAMES),
    cases=tuple(case(n) for n in SIZES),
    quick_cases=(case(8),),
    views=(View("Time", "time", NAMES), View("Extra memory at the peak", "memory", NAMES)),
    targets=(
        *(Ratio(f"time over lightly's, {name}", "ours", 1.0, name, "lightly") for name in LARGE),
        Exponent(*("exponent of memory in N, 512 to 2048 a process", "ours", 1.2), cases=LARGE, metric="memory"),
    ),
    oracle=oracle,
    axis="n",
)
