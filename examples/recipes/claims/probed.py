"""Which representation is probed: how much of what the features know is left on every step to the bits and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recipes import evaluate
from recipes.claims import figures, search
from recipes.claims.chain import Subject
from recipes.claims.evidence import Answer, Evidence, Grid, Need
from recipes.claims.series import Criterion, ahead, no
from recipes.figures import LABELS, STYLES, Picture
from stochastic_bottleneck import BernoulliPosterior
from stochastic_bottleneck.evaluation import linear_probe

TITLE = "Which representation is probed"
CLAIM = "The bits know no less than the probabilities that they are cut from."
PAPER = {"source": "our question; the poster does not say what its frozen percentages are of"}
PART = "representations"
MODELS = ("bern", "gauss")
NAMES = {
    "h": "features h",
    "location": "location (logits or mean)",
    "probability": "probability of a one",
    "sample": "one sample, relaxed",
    "z": "mode (bits or mean)",
    "upsampled": "upsampled mode",
    "v": "head's output, of h",
}


class Steps(nn.Module):
    """Images to one step of the way."""

    def __init__(self, model: Any, step: str) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.head, self.step = (
            model.encoder,
            model.bottleneck,
            model.head,
            step,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, H, W) -> (N, K)."""
        h = self.encoder(x)
        if self.step == "v":
            head: Tensor = self.head(h)
            return head
        posterior = self.bottleneck.posterior(h)
        bits = isinstance(posterior, BernoulliPosterior)
        if self.step == "sample":
            sample: Tensor = posterior.rsample()
            return sample
        location: Tensor = posterior.logits if bits else posterior.mean
        return location.sigmoid() if self.step == "probability" else location


def needs(grid: Grid) -> list[Need]:
    """The search's models with the preset's settings: held-out training images judge."""
    return [
        Need(search.setting(search.CHOSEN, model, grid), ("pretrain", "frozen", PART)) for model in MODELS
    ]


def measure(subject: Subject) -> dict[str, Any]:
    """A linear probe on each step that the frozen evaluation has not judged."""
    model = subject.model
    kept = ("location", "probability", "sample", "v")
    steps: dict[str, nn.Module] = {"h": model.encoder, **{step: Steps(model, step) for step in kept}}  # type: ignore[dict-item]
    if model.bottleneck.kind != "bern":  # type: ignore[union-attr]
        del steps["probability"], steps["location"]  # there is none; and the mean is the mode
    steps["upsampled"] = model.feature_extractor("upsampled")  # type: ignore[operator]
    torch.manual_seed(subject.seed)
    found = evaluate.features(steps, subject.images, subject.machine, "representations")
    labels = subject.images.train_labels, subject.images.test_labels
    return {
        step: linear_probe(
            train, labels[0], test, labels[1], seed=subject.seed, device=subject.probe_device
        ).accuracy
        for step, (train, test) in found.items()
        if step != "h"
    }


def answer(evidence: Evidence) -> Answer:
    """Accuracy on each step."""
    scores = {}
    for model in MODELS:
        setting = search.setting(search.CHOSEN, model, evidence.grid)
        frozen = {key: evidence.series(setting, "frozen", key, "probe") for key in ("h", "z")}
        own = {step: evidence.series(setting, PART, step) for step in NAMES if step not in frozen}
        scores[model] = {step: (frozen | own)[step] for step in NAMES}
    bern = scores["bern"]
    criteria = [
        Criterion(
            f"the {NAMES[step]} is not ahead of Bern's bits by more than the seeds' spread",
            no(ahead(bern[step], bern["z"])),
        )
        for step in ("probability", "h")
    ]
    values = {
        "epochs": evidence.grid.search_epochs,
        "probe": {
            model: {step: series.json() for step, series in of_model.items() if series.values}
            for model, of_model in scores.items()
        },
    }
    notes = (
        f"Models of {evidence.grid.search_epochs} epochs, judged on training images that were left out of training.",
    )
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Accuracy on each step, header first."""
    probe = content["values"]["probe"]
    cells = [
        [name, *(figures.number(probe[model].get(step), 100) for model in MODELS)]
        for step, name in NAMES.items()
    ]
    return [["linear probe on", *(f"{LABELS[model]} %" for model in MODELS)], *cells]


def draw(content: dict[str, Any]) -> Picture:
    """A dot for each seed and step."""
    probe = content["values"]["probe"]
    figure, (axes,) = figures.panels(("linear probe, held out (%)",), x="", height=3.8)
    for model, shift in zip(MODELS, (-0.15, 0.15), strict=True):
        for place, step in enumerate(NAMES):
            if step in probe[model]:
                figures.dots(axes, place + shift, probe[model][step], STYLES[model][0])
        axes.plot([], [], "o", color=STYLES[model][0], label=LABELS[model])
    axes.set_xticks(range(len(NAMES)), [name.replace(" (", "\n(") for name in NAMES.values()], fontsize=7)
    axes.tick_params(axis="x", rotation=20)
    figures.legend(axes)
    told = "; ".join(figures.told(NAMES[step], s, 100, " %") for step, s in probe["bern"].items())
    return Picture(
        "probed",
        figure,
        "Held-out accuracy of linear probes along the way from the features to the bits and back, a dot for each seed "
        "and a line at their mean.",
        f"Held-out accuracy along the way, StochCon Bern: {told}",
    )
