"""The CUDA path traced without a device: no synchronization with the host, and graphs that a CUDA graph can capture."""

import pytest
import torch
from fake_cuda import HostAccessError, SyncDetector, capture_graphs, device, needs_fake_device, run_backward, violations
from tolerances import DTYPES, assert_close
from torch import nn
from torch._library.custom_ops import OPDEFS
from training_steps import STEPS, WRAPPERS, Step, info_nce

from stochastic_bottleneck import TemperatureSchedule, functional
from stochastic_bottleneck._whitening import BatchWhitening
from stochastic_bottleneck.kernels import l2_normalize

pytestmark = needs_fake_device
each_precision = pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
STATISTICS = ("running_mean_", "running_var_", "num_batches_tracked_", "running_cov_", "running_map_")


def autocast(low=True):
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=low)


def trace(make, low=False, n=32):
    """Number of operations of a step, forward and backward; raises if one involves the host."""
    with device():
        step = make()
        inputs = step.inputs(n)
        with SyncDetector() as detector:
            with autocast(low):
                loss = step(*inputs)
            loss.backward()
    assert all(x.grad is not None and x.grad.device.type == "cuda" for x in [*inputs, *step.parameters()])
    return detector.n_operations


# ---- no synchronization ------------------------------------------------------------------------------------


@each_precision
@pytest.mark.parametrize("name", STEPS)
def test_no_step_synchronizes(name, low):
    assert trace(STEPS[name], low) > 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"block_size": 200}], ids=str)
def test_the_loss_of_a_large_batch_does_not_synchronize(options, dtype):
    for leading in ((), (2,)):
        step = info_nce(*leading, **options)

        def loss(module, *x, step=step):
            return step.loss(module, *(y.to(dtype) for y in x))

        assert trace(lambda step=step, loss=loss: Step(step.module, loss, *step.shapes), n=600) > 10


@pytest.mark.parametrize("name", WRAPPERS)
def test_optimizer_and_schedule_do_not_synchronize(name):
    with device():
        step = STEPS[name]()
        optimizer = torch.optim.AdamW(step.parameters(), capturable=True)
        schedule = TemperatureSchedule(step.module.bottleneck, 0.1, 3, start=1.0) if "bern" in name else None
        with SyncDetector():
            for _ in range(2):
                with autocast():
                    loss = step(*step.inputs(32))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if schedule:
                    schedule.step()


class ReadsInBackward(torch.autograd.Function):
    """The identity, whose backward pass reads a value."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float(gradient.sum())


HOST_ACCESS = {
    "item": (lambda x: x * x.mean().item(), "reads a value"),
    "mask": (lambda x: x + x[x > 0].sum(), "shape that depends on values"),
    "nonzero": (lambda x: x + x.nonzero().sum(), "shape that depends on values"),
    "in backward": (ReadsInBackward.apply, "reads a value"),
    "to the host": (lambda x: x + x.cpu().sum().to(x.device), "on the cpu"),
    "a number as a tensor": (lambda x: x + torch.tensor(0.5, device=x.device), "on the cpu"),
    "a generator": (lambda x: x + torch.randn(3, generator=torch.Generator()).sum().to(x.device), "generator of its"),
}


@pytest.mark.parametrize(("mistake", "message"), HOST_ACCESS.values(), ids=HOST_ACCESS)
def test_host_access_is_detected(mistake, message, monkeypatch):
    kl = functional.gaussian_kl
    monkeypatch.setattr(functional, "gaussian_kl", lambda mean, log_std: mistake(kl(mean, log_std)))
    with pytest.raises(HostAccessError, match=message):
        trace(STEPS["wrapped gauss"])


@pytest.mark.parametrize("name", ["l2_normalize_", "l2_normalize_backward_"])
def test_host_access_inside_the_operators_is_detected(name, monkeypatch):
    """A trace does not show the operations inside an operator."""
    function = getattr(l2_normalize, name)

    def reads(*inputs):
        result = function(*inputs)
        (result[0] if isinstance(result, tuple) else result).sum().item()
        return result

    monkeypatch.setattr(l2_normalize, name, reads)
    with pytest.raises(HostAccessError, match="reads a value"):
        trace(STEPS["loss"], n=1024)


@pytest.mark.parametrize("name", STEPS)
def test_the_python_engine_gives_the_gradients_of_autograd(name):
    step = STEPS[name]().double()
    inputs = [x.detach().double().requires_grad_() for x in step.inputs(9)]
    leaves = [*inputs, *step.parameters()]
    loss = step(*inputs)
    start = torch.ones_like(loss)
    expected = torch.autograd.grad(loss, leaves, start, retain_graph=True)
    found = run_backward((loss,), (start,), True, False, leaves)
    run_backward((loss,), (start,), False, False)
    for leaf, gradient, other in zip(leaves, found, expected, strict=True):
        assert_close(gradient, other)
        assert_close(leaf.grad, other)


# ---- compiled graphs ---------------------------------------------------------------------------------------

QUICK = {"bern", "gauss, isotropic", "wrapped bern", "loss"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STEPS]
)
def test_graphs_stay_on_the_device(name, fresh_compiler):
    with device(), autocast():
        step = STEPS[name]()
        forward, backward = capture_graphs(step, step.inputs(32))
    assert not violations(forward.graph) + violations(backward.graph)
    norms = [m for m in step.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | BatchWhitening)]
    assert len(forward.mutated) == sum(len([*norm.buffers()]) for norm in norms if norm.training)
    assert all(name.endswith(STATISTICS) for name in forward.mutated)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda x: x.cpu().to(x.device).sum(), "on the cpu"),
        (lambda x: (x + torch.tensor([1.0, 2.0, 3.0, 4.0], device="cpu").to(x.device)).sum(), "constant"),
        (lambda x: x.sum() + x[x > 0].sum(), "shape that depends on values"),
        (lambda x: x.sum() * x.argmax().item(), "reads a value"),
    ],
    ids=["to the host", "from the host", "mask", "item"],
)
def test_host_access_in_a_graph_is_detected(mistake, message, fresh_compiler):
    options = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    with device(), torch._dynamo.config.patch(options):
        step = Step(None, mistake, (4,))
        graphs = capture_graphs(step, step.inputs(32))
    assert any(message in text for graph, _ in graphs for text in violations(graph))


@each_precision
def test_the_loss_of_a_large_batch_is_one_operator(low, fresh_compiler):
    with device(), autocast(low):
        step = info_nce()
        forward, backward = capture_graphs(step, step.inputs(1024))
    for graph, name in ((forward.graph, "nt_xent"), (backward.graph, "nt_xent_backward")):
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert targets.count(f"stochastic_bottleneck.{name}.default") == 1
        assert not [target for target in targets if "mm" in target]


def test_an_operator_whose_fake_differs_is_detected(monkeypatch):
    """Inductor computes addresses from the strides of the fake tensor."""
    operator = OPDEFS["stochastic_bottleneck::nt_xent_backward"]
    fake = operator._abstract_fn

    def strided(*arguments):
        x = fake(*arguments)
        return x.new_empty_strided(x.shape, x.stride()[::-1])

    monkeypatch.setattr(operator, "_abstract_fn", strided)
    with pytest.raises(AssertionError, match="in traces"):
        trace(STEPS["loss"], n=600)
