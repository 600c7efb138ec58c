"""Shared by the scripts of this folder: read runs of cifar10_full.py, write a claim's results file, draw its figure.

A script's docstring begins with "Title: claim." Its function `measure` turns runs that differ in their seed into rows
of a table and curves; `conclude` turns the rows into a sentence and what has to be true for the claim. Runs with other
numbers of epochs are rows of their own; finding and verdict are about the longest that have several seeds.
With --add, numbers of other runs stay in the results file, so that a claim can be measured run by run.
"""

import csv
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from safetensors.torch import load_model
from torch import Tensor, nn

from stochastic_bottleneck.evaluation import Encoded, encode
from stochastic_bottleneck.hub import HubModel

EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))
from cifar10_full import NORMALIZE, Settings, build_model, load_images  # noqa: E402
from provenance import DEVICE, provenance, write  # noqa: E402
from runs import NAMES  # noqa: E402

LABELS = NAMES  # of models and codes
IGNORED = {"seed", "out", "models", "precision", "resume", "compile", "logger", "data"}  # no setting of the method
COLORS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
Json = dict[str, Any]
Cell = Any  # text, a number, a dictionary of one number per seed (as text), or None for what was not measured
Rows = list[dict[str, Cell]]


@dataclass
class Options:
    """Command line of a script."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()  # Run folders; with none, figure and CSV are made again
    add: bool = False  # Add to the numbers that are there
    out: Path = EXAMPLES / "results" / "paper"  # Folder of the results and the figure


class Panel(NamedTuple):
    """A diagram of columns against the column `x`, with a line for each text in the columns `by`, and of curves."""

    y: str
    x: str
    columns: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    curves: str = ""
    log: str = ""  # axes, such as "xy"
    factor: float = 100  # of accuracies


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, json.loads((folder / "results.json").read_text())
        self.settings: Json = self.results["settings"]
        self.seed, data = self.settings["seed"], self.settings["data"]
        self.given = Settings(**self.settings | {"data": data and Path(data)})
        self.images = cache(lambda: load_images(self.given))  # training and test images, uint8, with their labels

    def origin(self) -> Json:
        """What was trained, on which machine."""
        about = self.results | self.settings | self.results["environment"]
        return {name: about[name] for name in ("epochs", "seed", "precision", "machine", "commit")}

    def model(self, name: str) -> nn.Module:
        """A saved StochConWrapper, or SimCLR's encoder."""
        if name == "simclr":
            load_model(model := build_model(name, self.given), self.folder / name / "model.safetensors")
            return model.encoder.eval().to(DEVICE)
        return HubModel.from_pretrained(self.folder / name).to(DEVICE)

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
    found = [(str(run.seed), reduce(lambda x, key: (x or {}).get(key), keys, run.results["models"])) for run in runs]
    return {seed: value for seed, value in found if value is not None} or None


def columns_of(runs: Iterable[Run], measure: Callable[[Run], dict[Any, Any]]) -> dict[Any, Cell]:
    """One cell for each number that is measured of a run."""
    found = {str(run.seed): measure(run) for run in runs}
    keys = dict.fromkeys(key for row in found.values() for key in row)
    return {key: {seed: row[key] for seed, row in found.items() if key in row} for key in keys}


def curve(xs: Iterable[Any], found: Cell) -> list[list[Any]]:
    """Points of a curve: each x with a cell, from one sequence per seed."""
    return [[x, {seed: ys[i] for seed, ys in found.items()}] for i, x in enumerate(xs)]


def numbers(cell: Cell) -> list[float]:
    """Numbers of a cell."""
    return list(cell.values()) if isinstance(cell, dict) else [cell]


def mean(cell: Cell) -> float:
    """Mean over the seeds."""
    return float(np.mean(numbers(cell)))


def spread(cell: Cell) -> float:
    """Sample standard deviation over the seeds; 0 for a single number."""
    return float(np.std(found, ddof=1)) if len(found := numbers(cell)) > 1 else 0.0


