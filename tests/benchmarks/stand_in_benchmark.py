"""A benchmark whose contenders misbehave in every way that the runner must survive; their processes import it."""

import functools
import os
import signal
import time

import torch

from benchmarks import memory, runner
from benchmarks.benchmark import Benchmark, Case, Contender, View, Work
from benchmarks.targets import Memory, Ratio

LIMIT = 10.0  # seconds after which the contender that hangs has failed
HELD = 64 * 2**20  # bytes that "holds" needs at its peak; half of them at the second case


def sleeping(seconds):
    return lambda case, device: Work(lambda: time.sleep(seconds))


def raising(case, device):
    raise RuntimeError("out of luck\nand a second line")


def holding(case, device):
    """Needs memory while it runs, in pieces that malloc does not return when they are freed."""

    count = HELD // 2**16 // case.size["n"]
    return Work(lambda: len([torch.ones(2**16, dtype=torch.uint8) for _ in range(count)]))


def greedy(case, device):
    """Asks for all free memory without writing to it, so that only a limit can refuse it."""
    return Work(lambda: torch.empty(memory.available() or 2**62, dtype=torch.uint8))


def dying(case, device):
    """Killed at the first case, as the kernel does when memory runs out."""
    return os.kill(os.getpid(), signal.SIGKILL) if case.name == "first" else Work(lambda: None)


def hanging(case, device):
    time.sleep(3600)


def returning(value):
    def check(result, truth):
        return {"value": abs(result - truth["value"].item()) / truth["value"].item()}

    return lambda case, device: Work(lambda: value, check)


CASES = Case("first", {"n": 1}), Case("second", {"n": 2})
BENCHMARK = Benchmark(
    module=__name__,
    title="Stand-in",
    note="Sleeps.",
    contenders=(
        Contender("short", "a short sleep", sleeping(0.002)),
        Contender("long", "a long sleep", sleeping(0.008)),
        Contender("raises", "raises", raising),
        Contender("holds", "holds memory", holding),
        Contender("greedy", "greedy", greedy),
        Contender("dies", "dies", dying),
        Contender("hangs", "hangs", hanging, lambda case: case.name == "first"),
        Contender("right", "right", returning(2.0)),
        Contender("wrong", "wrong", returning(2.5)),
        Contender("skips", "skips", raising, lambda case: False),
        Contender("compiled", "compiled", sleeping(0.002), compiled=True),
    ),
    cases=CASES,
    quick_cases=CASES,
    views=(View("Time", "time", ("short", "long", "raises", "skips")),),
    targets=(
        Ratio("short over long", "short", 0.5, "first", "long"),
        Ratio("long over short", "long", 1.0, "first", "short"),
        Ratio("long over raises", "long", 1.0, "first", "raises"),
        Ratio("raises over long", "raises", 1.0, "first", "long"),
        Ratio("wrong over long", "wrong", 1.0, "first", "long"),
        Memory("holds", "holds", 100, "first"),
        Memory("no such case", "holds", 100, "third"),
    ),
    oracle=lambda case, precision: {"value": torch.tensor(2.0, dtype=torch.float64)},
)


@functools.cache
def measure():
    """Measure it, once for all tests."""
    return runner.measure(BENCHMARK, runner.Options(quick=True, rounds=3, threads=1, limit=LIMIT), "a test")
