"""Encoders for images of any size, and the models that are compared on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper
from stochastic_bottleneck.hub import HubModel

ENCODERS = ("small", "medium", "resnet18", "resnet50", "resnet200")
OURS = {"small": (1, 1, 1, 1), "medium": (2, 2, 2, 2)}
"""Blocks a stage of the encoders made for CPUs; timm has no weights for them."""
CONTRASTIVE = ("simclr", "bern", "gauss")
MODELS = (*CONTRASTIVE, "supervised")
NORMS = ("batch", "group")
SMALL_IMAGES = 64
"""Side in pixels up to which an encoder gets the stem for small images."""


class WeightsError(Exception):
    """Weights that do not fit an encoder, or cannot be read or fetched, with what to change."""


def make_encoder(
    name: str,
    size: int = 32,
    *,
    norm: str = "batch",
    weights: Path | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Encoder without a classifier; its `num_features` is the width of its features.

    Last norms of residual blocks start at zero, timm's default (arXiv 1706.02677, section 5.1).

    Args:
        name: "small" and "medium" are ResNets with one and two basic blocks a stage, half of ResNet-18's widths and
            a deep stem, made for CPUs; the others are timm's.
        size: side of the images in pixels. Up to 64, timm's encoders get SimCLR's CIFAR stem (3x3, stride 1;
            arXiv 2002.05709, appendix B.9), and none has a pooling layer after the stem.
        norm: "batch", or "group" for GroupNorm, which depends on no other image: for small batches.
        weights: a checkpoint to start from; see `load_encoder`.
        pretrained: start from timm's weights for ImageNet. Timm fetches them; a stem for small images starts anew.

    Raises:
        ValueError: for an unknown name or norm, or a size below 1.
        WeightsError: for weights that do not fit, or that cannot be had.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {name!r}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if pretrained and (name in OURS or norm != "batch" or weights is not None):
        raise WeightsError(
            f"timm has no weights for encoder {name} with {norm} norm"
            + (" beside --encoder-weights" if weights else "")
            + "; leave out --pretrained, or take a resnet with --norm batch"
        )
    options: dict[str, Any] = {
        "num_classes": 0,
        "norm_layer": group_norm if norm == "group" else nn.BatchNorm2d,
    }
    if name in OURS:
        stem = {"channels": (32, 64, 128, 256), "stem_type": "deep", "stem_width": 16}
        encoder: nn.Module = ResNet(BasicBlock, OURS[name], **stem, **options)
    else:
        encoder = _from_timm(name, pretrained, options)
    if size <= SMALL_IMAGES:
        if name not in OURS:
            encoder.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        encoder.maxpool = nn.Identity()
    if weights is not None:
        load_encoder(encoder, weights)
    encoder.built_by = f"recipes.models.make_encoder({name!r}, {size}, norm={norm!r})"  # quoted by HubModel
    return encoder


def _from_timm(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # of timm, of the hub's client, or of the network
        if not pretrained:
            raise
        raise WeightsError(
            f"timm could not load its weights for {name} ({error}); check the network, or give a file with "
            "--encoder-weights"
        ) from error


def group_norm(channels: int, **options: Any) -> nn.GroupNorm:
    """32 groups (arXiv 1803.08494, section 4.1), fewer where a group would have less than two channels."""
    return nn.GroupNorm(min(32, channels // 2), channels, **options)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load a checkpoint into an encoder, every tensor of it and nothing else.

    Args:
        encoder: of `make_encoder`.
        path: safetensors, or a file of `torch.save`: timm's state dict, with or without its classifier, also as
            "state_dict" or "model" inside a dictionary; or the `weights.safetensors` of a run, pretrained, fine-tuned
            or supervised, whose head, latent or classifier is left out.

    Raises:
        WeightsError: for a file that cannot be read, or is of another encoder.
    """
    # DistributedDataParallel's prefix.
    state = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    for prefix in ("encoder.", "represent.parts.h."):  # in a contrastive model, in a classifier
        inside = {
            name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
        }
        state = inside or state
    state = {name.removeprefix("backbone."): value for name, value in state.items()}  # StochConWrapper's
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    _load(encoder, kept, path, "encoder", "--encoder and --norm")


