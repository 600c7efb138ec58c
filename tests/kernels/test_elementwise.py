"""Both samplers with their KL divergences: one pass, chunks, derivatives, function transforms and the compiler."""

import pytest
import torch
from oracles import leaves, normal
from tolerances import LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck import functional
from stochastic_bottleneck.kernels import bernoulli, elementwise, gaussian

F64 = torch.float64
SHAPE = (3, 4)
KINDS = ("bern", "bern hard", "gauss", "gauss isotropic")
each_kind = pytest.mark.parametrize("kind", KINDS)


def arguments(kind, shape=SHAPE, dtype=F64):
    """Parameters and noise: logits, or means and log standard deviations."""
    noise = normal(*shape, seed=3, dtype=F64 if dtype == F64 else torch.float32)
    if kind.startswith("bern"):
        return (normal(*shape, scale=3.0, dtype=dtype),), noise
    log_std_shape = shape if kind == "gauss" else (*shape[:-1], 1)
    return (normal(*shape, dtype=dtype), normal(*log_std_shape, scale=0.7, seed=1, dtype=dtype)), noise


def one_pass(kind, temperature=0.7):
    """Sample and KL divergence as a function of the parameters, then the noise."""
    if kind.startswith("bern"):
        hard = kind == "bern hard"
        return lambda a, e: functional.relaxed_bernoulli_rsample_kl(a, temperature, hard, e)
    return functional.gaussian_rsample_kl


def two_functions(kind):
    if kind.startswith("bern"):
        hard = kind == "bern hard"
        return lambda a, e: (functional.relaxed_bernoulli_rsample(a, 0.7, hard, e), functional.bernoulli_kl(a))
    return lambda m, s, e: (functional.gaussian_rsample(m, s, e), functional.gaussian_kl(m, s))


def value_and_gradients(function, parameters, noise, weights=(-2.0, 3.0)):
    """Outputs and gradients of their weighted sum; an output with weight None is left out."""
    inputs = leaves(*parameters)
    outputs = function(*inputs, noise)
    weighted = [w * y.sum() for w, y in zip(weights, outputs, strict=True) if w is not None]
    return outputs, torch.autograd.grad(sum(weighted), inputs, allow_unused=True)


# ---- one pass ----------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("weights", [(-2.0, 3.0), (-2.0, None), (None, 3.0)])
def test_one_pass_equals_both_functions(kind, weights):
    for dtype in (F64, torch.float16):
        parameters, noise = arguments(kind, dtype=dtype)
        (outputs, gradients), (expected, expected_gradients) = (
            value_and_gradients(f(kind), parameters, noise, weights) for f in (one_pass, two_functions)
        )
        for found, right in zip(outputs, expected, strict=True):
            assert found.dtype == right.dtype
            assert torch.equal(found, right)
        for found, right in zip(gradients, expected_gradients, strict=True):
            assert (found is None) == (right is None)
            if right is not None:
                assert_close(found, right.double())


@pytest.mark.parametrize("kind", ["bern", "gauss", "gauss isotropic"])  # bits have no finite differences
def test_first_and_second_derivatives(kind):
    parameters, noise = arguments(kind)
    inputs = leaves(*parameters, noise)
    assert gradcheck(one_pass(kind), inputs)
    assert gradgradcheck(one_pass(kind), inputs)


@each_kind
def test_only_inputs_and_the_sample_are_saved(kind):
    """Saved for backward: the parameters, and the noise (gauss) or the relaxed sample (bern)."""
    saved = {}
    parameters, noise = arguments(kind, (64, 32), torch.float32)
    parameters = leaves(*parameters)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.__setitem__(t.data_ptr(), t), t)[1], lambda t: t):
        z, kl = one_pass(kind)(*parameters, noise)
        (z.sum() + kl.sum()).backward()
    large = {pointer for pointer, t in saved.items() if t.numel() > 1}
    assert len(large) == len(parameters) + 1
    if kind != "bern hard":  # whose relaxed sample is not returned
        assert large == {t.data_ptr() for t in (*parameters, noise if "gauss" in kind else z)}


