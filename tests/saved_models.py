"""Toy models for the tests of saving: every kind of latent, with or without widths that are known beforehand."""

import copy

import torch
from torch import nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper

N, WIDTH, DIM = 6, 5, 11
KINDS = {
    "bern": {},
    "hard": {"hard": True},
    "as the paper": {"location_std": None},
    "learnable scale": {"learnable_scale": True},
    "whitened": {"normalization": "whiten", "shrinkage": 0.3},
    "mlp": {"projector": "mlp", "upsampler": "mlp"},
    "gauss": {"kind": "gauss"},
    "isotropic": {"kind": "gauss", "variance": "isotropic", "location_std": 3.0},
}


class OpenEncoder(nn.Module):
    """Its structure does not tell its width, so that everything behind it is built with the first batch."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


X, X_PRIME = (torch.randn(N, 3, 8, 8, generator=generator(seed)) for seed in (2, 3))


def model(kind="bern", cls=StochConWrapper, *, lazy=False, seed=0, **options):
    torch.manual_seed(seed)
    known = {} if lazy else {"in_features": WIDTH}
    dim = options.pop("dim", DIM)
    bottleneck = StochasticBottleneck(**{"dim": dim, **KINDS.get(kind, {}), **known})
    if kind == "identity":
        bottleneck = StochasticBottleneck(dim=WIDTH, projector="identity", upsampler="identity", **known)
    options = {"projection_dim": 4, **({} if lazy else {"feature_dim": WIDTH}), **options}
    return cls(OpenEncoder(), bottleneck=bottleneck, **options)


def used(kind="bern", cls=StochConWrapper, **options):
    """A model whose statistics and temperature are no longer those it was built with."""
    m = model(kind, cls, **options)
    m(X, X_PRIME)
    if m.bottleneck.kind == "bern":
        m.bottleneck.set_temperature(0.3)
    return m


def outputs(m):
    """All that a model gives: the training pass with known noise, what it encodes, and its state."""
    m = copy.deepcopy(m).train()
    dtype = m.bottleneck.temperature.dtype
    x, x_prime = X.to(dtype), X_PRIME.to(dtype)
    output = m(x, x_prime, generator=generator())
    encoded = [m.encode(x, which) for which in ("h", "z", "upsampled")]
    if m.bottleneck.kind == "bern":
        encoded.append(m.encode(x, "bits"))
    return [*output[:-1], *output.posterior, *encoded, *m.state_dict().values()]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)
