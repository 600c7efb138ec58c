"""Crop, resize, flip and blur as weighted sums of rows, then of columns. Images are planes: (3, B, H, W)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Taps(NamedTuple):
    """Which rows of an image each row of a view is made of.

    Args:
        place: rows of the image. Shape: (B, size, taps)
        weights: of these rows, which sum to one. Shape: (B, size, taps)
    """

    place: Tensor
    weights: Tensor


def crop_taps(start: Tensor, length: Tensor, flip: Tensor | None, size: int, full: int) -> Taps:
    """Crop, then antialiased bilinear resize, along one side.

    A view's row is a triangle over the crop that reaches, on either side, as far as a row of the crop or of the view,
    whichever is larger. What of it lies outside the crop has no weight, and the rest sums to one.

    Args:
        start: of the crop, in whole pixels. Shape: (B,)
        length: of the crop, in whole pixels. Shape: (B,)
        flip: whether the view is turned round. Shape: (B,)
        size: of the view in pixels.
        full: side of the image in pixels.
    """
    scale = (length / size)[:, None]
    reach = scale.clamp(min=1)
    middles = torch.arange(size, device=start.device) + 0.5
    centre = scale * (middles if flip is None else torch.where(flip[:, None], size - middles, middles))
    taps = torch.arange(math.ceil(2 * max(1, full / size)), device=start.device)[:, None, None]
    place = (centre - reach + 0.5).floor() + taps  # (taps, B, size): torch is fast along long rows
    weights = (1 - (place + 0.5 - centre).abs_().div_(reach)).clamp_(min=0)
    weights.mul_((place >= 0) & (place < length[:, None])).div_(weights.sum(dim=0))
    place = place.clamp_(min=0).minimum(length[:, None] - 1).long().add_(start[:, None])
    return Taps(place.movedim(0, 2).contiguous(), weights.movedim(0, 2).contiguous())


def blur_taps(sigma: Tensor, radius: int, size: int) -> Taps:
    """Gaussian of 2 radius + 1 taps along one side, borders mirrored.

    Args:
        sigma: standard deviation in pixels. Shape: (B,)
        radius: taps on either side, less than `size`.
        size: side of the view in pixels.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    place = (torch.arange(size, device=sigma.device)[:, None] + offsets).abs()
    place = size - 1 - (size - 1 - place).abs()
    shape = (len(sigma), *place.shape)
    return Taps(place.expand(shape), weights[:, None].expand(shape))


def resample(images: Tensor, source: Tensor | None, taps: Taps) -> Tensor:
    """Weighted sums of an image's rows, turned so that a second call does the columns.

    An embedding bag does just this at the speed of memory, each row of pixels being an embedding.

    Args:
        images: Shape: (3, N, H, W)
        source: image of each view; None for each its own. Shape: (B,)
        taps: of B views along H.

    Returns:
        Transposed: what lies side by side in memory are the columns. Shape: (3, B, W, size)
    """
    channels, count, height, width = images.shape
    source = torch.arange(count, device=images.device) if source is None else source
    plane = count * torch.arange(channels, device=images.device)[:, None] + source
    index = height * plane[:, :, None, None] + taps.place
    weights = taps.weights.expand_as(index).reshape(-1, index.shape[-1])
    rows = images.reshape(-1, width)
    sums = F.embedding_bag(index.view(weights.shape), rows, per_sample_weights=weights, mode="sum")
    return sums.view(channels, len(source), -1, width).mT
