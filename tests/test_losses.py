"""`InfoNCELoss`, the module around `functional.info_nce`."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import oracles
import pytest
import torch
import toy_model
from oracles import leaves, normal, views
from processes import launch
from tolerances import assert_close
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_map

from stochastic_bottleneck import (
    BernoulliPosterior,
    ClipLoss,
    GaussianPosterior,
    InfoNCELoss,
    StochConLoss,
    StochConOutput,
    SupConLoss,
    functional,
)

F32 = torch.float32


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1}, {"reduction": "none"}, {"block_size": 2}])
def test_equals_the_function(options):
    v, v_prime = views(2, 4, 5)
    for training in (True, False):
        loss = InfoNCELoss(**options).train(training)
        expected = functional.info_nce(v, v_prime, **options)
        assert torch.equal(loss(v, v_prime), expected)
        assert torch.equal(loss(StochConOutput(v, v_prime, v + 1, v + 1, v + 1, None)), expected)


def test_can_be_copied_and_pickled_and_has_no_state():
    loss = InfoNCELoss(0.1, gather_distributed=True, reduction="none", block_size=3)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*views(4, 5)), loss(*views(4, 5)))
    assert not loss.state_dict()
    assert repr(loss) == "InfoNCELoss(temperature=0.1, gather_distributed=True)"


@pytest.mark.parametrize("number", [np.float32, np.float16, Fraction, np.int64])
def test_any_real_number_is_a_temperature(number, fresh_compiler):
    v, v_prime = views(4, 5, dtype=F32)
    value = 2.0 if number is np.int64 else 0.5
    loss = InfoNCELoss(number(value), block_size=np.int64(3))
    assert type(loss.temperature) is float
    expected = InfoNCELoss(value, block_size=3)(v, v_prime)
    assert torch.equal(loss(v, v_prime), expected)
    assert torch.equal(functional.info_nce(v, v_prime, number(value), block_size=np.int64(3)), expected)
    assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(v, v_prime), expected)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}, {"gather_distributed": True}, {"reduction": "none"}])
def test_compiles_without_graph_breaks_and_agrees(options, fresh_compiler):
    loss = InfoNCELoss(0.2, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for dtype in (F32, torch.bfloat16):
        results = []
        for function in (loss, compiled):
            inputs = views(5, 6, dtype=dtype)
            value = function(*inputs)
            results.append((value, *torch.autograd.grad(value.sum(), inputs)))
        for eager, fast in zip(*results, strict=True):
            assert_close(fast, eager.double())


# ---- forms of InfoNCE, with a temperature that may be learned --------------------------------------------------

LABELS = torch.tensor([7, -1, -1, 7, -1, 5])  # some have one image
ONE_WAY = {"symmetric": False}
FORMS = {  # name: loss, its options, number of inputs, and the oracle of the losses per row
    "two views": (InfoNCELoss, {}, 2, oracles.nt_xent),
    "clip": (
        ClipLoss,
        {},
        2,
        lambda q, k, t: torch.cat([oracles.one_tower(q, k, [], t), oracles.one_tower(k, q, [], t)]),
    ),
    "queue": (ClipLoss, ONE_WAY, 3, lambda q, k, queue, t: oracles.one_tower(q, k, queue.unbind(), t)),
    "labels": (SupConLoss, {}, 2, lambda v, w, t: oracles.supcon(torch.cat((v, w)), [*LABELS[: len(v)]] * 2, t)),
}


def form(name, temperature, n, dtype=torch.float64, **options):
    """A loss with a learned temperature, its inputs for n images, and its oracle."""
    make, own, count, oracle = FORMS[name]
    loss = make(temperature, learnable=True, reduction="none", **own, **options).to(dtype)
    inputs = leaves(*(normal(n + (i == 2), 6, seed=i).to(dtype) for i in range(count)))
    return loss, inputs + ([LABELS[:n]] if name == "labels" else []), lambda *x: oracle(*x[:-1], x[-1].exp()[0])


def compare_with_loop(call, loss, inputs, oracle):
    """Losses, and the gradients of rows weighted differently in all inputs and the temperature."""
    leaf = [x for x in inputs if x.is_floating_point()] + [loss.log_temperature]
    exact = [oracles.as_float64(x) for x in leaf]
    losses, expected = call(*inputs), oracle(*exact)
    assert_close(losses, expected)
    weights = normal(len(expected), seed=9)
    grads = torch.autograd.grad(losses, leaf, weights.to(losses.dtype))
    for x, a, b in zip(leaf, grads, torch.autograd.grad(expected, exact, weights), strict=True):
        assert a.dtype == x.dtype
        assert_close(a, b, factor=1 / loss.temperature.item())


@pytest.mark.parametrize("dtype", [torch.float64, F32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMS)
def test_forms_follow_the_float64_loop(name, dtype):
    for temperature, n, block_size in ((0.2, 1, None), (0.05, 5, 2), (0.0125, 4, None)):
        loss, inputs, oracle = form(name, temperature, n, dtype, block_size=block_size)
        compare_with_loop(loss, loss, inputs, oracle)
        fixed = type(loss)(loss.temperature.item(), reduction="none", **FORMS[name][1])
        assert_close(fixed(*inputs), loss(*inputs).double(), factor=10)


@pytest.mark.parametrize("name", FORMS)
def test_forms_compile_without_graph_breaks(name, fresh_compiler):
    loss, *_ = form(name, 0.2, 4, F32)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 5):
        compare_with_loop(compiled, loss, *form(name, 0.2, n, F32)[1:])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_and_function_transforms_of_the_forms(name):
    loss, inputs, _ = form(name, 0.3, 3)

    def function(log, *x):
        return torch.func.functional_call(loss, {"log_temperature": log}, x)

    log = loss.log_temperature.detach().clone().requires_grad_()
    assert gradcheck(function, [log, *inputs])
    assert gradgradcheck(function, [log, *inputs])
    several = log.detach() + torch.tensor([[0.0], [0.5]])
    gradient = torch.func.grad(lambda x: function(x, *inputs).sum())
    for x, found in zip(several, torch.vmap(gradient)(several), strict=True):
        assert_close(found, torch.autograd.grad(function(x.requires_grad_(), *inputs).sum(), x)[0])


def test_labels_that_all_differ_or_are_all_equal():
    v, w, labels = form("labels", 0.2, 5)[1]
    loss, equal = SupConLoss(0.2), torch.ones_like(labels)
    assert_close(loss(v, w, torch.arange(5)), InfoNCELoss(0.2)(v, w))
    assert loss(v, labels=torch.arange(5)) == 0  # one view of each image, and no positives
    expected = oracles.supcon(torch.cat((v, w)), [1] * 10, 0.2).mean()
    assert_close(loss(StochConOutput(v, w, v, v, v, None), labels=equal), expected)
    assert_close(loss(torch.stack((v, w)), torch.stack((w, v)), equal), expected)
    many = normal(129, 6)  # more than int8 can count
    assert_close(loss(many, labels=torch.ones(129, dtype=torch.int8)), loss(many, labels=torch.ones(129).long()))


def test_a_learned_temperature_stops_at_its_bound_and_returns():
    _, inputs, _ = form("clip", 1, 5)
    loss, expected = ClipLoss(0.02, learnable=True, min_temperature=0.02), ClipLoss(0.02)(*inputs)
    loss.log_temperature.data -= 0.5
    assert_close(loss(*inputs), expected)
    gradients = [torch.autograd.grad(sign * loss(*inputs), loss.log_temperature)[0] for sign in (1, -1)]
    assert min(gradients) < 0 == max(gradients)  # a step along it raises the temperature
    with pytest.raises(ValueError, match="learnable must be False with gather_distributed=True"):
        InfoNCELoss(learnable=True, gather_distributed=True)
    with pytest.raises(ValueError, match="negatives must be None in the symmetric loss"):
        loss(*inputs, inputs[0])


def clip_step(rank=slice(None)):
    loss, inputs, _ = form("clip", 0.2, 6, gather_distributed=True)
    inputs = leaves(*(x.view(2, 3, 6)[rank].reshape(-1, 6) for x in inputs))
    losses = loss(*inputs)
    return {"losses": losses.detach(), "gradients": torch.autograd.grad(losses.mean(), [*inputs, loss.log_temperature])}


@pytest.mark.distributed
def test_clip_over_two_processes_equals_one(tmp_path):
    ranks, expected = launch(clip_step, tmp_path), clip_step()
    assert_close(torch.cat([x["losses"].view(2, 3) for x in ranks], dim=1).flatten(), expected["losses"])
    first, second = (x["gradients"] for x in ranks)
    for i, gradient in enumerate(expected["gradients"]):
        assert_close(torch.cat((first[i], second[i])) / 2 if i < 2 else (first[i] + second[i]) / 2, gradient)


# ---- StochConLoss ----------------------------------------------------------------------------------------------


def both_directions(kind="bern", dtype=torch.float64):
    """v and v' of both directions, and the posterior of the stochastic views."""
    parameters = [torch.randn(2, 6, 4, dtype=dtype) for _ in range(2)]
    posterior = BernoulliPosterior(parameters[0], torch.ones((), dtype=dtype))
    return *views(2, 6, 5, dtype=dtype), posterior if kind == "bern" else GaussianPosterior(*parameters)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_stochcon_loss_is_the_weighted_sum_of_its_terms(kind):
    v, v_prime, posterior = both_directions(kind)
    weights = {"stochastic": 0.5, "deterministic": 2.0, "codes": 3.0, "covariance": 0.25, "coding_rate": 0.4, "kl": 0.1}
    loss = StochConLoss(0.3, code_temperature=0.4, prefixes=[2], **weights)
    location, rows = posterior[0], posterior[0].flatten(0, 1).numpy()
    codes = torch.where(location > 0, 1.0, -1.0).double() if kind == "bern" else location
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = {
        "stochastic": torch.cat([oracles.nt_xent(a, b, 0.3) for a, b in zip(v, v_prime, strict=True)]).mean(),
        "deterministic": oracles.nt_xent(*v, 0.3).mean(),
        "codes": torch.stack([oracles.nt_xent(*codes[..., :d], 0.4).mean() for d in (2, 4)]).mean(),
        "covariance": torch.tensor((np.corrcoef(rows, rowvar=False) ** 2).sum() - 4) / 4,
        "coding_rate": torch.tensor(-np.linalg.slogdet(np.eye(4) + 4 / len(z) * z.T @ z)[1] / 4),
        "kl": posterior.kl().mean(),
    }
    terms = loss.terms(v, v_prime, posterior)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=2e-6, rtol=2e-6)
    total = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(loss(v, v_prime, posterior), total, atol=1e-5, rtol=1e-5)


