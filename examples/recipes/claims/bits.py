"""Claim 3: how few bits carry the classes."""

from __future__ import annotations

from typing import Any

from recipes.claims import figures
from recipes.claims.chain import Subject
from recipes.claims.evidence import Answer, Evidence, Grid, Need
from recipes.claims.poster import BITS_ENOUGH, SOURCE
from recipes.claims.series import Criterion, Series, ahead, no
from recipes.figures import Picture
from stochastic_bottleneck.evaluation import forest_curve

TITLE = "F1 against the number of bits"
CLAIM = "Competitive discriminative performance on CIFAR-10 with as few as 11 bits."
PAPER = {"source": SOURCE, "bits": BITS_ENOUGH}
PART = "forest"
SHARE = 0.95
COUNTS = (*range(1, 13), 14, 16, 20, 25, 32, 40, 50, 64, 96, 128, 192, 256)
TREES = 200


def needs(grid: Grid) -> list[Need]:
    """Bern at the sizes for forests."""
    return [Need(grid.of_dim("bern", dim), ("pretrain", "frozen", PART)) for dim in grid.forest_dims]


def measure(subject: Subject) -> dict[str, Any]:
    """A forest's F1 for many numbers of bits, ranked on the training images."""
    train, test = subject.features["z"]
    images = subject.images
    curve = forest_curve(
        train,
        images.train_labels,
        test,
        images.test_labels,
        counts=[count for count in COUNTS if count <= train.shape[1]],
        trees=TREES,
        seed=subject.seed,
    )
    return {"counts": curve.counts, "f1": curve.f1, "ranking": curve.ranking, "trees": TREES}


def enough(result: dict[str, Any], share: float = SHARE) -> int:
    """Fewest bits, of those measured, from which on F1 stays at this share of the score with all of them."""
    goal = share * result["f1"][-1]
    fewest = result["counts"][-1]
    for count, f1 in zip(reversed(result["counts"]), reversed(result["f1"]), strict=True):
        if f1 < goal:
            break
        fewest = count
    return int(fewest)


def kept(result: dict[str, Any], count: int = BITS_ENOUGH) -> float:
    """Share of the score with all bits that so many bits keep."""
    place = list(result["counts"]).index(min(count, result["counts"][-1]))
    return float(result["f1"][place] / result["f1"][-1])


def answer(evidence: Evidence) -> Answer:
    """Curves, the bits that are enough, and what 11 of them keep."""
    values: dict[str, Any] = {}
    criteria = []
    for dim in evidence.grid.forest_dims:
        setting = evidence.grid.of_dim("bern", dim)
        found = evidence.results(setting, PART)
        counts = list(next(iter(found.values()))["counts"]) if found else []
        f1 = [
            Series({seed: result["f1"][i] for seed, result in found.items()}, evidence.seeds)
            for i in range(len(counts))
        ]
        bits = evidence.series_of(setting, PART, enough)
        share = evidence.series_of(setting, PART, kept)
        values[str(dim)] = {
            "counts": counts,
            "f1": [s.json() for s in f1],
            "bits_for_95_percent": bits.json(),
            "share_kept_by_11": share.json(),
        }
        criteria.append(
            Criterion(
                f"of {dim} bits, the {BITS_ENOUGH} most important keep {SHARE:.0%} of the F1 of all, or are short of "
                "it by no more than the seeds' spread",
                no(ahead(SHARE, share)),
            )
        )
    notes = (
        "Bits are ranked by the importances of a forest on the training images; F1 is the mean over classes on the "
        "test images.",
    )
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """What few bits keep, beside the paper's number, header first."""
    header = ["bits in all", "F1 with all %", "bits for 95 % of it", "paper's bits", "kept by 11 bits %"]
    cells = [
        [
            dim,
            figures.number(of_dim["f1"][-1] if of_dim["f1"] else None, 100),
            figures.number(of_dim["bits_for_95_percent"], form=".3g"),
            str(content["paper"]["bits"]),
            figures.number(of_dim["share_kept_by_11"], 100),
        ]
        for dim, of_dim in content["values"].items()
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """F1 against the bits kept, with the paper's 11 marked."""
    figure, (axes,) = figures.panels(("random forest, mean F1 (%)",), x="bits kept, the most important first")
    ticks: list[int] = []
    for (dim, of_dim), style in zip(content["values"].items(), figures.LINES, strict=False):
        figures.band(axes, of_dim["counts"], of_dim["f1"], *style, f"of {dim} bits", 100)
        ticks = max(ticks, of_dim["counts"], key=len)
    figures.mark(axes, BITS_ENOUGH, f"paper: {BITS_ENOUGH}")
    figures.log_axis(axes, [tick for tick in (1, 2, 5, 11, 25, 50, 128, 256, 512) if tick in ticks])
    figures.legend(axes)
    said = (
        figures.told(f"of {dim} bits, for 95 %", of_dim["bits_for_95_percent"], 1, " bits")
        for dim, of_dim in content["values"].items()
    )
    return Picture(
        "bits",
        figure,
        "Mean F1 of a random forest against the number of bits it sees; bands are one standard deviation over the "
        "seeds, the dotted line is the paper's number of bits.",
        f"F1 against bits kept, rising. {'; '.join(said)}",
    )
