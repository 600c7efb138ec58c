"""NT-Xent in tiles: exact to the plain formula, in little memory, one operator to autograd and the compiler."""

import math
import subprocess
import sys

import oracles
import pytest
import torch
from tolerances import assert_close

from stochastic_bottleneck import InfoNCELoss, functional
from stochastic_bottleneck._ops import info_nce_op as op
from stochastic_bottleneck._ops import tiles
from stochastic_bottleneck._ops.info_nce import plain

F64 = torch.float64
SMALL_TILE = 64  # rows, of every dtype


def views(*shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=g, dtype=F64).to(dtype).requires_grad_() for _ in range(2))


def clustered(n, d, dtype=torch.float32):
    """Views as after training: pairs alike, images in a few groups. Shape: (N, D) each."""
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(4, d, generator=g, dtype=F64)[torch.arange(n) % 4]
    image = centres + 0.3 * torch.randn(n, d, generator=g, dtype=F64)
    return tuple(
        (image + 0.1 * torch.randn(n, d, generator=g, dtype=F64)).to(dtype).requires_grad_() for _ in range(2)
    )


def in_tiles(v, v_prime, temperature, block_size=None):
    return op.info_nce(v, v_prime, temperature, block_size)


def exact(v, v_prime, temperature):
    """The plain formula in float64 on the same values."""
    return plain(v, v_prime, temperature)


def loss_and_gradients(loss, inputs, upstream):
    losses = loss(*inputs)
    return [losses, *torch.autograd.grad(losses, inputs, upstream.to(losses.dtype))]


def upstream_of(n):
    """A gradient of its own for every row, of either sign."""
    return torch.randn(n, generator=torch.Generator().manual_seed(5), dtype=F64)


@pytest.fixture(params=["keeps all", "keeps some", "keeps none"])
def small_tiles(request, monkeypatch):
    """Tiles so small that little batches have many, their exponentials kept, or computed again, or both."""
    monkeypatch.setattr(tiles, "TILE_BYTES", {"cpu": SMALL_TILE**2 * 8})
    budget = {"keeps all": 1 << 24, "keeps some": 3 * SMALL_TILE**2 * 8, "keeps none": 0}[request.param]
    monkeypatch.setattr(tiles, "KEPT_BYTES", budget)


# ---- values and gradients ----------------------------------------------------------------------------------

SIZES = [1, 2, 31, 32, 65, 129]


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("small_tiles")
def test_equals_the_plain_formula(n, dtype):
    for temperature in (0.01, 0.07, 0.5):
        inputs = clustered(n, 9, dtype)
        wide = [oracles.as_float64(x) for x in inputs]
        found = loss_and_gradients(lambda *x: in_tiles(*x, temperature), inputs, upstream_of(2 * n))  # noqa: B023
        expected = loss_and_gradients(lambda *x: exact(*x, temperature), wide, upstream_of(2 * n))  # noqa: B023
        for a, b in zip(found, expected, strict=True):
            # float32 logits of 100 are off by 1e-5, and so are their exponentials.
            assert_close(a, b, factor=10 if temperature < 0.05 else 1)


@pytest.mark.usefixtures("small_tiles")
def test_independent_losses():
    inputs = views(3, 70, 5, dtype=F64)
    upstream = torch.stack([k * upstream_of(140) for k in (1, 2, 3)])
    found = loss_and_gradients(lambda *x: in_tiles(*x, 0.3), inputs, upstream)
    expected = loss_and_gradients(lambda *x: exact(*x, 0.3), inputs, upstream)
    assert found[0].shape == (3, 140)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_block_size_bounds_the_tiles(block_size, monkeypatch):
    shapes = set()
    original = tiles.Pairs._exponentials
    monkeypatch.setattr(
        tiles.Pairs, "_exponentials", lambda *a: shapes.add(tuple((out := original(*a)).shape)) or out
    )
    inputs = views(20, 4, dtype=F64)
    losses = in_tiles(*inputs, 0.5, block_size=block_size)
    losses.sum().backward()
    assert max(max(shape) for shape in shapes) == min(block_size, 40)
    assert_close(losses, exact(*inputs, 0.5))


