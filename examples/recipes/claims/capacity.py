"""Claim 4: whether the bits use all their capacity; balance alone does not prove it."""

from __future__ import annotations

from typing import Any

import numpy as np

from recipes.claims import entropy, figures
from recipes.claims.chain import Subject
from recipes.claims.evidence import Answer, Evidence, Grid, Need
from recipes.claims.poster import SHARE_OF_ONES, SOURCE
from recipes.claims.series import Criterion, ahead, every, no
from recipes.figures import Picture
from stochastic_bottleneck import codes

TITLE = "Use of the bits' capacity"
CLAIM = 'The bottleneck ("soft top 512") uses all its capacity: 50 % zeros, 50 % ones.'
PAPER = {"source": SOURCE, "share_of_ones": SHARE_OF_ONES}
PART = "capacity"
BALANCED = 0.02
"""Distance from one half, of the share of ones of all bits together, that counts as none."""
FULL = 0.95
"""Share of what bits could hold that counts as all of it."""
MEASURES = ("share_of_ones", "entropy", "correlation", "upper_bound", "lower_bound", "effective_bits")


def needs(grid: Grid) -> list[Need]:
    """Bern at the sizes for forests."""
    return [Need(grid.of_dim("bern", dim), ("pretrain", "frozen", PART)) for dim in grid.forest_dims]


def measure(subject: Subject) -> dict[str, Any]:
    """Balance, redundancy and joint entropy of the test images' bits."""
    bits = subject.features["z"][1]
    correlation = codes.bit_correlation(bits)
    upper = entropy.upper_bound(bits, seed=subject.seed)
    return {
        "images": len(bits),
        "share_of_ones": float(codes.share_of_ones(bits).mean()),
        "share_of_ones_by_bit": np.sort(codes.share_of_ones(bits)).tolist(),
        "entropy": float(codes.bit_entropy(bits).mean()),
        "correlation": None if np.isnan(correlation) else correlation,
        "upper_bound": upper.bits,
        "group": upper.group,
        "lower_bound": entropy.lower_bound(bits),
        "effective_bits": entropy.effective_bits(bits),
    }


def answer(evidence: Evidence) -> Answer:
    """Each measure at each size."""
    values: dict[str, Any] = {}
    criteria = []
    for dim in evidence.grid.forest_dims:
        setting = evidence.grid.of_dim("bern", dim)
        of_dim = {name: evidence.series(setting, PART, name) for name in MEASURES}
        found = evidence.results(setting, PART)
        values[str(dim)] = {name: s.json() for name, s in of_dim.items()} | {
            "share_of_ones_by_bit": [result["share_of_ones_by_bit"] for result in found.values()],
            "images": next((result["images"] for result in found.values()), None),
            "group": next((result["group"] for result in found.values()), None),
        }
        share, joint, each = (of_dim[key] for key in ("share_of_ones", "upper_bound", "entropy"))
        outside = [ahead(share, SHARE_OF_ONES + BALANCED), ahead(SHARE_OF_ONES - BALANCED, share)]
        criteria += [
            Criterion(
                f"{dim} bits are balanced: their share of ones is not further from 50 % than {100 * BALANCED:.0f} % by "
                "more than the seeds' spread",
                every(map(no, outside)),
            ),
            Criterion(
                f"each of {dim} bits is used: the mean entropy of a bit is not below {FULL} bits by more than the "
                "seeds' spread",
                no(ahead(FULL, each)),
            ),
            Criterion(
                f"{dim} bits are not redundant: the upper bound of their joint entropy is not below {100 * FULL:.0f} % "
                f"of {dim} bits by more than the seeds' spread",
                no(ahead(FULL * dim, joint)),
            ),
        ]
    notes = (
        "The joint entropy of so many bits cannot be estimated from these images; it is bounded. From above: the sum "
        "of the entropies of groups of bits, the most correlated together, each counted over the images with Miller "
        "and Madow's correction. It ignores what groups share, so the truth lies below it; the correction leaves a "
        "small downward bias, which is largest for groups whose codes are all different. From below: the entropy of "
        "the codes as they were counted, which cannot pass the logarithm of the number of images.",
        "Effective bits are the participation ratio of the correlation matrix's eigenvalues: dim for uncorrelated "
        "bits, 1 for copies of one. Only dependence of pairs counts in it.",
    )
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Balance and redundancy, beside the paper's share of ones, header first."""
    header = ["bits", "ones %", "paper's ones %", "entropy a bit", "mean |correlation|", "joint entropy at least",
              "at most", "effective bits"]  # fmt: skip
    cells = [
        [
            dim,
            figures.number(of_dim["share_of_ones"], 100),
            f"{100 * content['paper']['share_of_ones']:.0f}",
            *(figures.number(of_dim[name], 1, ".3f") for name in ("entropy", "correlation")),
            *(figures.number(of_dim[name]) for name in ("lower_bound", "upper_bound", "effective_bits")),
        ]
        for dim, of_dim in content["values"].items()
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Share of ones by bit, and the bounds of the joint entropy beside the capacity."""
    figure, (left, right) = figures.panels(("share of ones (%)", "bits"), x="")
    left.set_xlabel("bits, sorted (% of all)")
    names, said = ("capacity", "upper\nbound", "effective\nbits", "lower\nbound"), []
    for (dim, of_dim), style in zip(content["values"].items(), figures.LINES, strict=False):
        for i, shares in enumerate(of_dim["share_of_ones_by_bit"]):
            place = 100 * (np.arange(len(shares)) + 0.5) / len(shares)
            left.plot(place, 100 * np.asarray(shares), linestyle=style[1], color=style[0], linewidth=1,
                      label=None if i else f"{dim} bits")  # fmt: skip
        heights = [
            int(dim),
            *(of_dim[name]["mean"] for name in ("upper_bound", "effective_bits", "lower_bound")),
        ]
        if None not in heights:
            right.plot(range(4), heights, "o", linestyle=style[1], color=style[0], linewidth=0.8)
            said.append(figures.told(f"{dim} bits: joint entropy at most", of_dim["upper_bound"], 1, " bits"))
    left.axhline(100 * SHARE_OF_ONES, color="0.35", linestyle=":", linewidth=1)
    left.set_ylim(0, 100)
    right.set_xticks(range(4), names, fontsize=8)
    right.set_yscale("log", base=2)
    figures.legend(left)
    return Picture(
        "capacity",
        figure,
        "Left: the share of ones of each bit, sorted, a line for each seed; the dotted line is the paper's 50 %. "
        "Right: what the bits could hold, and what bounds say that they do.",
        f"Shares of ones by bit, and bounds of the joint entropy. {'; '.join(said)}",
    )
