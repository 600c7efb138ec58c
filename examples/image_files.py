"""Find image files, check every one of them before a long run starts, and read them as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

SAMPLE = Path(__file__).parent / "data" / "cifar10_sample.tar.gz"  # of CIFAR-10, ships with the examples
EXTENSIONS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb; 256 MiB when decoded
MAX_ASPECT_RATIO = 100  # with a short side of 256 pixels, such an image takes 20 MB


class ImageError(ValueError):
    """Images that cannot be used; the message names the files and the fix."""


class ImageFiles(NamedTuple):
    """Image files in a fixed order; labels are indices into `classes`."""

    paths: list[str]
    labels: list[int] | None
    classes: list[str]


def find_images(root: str | Path, *, labelled: bool = True) -> ImageFiles:
    """Find all images below a folder; its subfolders are the classes, as for torchvision's `ImageFolder`.

    With fewer than two class folders, or `labelled=False`, there are no labels. Symbolic links are followed. Files that
    cannot be used are left out with a warning.
    """
    found = [path for path, _ in make_dataset(root, {"": 0}, is_valid_file=lambda _: True, allow_empty=True)]
    parts = {path: os.path.relpath(path, root).split(os.sep) for path in found}
    paths = [path for path in found if not any(name.startswith(".") for name in parts[path])]
    paths = [path for path in paths if has_file_allowed_extension(path, EXTENSIONS) and os.path.isfile(path)]
    classes = sorted({parts[path][0] for path in paths if len(parts[path]) > 1})
    classes = classes if labelled and len(classes) > 1 else []
    if classes:  # images next to the class folders have no class
        paths = [path for path in paths if len(parts[path]) > 1]
    if left_out := sorted({*found} - {*paths}):
        warnings.warn(f"left out {len(left_out)} files of {root}: {_shorten(left_out)}", stacklevel=2)
    if not paths:
        raise ImageError(f"no images in {root}; give a folder of {', '.join(EXTENSIONS)} files")
    labels = np.searchsorted(classes, [parts[path][0] for path in paths]).tolist() if classes else None
    return ImageFiles(paths, labels, classes)


def check_images(files: ImageFiles, *, workers: int = 0) -> str:
    """Decode every image once, JPEGs at reduced size, and return a SHA-256 over all names and contents."""
    own = torch.Generator()  # leaves the global one alone
    loader = DataLoader(files.paths, None, collate_fn=_check, num_workers=workers, generator=own)
    results = [*tqdm(loader, "checking images", disable=None)]
    if problems := [problem for _, problem in results if problem]:
        raise ImageError(f"cannot use {len(problems)} of {len(results)} images: {_shorten(problems)}")
    top, total = os.path.commonpath([os.path.dirname(path) for path in files.paths]), hashlib.sha256()
    for path, (digest, _) in zip(files.paths, results, strict=True):
        total.update(os.fsencode(os.path.relpath(path, top)) + b"\0" + digest)
    return total.hexdigest()


def _check(path: str) -> tuple[bytes, str]:
    """SHA-256 of a file's content, and what is wrong with it."""
    try:
        content = Path(path).read_bytes()
        read_image(io.BytesIO(content), path, min_side=1)
    except (ImageError, OSError) as error:
        return b"", str(error)
    return hashlib.sha256(content).digest(), ""


