"""The CUDA path traced without a device: nothing waits for the host, nothing that a CUDA graph cannot hold."""

import pytest
import torch
from fake_cuda import (
    NotOnDeviceAloneError,
    captured,
    complaints,
    device,
    needs_fake_device,
    run_backward,
    watch,
)
from tolerances import DTYPES, assert_close
from torch import nn
from torch._library.custom_ops import OPDEFS
from training_steps import STEPS, WRAPPERS, Step, info_nce

from stochastic_bottleneck import StochasticBottleneck, TemperatureSchedule, functional
from stochastic_bottleneck.kernels import l2_normalize

pytestmark = needs_fake_device
each_precision = pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
STATISTICS = ("running_mean_", "running_var_", "num_batches_tracked_")


def autocast(low):
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=low)


def watched(make, low=False, n=32):
    """Operations of a step's forward and backward pass on the device that is not there."""
    with device():
        step = make()
        inputs = step.inputs(n)
        with watch() as seen:
            with autocast(low):
                loss = step(*inputs)
            loss.backward()
    assert all(x.grad is not None and x.grad.device.type == "cuda" for x in [*inputs, *step.parameters()])
    return seen.operations


# ---- the host waits for nothing ----------------------------------------------------------------------------


@each_precision
@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_device(name, low):
    assert watched(STEPS[name], low) > 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"block_size": 200}], ids=str)
@pytest.mark.parametrize("leading", [(), (2,)], ids=["one loss", "two losses"])
def test_the_loss_of_a_large_batch_waits_for_nothing(leading, options, dtype):
    def make():
        step = info_nce(*leading, **options)
        return Step(
            step.module, lambda module, *x: step.loss(module, *(y.to(dtype) for y in x)), *step.shapes
        )

    assert watched(make, n=600) > 10


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, capturable=True),
    ],
    ids=["SGD", "AdamW"],
)
def test_nor_does_the_optimizer_or_the_schedule(name, optimizer):
    with device():
        step = STEPS[name]()
        optimizer = optimizer(step.parameters())
        schedule = TemperatureSchedule(step.module.bottleneck, 0.1, 3, start=1.0) if "bern" in name else None
        with watch():
            for _ in range(2):
                with autocast(True):
                    loss = step(*step.inputs(32))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if schedule:
                    schedule.step()