def test_small_losses_keep_their_relative_accuracy():
    """Where every negative is far away, log(1 + exp(x)) must not round to 0."""
    eye = torch.eye(40)
    losses = in_tiles(eye, eye, 0.04)
    expected = math.log1p(78 * math.exp(-25))
    assert torch.allclose(losses.double(), torch.full((80,), expected, dtype=F64), rtol=1e-5, atol=0)
    assert expected < 1e-8


@pytest.mark.parametrize("temperature", [0.01, 0.0249, 0.025, 0.05])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_alike_and_opposite_rows_at_the_limits_of_the_exponentials(temperature, sign):
    """All cosines at an end of their range: the exponentials are as large and as small as they get."""
    n = 600
    row = torch.randn(1, 8)
    v, v_prime = row.expand(n, 8).clone().requires_grad_(), (sign * row).expand(n, 8).clone().requires_grad_()
    losses = in_tiles(v, v_prime, temperature)
    near, far = (n - 1, n) if sign < 0 else (2 * n - 1, 0)  # at cosine 1, and at -1, the positive included
    positive = sign / temperature
    expected = 1 / temperature + math.log(near + far * math.exp(-2 / temperature)) - positive
    assert_close(losses, torch.full((2 * n,), expected), factor=10)
    losses.mean().backward()
    assert v.grad.isfinite().all()
    assert v_prime.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_upstream_gradients_of_any_size(scale):
    inputs = views(200, 8)
    found = loss_and_gradients(lambda *x: in_tiles(*x, 0.025), inputs, upstream_of(400) * scale)
    wide = [oracles.as_float64(x) for x in inputs]
    expected = loss_and_gradients(lambda *x: exact(*x, 0.025), wide, upstream_of(400) * scale)
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert_close(a / scale, b / scale, factor=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("which", ["zero", "tiny", "huge", "one zero row"])
def test_extreme_rows_stay_finite(which, dtype, bfloat16_products):
    v, v_prime = (x.detach() for x in views(600, 8, dtype=dtype))
    info = torch.finfo(dtype)
    if which == "one zero row":
        v[3] = 0
    else:
        v = v.sign() * {"zero": 0.0, "tiny": info.tiny, "huge": info.max}[which]
    v.requires_grad_()
    v_prime.requires_grad_()
    losses = functional.info_nce(v, v_prime, 0.1, reduction="none")
    losses.mean().backward()
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert v.grad.isfinite().all()
    assert v_prime.grad.isfinite().all()


# ---- bfloat16 products -------------------------------------------------------------------------------------


@pytest.fixture
def bfloat16_products(monkeypatch):
    """As on hardware that multiplies bfloat16 faster; every processor can multiply it."""
    monkeypatch.setattr(op, "_multiplies_bfloat16", lambda device: True)


def alike(n, d, dtype):
    return tuple(torch.ones(n, d, dtype=dtype).requires_grad_() for _ in range(2))


BF16_INPUTS = {"noise": lambda n, d, dtype: views(n, d, dtype=dtype), "clusters": clustered, "alike": alike}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("bfloat16_products")
def test_nothing_is_read_that_was_not_written(dtype):
    """torch fills new memory with NaN; where a matrix unit reads a tile's padding, that may not be NaN."""
    inputs = views(600, 64, dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        losses = in_tiles(*inputs, 0.1)
        losses.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("which", BF16_INPUTS)
@pytest.mark.usefixtures("bfloat16_products")
def test_bfloat16_stays_within_its_bound(which, temperature):
    n = 600
    inputs = BF16_INPUTS[which](n, 64, torch.bfloat16)
    wide = [oracles.as_float64(x) for x in inputs]
    assert op.precision(torch.bfloat16, 2 * n, temperature, torch.device("cpu")).products == torch.bfloat16
    losses = in_tiles(*inputs, temperature)
    expected = exact(*wide, temperature)
    worst = 2**-9 * (3 / temperature + 1)
    assert losses.dtype == torch.float32
    assert (losses - expected).abs().max() <= worst
    # On average over rows the roundings all but cancel.
    assert (losses - expected).mean().abs() <= worst / 5
    losses.mean().backward()
    expected.mean().backward()
    for x, y in zip(inputs, wide, strict=True):
        assert x.grad.dtype == torch.bfloat16
        scale = max(y.grad.norm().item(), 1e-3)  # of rows all alike, the gradient is 0
        assert (x.grad.double() - y.grad).norm() <= 0.03 * scale


@pytest.mark.parametrize(
    ("n", "temperature", "dtype"),
    [(511, 0.5, torch.bfloat16), (512, 0.049, torch.bfloat16), (512, 0.5, torch.float16)],
)
@pytest.mark.usefixtures("bfloat16_products")
def test_other_inputs_are_multiplied_in_float32(n, temperature, dtype):
    precision = op.precision(dtype, 2 * n, temperature, torch.device("cpu"))
    assert precision == (torch.float32, torch.float32, torch.float32)
    inputs = views(n, 16, dtype=dtype)
    assert_close(in_tiles(*inputs, temperature), exact(*(x.double() for x in inputs), temperature), factor=3)


def test_bfloat16_is_multiplied_in_float32_where_the_hardware_is_not_faster(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert op.precision(torch.bfloat16, 4096, 0.5, torch.device("cpu")).products == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert op.precision(torch.bfloat16, 4096, 0.5, torch.device("cpu")).products == torch.bfloat16
    assert op.precision(torch.bfloat16, 4096, 0.5, torch.device("mps")).products == torch.float32


# ---- memory ------------------------------------------------------------------------------------------------


def saved_bytes(n, block_size=None):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        in_tiles(*views(n, 4), 0.5, block_size=block_size)
    return sum(sizes)


def test_what_is_kept_for_the_backward_pass_grows_linearly(monkeypatch):
    monkeypatch.setattr(tiles, "KEPT_BYTES", 1 << 16)
    least = 2 * 2 * 500 * 4 * 4  # the inputs and the unit rows
    assert least <= saved_bytes(500) <= 3 * least + (1 << 16)
    assert saved_bytes(1000) - saved_bytes(500) == pytest.approx(saved_bytes(1500) - saved_bytes(1000))
    assert saved_bytes(500, block_size=64) == saved_bytes(500) - (1 << 16)


def test_nothing_is_kept_without_a_gradient():
    v, v_prime = (x.detach() for x in views(200, 4))
    for keep, size in ((True, 1), (False, 0)):
        assert (op._forward(v, v_prime, 0.5, None, keep)[-1].numel() > 0) == bool(size)
    with torch.no_grad():
        assert not in_tiles(*views(200, 4), 0.5).requires_grad


def test_a_second_backward_pass_finds_what_the_first_one_found():
    inputs = views(200, 8)
    loss = in_tiles(*inputs, 0.5).mean()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, inputs), strict=True):
        assert torch.equal(a, b)


PEAK = """
import torch
from stochastic_bottleneck import InfoNCELoss

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def step(n):
    v, v_prime = (torch.randn(n, 128, requires_grad=True) for _ in range(2))
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    InfoNCELoss()(v, v_prime).backward()
    return status("VmHWM") - before

step(256)
print(step({n}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from Linux")
@pytest.mark.parametrize(("n", "most"), [(4096, 64), (16384, 250)])
def test_peak_memory(n, most):
    """In MB; the matrix of all pairs alone would take 256 and 4096."""
    code = PEAK.replace("{n}", str(n))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 4 <= float(run.stdout) <= most


# ---- the choice by size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "options", "expected"),
    [(256, {}, False), (257, {}, True), (3, {"block_size": 2}, True)],
)
def test_small_batches_take_the_plain_formula(n, options, expected, monkeypatch):
    calls = []
    original = op.info_nce
    monkeypatch.setattr(op, "info_nce", lambda *a: calls.append(1) or original(*a))
    v, v_prime = views(n, 4)
    assert_close(
        functional.info_nce(v, v_prime, 0.5, **options), exact(v.double(), v_prime.double(), 0.5).mean()
    )
    assert bool(calls) == expected


# ---- autograd and the compiler -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_rules(dtype):
    """Schema, no aliases, fake tensors of the same shapes."""
    arguments = (*(x.detach() for x in views(6, 4, dtype=dtype)), 0.5, None, True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(op._forward, arguments, test_utils=checks)
    losses, *saved = op._forward(*arguments)
    arguments = (torch.ones_like(losses), *saved, 0.5, None, dtype)
    torch.library.opcheck(op._backward, arguments, test_utils=checks)


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("both", [True, False])
def test_forward_mode_derivatives(both, leading, monkeypatch):
    monkeypatch.setattr(op, "ROWS_OF_JVP", 250)
    v, v_prime = (x.detach() for x in views(*leading, 300, 4, dtype=F64))
    tangents = views(*leading, 300, 4, dtype=F64, seed=1)
    t, t_prime = tangents[0].detach(), tangents[1].detach()
    inputs, along = ((v, v_prime), (t, t_prime)) if both else ((v,), (t,))

    def tangent(loss):
        return torch.func.jvp(lambda x, y=v_prime: loss(x, y), inputs, along)

    for a, b in zip(
        tangent(lambda x, y: in_tiles(x, y, 0.3)), tangent(lambda x, y: exact(x, y, 0.3)), strict=True
    ):
        assert_close(a, b)


SECOND = {
    "forward over reverse": lambda f, x, t: torch.func.jvp(torch.func.grad(f), (x,), (t,))[1],
    "reverse over forward": lambda f, x, t: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (t,))[1])(x),
    "reverse over reverse": lambda f, x, t: torch.func.vjp(torch.func.grad(f), x)[1](t)[0],
    "create_graph": lambda f, x, t: gradient_penalty(f, x.clone().requires_grad_(), t),
}


def gradient_penalty(f, x, t):
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad((first * t).sum(), x)[0]


@pytest.mark.parametrize("way", SECOND)
def test_second_derivatives(way):
    """One view is made from the other, as by a head that sees both."""
    x, w = (x.detach() for x in views(300, 3, dtype=F64))
    t = torch.linspace(-1, 1, 900, dtype=F64).view(300, 3)
    found, expected = (
        SECOND[way](lambda v: loss(v, w + 0.5 * v.roll(1, 0), 0.3).mean(), x, t)  # noqa: B023
        for loss in (in_tiles, exact)
    )
    assert expected.abs().max() > 1e-6
    assert_close(found, expected)


def test_a_first_gradient_to_be_differentiated_again_of_views_that_share_a_history():
    x = views(300, 3, dtype=F64)[0]
    found, expected = (
        torch.autograd.grad(loss(x, x * 2 + x.roll(1, 0), 0.3).mean(), x, create_graph=True)[0]
        for loss in (in_tiles, exact)
    )
    assert_close(found, expected)


def test_functional_gradients():
    v, v_prime = (x.detach() for x in views(300, 4, dtype=F64))
    found = torch.func.grad(lambda x: functional.info_nce(x, v_prime, 0.5))(v)
    assert_close(found, torch.func.grad(lambda x: exact(x, v_prime, 0.5).mean())(v))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    v, v_prime = (x.detach() for x in views(3, 300, 4, dtype=F64))
    found = torch.vmap(lambda x, y: functional.info_nce(x, y, 0.5, reduction="none"))(v, v_prime)
    assert_close(found, exact(v, v_prime, 0.5))


def test_compiles_whole_with_inductor_and_agrees(fresh_compiler):
    loss = InfoNCELoss(0.2)
    compiled = torch.compile(loss, fullgraph=True)
    for n in (600, 700):
        inputs = views(n, 8)
        eager, fast = (loss_and_gradients(f, inputs, torch.tensor(2.0)) for f in (loss, compiled))
        for a, b in zip(fast, eager, strict=True):
            assert_close(a, b.double())


def test_one_graph_serves_the_common_batch_sizes_and_one_those_above(graphs):
    compiled = torch.compile(InfoNCELoss(), fullgraph=True, backend=graphs.backend)
    for n in (32, 48):
        compiled(*views(n, 4))
    seen = len(graphs)
    assert seen <= 2
    for n in (64, 127, 128, 256, 511, 512):
        compiled(*views(n, 4))
    assert len(graphs) == seen
    for n in (513, 600, 700):
        compiled(*views(n, 4))
    assert len(graphs) == seen + 1
