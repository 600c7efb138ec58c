"""Find a model's classifier and the width of its features from its structure, without running it.

torchvision and timm are recognised by their classes' modules and methods, so neither has to be installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, TypeGuard

from torch import nn
from torch.optim.swa_utils import AveragedModel

HEADS = ("fc", "classifier", "head", "heads")
"""Attributes that hold the classifier: all of torchvision's models use one of these."""
WIDTHS = ("feature_dim", "output_dim", "out_features", "num_features", "embed_dim", "hidden_size")
"""Attributes with the width of a model's features; those of an output come first."""
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""GoogLeNet's and Inception v3's auxiliary classifiers, which make the output in training a tuple."""
CONCATENATED = {"GoogLeNet": 1024, "Inception3": 2048, "SqueezeNet": 512}
"""Widths of torchvision models that end in parallel convolutions, which only their forward joins."""
SHORTCUTS = ("downsample", "shortcut", "skip", "proj")
"""Names of a residual block's second path, which ends at the width of the first."""
OTHER_TASKS = {
    "torchvision.models.detection": "pass its backbone's body (model.backbone.body)",
    "torchvision.models.segmentation": "pass the classification model it was built on",
    "torchvision.models.optical_flow": "pass a classification model",
    "torchvision.models._utils": "pass the model its layers were taken from",
    "timm.models._features": "build the model without features_only=True",
}

_KEEPS_WIDTH = (
    *(f"torch.nn.modules.{stem}" for stem in ("activation", "dropout", "linear", "padding")),
    "torchvision.ops.misc",
)
"""Modules whose layers keep the width, unless they have one of their own."""

_WRAPPERS = ("timm.utils.model_ema", "lightning.fabric.wrappers", "lightning_fabric.wrappers")
"""Modules of classes that hold a model as `module`."""

_State = tuple[int | None, int | None]
"""Width and number of positions of the maps at one point of a model; None if unknown."""


def unwrap(model: nn.Module) -> nn.Module:
    """Model inside a compiled or data-parallel module, Fabric's, or a moving average of weights by torch or timm."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        known = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel))
        if known or is_from(model, *_WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def refuse_other_tasks(model: nn.Module) -> None:
    """Refuse models whose output is not a feature: detection, segmentation, optical flow, lists of maps."""
    for base in type(model).__mro__:
        for origin, advice in OTHER_TASKS.items():
            if base.__module__.startswith(origin):
                raise ValueError(
                    f"model must give one output that can become features, got {type(model).__name__} of "
                    f"{origin}; {advice}"
                )


def prefix_tokens(model: nn.Module) -> int:
    """Number of class, distillation and register tokens at the start of a token sequence, as in timm."""
    number = getattr(model, "num_prefix_tokens", None)
    if isinstance(number, int):
        return number
    # timm's VOLO has a class token but does not count it.
    return int(is_from(model, "timm.") and isinstance(getattr(model, "cls_token", None), nn.Parameter))


def is_channels_last(model: nn.Module) -> bool:
    """Whether feature maps are (N, H, W, C), by timm's attribute."""
    return getattr(model, "output_fmt", None) == "NHWC"


def is_from(model: nn.Module, *packages: str) -> bool:
    """Whether a model's class, or one that it inherits from, is defined in one of several packages or modules."""
    return any(base.__module__.startswith(packages) for base in type(model).__mro__)


def is_classifier(model: nn.Module) -> bool:
    """Whether a model is a classification model of timm's or torchvision's."""
    return _is_timm(model) or _is_torchvision(model)


