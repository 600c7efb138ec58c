"""Results as tables: for a terminal, for Markdown and for reStructuredText."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

from benchmarks import provenance
from benchmarks.contract import Benchmark, View
from benchmarks.targets import Outcome, Results, Row, find, floor_share, part_share

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A heading, a header and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Columns in line, for a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        written = [
            "  ".join(cell.ljust(w) for cell, w in zip(x, widths, strict=True)).rstrip() for x in lines
        ]
        rule = "  ".join("-" * w for w in widths)
        return "\n".join((self.title, "", written[0], rule, *written[1:], ""))

    def markdown(self) -> str:
        """A table as GitHub shows it, without the heading."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        written = ([cell.replace("|", r"\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in written) + "\n"

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
    """Everything worth a table: each view, the shares, failures, and the targets."""
    found = [_view(benchmark, view, results) for view in benchmark.views]
    found += [_floor(benchmark, results), _parts(results), failures(results), _targets(benchmark, results)]
    return [table for table in found if table.rows]


def outcomes(benchmark: Benchmark, results: Results) -> list[Outcome]:
    """Each target beside what was measured."""
    return [target.outcome(results) for target in benchmark.targets]


def conditions(results: Results) -> list[tuple[str, str]]:
    """What the numbers depend on."""
    environment, options = results["environment"], results["options"]
    packages = environment["packages"].items()
    versions = ", ".join(f"{name} {version}" for name, version in packages if version is not None)
    commit = f"{environment['commit']}{' with changes' if environment['dirty'] else ''}"
    found = [
        ("Command", results["command"]),
        ("Machine", f"{provenance.hardware(environment)}, {environment['cpu_capability']}"),
        ("Versions", f"Python {environment['python']}, {versions}"),
        ("Commit", f"{commit}, {results['date']}"),
    ]
    if options["quick"]:
        found.append(("Quick", "tiny sizes; says that it runs, not how fast"))
    return found


def _view(benchmark: Benchmark, view: View, results: Results) -> Table:
    cells = {"time": time_cell, "first call": _first_cell, "memory": memory_cell, "rate": _rate_cell}
    cell = cells[view.metric]
    took_part = {row["contender"] for row in results["rows"]}
    columns = [name for name in view.contenders if name in took_part]
    rows = []
    for case in _cases(results):
        found = [find(results, case, name) for name in columns]
        if any(found):
            rows.append((case, *(cell(row) if row else NOTHING for row in found)))
    return Table(view.title, ("", *(benchmark.label(name) for name in columns)), tuple(rows))


def _floor(benchmark: Benchmark, results: Results) -> Table:
    rows = []
    for case in _cases(results) if benchmark.floor else ():
        product = find(results, case, str(benchmark.floor))
        ours = find(results, case, benchmark.contenders[0].name)
        if product and ours and product["median_s"] and ours["median_s"]:
            rate = product["amount"] / product["median_s"]
            least = seconds(ours["flop"] / rate)
            rows.append((case, f"{rate / 1e9:.0f} GFLOP/s", least, f"{floor_share(ours, product):.0%}"))
    header = ("", "matrix product", "floor", f"share reached by {benchmark.contenders[0].label}")
    return Table("Floor", header, tuple(rows))


def _parts(results: Results) -> Table:
    rows = []
    for row in results["rows"]:
        for part in row["parts_s"]:
            rows.append((row["case"], row["label"], part, f"{part_share(row, part):.1%}"))
    return Table("Parts", ("", "contender", "part", "share of the time"), tuple(rows))


def failures(results: Results) -> Table:
    """Contenders that failed, or whose result is wrong."""
    rows = []
    for row in results["rows"]:
        agreement = row["agreement"]
        if row["error"] is not None:
            rows.append((row["case"], row["label"], row["error"]))
        elif agreement is not None and not agreement["agrees"]:
            worst = ", ".join(f"{k} {_error(v)}" for k, v in agreement["relative_errors"].items())
            rows.append(
                (
                    row["case"],
                    row["label"],
                    f"off the oracle by more than {agreement['tolerance']:g}: {worst}",
                )
            )
    return Table("Failures", ("", "contender", "what happened"), tuple(rows))


def _targets(benchmark: Benchmark, results: Results) -> Table:
    rows = tuple((o.text, o.limit, o.measured, o.state) for o in outcomes(benchmark, results))
    return Table("Targets", ("target", "limit", "measured", ""), rows)


def _cases(results: Results) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in results["rows"]))


def time_cell(row: Row) -> str:
    """Median time, or why there is none."""
    return seconds(row["median_s"]) if row["median_s"] is not None else _failure(row)


def _first_cell(row: Row) -> str:
    return seconds(row["first_call_s"]) if row["first_call_s"] is not None else _failure(row)


def _rate_cell(row: Row) -> str:
    return f"{row['amount'] / row['median_s']:,.0f}" if row["median_s"] is not None else _failure(row)


def memory_cell(row: Row) -> str:
    """Extra memory, or why it is not known."""
    if row["error"] is not None:
        return _failure(row)
    return size(row["peak_bytes"]) if row["peak_bytes"] is not None else NOTHING


def _failure(row: Row) -> str:
    """What fits a cell: how much memory was asked for where that is what failed."""
    asked = re.search(r"tried to allocate (\d+) bytes", row["error"] or "")
    return f"asks for {size(int(asked[1]))}" if asked else "fails"


def seconds(value: float) -> str:
    """A time with three digits."""
    units = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
    factor, unit = next((pair for pair in units if value * pair[0] >= 1), units[-1])
    return f"{_digits(value * factor)} {unit}"


def size(value: float) -> str:
    """A number of bytes with two or three digits."""
    return f"{_digits(value / 1e9)} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"


def _digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
