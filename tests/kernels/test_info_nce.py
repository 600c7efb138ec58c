"""NT-Xent: `functional.info_nce` and its kernel."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import LOW_DTYPES, assert_close
from torch.autograd import gradcheck, gradgradcheck

from stochastic_bottleneck._ops import info_nce as kernel
from stochastic_bottleneck.functional import info_nce

F64 = torch.float64
TEMPERATURES = (0.05, 0.5, 2.0)


def views(*shape, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=g, dtype=F64).to(dtype).requires_grad_() for _ in range(2))


# ---- values against the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (5, 7), (6, 4)])
@pytest.mark.parametrize("block_size", [None, 1, 4, 100])
def test_equals_the_loop(shape, temperature, block_size):
    v, v_prime = views(*shape)
    expected = oracles.nt_xent(v, v_prime, temperature)
    rows = info_nce(v, v_prime, temperature, reduction="none", block_size=block_size)
    assert rows.shape == (2 * shape[0],)
    assert_close(rows, expected)
    mean = info_nce(v, v_prime, temperature, block_size=block_size)
    assert mean.shape == ()
    assert_close(mean, expected.mean())


@pytest.mark.parametrize("block_size", [None, 3])
def test_a_leading_dimension_holds_independent_losses(block_size):
    v, v_prime = views(3, 4, 5)
    rows = info_nce(v, v_prime, 0.3, reduction="none", block_size=block_size)
    assert rows.shape == (3, 8)
    for k in range(3):
        assert_close(rows[k], oracles.nt_xent(v[k], v_prime[k], 0.3))
    assert_close(info_nce(v, v_prime, 0.3, block_size=block_size), rows.mean())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_low_precision_follows_the_float64_loop(dtype, temperature):
    v, v_prime = views(5, 6, dtype=dtype)
    wide, wide_prime = oracles.as_float64(v), oracles.as_float64(v_prime)
    loss, expected = info_nce(v, v_prime, temperature), oracles.nt_xent(wide, wide_prime, temperature).mean()
    assert loss.dtype == torch.float32
    assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for narrow, exact in ((v, wide), (v_prime, wide_prime)):
        assert narrow.grad.dtype == dtype
        assert_close(narrow.grad, exact.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_loss(dtype):
    v, v_prime = views(8, 16, dtype=torch.float32)
    expected = info_nce(v, v_prime, 0.01)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.mm(v, v.T).dtype == dtype  # autocast is on
        loss = info_nce(v, v_prime, 0.01)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


# ---- gradients ---------------------------------------------------------------------------------------------

CASES = {
    "odd N": lambda a, b: info_nce(a, b, 0.5),
    "upstream gradient other than 1": lambda a, b: -2.5 * info_nce(a, b, 0.5).square(),
    "a loss a row": lambda a, b: info_nce(a, b, 0.7, reduction="none"),
    "blocks": lambda a, b: info_nce(a, b, 0.5, block_size=2),
    "low temperature": lambda a, b: info_nce(a, b, 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    inputs = views(3, 4)
    assert gradcheck(CASES[case], inputs)
    assert gradgradcheck(CASES[case], inputs)


@pytest.mark.parametrize("shape", [(1, 3), (2, 3, 2)])
def test_gradients_of_other_shapes(shape):
    inputs = views(*shape)
    assert gradcheck(info_nce, inputs)
    assert gradgradcheck(info_nce, inputs)


def test_gradients_of_inputs_that_are_not_contiguous():
    transposed, strided = views(4, 3)[0], views(3, 8, seed=1)[0]

    def loss(a, b):
        a, b = a.T, b[:, ::2]
        assert not a.is_contiguous()
        assert not b.is_contiguous()
        return info_nce(a, b, 0.5)

    assert gradcheck(loss, (transposed, strided))
    assert gradgradcheck(loss, (transposed, strided))
    v, v_prime = transposed.detach().T, strided.detach()[:, ::2]
    assert torch.equal(info_nce(v, v_prime), info_nce(v.contiguous(), v_prime.contiguous()))


def test_blocks_change_neither_value_nor_gradient():
    results = []
    for block_size in (None, 1, 3, 14):
        v, v_prime = views(7, 5)
        loss = info_nce(v, v_prime, 0.2, block_size=block_size)
        results.append((loss, *torch.autograd.grad(loss, (v, v_prime))))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert_close(a, b)


def test_blocks_keep_no_matrix_of_all_pairs_for_the_backward_pass():
    def largest_saved(block_size):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            info_nce(*views(32, 4), block_size=block_size)
        return max(sizes)

    assert largest_saved(None) >= 64 * 64
    assert largest_saved(4) <= 64 * 4


def test_the_gradient_is_orthogonal_to_its_row():
    v, v_prime = views(6, 5)
    (grad,) = torch.autograd.grad(info_nce(v, v_prime, 0.1), v)
    assert grad.abs().max() > 1e-3
    assert (grad * v).sum(dim=1).abs().max() < 1e-14


# ---- rows whose norm is one entry, or of any size ------------------------------------------------------------


def one_hot(n, d, g):
    return torch.nn.functional.one_hot(torch.randint(d, (n,), generator=g), d).double()


def of_every_scale(n, d, g):
    return torch.randn(n, d, generator=g, dtype=F64) * 10.0 ** (
        60 * torch.rand(n, 1, generator=g, dtype=F64) - 30
    )


ROWS = {
    "one-hot": (one_hot, 4),
    "dominant": (lambda n, d, g: one_hot(n, d, g) + 1e-5 * torch.randn(n, d, generator=g, dtype=F64), 4),
    "one dimension": (lambda n, d, g: torch.randn(n, d, generator=g, dtype=F64), 1),
    "two dimensions": (lambda n, d, g: torch.randn(n, d, generator=g, dtype=F64), 2),
    "duplicates": (lambda n, d, g: torch.randn(3, d, generator=g, dtype=F64)[torch.arange(n) % 3], 4),
    "every scale": (of_every_scale, 4),
}


def pair_of_rows(which, n, dtype=torch.float32):
    make, d = ROWS[which]
    g = torch.Generator().manual_seed(n)
    return tuple(make(n, d, g).to(dtype).requires_grad_() for _ in range(2))


def assert_value_and_gradient(loss, inputs, temperature):
    """Against the loop in float64; gradients in units of what a row's direction receives."""
    wide = [oracles.as_float64(x) for x in inputs]
    expected = oracles.nt_xent_by_rows(*wide, temperature)
    found = loss(*inputs)
    assert_close(found, expected)
    n = len(inputs[0])
    grads = torch.autograd.grad(found.sum(), inputs)
    exact = torch.autograd.grad(expected.sum(), wide)
    for x, a, b in zip(wide, grads, exact, strict=True):
        length = x.detach().norm(dim=1, keepdim=True)
        # Terms of opposite sign cancel in a gradient: it is as exact as the largest of them.
        assert_close((a * length).to(a.dtype), b * length, factor=10 / temperature)
        assert a.shape == (n, x.shape[1])


