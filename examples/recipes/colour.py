"""Colour jitter in a random order for each image, and grey. Images are planes in 0..1: (3, B, pixels)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.draws import CONTRAST, SATURATION

LUMINANCE = (0.2989, 0.587, 0.114)  # of red, green and blue: torchvision's, after ITU-R BT.601


def jitter_(images: Tensor, steps: Tensor, factors: Tensor, hues: Sequence[Tensor]) -> None:
    """Brightness, contrast, saturation and hue in place, each image in its own order.

    The first three are of one form, so that images whose steps differ share the work: an image is blended with black,
    its mean luminance or its luminance, and clamped. The hue is not: images that have it at the same turn go together.

    Args:
        images: Shape: (3, B, pixels)
        steps: of each image, first to last. Shape: (B, 4)
        factors: of these steps, 1 being no change; for the hue, its shift in turns. Shape: (B, 4)
        hues: the images whose first, second, third and fourth step is the hue; others stay as they are.
            Shape: (M,) each
    """
    rest = 1 - factors
    shares = torch.stack((factors, rest * (steps == SATURATION), rest * (steps == CONTRAST)))
    for turn, index in enumerate(hues):
        some = images.index_select(1, index)
        for step, (kept, grey, mean) in enumerate(shares[:, index, :, None].unbind(2)):
            if step == turn:
                shift_hue_(some, kept[:, 0])
                continue
            blend = luminance(some)
            mean = blend.mean(dim=1, keepdim=True).mul_(mean)
            some.mul_(kept).add_(blend.mul_(grey).add_(mean)).clamp_(0, 1)
        images.index_copy_(1, index, some)


def grey_(images: Tensor, index: Tensor) -> None:
    """Take the colours of some images away, in place.

    Args:
        images: Shape: (3, B, pixels)
        index: of these images. Shape: (M,)
    """
    images.index_copy_(1, index, luminance(images.index_select(1, index)).expand(3, -1, -1))


def luminance(images: Tensor) -> Tensor:
    """Weighted sum of the channels. Shape: (3, B, pixels) -> (B, pixels)."""
    red, green, blue = images.unbind(0)
    return red.mul(LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def shift_hue_(images: Tensor, shift: Tensor) -> None:
    """Shift the hue of HSV in place, without going there and back.

    With the channels' least and greatest value and their difference, the chroma, a channel is

        least + chroma clamp(2 - distance, 0, 1),

    the distance being that of the pixel's hue from the channel's own, round the circle, in sixths of a turn. Measured
    from red, the hue is +-(1 + (green + blue - red - least) / chroma), negative where blue exceeds green.

    Args:
        images: Shape: (3, B, pixels)
        shift: in turns, within -0.5..0.5. Shape: (B,)
    """
    red, green, blue = images.unbind(0)
    least, greatest = images.amin(dim=0), images.amax(dim=0)
    chroma = greatest.sub_(least)
    hue = (green + blue).sub_(red).sub_(least).add_(chroma).copysign_(green - blue)
    hue.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny))  # without chroma, any hue will do
    # Hue and offset lie within 3 of 0, their sum within 6; there, 2 - distance is ||sum| - 3| - 1.
    own = 2 * torch.arange(3, device=images.device)[:, None]
    offset = torch.remainder(6 * shift - own + 3, 6) - 3
    level = (hue + offset[:, :, None]).abs_().sub_(3).abs_().clamp_(1, 2)
    torch.addcmul(least.sub_(chroma), chroma, level, out=images)
