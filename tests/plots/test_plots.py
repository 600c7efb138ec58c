"""Pictures: what is drawn is what was measured, in marks that can be told apart."""

import importlib
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas
import pytest
import torch
from matplotlib import pyplot as plt

from stochastic_bottleneck import codes, plots
from stochastic_bottleneck.evaluation import ForestCurve, rejection_curve
from stochastic_bottleneck.plots import _style

BITS = np.random.default_rng(0).random((200, 12)) < np.linspace(0.05, 0.95, 12)


@pytest.fixture(autouse=True)
def _figures_closed():
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def grey_images(count, size=6):
    """Image i has the brightness i / count, by which it is known again."""
    return torch.arange(count).div(count).reshape(-1, 1, 1, 1).expand(count, 3, size, size)


def shown(axes, count):
    """Number of the image in some axes; None in empty ones."""
    return round(float(axes.images[0].get_array()[0, 0, 0]) * count) if axes.images else None


# ---- diagrams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_kind", [np.asarray, torch.from_numpy])
def test_bit_usage_shows_the_shares_sorted(as_kind):
    axes = plots.bit_usage(as_kind(BITS))
    (stairs,) = axes.patches
    assert stairs.get_data().values == pytest.approx(np.sort(100 * BITS.mean(axis=0)))
    assert f"{100 * BITS.mean():.1f} % ones" in axes.get_title()
    assert f"{codes.bit_entropy(BITS).mean():.3f} bits" in axes.get_title()
    assert f"{codes.bit_correlation(BITS):.2f}" in axes.get_title()


def test_bit_usage_of_one_bit_names_no_correlation():
    assert "correlation" not in plots.bit_usage(BITS[:, :1]).get_title()


def test_diagrams_draw_into_axes_given_and_open_no_figure():
    figure, (one, two, three, four) = plt.subplots(1, 4)
    curve = rejection_curve(np.arange(4.0), np.array([True, True, False, True]))
    assert plots.bit_usage(BITS, axes=one) is one
    assert plots.f1_against_bits({"a": ForestCurve((1, 2), (0.1, 0.2), (1, 0))}, axes=two) is two
    assert plots.rejection_curves({"a": curve}, axes=three) is three
    assert plots.code_map(BITS, np.arange(200) % 2, axes=four) is four
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


def test_rejection_curves_draw_coverage_and_accuracy_and_name_the_area():
    curve = rejection_curve(np.array([0.1, 0.2, 0.3, 0.9]), np.array([True, True, True, False]))
    axes = plots.rejection_curves({"entropy": curve})
    (line,) = axes.lines
    assert line.get_xdata() == pytest.approx(100 * np.asarray(curve.coverage))
    assert line.get_ydata() == pytest.approx(100 * np.asarray(curve.accuracy))
    assert axes.get_legend().get_texts()[0].get_text() == f"entropy, area {curve.area:.3f}"


@pytest.mark.parametrize(
    ("draw", "source"), [(plots.f1_against_bits, "forest_curve"), (plots.rejection_curves, "rejection_curve")]
)
def test_no_curve_is_refused(draw, source):
    with pytest.raises(ValueError, match=f"curves must hold at least one curve.*{source}"):
        draw({})


# ---- images ---------------------------------------------------------------------------------------------------


def test_bit_images_stand_in_the_order_of_their_probabilities():
    n = 10
    probs = np.stack([np.arange(n) / 9, 1 - np.arange(n) / 9], axis=1)
    figure = plots.bit_images(grey_images(n), probs, bits=(0, 1), count=3)
    assert [shown(axes, n) for axes in figure.axes] == [9, 8, 7, 0, 1, 2, 0, 1, 2, 9, 8, 7]
    assert [figure.axes[i].get_ylabel() for i in (0, 6)] == ["bit 0", "bit 1"]
    assert [figure.axes[i].get_title(loc="left") for i in (0, 3)] == ["on", "off"]


def test_bit_images_of_a_bit_that_is_rarely_on_leave_places_empty():
    n = 5
    probs = torch.tensor([0.5, 0.4, 0.9, 0.0, 0.1])[:, None]
    figure = plots.bit_images(grey_images(n), probs, bits=(0,), count=3)
    assert [shown(axes, n) for axes in figure.axes] == [2, None, None, 3, 4, 1]


def test_bits_themselves_serve_as_probabilities():
    n = 4
    figure = plots.bit_images(grey_images(n), np.array([[1], [0], [1], [0]]), bits=[0], count=2)
    assert [shown(axes, n) for axes in figure.axes] == [0, 2, 1, 3]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: pandas.Series(x, index=[7, 3])])
