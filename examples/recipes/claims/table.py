"""Claim 1: fine-tuned and frozen, StochCon beside SimCLR and supervised training."""

from __future__ import annotations

from typing import Any

from recipes.claims import figures
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.poster import SOURCE, TOP_1
from recipes.claims.series import Criterion, ahead
from recipes.figures import LABELS, STYLES, Picture

TITLE = "Fine-tuned and frozen accuracy"
CLAIM = "Fine-tuned StochCon beats SimCLR and supervised training."
PAPER = {"source": SOURCE, "top_1": TOP_1["CIFAR-10"]}
MODELS = ("simclr", "bern", "gauss")
STOCHCON = ("bern", "gauss")


def needs(grid: Grid) -> list[Need]:
    """All four models, fine-tuned or trained on labels."""
    contrastive = [Need(Setting(name), ("pretrain", "frozen", "finetune")) for name in MODELS]
    return [*contrastive, Need(Setting("supervised"), ("train",))]


def answer(evidence: Evidence) -> Answer:
    """Test top-1 of each model, and who is ahead."""
    fine_tuned = {name: evidence.series(Setting(name), "finetune", "accuracy") for name in MODELS}
    fine_tuned["supervised"] = evidence.series(Setting("supervised"), "train", "accuracy")
    frozen = {name: evidence.series(Setting(name), "frozen", "h", "probe") for name in MODELS}
    latent = {name: evidence.series(Setting(name), "frozen", "z", "probe") for name in STOCHCON}
    criteria = [
        Criterion(
            f"fine-tuned, {LABELS[name]} is ahead of {LABELS[other]} by more than the seeds' spread",
            ahead(fine_tuned[name], fine_tuned[other]),
        )
        for name in STOCHCON
        for other in ("simclr", "supervised")
    ]
    criteria += [
        Criterion(
            f"frozen, {LABELS[name]} is ahead of SimCLR on h by more than the seeds' spread",
            ahead(frozen[name], frozen["simclr"]),
        )
        for name in STOCHCON
    ]
    parts = {"fine_tuned": fine_tuned, "frozen_h": frozen, "frozen_z": latent}
    return Answer(
        {part: {name: s.json() for name, s in of_part.items()} for part, of_part in parts.items()}, criteria
    )


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Cells beside the paper's, header first."""
    values, published = content["values"], content["paper"]["top_1"]
    header = [
        "model",
        "frozen, h %",
        "frozen, z %",
        "paper's frozen %",
        "fine-tuned %",
        "paper's fine-tuned %",
    ]
    cells = [
        [
            LABELS[name],
            *(figures.number(values[part].get(name), 100) for part in ("frozen_h", "frozen_z")),
            _said(published[name][1]),
            figures.number(values["fine_tuned"].get(name), 100),
            _said(published[name][0]),
        ]
        for name in values["fine_tuned"]
    ]
    return [header, *cells]


def _said(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.2f}"


def draw(content: dict[str, Any]) -> Picture:
    """A point for each seed and a bar at their mean, frozen and fine-tuned."""
    values = content["values"]
    figure, panels = figures.panels(
        ("frozen, linear probe on h (%)", "fine-tuned, or trained on labels (%)"), x=""
    )
    for axes, part in zip(panels, ("frozen_h", "fine_tuned"), strict=True):
        names = [name for name in LABELS if name in values[part]]
        for place, name in enumerate(names):
            figures.dots(axes, place, values[part][name], STYLES[name][0])
        axes.set_xticks(
            range(len(names)), [LABELS[name].removeprefix("StochCon ") for name in names], fontsize=8
        )
        axes.margins(x=0.15)
    return Picture(
        "table",
        figure,
        "Test accuracy, a dot for each seed and a line at their mean.",
        "Test accuracy of each model. "
        + "; ".join(figures.told(LABELS[n], s, 100, " %") for n, s in values["fine_tuned"].items()),
    )
