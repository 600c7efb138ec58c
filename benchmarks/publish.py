"""What the results say, for readers: figures and a summary beside them, and the README's section from that.

`python -m benchmarks --publish` draws everything anew from `benchmarks/results/*.json`, so that what is published
follows from the files alone; what has not been measured is said not to be.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import benchmarks
from benchmarks import figures, provenance, tables
from benchmarks.files import write_atomically
from benchmarks.targets import Ratio, Results, find

SUMMARY = "table.md"
HEADLINE = ("N = 1024", "N = 4096")
BESIDE = ("ours", "plain_compiled", "lightly", "solo_learn", "metric_learning")
PICTURE = (
    "![Time of InfoNCE, forward and backward, against N on logarithmic axes: ours, its peers and the floor of matrix "
    "products](benchmarks/results/info_nce_time.svg)\n"
)
SECTION = re.compile(r"(<!-- table: benchmarks/results/table.md -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(root: Path = provenance.ROOT) -> None:
    """Figures and summary into the results' folder, the summary into the README."""
    folder = root / "benchmarks" / "results"
    found = load(folder)
    for name, results in found.items():
        for stem, picture in figures.draw(tables.benchmark_of(name), results).items():
            write_atomically(folder / f"{stem}.svg", picture)
    text = summary(found)
    write_atomically(folder / SUMMARY, text)
    readme = root / "README.md"
    write_atomically(readme, SECTION.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", readme.read_text()))


def load(folder: Path) -> dict[str, Results]:
    """Results that there are, by benchmark, in the benchmarks' order."""
    paths = {name: folder / f"{name}.json" for name in benchmarks.NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def summary(found: dict[str, Results]) -> str:
    """The README's section."""
    parts = []
    if "info_nce" in found:
        parts += [_headline(found["info_nce"]), PICTURE]
    if rows := [
        row for name, results in found.items() if name != "info_nce" for row in _ratios(name, results)
    ]:
        parts.append(tables.Table("", ("", "ours", "beside", "ratio", "target"), tuple(rows)).markdown())
    if found:
        parts.append("\n".join(_conditions(found)) + "\n")
    if missing := [name for name in benchmarks.NAMES if name not in found]:
        named = ", ".join(f"`{name}`" for name in missing)
        parts.append(f"Not measured yet: {named}.\n")
    return "\n".join(parts)


def _headline(results: Results) -> str:
    benchmark = tables.benchmark_of("info_nce")
    names = [name for name in BESIDE if any(row["contender"] == name for row in results["rows"])]
    rows = []
    for case in HEADLINE:
        found = [find(results, case, name) for name in names]
        rows.append((case, *(tables.time_cell(row) if row else tables.NOTHING for row in found)))
    found = [find(results, HEADLINE[-1], name) for name in names]
    memory = (tables.memory_cell(row) if row else tables.NOTHING for row in found)
    rows.append((f"extra memory, {HEADLINE[-1]}", *memory))
    header = ("InfoNCE, forward and backward", *(benchmark.label(name) for name in names))
    return tables.Table("", header, tuple(rows)).markdown()


def _ratios(name: str, results: Results) -> list[tuple[str, ...]]:
    """A row for each ratio that is a target of this benchmark and was measured."""
    benchmark = tables.benchmark_of(name)
    rows = []
    for target in benchmark.targets:
        if not isinstance(target, Ratio):
            continue
        ours, peer = find(results, target.case, target.contender), find(results, target.case, target.peer)
        if ours and peer:
            outcome = target.outcome(results)
            label = benchmark.label(target.peer)
            what = f"{benchmark.title}, {target.case}"
            beside = f"{tables.time_cell(peer)}, {label}"
            rows.append((what, tables.time_cell(ours), beside, outcome.measured, outcome.limit))
    return rows


def _conditions(found: dict[str, Results]) -> list[str]:
    """One line for each set of conditions that results were measured under."""
    by_conditions: dict[str, list[str]] = {}
    for name, results in found.items():
        environment = results["environment"]
        versions = ", ".join(
            f"{package} {environment['packages'][package]}"
            for package in ("torch", "lightly", "pytorch-metric-learning")
            if environment["packages"][package]
        )
        commit = f"{environment['commit']}{' with changes' if environment['dirty'] else ''}"
        line = f"{provenance.hardware(environment)}; {versions}; commit {commit}, {results['date'][:10]}"
        by_conditions.setdefault(line, []).append(name)
    if len(by_conditions) == 1:
        return [f"Medians on {line}." for line in by_conditions]
    return [f"- {', '.join(names)}: medians on {line}" for line, names in by_conditions.items()]
