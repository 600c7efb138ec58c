"""Shared by the figures: matplotlib, colours, styles and axes."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

from stochastic_bottleneck._arrays import sequence
from stochastic_bottleneck._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color Universal Design": eight colours that colour-blind readers can distinguish. Yellow, hard
# to see as a line on white, comes last.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#666666"


def pyplot() -> Any:
    """matplotlib.pyplot."""
    return require("matplotlib.pyplot", "stochastic_bottleneck.plots", "plots")


def check_axes(axes: object) -> None:
    """Check the `axes` argument before anything is computed."""
    if axes is not None and not isinstance(axes, pyplot().Axes):
        raise TypeError(
            f"axes must be one matplotlib Axes, or None for a new figure, got {type(axes).__name__}; choose one of "
            "several, as in axes[0]"
        )


def new_axes(axes: Axes | None, x: str, y: str) -> Axes:
    """The given axes or new ones, with axis labels."""
    if axes is None:
        _, axes = pyplot().subplots(figsize=(6.0, 3.6), layout="constrained")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def add_legend(axes: Axes) -> None:
    """Add a legend of the lines' names, in which a dollar sign begins no formula."""
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)


def texts(values: object, name: str, count: int) -> tuple[str, ...]:
    """Check that there is one text or number per image."""
    rule = f"{count} texts or numbers, one per image"
    found = sequence(values, name, rule, _text, empty=True)
    if len(found) != count:
        raise ValueError(f"{name} must be {rule}, got {len(found)}")
    return found


def _text(_: str, value: object) -> str:
    if not isinstance(value, (str, Real)):
        raise TypeError
    return str(value)


def line_styles(count: int) -> list[dict[str, Any]]:
    """One style per line: colour, dashes and marker."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i in range(count)
    ]
