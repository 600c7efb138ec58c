"""NT-Xent in `functional.info_nce`: values, gradients, unusual rows, properties and extremes."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import normal, views
from tolerances import LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck.functional import info_nce
from stochastic_bottleneck.kernels.l2_normalize import l2_normalize

F64 = torch.float64

# ---- values against the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (5, 7)])
@pytest.mark.parametrize("block_size", [None, 1, 4, 100])
def test_equals_the_loop_over_pairs(shape, block_size):
    v, v_prime = views(*shape)
    for temperature in (0.05, 0.5, 2.0):
        expected = oracles.nt_xent(v, v_prime, temperature)
        assert_close(oracles.nt_xent_by_rows(v, v_prime, temperature), expected)
        losses = info_nce(v, v_prime, temperature, reduction="none", block_size=block_size)
        assert losses.shape == (2 * shape[0],)
        assert_close(losses, expected)
        mean = info_nce(v, v_prime, temperature, block_size=block_size)
        assert mean.shape == ()
        assert_close(mean, expected.mean())


@pytest.mark.parametrize("block_size", [None, 3])
def test_a_leading_dimension_holds_independent_losses(block_size):
    v, v_prime = views(3, 4, 5)
    losses = info_nce(v, v_prime, 0.3, reduction="none", block_size=block_size)
    for k in range(3):
        assert_close(losses[k], oracles.nt_xent(v[k], v_prime[k], 0.3))
    assert_close(info_nce(v, v_prime, 0.3, block_size=block_size), losses.mean())


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_low_precision_follows_the_float64_loop(dtype, temperature):
    inputs = views(5, 6, dtype=dtype)
    exact = [oracles.as_float64(x) for x in inputs]
    loss, expected = info_nce(*inputs, temperature), oracles.nt_xent(*exact, temperature).mean()
    assert loss.dtype == torch.float32
    assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad.dtype == dtype
        assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_affect_the_loss(dtype):
    v, v_prime = views(8, 16, dtype=torch.float32)
    expected = info_nce(v, v_prime, 0.01)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.mm(v, v.T).dtype == dtype  # autocast is on
        loss = info_nce(v, v_prime, 0.01)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_a_device_without_autocast():
    assert not torch.amp.is_autocast_available("meta")
    v = torch.ones(4, 3, device="meta", dtype=torch.bfloat16)
    loss = info_nce(v, v)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "meta")


# ---- gradients ---------------------------------------------------------------------------------------------

LOSSES = {
    "mean": info_nce,
    "upstream gradient other than 1": lambda a, b: -2.5 * info_nce(a, b).square(),
    "one loss per row": lambda a, b: info_nce(a, b, 0.7, reduction="none"),
    "tiles": lambda a, b: info_nce(a, b, block_size=2),
    "low temperature": lambda a, b: info_nce(a, b, 0.1),
}


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, (3, 4)) for name in LOSSES), ("mean", (1, 3)), ("mean", (2, 3, 2))]
)
def test_first_and_second_derivatives(name, shape):
    inputs = views(*shape)
    assert gradcheck(LOSSES[name], inputs)
    assert gradgradcheck(LOSSES[name], inputs)


def test_inputs_that_are_not_contiguous():
    transposed, strided = normal(4, 3).T, normal(3, 8, seed=1)[:, ::2]
    assert not transposed.is_contiguous()
    assert not strided.is_contiguous()
    expected = info_nce(transposed.contiguous(), strided.contiguous())
    assert torch.equal(info_nce(transposed, strided), expected)
    inputs = normal(4, 3).requires_grad_(), normal(3, 8, seed=1).requires_grad_()
    assert gradcheck(lambda a, b: info_nce(a.T, b[:, ::2]), inputs)


def test_tiles_change_neither_value_nor_gradient_and_save_no_matrix_of_all_pairs():
    results, largest = [], []
    for block_size in (None, 1, 3, 14):
        v, v_prime = views(32, 5)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = info_nce(v, v_prime, 0.2, block_size=block_size)
        results.append((loss, *torch.autograd.grad(loss, (v, v_prime))))
        largest.append(max(sizes))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_close(a, b)
    assert largest[0] >= 64 * 64 > 8 * max(largest[1:])


# ---- rows dominated by one entry, and rows of any magnitude ------------------------------------------------


def one_hot(n, d, g):
    return torch.nn.functional.one_hot(torch.randint(d, (n,), generator=g), d).double()


def of_every_scale(n, d, g):
    exponent = 60 * torch.rand(n, 1, generator=g, dtype=F64) - 30
    return torch.randn(n, d, generator=g, dtype=F64) * 10.0**exponent


ROWS = {
    "one-hot": (one_hot, 4),
    "dominant": (lambda n, d, g: one_hot(n, d, g) + 1e-5 * torch.randn(n, d, generator=g, dtype=F64), 4),
    "one dimension": (lambda n, d, g: torch.randn(n, d, generator=g, dtype=F64), 1),
    "two dimensions": (lambda n, d, g: torch.randn(n, d, generator=g, dtype=F64), 2),
    "duplicates": (lambda n, d, g: torch.randn(3, d, generator=g, dtype=F64)[torch.arange(n) % 3], 4),
    "every scale": (of_every_scale, 4),
}


def unusual_views(name, n, dtype=torch.float32):
    make, d = ROWS[name]
    g = torch.Generator().manual_seed(n)
    return tuple(make(n, d, g).to(dtype).requires_grad_() for _ in range(2))


def assert_value_and_gradient(loss, inputs, temperature):
    """Compare with the loop in float64; gradients relative to the gradient of the row's direction."""
    exact = [oracles.as_float64(x) for x in inputs]
    expected = oracles.nt_xent_by_rows(*exact, temperature)
    losses = loss(*inputs)
    assert_close(losses, expected)
    grads = torch.autograd.grad(losses.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), exact)
    for x, a, b in zip(exact, grads, expected_grads, strict=True):
        length = x.detach().norm(dim=1, keepdim=True)
        # Terms of opposite sign cancel in a gradient: its error is relative to the largest of them.
        assert_close((a * length).to(a.dtype), b * length, factor=10 / temperature)