def ahead(a: Cell, b: Cell) -> bool:
    """Whether a's mean is above b's by more than the standard deviation of the difference of two single runs."""
    return None not in (a, b) and mean(a) - mean(b) > math.hypot(spread(a), spread(b))


def rises(cells: Sequence[Cell]) -> bool:
    """Whether the last is ahead of the first, and none is behind the one before it."""
    return ahead(cells[-1], cells[0]) and not any(ahead(a, b) for a, b in itertools.pairwise(cells))


def shown(cell: Cell, form: str = ".1%") -> str:
    """A mean as text."""
    return "-" if cell is None else f"{mean(cell):{form}}"


def main(doc: str, measure: Any, conclude: Any, figure: list[Panel], formats: Json, names: Json | None = None) -> None:
    """Measure the runs of the command line, write the results as JSON and CSV, and draw the figure.

    `formats` says how to show the numbers of a column; others are integers or shown in percent. `names` replaces those
    of the CSV's file, columns and cells.
    """
    options, names = tyro.cli(Options, description=doc), names or {"column": "metric"}
    path = options.out / f"{Path(sys.argv[0]).stem}.json"
    if options.runs:
        runs = [Run(folder) for folder in options.runs]
        old = json.loads(path.read_text()) if options.add and path.exists() else {}
        results = measured(runs, shared_settings(runs, old.get("settings", {})), measure, formats)
        results = added(old, results) if old else results
        title, _, paper = doc.splitlines()[0].partition(": ")
        about = {"claim": path.stem, "title": title, "paper": paper, **verdict(results, conclude), **provenance()}
        text = json.dumps(about | results, indent=1, default=float) + "\n"
        write(path, re.sub(r"[\[{][^][{}]*[]}]", lambda cell: " ".join(cell[0].split()), text))  # a line for each cell
    results = json.loads(path.read_text())
    write_csv(path.with_suffix(".csv"), results, names)
    draw(results, figure).savefig(path.with_suffix(".png"), dpi=110)
    print(f"{results['title']}: {results['verdict']}. {results['finding']}\n{path}")


def shared_settings(runs: Sequence[Run], old: Json) -> Json:
    """Settings that runs of equal length share, with the older results too; runs with other settings are refused."""
    found = {**old}
    for epochs, group in by(runs, "epochs").items():
        now = {k: v for k, v in group[0].settings.items() if all(v == run.settings[k] for run in group)}
        before = old.get(str(epochs), now)
        found[str(epochs)] = {k: v for k, v in now.items() if k in before and k not in IGNORED}
        for name, value in found[str(epochs)].items():
            if before[name] != value:
                was = f"{name} was {before[name]}, of these runs it is {value}"
                raise ValueError(f"--add: {was}; measure without --add")
    return found


def measured(runs: Sequence[Run], settings: Json, measure: Any, formats: Json) -> Json:
    """Numbers of runs, where they come from, and their settings."""
    found: Json = {"runs": {run.folder.name: run.origin() for run in runs}, "settings": settings, "curves": {}}
    rows: Rows = []
    for epochs, group in by(runs, "epochs").items():
        of_group, found["curves"][str(epochs)] = measure(group)
        rows += [{"epochs": epochs} | row for row in of_group]
    form = {n: "d" if isinstance(c, int) else ".1%" for row in (*rows, rows[0]) for n, c in row.items()} | formats
    cells = [[row.get(name) for name in form] for row in rows]
    return found | {"table": {"columns": [*form], "formats": [*form.values()], "rows": cells}}


def added(old: Json, new: Json) -> Json:
    """Join results; a number that was measured again replaces the older one."""
    was, now = (results["table"]["columns"] for results in (old, new))
    if was != now:
        raise ValueError(f"--add: columns were {was}, of these runs they are {now}; measure without --add")
    rows: dict[Any, Any] = {}
    keys_end = min(keys_of(old["table"]), keys_of(new["table"]))  # a table of few numbers may have none in a column
    for row in old["table"]["rows"] + new["table"]["rows"]:
        key = tuple(row[:keys_end])
        rows[key] = joined(rows.get(key), row)
    names = list(dict.fromkeys(key[1:] for key in rows))  # in one order for all epochs
    keys = sorted(rows, key=lambda key: (*(cell for cell in key[:2] if isinstance(cell, int)), names.index(key[1:])))
    table = new["table"] | {"rows": [rows[key] for key in keys]}
    return {key: joined(old[key], new[key]) for key in new} | {"table": table, "settings": new["settings"]}


