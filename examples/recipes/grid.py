"""A picture of what training sees: images beside their augmented views."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from recipes.feeds import Feed
from recipes.files import write_atomically

CELL = 1.3  # inches an image
DPI = 100  # so that an image of 32 pixels is drawn four times as large, and eight rows fit a screen


def save_grid(
    feed: Feed,
    path: Path,
    *,
    images: int = 8,
    views: int = 6,
    seed: int = 0,
    originals: Feed | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a PNG with a row for each of some images: the original, then views as training draws them.

    Args:
        feed: for pretraining, whose views come in pairs x and x', or for training a classifier.
        path: of the PNG, which is written atomically.
        images: rows, at equal distances in the data set; at most all there are.
        views: of each image.
        seed: of the views; torch's own random numbers stay as they are.
        originals: the same images without augmentation, as `data.evaluation("train")` has them; None where `feed`
            holds whole images, not crops that its workers draw.
        classes: names of the labels; None to number them.

    Raises:
        ValueError: for a count below 1, or crops without `originals`.
    """
    for name, value in (("images", images), ("views", views)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    dataset: Any = feed.dataset
    if hasattr(dataset, "seeded"):
        if originals is None:
            raise ValueError(
                "originals must be given, got None: this feed holds crops that its workers draw, not whole images; "
                'give originals=data.evaluation("train")'
            )
        dataset = dataset.seeded(seed)
    whole: Any = dataset if originals is None else originals.dataset
    rows = min(images, len(dataset))
    index = [row * len(dataset) // rows for row in range(rows)]
    original, labels = whole.__getitems__([(i, 0) for i in index])
    columns = {"original": original.float() / 255, **_views(dataset, feed.transform, index, views, seed)}
    names = [str(label) if classes is None else classes[label] for label in labels.tolist()]
    content = io.BytesIO()
    _draw(columns, names).savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _views(dataset: Any, transform: Any, index: list[int], views: int, seed: int) -> dict[str, Tensor]:
    """So many views by their names, in 0..1. Shape: (N, 3, size, size) each."""
    found: dict[str, Tensor] = {}
    while len(found) < views:
        turn = len(found)  # an epoch of its own, so that crops and draws are new
        images, _ = dataset.__getitems__([(i, turn) for i in index])
        made = transform(images.to(transform.mean.device), seed=seed * views + turn)
        pair = f"pair {turn // 2 + 1}: "
        named = (
            {f"view {turn + 1}": made}
            if isinstance(made, Tensor)
            else {pair + "x": made[0], pair + "x'": made[1]}
        )
        found |= {name: (view * transform.std + transform.mean).cpu() for name, view in named.items()}
    return dict(list(found.items())[:views])


def _draw(columns: dict[str, Tensor], names: list[str]) -> Figure:
    figure = Figure(figsize=(CELL * len(columns) + 0.4, CELL * len(names) + 0.3), layout="constrained")
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        grid[0, column].set_title(title, fontsize=9)
        for axes, image in zip(grid[:, column], images, strict=True):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=9)
    return figure