def per_row(v, v_prime):
    return info_nce(v, v_prime, 0.5, reduction="none")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("n", [256, 257])  # the matrix of all pairs, and tiles
def test_value_and_gradient_of_unusual_rows(n, name):
    assert_value_and_gradient(per_row, unusual_views(name, n), 0.5)


@pytest.mark.parametrize(("backend", "d"), [("inductor", 4), ("aot_eager", 1), ("aot_eager", 2)])
def test_compiled_value_and_gradient_of_unusual_rows(backend, d, fresh_compiler):
    compiled = torch.compile(per_row, fullgraph=True, dynamic=True, backend=backend)
    for name in [name for name, (_, width) in ROWS.items() if width == d]:
        assert_value_and_gradient(compiled, unusual_views(name, 256), 0.5)


INTEGER_ROWS = st.integers(1, 6).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda d: st.lists(
            st.lists(st.integers(-2, 2), min_size=d, max_size=d).filter(any), min_size=2 * n, max_size=2 * n
        )
    )
)


@given(INTEGER_ROWS, st.sampled_from([F64, torch.float32]), st.sampled_from([0.05, 0.5, 2.0]))
def test_ties_between_rows_and_inside_them(rows, dtype, temperature):
    """Small integers produce rows that are equal, opposite, one-hot or constant."""
    v, v_prime = (x.requires_grad_() for x in torch.tensor(rows, dtype=dtype).chunk(2))

    def all_pairs(v, v_prime):
        return info_nce(v, v_prime, temperature, reduction="none")

    def tiles(v, v_prime):
        return info_nce(v, v_prime, temperature, reduction="none", block_size=2)

    for loss in (all_pairs, tiles):
        assert_value_and_gradient(loss, (v, v_prime), temperature)
    by_func = torch.func.grad(lambda v: all_pairs(v, v_prime.detach()).sum())(v.detach())
    by_create_graph = torch.autograd.grad(tiles(v, v_prime).sum(), v, create_graph=True)[0]
    assert_close(by_func, by_create_graph.double(), factor=10 / temperature)


# ---- properties --------------------------------------------------------------------------------------------

CASES = st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 5.0)