def strip_classifier(model: nn.Module, *, insist: bool) -> int | None:
    """Remove the classifier of a classification model, in place, if it has one.

    Args:
        model: model to change.
        insist: refuse a model without a classifier, unless it was removed before.

    Returns:
        Width of the removed layer's input, if that is the width of the features.
    """
    if _is_timm(model):
        _strip_timm(model)
        return None
    for name in AUXILIARY:
        if isinstance(getattr(model, name, None), nn.Module) and hasattr(model, "aux_logits"):
            setattr(model, name, None)
            model.aux_logits = False  # type: ignore[assignment]
    found = _find_classifier(model)
    if found is None:
        if insist:
            children = ", ".join(name for name, _ in model.named_children()) or "none"
            raise ValueError(
                "strip=True needs a model that ends in a classifier: a last Linear in a Sequential, or in "
                f"one of the attributes {', '.join(HEADS)}; {type(model).__name__} has the children "
                f"{children}. Replace its classifier by nn.Identity() yourself and leave strip=None"
            )
        return None
    parent, names = found
    last = parent.get_submodule(names[0])
    for name in names:
        setattr(parent, name, nn.Identity().train(last.training))
    ends = _ends(last)
    return ends[0] if ends else _int(last, "in_features")


def input_width(head: nn.Module) -> int | None:
    """Width of the rows that a head takes; None for a lazy head or one without layers."""
    for layer in head.modules():
        ends = _ends(layer)
        if ends is None:
            continue
        if hasattr(layer, "kernel_size"):
            raise ValueError(
                f"head must take rows of features (N, F), but begins with {type(layer).__name__}; "
                "name the part that follows the pooling"
            )
        return ends[0] or None
    return None


def is_pool(module: nn.Module) -> bool:
    """Whether a module is a pooling layer over space."""
    return is_from(module, nn.AvgPool2d.__module__)


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module runs its children in order; a subclass of Sequential may not."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def feature_width(model: nn.Module) -> int | None:
    """Width of a model's features from its structure; None if unknown."""
    if _is_timm(model):
        layers = _timm_classifier(model)
        if layers:
            return _int(layers[0], "out_features") or _int(model, "num_classes")
        return _int(model, "head_hidden_size") or _int(model, "num_features")
    if _is_torchvision(model):
        return _torchvision_width(model)
    stated = next((width for name in WIDTHS if (width := _int(model, name))), None)
    if stated is None and (is_chain(model) or _ends(model)):
        stated, _ = _step(model, None, None)
    return stated


def _is_timm(model: nn.Module) -> bool:
    return callable(getattr(model, "reset_classifier", None)) and _int(model, "num_features") is not None


def _is_torchvision(model: nn.Module) -> bool:
    return is_from(model, "torchvision.models.") and any(name in model._modules for name in HEADS)


def _int(model: nn.Module, name: str) -> int | None:
    value = getattr(model, name, None)
    return value if _is_int(value) and value > 0 else None


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _timm_classifier(model: Any) -> list[nn.Module]:
    try:
        found = model.get_classifier()
    except AttributeError:  # the user has replaced the head that held it
        return []
    heads = found if isinstance(found, (tuple, list)) else [found]  # two of distilled models
    modules = [module for head in heads if isinstance(head, nn.Module) for module in head.modules()]
    return [module for module in modules if isinstance(module, nn.Conv2d) or _is_linear(module)]


def _strip_timm(model: Any) -> None:
    if not _timm_classifier(model):
        return
    before = set(model.modules())
    model.reset_classifier(0)
    # Some versions of timm leave the layers they put in place in training mode.
    for module in set(model.modules()) - before:
        module.training = model.training


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear, or stands for one: quantized, compiled, or with an adapter (LoRA)."""
    widths = (getattr(layer, name, None) for name in ("in_features", "out_features"))
    return isinstance(layer, nn.Linear) or all(_is_int(width) for width in widths)


def _find_classifier(model: nn.Module) -> tuple[nn.Module, list[str]] | None:
    """Parent and names of the last layer and the activation after it; an Identity is a classifier removed before."""
    name = next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)), None)
    head = model if name is None else getattr(model, name)
    if is_chain(head):
        return _find_last_layer(head)
    return (model, [name]) if name is not None and (isinstance(head, nn.Identity) or _is_linear(head)) else None


def _find_last_layer(sequence: nn.Sequential) -> tuple[nn.Module, list[str]] | None:
    names: list[str] = []
    pooled = False
    for name, layer in reversed(sequence._modules.items()):
        if is_chain(layer):
            return _find_last_layer(layer)
        pointwise = set(getattr(layer, "kernel_size", (0,))) == {1} if _ends(layer) else False
        if isinstance(layer, nn.Identity) or _is_linear(layer) or pointwise:
            return sequence, [name, *names]
        if isinstance(layer, nn.Flatten) or is_pool(layer):
            pooled = pooled or is_pool(layer)
        elif isinstance(layer, (nn.Softmax, nn.LogSoftmax)) or (pooled and isinstance(layer, nn.ReLU)):
            names.append(name)  # SqueezeNet's scores are convolution, ReLU, pooling
        else:  # such as the ReLU or dropout after a hidden layer: the classifier has been cut off
            return None
    return None


def _torchvision_width(model: nn.Module) -> int | None:
    width: int | None = None
    cells: int | None = None
    for name, child in model.named_children():
        if name in AUXILIARY:
            continue
        if name in HEADS and cells is not None:  # the model's forward flattens here
            width, cells = width and width * cells, 1
        width, cells = _step(child, width, cells)
    if width is None and cells == 1:
        known = [CONCATENATED[base.__name__] for base in type(model).__mro__ if base.__name__ in CONCATENATED]
        width = known[0] if known else None
    return width


def _walk(modules: Iterable[nn.Module], width: int | None, cells: int | None) -> _State:
    for module in modules:
        width, cells = _step(module, width, cells)
    return width, cells


def _step(module: nn.Module, width: int | None, cells: int | None) -> _State:
    """State after a module."""
    if is_chain(module):
        return _walk(module, width, cells)
    if is_classifier(module):
        return feature_width(module), None
    shape = getattr(module, "normalized_shape", ())
    if shape and (width or len(shape) > 1):  # whose last entry may be a height or a width of the maps
        return width, cells
    ends = _ends(module)
    if ends is not None:
        return ends[1] or width, None if hasattr(module, "kernel_size") else cells
    if isinstance(module, nn.Flatten):
        whole = (module.start_dim, module.end_dim) == (1, -1)
        return (width * cells if whole and width and cells else None), 1 if whole else None
    if is_pool(module):
        return width, _pooled_cells(module, cells)
    if next(module.children(), None) is None:
        keeps = type(module).__module__ in _KEEPS_WIDTH and not isinstance(module, nn.GLU)
        return (width, cells) if keeps else (None, None)
    return _block_width(module, width), None


def _pooled_cells(pool: nn.Module, cells: int | None) -> int | None:
    size = getattr(pool, "output_size", None)
    if size is None:
        return 1 if cells == 1 else None
    axes = next((n for n in (2, 3) if f"{n}d" in type(pool).__name__), 1)
    sizes = size if isinstance(size, tuple) else (size,) * axes
    return None if None in sizes else prod(sizes)


def _block_width(block: nn.Module, width: int | None) -> int | None:
    """Output width of a block, if its layers form one chain apart from a shortcut."""
    if isinstance(last := list(block.children())[-1], nn.LayerNorm) and len(last.normalized_shape) == 1:
        return _ends(last)[1]  # type: ignore[index]
    found = False
    for name, layer in block.named_modules():
        ends = _ends(layer)
        if ends is None or any(part in SHORTCUTS for part in name.split(".")):
            continue
        if ends[0] != width:  # parallel paths, whose joined width is unknown
            return None
        width, found = ends[1], True
    return width if found else None


def _ends(layer: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a layer; 0 if a lazy layer does not know it yet."""
    if next(layer.children(), None) is not None:
        return None
    for start, end in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if _is_int(getattr(layer, start, None)) and _is_int(getattr(layer, end, None)):
            return getattr(layer, start), getattr(layer, end)
    for name in ("num_features", "num_channels", "normalized_shape"):
        width = getattr(layer, name, None)
        width = width[-1] if isinstance(width, tuple) else width
        if _is_int(width):
            return width, width
    return None
