"""Models kept in folders as safetensors and a JSON config, through huggingface_hub's mixin.

Importing this module needs the extra "hub".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import linear, mlp
from stochastic_bottleneck._version import __version__
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import Encoder, as_encoder
from stochastic_bottleneck.wrapper import StochConWrapper

for _package in ("huggingface_hub", "safetensors"):  # ahead of the imports, to name the extra
    require(_package, "stochastic_bottleneck.hub", "hub")

from huggingface_hub import PyTorchModelHubMixin  # noqa: E402
from huggingface_hub.constants import CONFIG_NAME  # noqa: E402

from stochastic_bottleneck import _hub_files  # noqa: E402

__all__ = ["HubModel"]

WIRING = ("variance_from", "symmetric", "checkpoint_encoder")
HUB_OPTIONS = {"revision", "token", "cache_dir", "force_download", "local_files_only"}


class HubModel(
    StochConWrapper,
    PyTorchModelHubMixin,
    library_name="stochastic-bottleneck",
    tags=["contrastive-learning", "stochcon"],
    paper_url="https://arxiv.org/abs/2110.00552",
):
    """`StochConWrapper` that is saved to a folder and loaded from it, or from the Hugging Face Hub.

    `save_pretrained(folder)` writes weights (`model.safetensors`), the options (`config.json`) and a model
    card, `from_pretrained(folder)` builds the same model again, and `push_to_hub(name)` uploads. A folder with a
    config is whole: it is removed first and written last. Widths learned from a first batch are kept.

    JSON can tell how to build an encoder of torchvision or timm by its name, and the library's own projectors,
    upsamplers and heads. Any other part has to be passed to `from_pretrained` again. What is no weight and no
    option (hooks, frozen parameters, SyncBatchNorm in place of BatchNorm) is not kept.

    Args:
        encoder: as for `StochConWrapper`, or a name such as "torchvision:resnet18" or "timm:vit_tiny_patch16_224",
            built without pretrained weights.
        encoder_name: the name that builds this encoder, where `encoder` is a module.
        encoder_options: keyword arguments of the function that the name stands for; JSON values.
        **options: those of `StochConWrapper`.

    Raises:
        ValueError: for a name or options that do not build the encoder, and as `StochConWrapper`.
        TypeError: for options that are not JSON values, and as `StochConWrapper`.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> model, images = HubModel(nn.Conv2d(3, 8, 3), dim=16), torch.randn(4, 3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     loaded = HubModel.from_pretrained(folder, encoder=nn.Conv2d(3, 8, 3))
        >>> torch.equal(loaded.encode(images, "bits"), model.encode(images, "bits"))
        True
    """

    def __init__(
        self,
        encoder: nn.Module | str,
        *,
        encoder_name: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        named = encoder if isinstance(encoder, str) else None
        if encoder_name is not None if named else (encoder_options and not encoder_name):
            raise ValueError("encoder_name goes with a module as encoder, encoder_options with a name")
        kept = _as_json(encoder_options or {})
        super().__init__(encoder if named is None else _build_encoder(named, kept), **options)  # type: ignore[arg-type]
        self.encoder_name, self.encoder_options = named or encoder_name, kept
        if named is None:
            self._check_name()

    @classmethod
    def from_wrapper(cls, model: StochConWrapper, **options: Any) -> HubModel:
        """Make a model that can be saved of a trained one; its parts are shared, not copied.

        Args:
            model: the model.
            **options: `encoder_name` and `encoder_options`, as for the class.

        Raises:
            TypeError: for anything but a `StochConWrapper`.
            ValueError: for a name that does not build the encoder.
        """
        if not isinstance(model, StochConWrapper):
            raise TypeError(f"model must be a StochConWrapper, got {type(model).__name__}")
        wiring = {name: getattr(model, name) for name in WIRING}
        made = cls(model.encoder, bottleneck=model.bottleneck, head=model.head, **wiring, **options)
        made.training = model.training
        return made

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model to a folder.

        Args:
            save_directory: the folder; made where it is missing.
            **options: those of huggingface_hub's mixin, such as `push_to_hub` and `repo_id`.

        Raises:
            ValueError: for layers of unknown width, an encoder that its name no longer builds, or a `config`.
        """
        config = self._config()  # what cannot be saved is refused before the folder is touched
        if options.get("config") not in (None, config):
            raise ValueError("config is made from the model; leave it out")
        self._hub_mixin_config = config
        return super().save_pretrained(save_directory, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        encoder: nn.Module | None = None,
        bottleneck: StochasticBottleneck | None = None,
        head: nn.Module | None = None,
        map_location: str | torch.device = "cpu",
        **hub_options: Any,
    ) -> HubModel:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder, or a repository's name on the Hub, which is downloaded.
            encoder: the encoder as it was passed when the model was built, where it had no name.
            bottleneck: likewise, where it has a projector or upsampler of your own.
            head: likewise, where it is not the default head.
            map_location: device of the model.
            **hub_options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of a repository.

        Returns:
            The model.

        Raises:
            FileNotFoundError: for a folder that is missing, or that lacks the config or the weights.
            ValueError: for a config or weights that are damaged or of something else, and parts missing or unfit.
            TypeError: for an unknown option, or a part that is not a module.
        """
        if unknown := sorted(hub_options.keys() - HUB_OPTIONS):
            raise TypeError(f"from_pretrained has no option {unknown}; it passes on {sorted(HUB_OPTIONS)}")
        folder = _hub_files.find(pretrained_model_name_or_path, hub_options)
        config, state = _hub_files.read_config(folder), _hub_files.read_weights(folder)
        try:
            named, saved_bottleneck, saved_head = config["encoder"], config["bottleneck"], config["head"]
            wiring = {name: config[name] for name in WIRING}
            classes, width = config["classes"], named["feature_dim"]
            source: dict[str, Any] = {}
            if encoder is None and named["name"] is not None:
                encoder = _build_encoder(named["name"], named["options"])
                source = {"encoder_name": named["name"], "encoder_options": named["options"]}
            if bottleneck is None and saved_bottleneck is not None:
                bottleneck = StochasticBottleneck(**saved_bottleneck)
            if head is None and saved_head is not None:
                head = mlp(saved_head["width"], saved_head["width"], saved_head["projection_dim"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} is damaged ({error!r}); save it again") from error
        parts: dict[str, nn.Module | None] = {"encoder": encoder, "bottleneck": bottleneck, "head": head}
        for name, part in parts.items():
            if part is None:
                raise ValueError(
                    f"{name} must be passed: {folder / CONFIG_NAME} cannot tell how to build this "
                    f"{classes.get(name)}; use from_pretrained(..., {name}=...) with one built as it was"
                )
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a module, got {type(part).__name__}")
            if name == "encoder" and not isinstance(part, Encoder):
                parts[name] = part = as_encoder(part, width)
                part.feature_dim = width  # as it was, be it unknown
            own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
            if differing := _hub_files.differences(part.state_dict(), own):
                raise ValueError(
                    f"{name} does not fit the weights in {folder}: {differing}; pass {name}= as it was when the "
                    f"model was saved, a {classes.get(name)}"
                )
        model = cls(**parts, **source, **wiring)  # type: ignore[arg-type]
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in state and not is_lazy(tensor):  # a model in half or double precision stays so
                tensor.data = tensor.data.to(state[name].dtype)
        model.load_state_dict(state)
        return model.to(map_location).eval()

    def _config(self) -> dict[str, Any]:
        bottleneck, head = self.bottleneck, self.head
        if bottleneck.in_features is None or any(isinstance(m, LazyModuleMixin) for m in self.modules()):
            raise ValueError("model has layers of unknown width; run one batch, or build it with feature_dim")
        self._check_name()
        parts = {"encoder": self.encoder.backbone, "bottleneck": bottleneck, "head": head}
        return {
            "model_type": _hub_files.MODEL_TYPE,
            "format_version": _hub_files.FORMAT_VERSION,
            "library_version": __version__,
            "classes": {name: f"{type(m).__module__}.{type(m).__qualname__}" for name, m in parts.items()},
            "encoder": {
                "name": self.encoder_name,
                "options": self.encoder_options,
                "feature_dim": self.encoder.feature_dim,
            },
            "bottleneck": _describe_bottleneck(bottleneck),
            "head": _describe_head(head, bottleneck.out_features),
        } | {name: getattr(self, name) for name in WIRING}

    def _check_name(self) -> None:
        """Refuse a name that builds another encoder than this one."""
        if self.encoder_name is None:
            return
        with torch.random.fork_rng(devices=[]):
            rebuilt = as_encoder(_build_encoder(self.encoder_name, self.encoder_options)).backbone
        own = self.encoder.backbone
        differing = _hub_files.differences(rebuilt.state_dict(), own.state_dict())
        if differing or _text(rebuilt) != _text(own):
            raise ValueError(
                f"encoder_name={self.encoder_name!r} with encoder_options={self.encoder_options} does not build this "
                f"encoder: {differing or 'layers without weights differ'}; set encoder_name to None, and pass "
                "encoder= to from_pretrained"
            )


def _build_encoder(name: str, options: Mapping[str, Any]) -> nn.Module:
    library, _, model = name.partition(":")
    if library not in ("timm", "torchvision") or not re.fullmatch(r"[\w.]+", model):
        raise ValueError(
            f'encoder must be a module, or a name such as "torchvision:resnet18" or "timm:resnet18", got {name!r}'
        )
    if given := sorted({"pretrained", "weights"} & options.keys()):
        raise ValueError(
            f"encoder_options must not hold {given[0]!r}; pass the pretrained model as encoder, named {name!r}"
        )
    package = require(library, f"the encoder {name!r}", "vision")
    if library == "timm":
        return package.create_model(model, pretrained=False, **options)  # type: ignore[no-any-return]
    return package.models.get_model(model, weights=None, **options)  # type: ignore[no-any-return]


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they come back from a file, so that both builds get the same."""
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"encoder_options must hold JSON values alone ({error})") from error
    return kept


