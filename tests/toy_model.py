"""The toy models of the tests of training, with every kind of latent, for images of shape (3, 5, 5)."""

import torch
from torch import nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper

WIDTH, DIM = 6, 5
KINDS = {
    "bern": {"kind": "bern"},
    "bern hard": {"kind": "bern", "hard": True},
    "gauss": {"kind": "gauss"},
    "gauss isotropic": {"kind": "gauss", "variance": "isotropic"},
}


def row_model(kind="bern", normalization=None, **options):
    """A float64 model without statistics over the batch that chunks or processes do not share."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3), nn.GroupNorm(2, WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    bottleneck = StochasticBottleneck(dim=DIM, in_features=WIDTH, normalization=normalization, **KINDS[kind])
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))
    return StochConWrapper(encoder, bottleneck=bottleneck, head=head, **options).double()


def batch_model(kind="bern", **options):
    """A float32 model with BatchNorm in encoder, bottleneck and head, and noise in two places."""
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(0.4))
    bottleneck = StochasticBottleneck(dim=DIM, in_features=WIDTH, **KINDS[kind])
    return StochConWrapper(encoder, bottleneck=bottleneck, feature_dim=WIDTH, projection_dim=4, **options)
