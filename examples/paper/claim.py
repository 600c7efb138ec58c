"""Shared by the scripts of this folder: read runs of cifar10_full.py, write a claim's results file, draw its figure.

A script's docstring begins with "Title: claim." Its function `measure` turns runs that differ in their seed into rows
of a table and curves; `conclude` turns the rows into a sentence and what has to be true for the claim. Runs with other
numbers of epochs are rows of their own; finding and verdict are about the largest group, or the longest schedule of
equally large ones.
"""

import csv
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn

from stochastic_bottleneck.evaluation import Encoded, encode
from stochastic_bottleneck.hub import HubModel

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))
from cifar10_full import NORMALIZE, Settings, build_encoder, load_images  # noqa: E402
from provenance import provenance, write  # noqa: E402
from runs import DEVICE, load_encoder  # noqa: E402

LABELS = {"simclr": "SimCLR", "penalized": "SimCLR + penalty", "bern": "StochCon Bern", "gauss": "StochCon Gauss"}
LABELS |= {"supervised": "Supervised"}
COLORS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
Json = dict[str, Any]
Cell = Any  # text, a number, a list with one number per seed, or None for what was not measured
Rows = list[dict[str, Cell]]


@dataclass
class Options:
    """Command line of a script."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()  # Run folders; with none, figure and CSV are made again
    out: Path = EXAMPLES / "results" / "paper"  # Folder of the results and the figure


class Panel(NamedTuple):
    """A diagram of columns against the column `x`, with a line for each text in the columns `by`, and of curves."""

    y: str
    x: str
    columns: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    curves: str = ""
    where: tuple[str, str] | None = None  # a column and the text that its rows have
    log: str = ""  # axes, such as "xy"
    factor: float = 100  # of accuracies


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, json.loads((folder / "results.json").read_text())
        self.settings: Json = self.results["settings"]
        self.seed, data = self.settings["seed"], self.settings["data"]
        self.given = Settings(**self.settings | {"data": data and Path(data)})

    def model(self, name: str) -> nn.Module:
        """A saved StochConWrapper, or SimCLR's encoder."""
        if name == "simclr":
            return load_encoder(build_encoder(self.given), self.folder / name).to(DEVICE)
        return HubModel.from_pretrained(self.folder / name).to(DEVICE)

    def images(self) -> Any:
        """Training and test images, uint8, with their labels."""
        return load_images(self.given)

    def encode(self, model: nn.Module, pixels: Tensor, representation: Any = "h") -> Encoded:
        """Features of uint8 images."""
        return encode(model, NORMALIZE(pixels / 255), representation, device=DEVICE)

    def split(self, model: nn.Module, representation: Any = "h") -> tuple[Any, Any, Any, Any]:
        """Features and labels of the training images, then of the test images."""
        train, test = self.images()
        x, x_test = (self.encode(model, images.pixels, representation).features for images in (train, test))
        return x, train.labels.numpy(), x_test, test.labels.numpy()


def by(runs: Iterable[Run], setting: str) -> dict[Any, list[Run]]:
    """Runs grouped and sorted by one of their settings."""
    ordered = sorted(runs, key=lambda run: (run.settings[setting], run.seed))
    return {key: list(group) for key, group in itertools.groupby(ordered, lambda run: run.settings[setting])}


def values(runs: Iterable[Run], *keys: str) -> Cell:
    """One number of each run's models, found by its keys in results.json; None where no run has it."""
    found = [reduce(lambda x, key: (x or {}).get(key), keys, run.results["models"]) for run in runs]
    return [value for value in found if value is not None] or None


