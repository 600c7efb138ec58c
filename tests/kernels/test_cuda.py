"""The CUDA path on a real device: values, synchronization, compiled kernels, CUDA graphs and memory."""

import contextlib
import copy
import math
import warnings

import oracles
import pytest
import torch
from oracles import normal
from tolerances import DTYPES, assert_close
from training_steps import BOTTLENECKS, STEPS, WRAPPERS

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior, InfoNCELoss, codes, functional
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
pytestmark = [pytest.mark.gpu, needs_gpu]
F64 = torch.float64
DEVICE = "cuda"
DETERMINISTIC = ["wrapped bern, eval", "wrapped gauss", "loss in tiles", "two losses", "gaussian_kl"]
"""Steps without noise in evaluation mode."""


@contextlib.contextmanager
def no_synchronization():
    """Raise if the host synchronizes with the device."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_step(name, n=32):
    """A step on the device and a batch."""
    torch.manual_seed(0)
    step = STEPS[name]().to(DEVICE)
    return step, [x.detach().to(DEVICE).requires_grad_() for x in step.inputs(n)]


def train_once(step, inputs):
    for leaf in (*inputs, *step.parameters()):
        leaf.grad = None
    loss = step(*inputs)
    loss.backward()
    return loss


def test_synchronization_is_detected():
    with no_synchronization(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device=DEVICE).item()


# ---- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_no_step_synchronizes_and_all_gradients_are_finite(name):
    step, inputs = make_step(name)
    train_once(step, inputs)  # loading libraries may synchronize
    with no_synchronization():
        loss = train_once(step, inputs)
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*inputs, *step.parameters()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width"), [(1, 32), (40, 32), (700, 32), (3000, 32), (700, 129), (2500, 768)])
def test_the_loss_is_exact(n, width, dtype):
    """The matrix of all pairs, one tile, and several; rows in registers, and in parts."""
    views, upstream = [normal(n, width, dtype=dtype, seed=s) for s in (0, 1)], normal(2 * n, seed=2)
    exact = [oracles.as_float64(x).to(DEVICE).requires_grad_() for x in views]
    expected = plain_nt_xent(*exact, 0.2)
    wanted = torch.autograd.grad(expected, exact, upstream.to(DEVICE))
    leaves = [x.to(DEVICE).requires_grad_() for x in views]
    losses = functional.info_nce(*leaves, temperature=0.2, reduction="none")
    grads = torch.autograd.grad(losses, leaves, upstream.to(DEVICE, losses.dtype))
    # The documented errors of bfloat16 and TF32 products.
    if dtype in (torch.bfloat16, torch.float16) and n >= 512:
        bound = 2**-9 * ((3 if dtype == torch.bfloat16 else 1) / 0.2 + 1)
        assert (losses.double() - expected).abs().max() < bound
        for grad, other in zip(grads, wanted, strict=True):
            assert (grad.double() - other).norm() < bound * other.norm()
        return
    assert_close(losses, expected)
    for grad, other in zip(grads, wanted, strict=True):
        assert_close(grad, other, factor=2)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_samples_and_gradients_equal_those_of_the_cpu(kind):
    """For the same noise."""
    a, b, noise = (normal(64, 48, seed=s) for s in range(3))

    def values(device, dtype):
        leaves = [x.to(device, dtype).requires_grad_() for x in ((a,) if kind == "bern" else (a, b))]
        given = noise.to(device, dtype)
        if kind == "bern":
            z, kl = functional.relaxed_bernoulli_rsample_kl(*leaves, 0.5, noise=given)
        else:
            z, kl = functional.gaussian_rsample_kl(*leaves, noise=given)
        return [z, kl, *torch.autograd.grad(z.square().sum() + kl.sum(), leaves)]

    for found, expected in zip(values(DEVICE, torch.float32), values("cpu", F64), strict=True):
        assert_close(found.cpu(), expected, factor=2)


@pytest.mark.parametrize("compiled", [False, True])
def test_samples_follow_their_law(compiled):
    logits, n = 0.7, 200_000
    x = torch.full((n // 100, 100), logits, device=DEVICE)
    relaxed, gaussian = functional.relaxed_bernoulli_rsample, functional.gaussian_rsample
    if compiled:
        relaxed, gaussian = (torch.compile(f, fullgraph=True) for f in (relaxed, gaussian))
    z = relaxed(x, 0.5).flatten().double().cpu()
    limit = oracles.kolmogorov_smirnov_limit(n)
    distance = oracles.kolmogorov_smirnov(z, lambda t: (0.5 * t.logit() - logits).sigmoid())
    assert distance < limit
    e = gaussian(torch.zeros_like(x), torch.zeros_like(x)).flatten().double().cpu()
    assert oracles.kolmogorov_smirnov(e, torch.special.ndtr) < limit


def test_codes_equal_those_of_the_cpu():
    bits = torch.rand(50, 37, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = codes.pack_bits(bits.to(DEVICE))
    assert torch.equal(packed.cpu(), codes.pack_bits(bits))
    assert torch.equal(codes.unpack_bits(packed, 37).cpu(), codes.unpack_bits(packed.cpu(), 37))
    assert torch.equal(codes.hamming_distance(packed, packed).cpu(), codes.hamming_distance(packed.cpu(), packed.cpu()))


# ---- compiled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_compiled_steps_agree_with_uncompiled_ones(name):
    torch._dynamo.reset()
    step, inputs = make_step(name)
    step.eval()
    compiled = torch.compile(copy.deepcopy(step), fullgraph=True)
    for n in (32, 48, 512):
        values = [torch.randn(n, *x.shape[1:], device=DEVICE) for x in inputs]
        batch, same = ([x.clone().requires_grad_() for x in values] for _ in range(2))
        assert_close(train_once(compiled, batch), train_once(step, same), factor=20)
        for x, y in zip(batch, same, strict=True):
            assert_close(x.grad, y.grad, factor=20)


@pytest.mark.parametrize("name", ["wrapped bern", "wrapped gauss"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_lowers_the_loss(name, mode):
    torch._dynamo.reset()
    step, inputs = make_step(name, 64)
    inputs = [x.detach() for x in inputs]
    compiled = torch.compile(step, fullgraph=True, mode=mode)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = compiled(*inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_sample_and_divergence_compile_to_one_kernel_forward_and_one_backward(kind):
    from torch._inductor import metrics

    def step(a, b):
        posterior = BernoulliPosterior(a) if kind == "bern" else GaussianPosterior(a, b)
        return posterior.rsample(), posterior.kl()

    torch._dynamo.reset()
    metrics.reset()
    inputs = [torch.randn(4096, 2048, device=DEVICE).requires_grad_() for _ in range(2)]
    torch.autograd.backward([x.sum() for x in torch.compile(step, fullgraph=True)(*inputs)])
    assert metrics.generated_kernel_count == 2


# ---- CUDA graphs -------------------------------------------------------------------------------------------


def capture(work):
    """A CUDA graph of a function, and its result, which every replay overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


@pytest.mark.parametrize("name", [*WRAPPERS, *BOTTLENECKS])
def test_every_replay_of_a_captured_step_has_new_noise(name):
    step, inputs = make_step(name)

    def work():
        loss = step(*inputs)
        loss.backward()
        return loss.detach()

    graph, loss = capture(work)
    values = set()
    for _ in range(4):
        graph.replay()
        values.add(loss.item())
    assert all(map(math.isfinite, values))
    assert len(values) == (1 if "eval" in name else 4)


# ---- memory ------------------------------------------------------------------------------------------------


def test_the_loss_of_a_large_batch_needs_no_matrix_of_all_pairs():
    n, d = 16384, 128
    leaves = [torch.randn(n, d, device=DEVICE).requires_grad_() for _ in range(2)]
    loss = InfoNCELoss(0.2)
    loss(*leaves).backward()  # libraries allocate their workspace
    for leaf in leaves:
        leaf.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss(*leaves).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 250 * 2**20, extra  # the matrix alone would take 4 GiB
