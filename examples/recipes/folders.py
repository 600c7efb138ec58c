"""Images of any folder or tar in an order that stays, with the folders that hold them for classes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from recipes.batches import Batch, DataError
from recipes.stored import Files, Members, Stored
from recipes.tars import index_tars

NO_CLASS = -1
Pixels = NDArray[np.uint8]
Prepare = Callable[[bytes, str], Pixels]
"""Makes a model's input of a file's content and its name for messages. Shape: (size, size, 3)"""


class Collection(NamedTuple):
    """Images in the order of their names.

    Args:
        source: the folder or tar.
        images: encoded as they are stored; their labels are numbers of classes, or all -1.
        classes: names of the folders that hold the images, sorted; empty where there are not at least two, or where
            an image lies in none.
    """

    source: Path
    images: Stored
    classes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Paths of the images relative to the source."""
        return list(map(os.fsdecode, self.images.keys()))


def read_collection(source: Path) -> Collection:
    """Find all images below a folder, or in a tar; none is decoded yet.

    Args:
        source: a folder, flat or of folders to any depth, or a tar that is not compressed.

    Raises:
        DataError: for a source that is missing, cannot be read or holds no images.
    """
    if not source.exists():
        raise DataError(f"no images at {source}; give a folder or a tar that holds some")
    if source.is_dir():
        found = sorted(
            path.relative_to(source).as_posix()
            for path in source.rglob("*")
            if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
        )
        if not found:
            raise DataError(f"{source} holds no images; they must end in {', '.join(IMG_EXTENSIONS)}")
        classes, labels = _classes(found)
        sizes = np.array([(source / name).stat().st_size for name in found], np.int64)
        names = np.array([os.fsencode(name) for name in found])
        return Collection(source, Files(source, names, sizes, labels), classes)
    [index] = index_tars([source], None)
    order = np.argsort(index.names, kind="stable")
    classes, labels = _classes([os.fsdecode(name) for name in index.names[order].tolist()])
    place = index.offsets[order], index.names[order], index.sizes[order]
    images = Members([source], np.zeros(len(order), np.int64), *place, labels)
    return Collection(source, images, classes)


def _classes(names: list[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    folders = [PurePosixPath(name).parent.name for name in names]
    classes = tuple(sorted(set(folders)))
    if "" in classes or len(classes) < 2:
        return (), np.full(len(names), NO_CLASS, np.int64)
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[folder] for folder in folders], np.int64)


# ---- decoding -------------------------------------------------------------------------------------------------


def decode(content: bytes, name: str) -> Image.Image:
    """A file's picture, upright, as RGB.

    Args:
        content: of the file.
        name: of the file in messages.

    Raises:
        DataError: for a file that is no image, or whose pixels cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags and palettes, which do no harm
            return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"cannot read the image {name} ({error}); replace or remove it") from error


def fitted(content: bytes, name: str, size: int) -> Pixels:
    """A small image whole, as `recipes.data` reads CIFAR-10; one of another size is cut to a square and resized.

    Args:
        content: of the file.
        name: of the file in messages.
        size: side in pixels.

    Returns:
        Shape: (size, size, 3)

    Raises:
        DataError: for an image that cannot be read.
    """
    image = decode(content, name)
    return np.asarray(image if image.size == (size, size) else ImageOps.fit(image, (size, size)))


def thumbnails(images: Stored, numbers: list[int], side: int) -> NDArray[np.float32]:
    """Whole pictures squeezed to a small square, whatever their shape: enough to tell a copy from another picture.

    Args:
        images: encoded.
        numbers: of the images to take.
        side: in pixels.

    Returns:
        Values from 0 to 255. Shape: (N, side, side, 3)
    """
    made = np.empty((len(numbers), side, side, 3), np.float32)
    for row, number in enumerate(numbers):
        image = decode(images.read(number), images.where(number))
        made[row] = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    return made


class Readable(Dataset[Batch]):
    """Images brought to a model's size. Those that cannot be read are left out of their batch.

    Args:
        images: encoded.
        prepare: makes the input.
    """

    def __init__(self, images: Stored, prepare: Prepare) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """Images of pairs (number, 0), and the numbers of those that could be read. Shape: (N, 3, size, size), (N,)."""
        pixels, numbers = [], []
        for number, _ in pairs:
            try:
                pixels.append(self.prepare(self.images.read(number), self.images.where(number)))
            except DataError:
                continue
            numbers.append(number)
        stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2), torch.tensor(numbers, dtype=torch.int64)