def _describe_bottleneck(bottleneck: StochasticBottleneck) -> dict[str, Any] | None:
    """Options that build it, or None where a part of it is the user's own."""
    width, out, dim = bottleneck.in_features, bottleneck.out_features, bottleneck.dim
    projector = _choice(bottleneck.projector, width, width, bottleneck.parameter_width)
    upsampler = _choice(bottleneck.upsampler, dim, out, out)
    if type(bottleneck) is not StochasticBottleneck or projector is None or upsampler is None:
        return None
    names = ("kind", "dim", "in_features", "out_features", "hard", "variance", "location_std")
    options = {name: getattr(bottleneck, name) for name in names}
    return {**options, "projector": projector, "upsampler": upsampler}


def _describe_head(head: nn.Module, width: int | None) -> dict[str, Any] | None:
    """Options that build it, or None for a head that is not the default one."""
    projection_dim = getattr([*head.modules()][-1], "out_features", None)
    if not isinstance(projection_dim, int) or _choice(head, width, width, projection_dim) != "mlp":
        return None
    return {"width": width, "projection_dim": projection_dim}


def _choice(module: nn.Module, width: int | None, hidden: int | None, out: int | None) -> str | None:
    """Name of the projector or upsampler that a module is, or None."""
    with torch.device("meta"):
        choices = {"linear": linear(width, out), "mlp": mlp(width, hidden, out), "identity": nn.Identity()}
    return next((name for name, choice in choices.items() if _text(choice) == _text(module)), None)


def _text(module: nn.Module) -> str:
    """A module's layers and their options."""
    return re.sub(r"\b(SyncBatchNorm|BatchNorm[123]d)\b", "BatchNorm", str(module))
