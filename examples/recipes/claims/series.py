"""Numbers over seeds, when one is ahead of another, and the verdict that follows: the same rule for every claim."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

HOLDS, IN_PART, DOES_NOT = "holds", "holds in part", "does not hold in our runs"
RULE = (
    "A claim is split into criteria. It holds where all of them are met, holds in part where some are, and does not "
    "hold in our runs where none is; there is no verdict while a run is missing. One mean is ahead of another when it "
    "is larger by more than the standard deviation of a difference between single runs, the root of both sample "
    "variances' sum over the seeds. That takes two seeds or more."
)


class Series(NamedTuple):
    """One number a seed.

    Args:
        values: of the seeds that are done.
        seeds: that were asked for.
    """

    values: Mapping[int, float]
    seeds: Sequence[int]

    @property
    def complete(self) -> bool:
        """Whether every seed that was asked for has its number."""
        return all(seed in self.values for seed in self.seeds)

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that are done; None without any."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds that are done; None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def json(self) -> dict[str, Any]:
        """The number of each seed, their mean and their standard deviation."""
        values = {str(seed): self.values[seed] for seed in sorted(self.values)}
        return {"seeds": values, "mean": self.mean, "std": self.std}


class Criterion(NamedTuple):
    """One thing that a claim says.

    Args:
        text: what has to be so, with its rule.
        met: whether it is; None while runs are missing, or where one seed leaves it open.
    """

    text: str
    met: bool | None


def verdict(criteria: Iterable[Criterion]) -> str | None:
    """What follows from the criteria by `RULE`; None while one of them is open, or without any."""
    met = [criterion.met for criterion in criteria]
    if not met or None in met:
        return None
    if all(met):
        return HOLDS
    return IN_PART if any(met) else DOES_NOT


def ahead(a: Series | float, b: Series | float) -> bool | None:
    """Whether the mean of `a` is larger than that of `b` by more than the seeds' spread; see `RULE`.

    Args:
        a: a number a seed, or a constant, which has no spread.
        b: likewise.

    Returns:
        None while a seed is missing, or with fewer than two.
    """
    means, variance = [], 0.0
    for side in (a, b):
        if not isinstance(side, Series):
            means.append(float(side))
        elif side.complete and len(side.values) > 1:
            means.append(statistics.fmean(side.values.values()))
            variance += statistics.variance(side.values.values())
        else:
            return None
    return means[0] - means[1] > math.sqrt(variance)


def no(found: bool | None) -> bool | None:
    """The opposite; None where it is open."""
    return None if found is None else not found


def rises(points: Sequence[Series], *, falls: bool = False) -> bool | None:
    """Whether a number rises (or falls) from the first point to the last.

    Args:
        points: in the order of what they are plotted against.
        falls: ask for the other direction.

    Returns:
        True when the last mean is ahead of the first (the first of the last) and no step in between goes back by more
        than the seeds' spread; None while a seed is missing, or with fewer than two.
    """
    order = list(reversed(points)) if falls else list(points)
    found = [ahead(order[-1], order[0]), *(ahead(a, b) for a, b in itertools.pairwise(order))]
    if None in found:
        return None
    return bool(found[0]) and not any(found[1:])


def every(found: Iterable[bool | None]) -> bool | None:
    """Whether all are true; None while one is open."""
    met = list(found)
    return None if None in met or not met else all(met)
