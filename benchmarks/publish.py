"""Writes figures, a summary and the README's section from `benchmarks/results/*.json`, and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import benchmarks
from benchmarks import environment, figures, tables
from benchmarks.targets import Ratio, Results, find

SUMMARY = "table.md"
HEADLINE = ("N = 1024", "N = 4096")
COLUMNS = ("ours", "plain_compiled", "lightly", "solo_learn", "metric_learning")
FIGURE = (
    "![Time of InfoNCE, forward and backward, against N on logarithmic axes: ours, its peers and the floor of matrix "
    "products](benchmarks/results/info_nce_time.svg)\n"
)
SECTION = re.compile(r"(<!-- table: benchmarks/results/table.md -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(root: Path = environment.ROOT) -> None:
    """Write figures and summary to the results' folder, and the summary into the README."""
    folder = root / "benchmarks" / "results"
    found = load(folder)
    for name, results in found.items():
        for stem, figure in figures.draw(tables.benchmark_of(name), results).items():
            environment.write_atomically(folder / f"{stem}.svg", figure)
    text = summary(found)
    environment.write_atomically(folder / SUMMARY, text)
    readme = root / "README.md"
    section = SECTION.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", readme.read_text())
    environment.write_atomically(readme, section)


def load(folder: Path) -> dict[str, Results]:
    """All results in a folder, by benchmark."""
    paths = {name: folder / f"{name}.json" for name in benchmarks.NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def summary(found: dict[str, Results]) -> str:
    """The README's section."""
    parts = [_headline(found["info_nce"]), FIGURE] if "info_nce" in found else []
    if rows := [row for name, results in found.items() if name != "info_nce" for row in _ratios(name, results)]:
        parts.append(tables.Table("", ("", "ours", "peer", "ratio", "target"), tuple(rows)).markdown())
    if found:
        parts.append("\n".join(_conditions(found)) + "\n")
    if missing := ", ".join(f"`{name}`" for name in benchmarks.NAMES if name not in found):
        parts.append(f"Not measured yet: {missing}.\n")
    return "\n".join(parts)


def _headline(results: Results) -> str:
    benchmark = tables.benchmark_of("info_nce")
    names = [name for name in COLUMNS if any(row["contender"] == name for row in results["rows"])]
    lines = [(case, case, "time") for case in HEADLINE]
    lines.append((HEADLINE[-1], f"extra memory, {HEADLINE[-1]}", "memory"))
    rows = []
    for case, title, metric in lines:
        rows.append((title, *(tables.cell(find(results, case, name), metric) for name in names)))
    header = ("InfoNCE, forward and backward", *(benchmark.contender(name).label for name in names))
    return tables.Table("", header, tuple(rows)).markdown()


def _ratios(name: str, results: Results) -> list[tuple[str, ...]]:
    """A row for each ratio among the benchmark's targets that was measured."""
    benchmark = tables.benchmark_of(name)
    rows = []
    for target in (x for x in benchmark.targets if isinstance(x, Ratio)):
        ours, peer = (find(results, target.case, who) for who in (target.contender, target.peer))
        if ours and peer:
            outcome = target.outcome(results)
            peer_time = f"{tables.cell(peer, 'time')}, {benchmark.contender(target.peer).label}"
            what = f"{benchmark.title}, {target.case}"
            rows.append((what, tables.cell(ours, "time"), peer_time, outcome.measured, outcome.limit))
    return rows


def _conditions(found: dict[str, Results]) -> list[str]:
    """A line for each machine and commit."""
    by_conditions: dict[str, list[str]] = {}
    for name, results in found.items():
        machine = results["environment"]
        versions = environment.versions(machine, ("torch", "lightly", "pytorch-metric-learning"))
        made_by = f"commit {environment.commit(machine)}, {results['date'][:10]}"
        line = f"{environment.hardware(machine)}; {versions}; {made_by}"
        by_conditions.setdefault(line, []).append(name)
    if len(by_conditions) == 1:
        return [f"Medians on {line}." for line in by_conditions]
    return [f"- {', '.join(names)}: medians on {line}" for line, names in by_conditions.items()]
