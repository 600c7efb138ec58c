"""Build encoders by name: only names and options listed here are passed from a file to another library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._extras import require

Check = Callable[[str, object], Any]


def _one_or_several(check: Check, name: str, value: object) -> Any:
    if not isinstance(value, (list, tuple)):
        return check(name, value)
    if not 1 <= len(value) <= 16:
        raise ValueError(f"{name} must have 1 to 16 entries, got {len(value)}")
    return [check(f"{name}[{i}]", entry) for i, entry in enumerate(value)]


def _choice(choices: tuple[str, ...], name: str, value: object) -> object:
    _checks.choice(name, value, choices)
    return value


def _only_none(name: str, value: object) -> None:
    raise TypeError(f"{name} must be None, got {value!r}; build the encoder yourself and pass it as encoder=")


def _table(check: Check, names: str) -> dict[str, Check]:
    return dict.fromkeys(names.split(), check)


_count = partial(_checks.integer, least=0, most=256)
_width = partial(_checks.integer, least=1, most=2**16)
_side = partial(_checks.integer, least=1, most=4096)
_rate = partial(_checks.real, least=0, most=1)
_factor = partial(_checks.real, least=0, most=100)

OPTIONS: dict[str, Check] = {
    **_table(partial(_checks.integer, least=0, most=2**15), "num_classes"),
    **_table(_width, "in_chans groups width_per_group base_width cardinality stem_width growth_rate bn_size"),
    **_table(_width, "representation_size head_hidden_size"),
    **_table(_side, "image_size"),
    **_table(_count, "depth output_stride reg_tokens"),
    **_table(partial(_one_or_several, _width), "embed_dim embed_dims dims channels"),
    **_table(partial(_one_or_several, _side), "img_size patch_size window_size"),
    **_table(partial(_one_or_several, _count), "depths layers num_heads"),
    **_table(partial(_one_or_several, _factor), "mlp_ratio mlp_ratios"),
    **_table(_factor, "width_mult init_values layer_scale layer_scale_init_value ls_init_value"),
    **_table(_rate, "drop_rate drop_path_rate proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate"),
    **_table(_rate, "drop_block_rate dropout attention_dropout stochastic_depth_prob"),
    **_table(_checks.flag, "aux_logits init_weights transform_input memory_efficient zero_init_residual"),
    **_table(_checks.flag, "zero_init_last avg_down replace_stem_pool qkv_bias qk_norm pre_norm final_norm"),
    **_table(_checks.flag, "fc_norm class_token no_embed_class dynamic_img_size dynamic_img_pad strict_img_size"),
    **_table(_checks.flag, "always_partition scriptable exportable"),
    **_table(partial(_one_or_several, _checks.flag), "replace_stride_with_dilation"),
    **_table(partial(_choice, ("", "avg", "max", "avgmax", "catavgmax", "fast", "token", "map")), "global_pool"),
    **_table(partial(_choice, ("relu", "leaky_relu", "silu", "gelu", "mish", "hard_swish")), "act_layer"),
    **_table(partial(_choice, ("", "deep", "deep_tiered")), "stem_type"),
    **_table(_only_none, "norm_layer"),
}
"""Constructor options of timm and torchvision that may be saved, with checks of their values; None is always valid.

A config may come from anybody. Never add an option that is a path, an address, a name to import or a dictionary that is
passed on, or one that makes a library read, download or unpickle anything (checkpoint_path, pretrained_cfg,
weights_backbone, cache_dir, ...). Sizes are bounded, so that no file can ask for a model of any size.
"""


def check_options(options: object) -> dict[str, Any]:
    """Check options, and return them as JSON gives them back, so that saving and loading build the same encoder.

    Raises:
        TypeError: for anything but a mapping, or a value of another type.
        ValueError: for an option that is not in `OPTIONS`, or a value outside its range.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"encoder_options must be a mapping of names to values, got {type(options).__name__}")
    if unknown := sorted(str(name) for name in options if name not in OPTIONS):
        raise ValueError(
            f"encoder_options must not hold {', '.join(map(repr, unknown))}: a saved model passes on only options that "
            "are known to be harmless; build the encoder yourself (pretrained or not) and pass it as encoder="
        )
    return {
        name: value if value is None else OPTIONS[name](f"encoder_options[{name!r}]", value)
        for name, value in options.items()
    }


def build(name: object, options: object, argument: str = "encoder") -> nn.Module:
    """Build the classification model of torchvision or timm of this name, without pretrained weights.

    Raises:
        TypeError: for a name that is not a string, and as `check_options`.
        ValueError: for a name that is not registered, options that do not build it, and as `check_options`.
    """
    if not isinstance(name, str):
        raise TypeError(f'{argument} must be a name such as "timm:resnet18", got {name!r}')
    library, _, model = name.partition(":")
    if library not in ("timm", "torchvision") or not re.fullmatch(r"[A-Za-z0-9_.]+", model):
        raise ValueError(
            f'{argument} must be a name such as "torchvision:resnet18" or "timm:resnet18", or a module as encoder, '
            f"got {name!r}"
        )
    checked = check_options(options)
    package = require(library, f"the encoder {name!r}", "vision")
    # Both look up a table. torchvision's has detection models too, whose backbones download weights by default.
    found = package.is_model(model) if library == "timm" else model in _classifiers(package)
    if not found:
        raise ValueError(f"{argument} must name a classification model of {library}, got {name!r}")
    create: Any = package.create_model if library == "timm" else package.models.get_model
    safe: dict[str, Any] = {"pretrained": False} if library == "timm" else {"weights": None}
    try:
        built: nn.Module = create(model, **safe, **checked)
    except NotImplementedError:  # caught by `shapes`
        raise
    except Exception as error:  # constructors raise every kind for options that they do not take
        raise ValueError(f"{name!r} cannot be built with encoder_options={checked} ({error})") from error
    return built


def check_memory(model: nn.Module, most: int) -> None:
    """Refuse a model much larger than its saved weights, such as one with a huge classifier or position table.

    Raises:
        ValueError: for parameters and buffers of more than `most` bytes.
    """
    size = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    if size > most:
        raise ValueError(
            f"encoder_options must not ask for more memory than the weights account for, {most:,} bytes with some "
            f"room, got a model of {size:,}; build the encoder yourself and pass it as encoder="
        )


def shapes(make: Callable[[], nn.Module]) -> nn.Module:
    """Build on the meta device where possible: shapes to compare, without memory for values."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # a few models, such as RegNets, read values while they are built
        with torch.random.fork_rng(devices=[]):
            return make()


def _classifiers(torchvision: Any) -> list[str]:
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found
