"""What the pictures share: palette, style, boxes and arrows."""

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

matplotlib.use("svg")

# Okabe and Ito's palette, told apart by colour-blind readers.
BLACK, GREY, ORANGE, SKY, GREEN = "#000000", "#666666", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",  # no font is needed to read them
    "svg.hashsalt": "stochastic_bottleneck",  # one picture, one file
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
}
WIDTH = 6.0  # inches; narrow, so that the text stays readable on a phone


def canvas(height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[Figure, Axes]:
    """Empty figure in data coordinates, without axes."""
    figure = plt.figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, text: str, style: str, width: float = 3.5) -> None:
    """Rounded box with a text, in a style: none, grey, latent or noise."""
    face = {"none": "white", "grey": "#E8E8E8", "latent": "#CFE6F5", "noise": BLUE}[style]
    edge = BLUE if style in ("latent", "noise") else GREY
    shape = FancyBboxPatch(
        (x - width / 2 + 0.1, y - 0.32),
        width - 0.2,
        0.64,
        boxstyle="round,pad=0.1",
        facecolor=face,
        edgecolor=edge,
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", color="white" if style == "noise" else BLACK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "") -> None:
    """Arrow with a label beside it."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=BLACK, shrinkA=0, shrinkB=0)
    )
    axes.text(start[0] + 0.2, (start[1] + end[1]) / 2, label, va="center")
