"""The CUDA path on a real device: values, no waiting, compiled kernels, CUDA graphs, memory."""

import copy
import math

import oracles
import pytest
import torch
from gpu import needs_gpu, no_waiting
from tolerances import DTYPES, LOW_DTYPES, assert_close
from training_steps import BOTTLENECKS, STEPS, WRAPPERS

from stochastic_bottleneck import InfoNCELoss, TemperatureSchedule, codes, functional
from stochastic_bottleneck.kernels.nt_xent import plain_nt_xent

pytestmark = [pytest.mark.gpu, needs_gpu]
F64 = torch.float64
DEVICE = "cuda"
STILL = ["wrapped bern, eval", "wrapped gauss", "loss in blocks", "two losses", "bernoulli_kl", "gaussian_kl"]
"""Steps that draw nothing in evaluation mode; what others compile to is looked at without a device."""


def made(name, n=32):
    """A step on the device, and a batch for it."""
    torch.manual_seed(0)
    step = STEPS[name]().to(DEVICE)
    return step, [x.detach().to(DEVICE).requires_grad_() for x in step.inputs(n)]


def train_once(step, inputs):
    for leaf in (*inputs, *step.parameters()):
        leaf.grad = None
    loss = step(*inputs)
    loss.backward()
    return loss


def test_waiting_is_noticed():
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device=DEVICE).item()


# ---- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_and_all_gradients_are_finite(name):
    step, inputs = made(name)
    train_once(step, inputs)  # libraries are loaded, and may wait
    with no_waiting():
        loss = train_once(step, inputs)
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in (*inputs, *step.parameters()))


@pytest.mark.parametrize("name", WRAPPERS)
def test_nor_does_a_step_under_autocast_with_its_optimizer_and_schedule(name):
    step, inputs = made(name)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9)
    schedule = TemperatureSchedule(step.module.bottleneck, 0.1, 9, start=1.0) if "bern" in name else None

    def train():
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = step(*inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        return loss

    train()
    with no_waiting():
        losses = [train() for _ in range(3)]
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 40, 700, 3000])
def test_the_loss_is_exact(n, dtype):
    """Of the plain formula, of one tile and of several."""
    g = torch.Generator().manual_seed(n)
    views = [torch.randn(n, 32, generator=g, dtype=F64).to(dtype) for _ in range(2)]
    upstream = torch.randn(2 * n, generator=g, dtype=F64)
    exact = [oracles.as_float64(x).to(DEVICE).requires_grad_() for x in views]
    expected = plain_nt_xent(*exact, 0.2)
    wanted = torch.autograd.grad(expected, exact, upstream.to(DEVICE))
    leaves = [x.to(DEVICE).requires_grad_() for x in views]
    losses = functional.info_nce(*leaves, temperature=0.2, reduction="none")
    grads = torch.autograd.grad(losses, leaves, upstream.to(DEVICE, losses.dtype))
    # Products of bfloat16 are stated to 2^-9 (3 / temperature + 1) of a loss and its gradient.
    if dtype == torch.bfloat16 and n >= 512:
        bound = 2**-9 * (3 / 0.2 + 1)
        assert (losses.double() - expected).abs().max() < bound
        for grad, other in zip(grads, wanted, strict=True):
            assert (grad.double() - other).norm() < bound * other.norm()
        return
    assert_close(losses, expected)
    for grad, other in zip(grads, wanted, strict=True):
        assert_close(grad, other, factor=2)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_tiny_and_zero_rows_stay_finite(dtype):
    v = torch.randn(600, 16, device=DEVICE)
    v[0], v[1] = 0, v[1] * torch.finfo(dtype).tiny
    leaves = [v.to(dtype).requires_grad_(), v.flip(1).to(dtype).requires_grad_()]
    loss = functional.info_nce(*leaves, temperature=0.1)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_gradients_of_a_sample_are_those_of_its_formula(kind):
    """With the noise passed in, on the device as on the host."""
    g = torch.Generator().manual_seed(0)
    a, b, noise = (torch.randn(64, 48, generator=g, dtype=F64) for _ in range(3))

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
    # z is above a threshold t exactly where the logistic noise is above temperature * logit(t) - logits.
    limit = oracles.kolmogorov_smirnov_limit(n)
    distance = oracles.kolmogorov_smirnov(z, lambda t: (0.5 * t.logit() - logits).sigmoid())
    assert distance < limit
    e = gaussian(torch.zeros_like(x), torch.zeros_like(x)).flatten().double().cpu()
    assert oracles.kolmogorov_smirnov(e, torch.special.ndtr) < limit


def test_codes_are_those_of_the_host():
    bits = torch.rand(50, 37, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = codes.pack_bits(bits.to(DEVICE))
    assert torch.equal(packed.cpu(), codes.pack_bits(bits))
    assert torch.equal(codes.unpack_bits(packed, 37).cpu(), codes.unpack_bits(packed.cpu(), 37))
    assert torch.equal(
        codes.hamming_distance(packed, packed).cpu(), codes.hamming_distance(packed.cpu(), packed.cpu())
    )


# ---- compiled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STILL)
def test_compiled_steps_agree_with_uncompiled_ones(name):
    torch._dynamo.reset()
    step, inputs = made(name)
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
    step, inputs = made(name, 64)
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


# ---- CUDA graphs -------------------------------------------------------------------------------------------


def recorded(work):
    """A CUDA graph of some work, and what the work returned, which every replay fills anew."""
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
def test_a_recorded_step_draws_new_noise_with_every_replay(name):
    step, inputs = made(name)

    def work():
        loss = step(*inputs)
        loss.backward()
        return loss.detach()

    graph, loss = recorded(work)
    values = set()
    for _ in range(4):
        graph.replay()
        values.add(loss.item())
    assert all(map(math.isfinite, values))
    assert len(values) == (1 if "eval" in name else 4)


@pytest.mark.parametrize("name", ["wrapped bern", "wrapped gauss"])
def test_a_recorded_training_lowers_the_loss(name):
    step, inputs = made(name, 64)
    inputs = [x.detach() for x in inputs]
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9)

    def work():
        loss = step(*inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    before = step(*inputs).item()
    graph, loss = recorded(work)
    for _ in range(50):
        graph.replay()
    assert loss.item() < before


# ---- memory ------------------------------------------------------------------------------------------------


def test_the_loss_of_a_large_batch_needs_no_matrix_of_all_pairs():
    n, d = 16384, 128
    leaves = [torch.randn(n, d, device=DEVICE).requires_grad_() for _ in range(2)]
    loss = InfoNCELoss(0.2)
    loss(*leaves).backward()  # libraries take their workspace
    for leaf in leaves:
        leaf.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss(*leaves).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 250 * 2**20, extra  # the matrix alone would take 4 GiB