def keys_of(table: Json) -> int:
    """Number of columns before the first with numbers of seeds; they say what a row is about."""
    return next(i for i in range(len(table["columns"])) if any(isinstance(row[i], dict) for row in table["rows"]))


def joined(old: Any, new: Any) -> Any:
    """Join dictionaries by key, seeds in order, and lists of equal length by index; of two values the newer counts."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = old | {key: joined(old.get(key), value) for key, value in new.items()}
        return dict(sorted(found.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [joined(*pair) for pair in zip(old, new, strict=True)]
    return old if new is None else new


def write_csv(path: Path, results: Json, names: Json) -> None:
    """Write one number of one seed a line."""
    columns, rows, keys = results["table"]["columns"], results["table"]["rows"], keys_of(results["table"])
    lines = [[*columns[:keys], "column", "seed", "value"]]
    for row, (i, column) in itertools.product(rows, enumerate(columns)):
        found = row[i].items() if isinstance(row[i], dict) else ()
        lines += [[*row[:keys], column, *number] for number in found]
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows([names.get(x, x) for x in line] for line in lines)
    write(path, text.getvalue())


def leading(results: Json) -> tuple[int, int]:
    """Fewest seeds of a number that has several, and epochs, of the runs that finding and verdict are about."""
    cells = [(row[0], len(cell)) for row in results["table"]["rows"] for cell in row if isinstance(cell, dict)]
    several, epochs = max((seeds > 1, epochs) for epochs, seeds in cells)
    return min(seeds for other, seeds in cells if (seeds > 1, other) == (several, epochs)), epochs


def verdict(results: Json, conclude: Any) -> Json:
    """What follows from the criteria; nothing from a single seed, which has no spread."""
    (finding, criteria), (seeds, epochs) = conclude(rows_of(results)), leading(results)
    said = "holds" if all(criteria.values()) else "holds in part" if any(criteria.values()) else "does not hold"
    about = {"finding": finding, "verdict": said if seeds > 1 else None, "criteria": criteria}
    return about | {"seeds": seeds, "epochs": epochs}


def rows_of(results: Json) -> Rows:
    """Rows of the table that finding and verdict are about."""
    names, rows, (_, epochs) = results["table"]["columns"], results["table"]["rows"], leading(results)
    return [dict(zip(names[1:], row[1:], strict=True)) for row in rows if row[0] == epochs]


def draw(results: Json, figure: list[Panel]) -> Figure:
    """Draw lines against numbers, and dots against text; panels without numbers are left out."""
    rows = rows_of(results)
    figure = [panel for panel in figure if panel.curves or any(row[x] for row in rows for x in panel.columns)]
    drawing = Figure(figsize=(max(6.5, 4.5 * len(figure)), 3.6), layout="constrained")
    panels, curves = drawing.subplots(1, len(figure), squeeze=False)[0], results["curves"][str(leading(results)[1])]
    for axes, panel in zip(panels, figure, strict=True):
        lines = {label: list(line) for label, line in curves.get(panel.curves, {}).items()}
        for row, name in itertools.product(rows, panel.columns):
            line = lines.setdefault(", ".join(row[text] for text in panel.by) or name, [])
            line += [[row[panel.x], row[name]]] if row.get(name) else []
        texts = list(dict.fromkeys(x for line in lines.values() for x, _ in line if isinstance(x, str)))
        for i, (label, line) in enumerate(lines.items()):
            x, color = [x for x, _ in line], COLORS[i % len(COLORS)]
            if texts:
                dots = [[panel.factor * value, texts.index(x)] for x, y in line for value in numbers(y)]
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
