"""What the pictures share: matplotlib, colours, and axes to draw in."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

from stochastic_bottleneck._arrays import sequence
from stochastic_bottleneck._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color Universal Design": eight colours that colour-blind readers tell apart. Black, as in
# their order, comes first; yellow, hard to see as a line on white, last.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#666666"


def pyplot() -> Any:
    """matplotlib.pyplot."""
    return require("matplotlib.pyplot", "stochastic_bottleneck.plots", "plots")


def check_axes(axes: object) -> None:
    """Refuse what cannot be drawn in, before anything is worked out."""
    if axes is not None and not isinstance(axes, pyplot().Axes):
        raise TypeError(
            f"axes must be one Axes of matplotlib's, or None for a new figure, got {type(axes).__name__}; of several, "
            "choose one, as in axes[0]"
        )


def new_axes(axes: Axes | None, x: str, y: str) -> Axes:
    """The axes given, or those of a new figure, with their labels."""
    if axes is None:
        _, axes = pyplot().subplots(figsize=(6.0, 3.6), layout="constrained")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def lines(values: object, name: str, count: int, of: str) -> tuple[str, ...]:
    """As many lines of text or numbers as there are images or classes."""
    rule = f"{count} lines, one {of}"
    found = sequence(values, name, rule, _line, empty=True)
    if len(found) != count:
        raise ValueError(f"{name} must be {rule}, got {len(found)}")
    return found


def _line(_: str, value: object) -> str:
    if not isinstance(value, (str, Real)):
        raise TypeError
    return str(value)


def line_styles(count: int) -> list[dict[str, Any]]:
    """As many styles as lines, each with a colour, dashes and a marker."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i in range(count)
    ]


def point_styles() -> list[dict[str, Any]]:
    """Every pair of a colour and a marker once; neighbours in the list differ in both."""
    return [
        {"color": colour, "marker": MARKERS[(i + turn) % len(MARKERS)]}
        for turn in range(len(MARKERS))
        for i, colour in enumerate(COLOURS)
    ]
