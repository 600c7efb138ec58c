"""A Lightning callback that anneals the Concrete temperature."""

from __future__ import annotations

from typing import Any

from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.callbacks._base import Callback, find_bottlenecks
from stochastic_bottleneck.schedules import Shape, TemperatureSchedule, _checked_settings

__all__ = ["TemperatureAnnealing"]


class TemperatureAnnealing(Callback):
    """Lightning callback that anneals a bottleneck's temperature from `start` to `end`, also in a resumed run.

    After each training batch the temperature is that of `TemperatureSchedule` at the Trainer's `global_step`, the
    number of optimizer steps: with `accumulate_grad_batches` one per several batches, with several optimizers one
    per step of each. Lightning saves that number, so a run resumed from any checkpoint has the temperatures of an
    uninterrupted one.

    Args:
        end: final temperature.
        total_steps: optimizer steps to reach it.
        start: first temperature; None for the bottleneck's when training starts.
        shape: "exponential" (a straight line in the logarithm), "cosine" or "linear".
        bottleneck: name of the bottleneck inside the LightningModule, such as "model.bottleneck"; None if there is
            only one of kind "bern".

    Raises:
        ModuleNotFoundError: when imported without Lightning (extra "lightning").
        TypeError: for an argument of another type.
        ValueError: for temperatures or steps that are not positive; when training starts, if the bottleneck is not
            found, or is not the only one.
    """

    def __init__(
        self,
        end: float,
        total_steps: int,
        *,
        start: float | None = None,
        shape: Shape = "exponential",
        bottleneck: str | None = None,
    ) -> None:
        first = end if start is None else start
        self.end, self.total_steps, first, self.shape = _checked_settings(end, total_steps, first, shape)
        self.start = None if start is None else first
        if bottleneck is not None and not isinstance(bottleneck, str):
            raise TypeError(f'bottleneck must be a name, such as "model.bottleneck", or None, got {bottleneck!r}')
        self.bottleneck = bottleneck
        self._found_start: float | None = None
        self._schedule: TemperatureSchedule | None = None

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint, different for each bottleneck."""
        return f"{type(self).__qualname__}[{self.bottleneck}]"

    def state_dict(self) -> dict[str, Any]:
        """The temperature at which training started."""
        return {"start": self._found_start if self.start is None else self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()`; a `start` passed to the constructor takes precedence.

        Raises:
            TypeError: for anything but the state of a `TemperatureAnnealing`.
            ValueError: for a temperature out of range.
        """
        if not isinstance(state_dict, dict) or "start" not in state_dict:
            raise TypeError(f"state_dict must be what TemperatureAnnealing.state_dict() gave, got {state_dict!r}")
        start = state_dict["start"]
        if start is not None:
            self._found_start = _checks.real('state_dict["start"]', start, least=_checks.MIN_CONCRETE)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Clear the start of another run; a checkpoint's state is loaded after this."""
        if stage == "fit" and trainer.global_step == 0:
            self._found_start = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the bottleneck and set its temperature, after a checkpoint has been restored.

        Raises:
            ValueError: for a run resumed from a checkpoint that does not hold the temperature at the start.
        """
        start = self._found_start if self.start is None else self.start
        if start is None and trainer.global_step > 0:
            raise ValueError(
                f"start must be given: the run resumes at step {trainer.global_step}, got a checkpoint without the "
                f"state of {self.state_key}; pass the temperature at which training started"
            )
        self._schedule = TemperatureSchedule(
            self._find(pl_module), self.end, self.total_steps, start=start, shape=self.shape
        )
        self._found_start = self._schedule.start
        self._anneal(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Anneal."""
        self._anneal(trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove the reference to the module."""
        self._schedule = None

    def _anneal(self, step: int) -> None:
        if self._schedule is not None:
            self._schedule.bottleneck.set_temperature(self._schedule.temperature_at(step))

    def _find(self, module: nn.Module) -> StochasticBottleneck:
        found = find_bottlenecks(module, "TemperatureAnnealing")
        bits = [name for name in found if found[name].kind == "bern"]
        names = bits or list(found) if self.bottleneck is None else [self.bottleneck]
        if len(names) != 1 or names[0] not in found:
            raise ValueError(
                f"bottleneck must name the one of {type(module).__name__} to anneal, "
                f"{' or '.join(map(repr, found))}, got {self.bottleneck!r}"
            )
        return found[names[0]]
