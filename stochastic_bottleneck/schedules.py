"""Anneal the Concrete temperature of a bottleneck."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import unwrap

__all__ = ["TemperatureSchedule"]

Shape = Literal["exponential", "cosine", "linear"]
_STATE = ("end", "total_steps", "start", "shape", "last_step")


class TemperatureSchedule:
    """Move a bottleneck's temperature from `start` to `end` over `total_steps`, then hold it.

    Use it like a learning-rate schedule: call `step()` after each optimizer step. Save its `state_dict()` and load it
    when you resume a run; the temperature itself is saved with the module. Lightning does not save a schedule that is
    an attribute of a LightningModule; use `callbacks.TemperatureAnnealing` there.

    Args:
        bottleneck: a bottleneck of kind "bern".
        end: final temperature.
        total_steps: steps to reach it.
        start: first temperature; None for the bottleneck's current one.
        shape: "exponential" (a straight line in the logarithm), "cosine" or "linear".

    Raises:
        ValueError: for a Gaussian bottleneck, temperatures that are not positive, or no steps.
        TypeError: for anything but a bottleneck, or an argument of another type.

    Example:
        >>> bottleneck = StochasticBottleneck("bern", dim=8, in_features=4)
        >>> schedule = TemperatureSchedule(bottleneck, start=1.0, end=0.25, total_steps=2)
        >>> schedule.step()
        >>> bottleneck.temperature.item()
        0.5

    Source:
        Jang et al. (arXiv 1611.01144), section 2.2, anneal the temperature; StochCon does not mention it.
    """

    def __init__(
        self,
        bottleneck: StochasticBottleneck,
        end: float,
        total_steps: int,
        *,
        start: float | None = None,
        shape: Shape = "exponential",
    ) -> None:
        if isinstance(bottleneck, nn.Module):
            bottleneck = unwrap(bottleneck)  # type: ignore[assignment]  # checked below
        if not isinstance(bottleneck, StochasticBottleneck):
            raise TypeError(
                f"bottleneck must be a StochasticBottleneck, got {type(bottleneck).__name__}; "
                "of a StochConWrapper, pass .bottleneck"
            )
        if bottleneck.kind != "bern":
            raise ValueError('bottleneck must be of kind "bern", got "gauss", which has no temperature')
        first = float(bottleneck.temperature) if start is None else start
        self.end, self.total_steps, self.start, self.shape = _checked_settings(end, total_steps, first, shape)
        self.bottleneck = bottleneck
        self.last_step = 0
        self._device = bottleneck.temperature.device
        bottleneck.set_temperature(self.start)

    def temperature_at(self, step: int) -> float:
        """Temperature after `step` steps."""
        share = min(max(_checks.real("step", step), 0) / self.total_steps, 1.0)
        if self.shape == "exponential":
            value = float(self.start * (self.end / self.start) ** share)
        else:
            share = (1 - math.cos(math.pi * share)) / 2 if self.shape == "cosine" else share
            value = self.start + (self.end - self.start) * share
        low, high = sorted((self.start, self.end))
        return min(max(value, low), high)  # whatever rounding does

    def step(self) -> None:
        """Advance by one step and set the bottleneck's temperature.

        Raises:
            RuntimeError: at the first step, if the temperature is no longer `start`, for instance because a resumed run
                loaded the module but not the schedule. Not checked if the temperature was on a GPU when the schedule
                was created, since reading it would synchronize.
        """
        temperature = self.bottleneck.temperature
        # Reading device memory synchronizes: only done if the module was moved there later.
        can_check = temperature.device.type == "cpu" or temperature.device != self._device
        rounding = 4 * torch.finfo(temperature.dtype).eps
        if self.last_step == 0 and can_check and not math.isclose(temperature, self.start, rel_tol=rounding):
            raise RuntimeError(
                f"the bottleneck's temperature must be start, {self.start:g}, before the first step, got "
                f"{float(temperature):g}; load the schedule's state_dict() too (in Lightning, use "
                "callbacks.TemperatureAnnealing), or make the schedule after loading the module"
            )
        self.last_step += 1
        self.bottleneck.set_temperature(self.temperature_at(self.last_step))

    def state_dict(self) -> dict[str, Any]:
        """State without the bottleneck, as plain numbers and a string."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state and set the bottleneck's temperature accordingly.

        Raises:
            TypeError: for a state that is not a dict, or values of another type.
            ValueError: for missing keys or values out of range.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict must be a dict, got {state_dict!r}; pass what state_dict() returned")
        if missing := set(_STATE) - state_dict.keys():
            raise ValueError(f"state_dict lacks {sorted(missing)}; pass what TemperatureSchedule.state_dict() returned")
        end, total_steps, start, shape, last_step = (state_dict[name] for name in _STATE)
        settings = _checked_settings(end, total_steps, start, shape, 'state_dict["{}"]')
        self.last_step = _checks.integer('state_dict["last_step"]', last_step, least=0)
        self.end, self.total_steps, self.start, self.shape = settings
        self.bottleneck.set_temperature(self.temperature_at(self.last_step))


def _checked_settings(
    end: float, total_steps: int, start: float, shape: Shape, named: str = "{}"
) -> tuple[float, int, float, Shape]:
    """Check the settings of a schedule and convert them to plain numbers."""
    _checks.choice(named.format("shape"), shape, get_args(Shape))
    return (
        _checks.real(named.format("end"), end, least=_checks.MIN_CONCRETE),
        _checks.integer(named.format("total_steps"), total_steps),
        _checks.real(named.format("start"), start, least=_checks.MIN_CONCRETE),
        shape,
    )
