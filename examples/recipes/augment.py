"""SimCLR's two random views of each image, made for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recipes.colour import grey_, jitter_
from recipes.draws import Draws, draw, send
from recipes.resample import blur_taps, crop_taps, resample

# Per-channel mean and standard deviation of CIFAR-10's training images, as commonly published.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# SimCLR's views for ImageNet are TwoViews(**IMAGENET); mean and deviation are those of torchvision's models.
IMAGENET = {
    "size": 224,
    "strength": 1.0,
    "blur": 0.5,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# Values of views made at once. A processor is fastest where they stay in its caches, and where calls are few.
AT_ONCE = {"cpu": 2**21, "cuda": 2**25}


class Normalize(nn.Module):
    """Bytes to normalised floats, channels last in memory.

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

    def forward(self, images: Tensor) -> Tensor:
        """Normalise. Shape: (N, 3, H, W)."""
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class TwoViews(Normalize):
    """Random crop, flip, colour jitter, grey and blur: SimCLR's augmentations as torchvision defines each of them.

    Views are drawn by the laws of torchvision's transforms, and equal, up to rounding, what its functions make of the
    image in floats by the same draws. The defaults are SimCLR's for CIFAR-10, which leave out the blur;
    `TwoViews(**IMAGENET)` has those for ImageNet.

    Random numbers come from the CPU whatever the images' device: a seed gives the same views everywhere, and the host
    knows which views need what without waiting for a GPU.

    Args:
        size: side of the views in pixels.
        strength: of the colour jitter; SimCLR uses 0.5 on CIFAR-10.
        min_scale: smallest share of the image's area that a crop keeps; SimCLR uses 0.08.
        blur: probability of a Gaussian blur, a tenth of the side wide; SimCLR uses 0.5 on ImageNet.
        mean: of each channel, whose values lie in 0..1.
        std: standard deviation of each channel.
        dtype: of the views.
        memory_format: of the views, `torch.channels_last` or `torch.contiguous_format`.

    Raises:
        ValueError: for an option out of its range.

    Source:
        SimCLR (arXiv 2002.05709), appendix A and B.9.
    """

    def __init__(
        self,
        size: int = 32,
        strength: float = 0.5,
        min_scale: float = 0.08,
        *,
        blur: float = 0.0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__(mean, std)
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        most = {"strength": 2.5, "min_scale": 1.0, "blur": 1.0}  # at 2.5 the hue has gone round
        for name, value in (("strength", strength), ("min_scale", min_scale), ("blur", blur)):
            if not 0 <= value <= most[name]:
                raise ValueError(f"{name} must be between 0 and {most[name]}, got {value}")
        self.size, self.strength, self.min_scale, self.blur = size, strength, min_scale, blur
        self.dtype, self.channels_last = dtype, memory_format == torch.channels_last

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two views of each image.

        Args:
            images: uint8. Shape: (N, 3, H, W)
            generator: of the CPU; torch's global one if None.

        Returns:
            Both views, normalised. Shape: (N, 3, size, size) each

        Raises:
            TypeError: unless the images are uint8.
            ValueError: for images of another shape, or a generator of another device.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; the views are normalised here")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must have the shape (N, 3, H, W), got {tuple(images.shape)}")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        draws = draw(
            2 * len(images),
            *images.shape[2:],
            min_scale=self.min_scale,
            strength=self.strength,
            blur=self.blur,
            generator=generator,
        )
        first, second = self.render(images, draws).chunk(2)
        return first, second

    def render(self, images: Tensor, draws: Draws) -> Tensor:
        """Views by given draws.

        Args:
            images: uint8. Shape: (N, 3, H, W)
            draws: on the CPU; view i is of image i modulo N.

        Returns:
            Normalised. Shape: (B, 3, size, size)
        """
        count, size, device = len(draws.grey), self.size, images.device
        shape, channel = ((count, size, size, 3), 3) if self.channels_last else ((count, 3, size, size), 1)
        views = torch.empty(shape, dtype=self.dtype, device=device)
        planes = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        source, moved = send(torch.arange(count) % len(images), device), draws.to(device)
        largest = 3 * max(images.shape[2] * images.shape[3], size * size)
        at_once = max(1, AT_ONCE.get(device.type, AT_ONCE["cuda"]) // largest)
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            groups = [send(index, device) for index in draws.part(some).groups()]
            made = self.paint(planes, source[some], moved.part(some), groups).to(self.dtype)
            for target, plane in zip(views.unbind(channel), made, strict=True):
                target[some].copy_(plane)
        return views.permute(0, 3, 1, 2) if self.channels_last else views

    def paint(self, planes: Tensor, source: Tensor, draws: Draws, groups: Sequence[Tensor]) -> Tensor:
        """The device's part: operations whose shapes depend on no values.

        Args:
            planes: images in 0..1. Shape: (3, N, H, W)
            source: image of each view. Shape: (B,)
            draws: of the views.
            groups: `draws.groups()`.

        Returns:
            Normalised. Shape: (3, B, size, size)
        """
        *hues, grey, blurred = groups
        rows = crop_taps(draws.top, draws.height, None, self.size, planes.shape[2])
        columns = crop_taps(draws.left, draws.width, draws.flip, self.size, planes.shape[3])
        turned = resample(resample(planes, source, rows), None, columns).mT  # as it lies in memory
        pixels = turned.flatten(2)
        jitter_(pixels, draws.steps, draws.factors, hues)
        grey_(pixels, grey)
        if len(blurred):
            taps = blur_taps(draws.sigma[blurred], self.size // 20, self.size)
            sharp = turned.index_select(1, blurred)
            turned.index_copy_(1, blurred, resample(resample(sharp, None, taps), None, taps))
        return turned.sub_(self.mean[:, None]).div_(self.std[:, None]).mT
