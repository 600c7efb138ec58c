"""The fused kernels behind the samplers and divergences: one pass, in pieces, compiled; and the law of the noise."""

import math

import oracles
import pytest
import torch
from tolerances import DTYPES, LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior, functional
from stochastic_bottleneck._ops import bernoulli, gaussian, philox, pieces
from stochastic_bottleneck._ops.precision import at_least_float32

F64 = torch.float64
SHAPE = (3, 4)


def draw(*shape, scale=1.0, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=g, dtype=F64)).to(dtype)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def arguments(kind, shape=SHAPE, dtype=F64):
    """Parameters and noise of a kind: logits, or means and log standard deviations."""
    noise = draw(*shape, seed=3, dtype=F64 if dtype == F64 else torch.float32)
    if kind.startswith("bern"):
        return (draw(*shape, scale=3.0, dtype=dtype),), noise
    width = shape[-1:] if kind == "gauss" else (1,)
    return (
        draw(*shape, dtype=dtype),
        draw(*shape[:-1], *width, scale=0.7, seed=1, dtype=dtype),
    ), noise


def fused(kind, temperature=0.7):
    """A kind's sample and divergence as a function of parameters and then noise."""
    if kind.startswith("bern"):
        hard = kind == "bern hard"
        return lambda a, e: functional.relaxed_bernoulli_rsample_kl(a, temperature, hard, e)
    return functional.gaussian_rsample_kl


def separate(kind):
    if kind.startswith("bern"):
        hard = kind == "bern hard"
        return lambda a, e: (
            functional.relaxed_bernoulli_rsample(a, 0.7, hard, e),
            functional.bernoulli_kl(a),
        )
    return lambda m, s, e: (functional.gaussian_rsample(m, s, e), functional.gaussian_kl(m, s))


def oracle(kind):
    if kind.startswith("bern"):
        return lambda a, e: (oracles.relaxed_bernoulli_sample(a, 0.7, e), oracles.bernoulli_kl(a))
    return lambda m, s, e: (oracles.gaussian_sample(m, s, e), oracles.gaussian_kl(m, s))


def value_and_gradients(function, parameters, noise, *, of_z=-2.0, of_kl=3.0):
    """Outputs and the gradients of a weighted sum of them; a weight of None leaves an output out."""
    inputs = leaves(*parameters)
    outputs = function(*inputs, noise)
    weighted = [w * y.sum() for w, y in zip((of_z, of_kl), outputs, strict=True) if w is not None]
    return outputs, torch.autograd.grad(sum(weighted), inputs, allow_unused=True)


each_kind = pytest.mark.parametrize("kind", ["bern", "bern hard", "gauss", "gauss isotropic"])
each_soft_kind = pytest.mark.parametrize("kind", ["bern", "gauss", "gauss isotropic"])


# ---- one pass ----------------------------------------------------------------------------------------------


@each_soft_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_follows_the_loops(kind, dtype):
    parameters, noise = arguments(kind, dtype=dtype)
    (z, kl), gradients = value_and_gradients(fused(kind), parameters, noise)
    exact, expected = value_and_gradients(oracle(kind), [p.double() for p in parameters], noise.double())
    assert z.dtype == dtype
    assert kl.dtype == (F64 if dtype == F64 else torch.float32)
    assert z.shape == kl.shape == SHAPE
    for found, right in zip((z, kl, *gradients), (*exact, *expected), strict=True):
        assert_close(found, right, factor=1 if dtype == F64 else 10)


@each_kind
@pytest.mark.parametrize(("of_z", "of_kl"), [(-2.0, 3.0), (-2.0, None), (None, 3.0)])
def test_one_pass_is_both_functions(kind, of_z, of_kl):
    parameters, noise = arguments(kind)
    results = [
        value_and_gradients(f(kind), parameters, noise, of_z=of_z, of_kl=of_kl) for f in (fused, separate)
    ]
    (outputs, gradients), (expected, expected_gradients) = results
    for found, right in zip(outputs, expected, strict=True):
        assert torch.equal(found, right)
    for found, right in zip(gradients, expected_gradients, strict=True):
        assert (found is None) == (right is None)
        if right is not None:
            torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-15)


