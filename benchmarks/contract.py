"""The words that benchmarks and harness share: a case, a contender, its work, a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks.targets import Target


@dataclass(frozen=True)
class Case:
    """One size that contenders are compared at.

    Args:
        name: unique in its benchmark; how targets and tables name it.
        size: what `build` needs to make the inputs, as plain numbers and strings.
        flop: floating point operations that cannot be avoided, for the floor; None without one.
    """

    name: str
    size: dict[str, Any] = field(default_factory=dict)
    flop: float | None = None


@dataclass
class Work:
    """A contender at one case, with its inputs made: what is timed.

    Args:
        run: one operation; what it returns goes to `check`.
        check: relative errors of the first call, by name, against the benchmark's oracle.
        turn: entered for as long as this contender may use the machine.
        close: gives back what `build` started.
        amount: how much one call does, and the unit, where a rate says more than a time.
        parts: seconds spent in named parts of `run`, which adds to them.
    """

    run: Callable[[], Any]
    check: Callable[[Any, dict[str, Any] | None], dict[str, float]] | None = None
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    close: Callable[[], None] = lambda: None
    amount: tuple[float, str] | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One way to do the operation.

    Args:
        name: unique in its benchmark.
        label: for readers.
        build: makes the work of a case on a device.
        takes: whether it takes part in a case.
        compiled: goes through torch.compile; left out of quick runs, where only compiling would be timed.
        precision: of inputs and arithmetic; picks the oracle's inputs.
        tolerance: largest relative error, of whatever `check` measures, that counts as agreement.
    """

    name: str
    label: str
    build: Callable[[Case, str], Work]
    takes: Callable[[Case], bool] = lambda case: True
    compiled: bool = False
    precision: str = "float32"
    tolerance: float = 1e-5


@dataclass(frozen=True)
class View:
    """A table over the results: a row for each case that any of the contenders took part in, a column a contender.

    Args:
        title: heading.
        metric: "time", "first call", "memory" or "rate".
        contenders: columns, by name.
    """

    title: str
    metric: str
    contenders: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One operation and who is compared on it.

    Args:
        module: the module's `__name__`, where a contender's process finds it again.
        title: heading.
        note: a sentence or two on what one call is.
        contenders: in the order of tables and legends.
        cases: of a run for the record.
        quick_cases: of a run that only shows that everything runs.
        views: tables.
        targets: what must hold.
        oracle: float64 results of a case with inputs of a precision, for `check`; it runs in a process of its own.
        floor: contender whose rate, with the case's `flop`, gives the least time possible.
        axis: key of `Case.size` that figures run along; None for bars.
        rounds: samples of each contender; more where a small difference is to be seen.
    """

    module: str
    title: str
    note: str
    contenders: tuple[Contender, ...]
    cases: tuple[Case, ...]
    quick_cases: tuple[Case, ...]
    views: tuple[View, ...]
    targets: tuple[Target, ...] = ()
    oracle: Callable[[Case, str], dict[str, Any]] | None = None
    floor: str | None = None
    axis: str | None = None
    rounds: int = 7

    @property
    def name(self) -> str:
        """The module's stem, which also names the results' file."""
        return self.module.rpartition(".")[2]

    def contender(self, name: str) -> Contender:
        """The contender of that name."""
        return next(c for c in self.contenders if c.name == name)

    def label(self, name: str) -> str:
        """How readers know the contender of that name."""
        return self.contender(name).label
