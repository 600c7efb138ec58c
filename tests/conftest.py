"""Settings for all tests: a seed, one thread, and fixtures for tests of torch.compile."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # threads are slower on tiny tensors

settings.register_profile(
    "tests",
    deadline=None,
    max_examples=25,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    """Seed the global generator."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def fresh_compiler():
    """Clear compiled code before and after, so that compilations can be counted."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
