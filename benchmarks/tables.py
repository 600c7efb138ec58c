"""Results as tables, in Markdown and reStructuredText."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

from benchmarks import environment
from benchmarks.benchmark import Benchmark, View
from benchmarks.targets import Results, Row, find, floor_share

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A heading, a header and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A Markdown table without the heading, its columns aligned."""
        lines = [[cell.replace("|", r"\|") for cell in line] for line in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        aligned = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
        return "".join(f"| {' | '.join(cells)} |\n" for cells in aligned)

    def rst(self) -> str:
        """A list-table."""
        kind = "results sentences" if self.title in ("Targets", "Failures") else "results"
        lines = [f".. list-table:: {self.title}", "   :header-rows: 1", f"   :class: {kind}", ""]
        for row in (self.header, *self.rows):
            cells = [r"\-" if cell == NOTHING else re.sub(r"([\\`*_|])", r"\\\1", cell) for cell in row]
            lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
        return "\n".join(lines) + "\n"


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of that name."""
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return benchmark


def tables(benchmark: Benchmark, results: Results) -> list[Table]:
    """All tables that are not empty: each view, the floor, failures and targets."""
    found = [_view(benchmark, view, results) for view in benchmark.views]
    found += [_floor(benchmark, results), failures(results), _targets(benchmark, results)]
    return [table for table in found if table.rows]


def conditions(results: Results) -> list[tuple[str, str]]:
    """Command, machine, versions and commit."""
    machine = results["environment"]
    found = [
        ("Command", results["command"]),
        ("Machine", f"{environment.hardware(machine)}, {machine['cpu_capability']}"),
        ("Versions", f"Python {machine['python']}, {environment.versions(machine)}"),
        ("Commit", f"{environment.commit(machine)}, {results['date']}"),
    ]
    if results["options"]["quick"]:
        found.append(("Quick", "tiny sizes; the times mean nothing"))
    return found


def failures(results: Results) -> Table:
    """Contenders that failed or returned a wrong result."""
    rows = []
    for row in results["rows"]:
        agreement, what = row["agreement"], row["error"]
        if what is None and agreement is not None and not agreement["agrees"]:
            errors = agreement["relative_errors"].items()
            written = (f"{key} {'not finite' if error is None else f'{error:.1e}'}" for key, error in errors)
            what = f"differs from the oracle by more than {agreement['tolerance']:g}: {', '.join(written)}"
        if what is not None:
            rows.append((row["case"], row["label"], what))
    return Table("Failures", ("", "contender", "what happened"), tuple(rows))


def _view(benchmark: Benchmark, view: View, results: Results) -> Table:
    measured = {row["contender"] for row in results["rows"]}
    columns = [name for name in view.contenders if name in measured]
    rows = []
    for case in _cases(results):
        found = [find(results, case, name) for name in columns]
        if any(found):
            rows.append((case, *(cell(row, view.metric) for row in found)))
    return Table(view.title, ("", *(benchmark.contender(name).label for name in columns)), tuple(rows))


def _floor(benchmark: Benchmark, results: Results) -> Table:
    rows = []
    ours = benchmark.contenders[0]
    for case in _cases(results) if benchmark.floor else ():
        product, row = find(results, case, str(benchmark.floor)), find(results, case, ours.name)
        if product and row and product["median_s"] and row["median_s"]:
            rate = product["amount"] / product["median_s"]
            least = seconds(row["flop"] / rate)
            rows.append((case, f"{rate / 1e9:.0f} GFLOP/s", least, f"{floor_share(row, product):.0%}"))
    header = ("", "matrix product", "floor", f"share reached by {ours.label}")
    return Table("Floor", header, tuple(rows))


def _targets(benchmark: Benchmark, results: Results) -> Table:
    rows = tuple(tuple(target.outcome(results)) for target in benchmark.targets)
    return Table("Targets", ("target", "limit", "measured", ""), rows)


def _cases(results: Results) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in results["rows"]))


def cell(row: Row | None, metric: str) -> str:
    """Time or extra memory of a row, or why there is none: the memory requested, where that was the cause."""
    if row is None:
        return NOTHING
    if row["error"] is not None:
        asked = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMG]iB)", row["error"])
        units = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
        return f"asks for {size(float(asked[1]) * units[asked[2]])}" if asked else "fails"
    value = row[{"time": "median_s", "first call": "first_call_s", "memory": "peak_bytes"}[metric]]
    if value is None:
        return NOTHING
    return size(value) if metric == "memory" else seconds(value)


def seconds(value: float) -> str:
    """A time to three digits."""
    units = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
    factor, unit = next((pair for pair in units if value * pair[0] >= 1), units[-1])
    return f"{_digits(value * factor)} {unit}"


def size(value: float) -> str:
    """A number of bytes to two or three digits."""
    return f"{_digits(value / 1e9)} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"


def _digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"
