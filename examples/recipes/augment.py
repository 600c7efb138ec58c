"""SimCLR's two random views of each image, made for a whole batch at once."""

from __future__ import annotations

import torch
from kornia import augmentation as K
from torch import Tensor, nn

# Per-channel mean and standard deviation of CIFAR-10's training images, as commonly published.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """Bytes to normalised floats, channels last in memory.

    `forward` takes uint8 images of Shape: (N, 3, H, W) and returns float32 of the same shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise. Shape: (N, 3, H, W)."""
        return self.normalize(images.float() / 255)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise floats in [0, 1]. Shape: (N, 3, H, W)."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class TwoViews(Normalize):
    """Random crop, flip, colour jitter and grey: SimCLR's augmentations for CIFAR-10, which leave out blur.

    Args:
        size: side of the views in pixels.
        strength: of the colour jitter; SimCLR uses 0.5 on CIFAR-10.
        min_scale: smallest share of the image's area that a crop keeps; SimCLR uses 0.08.

    Source:
        SimCLR (arXiv 2002.05709), appendix A and B.9.
    """

    def __init__(self, size: int = 32, strength: float = 0.5, min_scale: float = 0.08) -> None:
        super().__init__()
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        self.views = nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(min_scale, 1.0), ratio=(3 / 4, 4 / 3)),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(*jitter, p=0.8),
            K.RandomGrayscale(p=0.2),
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Two views of each image.

        Args:
            images: uint8. Shape: (N, 3, H, W)

        Returns:
            Both views, normalised floats. Shape: (N, 3, size, size) each
        """
        pixels = (images.float() / 255).repeat(2, 1, 1, 1)
        first, second = self.normalize(self.views(pixels)).chunk(2)
        return first, second
