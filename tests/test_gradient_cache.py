"""`cached_backward` against one backward pass over the whole batch, and side effects of its second pass."""

import copy
import math
import random
import weakref
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple
from unittest import mock

import fake_cuda
import pytest
import torch
from oracles import normal
from processes import launch
from tolerances import assert_close
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from toy_model import DIM, KINDS, WIDTH, batch_model, row_model

from stochastic_bottleneck import ClipLoss, InfoNCELoss, StochConOutput, functional
from stochastic_bottleneck.gradient_cache import cached_backward

F64 = torch.float64
N = 10
X, X_PRIME = (normal(N, 3, 5, 5, seed=seed) for seed in (0, 1))
NOISE = normal(N, DIM, seed=2)


class GivenNoise(nn.Module):
    """A wrapper that takes noise as an input, so that a row does not depend on its chunk."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, x_prime, noise):
        h, h_prime = self.model.encoder(x), self.model.encoder(x_prime)
        posterior = self.model.bottleneck.posterior(h_prime, h)
        z = posterior.rsample(noise=noise)
        v_prime = self.model.head(self.model.bottleneck.upsampler(z))
        return StochConOutput(self.model.head(h), v_prime, h, h_prime, z, posterior)


class Applied(nn.Module):
    """A module that applies a function with a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(75, 4, dtype=F64)

    def forward(self, *inputs):
        return self.function(self.linear, *(x.flatten(1) for x in inputs))


def objective(output):
    return InfoNCELoss()(output.v, output.v_prime) + 0.1 * output.posterior.kl().mean() + output.h.std()


def contrast(output):
    return InfoNCELoss()(*output[:2])


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def without_chunks(model, loss, *inputs):
    """Value and gradients of one backward pass; clears the gradients."""
    value = loss(model(*inputs))
    value.backward()
    found = gradients(model)
    model.zero_grad()
    return value.detach(), found


