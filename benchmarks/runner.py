"""Measures contenders in alternation, each in a process of its own, so that ratios are robust to drift of the machine.

All processes of a benchmark start at once and wait for commands on a pipe. At each case every contender prepares:
first call, agreement with the oracle, memory. Then come the rounds, with one sample of each contender in an order that
rotates. A machine that slows down slows every contender of a round, and the ratio of two contenders is the median of
the rounds' ratios.
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
from typing import Annotated, Any, Literal

import tyro

from benchmarks import environment
from benchmarks.benchmark import Benchmark, Case, Contender
from benchmarks.worker import serve

PAUSE = 0.05  # seconds between turns, in which OpenMP's threads stop spinning and leave the cores to the next
CASE_BUDGET = 30.0  # seconds for all samples of a contender at a case; a slow one gets fewer rounds, at least three
VERY_SLOW = 10.0  # seconds per sample above which a contender gets a single round


@dataclass(frozen=True)
class Options:
    """How to measure."""

    quick: bool = False  # tiny cases, two rounds, nothing compiled; exit with 1 where a contender fails
    device: Literal["cpu", "cuda"] = "cpu"
    rounds: int | None = None  # samples per contender, instead of the benchmark's own number
    threads: int | None = None  # of each contender, instead of torch's default (1 for quick runs)
    limit: float = 900.0  # seconds after which a contender that does not answer has failed
    cases: Annotated[tuple[str, ...], tyro.conf.arg(name="case")] = ()  # measure this case only
    # Measure this contender only.
    contenders: Annotated[tuple[str, ...], tyro.conf.arg(name="contender")] = ()

    @property
    def full(self) -> bool:
        """Whether the results may replace those in benchmarks/results, which are of the CPU with the defaults."""
        return self == Options()


def measure(
    benchmark: Benchmark, options: Options, command: str, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure a benchmark: a description of the run, and a row for each contender at each case."""
    begin, date, machine = time.monotonic(), environment.now(), environment.describe()
    cases = benchmark.quick_cases if options.quick else benchmark.cases
    cases = tuple(case for case in cases if case.name in (options.cases or [case.name]))
    contenders = [c for c in benchmark.contenders if not (options.quick and c.compiled)]
    contenders = [c for c in contenders if c.name in (options.contenders or [c.name])]
    if not (contenders and cases):
        allowed = [c.name for c in benchmark.cases], [c.name for c in benchmark.contenders]
        got = f"got {options.cases} and {options.contenders}"
        raise ValueError(f"cases and contenders of {benchmark.name} must be among {allowed}, {got}")
    options = replace(
        options,
        rounds=options.rounds or (2 if options.quick else benchmark.rounds),
        threads=options.threads or (1 if options.quick else None),
    )
    rows = []
    with _start_all(benchmark, contenders, options) as (processes, folder):
        machine |= next(iter(processes.values())).ask("describe")
        if "error" in machine:
            raise RuntimeError(f"the device cannot be used: {machine['error']}")
        for case in cases:
            log(f"{benchmark.name} {case.name}")
            taking = [c for c in contenders if c.takes(case)]
            precisions = {c.precision for c in taking}
            oracles = {p: _oracle(benchmark, case, p, folder, options) for p in precisions}
            rows += _measure_case(case, taking, processes, oracles, options.rounds or 1, begin)
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "command": command,
        "date": date,
        "seconds": round(time.monotonic() - begin, 1),
        "options": asdict(options),
        "environment": machine,
        "rows": rows,
    }


def _measure_case(
    case: Case,
    contenders: list[Contender],
    processes: dict[str, _Process],
    oracles: dict[str, str | None],
    rounds: int,
    begin: float,
) -> list[dict[str, Any]]:
    rows = {contender.name: new_row(case, contender) for contender in contenders}
    limits = {}
    for contender in contenders:
        row = rows[contender.name]
        row |= processes[contender.name].ask("prepare", case, oracles[contender.precision])
        if row["error"] is None:
            limits[contender.name] = number_of_rounds(rounds, row.pop("estimate_s") * row["calls"])
        time.sleep(PAUSE)
    for turn in range(rounds):
        first = turn % max(1, len(contenders))
        for contender in contenders[first:] + contenders[:first]:
            row = rows[contender.name]
            if row["error"] is not None or turn >= limits[contender.name]:
                continue
            time.sleep(PAUSE)
            sample = processes[contender.name].ask("sample")
            row["error"] = sample.get("error")
            if row["error"] is None:
                row["samples_s"].append(sample["seconds"])
                row["spans_s"].append([round(sample[key] - begin, 6) for key in ("start", "end")])
    for name, row in rows.items():
        processes[name].ask("release")
        if samples := row["samples_s"]:
            row["median_s"] = statistics.median(samples)
            several = samples if len(samples) > 1 else 2 * samples
            row["quartiles_s"] = statistics.quantiles(several, method="inclusive")[::2]
    return list(rows.values())


def new_row(case: Case, contender: Contender) -> dict[str, Any]:
    """A row without measurements."""
    return {
        "contender": contender.name,
        "label": contender.label,
        "case": case.name,
        "size": case.size,
        "flop": case.flop,
        "precision": contender.precision,
        "compiled": contender.compiled,
        **dict.fromkeys(("error", "median_s", "quartiles_s")),
        "samples_s": [],
        "spans_s": [],
        **dict.fromkeys(("calls", "first_call_s", "peak_bytes", "agreement", "amount")),
    }


def number_of_rounds(most: int, seconds: float) -> int:
    """Rounds of a contender whose samples take so many seconds."""
    least = 1 if seconds > VERY_SLOW else 3
    return min(most, max(least, int(CASE_BUDGET / max(seconds, 1e-9))))


class _Process:
    """A contender's process and the pipe to it; restarted for the next case if it died."""

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
        other.close()  # so that the pipe closes when the process dies

    def ask(self, command: str, *arguments: Any) -> dict[str, Any]:
        """Send a command and return the reply, which has an error if the process died or did not answer."""
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
            code = self.process.exitcode or 0
            self.end()
            status = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            return {"error": f"its process ended with {status}"}

    def end(self, patience: float = 0.0) -> None:
        """Close the pipe, wait, and kill the process and its children if it has not ended cleanly."""
        self.connection.close()
        self.process.join(patience)
        if self.process.exitcode == 0:
            return
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except (AttributeError, OSError):  # Windows; or it is gone, or has no group of its own yet
            self.process.kill()
        self.process.join(5)


def _oracle(benchmark: Benchmark, case: Case, precision: str, folder: str, options: Options) -> str | None:
    """File with the float64 results of a case for inputs of a precision, computed in a process of its own."""
    if benchmark.oracle is None:
        return None
    path = f"{folder}/{precision}.pt"
    process = _Process(benchmark, "oracle", options, folder)
    reply = process.ask("oracle", case, precision, path)
    process.end(1)
    if "error" in reply:
        raise RuntimeError(f"the oracle of {benchmark.name} {case.name} failed: {reply['error']}")
    return path


@contextmanager
def _start_all(
    benchmark: Benchmark, contenders: list[Contender], options: Options
) -> Iterator[tuple[dict[str, _Process], str]]:
    """Start a process for each contender, with a temporary folder, and end all of them at the end."""
    processes: dict[str, _Process] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for contender in contenders:
                processes[contender.name] = _Process(benchmark, contender.name, options, folder)
            yield processes, folder
        finally:
            for process in processes.values():
                process.connection.close()  # first all pipes, so that the processes end at the same time
            for process in processes.values():
                process.end(5)


def _context() -> Any:
    """Processes that share nothing but an import of torch: forked from a server that has done nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context
