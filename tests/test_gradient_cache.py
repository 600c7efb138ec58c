"""`cached_backward` against one backward pass over the whole batch, and side effects of its second pass."""

import copy
import math
import random
import weakref
from typing import NamedTuple
from unittest import mock

import fake_cuda
import pytest
import torch
from processes import launch
from random_tensors import normal
from tolerances import assert_close
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConOutput, StochConWrapper
from stochastic_bottleneck.gradient_cache import cached_backward

F64 = torch.float64
N, WIDTH, DIM = 10, 6, 5
KINDS = {
    "bern": {"kind": "bern"},
    "bern hard": {"kind": "bern", "hard": True},
    "gauss": {"kind": "gauss"},
    "gauss isotropic": {"kind": "gauss", "variance": "isotropic"},
}
X, X_PRIME = (normal(N, 3, 5, 5, seed=seed) for seed in (0, 1))
NOISE = normal(N, DIM, seed=2)


def row_model(kind="bern", **options):
    """A model without statistics over the batch."""
    encoder = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.GroupNorm(2, WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    bottleneck = StochasticBottleneck(dim=DIM, in_features=WIDTH, location_std=None, **KINDS[kind])
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))
    return StochConWrapper(encoder, bottleneck=bottleneck, head=head, **options).double()


def batch_model(kind="bern", **options):
    return single_batch_model(kind, **options).double()


def single_batch_model(kind="bern", **options):
    """A float32 model with BatchNorm in encoder, bottleneck and head, and noise in two places."""
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(0.4))
    bottleneck = StochasticBottleneck(dim=DIM, in_features=WIDTH, **KINDS[kind])
    return StochConWrapper(encoder, bottleneck=bottleneck, feature_dim=WIDTH, projection_dim=4, **options)


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
    expected = objective(model(X, X_PRIME, NOISE))
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    value = cached_backward(model, objective, X, X_PRIME, NOISE, chunk_size=chunk_size)
    assert not value.requires_grad
    assert_close(value, expected)
    assert_equal_gradients(model, wanted)


@pytest.mark.parametrize("build", [row_model, batch_model])
@pytest.mark.parametrize(("kind", "symmetric"), [*((kind, False) for kind in KINDS), ("bern", True)])
def test_reproduces_noise_and_leaves_generators_and_buffers_as_one_pass_does(kind, symmetric, build):
    model = build(kind, symmetric=symmetric)
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


def test_different_noise_in_the_second_pass_would_be_detected():
    """The gradients of the test above depend on the noise."""
    model = row_model()
    torch.manual_seed(3)
    by_hand(model, objective, 4)
    wanted = gradients(model)
    model.zero_grad()
    cached_backward(model, objective, X, X_PRIME, chunk_size=3)
    assert not torch.allclose(model.head[2].weight.grad, wanted["head.2.weight"], rtol=0.01)


def test_consecutive_calls_and_chunks_have_different_noise():
    model, seen = row_model(), []
    for _ in range(2):
        cached_backward(
            model, lambda output: seen.append(output.z) or contrast(output), X, X_PRIME, chunk_size=4
        )
    assert not torch.isclose(*seen).any()
    assert len(seen[0].unique(dim=0)) == N


def test_batch_norms_count_each_chunk_once():
    model = batch_model()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # a cumulative average, which depends on the count
    once = copy.deepcopy(model)
    by_hand(once, contrast, 4)
    torch.manual_seed(0)
    cached_backward(model, contrast, X, X_PRIME, chunk_size=3)
    torch.manual_seed(0)
    assert model.encoder.backbone[1].num_batches_tracked == once.encoder.backbone[1].num_batches_tracked == 8
    assert_close(model.encoder.backbone[1].running_var, once.encoder.backbone[1].running_var)