def read_image(file: str | Path | BinaryIO, name: str = "", min_side: int = MAX_PIXELS) -> Image.Image:
    """Read an image as 8-bit RGB, upright; errors give the `name` of a binary file.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves `min_side` pixels on each side.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of harmless metadata, and of size, which is checked below
        try:
            if isinstance(file, (str, Path)) and not os.path.isfile(file):
                raise ValueError("no such file")
            image = Image.open(file)
            (short, long), mode = sorted(image.size), image.mode
            if short * long > MAX_PIXELS or long > MAX_ASPECT_RATIO * short:
                raise ValueError(f"{image.size} exceeds {MAX_PIXELS:,} pixels or {MAX_ASPECT_RATIO} : 1")
            if mode == "F" or (mode == "I" and image.format != "PNG"):
                raise ValueError(f"mode {mode} has no fixed range, unlike 8 or 16 bits")
            image.draft(None, (min(min_side, short),) * 2)
            image.load()
            with contextlib.suppress(Exception):  # damaged metadata
                ImageOps.exif_transpose(image, in_place=True)
            if mode.startswith("I"):  # 16 bits, which Pillow would clip to 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise many types
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise ImageError(f"{printable(name or file)}: {reason}; convert, replace or remove it") from error


class Images(NamedTuple):
    """Images in memory; `labels` are indices into `classes`, or None. Shape: (N, 3, side, side) uint8, (N,)."""

    pixels: torch.Tensor
    labels: torch.Tensor | None
    classes: list[str]

    def hold_out(self) -> tuple[Images, Images]:
        """Four fifths and the rest, in a random order that is always the same."""
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(0))
        parts = order.tensor_split([len(order) * 4 // 5])
        return tuple(Images(self.pixels[i], self.labels[i], self.classes) for i in parts)

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels."""
        arrays = [x.numpy().tobytes() for x in (self.pixels, self.labels) if x is not None]
        return hashlib.sha256(b"".join(arrays)).hexdigest()


def read_pixels(folder: str | Path, side: int) -> Images:
    """All images of a folder, cropped to squares."""
    paths, labels, classes = find_images(folder)
    images = [ImageOps.fit(read_image(path), (side, side)) for path in tqdm(paths, "reading", disable=None)]
    return Images(torch.stack([pil_to_tensor(x) for x in images]), labels and torch.tensor(labels), classes)


def split_folder(root: Path, *names: str) -> Path | None:
    """The first folder of one of these names in a folder, or one below it."""
    paths = (path for name in names for path in (root / name, *sorted(root.glob(f"*/{name}"))))
    return next((path for path in paths if path.is_dir()), None)


def read_splits(root: Path, side: int) -> tuple[Images, Images | None]:
    """Images in `train` and in `test` or `val` of a folder or tar; None for the second if the first has no labels."""
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(root, folder) if root.is_file() else root
        train = read_pixels(split_folder(root, "train") or root, side)
        if train.labels is None:
            return train, None
        test = read_pixels(split_folder(root, "test", "val") or root / "test", side)
        if train.classes != test.classes:
            differing = f"{train.classes}, {test.classes}"
            raise ImageError(f"training and test images must be of the same classes, got {differing}")
        return train, test


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a tar below a folder, once: the new folder is named by the tar's path, size and time."""
    try:
        archive = Path(archive)
        about = archive.resolve(), archive.stat().st_size, archive.stat().st_mtime_ns
        key = zlib.crc32(repr(about).encode())
        target = Path(folder) / f"{archive.stem}-{key:08x}"
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary, tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(Path(temporary, "all"), filter="data")
            else:
                tar.extractall(Path(temporary, "all"), [*map(_plain, tar)])
            check_end(tar)
            return Path(temporary, "all").rename(target)
    except Exception as error:  # damaged archives raise many types
        raise ImageError(f"cannot unpack {archive}: {error}; replace it") from error


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Refuse links and names that lead outside, which Python before 3.10.12 and 3.11.4 would follow."""
    if not (member.isreg() or member.isdir()) or member.name.startswith("/") or ".." in Path(member.name).parts:
        raise tarfile.ExtractError(f"{member.name} may lead outside; with Python 3.11.4 or later, links are checked")
    return member


def check_end(tar: tarfile.TarFile) -> None:
    """Refuse an archive that is damaged after the last member read, where tarfile stops without an error."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("damaged before its end")


def printable(text: object) -> str:
    """Text for the terminal, with escapes for what its encoding or a file name's bytes do not allow."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(text).encode(encoding, "backslashreplace").decode(encoding)


def _shorten(texts: list[str]) -> str:
    return "; ".join([printable(text) for text in texts[:5]] + ["..."] * (len(texts) > 5))
