"""What must hold: ratios between contenders of one run, memory, and shares, but never a time."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

Results = dict[str, Any]
Row = dict[str, Any]


class NotMeasuredError(Exception):
    """The run says nothing about a target: it left out the case, or what it is compared with failed."""


class FailedError(Exception):
    """The run measured the case, and the contender that the target is about failed there."""


@dataclass(frozen=True)
class Outcome:
    """A target beside what was measured.

    Args:
        text: what must hold.
        limit: the bound, written out.
        measured: the value, written out, or why there is none.
        state: "reached", "missed" or "not measured".
    """

    text: str
    limit: str
    measured: str
    state: str


@dataclass(frozen=True)
class Target:
    """A bound on a number that a run yields.

    Args:
        text: what must hold, for readers.
        contender: whom the target is about.
        limit: the bound.
    """

    text: str
    contender: str
    limit: float
    at_least: ClassVar[bool] = False
    form: ClassVar[str] = "{:.3g}"

    def measure(self, results: Results) -> float:
        """The number; raises `NotMeasuredError` or `FailedError` where there is none."""
        raise NotImplementedError

    def outcome(self, results: Results) -> Outcome:
        """The number beside the bound."""
        limit = f"{'at least' if self.at_least else 'at most'} {self.form.format(self.limit)}"
        try:
            value = self.measure(results)
        except NotMeasuredError as why:
            return Outcome(self.text, limit, str(why), "not measured")
        except FailedError as why:
            return Outcome(self.text, limit, str(why), "missed")
        reached = value >= self.limit if self.at_least else value <= self.limit
        return Outcome(self.text, limit, self.form.format(value), "reached" if reached else "missed")


@dataclass(frozen=True)
class Ratio(Target):
    """Time over that of a peer at the same case, the median of the rounds' ratios."""

    case: str = ""
    peer: str = ""
    form: ClassVar[str] = "{:.3g}x"

    def measure(self, results: Results) -> float:
        row, peer = row_of(results, self.case, self.contender), peer_of(results, self.case, self.peer)
        return paired_ratio(row, peer)


@dataclass(frozen=True)
class Memory(Target):
    """Extra memory at the peak, in MB of a million bytes."""

    case: str = ""
    form: ClassVar[str] = "{:.3g} MB"

    def measure(self, results: Results) -> float:
        return _peak(row_of(results, self.case, self.contender)) / 1e6


@dataclass(frozen=True)
class FloorShare(Target):
    """The least time that the case's products can take at the rate measured in the same rounds, over the time taken."""

    case: str = ""
    floor: str = ""
    at_least: ClassVar[bool] = True
    form: ClassVar[str] = "{:.0%}"

    def measure(self, results: Results) -> float:
        return floor_share(
            row_of(results, self.case, self.contender), peer_of(results, self.case, self.floor)
        )


@dataclass(frozen=True)
class Exponent(Target):
    """Slope of the logarithm of time or memory against that of a size, over some cases."""

    cases: tuple[str, ...] = ()
    axis: str = "n"
    metric: str = "time"
    form: ClassVar[str] = "{:.2f}"

    def measure(self, results: Results) -> float:
        rows = [row_of(results, case, self.contender) for case in self.cases]
        values = [row["median_s"] if self.metric == "time" else _peak(row) for row in rows]
        if min(values) <= 0:
            raise NotMeasuredError("too little to be seen")
        return slope([row["size"][self.axis] for row in rows], values)


@dataclass(frozen=True)
class PartShare(Target):
    """Share of the time that a named part of the operation takes."""

    case: str = ""
    part: str = ""
    form: ClassVar[str] = "{:.1%}"

    def measure(self, results: Results) -> float:
        return part_share(row_of(results, self.case, self.contender), self.part)


def row_of(results: Results, case: str, contender: str) -> Row:
    """The row of the contender that a target is about."""
    row = find(results, case, contender)
    if row is None:
        raise NotMeasuredError("not part of this run")
    if row["error"] is not None:
        raise FailedError(row["error"])
    if row["agreement"] is not None and not row["agreement"]["agrees"]:
        raise FailedError("its result does not agree with the oracle")
    return row


def peer_of(results: Results, case: str, contender: str) -> Row:
    """The row of what it is compared with, whose failure says nothing about the contender."""
    row = find(results, case, contender)
    if row is None:
        raise NotMeasuredError("not part of this run")
    if row["error"] is not None:
        raise NotMeasuredError(f"{row['label']} failed: {row['error']}")
    return row


def find(results: Results, case: str, contender: str) -> Row | None:
    """The row of a contender at a case, if it took part."""
    found = (row for row in results["rows"] if (row["case"], row["contender"]) == (case, contender))
    return next(found, None)


def paired_ratio(row: Row, peer: Row) -> float:
    """Median over rounds of one contender's time over the other's; a slow one may have had fewer rounds."""
    return statistics.median(a / b for a, b in zip(row["samples_s"], peer["samples_s"], strict=False))


def floor_share(row: Row, product: Row) -> float:
    """Median over rounds of the least time over the time taken."""
    least = [row["flop"] / product["amount"] * seconds for seconds in product["samples_s"]]
    return statistics.median(a / b for a, b in zip(least, row["samples_s"], strict=False))


def part_share(row: Row, part: str) -> float:
    """Median over samples of a part's share."""
    if part not in row["parts_s"]:
        raise NotMeasuredError(f"no part {part!r} in this run")
    return statistics.median(a / b for a, b in zip(row["parts_s"][part], row["samples_s"], strict=True))


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares exponent of y against x."""
    log_x, log_y = [math.log(v) for v in x], [math.log(v) for v in y]
    return statistics.linear_regression(log_x, log_y).slope


def _peak(row: Row) -> float:
    if row["peak_bytes"] is None:
        raise NotMeasuredError("peak memory cannot be measured here")
    return float(row["peak_bytes"])
