"""NT-Xent in tiles: equal to the plain formula, in little memory, one operator for autograd and the compiler."""

import math
import subprocess
import sys

import oracles
import pytest
import torch
from oracles import normal, views
from tolerances import assert_close

from stochastic_bottleneck import functional
from stochastic_bottleneck.kernels import nt_xent_dispatch, nt_xent_op, nt_xent_tiled
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent
from stochastic_bottleneck.kernels.nt_xent_op import blockwise_nt_xent

F64, F32 = torch.float64, torch.float32
SMALL_TILE = 64  # rows, in every dtype


def clustered(n, d, dtype):
    """Views as after training: similar pairs, images in a few clusters. Shape: (N, D) each."""
    image = normal(4, d, seed=1)[torch.arange(n) % 4] + 0.3 * normal(n, d, seed=2)
    return tuple((image + 0.1 * normal(n, d, seed=s)).to(dtype).requires_grad_() for s in (3, 4))


def tiled(v, v_prime, temperature=0.3, block_size=None):
    return blockwise_nt_xent(v, v_prime, temperature, block_size)


def plain(v, v_prime, temperature=0.3):
    return plain_nt_xent(v, v_prime, temperature)


def loss_and_gradients(loss, inputs, upstream):
    losses = loss(*inputs)
    return [losses, *torch.autograd.grad(losses, inputs, upstream.to(losses.dtype))]


def assert_all_close(found, expected, factor=1.0):
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b.double(), factor=factor)


@pytest.fixture(params=["cache all", "cache some", "cache none"])
def small_tiles(request, monkeypatch):
    """Tiles so small that little batches have many, with exponentials cached, recomputed, or both."""
    monkeypatch.setattr(nt_xent_tiled, "TILE_BYTES", {"cpu": SMALL_TILE**2 * 8})
    size = {"cache all": 1 << 24, "cache some": 3 * SMALL_TILE**2 * 8, "cache none": 0}[request.param]
    monkeypatch.setattr(nt_xent_tiled, "CACHE_BYTES", size)


# ---- values and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32, torch.float16])
@pytest.mark.parametrize("n", [1, 32, 65, 129])
@pytest.mark.usefixtures("small_tiles")
def test_equals_the_plain_formula(n, dtype):
    upstream = normal(2 * n, seed=5)  # another gradient for each row, of either sign
    for temperature in (0.01, 0.07, 0.5):
        inputs = clustered(n, 9, dtype)
        exact = [oracles.as_float64(x) for x in inputs]
        found = loss_and_gradients(lambda *x: tiled(*x, temperature), inputs, upstream)  # noqa: B023
        expected = loss_and_gradients(lambda *x: plain(*x, temperature), exact, upstream)  # noqa: B023
        # float32 logits of 100 have an error of 1e-5, and so have their exponentials.
        assert_all_close(found, expected, factor=10 if temperature < 0.05 else 1)


@pytest.mark.usefixtures("small_tiles")
def test_independent_losses():
    inputs = views(3, 70, 5)
    upstream = normal(3, 140, seed=5)
    found, expected = (loss_and_gradients(loss, inputs, upstream) for loss in (tiled, plain))
    assert found[0].shape == (3, 140)
    assert_all_close(found, expected)


@pytest.mark.parametrize("block_size", [1, 7, 1000])
def test_block_size_bounds_the_tiles(block_size, monkeypatch):
    shapes = set()
    compute = nt_xent_tiled.TiledPairs._exponentials

    def recorded(*arguments):
        result = compute(*arguments)
        shapes.add(tuple(result.shape))
        return result

    monkeypatch.setattr(nt_xent_tiled.TiledPairs, "_exponentials", recorded)
    inputs = views(20, 4)
    losses = tiled(*inputs, block_size=block_size)
    losses.sum().backward()
    assert max(max(shape) for shape in shapes) == min(block_size, 40)
    assert_close(losses, plain(*inputs))