def test_hard_bits_pass_the_relaxed_gradient_on():
    (logits,), noise = arguments("bern")
    (bits, _), gradient = value_and_gradients(fused("bern hard"), (logits,), noise)
    (z, _), relaxed = value_and_gradients(fused("bern"), (logits,), noise)
    assert torch.equal(bits, (logits + noise > 0).double())
    assert not torch.equal(bits, z)
    assert torch.equal(gradient[0], relaxed[0])


@each_soft_kind
def test_first_and_second_derivatives(kind):
    parameters, noise = arguments(kind)
    inputs = leaves(*parameters, noise)
    assert gradcheck(fused(kind), inputs)
    assert gradgradcheck(fused(kind), inputs)


def test_derivatives_in_the_temperature():
    (logits,), noise = arguments("bern")

    def sample(a, e, tau):
        return functional.relaxed_bernoulli_rsample_kl(a, tau, False, e)

    for tau in (torch.tensor(0.7, dtype=F64), draw(4).abs() + 0.5):  # one for all, one a dimension
        inputs = leaves(logits, noise, tau)
        assert gradcheck(sample, inputs)
        assert gradgradcheck(sample, inputs)


def test_the_hard_second_derivative_is_the_relaxed_one():
    def second(kind):
        (logits,), noise = arguments("bern")
        (a,) = leaves(logits)
        z = fused(kind)(a, noise)[0]
        (first,) = torch.autograd.grad((z * draw(*SHAPE, seed=8)).sum(), a, create_graph=True)
        return torch.autograd.grad(first.square().sum(), a)[0]

    assert second("bern").abs().max() > 0.1
    assert_close(second("bern hard"), second("bern"))


@pytest.mark.parametrize("kind", ["bern", "bern hard"])
def test_a_saturated_sample_leaves_every_gradient_finite(kind):
    tau = torch.tensor(0.01, requires_grad=True)
    logits = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], requires_grad=True)
    z, kl = functional.relaxed_bernoulli_rsample_kl(logits, tau, kind == "bern hard", torch.zeros(5))
    for gradient in torch.autograd.grad(z.sum() + kl.sum(), (logits, tau)):
        assert gradient.isfinite().all()


@each_kind
def test_nothing_but_inputs_and_the_sample_is_kept(kind):
    """Memory until the backward pass: the parameters, and the noise (gauss) or the relaxed sample (bern)."""
    kept = {}
    parameters, noise = arguments(kind, (64, 32), torch.float32)
    parameters = leaves(*parameters)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.__setitem__(t.data_ptr(), t), t)[1], lambda t: t
    ):
        z, kl = fused(kind)(*parameters, noise)
        (z.sum() + kl.sum()).backward()
    large = [t for t in kept.values() if t.numel() > 1]
    assert len(large) == len(parameters) + 1
    allowed = {t.data_ptr() for t in parameters} | {noise.data_ptr() if "gauss" in kind else z.data_ptr()}
    if kind != "bern hard":  # whose relaxed sample is not the one returned
        assert {t.data_ptr() for t in large} == allowed


@pytest.mark.parametrize("dtype", LOW_DTYPES[1:])
def test_the_gradient_of_half_precision_saturates(dtype):
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    z, _ = functional.relaxed_bernoulli_rsample_kl(logits, 1e-6, noise=torch.zeros(2))
    (gradient,) = torch.autograd.grad(z.sum() * 1e4, logits)
    limit = torch.finfo(dtype).max
    # the exact gradient is 2.5e9
    assert_close(gradient, torch.full((2,), min(2.5e9, limit), dtype=F64))


def test_float32_divergences_keep_their_digits_everywhere():
    """Relative to float64, in units of float32's last place; |l| = 2 is where the formulas change over."""
    eps = torch.finfo(torch.float32).eps
    logits = torch.cat([torch.logspace(-12, 4, 20_000), torch.linspace(1.9, 2.1, 2000)])
    for a in (logits, -logits):
        exact = functional.bernoulli_kl(a.double())
        assert ((functional.bernoulli_kl(a) - exact) / exact).abs().max() < 4 * eps


