"""Claim 7: what can be counted on the codes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from recipes.claims import figures
from recipes.claims.chain import Subject
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.poster import SOURCE
from recipes.claims.series import Criterion, ahead
from recipes.figures import STYLES, Picture
from recipes.search_measures import precision
from stochastic_bottleneck import codes

TITLE = "Counting metrics"
CLAIM = "StochCon Bern enables countable metrics."
PAPER = {"source": SOURCE}
PART = "counting"
BERN = Setting("bern")
NEAREST = 10
SHUFFLES = 5


def needs(grid: Grid) -> list[Need]:
    """Bern as the preset has it."""
    return [Need(BERN, ("pretrain", "frozen", PART))]


def measure(subject: Subject) -> dict[str, Any]:
    """Counts on the training and test images' codes."""
    train, test = (codes.pack_bits(bits) for bits in subject.features["z"])
    bits = subject.features["z"][1]
    labels, of_train = subject.images.test_labels.numpy(), subject.images.train_labels.numpy()
    draw = np.random.default_rng(subject.seed)
    information = codes.bit_class_information(bits, labels)
    shuffled = [
        float(codes.bit_class_information(bits, draw.permutation(labels)).mean()) for _ in range(SHUFFLES)
    ]
    shared = shared_codes(train, of_train)
    found = nearest(train, test, NEAREST)
    share = np.bincount(of_train) / len(of_train)
    return {
        "images": {"train": len(train), "test": len(test)},
        "distinct": {"train": len(np.unique(train, axis=0)), "test": len(np.unique(test, axis=0))},
        "shared_codes": shared,
        "information": float(information.mean()),
        "information_by_bit": np.sort(information)[::-1].tolist(),
        "information_shuffled": float(np.mean(shuffled)),
        "purity": {str(k): precision(found[:, :k], of_train, labels) for k in (1, NEAREST)},
        "purity_by_chance": float((share[labels]).mean()),
    }


def shared_codes(packed: NDArray[np.uint8], labels: NDArray[Any]) -> dict[str, Any]:
    """Images whose code another image has too, and how often such images are of the code's commonest class.

    Args:
        packed: codes. Shape: (N, B)
        labels: Shape: (N,)
    """
    _, group, size = np.unique(packed, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    table = np.zeros((len(size), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (group, labels), 1)
    several = size > 1
    images = int(size[several].sum())
    purity = float(table[several].max(axis=1).sum() / images) if images else None
    return {"codes": int(several.sum()), "images": images, "purity": purity}


def nearest(base: NDArray[np.uint8], queries: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Numbers of the nearest codes in Hamming distance. Shape: (N, B), (Q, B) -> (Q, count)."""
    index = faiss.IndexBinaryFlat(8 * base.shape[1])
    index.add(base)
    found: NDArray[np.int64] = index.search(queries, min(count, len(base)))[1]
    return found


def answer(evidence: Evidence) -> Answer:
    """Every count over the seeds."""
    paths: dict[str, tuple[str, ...]] = {
        "distinct_train": ("distinct", "train"),
        "distinct_test": ("distinct", "test"),
        "images_that_share_a_code": ("shared_codes", "images"),
        "purity_of_shared_codes": ("shared_codes", "purity"),
        "information": ("information",),
        "information_shuffled": ("information_shuffled",),
        "purity_1": ("purity", "1"),
        f"purity_{NEAREST}": ("purity", str(NEAREST)),
        "purity_by_chance": ("purity_by_chance",),
    }
    found = {name: evidence.series(BERN, PART, *path) for name, path in paths.items()}
    results = evidence.results(BERN, PART)
    values: dict[str, Any] = {name: s.json() for name, s in found.items()}
    values["images"] = next((result["images"] for result in results.values()), None)
    values["information_by_bit"] = [result["information_by_bit"] for result in results.values()]
    criteria = [
        Criterion(
            "bits tell of the class: their mutual information with it is ahead of that with shuffled classes by more "
            "than the seeds' spread",
            ahead(found["information"], found["information_shuffled"]),
        ),
        Criterion(
            "near codes are of one class: the share of the ten nearest codes with the image's class is ahead of "
            "chance by more than the seeds' spread",
            ahead(found[f"purity_{NEAREST}"], found["purity_by_chance"]),
        ),
    ]
    notes = (
        "Mutual information is the plug-in estimate, a mean over bits; the one with shuffled classes shows its bias. "
        "Purity is the share of the training images with the nearest codes that have the test image's class.",
    )
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Every count, header first."""
    values = content["values"]
    images = values["images"] or {"train": 0, "test": 0}
    percent = f"{NEAREST} nearest codes of the image's class %"
    cells = [
        [
            f"distinct codes of {images['train']:,} training images",
            figures.number(values["distinct_train"], 1, ",.0f"),
        ],
        [
            f"distinct codes of {images['test']:,} test images",
            figures.number(values["distinct_test"], 1, ",.0f"),
        ],
        ["training images that share a code", figures.number(values["images_that_share_a_code"], 1, ".0f")],
        [
            "of these, of their code's commonest class %",
            figures.number(values["purity_of_shared_codes"], 100),
        ],
        ["information of bit and class, mean (bits)", figures.number(values["information"], 1, ".4f")],
        ["the same with shuffled classes", figures.number(values["information_shuffled"], 1, ".4f")],
        ["nearest code of the image's class %", figures.number(values["purity_1"], 100)],
        [percent, figures.number(values[f"purity_{NEAREST}"], 100)],
        ["of the image's class by chance %", figures.number(values["purity_by_chance"], 100)],
    ]
    return [["count", "value"], *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Mutual information of each bit, and purities."""
    values = content["values"]
    figure, (left, right) = figures.panels(
        ("information of bit and class (bits)", "of the image's class (%)"), x="bits, sorted"
    )
    for of_seed in values["information_by_bit"]:
        left.plot(range(1, len(of_seed) + 1), of_seed, color=STYLES["bern"][0], linewidth=1)
    figures.level(left, values["information_shuffled"]["mean"], "classes shuffled")
    left.set_ylim(bottom=0)
    figures.legend(left)
    names = {"purity_1": "nearest\ncode", f"purity_{NEAREST}": f"{NEAREST} nearest\ncodes",
             "purity_by_chance": "chance"}  # fmt: skip
    for place, name in enumerate(names):
        figures.dots(right, place, values[name], STYLES["bern"][0])
    right.set_xlabel("")
    right.set_xticks(range(len(names)), list(names.values()), fontsize=8)
    right.margins(x=0.2, y=0.1)
    right.set_ylim(bottom=0)
    said = [figures.told(name, values[name]) for name in ("distinct_test", "information")]
    said.append(figures.told("purity of the nearest code", values["purity_1"], 100, " %"))
    return Picture(
        "counting",
        figure,
        "Left: mutual information of each bit and the class, a line for each seed. Right: how often near codes are of "
        "the image's class.",
        f"Counts on the codes: {'; '.join(said)}",
    )
