"""The gallery's scripts: they run without a network and without warnings, and their figures show what they say."""

import runpy
import socket
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"
SCRIPTS = sorted(GALLERY.glob("plot_*.py"))
# Okabe and Ito's colours, black and greys.
SAFE = {"#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442", "#666666", "#ffffff"}


@pytest.fixture
def alone(monkeypatch):
    """As when a script is run from the command line: its folder on the path, no window, and here no network."""
    monkeypatch.syspath_prepend(GALLERY)
    monkeypatch.setattr(sys, "argv", ["script"])

    def refuse(*args, **kwargs):
        raise AssertionError("a script of the gallery asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(plt, "show", lambda: None)
    matplotlib.use("agg")
    plt.close("all")
    yield
    plt.close("all")


# ---- what the text says, of the values that a script ends with ---------------------------------------------------


def bits(v):
    animals = np.isin(
        v["test"].labels, [v["classes"].index(n) for n in ("bird", "cat", "deer", "dog", "frog", "horse")]
    )
    telling = v["bits"][:, v["telling"]]
    assert (np.abs(telling[animals].mean(axis=0) - telling[~animals].mean(axis=0)) > 0.4).all()
    assert v["among"] > 2 * v["of_all"]
    counts, f1 = np.array(v["curve"].counts), np.array(v["curve"].f1)
    assert f1[0] < 0.1 < f1[1]
    assert (np.diff(np.diff(f1) / np.diff(counts)) < 0).all()


def uncertainty(v):
    posterior, softmax = v["curves"]["posterior, entropy"], v["curves"]["softmax, entropy"]
    most = slice(None, int(0.95 * len(v["right"])))
    assert (posterior.accuracy[most] > v["right"].mean()).all()
    assert (softmax.accuracy[most] >= posterior.accuracy[most]).all()
    noise, blur, low_contrast, shuffled = (
        dict(zip(v["found"], values, strict=True)) for values in zip(*v["found"].values(), strict=True)
    )
    for damage in (blur, low_contrast):
        assert damage["posterior, entropy"] > damage["softmax, entropy"] > 0.5
    assert noise["posterior, entropy"] < 0.5
    assert shuffled["posterior, entropy"] < 0.05
    assert shuffled["softmax, entropy"] < 0.5
    assert v["test"].labels[v["taxi"]] == v["classes"].index("automobile")


SENTENCES = {"bits": bits, "uncertainty": uncertainty}


def test_each_script_has_its_sentences_checked():
    assert {path.stem.removeprefix("plot_") for path in SCRIPTS} == SENTENCES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_shows_what_it_says(path, alone):
    values = runpy.run_path(str(path))
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert figures
    for figure in figures:
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        assert any(titles), "a figure without a title has no text for those who do not see it"
        lines = [line.get_color() for axes in figure.axes for line in axes.lines]
        marks = [
            colour
            for axes in figure.axes
            for points in axes.collections
            if isinstance(points, PathCollection)  # not the parts of a colour bar
            for colour in points.get_facecolor()
        ]
        assert {to_hex(colour) for colour in (*lines, *marks)} <= SAFE
    SENTENCES[path.stem.removeprefix("plot_")](values)
