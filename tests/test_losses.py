"""`InfoNCELoss`, the module around `functional.info_nce`."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import oracles
import pytest
import torch
from random_tensors import views
from tolerances import assert_close

from stochastic_bottleneck import InfoNCELoss, functional

F32 = torch.float32


@pytest.mark.parametrize("options", [{}, {"temperature": 0.1}, {"reduction": "none"}, {"block_size": 2}])
def test_equals_the_function(options):
    v, v_prime = views(2, 4, 5)
    for training in (True, False):
        loss = InfoNCELoss(**options).train(training)(v, v_prime)
        assert torch.equal(loss, functional.info_nce(v, v_prime, **options))


def test_the_default_temperature_is_that_of_simclr():
    v, v_prime = views(4, 5)
    assert_close(InfoNCELoss()(v, v_prime), oracles.nt_xent(v, v_prime, 0.5).mean())


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
