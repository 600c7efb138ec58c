"""torch.compile on a CPU: no graph breaks, no recompilation when only batch size or temperature changes."""

import pytest
import torch
from tolerances import assert_close
from training_steps import FUNCTIONS, STEPS

from stochastic_bottleneck import TemperatureSchedule, functional

SIZES = (32, 48, 512)
QUICK = {"bern", "gauss, isotropic", "wrapped gauss", "loss in tiles"}
each_step = pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, make in STEPS.items()],
)


class Counter:
    """A backend that counts the graphs it compiles."""

    def __init__(self, backend="aot_eager"):
        self.backend, self.graphs = torch._dynamo.lookup_backend(backend), 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.backend(graph, inputs)


def graphs_for(step, sizes=SIZES):
    """Number of graphs after each batch size, with backward; a graph break is an error."""
    counter, seen = Counter(), []
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for n in sizes:
        loss = compiled(*step.inputs(n))
        loss.backward()
        assert loss.isfinite()
        seen.append(counter.graphs)
    return seen


# ---- graphs ------------------------------------------------------------------------------------------------


def test_the_table_holds_every_public_function():
    assert set(FUNCTIONS) == set(functional.__all__) - {"fast_precision"}  # which takes no tensors


@each_step
def test_a_second_batch_size_makes_one_graph_for_all_sizes(make, fresh_compiler):
    assert graphs_for(make()) == [1, *[2] * (len(SIZES) - 1)]


def test_large_batches_whose_loss_is_computed_in_tiles_need_one_more_graph(fresh_compiler):
    assert graphs_for(STEPS["loss"](), (32, 48, 127, 512, 513, 1024, 48)) == [1, 2, 2, 2, 3, 3, 3]


def test_switching_between_training_and_evaluation_compiles_each_once(fresh_compiler):
    step, counter = STEPS["bern"](), Counter("eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for training in (True, False, True, False):
        compiled.train(training)
        compiled(*step.inputs(32))
    assert counter.graphs == 2


def test_annealing_takes_effect_without_recompilation(fresh_compiler):
    step, counter = STEPS["bern"]().double(), Counter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    schedule = TemperatureSchedule(step.module, start=1.0, end=0.1, total_steps=3)
    inputs, losses, first = [x.detach().double() for x in step.inputs(32)], [], 0
    for _ in range(4):
        for function in (step, compiled):
            torch.manual_seed(0)
            losses.append(function(*inputs))
        assert_close(losses[-1], losses[-2])
        schedule.step()
        first = first or counter.graphs
    assert counter.graphs == first
    assert len({loss.item() for loss in losses[::2]}) == 4


# ---- with Inductor -----------------------------------------------------------------------------------------


WITH_INDUCTOR = ("bern", "gauss, isotropic", "wrapped bern", "wrapped gauss, symmetric", "loss", "loss in tiles")


@pytest.mark.slow  # a C++ compiler's time
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WITH_INDUCTOR)
def test_inductor_agrees_at_every_batch_size(name, fresh_compiler):
    step, counter, seen = STEPS[name]().double(), Counter("inductor"), []
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    with torch._inductor.config.patch(fallback_random=True):  # the same noise as eager code
        for n in (32, 48, 511, 512):
            results, inputs = [], [x.detach().double() for x in step.inputs(n)]
            for function in (step, compiled):
                leaves = [x.clone().requires_grad_() for x in inputs]
                torch.manual_seed(n)
                loss = function(*leaves)
                results.append((loss, *torch.autograd.grad(loss, leaves)))
            for fast, eager in zip(*reversed(results), strict=True):
                assert_close(fast, eager)
            seen.append(counter.graphs)
    assert seen[1] == seen[-1]
