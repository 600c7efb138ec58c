"""Imports and input checks shared by the evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stochastic_bottleneck._arrays import array, as_array, class_labels, label_hint
from stochastic_bottleneck._checks import check_floating, explain_mismatch
from stochastic_bottleneck._extras import require

Features = Tensor | NDArray[Any]
Labels = Tensor | NDArray[Any]


def sklearn(module: str) -> Any:
    """Module of scikit-learn, or an error that names the extra to install."""
    return require(f"sklearn.{module}", "stochastic_bottleneck.evaluation", "evaluation")


def scipy(module: str) -> Any:
    """Module of scipy, which comes with scikit-learn, or an error that names the extra to install."""
    return require(f"scipy.{module}", "stochastic_bottleneck.evaluation", "evaluation")


def home_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device


def as_arrays(
    train_features: Features, train_labels: Labels, test_features: Features, test_labels: Labels
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Convert both sets to numpy arrays and check that they fit together."""
    sets: list[Any] = []
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        x = array(features, f"{name}_features")
        if x.dtype == np.uint8 and x.max(initial=0) > 1:
            raise ValueError(
                f"{name}_features must be features or bits, got uint8 of up to {x.max()}, which may be packed codes; "
                'unpack them with codes.unpack_bits, or pass x.astype("f4") if these are numbers'
            )
        with np.errstate(over="ignore", under="ignore"):  # infinities are reported below
            x = x.astype(np.float32)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name}_features must have shape (N, F) with N and F at least 1, got {x.shape}")
        y = class_labels(labels, len(x), f"{name}_labels")
        check_finite_rows(np.isfinite(x), f"{name}_features")
        sets += [x, y]
    if sets[0].shape[1] != sets[2].shape[1]:
        raise ValueError(
            f"train_features and test_features must be equally wide, got {sets[0].shape[1]} and {sets[2].shape[1]}"
        )
    if len(np.unique(sets[1])) < 2:
        raise ValueError(f"train_labels must hold at least two classes, got only {sets[1][0]}")
    return sets[0], sets[1], sets[2], sets[3]


def check_finite_rows(finite: NDArray[np.bool_], name: str) -> None:
    """Check that all rows, one per image, are finite; the error gives the number and indices of those that are not."""
    bad = np.unique(np.nonzero(~finite)[0])
    if len(bad):
        first = ", ".join(map(str, bad[:5])) + ", ..." * (len(bad) > 5)
        raise ValueError(
            f"{name} must be finite, got nan or inf in {len(bad)} of {len(finite)} rows ({first}); look for nan or inf "
            "in those images; if it is all of them, the model has diverged"
        )


def images_and_labels(batches: Iterable[Any], name: str) -> Iterator[tuple[Tensor, Any]]:
    """Yield images and labels (a tensor, an array, or None) of each batch; empty batches are skipped."""
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise TypeError(f"{name} must be a DataLoader or another iterable of batches, got {batches!r}") from error
    for batch in iterator:
        x, y = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
        if isinstance(x, (tuple, list)) and len(x) == 1:
            x = x[0]  # from a TensorDataset of images only
        check_images(x, name)
        if y is not None:
            y = y if isinstance(y, Tensor) else as_array(y, f"labels in {name}")
            if tuple(y.shape) != (len(x),):
                raise ValueError(
                    f"{name} must give one label per image, got labels of shape {tuple(y.shape)} for {len(x)} images; "
                    f"give (images, labels), or only images{label_hint(y.shape)}"
                )
        if len(x):
            yield x, y


def check_images(x: object, name: str) -> None:
    """Check that `x` is a batch of images; it may be empty."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must hold images as tensors, by themselves or first in a tuple, got a batch of {type(x).__name__}"
        )
    if not x.is_floating_point() and not x.is_complex():
        raise TypeError(
            f"{name} must hold images in floating point, got {x.dtype}; scale and normalise them as in training"
        )
    check_floating(x, name)
    if x.is_meta:
        raise ValueError(f"{name} must hold images with values, got a meta tensor; load them first")
    if x.ndim < 2:
        raise ValueError(f"{name} must hold images of shape (N, C, H, W), got {tuple(x.shape)}")


def explain_failure(name: str, x: Tensor, encoder: nn.Module, error: Exception) -> None:
    """Explain an encoder's error if the images have the wrong dtype, device or number of dimensions.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong device or number of dimensions.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return
    if not isinstance(error, ValueError):
        explain_mismatch(name, x, encoder, error)
    if x.ndim != 4:
        raise ValueError(
            f"{name} must hold images that the model accepts, usually of shape (N, C, H, W), got {tuple(x.shape)}; the "
            f"model's error: {error}"
        ) from error


def features_of(encoder: nn.Module, x: Tensor, name: str) -> Tensor:
    """Run an encoder and check that it gives one row of features per image."""
    try:
        h = encoder(x)
    except (RuntimeError, ValueError, TypeError) as error:
        explain_failure(name, x, encoder, error)
        raise
    if not isinstance(h, Tensor) or h.ndim != 2 or len(h) != len(x):
        kind = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
        raise ValueError(
            f"model must map {name} of shape (N, C, H, W) to features of shape (N, F), got {kind} for "
            f"{tuple(x.shape)}; StochConWrapper pools feature maps and tokens"
        )
    return h
