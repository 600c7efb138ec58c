"""What images become on the device: SimCLR's two random views, one view to classify, or themselves; normalised.

Each is called as `transform(images, seed=None, rank=0, world=1)`. With a seed, what happens to the images is drawn for
the whole batch of all processes and each takes its share, so that two processes see the views that one would see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipes.draws import GREY
from recipes.views import MEAN, STD, Normalize, Views

__all__ = ["IMAGENET", "IMAGENET_MEAN", "IMAGENET_STD", "MEAN", "STD", "Normalize", "OneView", "TwoViews"]

# Of torchvision's models for ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# SimCLR's views for ImageNet are TwoViews(**IMAGENET).
IMAGENET: dict[str, Any] = {
    "size": 224,
    "strength": 1.0,
    "blur": 0.5,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}


class TwoViews(Views):
    """Random crop, flip, colour jitter, grey and blur: SimCLR's augmentations as torchvision defines each of them.

    The defaults are SimCLR's for CIFAR-10, which leave out the blur; `TwoViews(**IMAGENET)` has those for ImageNet.

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
        super().__init__(2, size, strength, min_scale, blur, GREY, mean, std, dtype, memory_format)

    def forward(
        self, images: Tensor, seed: int | torch.Generator | None = None, rank: int = 0, world: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Two views of each image.

        Args:
            images: uint8. Shape: (N, 3, H, W); or, of crops that the data's workers made, which are not cropped again:
                (N, 2, 3, size, size)
            seed: of this step, the same in every process; or a generator of the CPU; torch's global one if None.
            rank: of this process, whose images follow those of the ranks before it in the batch of all.
            world: number of processes.

        Returns:
            Both views, normalised. Shape: (N, 3, size, size) each

        Raises:
            TypeError: unless the images are uint8.
            ValueError: for images of another shape, a rank that there is not, or a generator of another device.
        """
        cropped = images.ndim == 5 and images.shape[1] == 2
        flat = images.transpose(0, 1).flatten(0, 1) if cropped else images
        first, second = self.views(flat, cropped, seed, rank, world).chunk(2)
        return first, second


class OneView(Views):
    """Random crop and flip, to train a classifier on.

    Args:
        size: side of the view in pixels.
        min_scale: smallest share of the image's area that a crop keeps; None for images that are crops already.
        mean: of each channel, whose values lie in 0..1.
        std: standard deviation of each channel.

    Raises:
        ValueError: for an option out of its range.

    Source:
        SimCLR (arXiv 2002.05709), appendix B.5 to B.7: crops and flips are all that evaluation trains with.
    """

    def __init__(
        self,
        size: int = 32,
        min_scale: float | None = 0.08,
        *,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        least = 1.0 if min_scale is None else min_scale
        super().__init__(1, size, 0.0, least, 0.0, 0.0, mean, std, torch.float32, torch.channels_last)
        self.cropped = min_scale is None

    def forward(
        self, images: Tensor, seed: int | torch.Generator | None = None, rank: int = 0, world: int = 1
    ) -> Tensor:
        """One view of each image; arguments and errors are those of `TwoViews`.

        Args:
            images: uint8. Shape: (N, 3, H, W)
            seed: of this step, the same in every process; or a generator of the CPU; torch's global one if None.
            rank: of this process.
            world: number of processes.

        Returns:
            Normalised. Shape: (N, 3, size, size)
        """
        return self.views(images, self.cropped, seed, rank, world)
