"""What every test starts from: one seed, one thread, no compiled code of an earlier test."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # tiny tensors; threads only get in each other's way

settings.register_profile(
    "tests",
    deadline=None,
    max_examples=40,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    """The global seed; tests that draw noise themselves use a generator of their own."""
    torch.manual_seed(0)
    return 0


class Graphs(list):
    """The graphs that torch.compile has made, with `backend=graphs.backend`; they run uncompiled."""

    def backend(self, graph, _):
        self.append(graph)
        return graph.forward


@pytest.fixture
def graphs(fresh_compiler):
    """An empty list of graphs, and no compiled code that could serve instead of one."""
    return Graphs()


@pytest.fixture
def fresh_compiler():
    """No compiled code before or after, so that counts of compilations mean something."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
