"""Diagrams of bit usage, F1 against the number of bits, and accuracy under rejection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck import codes
from stochastic_bottleneck._arrays import array
from stochastic_bottleneck._checks import real
from stochastic_bottleneck.evaluation import ForestCurve, RejectionCurve
from stochastic_bottleneck.plots._style import COLOURS, GREY, add_legend, check_axes, line_styles, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bit_usage", "f1_against_bits", "rejection_curves"]


def bit_usage(bits: Tensor | NDArray[Any], *, axes: Axes | None = None) -> Axes:
    """Share of ones of each bit, sorted, with a line at one half; entropy and correlation in the title.

    A balanced code is flat at one half. Balance alone does not show that capacity is used, so the title also gives the
    mean absolute correlation between bits.

    Args:
        bits: 0/1 values. Shape: (N, D)
        axes: to draw in; None for a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: for anything but 0 and 1, or another shape.
        TypeError: for bits that are not an array or a tensor, or axes that are not matplotlib's.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import numpy as np
        >>> bits = np.random.default_rng(0).integers(0, 2, (100, 16))
        >>> tuple(map(float, bit_usage(bits).get_ylim()))
        (0.0, 100.0)

    Source:
        StochCon (arXiv 2110.00552): about half of the bits active over the data set.
    """
    check_axes(axes)
    shares = codes.share_of_ones(bits)
    entropy, correlation = codes.bit_entropy(bits).mean(), codes.bit_correlation(bits)
    axes = new_axes(axes, "bits, sorted by their share of ones", "share of ones (%)")
    axes.stairs(np.sort(100 * shares), fill=True, color=COLOURS[1])
    axes.axhline(50, color=COLOURS[0], linestyle=":", linewidth=1)
    axes.set(ylim=(0, 100), xlim=(0, len(shares)))
    correlated = "" if np.isnan(correlation) else f", mean |correlation| {correlation:.2f}"
    axes.set_title(f"{100 * shares.mean():.1f} % ones, {entropy:.3f} bits of entropy per bit{correlated}", fontsize=9)
    return axes


def f1_against_bits(
    curves: Mapping[str, ForestCurve], *, chance: float | None = None, axes: Axes | None = None
) -> Axes:
    """A random forest's F1 against the number of bits, one line per model.

    Args:
        curves: results of `evaluation.forest_curve`, by name for the legend.
        chance: F1 of guessing, between 0 and 1, to draw as a line; None for no line.
        axes: to draw in; None for a new figure.

    Returns:
        The axes; the number of bits is on a logarithmic scale.

    Raises:
        ValueError: for no curve, a curve that is not finite, or a chance outside 0 to 1.
        TypeError: for anything but a dict of curves, or axes that are not matplotlib's.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> from stochastic_bottleneck.evaluation import ForestCurve
        >>> curve = ForestCurve(counts=(1, 8), f1=(0.2, 0.5), ranking=tuple(range(8)))
        >>> f1_against_bits({"Bern": curve}).get_xscale()
        'log'

    Source:
        StochCon (arXiv 2110.00552), figure of F1 against the number of bits.
    """
    _check_curves(curves, ForestCurve)
    check_axes(axes)
    if chance is not None:
        chance = real("chance", chance, least=0, most=1)
    axes = new_axes(axes, "number of bits, the most important first", "random forest, mean F1 (%)")
    for (name, curve), style in zip(curves.items(), line_styles(len(curves)), strict=True):
        axes.plot(curve.counts, [100 * f1 for f1 in curve.f1], label=name, markersize=5, **style)
    if chance is not None:
        axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1)
        axes.annotate("chance", (1, 100 * chance), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    ticks = sorted({count for curve in curves.values() for count in curve.counts})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return axes


def rejection_curves(curves: Mapping[str, RejectionCurve], *, axes: Axes | None = None) -> Axes:
    """Accuracy against coverage, one line per measure of uncertainty.

    A curve that rises to the left shows an uncertainty that ranks the hard images.

    Args:
        curves: results of `evaluation.rejection_curve`, by name for the legend.
        axes: to draw in; None for a new figure.

    Returns:
        The axes; the legend gives the area under each curve.

    Raises:
        ValueError: for no curve, or a curve that is not finite.
        TypeError: for anything but a dict of curves, or axes that are not matplotlib's.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import numpy as np
        >>> from stochastic_bottleneck.evaluation import rejection_curve
        >>> curve = rejection_curve(np.array([0.1, 0.2, 0.9]), np.array([True, True, False]))
        >>> len(rejection_curves({"entropy": curve}).lines)
        1

    Source:
        Accuracy-rejection curves: Nadeem, Zucker and Hanczar, MLSB 2009 (PMLR 8).
    """
    _check_curves(curves, RejectionCurve)
    check_axes(axes)
    axes = new_axes(axes, "coverage, the most certain images first (%)", "accuracy on them (%)")
    for (name, curve), style in zip(curves.items(), line_styles(len(curves)), strict=True):
        style.pop("marker")  # there is a point for every image
        axes.plot(
            100 * np.asarray(curve.coverage),
            100 * np.asarray(curve.accuracy),
            label=f"{name}, area {curve.area:.3f}",
            **style,
        )
    axes.set_xlim(0, 100)
    add_legend(axes)
    return axes


def _check_curves(curves: object, kind: type[ForestCurve | RejectionCurve]) -> None:
    source = "forest_curve" if kind is ForestCurve else "rejection_curve"
    hint = f"curves must hold at least one curve, by name, from evaluation.{source}"
    if not isinstance(curves, Mapping):
        raise TypeError(f"{hint}, got {type(curves).__name__}; pass a dict, as in {{'model': curve}}")
    if not curves:
        raise ValueError(f"{hint}, got none")
    for name, curve in curves.items():
        if not isinstance(curve, kind):
            raise TypeError(f"{hint}, got {type(curve).__name__} for {name!r}")
        points = [
            array(values, f"{field} of {name!r}") for field, values in zip(curve._fields, curve[:2], strict=False)
        ]
        if points[0].ndim != 1 or points[0].shape != points[1].shape or not np.isfinite(points).all():
            raise ValueError(
                f"curves must hold as many {curve._fields[0]} as {curve._fields[1]}, all finite, got others for "
                f"{name!r}"
            )