def test_small_losses_keep_their_relative_accuracy():
    """If all negatives are far away, log(1 + exp(x)) must not round to 0."""
    eye = torch.eye(40)
    expected = math.log1p(78 * math.exp(-25))
    assert expected < 1e-8
    losses = tiled(eye, eye, 0.04).double()
    assert torch.allclose(losses, torch.full((80,), expected, dtype=F64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0.01, 0.0249, 0.025])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_and_opposite_rows_at_the_limits_of_the_exponentials(temperature, sign):
    """All cosines are 1 or -1: the exponentials are as large and as small as they get."""
    n, row = 600, torch.randn(1, 8)
    inputs = [(s * row).expand(n, 8).clone().requires_grad_() for s in (1.0, sign)]
    losses = tiled(*inputs, temperature)
    n_close, n_far = (n - 1, n) if sign < 0 else (2 * n - 1, 0)  # at cosine 1 and -1, with the positive
    log_sum = 1 / temperature + math.log(n_close + n_far * math.exp(-2 / temperature))
    assert_close(losses, torch.full((2 * n,), log_sum - sign / temperature), factor=10)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(losses.mean(), inputs))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_upstream_gradients_of_any_magnitude(scale):
    inputs = views(200, 8, dtype=F32)
    upstream = normal(400, seed=5) * scale
    found = loss_and_gradients(lambda *x: tiled(*x, 0.025), inputs, upstream)
    exact = [oracles.as_float64(x) for x in inputs]
    expected = loss_and_gradients(lambda *x: plain(*x, 0.025), exact, upstream)
    assert_all_close([x / scale for x in found[1:]], [x / scale for x in expected[1:]], factor=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32])
@pytest.mark.parametrize("name", ["zero", "tiny", "huge", "one zero row"])
def test_extreme_rows_stay_finite(name, dtype, bfloat16_products):
    v, v_prime = (x.detach() for x in views(600, 8, dtype=dtype))
    if name == "one zero row":
        v[3] = 0
    else:
        info = torch.finfo(dtype)
        v = v.sign() * {"zero": 0.0, "tiny": info.tiny, "huge": info.max}[name]
    inputs = v.requires_grad_(), v_prime.requires_grad_()
    losses = functional.info_nce(*inputs, 0.1, reduction="none")
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(losses.mean(), inputs))


# ---- bfloat16 products -------------------------------------------------------------------------------------


@pytest.fixture
def bfloat16_products(monkeypatch):
    """Multiply in bfloat16, as on hardware that is faster at it; every processor can."""
    monkeypatch.setattr(nt_xent_dispatch, "has_fast_bfloat16", lambda device: True)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
@pytest.mark.usefixtures("bfloat16_products")
def test_uninitialized_memory_is_not_read(dtype):
    """torch fills new memory with NaN here; a matrix unit may read the padding of a tile, which must not be NaN."""
    inputs = views(600, 64, dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        results = loss_and_gradients(tiled, inputs, torch.ones(1200))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in results)


BF16_INPUTS = {
    "random": lambda n, d, dtype: views(n, d, dtype=dtype),
    "clusters": clustered,
    "equal": lambda n, d, dtype: tuple(torch.ones(n, d, dtype=dtype).requires_grad_() for _ in range(2)),
}


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("name", BF16_INPUTS)
@pytest.mark.usefixtures("bfloat16_products")
def test_the_error_of_bfloat16_products_stays_within_the_documented_bound(name, temperature):
    n = 600
    inputs = BF16_INPUTS[name](n, 64, torch.bfloat16)
    exact = [oracles.as_float64(x) for x in inputs]
    losses, expected = tiled(*inputs, temperature), plain(*exact, temperature)
    bound = 2**-9 * (3 / temperature + 1)
    assert losses.dtype == F32
    assert (losses - expected).abs().max() <= bound
    assert (losses - expected).mean().abs() <= bound / 5  # averaged over rows, rounding errors nearly cancel
    losses.mean().backward()
    expected.mean().backward()
    for x, y in zip(inputs, exact, strict=True):
        assert x.grad.dtype == torch.bfloat16
        scale = max(y.grad.norm().item(), 1e-3)  # for equal rows the gradient is 0
        assert (x.grad.double() - y.grad).norm() <= 0.03 * scale


