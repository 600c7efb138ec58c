"""What the scripts of the gallery share: a trained StochCon Bern and a sample of CIFAR-10, which ship here."""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stochastic_bottleneck import StochConWrapper

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.append(str(EXAMPLES))

from recipes import data  # noqa: E402
from recipes.encoding import read_model  # noqa: E402

RUN = EXAMPLES / "results" / "cifar10_cpu" / "run"


class Shipped(NamedTuple):
    """The model and the images.

    Args:
        model: StochCon Bern in evaluation mode, of `cifar10_full.py --preset cpu`.
        normalize: bytes to what the model takes.
        train: 5,000 images and their labels; the model was trained on them too, without their labels.
        test: 1,000 images and their labels, which the model has not seen.
        classes: names in the order of the labels.
    """

    model: StochConWrapper
    normalize: nn.Module
    train: data.Images
    test: data.Images
    classes: tuple[str, ...]


def load() -> Shipped:
    """Read both; nothing is downloaded."""
    trained, images = read_model(RUN / "bern"), data.load(data.SAMPLE)
    return Shipped(
        trained.model, trained.normalize, images.train, images.test, images.classes
    )


def pictures(images: Tensor) -> NDArray[np.uint8]:
    """Images as matplotlib takes them. Shape: (N, 3, H, W) to (N, H, W, 3)."""
    return images.permute(0, 2, 3, 1).numpy()
