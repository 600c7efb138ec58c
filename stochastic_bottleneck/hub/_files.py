"""The folder of a `HubModel`: find it, read its files, and compare its weights with a module."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.parameter import is_lazy

from stochastic_bottleneck import _checks
from stochastic_bottleneck._version import __version__

MODEL_TYPE = "stochastic_bottleneck.HubModel"
FORMAT_VERSION = 3
FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
REPOSITORY = r"\w[\w.-]*(/[\w.-]+)?"
WIRING = ("variance_from", "symmetric", "samples", "detach_encoder", "checkpoint_encoder")
BOTTLENECK = (
    "kind",
    "dim",
    "in_features",
    "out_features",
    "hard",
    "variance",
    "location_std",
    "learnable_scale",
    "normalization",
    "shrinkage",
)
LAYOUT = {
    "": (
        "model_type",
        "format_version",
        "library_version",
        "classes",
        "encoder",
        "bottleneck",
        "head",
        "pretrained_cfg",
        "weights_sha256",
        *WIRING,
    ),
    "classes": ("encoder", "bottleneck", "head"),
    "encoder": ("name", "options", "small_images", "feature_dim"),
    "bottleneck": (*BOTTLENECK, "projector", "upsampler"),
    "head": ("width", "hidden_dim", "projection_dim", "norm"),
}
"""Keys of a config, and of the objects in it."""
ADDED: dict[str, dict[str, Any]] = {
    "": {"pretrained_cfg": None, "weights_sha256": None, "samples": 1, "detach_encoder": False},
    "encoder": {"small_images": False},
    "bottleneck": {"normalization": "batch", "shrinkage": 0.1},
    "head": {"norm": True},
}
"""What a config of an earlier format_version lacks, with the values that it stands for."""
WIDTHS = {
    "encoder": ("feature_dim",),
    "bottleneck": ("dim", "in_features", "out_features"),
    "head": ("width", "hidden_dim", "projection_dim"),
}
MAX_WIDTH = 2**24
"""Above any layer's width, and small enough that the size of a layer with this input and output can be counted."""


def find(name: str | Path, hub_options: Mapping[str, Any]) -> Path:
    """Return the folder of that name, or else download the repository; it has a config."""
    name = name if isinstance(name, Path) else os.fspath(name)
    folder = Path(name)
    if not folder.is_dir():
        if isinstance(name, Path) or not re.fullmatch(REPOSITORY, name):
            raise FileNotFoundError(f"there is no folder {name}; pass one that save_pretrained wrote")
        folder = Path(snapshot_download(name, allow_patterns=[*FILES], **hub_options))
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        raise FileNotFoundError(
            f"{folder / CONFIG_NAME} is missing next to {SAFETENSORS_SINGLE_FILE}: saving was interrupted before "
            "the config was written, or something other than HubModel.save_pretrained wrote the folder; save the model "
            "again with save_pretrained"
        )
    entries = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    raise FileNotFoundError(
        f"{folder / CONFIG_NAME} is missing: {folder} is no folder that HubModel.save_pretrained wrote (it holds "
        f"{listed or 'nothing'}); pass one that is, or save a trained model with HubModel.from_wrapper"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config, of our type and version, with nothing missing, nothing unknown and no width out of bounds."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error
    found = config if isinstance(config, dict) else {}
    version = found.get("library_version")
    if found.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{path} must be of model_type {MODEL_TYPE!r}, got {found.get('model_type')!r}; pass a folder that "
            "HubModel.save_pretrained wrote"
        )
    written = found.get("format_version")
    if type(written) is not int or not 1 <= written <= FORMAT_VERSION:
        raise ValueError(
            f"{path} must be of format_version 1 to {FORMAT_VERSION}, got {written!r}; load it with the "
            f"version of stochastic-bottleneck that wrote it, {version!r} (this is {__version__})"
        )
    if written < FORMAT_VERSION:
        found = ADDED[""] | found
        for part, added in ADDED.items():
            if isinstance(section := found.get(part), dict):
                found[part] = added | section
        if isinstance(head := found.get("head"), dict):
            head.setdefault("hidden_dim", head.get("width"))
    for part, names in LAYOUT.items():
        section = found[part] if part else found
        if section is None and part in ("bottleneck", "head"):
            continue
        if not isinstance(section, dict):
            raise ValueError(f"{path} is damaged ({part} must be an object, got {section!r}); save the model again")
        prefix = f"{part}." * bool(part)
        if unknown := [f"{prefix}{name}" for name in section if name not in names]:
            raise ValueError(
                f"{path} holds the option {', '.join(unknown)}, which stochastic-bottleneck {__version__} does not "
                f"know; version {version!r} wrote the file: pip install --upgrade stochastic-bottleneck"
            )
        if missing := [f"{prefix}{name}" for name in names if name not in section]:
            raise ValueError(f"{path} is damaged ({', '.join(missing)} is missing); save the model again")
        with naming(path):
            for name in WIDTHS.get(part, ()):
                if section[name] is not None or (part, name) != ("encoder", "feature_dim"):
                    _checks.integer(f"{prefix}{name}", section[name], most=MAX_WIDTH)
            if part == "encoder":
                _checks.flag("encoder.small_images", section["small_images"])
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of errors about its content."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(folder: Path, expected_sha256: object) -> dict[str, Tensor]:
    """Read all weights by name, on the CPU; None as the expected SHA-256 skips its check."""
    path = folder / SAFETENSORS_SINGLE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing next to {CONFIG_NAME}, which save_pretrained writes after it; copy the whole folder, "
            "or save the model again"
        )
    if expected_sha256 is not None and (found := sha256(path)) != expected_sha256:
        raise ValueError(
            f"{path} is damaged (its sha256 is {found}, and {CONFIG_NAME} has {expected_sha256!r:.80}); copy the "
            "folder again, or save the model again"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shared = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error
    # A tensor with several names is stored once; the metadata maps its other names to that one.
    return state | {name: state[stored] for name, stored in shared.items() if stored in state}


def differences(built: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Describe the weights that differ in name, shape or dtype; an empty string where all fit."""
    found = [f"{name} is missing from the model" for name in saved if name not in built]
    for name, tensor in built.items():
        if name not in saved:
            found.append(f"{name} is missing from the file")
            continue
        if is_lazy(tensor):
            continue
        stored = saved[name]
        if tensor.shape != stored.shape:
            found.append(f"{name} is {(*tensor.shape,)} in the model and {(*stored.shape,)} as saved")
        elif tensor.dtype != stored.dtype and not (tensor.is_floating_point() and stored.is_floating_point()):
            found.append(f"{name} is {tensor.dtype} in the model and {stored.dtype} as saved")
    return ", ".join(found[:5] + ([f"{len(found) - 5} more"] if len(found) > 5 else []))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
