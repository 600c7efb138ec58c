"""`StochConWrapper` with `save_pretrained`, `from_pretrained` and `push_to_hub`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from stochastic_bottleneck import _checks
from stochastic_bottleneck._unwrap import as_wrapper
from stochastic_bottleneck._version import __version__
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import Encoder, as_encoder, unwrap
from stochastic_bottleneck.hub import _card, _encoders, _files, _parts
from stochastic_bottleneck.hub._preprocessing import check_pretrained_cfg
from stochastic_bottleneck.wrapper import StochConWrapper

__all__ = ["HubModel"]

HUB_OPTIONS = {"revision", "token", "cache_dir", "force_download", "local_files_only"}


class HubModel(
    StochConWrapper,
    PyTorchModelHubMixin,
    library_name="stochastic-bottleneck",
    tags=["contrastive-learning", "stochcon"],
    paper_url="https://arxiv.org/abs/2110.00552",
    model_card_template=_card.TEMPLATE,
):
    """`StochConWrapper` that is saved to a folder and loaded from it, or from the Hugging Face Hub.

    `save_pretrained(folder)` writes the weights (`model.safetensors`), the options (`config.json`) and a model card
    (`README.md`, unless there is one), `from_pretrained(folder)` builds the same model again, and
    `push_to_hub(name)` uploads it. The config is removed first and written last, so that a folder with a config is
    complete, and it holds the SHA-256 of the weights, which is checked when they are loaded.

    The config describes an encoder of torchvision or timm by its name, and the library's own projectors, upsamplers
    and heads. Any other part has to be passed to `from_pretrained` again; the error names its class, or the text of
    its attribute `built_by`, such as "mine.make_encoder(depth=3)". Hooks, frozen parameters and SyncBatchNorm in
    place of BatchNorm are not saved.

    Nothing in a folder is executed, unpickled, downloaded or opened as a path, whoever wrote it: a config can only ask
    for classification models that are registered in torchvision or timm, with options from a list.

    Args:
        encoder: as for `StochConWrapper`, or a name such as "torchvision:resnet18" or "timm:vit_tiny_patch16_224",
            built without pretrained weights.
        encoder_name: the name that builds this encoder, where `encoder` is a module.
        encoder_options: keyword arguments of the function with that name: widths, depths, image sizes, dropout rates
            and flags, such as `img_size`, `in_chans` and `drop_path_rate`. Others are refused.
        small_images: the encoder of that name has the stem of `encoders.small_image_stem`.
        pretrained_cfg: how images are preprocessed, with timm's keys, as for `preprocessing`; None where unknown.
        **options: those of `StochConWrapper`.

    Raises:
        ValueError: for a name or options that do not build the encoder, options that may not be saved, a
            `pretrained_cfg` with other keys or values, and as `StochConWrapper`.
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
        small_images: bool = False,
        pretrained_cfg: Mapping[str, Any] | None = None,
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
        if _checks.flag("small_images", small_images) and not (named or encoder_name):
            raise ValueError("small_images needs a name to go with, got True alone; pass encoder_name too")
        checked = _encoders.check_options({} if encoder_options is None else encoder_options)
        cfg = None if pretrained_cfg is None else check_pretrained_cfg("pretrained_cfg", pretrained_cfg)
        module: Any = encoder if named is None else _parts.build_backbone(named, checked, small_images)
        super().__init__(module, **options)
        self.encoder_name, self.encoder_options = named or encoder_name, checked
        self.small_images, self.pretrained_cfg = small_images, cfg
        if named is None:
            self._check_name()

    @classmethod
    def from_wrapper(
        cls,
        model: nn.Module,
        *,
        encoder_name: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        small_images: bool = False,
        pretrained_cfg: Mapping[str, Any] | None = None,
    ) -> HubModel:
        """Turn a trained model into one that can be saved; its parts are shared, not copied.

        Args:
            model: the model, or a compiled or data-parallel module around it. A `HubModel` keeps its name, options and
                preprocessing where no others are given; set its `encoder_name` to None if its encoder has changed.
            encoder_name: as for the class.
            encoder_options: as for the class.
            small_images: as for the class.
            pretrained_cfg: as for the class.

        Returns:
            The model.

        Raises:
            TypeError: for anything but a `StochConWrapper`.
            ValueError: for a name that does not build the encoder.
        """
        model = as_wrapper(model)
        if isinstance(model, HubModel):
            pretrained_cfg = model.pretrained_cfg if pretrained_cfg is None else pretrained_cfg
            if encoder_name is None and encoder_options is None and not small_images:
                encoder_name, encoder_options = model.encoder_name, model.encoder_options
                small_images = model.small_images
        wiring = {name: getattr(model, name) for name in _files.WIRING}
        hub_model = cls(
            model.encoder,
            bottleneck=model.bottleneck,
            head=model.head,
            encoder_name=encoder_name,
            encoder_options=encoder_options,
            small_images=small_images,
            pretrained_cfg=pretrained_cfg,
            **wiring,
        )
        hub_model.training = model.training
        return hub_model

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model to a folder.

        Args:
            save_directory: the folder; created if missing.
            **options: those of huggingface_hub's mixin, such as `push_to_hub` and `repo_id`.

        Raises:
            ValueError: for layers of unknown width, an encoder that its name no longer builds, or a `config`.
            TypeError: for a folder that is not a path.
        """
        _check_path("save_directory", save_directory)
        if Path(save_directory).is_file():
            raise ValueError(f"save_directory must be a folder, got the file {str(save_directory)!r}")
        config = self._config()  # refuse what cannot be saved before the folder is touched
        given = options.pop("config", None)  # push_to_hub passes the one of the last save
        if given is not None and {**given, "weights_sha256": None} != config:
            raise ValueError("config must be left out: it is made from the model, got another one")
        self._hub_mixin_config = config
        options["model_card_kwargs"] = _card.fields(self, config) | (options.get("model_card_kwargs") or {})
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        backbone = self.encoder.backbone
        self.encoder.backbone = unwrap(backbone)  # compiled since the encoder was built
        try:
            super()._save_pretrained(save_directory)
        finally:
            self.encoder.backbone = backbone
        config: Any = self._hub_mixin_config  # written to the folder after this
        config["weights_sha256"] = _files.sha256(save_directory / SAFETENSORS_SINGLE_FILE)

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
                that a config must not hold, parts that are missing or do not fit, and an unavailable device.
            TypeError: for an unknown option, or an argument of another type.
        """
        if unknown := sorted(hub_options.keys() - HUB_OPTIONS):
            raise TypeError(f"from_pretrained has no option {unknown}; it passes on {sorted(HUB_OPTIONS)}")
        _check_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
        parts: dict[str, nn.Module | None] = {"encoder": encoder, "bottleneck": bottleneck, "head": head}
        for name, part in parts.items():
            kind: type[nn.Module] = StochasticBottleneck if name == "bottleneck" else nn.Module
            if part is not None and not isinstance(part, kind):
                words = "module" if kind is nn.Module else kind.__name__
                raise TypeError(f"{name} must be a {words}, got {type(part).__name__}")
        try:
            torch.empty(0, device=map_location)
        except (RuntimeError, AssertionError, TypeError) as error:
            message = f"map_location must be a device of this machine, got {map_location!r} ({error})"
            raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error
        folder = _files.find(pretrained_model_name_or_path, hub_options)
        path, weights_path = folder / CONFIG_NAME, folder / SAFETENSORS_SINGLE_FILE
        config = _files.read_config(folder)
        state = _files.read_weights(folder, config["weights_sha256"])
        if stray := sorted(key for key in state if key.partition(".")[0] not in parts):
            raise ValueError(f"{weights_path} holds weights that belong to no part of the model: {stray[:5]}")
        named = config["encoder"]
        if encoder is not None and not isinstance(encoder, Encoder):
            parts["encoder"] = _parts.with_width(encoder, named["feature_dim"])
        # Twice, for weights saved in half precision, and room for a classifier, which is removed before saving.
        most = 2 * weights_path.stat().st_size + 2**28
        for name, build in _parts.builders(config, most).items():
            part = parts[name]
            if part is None:
                if build is None:
                    raise ValueError(
                        f"{name} must be passed: {path} does not say how to build {config['classes'][name]!r}; "
                        f"use from_pretrained(..., {name}=...) with one built as it was for training"
                    )
                # Compare shapes first: a config may ask for more than there is memory.
                with _files.naming(path):
                    part = _encoders.shapes(build)
            own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
            differing = _files.differences(part.state_dict(), own)
            if name == "bottleneck":  # its scale, for example, is in no weight
                differing = differing or _parts.differing_options(part, config["bottleneck"])
            if differing:
                raise ValueError(
                    f"{name} does not fit the weights in {folder}: {differing}; pass {name}= as it was when the "
                    f"model was saved: {config['classes'][name]!r}"
                )
            if parts[name] is None and build is not None:
                with _files.naming(path):
                    parts[name] = build()
        with _files.naming(path):
            wiring = {name: config[name] for name in (*_files.WIRING, "pretrained_cfg")}
            model = cls(**parts, **wiring)  # type: ignore[arg-type]
        if encoder is None:
            model.encoder_name, model.small_images = named["name"], named["small_images"]
            model.encoder_options = _encoders.check_options(named["options"])
        with _files.naming(weights_path):
            temperature = float(f"{state['bottleneck.temperature'].item():.6g}")  # 1e-6 in float32 is a little less
            _checks.real("bottleneck.temperature", temperature, least=_checks.MIN_CONCRETE)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in state and not is_lazy(tensor):  # keep half or double precision
                tensor.data = tensor.data.to(state[name].dtype)
        for name in parts:  # buffers that are not saved, such as position tables, follow the weights
            dtypes = {t.dtype for key, t in state.items() if key.startswith(f"{name}.") and t.is_floating_point()}
            for key, buffer in getattr(model, name).named_buffers():
                if len(dtypes) == 1 and f"{name}.{key}" not in state and buffer.is_floating_point():
                    buffer.data = buffer.data.to(*dtypes)
        model.load_state_dict(state)
        return model.to(map_location).eval()

    def _config(self) -> dict[str, Any]:
        bottleneck, head, cfg = self.bottleneck, self.head, self.pretrained_cfg
        if bottleneck.in_features is None or any(isinstance(m, LazyModuleMixin) for m in self.modules()):
            raise ValueError("model has layers of unknown width; run one batch, or build it with feature_dim")
        self._check_name()
        parts = {"encoder": unwrap(self.encoder.backbone), "bottleneck": bottleneck, "head": head}
        return {
            "model_type": _files.MODEL_TYPE,
            "format_version": _files.FORMAT_VERSION,
            "library_version": __version__,
            "classes": {name: _parts.class_name(module) for name, module in parts.items()},
            "encoder": {
                "name": self.encoder_name,
                "options": self.encoder_options,
                "small_images": self.small_images,
                "feature_dim": self.encoder.feature_dim,
            },
            "bottleneck": _parts.describe_bottleneck(bottleneck),
            "head": _parts.describe_head(head, bottleneck.out_features),
            "pretrained_cfg": cfg and check_pretrained_cfg("pretrained_cfg", cfg),
            "weights_sha256": None,
        } | {name: getattr(self, name) for name in _files.WIRING}

    def _check_name(self) -> None:
        """Refuse a name that builds another encoder than this one."""
        if self.encoder_name is None:
            return
        named = (self.encoder_name, self.encoder_options, self.small_images, "encoder_name")
        rebuilt = as_encoder(_encoders.shapes(partial(_parts.build_backbone, *named))).backbone
        own = unwrap(self.encoder.backbone)
        differing = _files.differences(rebuilt.state_dict(), own.state_dict())
        if differing or _parts.layers(rebuilt) != _parts.layers(own):
            stem = ", small_images=True" * self.small_images
            raise ValueError(
                f"encoder_name={self.encoder_name!r} with encoder_options={self.encoder_options}{stem} does not build "
                f"this encoder: {differing or 'layers without weights differ'}; set the model's encoder_name to None, "
                "and pass encoder= to from_pretrained"
            )


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {value!r}")