def of_scale(s):
    """expm1(2 s) / 2 - s in float64, by its power series where the two cancel."""
    near = s.clamp(-1, 1)
    series = sum((2 * near) ** k / (2.0 * math.factorial(k)) for k in range(2, 30))
    return torch.where(s.abs() < 0.7, series, (2 * s).expm1() / 2 - s)


# torch loads its own rules for forward mode with it
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_gaussians_divergence_keeps_its_digits_everywhere(dtype, fresh_compiler):
    """In units of the last place, value and derivatives; |log_std| = 1/2 is where the series ends."""
    eps = torch.finfo(dtype).eps
    size = torch.cat([torch.logspace(-15, 1, 20_000, dtype=F64), torch.linspace(0.45, 0.55, 2000, dtype=F64)])
    s = torch.cat([size, -size]).to(dtype).requires_grad_()
    exact, slope = of_scale(s.detach().double()), (2 * s.detach().double()).expm1()

    def divergence(x):
        return functional.gaussian_kl(torch.zeros_like(x), x)

    def error(found, right):
        return ((found.double() - right) / right).abs().max() / eps

    # float64's oracle is rounded itself
    _, forward = torch.func.jvp(divergence, (s.detach(),), (torch.ones_like(s),))
    assert error(forward, slope) < 3
    for function in (divergence, torch.compile(divergence, fullgraph=True, backend="aot_eager")):
        kl = function(s)
        assert error(kl, exact) < 5
        (gradient,) = torch.autograd.grad(kl.sum(), s)
        assert error(gradient, slope) < 8
    (gradient,) = torch.autograd.grad(divergence(s).sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), s)
    torch.testing.assert_close(
        second.double(), 2 * (2 * s.detach().double()).exp(), rtol=4 * eps, atol=4 * eps
    )
    both = functional.gaussian_kl(s.detach().flip(0), s.detach())
    assert error(both, exact + s.detach().double().flip(0).square() / 2) < 5


# ---- in pieces ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of five elements, and the shapes of the pieces that were computed."""
    seen = []
    monkeypatch.setattr(pieces, "_PIECE", 5)
    for module, name in ((bernoulli, "_sample"), (gaussian, "_evaluate"), (bernoulli, "_kl")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), seen))
    return seen


def recorded(function, seen):
    def wrapper(first, *others, **options):
        seen.append(first.shape)
        return function(first, *others, **options)

    return wrapper


LAYOUTS = {
    "contiguous": lambda: draw(6, 4),
    "transposed": lambda: draw(4, 6).T,
    "strided": lambda: draw(6, 8)[:, ::2],
    "channels last": lambda: draw(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    "expanded": lambda: draw(1, 4).expand(6, 4),
    "vector": lambda: draw(23),
    "single column": lambda: draw(23, 1),
}


@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_make_up_the_whole(kind, layout, monkeypatch, request):
    x = LAYOUTS[layout]()
    noise = draw(*x.shape, seed=3)
    scale = {"gauss": draw(*x.shape, seed=1), "gauss isotropic": draw(*x.shape[:-1], 1, seed=1)}.get(kind)
    inputs = (x,) if scale is None else (x, scale)
    whole = value_and_gradients(fused(kind), inputs, noise)
    seen = request.getfixturevalue("small_pieces")
    in_pieces = value_and_gradients(fused(kind), inputs, noise)
    if kind == "gauss isotropic" and layout == "vector":  # a single row
        assert len(seen) == 1
    else:
        assert len(seen) > 2
    for group, expected in zip(in_pieces, whole, strict=True):
        for found, right in zip(group, expected, strict=True):
            assert found.shape == right.shape
            torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-14)


def test_a_backward_pass_is_in_pieces_unless_it_is_recorded(small_pieces, monkeypatch):
    seen = []
    monkeypatch.setattr(bernoulli, "_gradient", recorded(bernoulli._gradient, seen))
    (logits,), noise = arguments("bern", (6, 4))
    (logits,) = leaves(logits)
    for record in (True, False):
        seen.clear()
        z, _ = fused("bern")(logits, noise)
        torch.autograd.grad(z.sum(), logits, create_graph=record)
        assert len(seen) == (1 if record else 5)


