"""Pairs of images that may be copies: found by their bits, checked by their pixels, grouped and drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from recipes.encoding import Encoded
from recipes.figures import Picture
from recipes.folders import NO_CLASS, Collection, decode, thumbnails
from recipes.screen import passing_bar
from recipes.search import SearchError

SIDE, COARSE = 16, 4  # pixels of a thumbnail, and of what is taken away from it
# Our choice: on the sample that ships here, most pairs of a test and a training image above it are one picture twice,
# with other light, frame or compression. Brightness alone fools: skies, seas and lawns are alike; so it is taken away.
LEAST = 0.8
MOST = 1_000_000  # candidates, so that a radius too large for the codes ends in a message and not in a full memory
AT_ONCE = 256  # queries, each with at most all images within its radius


class Side(NamedTuple):
    """Images that are searched, or searched with.

    Args:
        collection: the images.
        encoded: their codes and features.
    """

    collection: Collection
    encoded: Encoded

    def told(self, row: int) -> tuple[str, str]:
        """Name and class of a row's image; the class is empty where there is none."""
        images, number = self.collection.images, int(self.encoded.numbers[row])
        label = int(images.labels[number])
        return images.name(number), "" if label == NO_CLASS else self.collection.classes[label]


class Pairs(NamedTuple):
    """Pairs of rows, and what is known of them. Shape: (P,) each.

    Args:
        first: rows of the first side.
        second: rows of the second side, or within one side rows of it after the first.
        hamming: bits that differ.
        cosine: of the features h.
        correlation: of the pictures' details, the larger of the picture's and its mirror image's.
        mirrored: whether the mirror image's is.
        confirmed: whether it is enough.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    hamming: NDArray[np.int64]
    cosine: NDArray[np.float32] = np.empty(0, np.float32)
    correlation: NDArray[np.float32] = np.empty(0, np.float32)
    mirrored: NDArray[np.bool_] = np.empty(0, bool)
    confirmed: NDArray[np.bool_] = np.empty(0, bool)

    def where(self, kept: NDArray[Any]) -> Pairs:
        """Some of the pairs."""
        return Pairs(*(column[kept] for column in self))


def candidates(codes: NDArray[np.uint8], others: NDArray[np.uint8] | None, radius: int) -> Pairs:
    """All pairs whose codes differ in at most so many bits.

    Args:
        codes: packed. Shape: (N, B)
        others: packed; None for pairs within `codes`, each once. Shape: (M, B)
        radius: most bits that may differ.

    Raises:
        SearchError: for more pairs than memory is sure to hold.
    """
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    asked = codes if others is None else others
    columns: list[tuple[NDArray[Any], ...]] = []
    count = 0
    for start in passing_bar(range(0, len(asked), AT_ONCE), "searching"):
        limits, distances, found = index.range_search(asked[start : start + AT_ONCE], radius + 1)  # below it
        second = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
        kept = np.ones(len(found), bool) if others is not None else found < second
        columns.append((found[kept], second[kept], distances[kept].astype(np.int64)))
        count += int(kept.sum())
        if count > MOST:
            raise SearchError(
                f"--radius {radius} gives more than {MOST:,} pairs after {start + AT_ONCE:,} of {len(asked):,} images; "
                "give a smaller one"
            )
    return Pairs(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def at_random(first: Side, second: Side, count: int, seed: int, *, within: bool) -> Pairs:
    """Pairs drawn with equal chances; within one side, of two different images."""
    draws = np.random.default_rng(seed)
    a = draws.integers(0, len(first.encoded.numbers), count)
    b = draws.integers(0, len(second.encoded.numbers), count)
    if within:
        a, b = a[a != b], b[a != b]
    differ = np.bitwise_xor(first.encoded.codes[a], second.encoded.codes[b])
    return Pairs(a, b, np.unpackbits(differ, axis=1).sum(axis=1, dtype=np.int64))


def check(first: Side, second: Side, found: Pairs, least: float) -> Pairs:
    """The pairs with what their features and pictures say of them.

    Args:
        first: side of the pairs' first rows.
        second: side of their second rows.
        found: the pairs.
        least: correlation from which on a pair is confirmed.
    """
    (a, row), (b, other) = (_details(side, rows) for side, rows in ((first, found[0]), (second, found[1])))
    straight, mirrored, cosine = (np.empty(len(row), np.float32) for _ in range(3))
    for start in range(0, len(row), 4096):
        part = slice(start, start + 4096)
        x, y = a[row[part]], b[other[part]]
        straight[part] = (x * y).sum(axis=(1, 2, 3))
        mirrored[part] = (x * y[:, :, ::-1]).sum(axis=(1, 2, 3))
        h, h_other = first.encoded.h[found.first[part]], second.encoded.h[found.second[part]]
        cosine[part] = (h * h_other).sum(axis=1)
    best = np.maximum(straight, mirrored)
    return Pairs(*found[:3], cosine, best, mirrored > straight, best >= least)


def _details(side: Side, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Details of each image once, at length one, and which of them each row has. Shape: (K, SIDE, SIDE, 3), (P,)."""
    unique, places = np.unique(rows, return_inverse=True)
    small = thumbnails(side.collection.images, side.encoded.numbers[unique].tolist(), SIDE)
    cells = SIDE // COARSE
    coarse = small.reshape(-1, COARSE, cells, COARSE, cells, 3).mean(axis=(2, 4))
    details = small - coarse.repeat(cells, axis=1).repeat(cells, axis=2)
    length = np.sqrt((details**2).sum(axis=(1, 2, 3), keepdims=True))
    return details / np.maximum(
        length, 1e-6
    ), places  # pictures of one colour have none and correlate with nothing


