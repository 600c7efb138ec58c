"""Targets: bounds on ratios between contenders of one run, on memory and on shares, but never on a time."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

Results = dict[str, Any]
Row = dict[str, Any]


class NotMeasuredError(Exception):
    """The run lacks the case or the contender, or the peer of a ratio failed."""


class FailedError(Exception):
    """The contender of the target failed or returned a wrong result."""


class Outcome(NamedTuple):
    """A target with its measured value."""

    text: str
    limit: str
    measured: str  # or why there is no value
    state: str  # "reached", "missed" or "not measured"


@dataclass(frozen=True)
class Target:
    """A bound on a number of a contender."""

    text: str  # what must hold, for readers
    contender: str
    limit: float
    at_least: ClassVar[bool] = False
    format: ClassVar[str] = "{:.3g}"

    def measure(self, results: Results) -> float:
        """The number; raises `NotMeasuredError` or `FailedError` where there is none."""
        raise NotImplementedError

    def outcome(self, results: Results) -> Outcome:
        """Compare the number with the bound."""
        limit = f"{'at least' if self.at_least else 'at most'} {self.format.format(self.limit)}"
        try:
            value = self.measure(results)
        except NotMeasuredError as why:
            return Outcome(self.text, limit, str(why), "not measured")
        except FailedError as why:
            return Outcome(self.text, limit, str(why), "missed")
        reached = value >= self.limit if self.at_least else value <= self.limit
        return Outcome(self.text, limit, self.format.format(value), "reached" if reached else "missed")


@dataclass(frozen=True)
class Ratio(Target):
    """Time divided by a peer's at the same case: the median of the rounds' ratios."""

    case: str = ""
    peer: str = ""
    format: ClassVar[str] = "{:.3g}x"

    def measure(self, results: Results) -> float:
        row, peer = row_of(results, self.case, self.contender), row_of(results, self.case, self.peer, True)
        return paired_ratio(row["samples_s"], peer["samples_s"])


@dataclass(frozen=True)
class Memory(Target):
    """Extra memory at the peak, in MB of a million bytes."""

    case: str = ""
    format: ClassVar[str] = "{:.3g} MB"

    def measure(self, results: Results) -> float:
        return _peak(row_of(results, self.case, self.contender)) / 1e6


@dataclass(frozen=True)
class FloorShare(Target):
    """The floor's time, by the rate of a matrix product in the same rounds, divided by the time measured."""

    case: str = ""
    floor: str = ""
    at_least: ClassVar[bool] = True
    format: ClassVar[str] = "{:.0%}"

    def measure(self, results: Results) -> float:
        row, product = (
            row_of(results, self.case, self.contender),
            row_of(results, self.case, self.floor, True),
        )
        return floor_share(row, product)


@dataclass(frozen=True)
class Exponent(Target):
    """Slope of the logarithm of time or memory over that of a size."""

    cases: tuple[str, ...] = ()
    metric: str = "time"
    format: ClassVar[str] = "{:.2f}"

    def measure(self, results: Results) -> float:
        rows = [row_of(results, case, self.contender) for case in self.cases]
        values = [row["median_s"] if self.metric == "time" else _peak(row) for row in rows]
        if min(values) <= 0:
            raise NotMeasuredError("too small to measure")
        log_sizes = [math.log(row["size"]["n"]) for row in rows]
        return statistics.linear_regression(log_sizes, [math.log(v) for v in values]).slope


def row_of(results: Results, case: str, contender: str, peer: bool = False) -> Row:
    """The row of a contender, or of a peer that it is compared with, whose failure is no failure of the target."""
    row = find(results, case, contender)
    if row is None:
        raise NotMeasuredError("not part of this run")
    if row["error"] is not None and peer:
        raise NotMeasuredError(f"{row['label']} failed: {row['error']}")
    if row["error"] is not None:
        raise FailedError(row["error"])
    if not peer and row["agreement"] is not None and not row["agreement"]["agrees"]:
        raise FailedError("its result does not agree with the oracle")
    return row


def find(results: Results, case: str, contender: str) -> Row | None:
    """The row of a contender at a case, or None."""
    rows = (row for row in results["rows"] if (row["case"], row["contender"]) == (case, contender))
    return next(rows, None)


def paired_ratio(samples: list[float], of_peer: list[float]) -> float:
    """Median over rounds of one time over the other's; a slow contender may have had fewer rounds."""
    return statistics.median(a / b for a, b in zip(samples, of_peer, strict=False))


def floor_share(row: Row, product: Row) -> float:
    """Median over rounds of the floor's time over the time measured."""
    return row["flop"] / product["amount"] * paired_ratio(product["samples_s"], row["samples_s"])


def _peak(row: Row) -> float:
    if row["peak_bytes"] is None:
        raise NotMeasuredError("peak memory cannot be measured here")
    return float(row["peak_bytes"])
