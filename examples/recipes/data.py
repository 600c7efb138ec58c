"""CIFAR-10 in memory: from the sample that ships here, torchvision's data set, a folder or a tar."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10

from recipes.augment import Normalize, OneView, TwoViews
from recipes.feeds import DataError, Feed, InMemory
from recipes.screen import passing_bar

__all__ = ["SAMPLE", "SIZE", "DataError", "ImageData", "Images", "hold_out", "load"]

SAMPLE = Path(__file__).parents[1] / "data" / "cifar10_sample.tar.gz"
SIZE = 32
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = ("train", "test", "val")
LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg"


class Images(NamedTuple):
    """Decoded images with their classes.

    Args:
        images: uint8. Shape: (N, 3, 32, 32)
        labels: int64. Shape: (N,)
    """

    images: Tensor
    labels: Tensor


class ImageData(NamedTuple):
    """A training and a test set.

    Args:
        train: images to train on.
        test: images to evaluate on.
        classes: class names in the order of the labels.
        name: what results are reported on.
        fingerprint: SHA-256 over images and labels.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    name: str
    fingerprint: str

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.train.images.shape[-1]

    @property
    def train_labels(self) -> Tensor:
        """Shape: (N,)."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """Shape: (M,)."""
        return self.test.labels

    def pretraining(
        self, strength: float, min_scale: float, blur: float | None = None, *, size: int | None = None
    ) -> Feed:
        """Training images, and two random views of each.

        Args:
            strength: of the colour jitter; SimCLR uses 0.5 on CIFAR-10.
            min_scale: smallest share of the image's area that a crop keeps; SimCLR uses 0.08.
            blur: probability of a blur; None for SimCLR's on CIFAR-10, which has none.
            size: side of the views in pixels; None for the images' own.
        """
        views = TwoViews(size or self.size, strength, min_scale, blur=blur or 0.0)
        return Feed(InMemory(*self.train), views, in_memory=True)

    def training(self, min_scale: float) -> Feed:
        """Training images, and one crop of each, flipped or not, to train a classifier on.

        Args:
            min_scale: smallest share of the image's area that a crop keeps.
        """
        return Feed(InMemory(*self.train), OneView(self.size, min_scale), in_memory=True)

    def evaluation(self, split: str) -> Feed:
        """Images as they are.

        Args:
            split: "train" or "test".
        """
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        return Feed(InMemory(*getattr(self, split)), Normalize(), in_memory=True)


def load(source: Path | None, *, root: Path = Path("data")) -> ImageData:
    """Load CIFAR-10, or any data set of small images in the same layout.

    Args:
        source: a tar or a folder in the layout `train/<class>/`, `test/<class>/`; a folder with torchvision's
            `cifar-10-batches-py`; None for torchvision's data set below `root`, downloaded when it is not
            there.
        root: where torchvision keeps its copy.

    Raises:
        DataError: when images are missing, unreadable or do not pair up; the message says what to do.
    """
    if source is None:
        return _from_torchvision(root, download=True)
    if not source.exists():
        raise DataError(f"no data at {source}; give a folder or a tar that holds {LAYOUT}")
    if source.is_dir() and (source / CIFAR10.base_folder).is_dir():
        return _from_torchvision(source, download=False)
    name = "CIFAR-10 sample (JPEG copy)" if source == SAMPLE else source.name
    return _from_files(source, name)


def hold_out(data: ImageData, share: float = 0.2) -> ImageData:
    """Replace the test set by a part of the training images, the same share of every class.

    Settings are chosen on this, so that the test set is seen once.
    """
    place = torch.zeros(len(data.train.labels), dtype=torch.bool)
    for label in data.train.labels.unique():
        of_class = (data.train.labels == label).nonzero().flatten()
        place[of_class[: max(1, round(share * len(of_class)))]] = True
    train, held = (Images(data.train.images[m], data.train.labels[m]) for m in (~place, place))
    return data._replace(
        train=train, test=held, name=f"{data.name}, {share:.0%} of the training images held out"
    )


def _from_torchvision(root: Path, *, download: bool) -> ImageData:
    try:
        parts = [CIFAR10(str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # no network, or files that fail their checksum
        raise DataError(
            f"CIFAR-10 is not complete below {root} ({error}); check the network and the disk and run again, or give "
            f"--data a folder or a tar that holds {LAYOUT}"
        ) from error
    train, test = (
        Images(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets))
        for p in parts
    )
    return ImageData(train, test, tuple(parts[0].classes), "CIFAR-10", _fingerprint(train, test))


def _from_files(source: Path, name: str) -> ImageData:
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {"train": {}, "test": {}}
    empty = _class_folders(source)
    try:
        for path, content in passing_bar(_members(source), f"reading {source.name}"):
            split, class_name = path.parts[-3:-1]
            of_class = found["test" if split == "val" else split].setdefault(class_name, {})
            of_class[str(path)] = _decode(path, content)
            empty.discard(path.parent)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{source} is damaged or not a tar ({error}); fetch or unpack it again") from error
    if empty:
        names = ", ".join(sorted(str(folder.relative_to(source)) for folder in empty))
        raise DataError(f"{source} has class folders without images: {names}; fill or remove them")
    classes = sorted(found["train"])
    if not classes:
        raise DataError(f"{source} holds no training images; the layout must be {LAYOUT}")
    if classes != sorted(found["test"]):
        only = sorted(set(classes) ^ set(found["test"]))
        raise DataError(
            f"the classes below train/ and test/ of {source} must be the same and none empty; "
            f"these have images on one side only: {', '.join(only)}"
        )
    train, test = (
        _stack([[image for _, image in sorted(found[split][c].items(), key=itemgetter(0))] for c in classes])
        for split in ("train", "test")
    )
    return ImageData(train, test, tuple(classes), name, _fingerprint(train, test))


def _members(source: Path) -> Iterator[tuple[Path, bytes]]:
    """Image files below train/<class>/ and test/<class>/."""
    if source.is_dir():
        for path in source.rglob("*"):
            if _is_image(path.relative_to(source)):
                yield path, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and _is_image(Path(member.name)):
                content = archive.extractfile(member)
                assert content is not None  # a regular file has content
                yield Path(member.name), content.read()
        # tarfile takes a damaged header for the end, and leaves the last checksum of a gzip unread.
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read()
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(tarfile.NUL):
            raise tarfile.ReadError("it breaks off before its end")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and len(path.parts) >= 3 and path.parts[-3] in SPLITS


def _class_folders(source: Path) -> set[Path]:
    """Folders that should hold images, of a folder; a tar tells of none."""
    found = (path for split in SPLITS for path in source.glob(f"**/{split}/*"))
    return {path for path in found if path.is_dir()} if source.is_dir() else set()


def _decode(path: Path, content: bytes) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"cannot read the image {path} ({error}); replace or remove it") from error
    return np.asarray(image if image.size == (SIZE, SIZE) else ImageOps.fit(image, (SIZE, SIZE)))


def _stack(by_class: list[list[np.ndarray]]) -> Images:
    images = torch.from_numpy(np.stack([image for images in by_class for image in images]))
    labels = torch.arange(len(by_class)).repeat_interleave(torch.tensor([len(images) for images in by_class]))
    return Images(images.permute(0, 3, 1, 2).contiguous(), labels)


def _fingerprint(*parts: Images) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
