"""Encoders for small images, and the models that are compared on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper

ENCODERS = ("small", "medium", "resnet18", "resnet50")
MODELS = ("simclr", "bern", "gauss")


def make_encoder(name: str) -> nn.Module:
    """Encoder without a classifier for 32-pixel images.

    Args:
        name: "small" and "medium" are ResNets with one and two basic blocks a stage, a deep stem of stride 2 and
            no pooling, made for CPUs; the others are timm's with SimCLR's CIFAR stem (3x3, stride 1, no pooling;
            arXiv 2002.05709, appendix B.9).
    """
    if name in ("small", "medium"):
        blocks, channels = {
            "small": ((1,) * 4, (32, 64, 128, 256)),
            "medium": ((2,) * 4, (32, 64, 128, 256)),
        }[name]
        encoder = ResNet(
            BasicBlock,
            blocks,
            channels=channels,
            num_classes=0,
            stem_type="deep",
            stem_width=channels[0] // 2,
        )
    else:
        encoder = timm.create_model(name, num_classes=0)
        encoder.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    encoder.maxpool = nn.Identity()
    return encoder


class SimCLROutput(NamedTuple):
    """Both branches' head outputs, as the first two entries of `StochConOutput`. Shape: (N, P) each."""

    v: Tensor
    v_prime: Tensor


class SimCLR(nn.Module):
    """The model without a latent: encoder f and head g."""

    def __init__(self, encoder: nn.Module, projection_dim: int) -> None:
        super().__init__()
        width = encoder.num_features
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, projection_dim),
        )

    def forward(self, x: Tensor, x_prime: Tensor) -> SimCLROutput:
        """Head outputs of both views. Shape: (N, C, H, W) each."""
        return SimCLROutput(self.head(self.encoder(x)), self.head(self.encoder(x_prime)))

    def encode(self, x: Tensor) -> Tensor:
        """Features h. Shape: (N, C, H, W) -> (N, F)."""
        features: Tensor = self.encoder(x)
        return features


def make_model(
    name: str, encoder: str, dim: int, projection_dim: int, *, symmetric: bool = False, **options: Any
) -> nn.Module:
    """One of `MODELS` around one of `ENCODERS`, the same head for all.

    Args:
        name: "simclr", or the kind of a StochCon latent.
        encoder: one of `ENCODERS`.
        dim: latent dimensions.
        projection_dim: width of the head's output.
        symmetric: run StochCon both ways round.
        **options: of `StochasticBottleneck`; those that the kind does not have are left out.
    """
    simclr = SimCLR(make_encoder(encoder), projection_dim)
    if name == "simclr":
        return simclr
    if name != "bern":
        options = {key: value for key, value in options.items() if key not in ("temperature", "hard")}
    bottleneck = StochasticBottleneck(name, dim, in_features=simclr.encoder.num_features, **options)
    return StochConWrapper.from_simclr(simclr, bottleneck=bottleneck, symmetric=symmetric)