@pytest.mark.parametrize(
    ("n", "temperature", "dtype", "device", "is_fast", "expected"),
    [
        (512, 0.05, torch.bfloat16, "cpu", True, torch.bfloat16),
        (512, 0.05, torch.bfloat16, "cpu", False, F32),  # the hardware is not faster
        (512, 0.05, torch.bfloat16, "mps", True, F32),
        (511, 0.05, torch.bfloat16, "cpu", True, F32),
        (512, 0.049, torch.bfloat16, "cpu", True, F32),
        (512, 0.05, torch.float16, "cpu", True, F32),
    ],
)
def test_dtype_of_products(n, temperature, dtype, device, is_fast, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": is_fast}, raising=False)
    precision = nt_xent_dispatch.choose_precision(dtype, 2 * n, temperature, torch.device(device))
    assert precision == (expected, expected, F32)
    if expected == F32 and device == "cpu":
        inputs = views(n, 16, dtype=dtype)
        exact = plain(*(x.double() for x in inputs), temperature)
        assert_close(tiled(*inputs, temperature), exact, factor=3)


# ---- memory ------------------------------------------------------------------------------------------------


def saved_bytes(n, block_size=None):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        tiled(*views(n, 4, dtype=F32), block_size=block_size)
    return sum(sizes)


def test_memory_saved_for_backward_grows_linearly(monkeypatch):
    monkeypatch.setattr(nt_xent_tiled, "CACHE_BYTES", 1 << 16)
    inputs_and_unit_rows = 2 * 2 * 500 * 4 * 4
    assert inputs_and_unit_rows <= saved_bytes(500) <= 3 * inputs_and_unit_rows + (1 << 16)
    assert saved_bytes(1000) - saved_bytes(500) == pytest.approx(saved_bytes(1500) - saved_bytes(1000))
    assert saved_bytes(500, block_size=64) == saved_bytes(500) - (1 << 16)


def test_a_second_backward_pass_equals_the_first():
    inputs = views(200, 8)
    loss = tiled(*inputs).mean()
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
print(step(4096))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_peak_memory():
    """In MiB; the matrix of all pairs alone would take 256."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 4 <= float(run.stdout) <= 64


# ---- autograd and the compiler -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_operators_pass_torchs_opcheck(dtype):
    """Schema, aliasing, and shapes of fake tensors."""
    checks = ("test_schema", "test_faketensor")
    arguments = (*(x.detach() for x in views(6, 4, dtype=dtype)), 0.5, None, True)
    torch.library.opcheck(nt_xent_op._nt_xent_forward, arguments, test_utils=checks)
    losses, *saved = nt_xent_op._nt_xent_forward(*arguments)
    arguments = (torch.ones_like(losses), *saved, 0.5, None, dtype)
    torch.library.opcheck(nt_xent_op._nt_xent_backward, arguments, test_utils=checks)


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("both", [True, False])
def test_forward_mode_derivatives(both, leading, monkeypatch):
    monkeypatch.setattr(nt_xent_op, "JVP_BLOCK", 250)
    v, v_prime = (x.detach() for x in views(*leading, 300, 4))
    tangents = tuple(x.detach() for x in views(*leading, 300, 4, seed=1))[: 1 + both]
    inputs = (v, v_prime)[: 1 + both]
    found, expected = (
        torch.func.jvp(lambda x, y=v_prime, loss=loss: loss(x, y), inputs, tangents) for loss in (tiled, plain)
    )
    assert_all_close(found, expected)


SECOND = {
    "forward over reverse": lambda f, x, t: torch.func.jvp(torch.func.grad(f), (x,), (t,))[1],
    "reverse over forward": lambda f, x, t: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (t,))[1])(x),
    "reverse over reverse": lambda f, x, t: torch.func.vjp(torch.func.grad(f), x)[1](t)[0],
    "create_graph": lambda f, x, t: gradient_penalty(f, x.clone().requires_grad_(), t),
}


def gradient_penalty(f, x, t):
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad((first * t).sum(), x)[0]


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name):
    """One view is computed from the other, as by a head that sees both."""
    x, w = (x.detach() for x in views(300, 3))
    t = torch.linspace(-1, 1, 900, dtype=F64).view(300, 3)
    found, expected = (
        SECOND[name](lambda v, loss=loss: loss(v, w + 0.5 * v.roll(1, 0)).mean(), x, t) for loss in (tiled, plain)
    )
    assert expected.abs().max() > 1e-6
    assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms():
    v, v_prime = (x.detach() for x in views(3, 300, 4))
    losses = torch.vmap(lambda x, y: functional.info_nce(x, y, 0.3, reduction="none"))(v, v_prime)
    assert_close(losses, plain(v, v_prime))
    leaf = v.clone().requires_grad_()
    torch.vmap(lambda x, y: functional.info_nce(x, y, 0.3))(leaf, v_prime).sum().backward()
    assert_close(leaf.grad, torch.func.grad(lambda x: plain(x, v_prime).mean(-1).sum())(v))
    grad = torch.func.grad(lambda x: functional.info_nce(x, v_prime[0], 0.3))(v[0])
    assert_close(grad, torch.func.grad(lambda x: plain(x, v_prime[0]).mean())(v[0]))
