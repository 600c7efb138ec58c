"""Annealing of the Concrete temperature."""

from __future__ import annotations

import math
from typing import Any, Literal

from stochastic_bottleneck.bottleneck import StochasticBottleneck

__all__ = ["TemperatureSchedule"]


class TemperatureSchedule:
    """Moves a bottleneck's temperature from `start` to `end` over `total_steps`, then keeps it there.

    Used like a learning-rate schedule: call `step()` after each optimizer step. Progress is saved with
    `state_dict()` and the temperature itself with the module.

    Args:
        bottleneck: a bottleneck of kind "bern".
        end: final temperature.
        total_steps: steps to reach it.
        start: first temperature; None for the bottleneck's present one.
        shape: "exponential" (a straight line in the logarithm), "cosine" or "linear".

    Raises:
        ValueError: for a Gaussian bottleneck, temperatures that are not positive, or no steps.
        TypeError: for anything but a bottleneck.

    Example:
        >>> bottleneck = StochasticBottleneck("bern", dim=8, in_features=4)
        >>> schedule = TemperatureSchedule(bottleneck, start=1.0, end=0.25, total_steps=2)
        >>> schedule.step()
        >>> bottleneck.temperature.item()
        0.5

    Source:
        Jang et al. (arXiv 1611.01144), section 2.2, anneal; the poster of StochCon does not say.
    """

    def __init__(
        self,
        bottleneck: StochasticBottleneck,
        end: float,
        total_steps: int,
        *,
        start: float | None = None,
        shape: Literal["exponential", "cosine", "linear"] = "exponential",
    ) -> None:
        if not isinstance(bottleneck, StochasticBottleneck):
            raise TypeError(
                f"bottleneck must be a StochasticBottleneck, got {type(bottleneck).__name__}; "
                "of a StochConWrapper, pass .bottleneck"
            )
        if bottleneck.kind != "bern":
            raise ValueError('bottleneck must be of kind "bern", got "gauss", which has no temperature')
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if shape not in ("exponential", "cosine", "linear"):
            raise ValueError(f'shape must be "exponential", "cosine" or "linear", got {shape!r}')
        self.bottleneck, self.shape, self.total_steps = bottleneck, shape, total_steps
        self.start = float(bottleneck.temperature) if start is None else start
        self.end = end
        for name, value in (("start", self.start), ("end", end)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite temperature above 0, got {value!r}")
        self.last_step = 0
        bottleneck.set_temperature(self.start)

    def temperature_at(self, step: int) -> float:
        """Temperature after `step` steps."""
        share = min(max(step, 0) / self.total_steps, 1.0)
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** share)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share

    def step(self) -> None:
        """Advance by one step and set the bottleneck's temperature."""
        self.last_step += 1
        self.bottleneck.set_temperature(self.temperature_at(self.last_step))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the bottleneck."""
        return {k: v for k, v in vars(self).items() if k != "bottleneck"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()` and set the bottleneck's temperature to match.

        Raises:
            ValueError: for a state that is not a schedule's.
        """
        if missing := {"shape", "total_steps", "start", "end", "last_step"} - state_dict.keys():
            raise ValueError(
                f"state_dict lacks {sorted(missing)}; pass what TemperatureSchedule.state_dict() gave"
            )
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "bottleneck"})
        self.bottleneck.set_temperature(self.temperature_at(self.last_step))