# ---- chunks ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of five elements; the shapes of all chunks that were computed."""
    shapes = []
    monkeypatch.setattr(elementwise, "_CHUNK", 5)
    for module, name in (
        (bernoulli, "_sample"),
        (bernoulli, "_kl_formula"),
        (bernoulli, "_grad_logits"),
        (gaussian, "_evaluate"),
    ):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), shapes))
    return shapes


def recorded(function, shapes):
    def wrapper(first, *others, **options):
        shapes.append(first.shape)
        return function(first, *others, **options)

    return wrapper


LAYOUTS = {
    "contiguous": lambda: normal(6, 4),
    "transposed": lambda: normal(4, 6).T,
    "strided": lambda: normal(6, 8)[:, ::2],
    "channels last": lambda: normal(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    "expanded": lambda: normal(1, 4).expand(6, 4),
    "vector": lambda: normal(23),
    "single column": lambda: normal(23, 1),
}


@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_change_nothing(kind, layout, request):
    x = LAYOUTS[layout]()
    noise = normal(*x.shape, seed=3)
    log_std = {"gauss": normal(*x.shape, seed=1), "gauss isotropic": normal(*x.shape[:-1], 1, seed=1)}.get(kind)
    inputs = (x,) if log_std is None else (x, log_std)
    whole = value_and_gradients(one_pass(kind), inputs, noise)
    shapes = request.getfixturevalue("small_chunks")
    chunked = value_and_gradients(one_pass(kind), inputs, noise)
    if kind == "gauss isotropic" and layout == "vector":
        assert len(shapes) == 1  # a single row
    else:
        assert len(shapes) > 2
    for group, expected in zip(chunked, whole, strict=True):
        for found, right in zip(group, expected, strict=True):
            assert found.shape == right.shape
            torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-14)


@each_kind
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,)])
def test_the_smallest_tensors(kind, shape, small_chunks):
    x, noise = normal(*shape), normal(*shape, seed=3)
    log_std_shape = shape if kind == "gauss" or not shape else (*shape[:-1], 1)
    inputs = (x,) if kind.startswith("bern") else (x, normal(*log_std_shape, seed=1))
    (z, kl), gradients = value_and_gradients(one_pass(kind), inputs, noise)
    assert z.shape == kl.shape == shape
    assert [g.shape for g in gradients] == [i.shape for i in inputs]
    assert all(t.isfinite().all() for t in (z, kl, *gradients))


# ---- function transforms -----------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [F64, torch.float16])
def test_vmap_of_samples_and_of_gradients(kind, dtype, small_chunks):
    parameters, noise = arguments(kind, dtype=dtype)

    def loss(p, e):
        z, kl = one_pass(kind)(*p, e)
        return -2 * z.sum() + 3 * kl.sum()

    outputs, gradients = value_and_gradients(one_pass(kind), parameters, noise)
    by_vmap = torch.func.vmap(one_pass(kind))(*parameters, noise)
    gradients_by_vmap = torch.func.vmap(torch.func.grad(loss))(parameters, noise)
    for found, right in zip((*by_vmap, *gradients_by_vmap), (*outputs, *gradients), strict=True):
        assert found.dtype == right.dtype
        assert_close(found, right.double())
    several = torch.stack([noise, -noise])  # several samples of the same parameters
    z, _ = torch.func.vmap(lambda e: one_pass(kind)(*parameters, e))(several)
    for found, e in zip(z, several, strict=True):
        assert_close(found, one_pass(kind)(*parameters, e)[0].double())
    leaves = [p.detach().requires_grad_() for p in parameters]
    z, kl = torch.func.vmap(lambda e: one_pass(kind)(*leaves, e))(several)
    (-2 * z.sum() + 3 * kl.sum()).backward()
    for leaf, *right in zip(leaves, *(torch.func.grad(loss)(parameters, e) for e in several), strict=True):
        assert_close(leaf.grad, sum(right).double(), factor=10)


