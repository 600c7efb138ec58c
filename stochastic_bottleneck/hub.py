"""Models kept in folders as safetensors and a JSON config, through huggingface_hub's mixin.

Importing this module needs the extra "hub".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from stochastic_bottleneck import _checks, _hub_encoders
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import linear, mlp
from stochastic_bottleneck._unwrap import as_wrapper
from stochastic_bottleneck._version import __version__
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import Encoder, as_encoder
from stochastic_bottleneck.wrapper import StochConWrapper

for _package in ("huggingface_hub", "safetensors"):  # ahead of the imports, to name the extra
    require(_package, "stochastic_bottleneck.hub", "hub")

from huggingface_hub import PyTorchModelHubMixin  # noqa: E402
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE  # noqa: E402

from stochastic_bottleneck import _hub_files  # noqa: E402

__all__ = ["HubModel"]

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
    upsamplers and heads. Any other part has to be passed to `from_pretrained` again; the error names its class, or
    what its attribute `built_by` says, such as "mine.make_encoder(depth=3)". What is no weight and no option
    (hooks, frozen parameters, SyncBatchNorm in place of BatchNorm) is not kept.

    Nothing in a folder is executed, unpickled, downloaded or opened as a path, whoever wrote it: a config can ask
    for classification models that are registered in torchvision or timm, with options from a list, and no more.

    Args:
        encoder: as for `StochConWrapper`, or a name such as "torchvision:resnet18" or "timm:vit_tiny_patch16_224",
            built without pretrained weights.
        encoder_name: the name that builds this encoder, where `encoder` is a module.
        encoder_options: keyword arguments of the function that the name stands for: widths, depths, image sizes,
            dropout rates and flags, such as `img_size`, `in_chans` and `drop_path_rate`. Others are refused.
        **options: those of `StochConWrapper`.

    Raises:
        ValueError: for a name or options that do not build the encoder, options that a file must not hold, and as
            `StochConWrapper`.
        TypeError: for options of another type, and as `StochConWrapper`.

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
        if named and encoder_name is not None:
            raise ValueError(
                f"encoder_name must be None where encoder is a name itself, {encoder!r}, got {encoder_name!r}"
            )
        if encoder_options and not (named or encoder_name):
            raise ValueError(
                f"encoder_options needs a name to go with, got {encoder_options!r} alone; pass encoder_name too"
            )
        kept = _hub_encoders.check_options({} if encoder_options is None else encoder_options)
        super().__init__(encoder if named is None else _hub_encoders.build(named, kept), **options)  # type: ignore[arg-type]
        self.encoder_name, self.encoder_options = named or encoder_name, kept
        if named is None:
            self._check_name()

    @classmethod
    def from_wrapper(
        cls,
        model: nn.Module,
        *,
        encoder_name: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> HubModel:
        """Make a model that can be saved of a trained one; its parts are shared, not copied.

        Args:
            model: the model, or a compiled or data-parallel module around it.
            encoder_name: as for the class.
            encoder_options: as for the class.

        Raises:
            TypeError: for anything but a `StochConWrapper`.
            ValueError: for a name that does not build the encoder.
        """
        model = as_wrapper(model)
        wiring = {name: getattr(model, name) for name in _hub_files.WIRING}
        named: dict[str, Any] = {"encoder_name": encoder_name, "encoder_options": encoder_options}
        made = cls(model.encoder, bottleneck=model.bottleneck, head=model.head, **wiring, **named)
        made.training = model.training
        return made

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model to a folder.

        Args:
            save_directory: the folder; made where it is missing.
            **options: those of huggingface_hub's mixin, such as `push_to_hub` and `repo_id`.

        Raises:
            ValueError: for layers of unknown width, an encoder that its name no longer builds, or a `config`.
            TypeError: for a folder that is no path.
        """
        _check_path("save_directory", save_directory)
        if Path(save_directory).is_file():
            raise ValueError(f"save_directory must be a folder, got the file {str(save_directory)!r}")
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
            ValueError: for a config or weights that are damaged, of a newer version or of something else, options
                that a config must not hold, parts missing or unfit, and a device that cannot be used.
            TypeError: for an unknown option, or an argument of another type.
        """
        if unknown := sorted(hub_options.keys() - HUB_OPTIONS):
            raise TypeError(f"from_pretrained has no option {unknown}; it passes on {sorted(HUB_OPTIONS)}")
        _check_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
        parts: dict[str, nn.Module | None] = {"encoder": encoder, "bottleneck": bottleneck, "head": head}
        for name, part in parts.items():
            kind, words = (
                (StochasticBottleneck, "StochasticBottleneck")
                if name == "bottleneck"
                else (nn.Module, "module")
            )
            if part is not None and not isinstance(part, kind):
                raise TypeError(f"{name} must be a {words}, got {type(part).__name__}")
        try:
            torch.empty(0, device=map_location)
        except (RuntimeError, AssertionError, TypeError) as error:
            message = f"map_location must be a device of this machine, got {map_location!r} ({error})"
            raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error
        folder = _hub_files.find(pretrained_model_name_or_path, hub_options)
        path, weights_path = folder / CONFIG_NAME, folder / SAFETENSORS_SINGLE_FILE
        config, state = _hub_files.read_config(folder), _hub_files.read_weights(folder)
        if stray := sorted(key for key in state if key.partition(".")[0] not in parts):
            raise ValueError(f"{weights_path} holds weights of no part of the model: {stray[:5]}")
        named = config["encoder"]
        if encoder is not None and not isinstance(encoder, Encoder):
            parts["encoder"] = _as_saved(encoder, named["feature_dim"])
        # Twice, for weights in half precision; and room for a classifier, which was taken off before they were saved.
        most = 2 * weights_path.stat().st_size + 2**28
        for name, build in _builds(config, most).items():
            part = parts[name]
            if part is None:
                if build is None:
                    raise ValueError(
                        f"{name} must be passed: {path} cannot tell how to build {config['classes'][name]!r}; "
                        f"use from_pretrained(..., {name}=...) with one built as it was"
                    )
                # Shapes come first: a config may ask for more than there is memory.
                with _hub_files.naming(path):
                    part = _hub_encoders.shapes(build)
            own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
            if differing := _hub_files.differences(part.state_dict(), own):
                raise ValueError(
                    f"{name} does not fit the weights in {folder}: {differing}; pass {name}= as it was when the "
                    f"model was saved: {config['classes'][name]!r}"
                )
            if parts[name] is None and build is not None:
                with _hub_files.naming(path):
                    parts[name] = build()
        with _hub_files.naming(path):
            model = cls(**parts, **{name: config[name] for name in _hub_files.WIRING})  # type: ignore[arg-type]
        if encoder is None:
            model.encoder_name = named["name"]
            model.encoder_options = _hub_encoders.check_options(named["options"])
        with _hub_files.naming(weights_path):
            _checks.real(
                "bottleneck.temperature", state["bottleneck.temperature"].item(), least=_checks.MIN_CONCRETE
            )
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
            "classes": {
                name: str(getattr(m, "built_by", f"{type(m).__module__}.{type(m).__qualname__}"))
                for name, m in parts.items()
            },
            "encoder": {
                "name": self.encoder_name,
                "options": self.encoder_options,
                "feature_dim": self.encoder.feature_dim,
            },
            "bottleneck": _describe_bottleneck(bottleneck),
            "head": _describe_head(head, bottleneck.out_features),
        } | {name: getattr(self, name) for name in _hub_files.WIRING}

    def _check_name(self) -> None:
        """Refuse a name that builds another encoder than this one."""
        if self.encoder_name is None:
            return
        build = partial(_hub_encoders.build, self.encoder_name, self.encoder_options, "encoder_name")
        rebuilt = as_encoder(_hub_encoders.shapes(build)).backbone
        own = self.encoder.backbone
        differing = _hub_files.differences(rebuilt.state_dict(), own.state_dict())
        if differing or _text(rebuilt) != _text(own):
            raise ValueError(
                f"encoder_name={self.encoder_name!r} with encoder_options={self.encoder_options} does not build this "
                f"encoder: {differing or 'layers without weights differ'}; set encoder_name to None, and pass "
                "encoder= to from_pretrained"
            )


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}")


def _as_saved(model: nn.Module, feature_dim: int | None) -> Encoder:
    """The encoder around a model, with the width that it was saved with, be it unknown."""
    encoder = as_encoder(model, feature_dim)
    encoder.feature_dim = feature_dim
    return encoder


def _builds(config: dict[str, Any], most_bytes: int) -> dict[str, Callable[[], nn.Module] | None]:
    """What builds each part; None for one that a config cannot tell."""
    named, bottleneck, head = config["encoder"], config["bottleneck"], config["head"]

    def build_encoder() -> Encoder:
        model = _hub_encoders.build(named["name"], named["options"])
        _hub_encoders.check_memory(model, most_bytes)
        return _as_saved(model, named["feature_dim"])

    return {
        "encoder": None if named["name"] is None else build_encoder,
        "bottleneck": None if bottleneck is None else partial(StochasticBottleneck, **bottleneck),
        "head": None if head is None else partial(mlp, head["width"], head["width"], head["projection_dim"]),
    }


def _describe_bottleneck(bottleneck: StochasticBottleneck) -> dict[str, Any] | None:
    """Options that build it, or None where a part of it is the user's own."""
    width, out, dim = bottleneck.in_features, bottleneck.out_features, bottleneck.dim
    projector = _choice(bottleneck.projector, width, width, bottleneck.parameter_width)
    upsampler = _choice(bottleneck.upsampler, dim, out, out)
    if type(bottleneck) is not StochasticBottleneck or projector is None or upsampler is None:
        return None
    options = {name: getattr(bottleneck, name) for name in _hub_files.BOTTLENECK}
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
    """A module's layers and those of their options that change a value."""
    text = re.sub(r"\b(SyncBatchNorm|BatchNorm[123]d)\b", "BatchNorm", str(module))
    return text.replace(", inplace=True", "").replace("inplace=True", "")  # which changes no value
