"""Checks of inputs that are read on the host: arrays, class labels, sequences of numbers."""

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
    """Convert a tensor, or anything that numpy can convert, to a numpy array of real numbers or booleans.

    Raises:
        TypeError: for anything else.
        ValueError: for masked values.
    """
    y = as_array(x, name)
    if y.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be an array, a tensor or a list of real numbers, got {_kind(x)} of dtype {y.dtype}; "
            "convert it to numbers first"
        )
    return y


def class_labels(labels: object, count: int, name: str) -> NDArray[np.int64]:
    """Convert labels to integer classes, one for each of `count` images; booleans are accepted.

    Raises:
        TypeError: for labels that are not integers.
        ValueError: for another shape, or missing labels.
    """
    y = as_array(labels, name)
    if y.ndim == 0 and not hasattr(labels, "shape"):
        raise TypeError(f"{name} must be {count} integers, one per image, got {labels!r}")
    if y.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per image, got {y.shape}{label_hint(y.shape)}")
    values = y.tolist() if y.dtype.kind in "fO" else []  # other dtypes cannot hold a missing value
    missing = sum(map(_is_missing, values))
    if missing:
        raise ValueError(
            f"{name} must be integers, one per image, got {missing} of {count} missing (NaN or None); leave out those "
            "images"
        )
    if y.dtype.kind not in "biu" and not (y.dtype.kind == "O" and all(isinstance(v, Integral) for v in values)):
        whole = [isinstance(v, Integral) or (isinstance(v, float) and v.is_integer()) for v in y.tolist()]
        first = y.tolist()[0 if all(whole) else whole.index(False)]
        raise TypeError(
            f"{name} must be integers, one per image, got {first!r} in {_kind(labels)} of dtype "
            f"{y.dtype}; give each class a number, the same in every set"
        )
    return y.astype(np.int64)


def label_hint(shape: Sequence[int]) -> str:
    """How to convert labels of two dimensions to one per image."""
    if len(shape) != 2:
        return ""
    return "; flatten them" if shape[1] == 1 else "; for one-hot rows take argmax(1)"


def sequence(
    values: object, name: str, rule: str, check: Callable[[str, object], T], *, empty: bool = False
) -> tuple[T, ...]:
    """Check each element of a list, tuple, range, array or tensor of one dimension.

    Args:
        values: the sequence.
        name: of the argument.
        rule: what it must be, for the message.
        check: called with name and element; returns the element to use.
        empty: accept no elements.

    Raises:
        TypeError: for anything else, or elements of a wrong type.
        ValueError: for elements of a wrong value, or no elements.
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
    """Convert to a numpy array of any dtype."""
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
        raise ValueError(f"{name} must be an array, a tensor or a list of numbers, got {_kind(x)}: {error}") from error


def _is_missing(value: object) -> bool:
    """Whether a label is None, NaN, or pandas's NA or NaT."""
    nan = isinstance(value, (float, np.floating)) and math.isnan(value)
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _kind(x: object) -> str:
    return type(x).__name__
