"""What the claims' figures share: lines with the seeds' spread, told apart by colour-blind readers and in print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.figures import RC, WIDTH

# Okabe and Ito's palette, with a line style each.
LINES = (("#0072B2", "-"), ("#D55E00", "-."), ("#009E73", "--"), ("#CC79A7", ":"))
OTHERS = (("#E69F00", "--"), ("#56B4E9", ":"), ("#009E73", "-."), ("#CC79A7", (0, (1, 3))))

Json = dict[str, Any]


def panels(labels: Sequence[str], *, x: str, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Axes side by side, each with its label.

    Args:
        labels: of the vertical axes.
        x: label of the horizontal axes.
        height: in inches.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH if len(labels) < 3 else 1.5 * WIDTH, height), layout="constrained")
        grid = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, label in zip(grid, labels, strict=True):
        axes.set(xlabel=x, ylabel=label)
    return figure, list(grid)


def band(
    axes: Axes,
    x: Sequence[float],
    series: Sequence[Json],
    colour: str,
    dashes: Any,
    label: str,
    factor: float = 1,
) -> None:
    """Means with a band of one standard deviation; points without a number are left out."""
    points = [(a, factor * s["mean"], factor * (s["std"] or 0)) for a, s in zip(x, series, strict=True)
              if s["mean"] is not None]  # fmt: skip
    if not points:
        return
    at, mean, std = zip(*points, strict=True)
    dense = len(at) > 30
    axes.plot(
        at, mean, linestyle=dashes, color=colour, marker="" if dense else "o", markersize=4, label=label
    )
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)


def dots(axes: Axes, x: float, series: Json, colour: str, factor: float = 100) -> None:
    """A dot for each seed and a line at their mean."""
    if series["mean"] is None:
        return
    numbers = [factor * value for value in series["seeds"].values()]
    axes.plot([x] * len(numbers), numbers, "o", color=colour, markersize=5, alpha=0.7)
    axes.hlines(factor * series["mean"], x - 0.25, x + 0.25, color=colour, linewidth=2)


def level(axes: Axes, value: float | None, label: str, factor: float = 1) -> None:
    """A grey line to compare with."""
    if value is not None:
        axes.axhline(factor * value, color="0.35", linestyle=(0, (5, 2)), linewidth=1, label=label)


def mark(axes: Axes, x: float, text: str) -> None:
    """A dotted vertical line with a word at its foot."""
    axes.axvline(x, color="0.35", linestyle=":", linewidth=1)
    axes.annotate(text, (x, 0.02), xycoords=("data", "axes fraction"), ha="left", color="0.25", fontsize=8,
                  xytext=(3, 0), textcoords="offset points")  # fmt: skip


def log_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Powers of two at equal distances, named as they are."""
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axes.minorticks_off()


def legend(axes: Axes) -> None:
    """A legend, where there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """One legend below all axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def told(name: str, series: Json, factor: float = 1, unit: str = "") -> str:
    """A mean and its spread in words."""
    if series["mean"] is None:
        return f"{name} not measured"
    spread = "" if series["std"] is None else f" ± {factor * series['std']:.2g}"
    return f"{name} {factor * series['mean']:.4g}{spread}{unit}"


def number(series: Json | None, factor: float = 1, form: str = ".1f") -> str:
    """A mean and its spread as a cell of a table; a dash where there is none."""
    if series is None or series["mean"] is None:
        return "-"
    spread = "" if series["std"] is None else f" ± {factor * series['std']:{form}}"
    return f"{factor * series['mean']:{form}}{spread}"


def listed(x: Sequence[float], series: Sequence[Json], what: str, factor: float = 1, unit: str = "") -> str:
    """Means at each place in words."""
    return ", ".join(
        told(f"{at} {what}", s, factor, unit)
        for at, s in zip(x, series, strict=True)
        if s["mean"] is not None
    )
