"""What the evaluations share: their imports and the check of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._checks import integer
from stochastic_bottleneck._extras import require

Features = Tensor | NDArray[Any]
Labels = Tensor | NDArray[Any]


def sklearn(module: str) -> Any:
    """Module of scikit-learn, or an error that names the extra to install."""
    return require(f"sklearn.{module}", "stochastic_bottleneck.evaluation", "evaluation")


def scipy(module: str) -> Any:
    """Module of scipy, which comes with scikit-learn, or an error that names the extra to install."""
    return require(f"scipy.{module}", "stochastic_bottleneck.evaluation", "evaluation")


def seed_of(seed: object) -> int:
    """A seed that torch, numpy and scikit-learn take."""
    return integer("seed", seed, least=0, most=2**32 - 1)


def array(x: Features) -> NDArray[Any]:
    """Values on the host, as numpy has them."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.is_floating_point() else x).numpy()
    return np.asarray(x)


def as_arrays(
    train_features: Features, train_labels: Labels, test_features: Features, test_labels: Labels
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32], NDArray[Any]]:
    """Both sets as numpy arrays, checked to fit together."""
    sets = []
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        x, y = array(features).astype(np.float32), array(labels)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name}_features must have shape (N, F) with N and F at least 1, got {x.shape}")
        if y.shape != x.shape[:1]:
            raise ValueError(f"{name}_labels must have shape ({x.shape[0]},), one an image, got {y.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}_features must be finite; the model that made them has diverged")
        sets += [x, y]
    if sets[0].shape[1] != sets[2].shape[1]:
        raise ValueError(
            "train_features and test_features must be equally wide, "
            f"got {sets[0].shape[1]} and {sets[2].shape[1]}"
        )
    if len(np.unique(sets[1])) < 2:
        raise ValueError("train_labels must hold at least two classes")
    return sets[0], sets[1], sets[2], sets[3]


def images_and_labels(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Images and labels of each batch that has images."""
    for batch in batches:
        x, y = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
        if isinstance(x, (tuple, list)) and len(x) == 1:
            x = x[0]  # a TensorDataset of images alone
        if not isinstance(x, Tensor):
            raise TypeError(
                f"images must be tensors, alone or first in a tuple, got a batch of {type(batch).__name__}"
            )
        if len(x):
            yield x, y
