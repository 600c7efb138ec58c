"""Figures: the drawn data are the measured ones, in distinguishable styles."""

import importlib
import io
import sys

import matplotlib as mpl
import numpy as np
import pandas
import pytest
import torch
from matplotlib import pyplot as plt

from stochastic_bottleneck import codes, plots
from stochastic_bottleneck.evaluation import ForestCurve, rejection_curve

BITS = np.random.default_rng(0).random((200, 12)) < np.linspace(0.05, 0.95, 12)


@pytest.fixture(autouse=True)
def _figures_closed():
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def grey_images(count, size=6):
    """Image i has the brightness i / count, which identifies it."""
    return torch.arange(count).div(count).reshape(-1, 1, 1, 1).expand(count, 3, size, size)


def shown(axes, count):
    """Index of the image in axes; None if they are empty."""
    return round(float(axes.images[0].get_array()[0, 0, 0]) * count) if axes.images else None


# ---- diagrams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_bit_usage_shows_the_sorted_shares(kind):
    axes = plots.bit_usage(kind(BITS))
    (stairs,) = axes.patches
    assert stairs.get_data().values == pytest.approx(np.sort(100 * BITS.mean(axis=0)))
    assert axes.get_title() == (
        f"{100 * BITS.mean():.1f} % ones, {codes.bit_entropy(BITS).mean():.3f} bits of entropy per bit, "
        f"mean |correlation| {codes.bit_correlation(BITS):.2f}"
    )
    assert "correlation" not in plots.bit_usage(kind(BITS[:, :1])).get_title()


def test_diagrams_draw_into_the_given_axes():
    figure, (one, two, three) = plt.subplots(1, 3)
    curve = rejection_curve(np.arange(4.0), np.array([True, True, False, True]))
    assert plots.bit_usage(BITS, axes=one) is one
    assert plots.f1_against_bits({"a": ForestCurve((1, 2), (0.1, 0.2), (1, 0))}, axes=two) is two
    assert plots.rejection_curves({"a": curve}, axes=three) is three
    assert plt.get_fignums() == [figure.number]


def test_f1_against_bits_draws_each_curve_on_its_counts():
    curves = {
        "Bern": ForestCurve((1, 11, 128), (0.2, 0.5, 0.6), tuple(range(128))),
        "Gauss": ForestCurve((1, 5, 64), (0.1, 0.3, 0.4), tuple(range(64))),
    }
    axes = plots.f1_against_bits(curves, chance=0.1)
    bern, gauss, chance = axes.lines
    assert bern.get_xydata() == pytest.approx(np.array([(1, 20), (11, 50), (128, 60)]))
    assert gauss.get_xydata() == pytest.approx(np.array([(1, 10), (5, 30), (64, 40)]))
    assert list(chance.get_ydata()) == pytest.approx([10, 10])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "11", "64", "128"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Bern", "Gauss"]


def test_rejection_curves_show_coverage_accuracy_and_area():
    curve = rejection_curve(np.array([0.1, 0.2, 0.3, 0.9]), np.array([True, True, True, False]))
    axes = plots.rejection_curves({"entropy": curve})
    (line,) = axes.lines
    assert line.get_xdata() == pytest.approx(100 * np.asarray(curve.coverage))
    assert line.get_ydata() == pytest.approx(100 * np.asarray(curve.accuracy))
    assert axes.get_legend().get_texts()[0].get_text() == f"entropy, area {curve.area:.3f}"


# ---- images ---------------------------------------------------------------------------------------------------


def test_bit_images_are_sorted_by_probability():
    n = 10
    probs = np.stack([np.arange(n) / 9, 1 - np.arange(n) / 9], axis=1)
    figure = plots.bit_images(grey_images(n), probs, bits=(0, 1), count=3)
    assert [shown(axes, n) for axes in figure.axes] == [9, 8, 7, 0, 1, 2, 0, 1, 2, 9, 8, 7]
    assert [figure.axes[i].get_ylabel() for i in (0, 6)] == ["bit 0", "bit 1"]
    assert [figure.axes[i].get_title(loc="left") for i in (0, 3)] == ["on", "off"]


def test_bit_images_of_a_rare_bit_have_empty_cells():
    probs = torch.tensor([0.5, 0.4, 0.9, 0.0, 0.1])[:, None]
    figure = plots.bit_images(grey_images(5), probs, bits=(0,), count=3)
    assert [shown(axes, 5) for axes in figure.axes] == [2, None, None, 3, 4, 1]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: pandas.Series(x, index=[7, 3])])
def test_bits_may_be_any_sequence_of_integers(kind):
    n = 4
    probs = np.stack([np.arange(n) / 3, 1 - np.arange(n) / 3], axis=1)
    figure = plots.bit_images(grey_images(n), probs.tolist(), bits=kind([1, 0]), count=1)
    assert [shown(axes, n) for axes in figure.axes] == [0, 3, 3, 0]
    assert plots.bit_images(grey_images(n), probs, bits=range(2), count=1).axes[2].get_ylabel() == "bit 1"


@pytest.mark.parametrize("kind", [np.array, lambda x: pandas.Series(x, index=[3, 2, 1, 0])])
def test_captions_may_be_any_sequence(kind):
    figure = plots.certain_images(grey_images(4), [0.0, 1, 2, 3], captions=kind(["a", "b", "c", "d"]), count=4)
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == ["a", "b", "c", "d"]


def test_certain_images_are_sorted_from_both_ends():
    n = 8
    uncertainty = torch.tensor([3.0, 1, 7, 0, 2, 6, 5, 4])
    figure = plots.certain_images(grey_images(n), uncertainty, captions=[f"$_${i}" for i in range(n)], count=3)
    figure.savefig(io.BytesIO())  # names are no formulas
    plots.f1_against_bits({"a$_$b": CURVE}).figure.savefig(io.BytesIO())
    assert [shown(axes, n) for axes in figure.axes] == [3, 1, 4, 2, 5, 6]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["$_$3", "$_$1", "$_$4"]


@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_images_of_one_or_three_channels_are_shown_as_they_are(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 4, 5), dtype=np.uint8)
    figure = plots.certain_images(images, np.arange(3.0), count=1)
    shown = figure.axes[0].images[0]
    assert np.array_equal(shown.get_array(), np.moveaxis(images[0], 0, -1).squeeze())
    assert shown.get_clim() == (0, 255)


IMAGES = grey_images(4)
CURVE = ForestCurve((1, 2), (0.1, 0.2), (1, 0))


T, V = TypeError, ValueError
REFUSED = [  # more of them: tests/bad_calls.py
    (lambda: plots.bit_images(IMAGES, BITS[:4], bits=BITS[0]), T, "bits must be .* indices .* array"),
    (lambda: plots.f1_against_bits(CURVE), T, "got ForestCurve; pass a dict"),
    (lambda: plots.f1_against_bits({"a": CURVE._replace(f1=(0.1, np.nan))}), V, "counts as f1, all finite.*'a'"),
]


@pytest.mark.parametrize(("draw", "error", "message"), REFUSED)
def test_bad_arguments_are_refused_before_a_figure_is_made(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
    assert not plt.get_fignums()


# ---- without matplotlib ---------------------------------------------------------------------------------------


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs matplotlib; install it.*\[plots\]"'):
        plots.bit_usage(BITS)


def test_the_error_of_a_broken_package_is_not_hidden(monkeypatch):
    def broken(name, *_):
        raise ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="kiwisolver"):
        plots.bit_usage(BITS)
