"""The figures of a run, each with its caption and the words for those who do not see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes.files import write_atomically

LABELS = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "simclr": "SimCLR",
    "bern": "StochCon Bern",
    "gauss": "StochCon Gauss",
    "supervised": "Supervised",
}
PARTS = {
    "pretrain": "pretraining",
    "probe": "linear probe",
    "frozen": "frozen evaluation",
    "finetune": "fine-tuning",
    "train": "training",
}
"""Parts of a model's chain as headings name them."""
# Okabe and Ito's palette, told apart by colour-blind readers, with a line style each for print.
STYLES = {
    "simclr": ("#000000", "--"),
    "bern": ("#0072B2", "-"),
    "gauss": ("#D55E00", "-."),
    "supervised": ("#009E73", ":"),
}
RC: Any = {
    "svg.fonttype": "path",  # no font is needed to read them
    "svg.hashsalt": "stochastic_bottleneck",  # one figure, one file
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 6.0  # inches; narrow, so that the text stays readable on a phone
LATENT = (
    ("share_of_ones", "ones (%)", 100),
    ("bit_entropy", "entropy a bit (bits)", 1),
    ("posterior_variance", "posterior's variance", 1),
    ("latent_variance", "variance of z", 1),
    ("kl", "KL (nats an image)", 1),
)
"""Columns of a latent's metrics, their axes, and the factor that they are shown with."""

Results = dict[str, Any]
Points = Sequence[tuple[float, float]]


class Picture(NamedTuple):
    """A figure and its words.

    Args:
        name: stem of its file.
        figure: not pyplot's, which would be kept until closed.
        caption: what it shows and how to read it.
        alt: what it says, for those who do not see it.
    """

    name: str
    figure: Figure
    caption: str
    alt: str

    def png(self) -> bytes:
        """The figure in dots."""
        content = BytesIO()
        with mpl.rc_context(RC):
            self.figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
        return content.getvalue()

    def svg(self) -> str:
        """The figure in lines."""
        content = StringIO()
        with mpl.rc_context(RC):
            self.figure.savefig(content, format="svg", metadata={"Date": None})
        return content.getvalue()


def draw(results: Results) -> list[Picture]:
    """Every figure that the models of this run allow."""
    with mpl.rc_context(RC):
        return [picture for make in ALL if (picture := make(results)) is not None]


def save(pictures: list[Picture], folder: Path) -> list[Path]:
    """Write each as a PNG; returns their paths."""
    paths = [folder / f"{picture.name}.png" for picture in pictures]
    for path, picture in zip(paths, pictures, strict=True):
        write_atomically(path, picture.png())
    return paths


# ---- each figure ----------------------------------------------------------------------------------------------


def loss(results: Results) -> Picture | None:
    """InfoNCE by epoch."""
    curves = {name: m["epoch_losses"] for name, m in results["models"].items() if name != "supervised"}
    return _by_epoch(
        "loss",
        curves,
        "InfoNCE (nats), mean over an epoch",
        "The loss of pretraining. The latent's noise is part of StochCon's, so losses do not compare between models.",
    )


def classification(results: Results) -> Picture | None:
    """Cross entropy by epoch, of fine-tuning and of training from scratch."""
    curves = {
        name: model[part]["epoch_losses"]
        for name, model in results["models"].items()
        for part in ("finetuned", "trained")
        if "epoch_losses" in model.get(part, {})
    }
    return _by_epoch(
        "classification",
        curves,
        "cross entropy (nats), mean over an epoch",
        "The loss of fine-tuning, and of the supervised model, which starts from scratch.",
    )


def knn(results: Results) -> Picture | None:
    """Nearest neighbours on h while it is trained."""
    curves = {
        name: [(x, 100 * y) for x, y in _column(model, "epoch", "knn")] for name, model in _tracked(results)
    }
    if not any(curves.values()):
        return None
    figure, axes = _axes("epoch", "nearest neighbours on h (%)")
    for name, points in curves.items():
        _line(axes, name, points, marker="o", markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False)
    return Picture(
        "knn",
        figure,
        "Accuracy of the nearest neighbours on the features h during pretraining, from a part of the training images: "
        "higher is better.",
        f"Accuracy of nearest neighbours by epoch. At the end: {_ends(curves, '%')}.",
    )


def latent(results: Results) -> Picture | None:
    """What the latent does while it is trained."""
    panels = [
        (key, axis, factor)
        for key, axis, factor in LATENT
        if any(_column(model, "step", key) for _, model in _tracked(results))
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    said, handles = [], {}
    for axes, (key, label, factor) in zip(grid.flat, panels, strict=False):
        curves = {
            name: [(x, factor * y) for x, y in _column(model, "step", key)]
            for name, model in _tracked(results)
        }
        for name, points in curves.items():
            if points:
                handles[LABELS[name]] = _line(axes, name, points)
        most = max(y for points in curves.values() for _, y in points)
        axes.set(
            xlabel="step", ylabel=label, ylim=(0, 1.08 * most or 1)
        )  # 0 for what has collapsed from the start
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        said.append(f"{label}: {_ends(curves)}")
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False
    )
    return Picture(
        "latent",
        figure,
        "The latent over training, on batches of augmented images. Half of the bits at one and an entropy of one bit "
        "each is all that bits can carry; a variance that falls to nothing is a latent that has collapsed to a point.",
        f"Curves over the steps of training. At the end, {'; '.join(said)}.",
    )


def f1_against_bits(results: Results) -> Picture | None:
    """A random forest's F1 against the number of latent dimensions it sees, the most important first."""
    models = {name: model["forest"] for name, model in results["models"].items() if "forest" in model}
    if not models:
        return None
    figure, axes = _axes("latent dimensions kept, the most important first", "random forest, mean F1 (%)")
    chance = 100 / results["data"]["classes"]
    curves = {}
    for name, forest in models.items():
        curves[name] = list(zip(forest["counts"], (100 * f1 for f1 in forest["f1"]), strict=True))
        kind = "bits" if name == "bern" else "real numbers"
        _line(axes, name, curves[name], marker="o", label=f"{LABELS[name]} ({kind})")
        ticks = forest["counts"]
    axes.axhline(chance, color="grey", linestyle=":", linewidth=1)
    axes.annotate("chance", (ticks[-1], chance), ha="right", va="bottom", color="grey")
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return Picture(
        "f1_against_bits",
        figure,
        "How few bits carry the classes: the mean F1 of a random forest that sees only so many of the latent's "
        "dimensions.",
        f"Mean F1 against the number of dimensions, rising. With all of them: {_ends(curves, '%')}.",
    )


def bit_usage(results: Results) -> Picture | None:
    """Share of ones of each bit, sorted: flat at a half when every bit is used."""
    bits = results["models"].get("bern", {}).get("bits")
    if bits is None:
        return None
    figure, axes = _axes("bits, sorted by their share of ones", "share of ones over the test images (%)")
    correlation = "-" if bits["correlation"] is None else f"{bits['correlation']:.2f}"
    axes.stairs(
        sorted(100 * share for share in bits["share_of_ones_by_bit"]), fill=True, color=STYLES["bern"][0]
    )
    axes.axhline(50, color="black", linestyle=":", linewidth=1)
    axes.set_ylim(0, 100)
    said = (
        f"mean {100 * bits['share_of_ones']:.1f} % ones, {bits['entropy']:.3f} bits of entropy a bit, "
        f"mean |correlation| {correlation}"
    )
    axes.set_title(said, fontsize=9)
    return Picture(
        "bit_usage",
        figure,
        "How the test images use the bits of StochCon Bern. A bit that is a one for half of them carries most.",
        f"Share of ones of each bit, sorted, with a line at one half: {said}.",
    )


ALL: tuple[Callable[[Results], Picture | None], ...] = (
    loss,
    knn,
    f1_against_bits,
    bit_usage,
    latent,
    classification,
)


# ---- shared ---------------------------------------------------------------------------------------------------


def _by_epoch(name: str, curves: dict[str, list[float]], label: str, caption: str) -> Picture | None:
    if not curves:
        return None
    figure, axes = _axes("epoch", label)
    points = {model: list(enumerate(losses, 1)) for model, losses in curves.items()}
    for model, of_model in points.items():
        _line(axes, model, of_model, marker="o" if len(of_model) == 1 else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False)
    return Picture(name, figure, caption, f"{label}, by epoch. At the end: {_ends(points)}.")


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _line(axes: Axes, name: str, points: Points, label: str = "", **style: Any) -> Any:
    colour, dashes = STYLES[name]
    x, y = zip(*points, strict=True) if points else ((), ())
    return axes.plot(x, y, dashes, color=colour, label=label or LABELS[name], **style)[0]


def _tracked(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, model) for name, model in results["models"].items() if "metrics" in model)


def _column(model: dict[str, Any], x: str, y: str) -> list[tuple[float, float]]:
    """Points of a column of the metrics, without its empty cells."""
    metrics = model["metrics"]
    values = metrics.get(y, [])
    return [(a, b) for a, b in zip(metrics[x], values, strict=True) if b is not None] if values else []


def _ends(curves: Mapping[str, Points], unit: str = "") -> str:
    said = (f"{LABELS[name]} {points[-1][1]:.3g}{unit}" for name, points in curves.items() if points)
    return ", ".join(said)
