"""A stated search for settings, judged on training images that are left out of training; never on the test set."""

from __future__ import annotations

from typing import Any

from recipes.claims import figures
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.series import Criterion, Series, ahead, every, no
from recipes.figures import LABELS, STYLES, Picture

TITLE = "Settings, searched on held-out training images"
CLAIM = "No other setting that was tried is ahead of the preset's."
PAPER = {"source": "our search; the poster gives no settings"}
BOTH, BERN, GAUSS, ALL = ("bern", "gauss"), ("bern",), ("gauss",), ("simclr", "bern", "gauss")
PRESET = "preset"
# Label: options, and the models that they make a difference to. One thing is changed at a time, then those together
# that orient the bits towards exact zeros and ones.
ALTERNATIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PRESET: ((), ALL),
    "location not normalised": (("--location-std", "0"), BOTH),
    "location std 1": (("--location-std", "1"), BOTH),
    "location std 4": (("--location-std", "4"), BOTH),
    "location std 8": (("--location-std", "8"), BOTH),
    "Concrete temperature 0.25": (("--temperature", "0.25"), BERN),
    "Concrete temperature 0.5": (("--temperature", "0.5"), BERN),
    "Concrete temperature 2": (("--temperature", "2"), BERN),
    "Concrete temperature 1 to 0.25": (("--temperature-end", "0.25"), BERN),
    "Concrete temperature 2 to 0.5": (("--temperature", "2", "--temperature-end", "0.5"), BERN),
    "straight-through bits": (("--hard",), BERN),
    "both ways round": (("--symmetric",), BOTH),
    "own view's variance": (("--variance-from", "own"), GAUSS),
    "projector mlp": (("--projector", "mlp"), BOTH),
    "upsampler mlp": (("--upsampler", "mlp"), BOTH),
    "projector and upsampler mlp": (("--projector", "mlp", "--upsampler", "mlp"), BOTH),
    "KL weight 0.0003": (("--kl-weight", "0.0003"), BOTH),
    "KL weight 0.003": (("--kl-weight", "0.003"), BOTH),
    "loss temperature 0.1": (("--loss-temperature", "0.1"), ALL),
    "loss temperature 0.5": (("--loss-temperature", "0.5"), ALL),
    "location std 4, temperature 0.5": (("--location-std", "4", "--temperature", "0.5"), BERN),
    "location std 4, temperature 0.5, both ways": (
        ("--location-std", "4", "--temperature", "0.5", "--symmetric"), BERN,
    ),
    "straight-through bits, location std 4": (("--hard", "--location-std", "4"), BERN),
    "4 samples an image": (("--samples", "4"), BOTH),
    "2 epochs without noise": (("--noiseless-epochs", "2"), BOTH),
    "no noise at all": (("--noiseless-epochs", "1000"), BOTH),
    "both ways round, location std 4": (("--symmetric", "--location-std", "4"), BOTH),
    "both ways round, 4 samples": (("--symmetric", "--samples", "4"), BOTH),
    "both ways round, upsampler mlp": (("--symmetric", "--upsampler", "mlp"), BOTH),
    "upsampler mlp, 4 samples": (("--upsampler", "mlp", "--samples", "4"), BOTH),
    "both ways round, loss temperature 0.5": (("--symmetric", "--loss-temperature", "0.5"), BOTH),
}  # fmt: skip
SCORES = {"h": ("h", "probe"), "z": ("z", "probe"), "h_knn": ("h", "knn"), "z_knn": ("z", "knn"),
          "share_of_ones": ("bits", "share_of_ones"), "correlation": ("bits", "correlation")}  # fmt: skip


def setting(label: str, model: str, grid: Grid) -> Setting:
    """A run of the search: the held-out split, a short schedule, and the alternative's options."""
    return Setting(model, ("--held-out", "--epochs", str(grid.search_epochs), *ALTERNATIVES[label][0]))