@each_kind
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,)])
def test_the_smallest_tensors(kind, shape, small_pieces):
    x, noise = draw(*shape), draw(*shape, seed=3)
    width = shape if kind == "gauss" else (*shape[:-1], 1)
    inputs = (x,) if kind.startswith("bern") else (x, draw(*width, seed=1) if shape else draw(seed=1))
    (z, kl), gradients = value_and_gradients(fused(kind), inputs, noise)
    assert z.shape == kl.shape == shape
    assert [g.shape for g in gradients] == [i.shape for i in inputs]
    assert all(t.isfinite().all() for t in (z, kl, *gradients))


# ---- transforms of functions -------------------------------------------------------------------------------

# torch loads its own rules for forward mode with it
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")


@each_kind
@pytest.mark.parametrize("dtype", [F64, torch.float16])
def test_gradients_of_each_example_by_vmap(kind, dtype, small_pieces):
    parameters, noise = arguments(kind, dtype=dtype)

    def loss(p, e):
        z, kl = fused(kind)(*p, e)
        return -2 * z.sum() + 3 * kl.sum()

    each = torch.func.vmap(torch.func.grad(loss))(parameters, noise)
    _, expected = value_and_gradients(fused(kind), parameters, noise)
    for found, right in zip(each, expected, strict=True):
        assert found.dtype == dtype
        assert_close(found, right)


@each_kind
def test_vmap_of_the_sample(kind, small_pieces):
    parameters, noise = arguments(kind)
    expected = fused(kind)(*parameters, noise)
    for found, right in zip(torch.func.vmap(fused(kind))(*parameters, noise), expected, strict=True):
        assert_close(found, right)
    several = torch.stack([noise, -noise])  # more than one sample of the same parameters
    z, _ = torch.func.vmap(lambda e: fused(kind)(*parameters, e))(several)
    for found, e in zip(z, several, strict=True):
        assert_close(found, fused(kind)(*parameters, e)[0])


@forward_mode
@each_kind
def test_forward_mode_agrees_with_reverse_mode(kind):
    parameters, noise = arguments(kind)
    inputs = (*parameters, noise)
    forward = torch.func.jacfwd(fused(kind), argnums=tuple(range(len(inputs))))(*inputs)
    reverse = torch.func.jacrev(fused(kind), argnums=tuple(range(len(inputs))))(*inputs)
    for found, right in zip(forward, reverse, strict=True):
        assert any(r.abs().max() > 0 for r in right)
        for a, b in zip(found, right, strict=True):
            assert_close(a, b)


@forward_mode
def test_forward_mode_in_the_temperature():
    (logits,), noise = arguments("bern")

    def sample(tau):
        return functional.relaxed_bernoulli_rsample_kl(logits, tau, False, noise)[0]

    tau = torch.tensor(0.7, dtype=F64)
    assert_close(torch.func.jacfwd(sample)(tau), torch.func.jacrev(sample)(tau))
    assert_close(
        torch.func.jacfwd(functional.bernoulli_kl)(logits), torch.func.jacrev(functional.bernoulli_kl)(logits)
    )


@forward_mode
@each_soft_kind
def test_hessians(kind):
    parameters, noise = arguments(kind, (1, 3))
    numbers = [p.numel() for p in parameters]

    def loss(flat):
        parts = [x.view_as(p) for x, p in zip(flat.split(numbers), parameters, strict=True)]
        z, kl = fused(kind)(*parts, noise)
        return (z.square() * kl).sum()

    flat = torch.cat([p.reshape(-1) for p in parameters])
    assert_close(torch.func.hessian(loss)(flat), torch.autograd.functional.hessian(loss, flat))