def by_radius(found: Pairs, radius: int) -> list[dict[str, int]]:
    """Candidates and confirmed pairs within each radius up to the largest."""
    return [
        {
            "radius": r,
            "candidates": int((found.hamming <= r).sum()),
            "confirmed": int(((found.hamming <= r) & found.confirmed).sum()),
        }
        for r in range(radius + 1)
    ]


def counted(found: Pairs, within: bool) -> list[int]:
    """Images of each side that are in a confirmed pair; within one side, one number."""
    rows = [found.first[found.confirmed], found.second[found.confirmed]]
    return [len(np.unique(part)) for part in ([np.concatenate(rows)] if within else rows)]


def group(found: Pairs, images: int, *, within: bool) -> NDArray[np.int64]:
    """Number of each confirmed pair's group, from 1: images that are linked, over others too; 0 for the rest.

    Args:
        found: checked pairs.
        images: of the first side.
        within: whether both rows are of it.
    """
    numbers = np.zeros(len(found.first), np.int64)
    if found.confirmed.any():
        a = found.first[found.confirmed]
        b = found.second[found.confirmed] + (0 if within else images)
        size = int(max(a.max(), b.max())) + 1
        _, of_image = connected_components(
            coo_matrix((np.ones(len(a)), (a, b)), (size, size)), directed=False
        )
        numbers[found.confirmed] = np.unique(of_image[a], return_inverse=True)[1] + 1
    return numbers


def draw(first: Side, second: Side, found: Pairs, name: str, most: int) -> Picture:
    """Pairs one above the other: confirmed ones at equal steps of their order, of the rejected the most alike.

    Args:
        first: side of the upper images.
        second: side of the lower images.
        found: checked pairs, at least one.
        name: "confirmed" or "rejected", the stem of the file.
        most: pairs to show.
    """
    if name == "rejected":  # where the check may be wrong
        order = np.argsort(-found.correlation, kind="stable")[:most]
    else:
        order = np.lexsort((-found.correlation, found.hamming))
    shown = order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)].tolist()
    columns = min(8, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(1.0 * columns + 0.2, 2.35 * lines + 0.5), layout="constrained")
    grid = figure.subplots(2 * lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, i in enumerate(shown):
        line, column = divmod(place, columns)
        for row, (side, number) in enumerate(((first, found.first[i]), (second, found.second[i]))):
            images, at = side.collection.images, int(side.encoded.numbers[number])
            image = decode(images.read(at), images.where(at))
            image.thumbnail((128, 128))
            axes = grid[2 * line + row, column]
            axes.imshow(np.asarray(image))
            axes.set_xlabel(_short(side.told(number)[0]), fontsize=5)
        grid[2 * line, column].set_title(f"{found.hamming[i]} bits, {found.correlation[i]:.2f}", fontsize=6)
    which = ", the most alike" if name == "rejected" else ""
    said = (
        f"{len(shown)} of {len(found.first):,} {name} pairs{which}: bits that differ, correlation of details"
    )
    figure.suptitle(said, fontsize=8)
    return Picture(name, figure, said, said)


def _short(name: str) -> str:
    """The end of a path, which fits under a picture."""
    return "/".join(name.encode(errors="replace").decode().split("/")[-2:])[-24:]