def test_the_loop_over_rows_is_the_loop_over_pairs():
    v, v_prime = views(4, 3)
    assert_close(oracles.nt_xent_by_rows(v, v_prime, 0.3), oracles.nt_xent(v, v_prime, 0.3))


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("n", [255, 256, 257, 511, 512, 513])  # beside the sizes at which tiles take over
def test_value_and_gradient_of_unusual_rows(n, which):
    inputs = pair_of_rows(which, n)
    assert_value_and_gradient(lambda v, w: info_nce(v, w, 0.5, reduction="none"), inputs, 0.5)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_compiled_value_and_gradient_of_unusual_rows(d, fresh_compiler):
    compiled = torch.compile(lambda v, w: info_nce(v, w, 0.5, reduction="none"), fullgraph=True, dynamic=True)
    for which in [name for name, (_, width) in ROWS.items() if width == d]:
        for n in (256, 257, 512, 513):
            assert_value_and_gradient(compiled, pair_of_rows(which, n), 0.5)


INTEGER_ROWS = st.integers(1, 6).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda d: st.lists(
            st.lists(st.integers(-2, 2), min_size=d, max_size=d).filter(any), min_size=2 * n, max_size=2 * n
        )
    )
)


@given(INTEGER_ROWS, st.sampled_from([F64, torch.float32]), st.sampled_from([0.05, 0.5, 2.0]))
def test_ties_between_and_inside_rows(rows, dtype, temperature):
    """Small integers give rows alike, opposite, one-hot and of equal entries."""
    v, v_prime = (x.requires_grad_() for x in torch.tensor(rows, dtype=dtype).chunk(2))
    paths = {
        "all pairs": lambda v, w: info_nce(v, w, temperature, reduction="none"),
        "tiles": lambda v, w: info_nce(v, w, temperature, reduction="none", block_size=2),
    }
    for loss in paths.values():
        assert_value_and_gradient(loss, (v, v_prime), temperature)
    one_way = torch.func.grad(lambda v: paths["all pairs"](v, v_prime.detach()).sum())(v.detach())
    other_way = torch.autograd.grad(paths["tiles"](v, v_prime).sum(), v, create_graph=True)[0]
    assert_close(one_way, other_way.double(), factor=10 / temperature)


