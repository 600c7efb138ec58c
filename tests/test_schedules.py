"""Annealing of the temperature."""

import math
import pickle

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


def test_starts_at_the_bottlenecks_own_temperature_and_may_rise():
    b = bottleneck(temperature=0.25)
    schedule = TemperatureSchedule(b, end=1.0, total_steps=1)
    assert b.temperature.item() == 0.25
    schedule.step()
    assert b.temperature.item() == 1.0


def test_the_temperature_reaches_the_samples():
    b = bottleneck().train()
    h = torch.randn(64, 3)

    def softness():
        z = b(h, generator=torch.Generator().manual_seed(0)).z
        return (z * (1 - z)).mean().item()

    soft = softness()
    TemperatureSchedule(b, start=0.01, end=0.01, total_steps=1)
    assert softness() < 0.1 * soft


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"shape": "step"}, 'shape must be "exponential", "cosine" or "linear", got \'step\''),
        ({"end": 0.0}, "end must be a finite temperature above 0, got 0.0"),
        ({"end": math.nan}, "end must be a finite temperature above 0, got nan"),
        ({"start": -1.0}, "start must be a finite temperature above 0, got -1.0"),
        ({"start": math.inf}, "start must be a finite temperature above 0, got inf"),
    ],
)
def test_mistakes_are_named(options, message):
    b = bottleneck(temperature=0.7)
    with pytest.raises(ValueError, match=message):
        TemperatureSchedule(b, **{"end": 0.5, "total_steps": 4, **options})
    assert b.temperature.item() == pytest.approx(0.7)


def test_anything_but_a_bottleneck_is_refused():
    model = StochConWrapper(torch.nn.Flatten(), dim=4, feature_dim=12)
    with pytest.raises(
        TypeError, match=r"must be a StochasticBottleneck, got StochConWrapper; of a .*\.bottleneck"
    ):
        TemperatureSchedule(model, end=0.5, total_steps=4)
    TemperatureSchedule(model.bottleneck, end=0.5, total_steps=4).step()


def test_a_gaussian_has_no_temperature():
    with pytest.raises(ValueError, match='bottleneck must be of kind "bern", got "gauss"'):
        TemperatureSchedule(StochasticBottleneck("gauss", 4), end=0.5, total_steps=4)


def test_a_state_of_something_else_is_refused():
    schedule = TemperatureSchedule(bottleneck(), end=0.5, total_steps=4)
    with pytest.raises(
        ValueError, match=r"state_dict lacks \['end', 'shape', 'start', 'total_steps'\]; pass what"
    ):
        schedule.load_state_dict({"last_step": 3})
