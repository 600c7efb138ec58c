"""A contender's process: it waits for commands, runs them and replies; errors become replies too."""

from __future__ import annotations

import gc
import importlib
import math
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import memory
from benchmarks.benchmark import Benchmark, Case, Work

MIN_SAMPLE = 0.05  # smallest duration of a sample in seconds; shorter calls are repeated, the sample is their mean
WARM_UP = 0.5  # shorter calls are preceded by an untimed one, since others have used the caches in between


def serve(connection: Connection, module: str, name: str, device: str, threads: int | None, folder: str) -> None:
    """Answer the runner's commands until it closes the pipe; compiled code is cached in a folder of its own."""
    multiprocessing.set_start_method(None, force=True)  # a contender's own processes start the default way
    # Compile in this process: a pool of compiler processes would stay and share the cores.
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{name}", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own: Ctrl-C reaches only the runner, which ends whole groups
    if threads is not None:
        torch.set_num_threads(threads)
    worker = Worker(module, name, device)
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            break
        try:
            reply = getattr(worker, command)(*arguments)
        except BaseException as error:
            reply = describe_error(error)
        try:
            connection.send(reply)
        except OSError:
            break
        if "error" in reply:  # only now, since the exception held the frames with their tensors
            worker.release()
    worker.release()


class Worker:
    """The commands, for one contender."""

    def __init__(self, module: str, name: str, device: str) -> None:
        self.module, self.name, self.device = module, name, device
        self.work: Work | None = None
        self.calls = 1
        self.estimate = 0.0

    @property
    def benchmark(self) -> Benchmark:
        """Imported when first needed, so that a failing import becomes a reply."""
        benchmark: Benchmark = importlib.import_module(self.module).BENCHMARK
        return benchmark

    def describe(self) -> dict[str, Any]:
        """The machine as torch sees it."""
        return {
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if self.device == "cuda" else None,
        }

    def prepare(self, case: Case, oracle: str | None) -> dict[str, Any]:
        """Build the work of a case, time the first call, check its result and measure its memory."""
        self.release()
        if self.device == "cpu":  # CUDA reserves more addresses than any machine has memory
            memory.limit_to_available()
        contender = self.benchmark.contender(self.name)
        gc.freeze()  # skip torch's own objects in garbage collection
        torch.manual_seed(0)
        work = self.work = contender.build(case, self.device)
        with work.turn():
            first, result = self._time(1)
            agreement = None
            if work.check is not None:
                truth = torch.load(oracle, weights_only=True) if oracle else None
                agreement = compare(work.check(result, truth), contender.tolerance)
            result = None  # its memory would not be counted in the peak
            with memory.peak(self.device) as peak:
                self.estimate, result = self._time(1)
            result = None
            if self.estimate < 1:  # the second call may still be slow after compilation
                self.estimate = min(self._time(1)[0] for _ in range(2))
            self.calls = max(1, math.ceil(MIN_SAMPLE / max(self.estimate, 1e-6)))
        return {
            "first_call_s": first,
            "estimate_s": self.estimate,
            "calls": self.calls,
            **peak,
            "agreement": agreement,
            "amount": work.amount,
        }

    def sample(self) -> dict[str, Any]:
        """Seconds per call, the mean over enough calls for a sample."""
        assert self.work is not None
        with self.work.turn():
            if self.estimate < WARM_UP:
                self._time(1)
            start = time.monotonic()
            seconds, _ = self._time(self.calls)
        return {"start": start, "end": time.monotonic(), "seconds": seconds}

    def release(self) -> dict[str, Any]:
        """Free the last case."""
        if self.work is not None:
            self.work.close()
        self.work = None
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # the next case is compiled for its own shape
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()  # for the other contenders
        return {}

    def oracle(self, case: Case, precision: str, path: str) -> dict[str, Any]:
        """Save the float64 result of a case, which contenders are compared with."""
        assert self.benchmark.oracle is not None
        torch.save(self.benchmark.oracle(case, precision), path)
        return {}

    def _time(self, calls: int) -> tuple[float, Any]:
        assert self.work is not None
        run, result = self.work.run, None
        self._synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        self._synchronize()
        return (time.perf_counter() - start) / calls, result

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def compare(errors: dict[str, float], tolerance: float) -> dict[str, Any]:
    """Whether all relative errors are finite and within the tolerance."""
    finite = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    agrees = all(error is not None and error <= tolerance for error in finite.values())
    return {"relative_errors": finite, "tolerance": tolerance, "agrees": agrees}


def describe_error(error: BaseException) -> dict[str, Any]:
    """The type of an exception and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return {"error": text[:300]}