def assert_equal_gradients(model, expected):
    found = gradients(model)
    assert any(gradient is not None and gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert_close(found[name], gradient)


def concatenated(parts):
    """Concatenate the outputs of chunks."""
    v, v_prime, h, h_prime, z, posteriors = zip(*parts, strict=True)
    fields = zip(*posteriors, strict=True)
    posterior = type(posteriors[0])(*(x[0] if x[0].ndim == 0 else torch.cat(x, -2) for x in fields))
    return StochConOutput(*(torch.cat(x, -2) for x in (v, v_prime, h, h_prime, z)), posterior)


def by_hand(model, loss, chunks, inputs=(X, X_PRIME)):
    """Each chunk once, with all graphs in memory, and one backward pass."""
    parts = [model(*chunk) for chunk in zip(*(x.tensor_split(chunks) for x in inputs), strict=True)]
    value = loss(concatenated(parts))
    value.backward()
    return value.detach()


# ---- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4, 9, N, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_backward_pass_of_the_whole_batch(kind, chunk_size):
    model = GivenNoise(row_model(kind))
    expected, wanted = without_chunks(model, objective, X, X_PRIME, NOISE)
    value = cached_backward(model, objective, X, X_PRIME, NOISE, chunk_size=chunk_size)
    assert not value.requires_grad
    assert_close(value, expected)
    assert_equal_gradients(model, wanted)


@pytest.mark.parametrize("build", [row_model, batch_model])
@pytest.mark.parametrize(("kind", "symmetric"), [*((kind, False) for kind in KINDS), ("bern", True)])
def test_reproduces_noise_and_leaves_generators_and_buffers_as_one_pass_does(kind, symmetric, build):
    model = build(kind, symmetric=symmetric).double()
    if build is batch_model:
        model.encoder.backbone[1].momentum = None  # a cumulative average, which depends on the count of batches
    once = copy.deepcopy(model)
    torch.manual_seed(3)
    expected = by_hand(once, objective, 4)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert_close(cached_backward(model, objective, X, X_PRIME, chunk_size=3), expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert_equal_gradients(model, gradients(once))
    for (name, buffer), other in zip(model.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_activation_checkpointing_inside_the_model():
    model = batch_model().double()
    checkpointed = copy.deepcopy(model)
    checkpointed.checkpoint_encoder = True
    for m in (model, checkpointed):
        torch.manual_seed(3)
        cached_backward(m, objective, X, X_PRIME, chunk_size=3)
    assert_equal_gradients(checkpointed, gradients(model))
    for (name, buffer), other in zip(checkpointed.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, other), name


# ---- gradients and losses ----------------------------------------------------------------------------------


def test_adds_to_gradients_and_leaves_frozen_modules_alone():
    model = GivenNoise(row_model())
    model.model.encoder.requires_grad_(False)
    model.model.bottleneck.projector.requires_grad_(False)
    inputs = X, X_PRIME, NOISE
    cached_backward(model, contrast, *inputs, chunk_size=4)
    once = gradients(model)
    assert once["model.encoder.backbone.0.weight"] is None
    wanted = {name: None if gradient is None else -1 * gradient for name, gradient in once.items()}
    cached_backward(model, lambda output: -2 * contrast(output), *inputs, chunk_size=4)
    assert_equal_gradients(model, wanted)


def test_gradients_of_parameters_of_the_loss_and_of_inputs():
    model, scale = GivenNoise(row_model()), nn.Parameter(torch.tensor(2.0, dtype=F64))
    x = X.clone().requires_grad_()

    def scaled(output):
        return scale * contrast(output)

    _, wanted = without_chunks(model, scaled, x, X_PRIME, NOISE)
    grad_scale, grad_x = scale.grad, x.grad
    scale.grad = x.grad = None
    cached_backward(model, scaled, x, X_PRIME, NOISE, chunk_size=4)
    assert_equal_gradients(model, wanted)
    assert_close(scale.grad, grad_scale)
    assert_close(x.grad, grad_x)


class Named(NamedTuple):
    v: torch.Tensor
    rest: dict


SHAPES = {
    "a tensor": (lambda f, x: f(x), lambda v: v.square().mean().sqrt()),
    "two views": (lambda f, x: (f(x), f(-x)), contrast),
    "one number per row": (lambda f, x: f(x).sum(1), lambda a: a.exp().mean().log()),
    "a number": (lambda f, x: (f(x), f(x).square().mean()), lambda o: o[0].std() + o[1] ** 3),
    "a parameter": (lambda f, x: (f(x), f.bias[0]), lambda o: (o[0] * o[1]).std()),
    "nested": (
        lambda f, x: Named(f(x), {"k": [f(-x), None, "name", 3, 0.5], "rows": x.argmax(1)}),
        lambda o: InfoNCELoss()(o.v, o.rest["k"][0]) * o.rest["k"][4] + o.v[o.rest["rows"].argsort()[: N // 2]].std(),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_other_shapes(shape):
    function, loss = SHAPES[shape]
    model = Applied(function)
    expected, wanted = without_chunks(model, loss, X)
    assert_close(cached_backward(model, loss, X, chunk_size=4), expected)
    assert_equal_gradients(model, wanted)


def test_a_scalar_that_all_chunks_return_is_exact():
    for temperature in torch.linspace(0.1, 1, 20):
        model, seen = Applied(lambda f, x, temperature=temperature: (f(x), temperature)), []
        cached_backward(model, lambda o, seen=seen: seen.append(o[1]) or o[0].std(), X, chunk_size=3)
        assert torch.equal(seen[0].detach(), temperature)


# ---- chunks ------------------------------------------------------------------------------------------------


def peak_saved(model, step):
    """Largest number of entries that autograd holds at a time, without the parameters."""
    parameters = {p.data_ptr() for p in model.parameters()}
    held, peak = {}, 0

    class Saved:
        def __init__(self, tensor):
            nonlocal peak
            self.tensor = tensor
            if tensor.data_ptr() not in parameters:
                held[id(self)] = tensor.numel()
                weakref.finalize(self, held.pop, id(self))
            peak = max(peak, sum(held.values()))

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        step()
    return peak


def test_memory_is_that_of_one_chunk():
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    x = torch.randn(64, 64)

    def loss(v):
        return v.square().mean()

    whole = peak_saved(model, lambda: loss(model(x)).backward())
    chunk = peak_saved(model, lambda: loss(model(x[:8])).backward())
    cached = peak_saved(model, lambda: cached_backward(model, loss, x, chunk_size=8))
    assert whole > 7 * chunk
    assert chunk <= cached < 1.1 * chunk


# ---- precision, frameworks, compilers ----------------------------------------------------------------------


def test_autocast_applies_to_the_forward_passes_only():
    model = row_model("bern").float()
    x, x_prime = X.float(), X_PRIME.float()
    modes = []
    model.head[2].weight.register_hook(lambda _: modes.append(torch.is_autocast_enabled("cpu")))
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [model(*chunk) for chunk in zip(x.tensor_split(3), x_prime.tensor_split(3), strict=True)]
        expected = objective(concatenated(parts))
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cached_backward(model, objective, x, x_prime, chunk_size=4)
        assert torch.is_autocast_enabled("cpu")
        assert model.head(torch.randn(2, WIDTH)).dtype == torch.bfloat16
    assert torch.equal(value, expected)
    assert modes == 4 * [False]
    for name, p in model.named_parameters():
        # cached_backward rounds each chunk's sum to bfloat16, a single pass their total.
        torch.testing.assert_close(p.grad, wanted[name], rtol=0.02, atol=0.02 * wanted[name].abs().max().item())


@pytest.mark.parametrize("chunk_size", [4, 8])
def test_several_steps_inside_one_autocast_use_their_own_weights(chunk_size):
    model, values = nn.Linear(3, 1, bias=False), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for weight in (1.0, 2.0):
            nn.init.constant_(model.weight, weight)
            values.append(cached_backward(model, lambda y: y.square().mean(), torch.ones(8, 3), chunk_size=chunk_size))
    assert values == [9, 36]


def test_values_that_are_not_finite_raise_no_error():
    """GradScaler skips such a step."""
    model = Applied(lambda f, x: f(x))
    value = cached_backward(model, lambda v: (v * math.inf).mean(), X, chunk_size=4)
    assert not value.isfinite()
    assert not model.linear.weight.grad.isfinite().any()
    cached_backward(model, lambda v: v.mean(), X * math.inf, chunk_size=4)


@pytest.mark.parametrize("chunk_size", [4, N])
def test_a_framework_runs_the_backward_pass_of_each_chunk(chunk_size):
    model, given = GivenNoise(row_model()), []
    inputs = X, X_PRIME, NOISE
    cached_backward(model, contrast, *inputs, chunk_size=chunk_size)
    wanted = gradients(model)
    model.zero_grad()

    def backward(share):
        given.append(share.shape)
        share.backward()

    cached_backward(model, contrast, *inputs, chunk_size=chunk_size, backward=backward)
    assert given == math.ceil(N / chunk_size) * [()]
    assert_equal_gradients(model, wanted)
    for factor, end in ((1, None), (8, lambda share: (8 * share).backward())):  # also of a parameter of the loss
        scale = torch.ones((), dtype=X.dtype, requires_grad=True)
        model.zero_grad()
        value = cached_backward(model, lambda v, s=scale: s * contrast(v), *inputs, chunk_size=chunk_size, backward=end)
        torch.testing.assert_close(scale.grad, factor * value)
        assert_equal_gradients(model, {name: factor * gradient for name, gradient in wanted.items()})


def test_gradients_of_float16_outputs_are_scaled_without_a_loss():
    model, x = Applied(lambda f, x: f(x)).float(), X.float()
    cached_backward(model, lambda v: 1e-6 * v.square().sum(), x, chunk_size=4)
    wanted = gradients(model)
    model.zero_grad()

    def end(share):  # as with GradScaler
        (2.0**16 * share).backward()

    with torch.autocast("cpu", torch.float16):
        cached_backward(model, lambda v: 1e-6 * v.square().sum(), x, chunk_size=4, backward=end)
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad / 2**16, gradient, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("aot_eager", "bern"), *(pytest.param("inductor", k, marks=pytest.mark.slow) for k in ("bern", "gauss"))],
)
def test_compiled_models(backend, kind, fresh_compiler):
    model = batch_model(kind).double()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    once = copy.deepcopy(model)
    torch.manual_seed(3)
    value = cached_backward(compiled, objective, X, X_PRIME, chunk_size=5)
    after = torch.get_rng_state()
    wanted = gradients(model)
    statistics = [buffer.clone() for buffer in model.buffers()]
    model.load_state_dict(once.state_dict())
    model.zero_grad()
    torch.manual_seed(3)
    assert_close(value, by_hand(compiled, objective, 2))
    assert torch.equal(torch.get_rng_state(), after)
    assert_equal_gradients(model, wanted)
    for buffer, other in zip(model.buffers(), statistics, strict=True):
        assert_close(buffer.double(), other)


# ---- devices -----------------------------------------------------------------------------------------------


class SynchronizedError(Exception):
    """A value was read from the device."""


@fake_cuda.needs_fake_device
@pytest.mark.parametrize("check_replay", [False, True])
def test_device_generators_are_restored_and_only_the_replay_check_synchronizes(check_replay):
    calls = []

    def get_state(device):
        calls.append(("get", device, None))
        return len(calls)

    def set_state(state, device):
        calls.append(("set", device, state))

    with fake_cuda.device(), mock.patch.multiple(torch.cuda, get_rng_state=get_state, set_rng_state=set_state):
        model, images = batch_model(), torch.randn(2, 9, 3, 5, 5)
        item = mock.patch.object(torch.Tensor, "item", side_effect=SynchronizedError)
        raises = pytest.raises(SynchronizedError) if check_replay else nullcontext()
        with fake_cuda.SyncDetector(), item, raises:
            cached_backward(model, contrast, *images, chunk_size=3, check_replay=check_replay)
    device = fake_cuda.DEVICE
    # Three chunks and the state after them; three replays, then the state after the first pass.
    states = [("set", device, state) for state in (1, 2, 3, 4)]
    assert calls == [*[("get", device, None)] * 4, *states]


# ---- models with state ----------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Its output depends on two buffers: one is changed in place, one replaced."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(75, 4, dtype=F64)
        self.register_buffer("mean", torch.zeros(4, dtype=F64))
        self.register_buffer("steps", torch.zeros((), dtype=F64))

    def forward(self, x):
        v = self.linear(x.flatten(1))
        out = v - self.mean + self.steps
        with torch.no_grad():
            self.mean.lerp_(v.mean(0), 0.5)
            self.steps = self.steps + 1
        return out


def test_buffers_are_replayed_and_end_as_after_one_pass():
    model = Stateful()
    once = copy.deepcopy(model)
    loss = torch.cat([once(x) for x in X.tensor_split(4)]).exp().mean()
    loss.backward()
    assert_close(cached_backward(model, lambda v: v.exp().mean(), X, chunk_size=3), loss)
    assert_equal_gradients(model, gradients(once))
    assert model.steps == 4
    assert torch.equal(model.mean, once.mean)


class OwnNoise(nn.Module):
    """Noise that cannot be reproduced: from a generator of its own, or from `random`."""

    def __init__(self, source):
        super().__init__()
        self.model, self.source = row_model(), source
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x, x_prime):
        if self.source == "generator":
            return self.model(x, x_prime, generator=self.generator)
        return tuple(v * random.random() for v in self.model(x, x_prime)[:2])


@pytest.mark.parametrize("source", ["generator", "random"])
def test_noise_that_is_not_reproduced_is_detected(source):
    with pytest.raises(ValueError, match=r"same outputs in both passes.*got a difference of \d"):
        cached_backward(OwnNoise(source), contrast, X, X_PRIME, chunk_size=4)
    cached_backward(OwnNoise(source), contrast, X, X_PRIME, chunk_size=4, check_replay=False)
    cached_backward(OwnNoise(source), contrast, X, X_PRIME, chunk_size=N)


# ---- errors ----------------------------------------------------------------------------------------------

LINEAR = nn.Linear(75, 4, dtype=F64)
VALID = {"model": nn.Sequential(nn.Flatten(), LINEAR), "loss": torch.mean, "inputs": (X,), "chunk_size": 4}
NO_PATH = "loss must depend on the model's output, and that on a parameter that requires a gradient"
ONE_ROW = r"one row per image, \(N,\) or \(..., N, D\), got \(4, 1, 3, 1\) of torch.float64 for 4 images"
REFUSALS = [  # values of a wrong type or out of range: tests/bad_calls.py
    ({"model": nn.LazyLinear(3)}, "model has parameters of unknown shape; run it"),
    ({"inputs": (X, X[1:])}, r"the same number in all, got \[\(10, .*\(9, 3"),
    ({"inputs": (LINEAR.weight * 2,)}, "inputs must not be the result of a differentiable computation"),
    ({"loss": functional.info_nce}, r"loss must take one argument, .*info_nce.*lambda output: loss\(\*output\[:2\]"),
    ({"loss": lambda v: v.mean(1)}, r"shape \(\), got \(10,\); reduce it with .mean"),
    ({"loss": lambda v: v.detach().mean()}, "loss must depend on the model's output"),
    ({"loss": lambda _: LINEAR.weight.mean()}, NO_PATH),
    ({"model": nn.Flatten()}, NO_PATH),
    ({"model": Applied(lambda f, x: f(x).detach().numpy())}, "model must return .*ndarray"),
    ({"model": Applied(lambda f, x: f(x)[:, None, :3, None])}, ONE_ROW),
    ({"model": Applied(lambda f, x: (f(x), torch.tensor(3)))}, r"got \(\) of torch.int64"),
    ({"model": Applied(lambda f, x: f(x)[:, : len(x)])}, "same structure, dtypes and widths for each chunk"),
    (
        {"model": Applied(lambda f, x: (f(x),) * (2 - torch.is_grad_enabled())), "loss": lambda o: o[0].mean()},
        "for each chunk and in both passes",
    ),
]


@pytest.mark.parametrize(("changed", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(changed, message):
    def run(model, loss, inputs, chunk_size):
        cached_backward(model, loss, *inputs, chunk_size=chunk_size)

    run(**VALID)
    with pytest.raises((TypeError, ValueError), match=message):
        run(**VALID | changed)


@pytest.mark.parametrize(("n", "chunk_size"), [(3, 2), (4, 1)])
def test_a_chunk_of_one_image_is_explained_by_chunk_size(n, chunk_size):
    message = rf"chunk_size must leave no chunk of one image .*, got {chunk_size}, .* pass chunk_size=3 or more"
    inputs = X[:n], X_PRIME[:n]
    with pytest.raises(ValueError, match=message):
        cached_backward(batch_model().double(), contrast, *inputs, chunk_size=chunk_size)
    cached_backward(batch_model().double(), contrast, *inputs, chunk_size=3)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_needs_gradients(off):
    with off(), pytest.raises(RuntimeError, match="needs gradients, but they are disabled"):
        cached_backward(VALID["model"], torch.mean, X, chunk_size=4)


# ---- several processes -------------------------------------------------------------------------------------

WORLD = 2


def distributed_objective(criterion, output):
    return criterion(*output[:2]) + 0.1 * output.posterior.kl().mean()


class Learned(nn.Module):
    """With a loss that has a parameter."""

    def __init__(self, criterion):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.criterion = nn.Linear(75, 4, dtype=F64), criterion

    def forward(self, *inputs):
        return [self.linear(x.flatten(1)) for x in inputs]


def distributed_step(rank):
    inputs = [x.tensor_split(WORLD)[rank] for x in (X, X_PRIME, NOISE)]
    results = {}
    for chunk_size in (2, N):
        model = GivenNoise(row_model())
        parallel, reductions = DistributedDataParallel(model), []
        parallel.register_comm_hook(
            None, lambda state, bucket, seen=reductions: seen.append(1) or allreduce_hook(state, bucket)
        )
        loss = partial(distributed_objective, InfoNCELoss(gather_distributed=True))
        value = cached_backward(parallel, loss, *inputs, chunk_size=chunk_size)
        results[chunk_size] = {"loss": value, "gradients": gradients(model), "reductions": len(reductions)}
    learned = Learned(ClipLoss(learnable=True, gather_distributed=True).double())
    parallel = DistributedDataParallel(learned)
    for _ in range(2):  # a reduction that a step leaves open would spoil the next one
        learned.zero_grad()
        cached_backward(parallel, lambda v: learned.criterion(*v), *inputs[:2], chunk_size=2)
    results["learned"] = gradients(learned)
    static = DistributedDataParallel(VALID["model"], static_graph=True)
    message = r"without static_graph=True, .* got 2 chunks; .*chunk_size=5 or more"
    with pytest.raises(ValueError, match=message):
        cached_backward(static, torch.mean, inputs[0], chunk_size=3)
    expected = static(inputs[0]).mean().item()
    results["static"] = cached_backward(static, torch.mean, inputs[0], chunk_size=N), expected
    return results


@pytest.mark.distributed
def test_two_processes_equal_one_on_the_whole_batch_and_reduce_once(tmp_path):
    ranks = launch(distributed_step, tmp_path)
    loss = partial(distributed_objective, InfoNCELoss())
    value, expected = without_chunks(GivenNoise(row_model()), loss, X, X_PRIME, NOISE)
    for chunk_size in (2, N):
        assert_close(sum(rank[chunk_size]["loss"] for rank in ranks) / WORLD, value)
        for rank in ranks:
            assert rank[chunk_size]["reductions"] == 1
            assert rank[chunk_size]["gradients"].keys() == expected.keys()
            for name, gradient in expected.items():
                assert_close(rank[chunk_size]["gradients"][name], gradient)
    learned = Learned(ClipLoss(learnable=True).double())
    learned.criterion(*learned(X, X_PRIME)).backward()
    for rank in ranks:
        for name, gradient in gradients(learned).items():
            assert_close(rank["learned"][name], gradient)
        found, static = rank["static"]
        assert found.item() == static
        assert rank["warnings"] == []