@each_kind
def test_batched_upstream_gradients(kind, small_pieces):
    parameters, noise = arguments(kind)
    inputs = leaves(*parameters)
    z, kl = fused(kind)(*inputs, noise)
    upstream = draw(5, *SHAPE, seed=6), draw(5, *SHAPE, seed=7)
    batched = torch.autograd.grad((z, kl), inputs, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(5):
        single = torch.autograd.grad((z, kl), inputs, [u[i] for u in upstream], retain_graph=True)
        for found, right in zip(batched, single, strict=True):
            assert_close(found[i], right)


@pytest.mark.parametrize("dtype", LOW_DTYPES[1:])
def test_the_upcast_is_transformable(dtype):
    x = draw(5, dtype=dtype)
    gradient = torch.func.vmap(torch.func.grad(lambda a: (1e9 * at_least_float32(a)).sum()))(x)
    assert_close(gradient, torch.full((5,), min(1e9, torch.finfo(dtype).max), dtype=F64))


# ---- compiled ----------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_code_agrees_on_the_same_noise(kind, backend, fresh_compiler):
    # both formulas of the divergence, and the two ends
    extremes = torch.tensor([0.0, 1e-3, 1.9, 2.1, -2.0, 30.0, -1e4, 1e4] if kind.startswith("bern") else [])
    parameters, noise = arguments(kind, (4, 8), torch.float32)
    if kind.startswith("bern"):
        parameters = (torch.cat([parameters[0], extremes[None]]),)
        noise = torch.cat([noise, noise[:1]])
    tau = torch.tensor(0.7)
    compiled = torch.compile(fused(kind, tau), backend=backend, fullgraph=True)
    for found, right in zip(
        value_and_gradients(compiled, parameters, noise),
        value_and_gradients(fused(kind, tau), parameters, noise),
        strict=True,
    ):
        for a, b in zip(found, right, strict=True):
            assert_close(a, b)


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("drawn", [False, True])
def test_compiled_code_is_one_kernel_each_way(kind, drawn, fresh_compiler):
    """One loop over the elements forward and one backward; a seed of two words apart from them.

    A gradient that is summed over a row takes a second loop backward, and drawing it anew a third.
    """
    from torch._inductor import metrics

    parameters, noise = arguments(kind, (64, 128), torch.float32)
    function = torch.compile(fused(kind), fullgraph=True)
    metrics.reset()
    value_and_gradients(function, parameters, None if drawn else noise)
    # A vectorised main loop each; the seed's is not vectorised.
    rowwise = kind == "gauss isotropic"
    assert metrics.generated_cpp_vec_kernel_count <= 2 + rowwise * (3 if drawn else 1)
    assert metrics.generated_kernel_count <= 2 + drawn + rowwise * (3 if drawn else 1)


# ---- posteriors --------------------------------------------------------------------------------------------


@each_kind
def test_posteriors_sum_the_divergence_over_dimensions(kind):
    parameters, noise = arguments(kind, (2, 3, 4))
    if kind.startswith("bern"):
        posterior, options = BernoulliPosterior(*parameters, torch.tensor(0.7)), {"hard": kind == "bern hard"}
    else:
        posterior, options = GaussianPosterior(*parameters), {}
    z, kl = posterior.rsample_kl(noise=noise, **options)
    assert kl.shape == (2, 3)
    assert torch.equal(z, posterior.rsample(noise=noise, **options))
    assert_close(kl, posterior.kl())
    state = torch.get_rng_state()
    drawn, _ = posterior.rsample_kl(generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(drawn, posterior.rsample(generator=torch.Generator().manual_seed(1), **options))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(posterior.rsample_kl(**options)[0], drawn)


# ---- the law of the noise ----------------------------------------------------------------------------------

N = 2**18
SIGMAS = 5


def logistic_cdf(x):
    return torch.sigmoid(x.double())


def normal_cdf(x):
    return torch.special.ndtr(x.double())


def compiled(noise):
    """`noise` as compiled code draws it; the graph runs uncompiled, with the same arithmetic."""
    return torch.compile(noise, fullgraph=True, backend="aot_eager")


LAWS = {
    "logistic": (functional.logistic_noise, logistic_cdf, 17),
    "normal": (functional.normal_noise, normal_cdf, 7),
}
each_law = pytest.mark.parametrize("law", LAWS)
each_drawer = pytest.mark.parametrize("drawer", [lambda noise: noise, compiled], ids=["eager", "compiled"])


@each_law
@each_drawer
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_has_its_law(law, drawer, dtype, fresh_compiler):
    noise, cdf, bound = LAWS[law]
    torch.manual_seed(11)
    e = drawer(noise)(torch.empty(4, N // 4, dtype=dtype))
    assert e.dtype == dtype
    assert e.isfinite().all()
    assert e.abs().max() < bound if dtype == torch.float32 else True
    limit = oracles.kolmogorov_smirnov_limit(N)
    assert oracles.kolmogorov_smirnov(e.flatten(), cdf) < limit
    assert oracles.kolmogorov_smirnov(-e.flatten(), cdf) < limit  # symmetric
    assert oracles.kolmogorov_smirnov(1.05 * e.flatten(), cdf) > limit  # and five percent are seen
    for p in (1e-2, 1e-3, 1e-4):  # both tails
        for tail in (e, -e):
            count = (cdf(tail) < p).sum().item()
            assert abs(count - N * p) < SIGMAS * math.sqrt(N * p)


@each_law
@each_drawer
def test_draws_are_independent(law, drawer, fresh_compiler):
    noise, cdf, _ = LAWS[law]
    torch.manual_seed(12)
    draw_noise = drawer(noise)
    rows = torch.stack([draw_noise(torch.empty(N)) for _ in range(3)])
    assert not torch.equal(rows[0], rows[1])
    u = cdf(rows)
    together = torch.cat([u, u.roll(1, dims=1)[:1], u.roll(2**10, dims=1)[:1]])  # neighbours, and far ones
    for moment in (together, (together - 0.5).square()):
        correlation = torch.corrcoef(moment) - torch.eye(5, dtype=F64)
        assert correlation.abs().max() < SIGMAS / math.sqrt(N)
    torch.manual_seed(12)
    assert torch.equal(draw_noise(torch.empty(N)), rows[0])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_gives_the_words_of_its_authors(counter, key, words):
    """Known answers for philox2x32 with ten rounds, from the authors' Random123 library."""
    found = philox.philox(torch.tensor(counter[0]), torch.tensor(counter[1]), torch.tensor(key))
    assert tuple(map(int, found)) == words


def test_the_ends_of_a_word_are_finite(monkeypatch):
    ends = torch.tensor([0, 0xFFFFFFFF])
    monkeypatch.setattr(philox, "_words", lambda shape, seed: (ends, ends.flip(0)))
    uniform = philox.uniform(torch.Size([2]), torch.zeros(2))
    assert uniform.tolist() == [0.0, 1.0]
    logistic = bernoulli.logistic_noise(uniform)
    assert logistic[0] == -logistic[1]
    for noise in (logistic, philox.normal(torch.Size([2]), torch.zeros(2))):
        assert noise.isfinite().all()
        assert noise.abs().max() > 6


def test_compiled_code_draws_in_its_kernel_on_a_cpu(graphs):
    """torch.rand there is drawn one element after another, which takes longer than all the rest."""
    torch.compile(functional.logistic_noise, fullgraph=True, backend=graphs.backend)(torch.empty(4))
    called = {node.target for node in graphs[0].graph.nodes}
    assert torch.randint in called
    assert torch.rand not in called


# ---- errors ------------------------------------------------------------------------------------------------

X, INTS = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("function", "args", "error", "message"),
    [
        (functional.relaxed_bernoulli_rsample_kl, (INTS, 1.0), TypeError, "logits must be a floating point"),
        (
            functional.relaxed_bernoulli_rsample_kl,
            (X, 0.0),
            ValueError,
            "temperature must be a finite number",
        ),
        (
            functional.relaxed_bernoulli_rsample_kl,
            (X, 1.0, False, X[0]),
            ValueError,
            "noise must have the shape of logits",
        ),
        (functional.gaussian_rsample_kl, (INTS, X), TypeError, "mean must be a floating point tensor"),
        (functional.gaussian_rsample_kl, (X, X[:1]), ValueError, "log_std must have the shape of mean"),
        (functional.gaussian_rsample_kl, (X, X, X[:1]), ValueError, "noise must have the shape of mean"),
    ],
)
def test_mistakes_are_named(function, args, error, message):
    with pytest.raises(error, match=message):
        function(*args)
