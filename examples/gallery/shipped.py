"""A trained StochCon Bern and a sample of CIFAR-10, both in the repository, for the gallery."""

import sys
from pathlib import Path

import torch
from torchvision.transforms import v2

from stochastic_bottleneck.hub import HubModel

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.append(str(EXAMPLES))
from image_files import SAMPLE, Images, read_splits  # noqa: E402


def load() -> tuple[HubModel, v2.Compose, Images, Images, list[str]]:
    """Model, its normalization of bytes, 5,000 training and 1,000 test images, and names of the classes.

    The model (`cifar10_full.py cpu`) was trained on the training images too, without labels.
    """
    model = HubModel.from_pretrained(EXAMPLES / "gallery" / "model")
    cfg = model.pretrained_cfg
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg["mean"], cfg["std"])])
    train, test = read_splits(SAMPLE, 32)
    return model, normalize, train, test, train.classes
