"""Results as figures: lines against N where sizes grow, bars elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks import tables
from benchmarks.contract import Benchmark
from benchmarks.targets import Results

# Okabe and Ito's palette, told apart by colour-blind readers; markers and dashes tell them apart in grey print.
OURS = "#0072B2"
PEERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("s", "^", "D", "v", "P", "X")
GREY = "#666666"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # no font is needed to read them
    "svg.hashsalt": "stochastic_bottleneck",  # one figure, one file
    "figure.facecolor": "white",
}


def draw(benchmark: Benchmark, results: Results) -> dict[str, str]:
    """Each figure of a benchmark as SVG, by the stem of its file."""
    with mpl.rc_context(STYLE):
        if benchmark.axis is None:
            figures = {benchmark.name: bars(benchmark, results)}
        else:
            figures = {
                f"{benchmark.name}_{metric}": lines(benchmark, results, metric)
                for metric in ("time", "memory")
            }
        return {name: _svg(figure) for name, figure in figures.items()}


def lines(benchmark: Benchmark, results: Results, metric: str) -> Figure:
    """Time or extra memory against a size, both logarithmic; names beside, in the order of the lines."""
    figure = Figure(
        figsize=(7.6, 4.2), layout="constrained"
    )  # not pyplot's, which would be kept until closed
    axes = figure.subplots()
    axis = str(benchmark.axis)
    curves = {name: _points(results, name, axis, metric) for name in _styles(benchmark)}
    curves = {name: points for name, points in curves.items() if points}
    for name, style in _styles(benchmark).items():
        if name in curves:
            width = 2.2 if name == benchmark.contenders[0].name else 1.4
            axes.plot(*zip(*curves[name], strict=True), linewidth=width, label=benchmark.label(name), **style)
    if metric == "time" and (floor := _floor(benchmark, results, axis)):
        axes.plot(*zip(*floor, strict=True), color=GREY, linestyle=":", label="floor of matrix products")
    axes.set(
        xscale="log", yscale="log", xlabel="N", ylabel={"time": "time", "memory": "extra memory"}[metric]
    )
    ticks = sorted({row["size"][axis] for row in results["rows"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    written = tables.seconds if metric == "time" else tables.size
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: _short(written(value)) if value > 0 else "")
    )
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_title(benchmark.title, loc="left", fontsize=11)
    handles = sorted(axes.lines, key=lambda line: -_height(line, axes.lines))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9, handlelength=3)
    return figure


def bars(benchmark: Benchmark, results: Results) -> Figure:
    """Median times of as much work as the least call does, with their quartiles, a panel for each case."""
    cases = list(dict.fromkeys(row["case"] for row in results["rows"]))
    rows = {case: [r for r in results["rows"] if r["case"] == case and r["median_s"]] for case in cases}
    rows = {case: found for case, found in rows.items() if found}
    heights = [len(found) for found in rows.values()]
    figure = Figure(figsize=(7.2, 0.34 * sum(heights) + 0.75 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), squeeze=False, gridspec_kw={"height_ratios": heights})
    styles = _styles(benchmark)
    for axes, (case, found) in zip(panels[:, 0], rows.items(), strict=True):
        amounts = [row["amount"] for row in found]
        share = [min(amounts) / amount for amount in amounts] if all(amounts) else [1.0] * len(found)
        medians = [part * row["median_s"] for part, row in zip(share, found, strict=True)]
        spans = [
            [part * row["quartiles_s"][i] for part, row in zip(share, found, strict=True)] for i in (0, 1)
        ]
        either = [[abs(m - s) for m, s in zip(medians, span, strict=True)] for span in spans]
        colours = [styles[row["contender"]]["color"] for row in found]
        drawn = axes.barh(
            range(len(found)), medians, xerr=either, color=colours, height=0.62, error_kw={"elinewidth": 1}
        )
        axes.bar_label(drawn, [tables.seconds(m) for m in medians], padding=6)
        axes.set_yticks(range(len(found)), [row["label"] for row in found])
        axes.invert_yaxis()
        axes.set_xlim(right=1.18 * max(medians))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(f"{benchmark.title}: {case}", loc="left", fontsize=10)
    return figure


def _styles(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each contender: ours blue, variants of one colour with other dashes."""
    styles, families = {}, {"ours": (OURS, "o")}
    others = cycle(zip(PEERS, MARKERS, strict=True))
    for contender in benchmark.contenders:
        if contender.name == benchmark.floor:
            continue
        family = contender.name.split("_")[0]
        if family not in families:
            families[family] = next(others)
        colour, marker = families[family]
        variant = sum(style["color"] == colour for style in styles.values())
        styles[contender.name] = {
            "color": colour,
            "marker": marker,
            "linestyle": ("-", "--", "-.")[variant % 3],
        }
    return styles


def _points(results: Results, name: str, axis: str, metric: str) -> list[tuple[float, float]]:
    key = {"time": "median_s", "memory": "peak_bytes"}[metric]
    rows = [row for row in results["rows"] if row["contender"] == name and not row["error"] and row[key]]
    return sorted((row["size"][axis], row[key]) for row in rows)


def _floor(benchmark: Benchmark, results: Results, axis: str) -> list[tuple[float, float]]:
    """Least time at each case, by the matrix product's rate in the same rounds."""
    found = []
    products = [row for row in results["rows"] if row["contender"] == benchmark.floor and row["median_s"]]
    for product in products:
        rate = product["amount"] / product["median_s"]
        found.append((product["size"][axis], product["flop"] / rate))
    return sorted(found)


def _height(line: Line2D, lines: Sequence[Line2D]) -> float:
    """Where a line is at the largest size that all of them have."""
    common = set.intersection(*(set(other.get_xdata()) for other in lines))
    place = max(common, default=line.get_xdata()[-1])
    return float(dict(zip(*line.get_data(), strict=True)).get(place, line.get_ydata()[-1]))


def _short(text: str) -> str:
    """A tick's label without the digits that a power of ten does not have."""
    number, unit = text.split()
    return f"{float(number):g} {unit}"


def _svg(figure: Figure) -> str:
    content = StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in content.getvalue().splitlines()) + "\n"