def test_bits_have_the_gradient_of_their_mean():
    v, v_prime, posterior = both_directions()
    logits = posterior.logits.requires_grad_()
    StochConLoss(stochastic=0, deterministic=0)(v, v_prime, posterior).backward()
    signs = torch.where(logits > 0, 1.0, -1.0).double().requires_grad_()
    oracles.nt_xent(*signs, 0.3).mean().backward()
    assert_close(logits.grad, signs.grad * (1 - torch.tanh(logits / 2) ** 2) / 2)


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"kind": "gauss"}])
def test_stochcon_loss_takes_the_output_of_a_model(options, fresh_compiler):
    model = toy_model.row_model(symmetric=True, **options)
    output = model(*torch.rand(2, 6, 3, 5, 5, dtype=torch.float64))
    loss = StochConLoss(covariance=0.1, coding_rate=0.1)
    loss(output).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(tree_map(torch.Tensor.detach, output)), loss(output))
    with torch.no_grad():
        deterministic = model.head(output.h), model.head(output.h_prime)
    assert_close(loss.terms(output)["deterministic"], InfoNCELoss(0.2)(*deterministic))


def test_one_direction_has_the_stochastic_term_alone():
    output = toy_model.row_model()(*torch.rand(2, 6, 3, 5, 5, dtype=torch.float64))
    algorithm_1 = StochConLoss(0.5, deterministic=0, codes=0)
    assert_close(algorithm_1(output), InfoNCELoss(0.5)(*output[:2]))
    with pytest.raises(ValueError, match="set symmetric=True in the model"):
        StochConLoss()(output)
    with pytest.raises(ValueError, match="got 0 for all of them"):
        StochConLoss(stochastic=0, deterministic=0, codes=0)
    with pytest.raises(ValueError, match="prefixes must be below the 4 dimensions"):
        StochConLoss(prefixes=[4])(*both_directions())