def tried(grid: Grid) -> dict[str, tuple[str, ...]]:
    """Models of each alternative that is tried."""
    chosen = ALTERNATIVES if grid.alternatives is None else grid.alternatives
    return {label: ALTERNATIVES[label][1] for label in chosen}


def needs(grid: Grid) -> list[Need]:
    """Every alternative, of the models that it makes a difference to."""
    return [
        Need(setting(label, model, grid), ("pretrain", "frozen"))
        for label, models in tried(grid).items()
        for model in models
    ]


def answer(evidence: Evidence) -> Answer:
    """Scores of every alternative, and which are ahead of the preset."""
    found: dict[str, dict[str, dict[str, Series]]] = {
        label: {
            model: {
                name: evidence.series(setting(label, model, evidence.grid), "frozen", *path)
                for name, path in SCORES.items()
            }
            for model in models
        }
        for label, models in tried(evidence.grid).items()
    }
    criteria, better = [], []
    for model in BOTH:
        for key in ("h", "z"):
            base = found[PRESET][model][key]
            beats = {
                label: ahead(of_label[model][key], base)
                for label, of_label in found.items()
                if label != PRESET and model in of_label
            }
            better += [
                {"model": model, "judged_on": key, "setting": label} for label, met in beats.items() if met
            ]
            criteria.append(
                Criterion(
                    f"{LABELS[model]}: no alternative is ahead of the preset on {key} by more than the seeds' spread",
                    every(map(no, beats.values())),
                )
            )
    values = {
        "epochs": evidence.grid.search_epochs,
        "options": {label: " ".join(ALTERNATIVES[label][0]) for label in found},
        "scores": {
            label: {
                model: {name: s.json() for name, s in of_model.items() if s.values}
                for model, of_model in of_label.items()
            }
            for label, of_label in found.items()
        },
        "ahead_of_the_preset": better,
    }
    notes = (
        "A fifth of the training images is left out of training and judges; the test images are not touched. "
        f"{evidence.grid.search_epochs} epochs each; what is best in a short schedule need not be best in a long one.",
        "With so many alternatives some are ahead by luck; the longer run of another seed confirms one or does not.",
    )
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Scores of every alternative, header first."""
    header = ["setting", "model", "h %", "z %", "h, kNN %", "z, kNN %", "ones %", "mean |correlation|"]
    cells = [
        [
            label,
            LABELS[model],
            *(figures.number(s.get(name), 100) for name in ("h", "z", "h_knn", "z_knn", "share_of_ones")),
            figures.number(s.get("correlation"), 1, ".3f"),
        ]
        for label, of_label in content["values"]["scores"].items()
        for model, s in of_label.items()
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Accuracy on h and on the latent of every alternative."""
    scores = content["values"]["scores"]
    figure, panels = figures.panels(("", ""), x="linear probe, held out (%)", height=1.2 + 0.24 * len(scores))
    labels = list(scores)
    for axes, key, title in zip(panels, ("h", "z"), ("on h", "on the latent's mode"), strict=True):
        for model in ALL:
            points = [
                (100 * of_label[model][key]["mean"], 100 * (of_label[model][key]["std"] or 0), place)
                for place, of_label in enumerate(scores.values())
                if key in of_label.get(model, {})
            ]
            if points:
                mean, std, place = zip(*points, strict=True)
                axes.errorbar(
                    mean, place, xerr=std, fmt="o", color=STYLES[model][0], markersize=4, label=LABELS[model]
                )
        axes.set_yticks(range(len(labels)), labels if key == "h" else [""] * len(labels), fontsize=7)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", alpha=0.2)
    figures.legend_below(figure, panels[0], columns=3)
    ahead_of = content["values"]["ahead_of_the_preset"]
    said = "; ".join(f"{LABELS[b['model']]} on {b['judged_on']}: {b['setting']}" for b in ahead_of) or "none"
    return Picture(
        "settings",
        figure,
        "Every alternative beside the preset, on training images that were held out; bars are one standard deviation "
        "over the seeds.",
        f"Held-out accuracy of each alternative. Ahead of the preset: {said}",
    )
