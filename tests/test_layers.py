"""Lazy layers: widths inferred from the first batch."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stochastic_bottleneck._layers import linear, mlp


@pytest.mark.parametrize(
    ("widths", "shape"), [((None, 5), (5, 3)), ((None, None), (3, 3)), ((3, None), (3, 3)), ((3, 5), (5, 3))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_unknown_widths_come_from_the_batch(widths, shape, bias):
    layer = linear(*widths, bias=bias)
    assert (type(layer) is nn.Linear) == (None not in widths)
    assert layer(torch.randn(2, 3)).shape == (2, shape[0])
    assert type(layer) is nn.Linear
    assert layer.weight.shape == shape == (layer.out_features, layer.in_features)
    assert (layer.bias is not None) == bias


def test_a_copied_lazy_mlp_keeps_its_dtype():
    clone = copy.deepcopy(mlp(None, None, 5).double())
    assert clone(torch.randn(4, 7).double()).dtype == torch.float64
    assert clone[1].running_mean.dtype == torch.float64


@pytest.mark.parametrize("copier", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("widths", [(None, None, 5), (3, None, None)])
def test_a_lazy_mlp_can_be_converted_to_sync_batch_norm(copier, widths):
    lazy_mlp = copier(nn.SyncBatchNorm.convert_sync_batchnorm(mlp(*widths)))
    held = list(lazy_mlp.parameters())
    x = torch.randn(4, 3)
    with torch.inference_mode():
        first = lazy_mlp.eval()(x)
    assert [type(m) for m in lazy_mlp] == [nn.Linear, nn.SyncBatchNorm, nn.ReLU, nn.Linear]
    norm = lazy_mlp[1]
    assert norm.num_features == 3 == len(norm.weight) == len(norm.running_var)
    assert all(a is b for a, b in zip(held, lazy_mlp.parameters(), strict=True))
    assert not lazy_mlp._forward_pre_hooks
    plain = mlp(3, 3, first.shape[1]).eval()
    plain.load_state_dict(lazy_mlp.state_dict())
    assert torch.equal(plain(x), first)
    lazy_mlp.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in held)
