"""Photographs decoded and cropped, as a data set's workers do it: from bytes in any of Pillow's formats to RGB."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from recipes.batches import DataError
from recipes.draws import draw_crops

# As SimCLR resizes; its TensorFlow does so without antialiasing, Pillow always with. torchvision's default is BILINEAR.
RESAMPLING = Image.Resampling.BICUBIC
# A JPEG whose picture is far larger than what becomes of it is decoded at 1/2, 1/4 or 1/8 of its sides, much faster,
# as long as twice the needed pixels are left: the rule of Pillow's own thumbnails. Differences are below one level
# of 255 on average (tests/test_recipes_photographs.py).
SPARE = 2
SHORT_SIDE = 256 / 224  # before the middle is cut out to evaluate on; arXiv 1512.03385, section 3.4
# What turns a photograph upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
Pixels = NDArray[np.uint8]


def random_crops(
    content: bytes, name: str, count: int, size: int, min_scale: float, generator: torch.Generator
) -> list[Pixels]:
    """Random resized crops of one photograph: those of torchvision's `RandomResizedCrop` by the same draws.

    Args:
        content: the file's.
        name: of the file in messages.
        count: of crops.
        size: their side in pixels.
        min_scale: smallest share of the photograph's area that a crop keeps.
        generator: of the draws.

    Returns:
        The crops. Shape: (size, size, 3) each

    Raises:
        DataError: for a photograph that cannot be decoded.
    """
    photograph = _Photograph(content, name)
    draws = draw_crops(count, photograph.height, photograph.width, min_scale, generator)
    crops = [tuple(crop) for crop in torch.stack(draws, dim=1).tolist()]
    image, scale = photograph.load(min(side for crop in crops for side in crop[2:]) / size)
    return [
        _resize_crop(image, x * scale, y * scale, (x + width) * scale, (y + height) * scale, size)
        for y, x, height, width in crops
    ]


def middle(content: bytes, name: str, size: int) -> Pixels:
    """The middle of a photograph, to evaluate on: short side at 8/7 of `size`, then `size` pixels either way.

    Args:
        content: the file's.
        name: of the file in messages.
        size: side in pixels.

    Returns:
        Shape: (size, size, 3)

    Raises:
        DataError: for a photograph that cannot be decoded.
    """
    photograph = _Photograph(content, name)
    width, height, short = photograph.width, photograph.height, round(size * SHORT_SIDE)
    image, scale = photograph.load(min(width, height) / short)
    across, down = (int(short * side / min(width, height)) for side in (width, height))
    resized = image.resize((across, down), RESAMPLING, (0, 0, width * scale, height * scale))
    left, top = round((across - size) / 2), round((down - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


class _Photograph:
    """One whose size is known and whose pixels are not decoded yet.

    Args:
        content: the file's.
        name: of the file in messages.

    Raises:
        DataError: for a file that is no image.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        with self._told():
            self.file = Image.open(io.BytesIO(content))
        self.turn = UPRIGHT.get(self._orientation())
        self.width, self.height = self.file.size[::-1] if self.turn in SIDEWAYS else self.file.size

    def load(self, excess: float) -> tuple[Image.Image, float]:
        """Decode it, upright.

        Args:
            excess: how many times more pixels a side has than are needed.

        Returns:
            RGB, and its scale, which is below 1 where it was decoded smaller.

        Raises:
            DataError: for pixels that cannot be read.
        """
        file, (width, height) = self.file, self.file.size
        with self._told():
            smaller = None
            if (by := int(excess / SPARE)) > 1:
                smaller = file.draft(None, (max(1, width // by), max(1, height // by)))
            image = file.convert("RGB")
        scale = smaller[1][2] / width if smaller else 1.0
        return (image if self.turn is None else image.transpose(self.turn)), scale

    def _orientation(self) -> int:
        if "exif" not in self.file.info:  # asking all the same would read the whole of a PNG
            return 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return int(self.file.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # damaged tags say nothing about the pixels
            return 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Pillow warns of odd tags and palettes, which do no harm; what it cannot read is an error."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:  # Pillow's decoders raise many kinds
            raise DataError(f"cannot read the image {self.name} ({error}); replace or remove it") from error


def _resize_crop(
    image: Image.Image, left: float, top: float, right: float, bottom: float, size: int
) -> Pixels:
    """Cut out, then resize: nothing outside of the crop has a share in it, as torchvision has it."""
    x, y = math.floor(left), math.floor(top)
    cut = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    within = (left - x, top - y, right - x, bottom - y)
    return np.asarray(cut.resize((size, size), RESAMPLING, within))
