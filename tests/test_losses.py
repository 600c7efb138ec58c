"""`InfoNCELoss`, the module around `functional.info_nce`."""

import copy
import pickle
from fractions import Fraction
from functools import partial

import numpy as np
import oracles
import pytest
import torch
import toy_model
from random_tensors import leaves, normal, views
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


class WithLabels(SupConLoss):
    """Of the labels 7, -1, -1, 7, -1, 5, ..., some of which have one image."""

    def forward(self, *views):
        return super().forward(*views, labels=labels_of(len(views[0])))


def labels_of(n):
    return torch.tensor([7, -1, -1, 7, -1, 5, 3, 2])[:n]


FORMS = {  # name: loss, shapes of the inputs but for N rows, oracle of the losses per row
    "clip": (ClipLoss, [(..., 6)] * 2, oracles.clip),
    "one tower": (
        partial(ClipLoss, symmetric=False),
        [(..., 6)] * 2,
        lambda q, k, t: oracles.one_tower(q, k, q[:0], t),
    ),
    "several positives": (
        WithLabels,
        [(..., 6), (..., 6)],
        lambda v, w, t: oracles.supcon(torch.cat((v, w)), [*labels_of(len(v))] * 2, t),
    ),
    "one view of each image": (
        WithLabels,
        [(..., 6)],
        lambda v, t: oracles.supcon(v, labels_of(len(v)), t),
    ),
    "queue": (partial(ClipLoss, symmetric=False), [(..., 6), (..., 6), (3, 6)], oracles.one_tower),
}


def form_inputs(name, n, dtype=torch.float64):
    shapes = FORMS[name][1]
    return leaves(*(normal(*(n if d is ... else d for d in s), seed=i).to(dtype) for i, s in enumerate(shapes)))


def compare_with_loop(name, loss, module, n, dtype):
    """Losses, and the gradients of rows weighted differently in all inputs and a learned temperature."""
    inputs, tau = form_inputs(name, n, dtype), module.temperature
    exact, wanted = [oracles.as_float64(x) for x in inputs], list(inputs)
    leaf = list(exact)
    if module.learnable:
        log = oracles.as_float64(module.log_temperature)
        tau, wanted, leaf = log.exp()[0], [*inputs, module.log_temperature], [*exact, log]
    losses, expected = loss(*inputs), FORMS[name][2](*exact, tau)
    assert_close(losses, expected)
    weights = normal(len(expected), seed=9)
    grads = torch.autograd.grad(losses, wanted, weights.to(losses.dtype))
    for x, a, b in zip(wanted, grads, torch.autograd.grad(expected, leaf, weights), strict=True):
        assert a.dtype == x.dtype
        assert_close(a, b, factor=1 / torch.as_tensor(tau).item())


@pytest.mark.parametrize("learnable", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("dtype", [torch.float64, F32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMS)
def test_forms_follow_the_float64_loop(name, dtype, learnable):
    for temperature, n, block_size in ((0.2, 1, None), (0.2, 2, None), (0.05, 5, 2), (0.0125, 4, None)):
        options = {"learnable": learnable, "reduction": "none", "block_size": block_size}
        loss = FORMS[name][0](temperature, **options).to(dtype)
        compare_with_loop(name, loss, loss, n, dtype)


def test_labels_that_all_differ_or_are_all_equal():
    v, v_prime = form_inputs("clip", 5)
    loss = SupConLoss(0.2)
    assert_close(loss(v, v_prime, torch.arange(5)), InfoNCELoss(0.2)(v, v_prime))
    output = StochConOutput(v, v_prime, v, v, v, None)
    expected = oracles.supcon(torch.cat((v, v_prime)), [1] * 10, 0.2).mean()
    assert_close(loss(output, labels=torch.ones(5, dtype=torch.int8)), expected)
    both = loss(torch.stack((v, v_prime)), torch.stack((v_prime, v)), torch.ones(5, dtype=torch.int64))
    assert_close(both, expected)
    with pytest.raises(TypeError, match="labels must be a tensor of one integer per image, got None"):
        loss(v, torch.arange(5))


@pytest.mark.parametrize("name", FORMS)
def test_forms_compile_without_graph_breaks(name, fresh_compiler):
    loss = FORMS[name][0](0.2, learnable=True, reduction="none")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7):
        compare_with_loop(name, compiled, loss, n, F32)


@pytest.mark.parametrize("name", FORMS)
def test_second_derivatives_of_the_forms(name):
    loss, inputs = FORMS[name][0](0.3, learnable=True, reduction="none").double(), form_inputs(name, 3)
    log = loss.log_temperature.detach().clone().requires_grad_()

    def function(log, *inputs):
        return torch.func.functional_call(loss, {"log_temperature": log}, inputs)

    assert gradcheck(function, [log, *inputs])
    assert gradgradcheck(function, [log, *inputs])


# ---- StochConLoss ----------------------------------------------------------------------------------------------


def both_directions(kind="bern", dtype=torch.float64):
    """v and v' of both directions, and the posterior of the stochastic views."""
    parameters = [torch.randn(2, 6, 4, dtype=dtype) for _ in range(2)]
    posterior = BernoulliPosterior(parameters[0], torch.ones((), dtype=dtype))
    return *views(2, 6, 5, dtype=dtype), posterior if kind == "bern" else GaussianPosterior(*parameters)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_stochcon_loss_is_the_weighted_sum_of_its_terms(kind):
    v, v_prime, posterior = both_directions(kind)
    weights = {"stochastic": 0.5, "deterministic": 2.0, "codes": 3.0, "covariance": 0.25, "kl": 0.1}
    loss = StochConLoss(0.3, code_temperature=0.4, prefixes=[2], **weights)
    location = posterior[0]
    codes = torch.where(location > 0, 1.0, -1.0).double() if kind == "bern" else location
    correlations = np.corrcoef(location.flatten(0, 1).numpy(), rowvar=False)
    expected = {
        "stochastic": torch.cat([oracles.nt_xent(a, b, 0.3) for a, b in zip(v, v_prime, strict=True)]).mean(),
        "deterministic": oracles.nt_xent(*v, 0.3).mean(),
        "codes": torch.stack([oracles.nt_xent(*codes[..., :d], 0.4).mean() for d in (2, 4)]).mean(),
        "covariance": torch.tensor((correlations**2).sum() - 4) / 4,
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
    loss = StochConLoss(covariance=0.1)
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