def test_temperatures_of_more_dimensions_give_the_kl_its_gradient_once():
    logits, noise = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    temperature = torch.tensor([0.5, 1.0, 2.0], dtype=F64)[:, None, None]
    z, kl = functional.relaxed_bernoulli_rsample_kl(logits, temperature, noise=noise)
    found = torch.autograd.grad(z.sum() + kl.sum(), logits)[0]
    rows = [functional.relaxed_bernoulli_rsample(logits, t.item(), noise=noise).sum() for t in temperature]
    expected = torch.autograd.grad(sum(rows) + functional.bernoulli_kl(logits).sum(), logits)[0]
    assert_close(found, expected)


@each_kind
def test_forward_mode_agrees_with_reverse_mode(kind):
    parameters, noise = arguments(kind)
    inputs = (*parameters, noise)
    if kind == "bern":  # in the temperature too
        inputs = (*inputs, torch.tensor(0.7, dtype=F64))

    def function(*x):
        return one_pass(kind, x[2])(*x[:2]) if kind == "bern" else one_pass(kind)(*x)

    argnums = tuple(range(len(inputs)))
    forward, reverse = (f(function, argnums=argnums)(*inputs) for f in (torch.func.jacfwd, torch.func.jacrev))
    for found, right in zip(forward, reverse, strict=True):
        assert any(r.abs().max() > 0 for r in right)
        for a, b in zip(found, right, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("dtype", LOW_DTYPES[1:])
def test_gradients_saturate_in_half_precision(dtype):
    x, limit = normal(5, dtype=dtype), torch.finfo(dtype).max
    gradient = torch.func.vmap(torch.func.grad(lambda a: (1e9 * elementwise.at_least_float32(a)).sum()))(x)
    assert_close(gradient, torch.full((5,), min(1e9, limit), dtype=F64))
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    z, _ = functional.relaxed_bernoulli_rsample_kl(logits, 1e-6, noise=torch.zeros(2))
    (gradient,) = torch.autograd.grad(z.sum() * 1e4, logits)  # exactly 2.5e9
    assert_close(gradient, torch.full((2,), min(2.5e9, limit), dtype=F64))


# ---- the compiler ------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_code_agrees_on_the_same_noise(kind, backend, fresh_compiler):
    parameters, noise = arguments(kind, (4, 8), torch.float32)
    if kind.startswith("bern"):  # both formulas of the divergence, and extremes
        extremes = torch.tensor([[0.0, 1e-3, 1.9, 2.1, -2.0, 30.0, -1e4, 1e4]])
        parameters, noise = (torch.cat([parameters[0], extremes]),), torch.cat([noise, noise[:1]])
    function = one_pass(kind, torch.tensor(0.7))
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    results = [value_and_gradients(f, parameters, noise) for f in (compiled, function)]
    for found, right in zip(*results, strict=True):
        for a, b in zip(found, right, strict=True):
            assert_close(a, b)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("samples_noise", [False, True])
def test_compiled_code_is_one_kernel_forward_and_one_backward(kind, samples_noise, fresh_compiler):
    """A gradient summed over a row needs a second loop in backward, and recomputing the noise a third."""
    from torch._inductor import metrics

    parameters, noise = arguments(kind, (64, 128), torch.float32)
    function = torch.compile(one_pass(kind), fullgraph=True)
    metrics.reset()
    value_and_gradients(function, parameters, None if samples_noise else noise)
    extra = (3 if samples_noise else 1) if kind == "gauss isotropic" else 0
    assert metrics.generated_cpp_vec_kernel_count <= 2 + extra
    assert metrics.generated_kernel_count <= 2 + extra + samples_noise  # one for the seed
