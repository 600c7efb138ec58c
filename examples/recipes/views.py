"""Random views of a batch of images, drawn on the CPU and made on the device: what every augmentation here shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recipes.colour import grey_, jitter_
from recipes.draws import Draws, draw, seeded, send
from recipes.resample import blur_taps, crop_taps, resample

# Per-channel mean and standard deviation of CIFAR-10's training images, as commonly published.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Values of views made at once. A processor is fastest where they stay in its caches, and where calls are few.
AT_ONCE = {"cpu": 2**21, "cuda": 2**25}


class Normalize(nn.Module):
    """Bytes to normalised floats, channels last in memory: the images as they are, to evaluate on.

    `forward` takes uint8 images of Shape: (N, 3, H, W) and returns float32 of the same shape.

    Args:
        mean: of each channel, whose values lie in 0..1.
        std: standard deviation of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, seed: int | torch.Generator | None = None, rank: int = 0, world: int = 1
    ) -> Any:
        """Normalise; nothing is random, and only the images matter. Shape: (N, 3, H, W)."""
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class Views(Normalize):
    """Random views of each image: what `TwoViews` and `OneView` share.

    Views are drawn by the laws of torchvision's transforms, and equal, up to rounding, what its functions make of the
    image in floats by the same draws.

    Random numbers come from the CPU whatever the images' device: a seed gives the same views everywhere, and the host
    knows which views need what without waiting for a GPU.

    Args:
        count: views of each image.
        size: side of the views in pixels.
        strength: of the colour jitter.
        min_scale: smallest share of the image's area that a crop keeps.
        blur: probability of a Gaussian blur, a tenth of the side wide.
        grey: probability that colours are taken away.
        mean: of each channel, whose values lie in 0..1.
        std: standard deviation of each channel.
        dtype: of the views.
        memory_format: of the views, `torch.channels_last` or `torch.contiguous_format`.

    Raises:
        ValueError: for an option out of its range.
    """

    def __init__(
        self,
        count: int,
        size: int,
        strength: float,
        min_scale: float,
        blur: float,
        grey: float,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        super().__init__(mean, std)
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        most = {"strength": 2.5, "min_scale": 1.0, "blur": 1.0}  # at 2.5 the hue has gone round
        for name, value in (("strength", strength), ("min_scale", min_scale), ("blur", blur)):
            if not 0 <= value <= most[name]:
                raise ValueError(f"{name} must be between 0 and {most[name]}, got {value}")
        self.count, self.size, self.dtype = count, size, dtype
        self.strength, self.min_scale, self.blur, self.grey = strength, min_scale, blur, grey
        self.channels_last = memory_format == torch.channels_last

    @torch.no_grad()
    def views(
        self, images: Tensor, cropped: bool, seed: int | torch.Generator | None, rank: int, world: int
    ) -> Tensor:
        """All views, those of one turn after those of the other.

        Args:
            images: uint8. Shape: (N, 3, H, W); with `cropped`, crops in the order of the views:
                (count N, 3, size, size)
            cropped: whether the crops were made already.
            seed: of the batch of all processes; or a generator of the CPU; torch's global one if None, for this
                batch alone.
            rank: whose share of that batch the images are.
            world: number of processes.

        Returns:
            Normalised. Shape: (count N, 3, size, size)
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; the views are normalised here")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must have the shape (N, 3, H, W), got {tuple(images.shape)}")
        if cropped and images.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"crops must have the views' side of {self.size} pixels, got {tuple(images.shape[2:])}"
            )
        if isinstance(seed, torch.Generator) and seed.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {seed.device}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be between 0 and world - 1 = {world - 1}, got {rank}")
        if seed is None:
            rank, world = 0, 1  # other processes' numbers are not known
        number = len(images) // self.count if cropped else len(images)
        draws = draw(
            self.count * world * number,
            *images.shape[2:],
            min_scale=self.min_scale,
            strength=self.strength,
            blur=self.blur,
            grey=self.grey,
            generator=seeded("views", seed) if isinstance(seed, int) else seed,
        )
        if world > 1:
            places = torch.arange(self.count * world * number).view(self.count, world, number)
            draws = draws.part(places[:, rank].flatten())
        return self.render(images, draws, cropped=cropped)

    def render(self, images: Tensor, draws: Draws, *, cropped: bool = False) -> Tensor:
        """Views by given draws.

        Args:
            images: uint8. Shape: (N, 3, H, W)
            draws: on the CPU; view i is of image i modulo N.
            cropped: whether the images are crops already, one a view.

        Returns:
            Normalised. Shape: (B, 3, size, size)
        """
        count, size, device = len(draws.grey), self.size, images.device
        shape, channel = ((count, size, size, 3), 3) if self.channels_last else ((count, 3, size, size), 1)
        views = torch.empty(shape, dtype=self.dtype, device=device)
        planes = None if cropped else _planes(images)
        source, moved = send(torch.arange(count) % len(images), device), draws.to(device)
        largest = 3 * max(images.shape[2] * images.shape[3], size * size)
        at_once = max(1, AT_ONCE.get(device.type, AT_ONCE["cuda"]) // largest)
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            groups = [send(index, device) for index in draws.part(some).groups()]
            given, of = (_planes(images[some]), None) if planes is None else (planes, source[some])
            made = self.paint(given, of, moved.part(some), groups).to(self.dtype)
            for target, plane in zip(views.unbind(channel), made, strict=True):
                target[some].copy_(plane)
        return views.permute(0, 3, 1, 2) if self.channels_last else views

    def paint(self, planes: Tensor, source: Tensor | None, draws: Draws, groups: Sequence[Tensor]) -> Tensor:
        """The device's part: operations whose shapes depend on no values.

        Args:
            planes: images in 0..1. Shape: (3, N, H, W)
            source: image of each view; None for crops that are made already, one a view. Shape: (B,)
            draws: of the views.
            groups: `draws.groups()`.

        Returns:
            Normalised. Shape: (3, B, size, size)
        """
        if source is None:
            return self._finish_(
                torch.where(draws.flip[:, None, None], planes.flip(-1), planes), draws, groups
            )
        rows = crop_taps(draws.top, draws.height, None, self.size, planes.shape[2])
        columns = crop_taps(draws.left, draws.width, draws.flip, self.size, planes.shape[3])
        turned = resample(resample(planes, source, rows), None, columns).mT  # as it lies in memory
        return self._finish_(turned, draws, groups).mT

    def _finish_(self, views: Tensor, draws: Draws, groups: Sequence[Tensor]) -> Tensor:
        """Jitter, grey, blur and normalise in place, whichever way round they lie. Shape: (3, B, size, size)."""
        *hues, grey, blurred = groups
        pixels = views.flatten(2)
        jitter_(pixels, draws.steps, draws.factors, hues)
        grey_(pixels, grey)
        if len(blurred):
            taps = blur_taps(draws.sigma[blurred], self.size // 20, self.size)
            sharp = views.index_select(1, blurred)
            views.index_copy_(1, blurred, resample(resample(sharp, None, taps), None, taps))
        return views.sub_(self.mean[:, None]).div_(self.std[:, None])


def _planes(images: Tensor) -> Tensor:
    """Bytes as floats in 0..1, a plane a channel. Shape: (N, 3, H, W) -> (3, N, H, W)."""
    return images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
