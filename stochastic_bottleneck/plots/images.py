"""Figures of the images that activate a bit, or that are most and least certain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array, sequence
from stochastic_bottleneck._checks import integer
from stochastic_bottleneck.evaluation._inputs import check_finite_rows
from stochastic_bottleneck.plots._style import pyplot, texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bit_images", "certain_images"]

Images = Tensor | NDArray[Any]


def bit_images(
    images: Images, probs: Tensor | NDArray[Any], bits: Sequence[int] = (0, 1, 2, 3), *, count: int = 6
) -> Figure:
    """For each given bit, the images with the highest and the lowest probability of a one.

    Args:
        images: float in [0, 1] or uint8, of one or three channels. Shape: (N, C, H, W)
        probs: probability of a one, `posterior.probs`, or the bits themselves; ties are shown in the order of the
            images. Shape: (N, D)
        bits: indices of the bits, one row each: any sequence, array or tensor of integers.
        count: images on each side of a row.

    Returns:
        A figure: on the left the images for which the bit is on (probability above 0.5), the highest probability
        first; on the right those for which it is off, the lowest first. Cells stay empty if there are fewer than
        `count`.

    Raises:
        ValueError: for shapes that do not fit, values outside their range, a bit that does not exist, or a count
            below 1.
        TypeError: for images or probs that are not real numbers, or bits or a count that are not integers.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = bit_images(torch.rand(20, 3, 8, 8), torch.rand(20, 4), bits=(0, 2), count=3)
        >>> len(figure.axes)
        12
    """
    pictures = _pictures(images)
    p = array(probs, "probs").astype(np.float64)  # also bits: bytes and booleans cannot be negated
    if p.ndim != 2 or len(p) != len(pictures):
        raise ValueError(
            f"probs must have shape ({len(pictures)}, D), one row per image, got {p.shape}; unpack codes first"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"probs must lie between 0 and 1, got values from {p.min():.3g} to {p.max():.3g}; take posterior.probs, "
            "not its logits"
        )
    index = partial(integer, least=0, most=p.shape[1] - 1)
    chosen = sequence(bits, "bits", f"one or more indices from 0 to {p.shape[1] - 1}", index)
    count = integer("count", count)
    rows = []
    for bit in chosen:
        on = [i for i in np.argsort(-p[:, bit], kind="stable")[:count] if p[i, bit] > 0.5]
        off = [i for i in np.argsort(p[:, bit], kind="stable")[:count] if p[i, bit] <= 0.5]
        rows.append((f"bit {bit}", _padded(on, count) + _padded(off, count)))
    figure, grid = _grid(pictures, rows)
    _heading(grid, 0, "on")
    _heading(grid, count, "off")
    return figure


def certain_images(
    images: Images,
    uncertainty: Tensor | NDArray[Any],
    *,
    captions: Sequence[str] | None = None,
    count: int = 8,
) -> Figure:
    """The most and the least certain images.

    Args:
        images: float in [0, 1] or uint8, of one or three channels. Shape: (N, C, H, W)
        uncertainty: one number per image, such as `posterior.entropy()`; higher is less certain. Shape: (N,)
        captions: one text or number under each image, such as the predicted class. Length: N
        count: images in each row.

    Returns:
        A figure: in the upper row the most certain images, the most certain first; in the lower row the least
        certain, the least certain first.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or a count below 1.
        TypeError: for images or uncertainty that are not real numbers, captions that are not texts or numbers, or a
            count that is not an integer.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import torch
        >>> figure = certain_images(torch.rand(20, 3, 8, 8), torch.arange(20.0), count=4)
        >>> len(figure.axes)
        8
    """
    pictures = _pictures(images)
    values = array(uncertainty, "uncertainty")
    if values.shape != (len(pictures),):
        raise ValueError(f"uncertainty must have shape ({len(pictures)},), one per image, got {values.shape}")
    check_finite_rows(np.isfinite(values), "uncertainty")
    if captions is not None:
        captions = texts(captions, "captions", len(pictures))
    count = integer("count", count)
    order = np.argsort(values, kind="stable")
    rows = [
        ("most certain", _padded(list(order[:count]), count)),
        ("least certain", _padded(list(order[::-1][:count]), count)),
    ]
    figure, _ = _grid(pictures, rows, captions)
    return figure


# ---- shared ---------------------------------------------------------------------------------------------------


def _pictures(images: Images) -> NDArray[Any]:
    """Check images and move the channels last, for imshow."""
    x = array(images, "images")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"images must have shape (N, C, H, W) with 1 or 3 channels and N at least 1, got {x.shape}")
    if x.dtype != np.uint8 and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"images must be uint8 or lie between 0 and 1, got values from {x.min():.3g} to {x.max():.3g}; "
            "undo the normalisation of the model's input"
        )
    return np.moveaxis(x if x.dtype == np.uint8 else x.astype(np.float32), 1, -1)


def _padded(chosen: list[int], count: int) -> list[int | None]:
    return [*chosen, *[None] * (count - len(chosen))]


def _grid(
    pictures: NDArray[Any],
    rows: Sequence[tuple[str, Sequence[int | None]]],
    captions: Sequence[str] | None = None,
) -> tuple[Figure, NDArray[Any]]:
    """Rows of images, each with a name on the left."""
    columns = len(rows[0][1])
    white = 255 if pictures.dtype == np.uint8 else 1  # otherwise each grey image is scaled to its own range
    height = 0.95 if captions is None else 1.15
    figure, grid = pyplot().subplots(
        len(rows),
        columns,
        figsize=(0.8 * columns + 1.0, height * len(rows) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for line, (name, chosen) in zip(grid, rows, strict=True):
        for axes, i in zip(line, chosen, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i is not None:
                axes.imshow(pictures[i], cmap="gray", vmin=0, vmax=white, interpolation="nearest")
                if captions is not None:
                    axes.set_xlabel(captions[i], fontsize=7, parse_math=False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure, grid


def _heading(grid: NDArray[Any], column: int, text: str) -> None:
    grid[0, column].set_title(text, fontsize=9, loc="left")
