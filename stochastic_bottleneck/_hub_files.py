"""The folder of a `HubModel`: where it is, what its files hold, and whether their weights fit a module."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.parameter import is_lazy

MODEL_TYPE = "stochastic_bottleneck.HubModel"
FORMAT_VERSION = 1
FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
REPOSITORY = r"\w[\w.-]*(/[\w.-]+)?"


def find(name: str | Path, hub_options: Mapping[str, Any]) -> Path:
    """The folder of that name, or else the downloaded repository, with both files."""
    folder = Path(name)
    if not folder.is_dir():
        if isinstance(name, Path) or not re.fullmatch(REPOSITORY, name):
            raise FileNotFoundError(f"there is no folder {name}; pass one that save_pretrained wrote")
        folder = Path(snapshot_download(name, allow_patterns=[*FILES], **hub_options))
    for file in FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder / file} is missing; the model was not saved to the end, where the config comes: save it again"
            )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The config, of our type and version."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error
    found = config if isinstance(config, dict) else {}
    if (found.get("model_type"), found.get("format_version")) != (MODEL_TYPE, FORMAT_VERSION):
        raise ValueError(
            f"{path} must be of model_type {MODEL_TYPE!r} and format_version {FORMAT_VERSION}, got "
            f"{found.get('model_type')!r} and {found.get('format_version')!r}; load it with the version that wrote it, "
            f"{found.get('library_version')}"
        )
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights by name, on the CPU."""
    path = folder / SAFETENSORS_SINGLE_FILE
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shared = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error
    # Of a tensor with several names one is stored, and the others refer to it.
    return state | {name: state[kept] for name, kept in shared.items() if kept in state}


def differences(built: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """Weights that differ in name or shape, in words; nothing where all fit."""
    found = [f"{name} is missing from the model" for name in saved if name not in built]
    for name, tensor in built.items():
        if name not in saved:
            found.append(f"{name} is the model's alone")
        elif not is_lazy(tensor) and tensor.shape != saved[name].shape:
            found.append(f"{name} is {(*tensor.shape,)} in the model and {(*saved[name].shape,)} as saved")
    return ", ".join(found[:5] + ([f"{len(found) - 5} more"] if len(found) > 5 else []))
