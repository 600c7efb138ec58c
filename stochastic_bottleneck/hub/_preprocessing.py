"""Preprocessing of images as a saved model needs them: timm's evaluation transform from a config with timm's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._extras import require
from stochastic_bottleneck.encoders import unwrap

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["preprocessing"]

DEFAULTS = {"crop_mode": "center", "interpolation": "bicubic"}  # timm's
KEYS = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest")
MODES = {1: "L", 3: "RGB"}
"""PIL's mode for a number of channels."""
MORE_THAN_8_BITS = ("I", "F")
"""How PIL's modes begin that `convert` would clip."""


def preprocessing(model_or_cfg: nn.Module | Mapping[str, Any]) -> Callable[[Image], Tensor]:
    """Preprocess images as a saved model was evaluated: resize, crop, scale to 0..1 and normalize.

    The transform is timm's own for evaluation. Images of other modes (grey, palette, transparent) are converted.

    Args:
        model_or_cfg: a `HubModel` with a `pretrained_cfg`, or such a config itself: a dict with timm's keys
            `input_size` (C, H, W), `crop_pct`, `crop_mode` ("center" if left out), `interpolation` ("bicubic" if left
            out), `mean` and `std`.

    Returns:
        Function from a PIL image to a tensor of Shape: (C, H, W). It can be pickled, for a DataLoader's workers. It
        raises TypeError for anything but a PIL image, ValueError for one of 16 bits or floating point.

    Raises:
        ValueError: for a model without a config, keys that are missing or unknown, values outside their range, and
            numbers of channels other than 1 and 3.
        TypeError: for anything but a module or a mapping, and values of another type.
        ModuleNotFoundError: without timm.

    Example:
        >>> from PIL import Image
        >>> cfg = {"input_size": (3, 32, 32), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"}
        >>> transform = preprocessing(cfg | {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})
        >>> transform(Image.new("RGB", (80, 60))).shape
        torch.Size([3, 32, 32])
    """
    cfg: object = model_or_cfg
    if isinstance(model_or_cfg, nn.Module):
        cfg = getattr(unwrap(model_or_cfg), "pretrained_cfg", None)
        if cfg is None:
            raise ValueError(
                f"model_or_cfg must have a pretrained_cfg, got a {type(model_or_cfg).__name__} without; pass a dict "
                f"with {', '.join(KEYS)}, or save the model with HubModel.from_wrapper(..., pretrained_cfg=...)"
            )
    checked = check_pretrained_cfg("model_or_cfg", cfg)
    channels, *size = checked.pop("input_size")
    if channels not in MODES:
        raise ValueError(
            f"model_or_cfg must have an input_size of 1 or 3 channels, got {channels}; preprocess such images yourself"
        )
    create: Any = require("timm.data", "hub.preprocessing", "vision").create_transform
    return _Preprocessing(MODES[channels], create((channels, *size), is_training=False, **checked))


class _Preprocessing:
    """Convert a PIL image to a mode, then apply a transform."""

    def __init__(self, mode: str, transform: Callable[[Image], Tensor]) -> None:
        self.mode, self.transform = mode, transform

    def __call__(self, image: Image) -> Tensor:
        mode = getattr(image, "mode", None)
        if not isinstance(mode, str):
            raise TypeError(f"image must be a PIL image, got {type(image).__name__}")
        if mode.startswith(MORE_THAN_8_BITS):
            raise ValueError(
                f"image must have 8 bits per channel, got mode {mode!r}; scale it and convert it to {self.mode} first"
            )
        return self.transform(image.convert(self.mode))

    def __repr__(self) -> str:
        return f"preprocessing({self.mode}, {self.transform})"


def check_pretrained_cfg(name: str, cfg: object) -> dict[str, Any]:
    """The config with tuples and plain numbers, after a check of its keys and values.

    Raises:
        TypeError: for anything but a mapping, and values of another type.
        ValueError: for keys that are missing or unknown, and values outside their range.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(
            f"{name} must be a dict with timm's keys {', '.join(KEYS)}, got {cfg!r:.80}; "
            "timm.data.resolve_model_data_config(timm_model) makes one"
        )
    given, cfg = cfg, DEFAULTS | {**cfg}
    if set(cfg) != set(KEYS):
        raise ValueError(
            f"{name} must hold exactly {', '.join(KEYS)}, got {', '.join(map(str, given)) or 'none'}; "
            "timm.data.resolve_model_data_config(timm_model) picks them"
        )
    sides = [
        _checks.integer(f"{name}['input_size'][{i}]", side, most=4096)
        for i, side in enumerate(_entries(f"{name}['input_size']", cfg["input_size"], 3))
    ]
    for key, choices in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
        _checks.choice(f"{name}[{key!r}]", cfg[key], choices)
    # timm resizes to side / crop_pct pixels, so a small crop_pct could ask for any amount of memory.
    crop_pct = _checks.real(f"{name}['crop_pct']", cfg["crop_pct"], least=0.1, most=1)
    statistics = {
        key: tuple(
            _checks.real(f"{name}[{key!r}][{i}]", value, above=above)
            for i, value in enumerate(_entries(f"{name}[{key!r}]", cfg[key], sides[0]))
        )
        for key, above in (("mean", None), ("std", 0))
    }
    return {
        "input_size": tuple(sides),
        "crop_pct": crop_pct,
        "crop_mode": cfg["crop_mode"],
        "interpolation": cfg["interpolation"],
        **statistics,
    }


def describe(cfg: Mapping[str, Any]) -> str:
    """What `preprocessing` does, in a sentence."""
    channels, *sides = cfg["input_size"]
    resized = " x ".join(str(int(side / cfg["crop_pct"])) for side in sides)
    rule = {
        "center": f"the shorter side resized to fill {resized} pixels",
        "squash": f"resized to {resized} pixels",
        "border": f"resized to fit into {resized} pixels, with borders of the mean",
    }[cfg["crop_mode"]]
    return (
        f"{MODES.get(channels, f'{channels} channels')}, {rule} ({cfg['interpolation']}), center crop of "
        f"{' x '.join(map(str, sides))}, scaled to 0..1, mean {cfg['mean']}, std {cfg['std']}"
    )


def _entries(name: str, value: object, count: int) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list of {count} numbers, got {value!r}")
    if len(value) != count:
        raise ValueError(f"{name} must have {count} entries, got {value!r:.80}")
    return tuple(value)