class Reads(torch.autograd.Function):
    """The identity, whose backward pass reads a value."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(gradient.sum())


def decides(x):
    return x if x.sum() > 0 else -x


HOST = {
    "item": lambda x: x * x.mean().item(),
    "tolist": lambda x: x * x.sum(0).tolist()[0],
    "float": lambda x: x * float(x.detach().sum()),
    "if": decides,
    "mask": lambda x: x + x[x > 0].sum(),
    "nonzero": lambda x: x + x.nonzero().sum(),
    "unique": lambda x: x + x.unique().sum(),
    "a backward pass": Reads.apply,
    "to the host": lambda x: x + x.cpu().sum().to(x.device),
    "from the host": lambda x: x + torch.tensor([0.5], device="cpu").to(x.device),
    "a value as a tensor": lambda x: x + torch.tensor(0.5, device=x.device),
    "a generator": lambda x: (
        x + torch.randn(x.shape, generator=torch.Generator("cpu"), device="cpu").to(x.device)
    ),
}
each_mistake = pytest.mark.parametrize("mistake", HOST.values(), ids=HOST)


@each_mistake
def test_a_mistake_in_the_bottleneck_is_seen(mistake, monkeypatch):
    project = StochasticBottleneck._project
    monkeypatch.setattr(StochasticBottleneck, "_project", lambda self, h: mistake(project(self, h)))
    with pytest.raises(NotOnDeviceAloneError):
        watched(STEPS["bern"])


@each_mistake
def test_a_mistake_in_a_function_is_seen(mistake, monkeypatch):
    kl = functional.gaussian_kl
    monkeypatch.setattr(functional, "gaussian_kl", lambda mean, log_std: mistake(kl(mean, log_std)))
    with pytest.raises(NotOnDeviceAloneError):
        watched(STEPS["wrapped gauss"])


def test_reading_the_temperature_is_seen(monkeypatch):
    """A tensor made from a number, whose value fake tensors remember."""

    def rsample(logits, temperature, hard, noise):
        return torch.sigmoid((logits + noise) / temperature.item())

    monkeypatch.setattr(functional, "relaxed_bernoulli_rsample", rsample)
    with pytest.raises(NotOnDeviceAloneError, match="reads a value"):
        watched(STEPS["bern"])


@pytest.mark.parametrize("direction", ["l2_normalize_", "l2_normalize_backward_"])
def test_a_mistake_inside_the_operators_is_seen(direction, monkeypatch):
    """What an operator runs is hidden from a trace that does not open it."""
    function = getattr(l2_normalize, direction)

    def reads(*inputs):
        result = function(*inputs)
        (result[0] if isinstance(result, tuple) else result).sum().item()
        return result

    monkeypatch.setattr(l2_normalize, direction, reads)
    with pytest.raises(NotOnDeviceAloneError, match="reads a value"):
        watched(STEPS["loss"], n=1024)


# ---- the engine that stands in for autograd's --------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_the_engine_gives_autograds_gradients(name):
    step = STEPS[name]().double()
    inputs = [x.detach().double().requires_grad_() for x in step.inputs(9)]
    leaves = [*inputs, *step.parameters()]
    loss = step(*inputs)
    start = torch.ones_like(loss)
    expected = torch.autograd.grad(loss, leaves, start, retain_graph=True)
    given = run_backward((loss,), (start,), True, False, leaves)
    run_backward((loss,), (start,), False, False)
    for leaf, gradient, other in zip(leaves, given, expected, strict=True):
        assert_close(gradient, other)
        assert_close(leaf.grad, other)


# ---- graphs that a CUDA graph can hold ---------------------------------------------------------------------

QUICK = {"bern", "gauss, isotropic", "wrapped bern, both ways", "loss", "bits", "Gaussian"}
GRAPHS = [
    pytest.param(name, low, id=f"{name}-{precision}", marks=() if low and name in QUICK else pytest.mark.slow)
    for name in STEPS
    for low, precision in ((False, "float32"), (True, "autocast"))
]


@pytest.mark.parametrize(("name", "low"), GRAPHS)
def test_graphs_stay_on_the_device(name, low, fresh_compiler):
    with device(), autocast(low):
        step = STEPS[name]()
        forward, backward = captured(step, step.inputs(32))
    assert not complaints(forward.graph) + complaints(backward.graph)
    norms = [m for m in step.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    assert len(forward.mutated) == len(STATISTICS) * len(norms)
    assert all(name.endswith(STATISTICS) for name in forward.mutated)


def changes_a_weight(module, x):
    with torch.no_grad():
        module.weight.mul_(0.9)
    return module(x).sum()


def test_a_changed_weight_is_seen(fresh_compiler):
    with device():
        step = Step(nn.Linear(4, 4), changes_a_weight, (4,))
        forward, _ = captured(step, step.inputs(32))
    assert len(forward.mutated) == 1
    assert not forward.mutated[0].endswith(STATISTICS)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        (lambda x: x.cpu().to(x.device).sum(), "on the cpu"),
        (lambda x: (x + torch.tensor([1.0, 2.0, 3.0, 4.0], device="cpu").to(x.device)).sum(), "constant"),
        (lambda x: x.sum() + x.nonzero().sum(), "shape that depends on values"),
        (lambda x: x.sum() + x[x > 0].sum(), "shape that depends on values"),
        (lambda x: x.sum() * x.argmax().item(), "reads a value"),
    ],
    ids=["to the host", "from the host", "nonzero", "mask", "item"],
)
def test_a_mistake_in_a_graph_is_seen(mistake, complaint, fresh_compiler):
    options = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    with device(), torch._dynamo.config.patch(options):
        step = Step(None, mistake, (4,))
        graphs = captured(step, step.inputs(32))
    found = [text for graph, _ in graphs for text in complaints(graph)]
    assert any(complaint in text for text in found)


# ---- the loss's operators ----------------------------------------------------------------------------------


@each_precision
def test_the_loss_of_a_large_batch_is_one_operator(low, fresh_compiler):
    with device(), autocast(low):
        step = info_nce()
        forward, backward = captured(step, step.inputs(1024))
    for graph, name in ((forward.graph, "nt_xent"), (backward.graph, "nt_xent_backward")):
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert targets.count(f"stochastic_bottleneck.{name}.default") == 1
        assert not [target for target in targets if "mm" in target]


def test_an_operator_that_is_not_what_it_seems_in_traces_is_seen(monkeypatch):
    """Inductor computes addresses from the strides that a trace gives."""
    operator = OPDEFS["stochastic_bottleneck::nt_xent_backward"]
    stand_in = operator._abstract_fn

    def strided(*arguments):
        x = stand_in(*arguments)
        return x.new_empty_strided(x.shape, x.stride()[::-1])

    monkeypatch.setattr(operator, "_abstract_fn", strided)
    with pytest.raises(AssertionError, match="in traces"):
        watched(STEPS["loss"], n=600)