def load_model(model: nn.Module, path: Path) -> None:
    """Load the `weights.safetensors` that a run left, strictly.

    Raises:
        WeightsError: for a file that cannot be read, or is of another model.
    """
    _load(model, read_weights(path), path, "model", "settings")


def save_model(model: StochConWrapper, encoder: str, size: int, norm: str, folder: Path) -> None:
    """Write a folder that `HubModel.from_pretrained` loads.

    Encoders that are timm's own are built again by their name; any other has to be passed, as the error then says.

    Args:
        model: of `make_model`.
        encoder: its encoder's name.
        size: side of the images in pixels.
        norm: of the encoder.
        folder: gets the files.
    """
    of_timm = encoder not in OURS and size > SMALL_IMAGES and norm == "batch"
    named: dict[str, Any] = (
        {"encoder_name": f"timm:{encoder}", "encoder_options": {"num_classes": 0}} if of_timm else {}
    )
    HubModel.from_wrapper(model, **named).save_pretrained(folder)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or `torch.save`, on the CPU.

    Raises:
        WeightsError: for a file that cannot be read or holds no state dict.
    """
    try:
        content: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # both readers raise many kinds
        raise WeightsError(
            f"cannot read weights from {path} ({error}); give a whole .safetensors or torch file"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise WeightsError(
            f"{path} holds no state dict of tensors; save one with torch.save(model.state_dict(), path)"
        )
    return content


def _load(module: nn.Module, state: dict[str, Tensor], path: Path, what: str, options: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} is of another {what}; give the {options} it was made with ({error})"
        ) from error


class SimCLROutput(NamedTuple):
    """Both branches' head outputs, as the first two entries of `StochConOutput`. Shape: (N, P) each."""

    v: Tensor
    v_prime: Tensor


class SimCLR(nn.Module):
    """The model without a latent: encoder f and head g.

    Args:
        encoder: maps images to features; its `num_features` is their width.
        projection_dim: width P of the head's output.
        norm: of the head's hidden layer, "batch" or "group".
    """

    def __init__(self, encoder: nn.Module, projection_dim: int, norm: str = "batch") -> None:
        super().__init__()
        width = encoder.num_features
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            group_norm(width) if norm == "group" else nn.BatchNorm1d(width),
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
    name: str,
    encoder: str,
    dim: int,
    projection_dim: int,
    *,
    size: int = 32,
    norm: str = "batch",
    weights: Path | None = None,
    pretrained: bool = False,
    symmetric: bool = False,
    variance_from: str | None = None,
    **options: Any,
) -> nn.Module:
    """One of `CONTRASTIVE` around one of `ENCODERS`, the same head for all.

    Args:
        name: "simclr", or the kind of a StochCon latent.
        encoder: one of `ENCODERS`.
        dim: latent dimensions.
        projection_dim: width of the head's output.
        size: side of the images in pixels.
        norm: of encoder and head, "batch" or "group".
        weights: checkpoint that the encoder starts from.
        pretrained: let the encoder start from timm's weights.
        symmetric: run StochCon both ways round.
        variance_from: view that gives a Gaussian's variance; None for the library's default.
        **options: of `StochasticBottleneck`; those that the kind does not have are left out, and those that are None,
            except `location_std`, where it has a meaning.

    Raises:
        ValueError: for an unknown name.
        WeightsError: for weights that do not fit, or that cannot be had.
    """
    if name not in CONTRASTIVE:
        raise ValueError(f"name must be one of {', '.join(CONTRASTIVE)}, got {name!r}")
    made = make_encoder(encoder, size, norm=norm, weights=weights, pretrained=pretrained)
    simclr = SimCLR(made, projection_dim, norm)
    if name == "simclr":
        return simclr
    foreign = () if name == "bern" else ("temperature", "hard")
    given = {
        key: value
        for key, value in options.items()
        if key not in foreign and (value is not None or key == "location_std")
    }
    bottleneck = StochasticBottleneck(name, dim, in_features=simclr.encoder.num_features, **given)
    wiring = {} if variance_from is None else {"variance_from": variance_from}
    return StochConWrapper.from_simclr(simclr, bottleneck=bottleneck, symmetric=symmetric, **wiring)
