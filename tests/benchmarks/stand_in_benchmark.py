"""A benchmark whose contenders do what the harness must survive; their processes import it from here."""

import functools
import os
import signal
import time

import torch

from benchmarks import harness, memory
from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.targets import Memory, Ratio

LIMIT = 10.0  # seconds until the contender that hangs counts as hanging
HELD = 64 * 2**20  # bytes that "holds" needs at its peak; half of them at the second case


def napping(seconds, parts=False):
    def build(case, device):
        work = Work(lambda: time.sleep(seconds), amount=(8, "naps"))
        if parts:

            def run():
                time.sleep(seconds)
                work.parts["half"] = work.parts.get("half", 0.0) + seconds / 2

            work.run = run
        return work

    return build


def raising(case, device):
    raise RuntimeError("out of luck\nand a second line")


def holding(case, device):
    """Needs memory while it runs, in pieces that malloc keeps for itself when they are freed."""

    def run():
        pieces = [torch.ones(2**16, dtype=torch.uint8) for _ in range(HELD // 2**16 // case.size["n"])]
        return len(pieces)

    return Work(run)


def greedy(case, device):
    """Asks for what is free, to the last byte; without touching it, so that only a limit can say no."""
    everything = memory.available() or 2**62
    return Work(lambda: torch.empty(everything, dtype=torch.uint8))


def dying(case, device):
    """Ended from outside at the first case, as the kernel does where memory runs out."""
    if case.name == "first":
        os.kill(os.getpid(), signal.SIGKILL)
    return Work(lambda: None)


def hanging(case, device):
    time.sleep(3600)


def judged(value, expected=2.0):
    def build(case, device):
        def check(result, truth):
            assert truth["value"] == expected
            return {"value": abs(result - truth["value"].item()) / expected}

        return Work(lambda: value, check)

    return build


BENCHMARK = Benchmark(
    module=__name__,
    title="Stand-in",
    note="Naps.",
    contenders=(
        Contender("short", "a short nap", napping(0.002, parts=True)),
        Contender("long", "a long nap", napping(0.008)),
        Contender("raises", "raises", raising),
        Contender("holds", "holds memory", holding),
        Contender("greedy", "greedy", greedy),
        Contender("dies", "dies", dying),
        Contender("hangs", "hangs", hanging, lambda case: case.name == "first"),
        Contender("right", "right", judged(2.0)),
        Contender("wrong", "wrong", judged(2.5)),
        Contender("skips", "skips", raising, lambda case: False),
        Contender("compiled", "compiled", napping(0.002), compiled=True),
    ),
    cases=(Case("first", {"n": 1}), Case("second", {"n": 2})),
    quick_cases=(Case("first", {"n": 1}), Case("second", {"n": 2})),
    views=(View("Time", "time", ("short", "long", "raises", "skips")),),
    targets=(
        Ratio("short over long", "short", 0.5, "first", "long"),
        Ratio("long over short", "long", 1.0, "first", "short"),
        Ratio("long over raises", "long", 1.0, "first", "raises"),
        Ratio("raises over long", "raises", 1.0, "first", "long"),
        Ratio("wrong over long", "wrong", 1.0, "first", "long"),
        Memory("holds", "holds", 100, "first"),
        Memory("elsewhere", "holds", 100, "third"),
    ),
    oracle=lambda case, precision: {"value": torch.tensor(2.0, dtype=torch.float64)},
)


@functools.cache
def measure():
    """The results of measuring it for real, once for all tests."""
    options = harness.Options(quick=True, rounds=3, threads=1, limit=LIMIT)
    return harness.measure(BENCHMARK, options, "a test")