@given(*CASES)
def test_permuting_images_and_swapping_views_permutes_the_losses(seed, n, d, temperature):
    v, v_prime = views(n, d, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    losses = info_nce(v, v_prime, temperature, reduction="none").view(2, n)
    permuted = info_nce(v[order], v_prime[order], temperature, reduction="none").view(2, n)
    assert_close(permuted, losses[:, order])
    swapped = info_nce(v_prime, v, temperature, reduction="none").view(2, n)
    assert_close(swapped, losses.flip(0))


@given(*CASES, st.integers(-60, 60))
def test_scaling_a_row_changes_nothing(seed, n, d, temperature, power):
    v, v_prime = views(n, d, seed=seed)
    g = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (power * torch.rand(n, 1, generator=g, dtype=F64))
    assert_close(info_nce(v * scale, v_prime / scale, temperature), info_nce(v, v_prime, temperature))


@given(*CASES, st.sampled_from([torch.float32, torch.float64]))
def test_losses_lie_between_those_of_perfect_and_of_opposite_pairs(seed, n, d, temperature, dtype):
    v, v_prime = views(n, d, dtype=dtype, seed=seed)
    losses = info_nce(v, v_prime, temperature, reduction="none").double()
    slack = 1e-6 * 2 / temperature
    low, high = (math.log1p((2 * n - 2) * math.exp(s * 2 / temperature)) for s in (-1, 1))
    assert (losses >= 0).all()
    assert (losses >= low - slack).all()
    assert (losses <= high + slack).all()


# ---- closed forms and extremes -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
def test_closed_forms(temperature):
    for n in (1, 2, 7):  # all rows parallel: the log of the number of other views
        row = torch.randn(1, 5)
        losses = info_nce(row * (torch.rand(n, 1) + 0.5), row.expand(n, 5), temperature, reduction="none")
        assert_close(losses, torch.full((2 * n,), math.log(2 * n - 1)))
    for sign in (1.0, -1.0) if temperature > 0.01 else ():  # orthogonal images
        eye = torch.eye(4, dtype=F64)
        expected = math.log(math.exp(sign / temperature) + 6) - sign / temperature
        assert_close(info_nce(eye, sign * eye, temperature), expected)


EXTREMES = {
    "zero": lambda v, info: v * 0,
    "1e-30": lambda v, info: v * 1e-30,
    "largest": lambda v, info: v.sign() * info.max,
    "smallest normal": lambda v, info: v.sign() * info.tiny,
    "smallest float16": lambda v, info: v.sign() * 6e-8,
}


@pytest.mark.parametrize("dtype", [torch.float64, *LOW_DTYPES])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_rows_stay_finite(name, dtype):
    v, v_prime = (x.detach() for x in views(5, 4, dtype=dtype))
    extreme = EXTREMES[name](v.double(), torch.finfo(dtype)).to(dtype)
    # One extreme row with an ordinary positive, an extreme pair, and all rows extreme.
    for rows, both in ((slice(0, 1), False), (slice(0, 1), True), (slice(0, 5), True)):
        a, b = v.clone(), v_prime.clone()
        for x in (a, b) if both else (a,):
            x[rows] = extreme[rows]
        inputs = a.requires_grad_(), b.requires_grad_()
        losses = info_nce(*inputs, 0.01, reduction="none")
        assert losses.isfinite().all()
        assert (losses >= 0).all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(losses.mean(), inputs))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30, 3e38])
def test_rows_of_any_magnitude_are_normalized(scale):
    v, v_prime = (x.sign() * torch.tensor([1.0, 0.5, 0.25]) for x in views(4, 3, dtype=torch.float32))
    assert_close(l2_normalize(v * scale).norm(dim=1), torch.ones(4))
    assert_close(info_nce(v * scale, v_prime), info_nce(v, v_prime))


def test_a_zero_row_has_similarity_zero():
    v, v_prime = views(4, 3, dtype=torch.float32)
    v = v.detach().index_fill(0, torch.tensor([2]), 0.0)
    losses = info_nce(v, v_prime, 0.1, reduction="none")
    assert_close(losses[2], math.log(7))
    assert_close(info_nce(torch.zeros(3, 4), torch.zeros(3, 4)), math.log(5))


def test_the_gradient_of_a_tiny_half_precision_row_saturates():
    v = torch.randn(4, 8).half()
    v[0] = 6e-8 * v[0].sign()
    v.requires_grad_()
    (1e6 * info_nce(v, torch.randn(4, 8).half(), 0.01)).backward()
    assert v.grad.isfinite().all()
    assert v.grad[0].abs().max() == torch.finfo(torch.float16).max


# ---- errors ------------------------------------------------------------------------------------------------

A = torch.ones(2, 3)
ERRORS = [
    ((A[None, None], A[None, None]), ValueError, "flatten features to one row"),
    ((A[:0], A[:0]), ValueError, r"v is empty, shape \(0, 3\); skip empty batches"),
    ((A, A, 0.009), ValueError, "temperature must be a finite number of at least 0.01, got 0.009"),
]


@pytest.mark.parametrize(("args", "error", "message"), ERRORS)
def test_mistakes_are_named(args, error, message):
    """Values of a wrong type or out of range: tests/bad_calls.py."""
    with pytest.raises(error, match=message):
        info_nce(*args)
