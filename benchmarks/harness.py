"""Measures: every contender in a process of its own, one at a time, in turn, so that ratios outlive the drift.

All processes of a benchmark are started at once and wait on a pipe. At each case every contender prepares (first call
and memory, apart), and then the rounds go round: one sample of each, a rotated order every round. A machine that
slows down slows all of them in the same round, and the ratio of two contenders is the median of the rounds' ratios.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import provenance
from benchmarks.contract import Benchmark, Case, Contender
from benchmarks.worker import serve

PAUSE = 0.05
"""Seconds between turns: OpenMP's threads spin for a while after work, on a core that the next one needs."""
LIMIT = 900.0
"""Seconds after which a contender that does not answer counts as failed."""
PATIENCE = 30.0
"""Seconds that all samples of one contender at one case may take; a slow one gets fewer rounds, but at least three,
and a very slow one (`VERY_SLOW` seconds a sample) a single one."""
VERY_SLOW = 10.0


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        quick: tiny cases, no compiled contenders; says that it runs, not how fast.
        device: "cpu" or "cuda".
        rounds: samples of each contender at each case; None for the benchmark's own number.
        threads: of each contender; None for torch's choice.
        limit: seconds after which a contender that does not answer counts as failed.
        cases: names of the cases to measure; all when empty.
        contenders: names of the contenders to measure; all when empty.
    """

    quick: bool = False
    device: str = "cpu"
    rounds: int | None = None
    threads: int | None = None
    limit: float = LIMIT
    cases: tuple[str, ...] = ()
    contenders: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether this is a run for the record."""
        return not (self.quick or self.rounds or self.cases or self.contenders)


