"""Encoders: turn any image model into a map from images to one row of features each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stochastic_bottleneck import _checks, _simclr, _strip
from stochastic_bottleneck._strip import unwrap as unwrap

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Encoder", "as_encoder", "simclr_parts", "small_image_stem"]


class Encoder(nn.Module):
    """Backbone whose output is reduced to one row of features per image.

    Feature maps are averaged over space, and token sequences over their tokens without class and register tokens
    (timm's `num_prefix_tokens`). Either is flattened instead if `feature_dim` is the flattened width; rows pass
    unchanged. Training and evaluation mode differ only in the backbone; see also `freeze`.

    Args:
        backbone: maps images to feature maps (N, F, H, W) or (N, H, W, F), tokens (N, T, F) or rows (N, F).
        feature_dim: width F of the features; None leaves it unchecked, with channels first.

    Raises:
        ValueError: for a width that is not a positive int, a backbone's output of another width, or images that are
            empty or on another device.
        TypeError: for a backbone that is not a module, or that does not return a single tensor, and for images that are
            not in floating point, or of another dtype than the weights where the backbone cannot take it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> images = torch.randn(4, 3, 8, 8)
        >>> Encoder(nn.Conv2d(3, 16, 3), feature_dim=16)(images).shape
        torch.Size([4, 16])
        >>> Encoder(nn.Conv2d(3, 16, 3), feature_dim=16 * 6 * 6)(images).shape
        torch.Size([4, 576])
    """

    _frozen: tuple[str, ...] | None = None
    """Names of the parameters that `freeze` has frozen; None while not frozen."""

    def __init__(self, backbone: nn.Module, feature_dim: int | None = None) -> None:
        super().__init__()
        _check_module("backbone", backbone)
        self.backbone = backbone
        self.feature_dim = _width(feature_dim)
        self.training = backbone.training
        self._prefix_tokens = _strip.prefix_tokens(backbone)
        self._channels_last = _strip.is_channels_last(backbone)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images.

        Args:
            x: images. Shape: (N, C, H, W)

        Returns:
            Shape: (N, F)
        """
        _checks.check_images(x, "x")
        if torch.compiler.is_compiling():
            output = self._run(x)
        else:
            try:
                output = self._run(x)
            except RuntimeError as error:
                _checks.explain_mismatch("x", x, self.backbone, error)
                raise
        if not isinstance(output, Tensor):
            raise TypeError(
                f"backbone must return one tensor, got {type(output).__name__}; wrap it in a module that "
                "picks the features (such as output[0] or output.pooler_output), or remove auxiliary heads"
            )
        features = self._pool(output)
        # A convolution takes a single image too, and gives maps whose first dimension is the channels.
        if features.ndim != 2 or features.shape[0] != x.shape[0]:
            raise ValueError(
                f"backbone must give features or maps of each image of x, {tuple(x.shape)}, got an output shaped "
                f"{tuple(output.shape)}; pass images of shape (N, C, H, W)"
            )
        if self.feature_dim is not None and features.shape[1] != self.feature_dim:
            raise ValueError(
                f"backbone must give feature_dim={self.feature_dim} features, got {features.shape[1]} in an "
                f"output of shape {tuple(output.shape)}; pass the feature_dim that fits"
            )
        return features

    @property
    def frozen(self) -> bool:
        """Whether the encoder is frozen."""
        return self._frozen is not None

    def freeze(self, frozen: bool = True) -> Self:
        """Freeze weights and statistics: no gradient, no stored activations, and evaluation mode even after `train()`.

        Parameters that are unfrozen afterwards, such as those of the last block, are trained, in evaluation mode.

        Args:
            frozen: False unfreezes the encoder, which leaves evaluation mode with the next `train()`; parameters that
                needed no gradient before still need none.

        Returns:
            The encoder itself.
        """
        _checks.flag("frozen", frozen)
        before = self._frozen or ()
        if frozen:
            names = (name.replace("_orig_mod.", "") for name, p in self.named_parameters() if p.requires_grad)
            self._frozen = (*before, *names)
            self.requires_grad_(False)
            return self.eval()
        for name, p in self.named_parameters():
            # A submodule may have been compiled since.
            p.requires_grad_(p.requires_grad or name.replace("_orig_mod.", "") in before)
        self._frozen = None
        return self

    def train(self, mode: bool = True) -> Self:
        """Training mode, unless the encoder is frozen."""
        return super().train(mode and self._frozen is None)

    def _run(self, x: Tensor) -> object:
        if self._frozen is None or any(p.requires_grad for p in self.backbone.parameters()):
            return self.backbone(x)
        with torch.no_grad():
            return self.backbone(x)

    def _pool(self, output: Tensor) -> Tensor:
        if output.ndim < 3:
            return output
        width, shape = self.feature_dim, output.shape
        last = output.ndim == 3 or self._channels_last
        if width is not None and shape[-1 if last else 1] != width:
            if shape[1:].numel() == width:
                return output.flatten(1)
            last ^= shape[1 if last else -1] == width
        if output.ndim == 3 and last:
            output = output[:, self._prefix_tokens :]
        first = 1 if last else 2
        return output.mean(tuple(range(first, first + output.ndim - 2)))

    def extra_repr(self) -> str:
        """Width of the features."""
        return f"feature_dim={self.feature_dim}"


def as_encoder(model: nn.Module, feature_dim: int | None = None, strip: bool | None = None) -> Encoder:
    """Turn an image model into an encoder, without running it.

    The classifier is removed in place: by a timm model's own `reset_classifier`, and from any other model only the
    last layer, so that dropout and hidden layers before it stay. Weights are shared; training flags, BatchNorm
    statistics and the random state do not change.

    Args:
        model: torchvision or timm classification model, or any module that maps images to features. A
            compiled or data-parallel module around it is unwrapped; an `Encoder` is returned itself.
        feature_dim: width F of the features; None to read it from the model's structure or its attributes
            (`feature_dim`, `num_features`, `embed_dim`, ...).
        strip: remove the classifier. None removes it from models of torchvision and timm; True also from
            others, if it ends a Sequential, or is (the end of) `fc`, `classifier`, `head` or `heads`;
            False keeps it.

    Returns:
        The encoder. Its `feature_dim` is None if the structure does not determine it.

    Raises:
        ValueError: for strip=True and no classifier found, a detection or segmentation model, or a width that
            is not a positive int or not that of the `Encoder` given.
        TypeError: for a model that is not a module, or a strip that is not a bool or None.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        >>> as_encoder(net).feature_dim, as_encoder(net, strip=True).feature_dim
        (10, 16)
    """
    _check_module("model", model)
    feature_dim = _width(feature_dim)
    if strip is not None and not isinstance(strip, bool):
        raise TypeError(f"strip must be True, False or None, got {strip!r}")
    model = unwrap(model)
    backbone = model.backbone if isinstance(model, Encoder) else model
    _strip.refuse_other_tasks(backbone)
    width = None
    if strip or (strip is None and not isinstance(model, Encoder) and _strip.is_classifier(backbone)):
        width = _strip.strip_classifier(backbone, insist=bool(strip))
    if not isinstance(model, Encoder):
        return Encoder(backbone, feature_dim or width or _strip.feature_width(backbone))
    width = width or model.feature_dim or feature_dim
    if feature_dim not in (None, width):
        raise ValueError(f"feature_dim must be the Encoder's own, {width}, or None, got {feature_dim}")
    model.feature_dim = width
    return model


def simclr_parts(
    model: nn.Module, encoder: str | nn.Module | None = None, head: str | nn.Module | None = None
) -> tuple[Encoder, nn.Module]:
    """Find the encoder and the projection head of an existing SimCLR model.

    Nothing is stripped, and both parts are the model's own. Between them the model is assumed to flatten or
    to average over space or tokens, as `Encoder` does; if it does something else (take the class token, say),
    pass as `encoder` a module that does the same. Pooling layers at the start of a Sequential head move to the
    encoder. A head named inside the encoder (`head="backbone.fc"`) leaves an Identity in its place.

    Args:
        model: model with the two parts in attributes such as `backbone` and `projection_head` (lightly),
            `backbone` and `projector` (solo-learn), `encoder` and `head`.
        encoder: the encoder, as a module or the attribute's name, with dots for nested ones; None to find it.
        head: the projection head, likewise. It takes rows of features (N, F).

    Returns:
        Encoder and head. The encoder's `feature_dim` is the input width of the head's first layer.

    Raises:
        ValueError: for a part that is not found or found more than once, and a head that takes feature maps.
        TypeError: for a model or part that is not a module, or a name.

    Example:
        >>> from torch import nn
        >>> class SimCLR(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone = nn.Conv2d(3, 16, 3)
        ...         self.projection_head = nn.Linear(16, 8)
        >>> encoder, head = simclr_parts(SimCLR())
        >>> encoder.feature_dim, head
        (16, Linear(in_features=16, out_features=8, bias=True))
    """
    _check_module("model", model)
    model = unwrap(model)
    _strip.refuse_other_tasks(model)
    found, projection = _simclr.find_parts(model, encoder, head)
    if found in projection.modules():
        raise ValueError("encoder must be outside the head, got a part of it; name the module before the head")
    inside = next((name for name, module in found.named_modules() if module is projection), None)
    if inside is not None and type(projection) is nn.Identity:
        raise ValueError(
            f"head must be a projection head, got the Identity at {inside!r} of the encoder, such as this function "
            "leaves; pass the head that was there, or load the model again"
        )
    pools, rest = _simclr.split_leading_pools(projection)
    rows_head = _simclr.chain(rest, projection.training) if pools else projection
    width = _strip.input_width(rows_head)  # raises before the model is changed
    if inside is not None:
        parent, _, name = inside.rpartition(".")
        setattr(found.get_submodule(parent), name, nn.Identity().train(projection.training))
    if pools:
        found = _simclr.chain([found, *pools], found.training)
    return as_encoder(found, width, strip=False), rows_head


def small_image_stem(model: nn.Module) -> nn.Module:
    """Give a ResNet SimCLR's stem for CIFAR, in place: for images of up to 64 pixels a side.

    A single 7x7 convolution becomes a 3x3 one with stride 1 and new weights, a deep stem keeps its convolutions, and
    the max pooling becomes the identity. A model that has this stem already is left as it is.

    Args:
        model: ResNet of torchvision or timm, or an `Encoder` or compiled module around one.

    Returns:
        The model itself.

    Raises:
        ValueError: for a model of another architecture, or with another stem.
        TypeError: for a model that is not a module.

    Example:
        >>> import timm
        >>> model = small_image_stem(timm.create_model("resnet18", num_classes=0))
        >>> model.conv1.kernel_size, model.conv1.stride, model.maxpool
        ((3, 3), (1, 1), Identity())

    Source:
        SimCLR (arXiv 2002.05709), appendix B.9.
    """
    _check_module("model", model)
    inner = unwrap(model)
    _simclr.shrink_stem(inner.backbone if isinstance(inner, Encoder) else inner)
    return model


def _check_module(name: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a module, got {type(module).__name__}")


def _width(feature_dim: object) -> int | None:
    if feature_dim is None:
        return None
    return _checks.integer("feature_dim", feature_dim, hint="None reads it from the model")
