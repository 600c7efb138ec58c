"""Common corruptions of small images, and images of other things, to see whether an uncertainty tells them."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2 import functional as transforms

from recipes.feeds import DataError

# Strengths of severities 1 to 5 are those of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261; its authors'
# make_cifar_c.py). The corruptions are written anew, so that the images differ from theirs in small ways.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of values in 0..1
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # share that is left
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of the side that is left
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
IDX_IMAGES = 2051  # magic number of idx files of images
FASHION = "t10k-images-idx3-ubyte"


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupted copies of images.

    Args:
        images: uint8. Shape: (N, 3, H, W)
        kind: one of `STRENGTHS`.
        severity: 1 to 5.
        seed: of the noise.

    Returns:
        uint8. Shape: (N, 3, H, W)

    Raises:
        ValueError: for an unknown kind or severity.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"kind must be one of {', '.join(STRENGTHS)}, got {kind!r}")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity must be between 1 and 5, got {severity}")
    strength = STRENGTHS[kind][severity - 1]
    if kind == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return _bytes(images / 255 + strength * noise)
    if kind == "blur":
        reach = math.ceil(4 * strength)  # where a Gaussian has ended
        return _bytes(transforms.gaussian_blur(images / 255, [2 * reach + 1] * 2, [strength] * 2))
    if kind == "contrast":
        values = images / 255
        middle = values.mean(dim=(2, 3), keepdim=True)
        return _bytes((values - middle) * strength + middle)
    change = _pixelated if kind == "pixelate" else _compressed
    return torch.stack([_one_by_one(image, change, strength) for image in images])


def _bytes(values: Tensor) -> Tensor:
    return (255 * values).round().clamp(0, 255).to(torch.uint8)


def _one_by_one(
    image: Tensor, change: Callable[[Image.Image, float], Image.Image], strength: float
) -> Tensor:
    changed = change(Image.fromarray(image.permute(1, 2, 0).numpy()), strength)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def _pixelated(image: Image.Image, share: float) -> Image.Image:
    small = [max(1, int(side * share)) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def _compressed(image: Image.Image, quality: float) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=int(quality))
    return Image.open(content).convert("RGB")


# ---- foreign images -------------------------------------------------------------------------------------------


def digits(size: int, count: int) -> Tensor:
    """Handwritten digits from scikit-learn, which has them without a download.

    Args:
        size: side in pixels.
        count: at most so many.

    Returns:
        uint8, grey. Shape: (N, 3, size, size)
    """
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().images[:count]).float() / 16  # its values go to 16
    return _as_colour(grey, size)


def fashion(folder: Path | None, size: int, count: int, *, root: Path = Path("data")) -> Tensor:
    """Test images of Fashion-MNIST.

    Args:
        folder: with its idx files, as Debian's dataset-fashion-mnist has them; None for torchvision's copy below
            `root`, downloaded when it is not there.
        size: side in pixels.
        count: at most so many.
        root: where torchvision keeps its copy.

    Returns:
        uint8, grey. Shape: (N, 3, size, size)

    Raises:
        DataError: for files that are missing or damaged.
    """
    if folder is None:
        try:
            grey = FashionMNIST(str(root), train=False, download=True).data
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Fashion-MNIST is not complete below {root} ({error}); check the network, or give the folder of its "
                "idx files with --foreign, as Debian's dataset-fashion-mnist has them"
            ) from error
    else:
        grey = read_idx(folder)
    return _as_colour(grey[:count].float() / 255, size)


def read_idx(folder: Path) -> Tensor:
    """Test images of a folder with idx files, packed or not.

    Returns:
        uint8. Shape: (N, H, W)

    Raises:
        DataError: for a file that is missing or damaged.
    """
    paths = [path for name in (FASHION, f"{FASHION}.gz") for path in sorted(folder.rglob(name))]
    if not paths:
        raise DataError(
            f"--foreign: no {FASHION} or {FASHION}.gz below {folder}; give the folder that holds it"
        )
    path = paths[0]
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, images, height, width = np.frombuffer(content, ">i4", 4).tolist()
        pixels = np.frombuffer(content, np.uint8, offset=16)
        if magic != IDX_IMAGES or len(pixels) != images * height * width or not images:
            raise ValueError(f"magic number {magic}, {len(pixels)} bytes for {images} images")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged or no idx file of images ({error}); fetch it again") from error
    return torch.from_numpy(pixels.reshape(images, height, width).copy())


def _as_colour(grey: Tensor, size: int) -> Tensor:
    """Values in 0..1, Shape: (N, H, W), as images of the wanted size."""
    large = F.interpolate(
        grey.unsqueeze(1), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return _bytes(large).expand(-1, 3, -1, -1).contiguous()
