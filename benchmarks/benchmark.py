"""What a benchmark consists of: cases, contenders, the work that is timed, tables and targets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks.targets import Target


@dataclass(frozen=True)
class Case:
    """One input size."""

    name: str  # unique in its benchmark; targets and tables refer to it
    size: dict[str, Any] = field(default_factory=dict)  # what `build` needs to make the inputs
    flop: float | None = None  # floating point operations that the floor counts


@dataclass
class Work:
    """A contender at one case, with its inputs ready."""

    run: Callable[[], Any]  # the operation that is timed
    # Relative errors of the first call by name, given its result and the benchmark's oracle.
    check: Callable[[Any, dict[str, Any] | None], dict[str, float]] | None = None
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered while this contender may run
    close: Callable[[], None] = lambda: None  # frees what `build` started
    amount: float | None = None  # floating point operations of a call, where it measures the machine's rate


@dataclass(frozen=True)
class Contender:
    """One implementation of the operation."""

    name: str  # unique in its benchmark
    label: str  # in tables and figures
    build: Callable[[Case, str], Work]  # makes the work of a case on a device
    takes: Callable[[Case], bool] = lambda case: True  # whether it is measured at a case
    compiled: bool = False  # uses torch.compile; left out of quick runs, which would time compilation alone
    precision: str = "float32"  # of inputs and arithmetic; selects the oracle's inputs
    tolerance: float = 1e-5  # largest relative error that counts as agreement


@dataclass(frozen=True)
class View:
    """A table of results: a row for each case, a column for each contender."""

    title: str
    metric: str  # "time", "first call" or "memory"
    contenders: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One operation and its contenders."""

    module: str  # `__name__` of the module, from which a contender's process imports it
    title: str
    note: str  # what one call does
    contenders: tuple[Contender, ...]  # in the order of tables and legends
    cases: tuple[Case, ...]  # of a full run
    quick_cases: tuple[Case, ...]  # of a quick run, which checks only that everything runs
    views: tuple[View, ...]
    targets: tuple[Target, ...] = ()
    oracle: Callable[[Case, str], dict[str, Any]] | None = None  # float64 results for inputs of a precision
    floor: str | None = None  # contender whose rate, with `Case.flop`, gives the floor's time
    axis: str | None = None  # key of `Case.size` on the x axis of figures; None for bars
    rounds: int = 7  # samples per contender; more where a small difference matters

    @property
    def name(self) -> str:
        """The module's last name, which is also the name of the results file."""
        return self.module.rpartition(".")[2]

    def contender(self, name: str) -> Contender:
        """The contender of that name."""
        return next(c for c in self.contenders if c.name == name)
