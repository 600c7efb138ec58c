"""Pictures of images beside those that were found for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from recipes.figures import Picture
from recipes.folders import Collection, decode, read_collection
from recipes.search import Index, SearchError

# Okabe and Ito's blue and vermilion; line and sign say the same without colour.
MARKS = {True: ("✓ ", "#0072B2", "-"), False: ("✗ ", "#D55E00", "--"), None: ("", "#666666", "-")}


class Pictures:
    """The images of an index, where they lie now.

    Args:
        index: whose names count.
        source: None for where they were.
    """

    def __init__(self, index: Index, source: Path | None) -> None:
        self.names = index.names
        self.collection = read_collection(source or Path(index.about["images"]["source"]))
        self.places = {name: place for place, name in enumerate(self.collection.names)}

    def __getitem__(self, number: int) -> Image.Image:
        """Picture of an image by its number in the index."""
        name = self.names[number]
        if name not in self.places:
            raise SearchError(
                f"{name} is not in {self.collection.source} any more; give --images the place of the indexed images"
            )
        return open_image(self.collection, self.places[name])


def open_image(collection: Collection, place: int) -> Image.Image:
    """Picture by its place in a collection."""
    return decode(collection.images.read(place), collection.images.where(place))


def draw(
    name: str, rows: list[tuple[str, Image.Image, list[Any]]], pictures: Pictures, caption: str
) -> Picture:
    """Queries at the left, neighbours beside them, each with a sign and a frame where its class is right or wrong."""
    columns = 1 + max(len(cells) for _, _, cells in rows)
    figure = Figure(figsize=(0.9 * columns + 0.6, 1.15 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for line, (label, query, cells) in zip(grid, rows, strict=True):
        shown = [(query, "query", None), *((pictures[n], text, right) for n, text, right in cells)]
        for axes, (image, text, right) in zip(line, shown, strict=False):
            sign, colour, dashes = MARKS[right]
            image.thumbnail((128, 128))
            axes.imshow(np.asarray(image))
            axes.set_xlabel(sign + text, fontsize=7)
            if right is not None:
                axes.spines[:].set(visible=True, color=colour, linestyle=dashes, linewidth=2.5)
        line[0].set_ylabel(label, fontsize=8)
    return Picture(name, figure, caption, caption)