# ---- properties --------------------------------------------------------------------------------------------

SEEDS, SIZES = st.integers(0, 2**31), st.integers(1, 9)
TAUS = st.floats(0.01, 5.0)


@given(SEEDS, SIZES, SIZES, TAUS)
def test_permuting_the_images_permutes_the_losses(seed, n, d, temperature):
    v, v_prime = views(n, d, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    losses = info_nce(v, v_prime, temperature, reduction="none").view(2, n)
    permuted = info_nce(v[order], v_prime[order], temperature, reduction="none").view(2, n)
    assert_close(permuted, losses[:, order])


@given(SEEDS, SIZES, SIZES, TAUS)
def test_swapping_the_views_swaps_the_losses(seed, n, d, temperature):
    v, v_prime = views(n, d, seed=seed)
    losses = info_nce(v, v_prime, temperature, reduction="none").view(2, n)
    swapped = info_nce(v_prime, v, temperature, reduction="none").view(2, n)
    assert_close(swapped, losses.flip(0))


@given(SEEDS, SIZES, SIZES, TAUS, st.integers(-60, 60))
def test_scaling_a_row_changes_nothing(seed, n, d, temperature, power):
    v, v_prime = views(n, d, seed=seed)
    g = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (power * torch.rand(n, 1, generator=g, dtype=F64))
    assert_close(info_nce(v * scale, v_prime / scale, temperature), info_nce(v, v_prime, temperature))


@given(SEEDS, SIZES, SIZES, TAUS, st.sampled_from([torch.float32, torch.float64]))
def test_bounds(seed, n, d, temperature, dtype):
    """Cosines lie in [-1, 1], so the loss lies between its values for perfect and for opposite pairs."""
    v, v_prime = views(n, d, dtype=dtype, seed=seed)
    losses = info_nce(v, v_prime, temperature, reduction="none").double()
    slack = 1e-6 * 2 / temperature
    low = math.log1p((2 * n - 2) * math.exp(-2 / temperature))
    high = math.log1p((2 * n - 2) * math.exp(2 / temperature))
    assert (losses >= 0).all()
    assert (losses >= low - slack).all()
    assert (losses <= high + slack).all()


# ---- closed forms and extremes -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_parallel_rows_give_log_of_all_other_views(n, temperature):
    row = torch.randn(1, 5)
    scale = torch.rand(n, 1) + 0.5
    losses = info_nce(row * scale, row.expand(n, 5), temperature, reduction="none")
    assert_close(losses, torch.full((2 * n,), math.log(2 * n - 1)))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_orthogonal_images(temperature, sign):
    n = 4
    eye = torch.eye(n, dtype=F64)
    expected = math.log(math.exp(sign / temperature) + 2 * n - 2) - sign / temperature
    assert_close(info_nce(eye, sign * eye, temperature), expected)


def test_one_image_has_no_negatives():
    for d in (1, 7, 513):
        v, v_prime = views(1, d, dtype=torch.float32)
        loss = info_nce(v, v_prime, 0.01)
        loss.backward()
        assert loss.item() == 0.0
        assert v.grad.eq(0).all()
        assert v_prime.grad.eq(0).all()


EXTREMES = {
    "zero": lambda v, info: v * 0,
    "1e-30": lambda v, info: v * 1e-30,
    "1e30": lambda v, info: v.sign() * min(1e30, info.max),
    "largest": lambda v, info: v.sign() * info.max,
    "smallest normal": lambda v, info: v.sign() * info.tiny,
    "smallest float16": lambda v, info: v.sign() * 6e-8,
    "one hot": lambda v, info: torch.nn.functional.one_hot(v.argmax(-1), v.shape[-1]),
}


@pytest.mark.parametrize("dtype", [torch.float64, *LOW_DTYPES])
@pytest.mark.parametrize("which", EXTREMES)
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_extreme_rows_stay_finite(which, dtype, temperature):
    v, v_prime = (x.detach() for x in views(5, 4, dtype=dtype))
    row = EXTREMES[which](v.double(), torch.finfo(dtype)).to(dtype)
    # A lone extreme row beside its ordinary other view, the pair, and all pairs.
    for rows, both in ((slice(0, 1), False), (slice(0, 1), True), (slice(0, 5), True)):
        a, b = v.clone(), v_prime.clone()
        a[rows] = row[rows]
        if both:
            b[rows] = row[rows]
        a.requires_grad_()
        b.requires_grad_()
        losses = info_nce(a, b, temperature, reduction="none")
        assert losses.isfinite().all()
        assert (losses >= 0).all()
        losses.mean().backward()
        assert a.grad.isfinite().all()
        assert b.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30, 3e38])
