"""The side of a contender: it waits for a turn, works, and reports; whatever goes wrong becomes a report too."""

from __future__ import annotations

import gc
import importlib
import math
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import memory
from benchmarks.contract import Benchmark, Case, Work

SHORTEST = 0.05
"""Seconds a sample lasts at least; shorter calls are repeated, and their mean is the sample."""
REAWAKEN = 0.5
"""Seconds below which a turn begins with a call that is not timed: caches and threads were somebody else's."""


def serve(
    connection: Connection, module: str, name: str, device: str, threads: int | None, folder: str
) -> None:
    """Answer the harness until it hangs up.

    Args:
        connection: to the harness.
        module: where the benchmark is.
        name: contender's name, or "oracle".
        device: "cpu" or "cuda".
        threads: for torch; None for its own choice.
        folder: for compiled code, empty at first: the first call's time is that of compiling, today.
    """
    multiprocessing.set_start_method(
        None, force=True
    )  # a contender's own processes start as they would elsewhere
    # One thread that compiles: a pool of helpers would stay, and share the cores.
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own: Ctrl-C reaches the harness alone, which ends whole groups
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads is not None:
        torch.set_num_threads(threads)
    worker = Worker(module, name, device)
    commands = {
        "describe": worker.describe,
        "prepare": worker.prepare,
        "sample": worker.sample,
        "release": worker.release,
        "oracle": worker.oracle,
    }
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            break
        try:
            reply = commands[command](*arguments)
        except BaseException as error:
            reply = describe_error(error)
            worker.release()
        try:
            connection.send(reply)
        except OSError:
            break
    worker.release()


class Worker:
    """One contender's work, case after case."""

    def __init__(self, module: str, name: str, device: str) -> None:
        self.module, self.name, self.device = module, name, device
        self.work: Work | None = None
        self.calls = 1
        self.estimate = 0.0

    @property
    def benchmark(self) -> Benchmark:
        """Imported when it is first needed, so that an import that fails is a report."""
        benchmark: Benchmark = importlib.import_module(self.module).BENCHMARK
        return benchmark

    def describe(self) -> dict[str, Any]:
        """What only a process with torch at work knows."""
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        return {
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": gpu,
        }

    def prepare(self, case: Case, reference: str | None) -> dict[str, Any]:
        """Build the work of a case; time its first call apart, compare its result, measure its memory."""
        self.release()
        if self.device == "cpu":  # CUDA reserves more addresses than any machine has memory
            memory.limit_to_available()
        contender = self.benchmark.contender(self.name)
        gc.freeze()  # torch's own objects need not be looked through at every collection
        torch.manual_seed(0)
        work = self.work = contender.build(case, self.device)
        with work.turn():
            first, result = self._timed(1)
            agreement = None
            if work.check is not None:
                truth = torch.load(reference, weights_only=True) if reference else None
                agreement = _agreement(work.check(result, truth), contender.tolerance)
            result = None  # held, it would be missing from the peak
            with memory.peak(self.device) as peak:
                self.estimate, result = self._timed(1)
            result = None
            if self.estimate < 1:  # the call before was not a warm one for compiled code or a cold cache
                self.estimate = min(self._timed(1)[0] for _ in range(2))
            self.calls = max(1, math.ceil(SHORTEST / max(self.estimate, 1e-6)))
        amount, unit = work.amount or (None, None)
        return {
            "first_call_s": first,
            "estimate_s": self.estimate,
            "calls": self.calls,
            "peak_bytes": peak.bytes,
            "memory_method": peak.method,
            "agreement": agreement,
            "amount": amount,
            "unit": unit,
        }

    def sample(self) -> dict[str, Any]:
        """One timed sample: seconds a call, the mean over calls enough to be timed."""
        assert self.work is not None
        with self.work.turn():
            if self.estimate < REAWAKEN:
                self._timed(1)
            self.work.parts.clear()
            start = time.monotonic()
            seconds, _ = self._timed(self.calls)
        parts = {name: value / self.calls for name, value in self.work.parts.items()}
        return {"start": start, "end": time.monotonic(), "seconds": seconds, "parts": parts}

    def release(self) -> dict[str, Any]:
        """Give back what the last case held."""
        work, self.work = self.work, None
        if work is not None:
            work.close()
        del work
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # the next case is compiled for its own shape
        gc.collect()
        return {}

    def oracle(self, case: Case, precision: str, path: str) -> dict[str, Any]:
        """Save the float64 result of a case for contenders to compare with."""
        assert self.benchmark.oracle is not None
        torch.save(self.benchmark.oracle(case, precision), path)
        return {}

    def _timed(self, calls: int) -> tuple[float, Any]:
        assert self.work is not None
        run, result = self.work.run, None
        self._synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        self._synchronise()
        return (time.perf_counter() - start) / calls, result

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _agreement(errors: dict[str, float], tolerance: float) -> dict[str, Any]:
    finite = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    agrees = all(error is not None and error <= tolerance for error in finite.values())
    return {"relative_errors": finite, "tolerance": tolerance, "agrees": agrees}


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as a report: its type and the line that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return {"error": text[:300]}