def measure(
    benchmark: Benchmark, options: Options, command: str, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Everything that a results file holds: header and a row for each contender at each case."""
    begin, date = time.monotonic(), provenance.now()
    environment = provenance.environment()
    contenders = [
        c
        for c in benchmark.contenders
        if not (options.quick and c.compiled) and c.name in (options.contenders or [c.name])
    ]
    cases = benchmark.quick_cases if options.quick else benchmark.cases
    cases = tuple(case for case in cases if case.name in (options.cases or [case.name]))
    if not (contenders and cases):
        there = {c.name for c in benchmark.cases}, {c.name for c in benchmark.contenders}
        raise ValueError(
            f"nothing to measure in {benchmark.name}: cases and contenders must be among {there}, "
            f"got {options.cases} and {options.contenders}"
        )
    if options.rounds is None:
        options = replace(options, rounds=benchmark.rounds)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        _isolated(benchmark, contenders, options, folder) as processes,
    ):
        environment |= next(iter(processes.values())).ask("describe")
        for case in cases:
            say(f"{benchmark.name} {case.name}")
            oracles = _Oracles(benchmark, case, folder, options)
            taking = [c for c in contenders if c.takes(case)]
            rows += _measure_case(benchmark, case, taking, processes, oracles, options, begin)
    where = provenance.measured_on(environment)
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "command": command,
        "date": date,
        "seconds": round(time.monotonic() - begin, 1),
        "options": asdict(options),
        "environment": environment,
        "rows": [{**row, "measured_on": where} for row in rows],
    }


def _measure_case(
    benchmark: Benchmark,
    case: Case,
    contenders: list[Contender],
    processes: dict[str, _Process],
    oracles: _Oracles,
    options: Options,
    begin: float,
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    rounds = options.rounds or benchmark.rounds
    for contender in contenders:
        row = rows[contender.name] = _empty_row(case, contender)
        reference = oracles.path(contender.precision)
        prepared = processes[contender.name].ask("prepare", case, reference)
        row |= prepared
        if row["error"] is None:
            row["wanted"] = _rounds(rounds, row.pop("estimate_s") * row["calls"])
        time.sleep(PAUSE)
    for turn in range(rounds):
        first = turn % max(1, len(contenders))
        for contender in contenders[first:] + contenders[:first]:
            row = rows[contender.name]
            if row["error"] is not None or turn >= row["wanted"]:
                continue
            time.sleep(PAUSE)
            sample = processes[contender.name].ask("sample")
            row["error"] = sample.get("error")
            if row["error"] is None:
                row["samples_s"].append(sample["seconds"])
                row["spans_s"].append([round(sample[key] - begin, 6) for key in ("start", "end")])
                for name, seconds in sample["parts"].items():
                    row["parts_s"].setdefault(name, []).append(seconds)
    for contender in contenders:
        processes[contender.name].ask("release")
        row = rows[contender.name]
        row.pop("wanted", None)
        if row["samples_s"]:
            row["median_s"] = statistics.median(row["samples_s"])
            row["quartiles_s"] = quartiles(row["samples_s"])
    return list(rows.values())


def quartiles(samples: list[float]) -> list[float]:
    """First and third quartile, among the samples."""
    if len(samples) == 1:
        return [samples[0], samples[0]]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return [first, third]


def _empty_row(case: Case, contender: Contender) -> dict[str, Any]:
    return {
        "contender": contender.name,
        "label": contender.label,
        "case": case.name,
        "size": case.size,
        "flop": case.flop,
        "precision": contender.precision,
        "compiled": contender.compiled,
        "error": None,
        "median_s": None,
        "quartiles_s": None,
        "samples_s": [],
        "spans_s": [],
        "parts_s": {},
        "calls": None,
        "first_call_s": None,
        "peak_bytes": None,
        "memory_method": None,
        "agreement": None,
        "amount": None,
        "unit": None,
    }


def _rounds(most: int, seconds: float) -> int:
    least = 1 if seconds > VERY_SLOW else 3
    return min(most, max(least, int(PATIENCE / max(seconds, 1e-9))))


class _Process:
    """A contender's process and the pipe to it; started anew for the next case after it has died."""

    def __init__(self, benchmark: Benchmark, name: str, options: Options, folder: str) -> None:
        self.arguments = (benchmark.module, name, options.device, options.threads, folder)
        self.limit = options.limit
        self.start()

    def start(self) -> None:
        context = _context()
        self.connection: Connection
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *self.arguments))
        self.process.start()
        other.close()  # so that its death is the end of the pipe

    def ask(self, command: str, *arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its reply; a process that dies or hangs replies with an error too."""
        if not self.process.is_alive():
            self.start()
        try:
            self.connection.send((command, arguments))
            if not self.connection.poll(self.limit):
                self.end()
                return {"error": f"no answer after {self.limit:g} s"}
            reply: dict[str, Any] = self.connection.recv()
            return reply
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.end()
            return {"error": f"its process ended with {_exit(code)}"}

    def end(self, patience: float = 0.0) -> None:
        """Hang up, wait a little, and end what is left: a contender may have started workers of its own."""
        self.connection.close()
        self.process.join(patience)
        if self.process.exitcode == 0:  # it has closed what it had started
            return
        if self.process.pid is not None and hasattr(os, "killpg"):
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # gone, or not yet a group of its own
                self.process.kill()
        else:
            self.process.kill()
        self.process.join(5)


class _Oracles:
    """Float64 results of one case, one file for each precision of the inputs, made when first asked for."""

    def __init__(self, benchmark: Benchmark, case: Case, folder: str, options: Options) -> None:
        self.benchmark, self.case, self.folder, self.options = benchmark, case, folder, options
        self.paths: dict[str, str | None] = {}

    def path(self, precision: str) -> str | None:
        if self.benchmark.oracle is None:
            return None
        if precision not in self.paths:
            path = f"{self.folder}/{precision}.pt"
            process = _Process(self.benchmark, "oracle", self.options, self.folder)
            try:
                reply = process.ask("oracle", self.case, precision, path)
            finally:
                process.end(1)
            if "error" in reply:
                raise RuntimeError(
                    f"the oracle of {self.benchmark.name} {self.case.name} failed: {reply['error']}"
                )
            self.paths[precision] = path
        return self.paths[precision]


@contextmanager
def _isolated(
    benchmark: Benchmark, contenders: list[Contender], options: Options, folder: str
) -> Iterator[dict[str, _Process]]:
    """A waiting process for each contender; all are ended, whatever happens."""
    processes: dict[str, _Process] = {}
    try:
        for contender in contenders:
            processes[contender.name] = _Process(benchmark, contender.name, options, folder)
        yield processes
    finally:
        for process in processes.values():
            process.connection.close()  # all hang up first, and end together
        for process in processes.values():
            process.end(5)


def _context() -> Any:
    """Processes that share nothing but an import of torch: forked from a server that has done nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context


def _exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