def columns_of(found: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn one dictionary per seed into one list of numbers per key."""
    return {key: [of_seed[key] for of_seed in found] for key in found[0]}


def mean(cell: Cell) -> float:
    """Mean over the seeds."""
    return float(np.mean(cell))


def spread(cell: Cell) -> float:
    """Sample standard deviation over the seeds; 0 for a single number."""
    return float(np.std(cell, ddof=1)) if np.size(cell) > 1 else 0.0


def ahead(a: Cell, b: Cell) -> bool:
    """Whether a's mean is above b's by more than the standard deviation of the difference of two single runs."""
    return None not in (a, b) and mean(a) - mean(b) > math.hypot(spread(a), spread(b))


def rises(cells: Sequence[Cell]) -> bool:
    """Whether the last is ahead of the first, and none is behind the one before it."""
    return ahead(cells[-1], cells[0]) and not any(ahead(a, b) for a, b in itertools.pairwise(cells))


def shown(cell: Cell, form: str = ".1%") -> str:
    """A mean as text."""
    return "-" if cell is None else f"{mean(cell):{form}}"


def main(
    doc: str, measure: Any, conclude: Any, figure: Sequence[Panel], formats: dict[str, str], names: Json | None = None
) -> None:
    """Measure the runs of the command line, write the results as JSON and CSV, and draw the figure.

    `formats` says how to show the numbers of a column; others are integers or shown in percent. `names` replaces those
    of the CSV's file, columns and cells.
    """
    options, names = tyro.cli(Options, description=doc), names or {"column": "metric"}
    path = options.out / f"{Path(sys.argv[0]).stem}.json"
    if options.runs:
        groups = sorted(by(map(Run, options.runs), "epochs").values(), key=len)[::-1]
        measured = [measure(runs) for runs in groups]
        (rows, curves), origins = measured[0], [origin(runs) for runs in groups]
        form = {name: "d" if isinstance(cell, int) else ".1%" for name, cell in rows[0].items()} | formats
        table: Json = {"columns": ["epochs", *form], "formats": ["d", *form.values()], "rows": []}
        for (of_group, _), about in zip(measured, origins, strict=True):
            table["rows"] += [[about["epochs"], *map(row.get, form)] for row in of_group]
        title, _, paper = doc.splitlines()[0].partition(": ")
        results = {"claim": path.stem, "title": title, "paper": paper, **verdict(*conclude(rows), groups[0])}
        results |= {**provenance(), "data": groups[0][0].results["data"], "seeds": origins[0]["seeds"]}
        results |= {"runs": origins, "table": table, "curves": curves}
        text = json.dumps(results, indent=1, default=float)
        write(path, re.sub(r"\[[^][{}]*\]", lambda cells: " ".join(cells[0].split()), text) + "\n")
    results = json.loads(path.read_text())
    write_csv(path.with_name(names.get(f"{path.stem}.csv", f"{path.stem}.csv")), results, names)
    draw(results, figure).savefig(path.with_suffix(".png"), dpi=110)
    print(f"{results['title']}: {results['verdict']}. {results['finding']}\n{path}")


def write_csv(path: Path, results: Json, names: Json) -> None:
    """Write one number of one seed a line."""
    columns, rows = results["table"]["columns"], results["table"]["rows"]
    seeds = {about["epochs"]: about["seeds"] for about in results["runs"]}
    keys = [i for i in range(len(columns)) if all(isinstance(row[i], str | int) for row in rows)]
    lines = [[*(columns[i] for i in keys), "column", "seed", "value"]]
    for row, (i, column) in itertools.product(rows, enumerate(columns)):
        numbers = zip(seeds[row[0]], row[i], strict=False) if isinstance(row[i], list) else ()
        lines += [[*(row[key] for key in keys), column, *number] for number in numbers]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names.get(x, x) for x in line] for line in lines)
    write(path, text.getvalue())


def origin(runs: list[Run]) -> Json:
    """Where runs come from, with the settings that they share."""
    first, seeds, commits = runs[0], {run.seed for run in runs}, {run.results["commit"] for run in runs}
    shared = {k: v for k, v in first.settings.items() if all(v == run.settings[k] for run in runs)}
    about = {"epochs": first.settings["epochs"], "seeds": sorted(seeds), "commits": sorted(commits)}
    return about | {"data": first.results["data"]["name"], "settings": shared}


def verdict(finding: str, criteria: dict[str, bool], runs: list[Run]) -> Json:
    """What follows from the criteria; nothing from a single seed, which has no spread."""
    met, several = sum(criteria.values()), len({run.seed for run in runs}) > 1
    said = "holds" if met == len(criteria) else "holds in part" if met else "does not hold"
    return {"finding": finding, "verdict": said if several else None, "criteria": criteria}


def rows_of(results: Json) -> Rows:
    """Rows of the table that finding and verdict are about."""
    names, rows, epochs = results["table"]["columns"], results["table"]["rows"], results["runs"][0]["epochs"]
    return [dict(zip(names[1:], row[1:], strict=True)) for row in rows if row[0] == epochs]


def draw(results: Json, figure: Sequence[Panel]) -> Figure:
    """Draw lines against numbers, and dots against text."""
    drawing = Figure(figsize=(max(6.5, 4.5 * len(figure)), 3.6), layout="constrained")
    panels = drawing.subplots(1, len(figure), squeeze=False)[0]
    for axes, panel in zip(panels, figure, strict=True):
        lines = {label: list(line) for label, line in results["curves"].get(panel.curves, {}).items()}
        rows = [row for row in rows_of(results) if not panel.where or row.get(panel.where[0]) == panel.where[1]]
        for row, name in itertools.product(rows, panel.columns):
            line = lines.setdefault(", ".join(row[text] for text in panel.by) or name, [])
            line += [[row[panel.x], row[name]]] if row.get(name) else []
        texts = list(dict.fromkeys(x for line in lines.values() for x, _ in line if isinstance(x, str)))
        for i, (label, line) in enumerate(lines.items()):
            x, color = [x for x, _ in line], COLORS[i % len(COLORS)]
            if texts:
                dots = [[panel.factor * value, texts.index(x)] for x, y in line for value in np.atleast_1d(y)]
                axes.plot(*np.reshape(dots, (-1, 2)).T, "osD^v"[i % 5], color=color, markersize=4, label=label)
                continue
            middle, width = (panel.factor * np.array([of(y) for _, y in line]) for of in (mean, spread))
            axes.plot(x, middle, ("-", "--", "-.", ":")[i % 4], color=color, label=label)
            axes.fill_between(x, middle - width, middle + width, color=color, alpha=0.18, linewidth=0)
        if texts:
            axes.set(xlabel=panel.y, yticks=range(len(texts)))
            axes.set_yticklabels(texts, fontsize=7)
            axes.invert_yaxis()
        else:
            axes.set(xlabel=panel.x, ylabel=panel.y)
        if "x" in panel.log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if "y" in panel.log:
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    if len(panels[0].get_legend_handles_labels()[1]) > 1:
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawing
