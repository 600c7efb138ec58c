"""SimCLR's models: their encoder, their projection head, and their stem for small images."""

from __future__ import annotations

from torch import nn

from stochastic_bottleneck import _strip

ENCODER_NAMES = (
    "backbone",  # lightly, solo-learn
    "encoder",  # SupContrast, lightning-bolts
    "online_encoder",
    "base_encoder",
    "feature_extractor",
    "trunk",
    "convnet",
    "resnet",
    "model",
    "network",
    "net",
    "f",
)
HEAD_NAMES = (
    "projection_head",  # lightly
    "projector",  # solo-learn
    "projection",  # lightning-bolts
    "projection_mlp",
    "proj_head",
    "contrastive_head",
    "proj",
    "head",  # SupContrast
    "mlp",
    "g",
)


def find_parts(
    model: nn.Module, encoder: str | nn.Module | None, head: str | nn.Module | None
) -> tuple[nn.Module, nn.Module]:
    """Encoder and head: the modules given, or those in the attributes that are given or usual."""
    parts, missing = [], []
    for role, given, names in (("encoder", encoder, ENCODER_NAMES), ("head", head, HEAD_NAMES)):
        if isinstance(given, nn.Module):
            parts.append(given)
            continue
        if given is not None and not isinstance(given, str):
            raise TypeError(f"{role} must be a module or an attribute's name, got {type(given).__name__}")
        wanted = names if given is None else (given,)
        found = {name: part for name in wanted if isinstance(part := _attribute(model, name), nn.Module)}
        if len(set(found.values())) > 1:
            raise ValueError(
                f"model has more than one part that may be its {role}: {', '.join(found)}; "
                f'name the right one ({role}="{next(iter(found))}")'
            )
        parts.extend(list(found.values())[:1])
        if not found:
            missing.append(role if given is None else f'{role}="{given}"')
    if missing:
        children = ", ".join(name for name, _ in model.named_children()) or "none"
        raise ValueError(
            f"{' and '.join(missing)} not found in {type(model).__name__}, whose children are {children}; "
            'name both by attribute, with dots for nested ones (encoder="net.trunk", head="net.trunk.fc"), '
            "or pass the modules"
        )
    return parts[0], parts[1]


def _attribute(model: nn.Module, path: str) -> object:
    part: object = model
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def split_leading_pools(head: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split a Sequential after its leading pooling layers; any other head has none."""
    layers = list(head) if _strip.is_chain(head) else []
    count = 0
    for i, layer in enumerate(layers, 1):
        if _strip.is_pool(layer):
            count = i
        elif not isinstance(layer, (nn.Flatten, nn.Identity)):
            break
    return layers[:count], layers[count:]


def chain(layers: list[nn.Module], training: bool) -> nn.Sequential:
    """Sequential with a training flag of its own; those of the layers stay as they are."""
    sequential = nn.Sequential(*layers)
    sequential.training = training  # train() would change the layers too
    return sequential


def shrink_stem(model: nn.Module) -> None:
    """Replace the stem of a ResNet by the one for small images, in place."""
    conv, pool = (getattr(model, name, None) for name in ("conv1", "maxpool"))
    single = isinstance(conv, nn.Conv2d) and conv.kernel_size in ((7, 7), (3, 3))
    if (
        not any(_strip.is_from(model, f"{library}.models.resne") for library in ("torchvision", "timm"))
        or not (single or isinstance(conv, nn.Sequential))
        or not isinstance(pool, (nn.MaxPool2d, nn.Identity))
    ):
        raise ValueError(
            "model must be a ResNet of torchvision or timm whose stem is a 7x7 convolution, or a deep stem, and a max "
            f"pooling, got {type(model).__name__}; change the stem of other models yourself"
        )
    if isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7):
        with conv.weight.device:
            new = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        model.conv1 = new.to(conv.weight.dtype).train(conv.training)
    model.maxpool = nn.Identity().train(pool.training)
