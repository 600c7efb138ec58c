"""What happens to each view: crop, flip, jitter, grey and blur, drawn by the laws of torchvision's transforms."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height; SimCLR (arXiv 2002.05709), appendix A
ATTEMPTS = 10  # to draw a crop that fits, before the middle of the image is taken: as torchvision has it
FLIP, JITTER, GREY = 0.5, 0.8, 0.2  # probabilities; SimCLR, appendix A
REACH = (0.8, 0.8, 0.8, 0.2)  # of brightness, contrast, saturation and hue at strength 1; SimCLR, appendix A
SIGMA = (0.1, 2.0)  # of the blur, in pixels of the view; SimCLR, appendix A
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # steps of a colour jitter, numbered as in torchvision
NOTHING = 4


class Draws(NamedTuple):
    """What happens to each of B views.

    Args:
        top, left, height, width: crop, in whole pixels of the image. Shape: (B,) each
        flip: whether left and right are swapped. Shape: (B,)
        steps: of the colour jitter, in their order, or four times nothing. Shape: (B, 4)
        factors: of these steps, 1 being no change; for the hue, its shift in turns. Shape: (B, 4)
        grey: whether colours are taken away. Shape: (B,)
        sigma: standard deviation of the blur in pixels, 0 for none. Shape: (B,)
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    steps: Tensor
    factors: Tensor
    grey: Tensor
    sigma: Tensor

    def part(self, views: slice | Tensor) -> Draws:
        """Those of some views, by their place or their numbers."""
        return Draws(*(field[views] for field in self))

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(*(send(field, device) for field in self))

    def groups(self) -> list[Tensor]:
        """Views whose first, second, third and fourth step is the hue, grey views, blurred views. Shape: (M,) each.

        Their sizes depend on values: asked on the CPU, they keep no GPU waiting.
        """
        marks = (*(self.steps == HUE).unbind(1), self.grey, self.sigma > 0)
        return [mark.nonzero()[:, 0] for mark in marks]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """From the CPU to a device, through pinned memory, so that the host does not wait for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def seeded(*parts: int | str) -> torch.Generator:
    """A generator of the CPU that is known from what it is for, such as ("order", seed, epoch).

    Torch keeps no more than the lowest 32 bits of a seed on the CPU: `(seed << 32) + step` would give every seed the
    same numbers. Here all parts are hashed together.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def draw(
    count: int,
    height: int,
    width: int,
    *,
    min_scale: float,
    strength: float,
    blur: float,
    grey: float = GREY,
    generator: torch.Generator | None = None,
) -> Draws:
    """Draw what happens to each of `count` views, independently, on the CPU.

    Args:
        count: views.
        height: of the images in pixels.
        width: of the images in pixels.
        min_scale: smallest share of the image's area that a crop keeps.
        strength: of the colour jitter: factors lie within 0.8 `strength` of 1, and are not negative; the hue's shift
            lies within 0.2 `strength` of 0.
        blur: probability of the blur.
        grey: probability that colours are taken away.
        generator: of the CPU; torch's global one if None.
    """
    rand = partial(torch.rand, dtype=torch.float64, generator=generator)
    crop = draw_crops(count, height, width, min_scale, generator)
    flip = rand(count) < FLIP
    middle, reach = torch.tensor([1, 1, 1, 0]), strength * torch.tensor(REACH, dtype=torch.float64)
    low = torch.maximum(middle - reach, middle - 1)
    order = rand(count, 4).argsort(dim=1)
    factors = (low + (middle + reach - low) * rand(count, 4)).gather(1, order)
    steps = torch.where(rand(count, 1) < (JITTER if strength else 0), order, NOTHING)
    greyed = rand(count) < grey
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * rand(count)
    sigma = torch.where(rand(count) < blur, sigma, 0)
    return Draws(*crop, flip, steps, factors.float(), greyed, sigma.float())


def draw_crops(
    count: int, height: int, width: int, min_scale: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tops, lefts, heights and widths: area uniform, ratio uniform in its logarithm, place uniform.

    A crop that does not fit into the image is drawn anew; after ten attempts, the largest middle of an allowed ratio is
    taken. Shape: (count,) each.
    """
    rand = partial(torch.rand, dtype=torch.float64, generator=generator)
    area = height * width * (min_scale + (1 - min_scale) * rand(count, ATTEMPTS))
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = (low + (high - low) * rand(count, ATTEMPTS)).exp()
    across, down = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (across > 0) & (across <= width) & (down > 0) & (down <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # 0 where none fits
    fits, across, down = (values.gather(1, first)[:, 0] for values in (fits, across, down))
    across = torch.where(fits, across, min(width, round(height * RATIO[1])))
    down = torch.where(fits, down, min(height, round(width / RATIO[0])))
    top = torch.where(fits, rand(count) * (height - down + 1), (height - down) / 2)
    left = torch.where(fits, rand(count) * (width - across + 1), (width - across) / 2)
    return top.long(), left.long(), down.long(), across.long()
