"""Inputs that are read on the host: arrays of numbers, classes of images, sequences of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")


def array(x: object, name: str) -> NDArray[Any]:
    """Real numbers or booleans on the host, as numpy has them: of a tensor, or of what numpy makes an array of.

    Raises:
        TypeError: for anything else.
        ValueError: for masked values, or a tensor that holds none.
    """
    y = as_array(x, name)
    if y.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be an array, a tensor or a list of real numbers, got {_kind(x)} of dtype {y.dtype}; "
            "convert it to numbers first"
        )
    return y


def class_labels(labels: object, count: int, name: str) -> NDArray[np.int64]:
    """Integer classes, one for each of `count` images; booleans count.

    Raises:
        TypeError: for labels that are not integers.
        ValueError: for another shape, or missing labels.
    """
    y = as_array(labels, name)
    if y.ndim == 0 and not hasattr(labels, "shape"):
        raise TypeError(f"{name} must be {count} integers, one an image, got {labels!r}")
    if y.shape != (count,):
        raise ValueError(
            f"{name} must have shape ({count},), one an image, got {y.shape}{label_hint(y.shape)}"
        )
    values = y.tolist() if y.dtype.kind in "fO" else []  # what can hold a missing one
    missing = sum(map(_is_missing, values))
    if missing:
        raise ValueError(
            f"{name} must be integers, one an image, got {missing} of {count} missing (NaN or None); leave out those "
            "images"
        )
    if y.dtype.kind not in "biu" and not (
        y.dtype.kind == "O" and all(isinstance(v, Integral) for v in values)
    ):
        whole = [isinstance(v, Integral) or (isinstance(v, float) and v.is_integer()) for v in y.tolist()]
        first = y.tolist()[0 if all(whole) else whole.index(False)]
        raise TypeError(
            f"{name} must be integers, one an image, got {first!r} in {_kind(labels)} of dtype "
            f"{y.dtype}; give each class a number, the same in every set"
        )
    return y.astype(np.int64)


def label_hint(shape: Sequence[int]) -> str:
    """How labels of two dimensions become one an image."""
    if len(shape) != 2:
        return ""
    return "; flatten them" if shape[1] == 1 else "; of one-hot rows take argmax(1)"


def sequence(
    values: object, name: str, rule: str, check: Callable[[str, object], T], *, empty: bool = False
) -> tuple[T, ...]:
    """Elements of a list, tuple, range, array or tensor of one dimension, each as `check` gives it.

    Raises:
        TypeError: for anything else, or elements of a wrong type.
        ValueError: for elements of a wrong value, or none, unless `empty` allows it.
    """
    message = f"{name} must be {rule}, got {values!r}"
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise TypeError(f"{message}; give a list")
    # A tensor's elements are tensors.
    elements: Any = as_array(values, name) if isinstance(values, Tensor) else values
    try:
        checked = tuple(check(name, value) for value in elements)
    except (TypeError, ValueError) as error:
        raise type(error)(message) from error
    if not checked and not empty:
        raise ValueError(message)
    return checked


def as_array(x: object, name: str) -> NDArray[Any]:
    """An array of any dtype."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_nested or x.is_meta or x.is_complex():
            layout = str(x.layout if x.layout != torch.strided else x.dtype).removeprefix("torch.")
            kind = "nested" if x.is_nested else "meta" if x.is_meta else layout
            raise TypeError(f"{name} must be a dense tensor of real numbers with values, got a {kind} one")
        x = x.detach().cpu()
        # numpy has no bfloat16.
        return (x.float() if x.is_floating_point() and x.itemsize < 4 else x).numpy()
    if np.ma.is_masked(x):
        count = np.ma.count_masked(x)  # type: ignore[no-untyped-call]
        raise ValueError(f"{name} must have no masked values, got {count} of them; leave them out")
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be an array, a tensor or a list of numbers, got {_kind(x)}: {error}"
        ) from error


def _is_missing(value: object) -> bool:
    """Of None, NaN, and pandas's NA and NaT."""
    nan = isinstance(value, (float, np.floating)) and math.isnan(value)
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _kind(x: object) -> str:
    return type(x).__name__