def test_rows_of_any_size_are_normalised(scale):
    """The whole range down to the documented floor, where squares have long left float32."""
    v, v_prime = (
        x.detach().sign() * torch.tensor([1.0, 0.5, 0.25]) for x in views(4, 3, dtype=torch.float32)
    )
    assert_close(info_nce(v * scale, v_prime), info_nce(v, v_prime))


def test_a_zero_row_is_similar_to_nothing():
    v, v_prime = views(4, 3, dtype=torch.float32)
    v = v.detach().index_fill(0, torch.tensor([2]), 0.0)
    losses = info_nce(v, v_prime, 0.1, reduction="none")
    assert_close(losses[2], math.log(7))


def test_zero_rows_only():
    zeros = torch.zeros(3, 4, requires_grad=True)
    loss = info_nce(zeros, torch.zeros(3, 4))
    loss.backward()
    assert_close(loss, math.log(5))
    assert zeros.grad.isfinite().all()


def test_identical_rows_stay_finite_and_symmetric():
    v = torch.ones(4, 3).requires_grad_()
    info_nce(v, torch.ones(4, 3), 0.01).backward()
    assert v.grad.abs().max() < 1e-4


def test_the_gradient_of_a_tiny_half_precision_row_saturates():
    v = torch.randn(4, 8).half()
    v[0] = 6e-8 * v[0].sign()
    v.requires_grad_()
    (1e6 * info_nce(v, torch.randn(4, 8).half(), 0.01)).backward()
    assert v.grad.isfinite().all()
    assert v.grad[0].abs().max() == torch.finfo(torch.float16).max


def test_unit_rows_have_norm_one():
    rows = torch.randn(6, 9) * 10.0 ** torch.tensor([-30, -3, 0, 3, 20, 37])[:, None]
    assert_close(kernel.unit_rows(rows).norm(dim=1), torch.ones(6))


def test_devices_without_autocast():
    assert not torch.amp.is_autocast_available("meta")
    v = torch.ones(4, 3, device="meta", dtype=torch.bfloat16)
    loss = info_nce(v, v)
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "meta")


# ---- errors ------------------------------------------------------------------------------------------------

A = torch.ones(2, 3)
ERRORS = [
    ((A.tolist(), A), {}, TypeError, "v must be a tensor, got list"),
    ((A, None), {}, TypeError, "v_prime must be a tensor, got NoneType"),
    ((A.long(), A), {}, TypeError, "v must be a floating point tensor, got torch.int64; convert it"),
    ((A, A.bool()), {}, TypeError, "v_prime must be a floating point tensor"),
    ((A[0], A[0]), {}, ValueError, r"v must have shape \(N, D\) or \(K, N, D\), got \(3,\)"),
    ((A[None, None], A[None, None]), {}, ValueError, "flatten features to one row per image"),
    ((A, A[:1]), {}, ValueError, r"v and v_prime must have one shape, got \(2, 3\) and \(1, 3\)"),
    ((A[:0], A[:0]), {}, ValueError, r"v is empty, shape \(0, 3\); skip empty batches"),
    ((A[:, :0], A[:, :0]), {}, ValueError, "v is empty"),
    (
        (A, A.double()),
        {},
        TypeError,
        "v and v_prime must have one dtype, got torch.float32 and torch.float64",
    ),
    ((A, A.to("meta")), {}, ValueError, "v and v_prime must be on one device, got cpu and meta; move one"),
    ((A, A, 0.0), {}, ValueError, "temperature must be a finite number of at least 0.01, got 0.0"),
    ((A, A, 0.009), {}, ValueError, "temperature must be"),
    ((A, A, -1.0), {}, ValueError, "temperature must be"),
    ((A, A, math.nan), {}, ValueError, "temperature must be .* got nan"),
    ((A, A, math.inf), {}, ValueError, "temperature must be .* got inf"),
    ((A, A, "0.5"), {}, TypeError, "temperature must be .* got '0.5'"),
    ((A, A), {"reduction": "sum"}, ValueError, 'reduction must be "mean" or "none", got \'sum\''),
    ((A, A), {"block_size": 0}, ValueError, "block_size must be a positive int, got 0"),
    ((A, A), {"block_size": 2.0}, ValueError, "block_size must be a positive int, got 2.0"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), ERRORS)
def test_mistakes_are_named(args, options, error, message):
    with pytest.raises(error, match=message):
        info_nce(*args, **options)
