"""Claim 2: bits against accuracy, beside other codes of the same size."""

from __future__ import annotations

from typing import Any

from recipes.claims import baselines, figures
from recipes.claims.chain import Subject
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.poster import COMPRESSION, IMAGE_SHAPE, LATENT_BITS, SOURCE
from recipes.claims.series import Criterion, Series, ahead, every, no, rises
from recipes.figures import STYLES, Picture
from recipes.screen import console
from stochastic_bottleneck import codes
from stochastic_bottleneck.evaluation import linear_probe

TITLE = "Compression against accuracy"
CLAIM = "588x compression of image data; the bottleneck trades top-1 for compression."
PAPER = {"source": SOURCE, "compression": COMPRESSION, "bits": LATENT_BITS, "image_shape": IMAGE_SHAPE}
PART = "other_codes"
SIMCLR = Setting("simclr")


def needs(grid: Grid) -> list[Need]:
    """Bern at every size, and SimCLR's features as other codes."""
    bern = [Need(grid.of_dim("bern", dim), ("pretrain", "frozen")) for dim in grid.dims]
    return [*bern, Need(SIMCLR, ("pretrain", "frozen", PART))]


def measure(subject: Subject) -> dict[str, Any]:
    """Linear probes on other codes of SimCLR's features, at every number of bits."""
    train, test = subject.features["h"]
    images = subject.images
    accuracy: dict[str, dict[str, float | None]] = {}
    for name, method in baselines.METHODS.items():
        accuracy[name] = {}
        for bits in subject.grid.dims:
            found = method(train, test, bits, subject.seed)
            if found is None:
                accuracy[name][str(bits)] = None
                continue
            probe = linear_probe(
                found[0],
                images.train_labels,
                found[1],
                images.test_labels,
                seed=subject.seed,
                device=subject.probe_device,
            )
            accuracy[name][str(bits)] = probe.accuracy
            console.print(
                f"{baselines.NAMES[name]}, {bits} bits: {100 * probe.accuracy:.1f} %", highlight=False
            )
    return {"accuracy": accuracy, "width": train.shape[1], "image_shape": [images.size, images.size, 3]}


def answer(evidence: Evidence) -> Answer:
    """Accuracy by number of bits, of Bern's and of every other code."""
    dims = evidence.grid.dims
    bern = [evidence.series(evidence.grid.of_dim("bern", dim), "frozen", "z", "probe") for dim in dims]
    others = {
        name: [evidence.series(SIMCLR, PART, "accuracy", name, str(dim)) for dim in dims]
        for name in baselines.METHODS
    }
    done = evidence.results(SIMCLR, PART)
    possible = {  # by a seed that is done; which codes can be had does not depend on it
        name: [
            bool(done) and next(iter(done.values()))["accuracy"][name][str(dim)] is not None for dim in dims
        ]
        for name in others
    }
    level = [
        _not_behind(b, [others[name][i] for name in others if possible[name][i]]) if done else None
        for i, b in enumerate(bern)
    ]
    behind = [str(dim) for dim, met in zip(dims, level, strict=True) if met is False]
    shape = next(iter(done.values()))["image_shape"] if done else None
    values = {
        "bits": list(dims),
        "compression_ratio": [codes.compression_ratio(shape, dim) for dim in dims] if shape else None,
        "bern": [s.json() for s in bern],
        "others": {name: [s.json() for s in of_name] for name, of_name in others.items()},
        "simclr_h": evidence.series(SIMCLR, "frozen", "h", "probe").json(),
        "behind_at": behind,
    }
    criteria = [
        Criterion(
            "more bits give more top-1: the most bits are ahead of the fewest by more than the seeds' spread, and no "
            "step goes back by more",
            rises(bern),
        ),
        Criterion(
            "at every size, no other code of SimCLR's h is ahead of Bern's bits by more than the seeds' spread",
            every(level),
        ),
    ]
    notes = (
        "Every code is judged by a linear probe. A product quantiser's code is judged by the features that it gives "
        "back; principal components and ITQ give no more bits than h has features.",
        f"The paper's {COMPRESSION}x is {LATENT_BITS:,} bits of a photograph of 224 pixels.",
    )
    return Answer(values, criteria, notes)


def _not_behind(bits: Series, others: list[Series]) -> bool | None:
    """True where there is no other code to compare with."""
    return every(no(ahead(other, bits)) for other in others) if others else True


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Accuracy of every code at every size, header first."""
    values = content["values"]
    ratios = values["compression_ratio"] or [None] * len(values["bits"])
    header = [
        "bits",
        "compression",
        "StochCon Bern %",
        *(f"{baselines.NAMES[name]} %" for name in values["others"]),
    ]
    cells = [
        [
            str(bits),
            "-" if ratio is None else f"{ratio:g}x",
            figures.number(values["bern"][i], 100),
            *(figures.number(of_name[i], 100) for of_name in values["others"].values()),
        ]
        for i, (bits, ratio) in enumerate(zip(values["bits"], ratios, strict=True))
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Accuracy against bits."""
    values = content["values"]
    figure, (axes,) = figures.panels(("linear probe on the code (%)",), x="bits an image")
    figures.band(axes, values["bits"], values["bern"], *STYLES["bern"], "StochCon Bern, bits", 100)
    for (name, of_name), style in zip(values["others"].items(), figures.OTHERS, strict=False):
        figures.band(axes, values["bits"], of_name, *style, baselines.NAMES[name], 100)
    figures.level(axes, values["simclr_h"]["mean"], "SimCLR h, uncompressed", 100)
    figures.log_axis(axes, values["bits"])
    figures.legend_below(figure, axes)
    return Picture(
        "compression",
        figure,
        "Test accuracy of a linear probe against the size of the code; bands are one standard deviation over the "
        "seeds.",
        "Accuracy against bits. StochCon Bern: "
        + figures.listed(values["bits"], values["bern"], "bits", 100, " %"),
    )
