"""`InfoNCELoss`, the module around `functional.info_nce`."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import oracles
import pytest
import torch
from tolerances import assert_close

from stochastic_bottleneck import InfoNCELoss, functional


def views(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=g, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.1}, {"reduction": "none"}, {"block_size": 2}])
def test_equals_the_function(options, training):
    v, v_prime = views(2, 4, 5)
    loss = InfoNCELoss(**options).train(training)(v, v_prime)
    assert torch.equal(loss, functional.info_nce(v, v_prime, **options))


def test_the_default_temperature_is_simclrs():
    v, v_prime = views(4, 5)
    assert_close(InfoNCELoss()(v, v_prime), oracles.nt_xent(v.double(), v_prime.double(), 0.5).mean())


def test_gathering_without_a_process_group_changes_nothing():
    v, v_prime = views(4, 5)
    assert torch.equal(InfoNCELoss(gather_distributed=True)(v, v_prime), InfoNCELoss()(v, v_prime))


def test_is_copied_pickled_and_holds_no_state():
    loss = InfoNCELoss(0.1, gather_distributed=True, reduction="none", block_size=3)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*views(4, 5)), loss(*views(4, 5)))
    assert not loss.state_dict()
    assert repr(loss) == "InfoNCELoss(temperature=0.1, gather_distributed=True)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number of at least 0.01, got 0.0"),
        ({"reduction": "sum"}, 'reduction must be "mean" or "none"'),
        ({"block_size": -1}, "block_size must be a positive int, got -1"),
    ],
)
def test_bad_options_are_refused_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        InfoNCELoss(**options)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16, Fraction, np.int64])
def test_any_real_number_is_a_temperature(number, fresh_compiler):
    v, v_prime = views(4, 5)
    value = 2.0 if number is np.int64 else 0.5
    loss = InfoNCELoss(number(value), block_size=np.int64(3))
    assert type(loss.temperature) is float
    expected = InfoNCELoss(value, block_size=3)(v, v_prime)
    assert torch.equal(loss(v, v_prime), expected)
    assert torch.equal(functional.info_nce(v, v_prime, number(value), block_size=np.int64(3)), expected)
    assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(v, v_prime), expected)


@pytest.mark.parametrize("gather", [False, True])
def test_bad_views_are_refused(gather):
    loss = InfoNCELoss(gather_distributed=gather)
    with pytest.raises(ValueError, match="v is empty"):
        loss(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(ValueError, match="v and v_prime must have one shape"):
        loss(torch.ones(2, 3), torch.ones(3, 3))


@pytest.mark.parametrize(
    "options", [{}, {"block_size": 3}, {"gather_distributed": True}, {"reduction": "none"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_whole_and_agrees(options, dtype, fresh_compiler):
    loss = InfoNCELoss(0.2, **options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        v, v_prime = (x.detach().to(dtype).requires_grad_() for x in views(5, 6))
        value = function(v, v_prime)
        results.append((value, *torch.autograd.grad(value.sum(), (v, v_prime))))
    for eager, fast in zip(*results, strict=True):
        assert_close(fast, eager.double())


def test_no_compilation_when_only_the_batch_size_changes(graphs):
    compiled = torch.compile(InfoNCELoss(), fullgraph=True, backend=graphs.backend)
    for n in (8, 5):  # torch turns the size dynamic when it first changes
        compiled(*views(n, 6))
    seen = len(graphs)
    for n in (3, 17, 32):
        assert compiled(*views(n, 6)).isfinite()
    assert len(graphs) == seen <= 2
