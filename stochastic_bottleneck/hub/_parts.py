"""Encoder, bottleneck and head: their description in a config, and the functions that build them from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._layers import linear, mlp
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import Encoder, as_encoder, small_image_stem
from stochastic_bottleneck.hub import _encoders, _files


def build_backbone(name: object, options: object, small_images: object, argument: str = "encoder") -> nn.Module:
    """Build an encoder by its name, with the stem for small images where asked for."""
    model = _encoders.build(name, options, argument)
    return small_image_stem(model) if small_images else model


def builders(config: dict[str, Any], most_bytes: int) -> dict[str, Callable[[], nn.Module] | None]:
    """Functions that build the parts; None for a part that the config does not describe."""
    named, bottleneck, head = config["encoder"], config["bottleneck"], config["head"]
    described = bottleneck is not None and None not in (bottleneck["projector"], bottleneck["upsampler"])

    def build_encoder() -> Encoder:
        model = build_backbone(named["name"], named["options"], named["small_images"])
        _encoders.check_memory(model, most_bytes)
        return with_width(model, named["feature_dim"])

    return {
        "encoder": None if named["name"] is None else build_encoder,
        "bottleneck": partial(StochasticBottleneck, **bottleneck) if described else None,
        "head": None if head is None else partial(_head, **head),
    }


def with_width(model: nn.Module, feature_dim: int | None) -> Encoder:
    """The encoder around a model, with the width that it was saved with, which may be None."""
    encoder = as_encoder(model, feature_dim)
    encoder.feature_dim = feature_dim
    return encoder


def class_name(module: nn.Module) -> str:
    """Class of a part, or what its attribute `built_by` says."""
    return str(getattr(module, "built_by", f"{type(module).__module__}.{type(module).__qualname__}"))


def describe_bottleneck(bottleneck: StochasticBottleneck) -> dict[str, Any]:
    """Options that build it; None for a projector or upsampler of the user's own, and for those of a subclass."""
    width, out, dim = bottleneck.in_features, bottleneck.out_features, bottleneck.dim
    projector = _choice(bottleneck.projector, width, width, bottleneck.parameter_width)
    upsampler = _choice(bottleneck.upsampler, dim, out, out)
    if type(bottleneck) is not StochasticBottleneck:
        projector = upsampler = None
    options = {name: getattr(bottleneck, name) for name in _files.BOTTLENECK}
    return {**options, "projector": projector, "upsampler": upsampler}


def differing_options(bottleneck: Any, saved: dict[str, Any] | None) -> str:
    """Describe the options other than widths that differ from those saved; an empty string where none does."""
    names = [] if saved is None else [name for name in _files.BOTTLENECK if name not in _files.WIDTHS["bottleneck"]]
    found = [(name, getattr(bottleneck, name), (saved or {})[name]) for name in names]
    return ", ".join(f"{name} is {own!r} in the model and {was!r} as saved" for name, own, was in found if own != was)


def describe_head(head: nn.Module, width: int | None) -> dict[str, Any] | None:
    """Options that build it, or None for a head other than linear, BatchNorm or none, ReLU, linear."""
    if not isinstance(head, nn.Sequential) or len(head) < 3:
        return None
    if not all(isinstance(end, nn.Linear) for end in (head[0], head[-1])):
        return None
    widths: Any = {"hidden_dim": head[0].out_features, "projection_dim": head[-1].out_features}
    options = {"width": width, **widths, "norm": isinstance(head[1], nn.modules.batchnorm._BatchNorm)}
    with torch.device("meta"):
        return options if layers(_head(**options)) == layers(head) else None


def _head(width: int | None, hidden_dim: int, projection_dim: int, norm: object) -> nn.Sequential:
    _checks.flag("head.norm", norm)
    if norm:
        return mlp(width, hidden_dim, projection_dim)
    return nn.Sequential(linear(width, hidden_dim), nn.ReLU(), linear(hidden_dim, projection_dim))


def layers(module: nn.Module) -> str:
    """Text of a module's layers and those of their options that change a value."""
    # Also Lightning's _BatchNormXd, left in place of SyncBatchNorm, and timm's norms with an activation.
    text = re.sub(r"\b_?(?:Sync)?BatchNorm(Act)?(?:[123X]d)?\b", r"BatchNorm\1", str(module))
    return text.replace(", inplace=True", "").replace("inplace=True", "")


def _choice(module: nn.Module, width: int | None, hidden: int | None, out: int | None) -> str | None:
    """Name of the library's projector or upsampler that a module equals, or None."""
    with torch.device("meta"):
        choices = {"linear": linear(width, out), "mlp": mlp(width, hidden, out), "identity": nn.Identity()}
    return next((name for name, choice in choices.items() if layers(choice) == layers(module)), None)