def test_bits_are_chosen_by_any_sequence_of_integers(kind):
    n = 4
    probs = np.stack([np.arange(n) / 3, 1 - np.arange(n) / 3], axis=1)
    figure = plots.bit_images(grey_images(n), probs.tolist(), bits=kind([1, 0]), count=1)
    assert [shown(axes, n) for axes in figure.axes] == [0, 3, 3, 0]
    assert plots.bit_images(grey_images(n), probs, bits=range(2), count=1).axes[2].get_ylabel() == "bit 1"


@pytest.mark.parametrize("kind", [np.array, lambda x: pandas.Series(x, index=[3, 2, 1, 0])])
def test_captions_and_names_are_any_sequence_of_lines(kind):
    figure = plots.certain_images(
        grey_images(4), [0.0, 1, 2, 3], captions=kind(["a", "b", "c", "d"]), count=4
    )
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == ["a", "b", "c", "d"]
    axes = plots.code_map(BITS, np.arange(200) % 4, names=kind([2, 3, 5, 7]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["2", "3", "5", "7"]


def test_certain_images_stand_from_both_ends():
    n = 8
    uncertainty = torch.tensor([3.0, 1, 7, 0, 2, 6, 5, 4])
    figure = plots.certain_images(
        grey_images(n), uncertainty, captions=[f"image {i}" for i in range(n)], count=3
    )
    assert [shown(axes, n) for axes in figure.axes] == [3, 1, 4, 2, 5, 6]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["image 3", "image 1", "image 4"]


@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_images_of_one_or_three_channels_are_shown_as_they_are(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 4, 5), dtype=np.uint8)
    figure = plots.certain_images(images, np.arange(3.0), count=1)
    shown = figure.axes[0].images[0]
    assert np.array_equal(shown.get_array(), np.moveaxis(images[0], 0, -1).squeeze())
    assert shown.get_clim() == (0, 255)


IMAGES = grey_images(4)
CURVE = ForestCurve((1, 2), (0.1, 0.2), (1, 0))


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.bit_images(IMAGES, BITS[:4], bits=2), TypeError, "bits must be .* got 2; give a list"),
        (
            lambda: plots.bit_images(IMAGES, BITS[:4], bits=BITS[0]),
            TypeError,
            "bits must be .* indices .* array",
        ),
        (
            lambda: plots.bit_images(IMAGES, BITS[:4], bits=(0.5,)),
            ValueError,
            r"bits must be .* got \(0.5,\)",
        ),
        (lambda: plots.bit_images(IMAGES, BITS[:4], bits=(-1,)), ValueError, r"bits must be .* got \(-1,\)"),
        (lambda: plots.bit_images(IMAGES, BITS[:4], count="2"), TypeError, "count must be .* got '2'"),
        (lambda: plots.bit_images(IMAGES, BITS[:4] + 0j), TypeError, "probs must be .* of dtype complex128"),
        (lambda: plots.bit_images(None, BITS[:4]), TypeError, "images must be .* got NoneType"),
        (lambda: plots.certain_images(IMAGES, torch.ones(4, device="meta")), TypeError, "uncertainty.* meta"),
        (
            lambda: plots.certain_images(IMAGES, np.ones(4), captions="abcd"),
            TypeError,
            "captions must be 4 lines",
        ),
        (lambda: plots.certain_images(IMAGES, np.ones(4), captions=[None] * 4), TypeError, "got .None, None"),
        (
            lambda: plots.code_map(BITS, np.full(200, np.nan)),
            ValueError,
            "labels must be .* 200 of 200 missing",
        ),
        (lambda: plots.code_map(BITS, np.arange(200) % 2, seed=-1), ValueError, "seed must be .* got -1"),
        (
            lambda: plots.code_map(BITS, np.arange(200) % 2, axes=np.empty(2)),
            TypeError,
            "axes must be .* ndarray",
        ),
        (lambda: plots.bit_usage(BITS, axes="x"), TypeError, "axes must be one Axes of matplotlib's"),
        (lambda: plots.f1_against_bits(CURVE), TypeError, "got ForestCurve; pass a dict"),
        (
            lambda: plots.f1_against_bits({"a": (1, 2)}),
            TypeError,
            "evaluation.forest_curve, got tuple for 'a'",
        ),
        (
            lambda: plots.f1_against_bits({"a": CURVE._replace(f1=(0.1, np.nan))}),
            ValueError,
            "finite numbers, as many of counts as of f1.*'a'",
        ),
        (lambda: plots.f1_against_bits({"a": CURVE}, chance=10), ValueError, "chance must be .* got 10"),
        (
            lambda: plots.rejection_curves({"a": CURVE}),
            TypeError,
            "evaluation.rejection_curve, got ForestCurve",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_and_opens_no_figure(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.bit_images(IMAGES[0], BITS[:4]),
            r"images must have shape \(N, C, H, W\).*got \(3, 6, 6\)",
        ),
        (
            lambda: plots.bit_images(3 * IMAGES, BITS[:4]),
            "images must be uint8 or lie between 0 and 1, got values",
        ),
        (lambda: plots.bit_images(IMAGES, BITS), r"probs must have shape \(4, D\).*got \(200, 12\)"),
        (
            lambda: plots.bit_images(IMAGES, 2.0 * BITS[:4]),
            "probs must lie between 0 and 1, got values from 0 to 2; take posterior.probs",
        ),
        (lambda: plots.bit_images(IMAGES, BITS[:4], bits=(12,)), r"indices from 0 to 11, got \(12,\)"),
        (lambda: plots.bit_images(IMAGES, BITS[:4], bits=()), r"one or more indices from 0 to 11, got \(\)"),
        (lambda: plots.bit_images(IMAGES, BITS[:4], count=0), "count must be a positive int, got 0"),
        (
            lambda: plots.certain_images(IMAGES, np.ones((4, 1))),
            r"uncertainty must have shape \(4,\).*\(4, 1\)",
        ),
        (lambda: plots.certain_images(IMAGES, np.full(4, np.nan)), "uncertainty must be finite"),
        (lambda: plots.certain_images(IMAGES, np.ones(4), captions=["a"]), "captions must be 4 lines.*got 1"),
        (lambda: plots.certain_images(IMAGES, np.ones(4), count=0), "count must be a positive int, got 0"),
    ],
)
def test_images_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# ---- map ------------------------------------------------------------------------------------------------------


