"""A stated search for settings, judged on training images that are left out of training; never on the test set."""

from __future__ import annotations

from typing import Any

from recipes.claims import figures
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.series import Criterion, Series, ahead
from recipes.figures import LABELS, STYLES, Picture

TITLE = "Settings, searched on held-out training images"
CLAIM = "The latent's settings of the preset cpu are ahead of those that the search began with."
PAPER = {"source": "our search; the poster gives no settings"}
BOTH, BERN, GAUSS, ALL = ("bern", "gauss"), ("bern",), ("gauss",), ("simclr", "bern", "gauss")
START, CHOSEN = "start", "both ways round, location std 4"
FROM = ("--no-symmetric", "--location-std", "2")
"""Where the search starts, as the quick preset is; everything else is the preset's."""
CONFIRMED = (START, CHOSEN)
"""Run with every seed; all others with the first, to be looked at."""
FLOAT32 = ("--precision", "32")
"""Of those that were trained on a CPU without arithmetic in bfloat16."""
# Label: options beside those of the start, and the models that they make a difference to.
ALTERNATIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    START: ((), ALL),
    CHOSEN: (("--symmetric", "--location-std", "4"), BOTH),
    "both ways round": (("--symmetric",), BOTH),
    "location std 4": (("--location-std", "4"), BOTH),
    "location not normalised": (("--location-std", "0"), BOTH),
    "Concrete temperature 0.5": (("--temperature", "0.5"), BERN),
    "Concrete temperature 1 to 0.25": (("--temperature-end", "0.25"), BERN),
    "straight-through bits": (("--hard",), BERN),
    "4 samples an image": (("--samples", "4"), BOTH),
    "2 epochs without noise": (("--noiseless-epochs", "2"), BOTH),
    "no noise at all": (("--noiseless-epochs", "1000"), BOTH),
    "upsampler mlp": (("--upsampler", "mlp", *FLOAT32), BERN),
    "projector mlp": (("--projector", "mlp", *FLOAT32), BERN),
    "loss temperature 0.5": (("--loss-temperature", "0.5", *FLOAT32), BERN),
}  # fmt: skip
SCORES = {"h": ("h", "probe"), "z": ("z", "probe"), "h_knn": ("h", "knn"), "z_knn": ("z", "knn"),
          "share_of_ones": ("bits", "share_of_ones"), "correlation": ("bits", "correlation")}  # fmt: skip


def setting(label: str, model: str, grid: Grid) -> Setting:
    """A run of the search: the held-out split, a short schedule, and the alternative's options."""
    options = ("--held-out", "--epochs", str(grid.search_epochs), *FROM, *ALTERNATIVES[label][0])
    return Setting(model, options)


def tried(grid: Grid) -> dict[str, tuple[str, ...]]:
    """Models of each alternative that is tried."""
    chosen = ALTERNATIVES if grid.alternatives is None else grid.alternatives
    return {label: ALTERNATIVES[label][1] for label in chosen}


def needs(grid: Grid) -> list[Need]:
    """Every alternative, of the models that it makes a difference to."""
    return [
        Need(setting(label, model, grid), ("pretrain", "frozen"), once=label not in CONFIRMED)
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
    criteria = [
        Criterion(
            f"{LABELS[model]}: {CHOSEN} is ahead of the start on {key} by more than the seeds' spread",
            ahead(found[CHOSEN][model][key], found[START][model][key]),
        )
        for model in BOTH
        for key in ("h", "z")
    ]
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
    }
    notes = (
        "A fifth of the training images is left out of training and judges; the test images are not touched. "
        f"{evidence.grid.search_epochs} epochs each; what is best in a short schedule need not be best in a long one.",
        "Where there is no deviation a single seed was run, and others can be ahead by luck: nothing follows from it "
        f"but what to try next. The start and {CHOSEN} were run with every seed.",
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
    said = "; ".join(
        figures.told(f"{LABELS[model]}, {label}, on h", scores[label][model]["h"], 100, " %")
        for label in CONFIRMED
        for model in BOTH
        if "h" in scores[label][model]
    )
    return Picture(
        "settings",
        figure,
        "Every alternative beside the start, on training images that were held out; bars are one standard deviation "
        "over the seeds, where there are several.",
        f"Held-out accuracy of each alternative. {said}",
    )
