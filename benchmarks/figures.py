"""Results as figures: lines over N where there are several sizes, bars elsewhere."""

from __future__ import annotations

import re
from io import StringIO
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks import tables
from benchmarks.benchmark import Benchmark
from benchmarks.targets import Results

# Okabe and Ito's palette, for colour-blind readers; markers and dashes distinguish lines in black and white.
OURS = ("#0072B2", "o")
PEERS = (("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
DASHES = ("-", "--", "-.")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",  # readers need no font
    "svg.hashsalt": "stochastic_bottleneck",  # the same results give the same file
    "figure.facecolor": "white",
}


def draw(benchmark: Benchmark, results: Results) -> dict[str, str]:
    """All figures of a benchmark as SVG, by file name."""
    with mpl.rc_context(STYLE):
        if benchmark.axis is None:
            return {benchmark.name: _svg(bars(benchmark, results))}
        metrics = ("time", "memory")
        return {f"{benchmark.name}_{m}": _svg(lines(benchmark, results, m)) for m in metrics}


def lines(benchmark: Benchmark, results: Results, metric: str) -> Figure:
    """Time or extra memory over a size, both logarithmic."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")  # pyplot would keep it open
    axes, axis = figure.subplots(), str(benchmark.axis)
    key, written = {"time": ("median_s", tables.seconds), "memory": ("peak_bytes", tables.size)}[metric]
    for name, style in _styles(benchmark).items():
        rows = [r for r in results["rows"] if r["contender"] == name and not r["error"] and r[key]]
        if points := sorted((row["size"][axis], row[key]) for row in rows):
            width = 2.2 if name == benchmark.contenders[0].name else 1.4
            axes.plot(*zip(*points, strict=True), lw=width, label=benchmark.contender(name).label, **style)
    products = [r for r in results["rows"] if r["contender"] == benchmark.floor and r["median_s"]]
    if metric == "time" and products:
        floor = sorted((p["size"][axis], p["flop"] * p["median_s"] / p["amount"]) for p in products)
        axes.plot(*zip(*floor, strict=True), color="#666666", ls=":", label="floor of matrix products")
    axes.set(xscale="log", yscale="log", xlabel="N", ylabel={"memory": "extra memory"}.get(metric, metric))
    sizes = sorted({row["size"][axis] for row in results["rows"]})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: re.sub(r"\.0+ ", " ", written(y)) if y > 0 else ""))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_title(benchmark.title, loc="left", fontsize=11)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, handlelength=3)
    return figure


def bars(benchmark: Benchmark, results: Results) -> Figure:
    """Median times with quartiles, a panel for each case."""
    rows = [row for row in results["rows"] if row["median_s"]]
    panels = {case: [row for row in rows if row["case"] == case] for case in {row["case"]: 0 for row in rows}}
    heights = [len(panel) for panel in panels.values()]
    figure = Figure(figsize=(7.2, 0.34 * sum(heights) + 0.75 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})
    styles = _styles(benchmark)
    for axes, (case, panel) in zip(all_axes[:, 0], panels.items(), strict=True):
        labels, medians = [row["label"] for row in panel], [row["median_s"] for row in panel]
        quartiles = [[abs(row["quartiles_s"][i] - row["median_s"]) for row in panel] for i in (0, 1)]
        colours = [styles[row["contender"]]["color"] for row in panel]
        positions = range(len(panel))
        drawn = axes.barh(positions, medians, 0.62, xerr=quartiles, color=colours, error_kw={"elinewidth": 1})
        axes.bar_label(drawn, [tables.seconds(median) for median in medians], padding=6)
        axes.set_yticks(positions, labels)
        axes.invert_yaxis()
        axes.set_xlim(right=1.18 * max(medians))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(f"{benchmark.title}: {case}", loc="left", fontsize=10)
    return figure


def _styles(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each contender; variants of one share the colour: ours, ours_compiled, ..."""
    styles: dict[str, dict[str, Any]] = {}
    families, peers = {"ours": OURS}, cycle(PEERS)
    for name in (c.name for c in benchmark.contenders if c.name != benchmark.floor):
        family = name.split("_")[0]
        if family not in families:
            families[family] = next(peers)
        colour, marker = families[family]
        variant = sum(style["color"] == colour for style in styles.values())
        styles[name] = {"color": colour, "marker": marker, "linestyle": DASHES[variant % 3]}
    return styles


def _svg(figure: Figure) -> str:
    content = StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in content.getvalue().splitlines()) + "\n"