def clusters(classes, each=20, width=8):
    """Groups of codes around corners far apart."""
    rng = np.random.default_rng(0)
    centres = 10.0 * rng.standard_normal((classes, width))
    labels = np.arange(classes).repeat(each)
    return centres[labels] + rng.standard_normal((classes * each, width)), labels


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_keeps_groups_apart(method):
    x, labels = clusters(3)
    axes = plots.code_map(x, torch.from_numpy(labels), names=["cat", "dog", "ship"], method=method)
    groups = [np.asarray(points.get_offsets()) for points in axes.collections]
    assert [len(group) for group in groups] == [20, 20, 20]
    within = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    between = min(np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in combinations(groups, 2))
    assert between > 2 * within
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cat", "dog", "ship"]


def test_the_map_says_how_much_of_the_variance_it_shows():
    x = np.zeros((8, 4))
    x[:4, 1], x[::2, 3] = 3.0, 1.0  # variances of 9 to 1
    axes = plots.code_map(x, np.arange(8) % 2)
    assert axes.get_xlabel() == "direction 1 (90 % of the variance)"
    assert axes.get_ylabel() == "direction 2 (10 % of the variance)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BITS[:, :1], np.arange(200)), r"codes must have shape \(N, D\) with D at least 2.*\(200, 1\)"),
        ((BITS, np.arange(3)), r"labels must have shape \(200,\).*got \(3,\)"),
        ((BITS, np.arange(200)), "labels must hold at most 64 classes to be told apart, got 200"),
        ((BITS[:2], np.arange(2)), "codes must hold at least 3 images.*got 2"),
        ((np.full((4, 2), np.inf), np.arange(4)), "codes must be finite"),
        ((np.ones((4, 2)), np.arange(4)), "codes must differ between images"),
    ],
)
def test_codes_that_make_no_map_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.code_map(*arguments)


def test_unknown_methods_and_missing_names_are_refused():
    with pytest.raises(ValueError, match=r"method must be.*got 'umap'"):
        plots.code_map(BITS, np.arange(200) % 2, method="umap")
    with pytest.raises(ValueError, match="names must be 2 lines, one for each class in labels, got 1"):
        plots.code_map(BITS, np.arange(200) % 2, names=["cat"])


# ---- marks ----------------------------------------------------------------------------------------------------


def test_lines_differ_in_more_than_colour():
    styles = [(style["linestyle"], style["marker"]) for style in _style.line_styles(8)]
    assert len(set(styles)) == 8


def test_classes_have_marks_of_their_own():
    styles = _style.point_styles()
    assert len({(style["color"], style["marker"]) for style in styles}) == len(styles)
    assert all(a["marker"] != b["marker"] for a, b in combinations(styles[:8], 2))


# ---- without matplotlib ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "extra"), [("matplotlib", "plots"), ("sklearn", "evaluation")])
def test_a_missing_package_names_the_extra(missing, extra, monkeypatch):
    def absent(name, *_):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {missing}; install it.*\[{extra}\]"'):
        plots.code_map(BITS, np.arange(200) % 2)


def test_a_package_that_is_there_but_broken_says_so_itself(monkeypatch):
    def broken(name, *_):
        raise ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="kiwisolver"):
        plots.bit_usage(BITS)
