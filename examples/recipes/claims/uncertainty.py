"""The paper's first promise: whether the latent's uncertainty tells images that are hard, damaged or foreign."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recipes import evaluate
from recipes.claims import corruptions, figures
from recipes.claims.chain import Subject
from recipes.claims.doubt import Judge, Scores, judge_of
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.poster import SOURCE
from recipes.claims.series import Criterion, Series, ahead, no
from recipes.figures import LABELS, STYLES, Picture
from stochastic_bottleneck.evaluation import auroc, rejection_curve

TITLE = "What the uncertainty is worth"
CLAIM = "Latent variables attribute uncertainty to the representation."
PAPER = {"source": SOURCE}
MODELS = ("simclr", "bern", "gauss")
PART, FASHION = "uncertainty", "fashion"
KINDS = {"posterior": "posterior", "softmax": "probe's softmax"}
OF_POSTERIOR = {"bern": "entropy", "gauss": "variance"}
POINTS = 50  # of a rejection curve in the results


def needs(grid: Grid) -> list[Need]:
    """The three contrastive models as the preset has them."""
    parts = ("pretrain", "frozen", PART, *((FASHION,) if grid.fashion else ()))
    return [Need(Setting(name), parts) for name in MODELS]


def measure(subject: Subject) -> dict[str, Any]:
    """Rejection of the least certain test images, and detection of damaged images and of digits."""
    judge, images = judge_of(subject), subject.images
    labels = images.test_labels.numpy()
    rows = judge.rows(images.test.images)
    doubt = judge.doubt(rows)
    right = judge.probe.predict(rows["h"].astype(np.float64)) == labels
    kept = evaluate.evenly(images.test_labels, subject.grid.images)
    clean = {kind: scores[kept] for kind, scores in doubt.items()}
    some = images.test.images[kept]
    corrupted: dict[str, dict[str, dict[str, float]]] = {
        kind: {
            str(severity): detection(judge, clean, corruptions.corrupt(some, kind, severity, subject.seed))
            for severity in subject.grid.severities
        }
        for kind in corruptions.STRENGTHS
    }
    mixed = right.min() != right.max()
    return {
        "accuracy": float(right.mean()),
        "rejection": {kind: curve(scores, right) for kind, scores in doubt.items()},
        "errors": {kind: auroc(scores, ~right) if mixed else None for kind, scores in doubt.items()},
        "corrupted": corrupted,
        "digits": detection(judge, clean, corruptions.digits(images.size, subject.grid.images)),
        "images": len(kept),
    }


def measure_fashion(subject: Subject, foreign: Tensor) -> dict[str, Any]:
    """Detection of images of Fashion-MNIST among as many test images."""
    judge = judge_of(subject)
    kept = evaluate.evenly(subject.images.test_labels, subject.grid.images)
    clean = judge.doubt(judge.rows(subject.images.test.images[kept]))
    return {"detection": detection(judge, clean, foreign)}


def detection(judge: Judge, clean: Scores, other: Tensor) -> dict[str, float]:
    """AUROC of each uncertainty for telling other images from clean ones."""
    found = judge.doubt(judge.rows(other))
    return {
        kind: auroc(
            np.concatenate([clean[kind], found[kind]]),
            np.repeat([0, 1], [len(clean[kind]), len(found[kind])]),
        )
        for kind in clean
    }


def curve(scores: NDArray[np.float64], right: NDArray[Any]) -> dict[str, Any]:
    """A rejection curve at so many shares of images kept, and the area under all of it."""
    whole = rejection_curve(scores, right)
    places = np.unique(np.ceil(np.linspace(0, 1, POINTS + 1)[1:] * len(scores)).astype(int)) - 1
    return {
        "coverage": whole.coverage[places].tolist(),
        "accuracy": whole.accuracy[places].tolist(),
        "area": whole.area,
    }


# ---- the answer -----------------------------------------------------------------------------------------------


def answer(evidence: Evidence) -> Answer:
    """Areas, AUROCs and curves of each model and kind of uncertainty."""
    values: dict[str, Any] = {}
    found: dict[tuple[str, str], dict[str, Series]] = {}
    accuracy: dict[str, Series] = {}
    for name in MODELS:
        setting = Setting(name)
        accuracy[name] = evidence.series(setting, PART, "accuracy")
        values[name] = {"accuracy": accuracy[name].json()}
        for kind in KINDS if name in OF_POSTERIOR else ("softmax",):
            of_kind = {
                "area": evidence.series(setting, PART, "rejection", kind, "area"),
                "errors": evidence.series(setting, PART, "errors", kind),
                "corrupted": evidence.series_of(setting, PART, lambda r, k=kind: over_all(r, k)),  # type: ignore[misc]
                "digits": evidence.series(setting, PART, "digits", kind),
            }
            if evidence.grid.fashion:
                of_kind[FASHION] = evidence.series(setting, FASHION, "detection", kind)
            found[name, kind] = of_kind
            curves = evidence.results(setting, PART)
            values[name][kind] = {key: s.json() for key, s in of_kind.items()} | {
                "curve": mean_curve([result["rejection"][kind] for result in curves.values()]),
                "corrupted_by_kind": by_kind(evidence, setting, kind),
            }
    criteria = []
    for name, what in OF_POSTERIOR.items():
        own, simclr = found[name, "posterior"], found["simclr", "softmax"]
        said = f"{LABELS[name]}'s posterior {what}"
        spread = "by more than the seeds' spread"
        criteria += [
            Criterion(
                f"{said} tells hard images: the area under its rejection curve is ahead of the accuracy, which is the "
                f"area of a useless one, {spread}",
                ahead(own["area"], accuracy[name]),
            ),
            Criterion(
                f"{said} tells the probe's errors, by AUROC, no worse than the softmax entropy of SimCLR's probe "
                f"tells that one's, {spread}",
                no(ahead(simclr["errors"], own["errors"])),
            ),
            *(
                Criterion(f"{said} tells {text}: its AUROC is ahead of 0.5 {spread}", ahead(own[key], 0.5))
                for key, text in (
                    ("corrupted", "corrupted images"),
                    ("digits", "digits"),
                    (FASHION, "Fashion-MNIST"),
                )
                if key in own
            ),
        ]
    notes = (
        "The classifier is a linear probe on each model's h; its accuracy differs between models, so that areas "
        "compare within a model, and AUROCs between models. Corruptions: noise, blur, contrast, pixelate and JPEG at "
        "the strengths of CIFAR-10-C, their mean.",
        "Digits and Fashion-MNIST are grey images of one thing each, easy to tell by colour alone.",
    )
    return Answer(values, criteria, notes)


def over_all(result: dict[str, Any], kind: str) -> float:
    """Mean AUROC over corruptions and severities."""
    return statistics.fmean(
        of_severity[kind]
        for of_corruption in result["corrupted"].values()
        for of_severity in of_corruption.values()
    )


def by_kind(evidence: Evidence, setting: Setting, kind: str) -> dict[str, Any]:
    """AUROC of each corruption, a mean over severities."""

    def mean(result: dict[str, Any], name: str) -> float:
        return statistics.fmean(of_severity[kind] for of_severity in result["corrupted"][name].values())

    return {
        name: evidence.series_of(setting, PART, lambda r, n=name: mean(r, n)).json()  # type: ignore[misc]
        for name in corruptions.STRENGTHS
    }


def mean_curve(curves: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Rejection curves of several seeds as their mean."""
    if not curves:
        return {"coverage": [], "accuracy": []}
    mean = np.mean([of_seed["accuracy"] for of_seed in curves], axis=0)
    return {"coverage": curves[0]["coverage"], "accuracy": mean.tolist()}


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Areas and AUROCs, header first."""
    values = content["values"]
    keys = [key for key in ("errors", "corrupted", "digits", FASHION) if key in values["simclr"]["softmax"]]
    header = ["model", "uncertainty", "probe %", "area %", *(f"AUROC, {key}" for key in keys)]
    cells = [
        [
            LABELS[name],
            f"posterior's {OF_POSTERIOR[name]}" if kind == "posterior" else "softmax entropy",
            figures.number(values[name]["accuracy"], 100),
            figures.number(values[name][kind]["area"], 100),
            *(figures.number(values[name][kind][key], 1, ".3f") for key in keys),
        ]
        for name in MODELS
        for kind in KINDS
        if kind in values[name]
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Rejection curves, and AUROC by what is to be told."""
    values = content["values"]
    figure, (left, right) = figures.panels(
        ("accuracy on those (%)", "AUROC"), x="images kept (%)", height=4.2
    )
    targets = {"errors": "errors", "corrupted": "corrupted", "digits": "digits", FASHION: "Fashion"}
    shown = [key for key in targets if key in values["simclr"]["softmax"]]
    said = []
    for i, (name, kind) in enumerate(
        (name, kind) for name in MODELS for kind in KINDS if kind in values[name]
    ):
        of_kind, (colour, _) = values[name][kind], STYLES[name]
        dashes, marker = ("-", "o") if kind == "posterior" else ("--", "x")
        label = f"{LABELS[name]}, {OF_POSTERIOR.get(name, '') if kind == 'posterior' else 'softmax'}"
        points = of_kind["curve"]
        left.plot(
            [100 * x for x in points["coverage"]],
            [100 * y for y in points["accuracy"]],
            dashes,
            color=colour,
            label=label,
        )
        at = [(place + 0.12 * (i - 2), of_kind[key]["mean"]) for place, key in enumerate(shown)]
        kept = [point for point in at if point[1] is not None]
        right.plot([x for x, _ in kept], [y for _, y in kept], marker, color=colour, markersize=5)
        said.append(figures.told(f"{label}, AUROC for errors", of_kind["errors"]))
    right.axhline(0.5, color="0.35", linestyle=":", linewidth=1)
    right.set_xticks(range(len(shown)), [targets[key] for key in shown], fontsize=8)
    right.set_xlabel("told from clean test images")
    figures.legend_below(figure, left)
    return Picture(
        "uncertainty",
        figure,
        "Left: accuracy on the images kept when the least certain are rejected, a mean over the seeds. Right: how well "
        "each uncertainty (circles: the posterior's, crosses: the probe's softmax entropy) tells errors, corrupted and "
        "foreign images; the dotted line is chance.",
        f"Rejection curves and AUROCs. {'; '.join(said)}",
    )
