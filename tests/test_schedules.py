"""`TemperatureSchedule`, which anneals the temperature of a bottleneck."""

import math
import pickle

import numpy as np
import pytest
import torch

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper, TemperatureSchedule


def bottleneck(**options):
    return StochasticBottleneck("bern", 4, in_features=3, **options)


EXPECTED = {
    "exponential": lambda x: 2.0 * (0.5 / 2.0) ** x,
    "linear": lambda x: 2.0 - 1.5 * x,
    "cosine": lambda x: 0.5 + 1.5 * (1 + math.cos(math.pi * x)) / 2,
}


@pytest.mark.parametrize("shape", EXPECTED)
def test_follows_its_formula_and_stops(shape):
    b = bottleneck(temperature=0.7)
    schedule = TemperatureSchedule(b, start=2.0, end=0.5, total_steps=8, shape=shape)
    assert b.temperature.item() == 2.0
    for step in range(1, 12):
        schedule.step()
        expected = EXPECTED[shape](min(step / 8, 1.0))
        assert schedule.temperature_at(step) == pytest.approx(expected)
        assert b.temperature.item() == pytest.approx(expected, rel=1e-6)
    assert schedule.temperature_at(-3) == 2.0


def test_starts_at_the_current_temperature_and_may_increase():
    b = bottleneck(temperature=0.25)
    schedule = TemperatureSchedule(b, end=1.0, total_steps=1)
    assert b.temperature.item() == 0.25
    schedule.step()
    assert b.temperature.item() == 1.0


def test_resumes_from_its_state():
    b = bottleneck()
    schedule = TemperatureSchedule(b, start=2.0, end=0.5, total_steps=8, shape="cosine")
    for _ in range(3):
        schedule.step()
    state = pickle.loads(pickle.dumps(schedule.state_dict()))
    assert set(state) == {"shape", "start", "end", "total_steps", "last_step"}
    other = bottleneck()
    resumed = TemperatureSchedule(other, end=0.1, total_steps=2)
    resumed.load_state_dict(state)
    assert other.temperature.item() == b.temperature.item()
    for _ in range(4):
        schedule.step()
        resumed.step()
        assert other.temperature.item() == b.temperature.item()
    assert resumed.bottleneck is other


def test_mistakes_change_nothing():  # what they say: tests/bad_calls.py
    b = bottleneck(temperature=0.7)
    with pytest.raises(ValueError, match="total_steps must be"):
        TemperatureSchedule(b, start=2.0, end=0.5, total_steps=0)
    assert b.temperature.item() == pytest.approx(0.7)
    schedule = TemperatureSchedule(b, end=0.5, total_steps=4)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=r'state_dict\["last_step"\] must be'):
        schedule.load_state_dict({**before, "end": 0.1, "last_step": 0.5})
    assert schedule.state_dict() == before


@pytest.mark.parametrize("shape", EXPECTED)
def test_temperatures_stay_between_start_and_end(shape):
    """Rounding errors do not lead below the lowest temperature allowed."""
    for start in np.linspace(0.1, 5, 50):
        schedule = TemperatureSchedule(bottleneck(), start=start, end=1e-6, total_steps=7, shape=shape)
        temperatures = [schedule.temperature_at(step) for step in range(9)]
        assert temperatures == sorted(temperatures, reverse=True)
        assert temperatures[-1] == pytest.approx(1e-6)
        assert 1e-6 <= min(temperatures) <= max(temperatures) == start


def test_numpy_numbers_are_saved_as_plain_numbers(tmp_path):
    schedule = TemperatureSchedule(
        bottleneck(), end=np.linspace(1, 0.25, 4)[-1], total_steps=np.int64(10), start=np.float32(1)
    )
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == {"end": 0.25, "total_steps": 10, "start": 1.0, "shape": "exponential", "last_step": 0}


def test_a_module_resumed_without_its_schedule_is_refused():
    """Lightning does not save a schedule that is an attribute of a LightningModule."""
    b = bottleneck()
    schedule = TemperatureSchedule(b, end=0.5, total_steps=4)
    schedule.step()
    schedule.step()
    other = bottleneck()
    resumed = TemperatureSchedule(other, end=0.5, total_steps=4)
    other.load_state_dict(b.state_dict())
    with pytest.raises(RuntimeError, match=r"must be start, 1, before the first step, got 0\.707107; load the sch"):
        resumed.step()
    resumed.load_state_dict(schedule.state_dict())
    for s in (schedule, resumed):
        s.step()
    assert other.temperature == b.temperature


def test_a_compiled_bottleneck_is_accepted(fresh_compiler):
    b = bottleneck()
    TemperatureSchedule(torch.compile(b), end=0.5, total_steps=1).step()
    assert b.temperature == 0.5


def test_anything_but_a_bernoulli_bottleneck_is_refused():
    model = StochConWrapper(torch.nn.Flatten(), dim=4, feature_dim=12)
    with pytest.raises(TypeError, match=r"must be a StochasticBottleneck, got StochConWrapper; of a .*\.bottleneck"):
        TemperatureSchedule(model, end=0.5, total_steps=4)
    TemperatureSchedule(model.bottleneck, end=0.5, total_steps=4).step()
    with pytest.raises(ValueError, match='bottleneck must be of kind "bern", got "gauss"'):
        TemperatureSchedule(StochasticBottleneck("gauss", 4), end=0.5, total_steps=4)
