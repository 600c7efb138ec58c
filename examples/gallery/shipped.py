"""A trained StochCon Bern and a sample of CIFAR-10, both in the repository, for the gallery."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stochastic_bottleneck.hub import HubModel

EXAMPLES = Path(__file__).resolve().parents[1]


class Images(NamedTuple):
    """Images as bytes (N, 3, 32, 32), and their labels (N,)."""

    images: torch.Tensor
    labels: torch.Tensor


def load() -> tuple[HubModel, v2.Compose, Images, Images, list[str]]:
    """Model, its normalization of bytes, 5,000 training and 1,000 test images, and names of the classes.

    The model (`cifar10_full.py cpu`) was trained on the training images too, without labels.
    """
    model = HubModel.from_pretrained(EXAMPLES / "gallery" / "model")
    cfg = model.pretrained_cfg
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg["mean"], cfg["std"])])
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(EXAMPLES / "data" / "cifar10_sample.tar.gz", folder, filter="data")
        for split in ("train", "test"):
            found = ImageFolder(f"{folder}/{split}", v2.PILToTensor())
            parts.append(Images(torch.stack([image for image, _ in found]), torch.tensor(found.targets)))
    return model, normalize, *parts, found.classes