def test_activation_checkpointing_inside_the_model():
    model = batch_model()
    checkpointed = copy.deepcopy(model)
    checkpointed.checkpoint_encoder = True
    for m in (model, checkpointed):
        torch.manual_seed(3)
        cached_backward(m, objective, X, X_PRIME, chunk_size=3)
    assert_equal_gradients(checkpointed, gradients(model))
    for (name, buffer), other in zip(checkpointed.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_evaluation_mode():
    model = batch_model().eval()
    objective(model(X, X_PRIME)).backward()
    wanted = gradients(model)
    model.zero_grad()
    cached_backward(model, objective, X, X_PRIME, chunk_size=3)
    assert_equal_gradients(model, wanted)


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

    scaled(model(x, X_PRIME, NOISE)).backward()
    wanted, grad_scale, grad_x = gradients(model), scale.grad, x.grad
    model.zero_grad()
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
        lambda o: (
            InfoNCELoss()(o.v, o.rest["k"][0]) * o.rest["k"][4]
            + o.v[o.rest["rows"].argsort()[: N // 2]].std()
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_other_shapes(shape):
    function, loss = SHAPES[shape]
    model = Applied(function)
    expected = loss(model(X))
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    assert_close(cached_backward(model, loss, X, chunk_size=4), expected)
    assert_equal_gradients(model, wanted)


def test_a_scalar_that_all_chunks_return_is_exact():
    for temperature in torch.linspace(0.1, 1, 20):
        model, seen = Applied(lambda f, x, temperature=temperature: (f(x), temperature)), []
        cached_backward(model, lambda o, seen=seen: seen.append(o[1]) or o[0].std(), X, chunk_size=3)
        assert torch.equal(seen[0].detach(), temperature)


# ---- chunks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "chunk_size", "passes", "sizes"),
    [
        (10, 4, 2, [4, 3, 3]),
        (9, 4, 2, [3, 3, 3]),  # not 4, 4, 1: BatchNorm cannot normalize a single row
        (8, 4, 2, [4, 4]),
        (3, 1, 2, [1, 1, 1]),
        (4, 100, 1, [4]),
        (1, 1, 1, [1]),
    ],
)
def test_chunks_differ_by_one_at_most_and_one_chunk_runs_once(n, chunk_size, passes, sizes):
    seen = []
    model = Applied(lambda f, x: seen.append(len(x)) or f(x))
    cached_backward(model, lambda v: v.square().mean(), X[:n], chunk_size=chunk_size)
    assert seen == passes * sizes


class Alive:
    """Count the entries of the tensors saved by autograd, and their maximum."""

    def __init__(self, parameters):
        self.parameters = {p.data_ptr() for p in parameters}
        self.current = self.peak = 0

    def pack(self, tensor):
        class Held:
            value = tensor

        held = Held()
        held.value = tensor
        if tensor.data_ptr() not in self.parameters:
            self.current += tensor.numel()
            self.peak = max(self.peak, self.current)
            weakref.finalize(held, self.release, tensor.numel())
        return held

    def release(self, entries):
        self.current -= entries


def peak_saved(model, step):
    alive = Alive(model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda held: held.value):
        step()
    return alive.peak


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
        torch.testing.assert_close(
            p.grad, wanted[name], rtol=0.02, atol=0.02 * wanted[name].abs().max().item()
        )


def test_a_scaled_loss_leaves_scaled_gradients():
    model = GivenNoise(row_model()).float()
    inputs = X.float(), X_PRIME.float(), NOISE.float()
    expected = cached_backward(model, contrast, *inputs, chunk_size=4)
    wanted = gradients(model)
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    value = cached_backward(model, lambda output: scaler.scale(contrast(output)), *inputs, chunk_size=4)
    assert_close(value / scaler.get_scale(), expected)
    scaler.unscale_(optimizer)
    assert_equal_gradients(model, wanted)


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


def compare_compiled(backend, **options):
    model = batch_model(**options)
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


def test_compiled_models(fresh_compiler):
    compare_compiled("aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "symmetric"), [("bern", False), ("gauss", True)])
def test_noise_of_inductor_is_reproduced(kind, symmetric, fresh_compiler):
    compare_compiled("inductor", kind=kind, symmetric=symmetric)


# ---- devices -----------------------------------------------------------------------------------------------


class SynchronizedError(Exception):
    """A value was read from the device."""


@fake_cuda.needs_fake_device
@pytest.mark.parametrize("check_replay", [False, True])
def test_device_generators_are_restored_and_only_the_replay_check_synchronizes(check_replay):
    calls = []

    def get(device):
        calls.append(("get", device, None))
        return len(calls)

    def put(state, device):
        calls.append(("set", device, state))

    with fake_cuda.device(), mock.patch.multiple(torch.cuda, get_rng_state=get, set_rng_state=put):
        model = single_batch_model()
        views = torch.randn(2, 9, 3, 5, 5)
        waits = mock.patch.object(torch.Tensor, "item", side_effect=SynchronizedError)
        with fake_cuda.watch(), waits as item:
            if check_replay:
                with pytest.raises(SynchronizedError):
                    cached_backward(model, contrast, *views, chunk_size=3)
            else:
                cached_backward(model, contrast, *views, chunk_size=3, check_replay=False)
        assert item.called == check_replay
    device = fake_cuda.DEVICE
    assert (
        calls
        == [  # three chunks and the state after them; three replays, then the state after the first pass
            *[("get", device, None)] * 4,
            *[("set", device, state) for state in (1, 2, 3, 4)],
        ]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_noise_of_a_device_is_reproduced():
    model = batch_model("bern").cuda()
    once, views = copy.deepcopy(model), (X.cuda(), X_PRIME.cuda())
    torch.manual_seed(3)
    expected = by_hand(once, objective, 4, views)
    after = torch.cuda.get_rng_state()
    torch.manual_seed(3)
    assert_close(cached_backward(model, objective, *views, chunk_size=3).cpu(), expected.cpu())
    assert torch.equal(torch.cuda.get_rng_state(), after)
    assert_equal_gradients(model.cpu(), {name: g.cpu() for name, g in gradients(once).items()})


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


@pytest.mark.parametrize("failing", [5, 7])  # of eight calls, four in each pass
def test_an_exception_in_the_second_pass_leaves_generators_and_buffers_as_after_the_first(failing):
    model = nn.Sequential(Stateful(), nn.Dropout(0.5))
    once, calls = copy.deepcopy(model), []

    def fail(*_):
        calls.append(None)
        if len(calls) == failing:
            raise KeyError

    model[1].register_forward_hook(fail)
    torch.manual_seed(3)
    for x in X.tensor_split(4):
        once(x)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with pytest.raises(KeyError):
        cached_backward(model, lambda v: v.exp().mean(), X, chunk_size=3)
    assert torch.equal(torch.get_rng_state(), after)
    assert model[0].steps == 4
    assert torch.equal(model[0].mean, once[0].mean)


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


def test_rounding_is_not_mistaken_for_noise():
    def function(f, x):
        return f(x) * (1 + 0.02 * torch.is_grad_enabled())

    cached_backward(Applied(function), lambda v: v.std(), X, chunk_size=4)


# ---- errors ----------------------------------------------------------------------------------------------

LINEAR = nn.Linear(75, 4, dtype=F64)
VALID = {"model": nn.Sequential(nn.Flatten(), LINEAR), "loss": torch.mean, "inputs": (X,), "chunk_size": 4}
NO_PATH = "loss must depend on the model's output, and that on a parameter that requires a gradient"
REFUSALS = {  # values of a wrong type or out of range: tests/bad_calls.py
    "a lazy model": (
        {"model": nn.LazyLinear(3)},
        ValueError,
        "model has parameters of unknown shape; run it",
    ),
    "other lengths": ({"inputs": (X, X[1:])}, ValueError, r"the same number in all, got \[\(10, .*\(9, 3"),
    "an input with a graph": (
        {"inputs": (LINEAR.weight * 2,)},
        ValueError,
        "inputs must not be the result of a different",
    ),
    "a loss of two views": (
        {"loss": InfoNCELoss()},
        TypeError,
        r"loss must take one argument, the model's output, got InfoNCELoss.*lambda output: loss\(\*output\[:2\]",
    ),
    "one loss per row": (
        {"loss": lambda v: v.mean(1)},
        ValueError,
        r"shape \(\), got \(10,\); reduce it with .mean",
    ),
    "a float": ({"loss": lambda v: v.mean().item()}, ValueError, r"a tensor of shape \(\), got float"),
    "a constant": (
        {"loss": lambda v: v.detach().mean()},
        ValueError,
        "loss must depend on the model's output",
    ),
    "a loss of something else": ({"loss": lambda _: LINEAR.weight.mean()}, ValueError, NO_PATH),
    "nothing to train": ({"model": nn.Flatten()}, ValueError, NO_PATH),
    "an array": (
        {"model": Applied(lambda f, x: f(x).detach().numpy())},
        TypeError,
        "model must return .*ndarray",
    ),
    "feature maps": (
        {"model": Applied(lambda f, x: f(x)[:, None, :3, None])},
        ValueError,
        r"one row per image, \(N,\) or \(..., N, D\), got \(4, 1, 3, 1\) of torch.float64 for 4 images",
    ),
    "fewer rows": (
        {"model": Applied(lambda f, x: f(x)[1:])},
        ValueError,
        r"got \(3, 4\) of torch.float64 for 4 im",
    ),
    "an integer": (
        {"model": Applied(lambda f, x: (f(x), torch.tensor(3)))},
        ValueError,
        r"got \(\) of torch.int64",
    ),
    "other widths": (
        {"model": Applied(lambda f, x: f(x)[:, : len(x)])},
        ValueError,
        "same structure, dtypes and widths for each chunk",
    ),
    "another structure in the second pass": (
        {
            "model": Applied(lambda f, x: (f(x),) * (2 - torch.is_grad_enabled())),
            "loss": lambda o: o[0].mean(),
        },
        ValueError,
        "for each chunk and in both passes",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    cached_backward(VALID["model"], VALID["loss"], *VALID["inputs"], chunk_size=4)  # valid without the change
    changed, error, message = REFUSALS[case]
    given = VALID | changed
    model, loss, inputs = (given.pop(name) for name in ("model", "loss", "inputs"))
    with pytest.raises(error, match=message):
        cached_backward(model, loss, *inputs, **given)


@pytest.mark.parametrize(("n", "chunk_size"), [(3, 2), (4, 1)])
@pytest.mark.parametrize(
    "model", [batch_model, lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(75)).double()]
)
def test_a_chunk_of_one_image_is_explained_by_chunk_size(model, n, chunk_size):
    inputs = (X[:n], X_PRIME[:n]) if model is batch_model else (X[:n],)
    message = (
        rf"chunk_size must leave no chunk of one image .*, got {chunk_size}, .* pass chunk_size=3 or more"
    )
    with pytest.raises(ValueError, match=message):
        cached_backward(model(), lambda output: output[0].sum(), *inputs, chunk_size=chunk_size)
    cached_backward(model(), lambda output: output[0].sum(), *inputs, chunk_size=3)


def test_another_error_in_a_chunk_of_one_image_is_raised_unchanged():
    def function(f, x):
        raise ValueError("three channels expected")

    with pytest.raises(ValueError, match="three channels expected"):
        cached_backward(Applied(function), torch.mean, X, chunk_size=1)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_needs_gradients(off):
    with off(), pytest.raises(RuntimeError, match="needs gradients, but they are disabled"):
        cached_backward(VALID["model"], torch.mean, X, chunk_size=4)


# ---- several processes -------------------------------------------------------------------------------------

WORLD = 2
DISTRIBUTED_KINDS = ("bern", "gauss isotropic")


class Reductions:
    """Count how often DistributedDataParallel has reduced gradients."""

    def __init__(self):
        self.count = 0

    def hook(self, state, bucket):
        self.count += 1
        return allreduce_hook(state, bucket)


def distributed_step(rank):
    rows = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    inputs = [x[rows] for x in (X, X_PRIME, NOISE)]
    results = {}
    for kind in DISTRIBUTED_KINDS:
        for chunk_size in (2, N):
            torch.manual_seed(0)
            model = GivenNoise(row_model(kind))
            parallel, reductions = DistributedDataParallel(model), Reductions()
            parallel.register_comm_hook(None, reductions.hook)
            criterion = InfoNCELoss(gather_distributed=True)
            value = cached_backward(
                parallel,
                lambda output, criterion=criterion: (
                    criterion(*output[:2]) + 0.1 * output.posterior.kl().mean()
                ),
                *inputs,
                chunk_size=chunk_size,
            )
            results[kind, chunk_size] = {
                "loss": value,
                "gradients": gradients(model),
                "reductions": reductions.count,
            }
    parallel = DistributedDataParallel(VALID["model"], static_graph=True)
    message = r"without static_graph=True, .* got 2 chunks; .*chunk_size=5 or more"
    with pytest.raises(ValueError, match=message):
        cached_backward(parallel, torch.mean, inputs[0], chunk_size=3)
    expected = parallel(inputs[0]).mean().item()
    results["static"] = cached_backward(parallel, torch.mean, inputs[0], chunk_size=N), expected
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch(distributed_step, tmp_path_factory.mktemp("cache"))


@pytest.mark.distributed
@pytest.mark.parametrize("chunk_size", [2, N])
@pytest.mark.parametrize("kind", DISTRIBUTED_KINDS)
def test_processes_equal_one_on_the_whole_batch_and_reduce_once(ranks, kind, chunk_size):
    model = GivenNoise(row_model(kind))
    output = model(X, X_PRIME, NOISE)
    expected = InfoNCELoss()(*output[:2]) + 0.1 * output.posterior.kl().mean()
    expected.backward()
    results = [rank[kind, chunk_size] for rank in ranks]
    assert_close(sum(result["loss"] for result in results) / WORLD, expected)
    for result in results:
        assert result["reductions"] == 1
        for name, gradient in gradients(model).items():
            assert_close(result["gradients"][name], gradient)


@pytest.mark.distributed
def test_a_static_graph_is_refused_unless_there_is_one_chunk(ranks):
    for rank in ranks:
        found, expected = rank["static"]
        assert found.item() == expected


@pytest.mark.distributed
def test_no_process_warns(ranks):
    assert [rank["warnings"] for rank in ranks] == [[], []]
