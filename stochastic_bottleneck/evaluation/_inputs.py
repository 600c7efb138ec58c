"""What the evaluations share: their imports and the check of their inputs."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Features = Tensor | NDArray[Any]
Labels = Tensor | NDArray[Any]


def sklearn(module: str) -> Any:
    """Module of scikit-learn, or an error that names the extra to install."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "stochastic_bottleneck.evaluation needs scikit-learn; install it with "
            'pip install "stochastic-bottleneck[examples]"'
        ) from error


def as_arrays(
    train_features: Features, train_labels: Labels, test_features: Features, test_labels: Labels
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32], NDArray[Any]]:
    """Both sets as numpy arrays, checked to fit together."""
    sets = []
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        x, y = _array(features).astype(np.float32), _array(labels)
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


def _array(x: Features) -> NDArray[Any]:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.is_floating_point() else x).numpy()
    return np.asarray(x)
