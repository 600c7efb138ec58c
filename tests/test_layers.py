"""Layers that learn their widths late."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stochastic_bottleneck._layers import LazyLinear, linear, mlp


def test_known_widths_need_nothing_lazy():
    layer = linear(3, 5)
    assert type(layer) is nn.Linear
    assert layer.weight.shape == (5, 3)
    assert not any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in mlp(3, 4, 5).modules())


@pytest.mark.parametrize(
    ("widths", "shape"), [((None, 5), (5, 3)), ((None, None), (3, 3)), ((3, None), (3, 3)), ((3, 5), (5, 3))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_open_widths_come_from_the_batch(widths, shape, bias):
    layer = linear(*widths, bias=bias)
    assert layer(torch.randn(2, 3)).shape == (2, shape[0])
    assert type(layer) is nn.Linear
    assert layer.weight.shape == shape == (layer.out_features, layer.in_features)
    assert (layer.bias is not None) == bias
    assert layer.weight.std() > 0  # initialised, as nn.Linear is
    assert layer.weight.abs().max() <= 3**-0.5


def test_initialisation_equals_nn_linears():
    torch.manual_seed(1)
    late = LazyLinear(None, 5)
    late(torch.randn(2, 3, generator=torch.Generator()))
    torch.manual_seed(1)
    early = nn.Linear(3, 5)
    assert torch.equal(late.weight, early.weight)
    assert torch.equal(late.bias, early.bias)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_an_open_mlp_is_copied(copier):
    original = mlp(None, None, 5)
    clone = copier(original)
    assert clone(torch.randn(4, 7)).shape == (4, 5)
    assert original(torch.randn(4, 3)).shape == (4, 5)
    assert [type(m) for m in clone] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert clone[1].running_mean.shape == (7,)
    assert original[1].running_mean.shape == (3,)


def test_a_copied_placeholder_keeps_its_dtype():
    clone = copy.deepcopy(mlp(None, None, 5).double())
    assert clone(torch.randn(4, 7).double()).dtype == torch.float64
    assert clone[1].running_mean.dtype == torch.float64


def test_an_mlp_is_simclrs_head():
    layers = list(mlp(6, 7, 5))
    assert [type(m) for m in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert layers[0].bias is None
    assert layers[0].weight.shape == (7, 6)
    assert layers[3].weight.shape == (5, 7)


@pytest.mark.parametrize("build", [lambda: LazyLinear(None, 5), lambda: mlp(None, None, 5)])
def test_a_first_batch_in_inference_mode_leaves_layers_that_train(build):
    layer = build()
    held = list(layer.parameters())
    with torch.inference_mode():
        layer.eval()(torch.randn(4, 3))
    layer.train()(torch.randn(4, 3)).square().sum().backward()
    assert all(a is b for a, b in zip(held, layer.parameters(), strict=True))
    assert all(p.grad is not None and not p.is_inference() for p in held)
    assert not any(b.is_inference() for b in layer.buffers())


@pytest.mark.parametrize("copier", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("widths", [(None, None, 5), (3, None, None)])
def test_an_open_mlp_can_be_converted_to_sync_batch_norm(copier, widths):
    open_mlp = copier(nn.SyncBatchNorm.convert_sync_batchnorm(mlp(*widths)))
    held = list(open_mlp.parameters())
    x = torch.randn(4, 3)
    with torch.inference_mode():
        first = open_mlp.eval()(x)
    assert [type(m) for m in open_mlp] == [nn.Linear, nn.SyncBatchNorm, nn.ReLU, nn.Linear]
    norm = open_mlp[1]
    assert norm.num_features == 3 == len(norm.weight) == len(norm.running_var)
    assert all(a is b for a, b in zip(held, open_mlp.parameters(), strict=True))
    assert not open_mlp._forward_pre_hooks
    plain = mlp(3, 3, first.shape[1]).eval()
    plain.load_state_dict(open_mlp.state_dict())
    assert torch.equal(plain(x), first)
    open_mlp.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in held)
