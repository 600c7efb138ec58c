"""A folder of images encoded by a trained model: packed bits and features, in parts, so that a stop loses little."""

from __future__ import annotations

import hashlib
import json
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.augment import IMAGENET_MEAN, IMAGENET_STD, Normalize
from recipes.data import SIZE
from recipes.feeds import DataError, Feed, evaluation_loader
from recipes.files import whole_file, write_json
from recipes.folders import Collection, Prepare, Readable, fitted
from recipes.models import WeightsError, load_model, make_model
from recipes.photographs import middle
from recipes.screen import passing_bar
from recipes.stored import fingerprint
from stochastic_bottleneck import StochConWrapper, codes

BATCH = 256
PART = 4 * BATCH  # images; at a photograph's tenth of a second on two cores, what a stop loses are minutes
COLUMNS = ("numbers", "codes", "h")
"""Arrays of a part; it has none where none of its images could be read."""


class Trained(NamedTuple):
    """A model that a full run has trained, and how images are given to it.

    Args:
        model: in evaluation mode.
        prepare: makes its input of a file.
        normalize: bytes to what the encoder takes.
        identity: its folder, encoder, bits, size of images and the SHA-256 of its weights.
    """

    model: StochConWrapper
    prepare: Prepare
    normalize: nn.Module
    identity: dict[str, Any]


class Encoded(NamedTuple):
    """What a model makes of the images that could be read.

    Args:
        numbers: of the images in their collection. Shape: (N,)
        codes: packed bits. Shape: (N, ceil(D / 8))
        h: features at length one. Shape: (N, F)
        skipped: why, for each image that could not be read.
    """

    numbers: NDArray[np.int64]
    codes: NDArray[np.uint8]
    h: NDArray[np.float32]
    skipped: list[str]


def read_model(folder: Path) -> Trained:
    """Load the StochCon Bern of a run of `cifar10_full.py` or `imagenet_full.py`.

    Nothing else is taken: bits of an encoder that was not trained this way would be indexed as readily and mean
    nothing.

    Args:
        folder: `RUN/bern`.

    Raises:
        WeightsError: for a folder without a finished model, a model without bits, or damaged files.
    """
    place = folder.resolve()
    weights, settings = place / "pretrain" / "weights.safetensors", place.parent / "config.json"
    if any((place / "pretrain").glob("*.ckpt")) and not weights.exists():
        raise WeightsError(f"{folder} is still being trained; finish the run with --resume first")
    if not (weights.exists() and settings.exists()):
        lacks = weights if settings.exists() else settings
        raise WeightsError(
            f"{folder} holds no trained model ({lacks} is missing); give the folder of one that "
            "examples/cifar10_full.py or imagenet_full.py has trained, as runs/NAME/bern"
        )
    if place.name != "bern":
        raise WeightsError(f'{folder} must be a run\'s "bern", the model that has bits, got "{place.name}"')
    try:
        config = json.loads(settings.read_text())
        size = config.get("size", SIZE)
        model = make_model(
            "bern",
            config["encoder"],
            config["dim"],
            config["projection_dim"],
            size=size,
            norm=config["norm"],
            symmetric=config["symmetric"],
            temperature=config["temperature"],
            hard=config["hard"],
            location_std=config["location_std"],
            projector=config.get("projector"),
            upsampler=config.get("upsampler"),
        )
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{settings} is damaged or not of such a run ({error!r})") from error
    load_model(model, weights)
    assert isinstance(model, StochConWrapper)
    photographs = "size" in config  # imagenet_full.py's; CIFAR-10's images have one size and are taken whole
    return Trained(
        model.eval(),
        partial(middle if photographs else fitted, size=size),
        Normalize(IMAGENET_MEAN, IMAGENET_STD) if photographs else Normalize(),
        {
            "folder": str(folder),
            "encoder": config["encoder"],
            "dim": config["dim"],
            "size": size,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
    )


def encode_pixels(trained: Trained, images: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and features of prepared images, in one pass.

    Args:
        trained: the model.
        images: uint8. Shape: (N, 3, size, size)

    Returns:
        Packed bits, and features at length one. Shape: (N, ceil(D / 8)), (N, F)
    """
    model = trained.model
    device = next(model.parameters()).device
    with torch.no_grad():
        h = model.encode(trained.normalize.to(device)(images.to(device)))
        bits = codes.pack_bits(model.bottleneck.eval().posterior(h).mode(), validate=False)
    return bits.cpu().numpy(), nn.functional.normalize(h, dim=1).float().cpu().numpy()


def encode_files(trained: Trained, paths: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and features of a few files.

    Raises:
        DataError: for one that cannot be read.
    """
    pixels = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror})") from error
        pixels.append(trained.prepare(content, str(path)))
    return encode_pixels(trained, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def encode(collection: Collection, trained: Trained, parts: Path, workers: int = 0) -> Encoded:
    """Codes and features of all images that can be read; those in `parts` from an earlier call are not made again.

    Args:
        collection: the images.
        trained: the model, on its device.
        parts: folder for what is done.
        workers: processes that read.

    Raises:
        DataError: where no image can be read, or `parts` is of other images or another model, or damaged.
    """
    images, total = collection.images, len(collection.images)
    _check(parts, {"model": trained.identity["sha256"], "images": fingerprint({"": images})})
    starts = range(0, total, PART)
    missing = [start for start in starts if not _part(parts, start).exists()]
    if missing:
        numbers = torch.cat([torch.arange(start, min(start + PART, total)) for start in missing])
        feed = Feed(Readable(images.select(numbers), trained.prepare), trained.normalize, in_memory=False)
        batches = iter(passing_bar(evaluation_loader(feed, BATCH, workers), "encoding"))
        for start in missing:
            of_part = -(-min(PART, total - start) // BATCH)
            rows = [
                (numbers[within].numpy(), *encode_pixels(trained, pixels))
                for pixels, within in islice(batches, of_part)
                if len(within)
            ]
            columns = [
                np.concatenate(column) for column in zip(*rows, strict=True)
            ]  # none of an unreadable part
            with whole_file(_part(parts, start)) as file:
                np.savez(file, **dict(zip(COLUMNS, columns, strict=True)) if rows else {})
    found = [part for start in starts if (part := _read(_part(parts, start)))]
    unread = [_why_not(collection, trained, i) for i in _left_out(found, total)]
    if not found:
        raise DataError(f"none of the {total} images of {collection.source} can be read: {unread[0]}")
    return Encoded(
        *(np.concatenate([part[name] for part in found]) for name in ("numbers", "codes", "h")), unread
    )


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:09}.npz"


def _check(parts: Path, told: dict[str, str]) -> None:
    """Write what the parts are of, or compare it with what was written."""
    path = parts / "parts.json"
    if not path.exists():
        write_json(path, told)
        return
    try:
        earlier = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete {parts} to encode anew") from error
    changed = [name for name, value in told.items() if earlier.get(name) != value]
    if changed:
        raise DataError(
            f"{parts} holds codes of other {' and another '.join(sorted(changed))}; delete it to encode anew, or give "
            "another folder"
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file) as part:
            return {name: part[name] for name in part.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to encode its images again") from error


def _left_out(found: list[dict[str, NDArray[Any]]], total: int) -> list[int]:
    read = set(np.concatenate([part["numbers"] for part in found]).tolist()) if found else set()
    return [number for number in range(total) if number not in read]


def _why_not(collection: Collection, trained: Trained, number: int) -> str:
    images = collection.images
    try:
        trained.prepare(images.read(number), images.where(number))
    except DataError as error:
        return str(error)
    return f"{images.where(number)} could not be read, and now can; delete the codes to encode it too"
