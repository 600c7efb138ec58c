"""Find near-duplicates by the bits of a trained model, and confirm them by their pixels.

    python examples/find_duplicates.py --model MODEL --images FOLDER/train --against FOLDER/test
    python examples/find_duplicates.py --model MODEL --images FOLDER          # within one folder

Pairs whose codes differ in at most --radius bits are candidates; those whose details, straight or mirrored, have a
correlation of at least --least are confirmed. MODEL is a folder that `HubModel.save_pretrained` wrote.
"""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import faiss
import image_codes
import numpy as np
from image_files import find_images, read_image
from joblib import Memory
from PIL import Image
from scipy.sparse import coo_array, csgraph
from tqdm import tqdm

from stochastic_bottleneck.codes import hamming_distance

SIDE, COARSE = 16, 4  # pixels of the images that are compared, and of the means that are subtracted from them
RANDOM, MAX_PAIRS, SHOWN = 2000, 1_000_000, 24  # random pairs for comparison, candidates, pairs in a figure
COLUMNS = ("a", "b", "hamming", "correlation", "mirrored", "group")
PAIR = np.dtype({"names": COLUMNS, "formats": (int, int, int, float, bool, int)})  # a and b are rows of two sides


class Side(NamedTuple):
    """Images of a folder: paths, names relative to the folder, and packed codes (N, B)."""

    paths: np.ndarray
    names: np.ndarray
    codes: np.ndarray


@dataclass(kw_only=True)
class FindDuplicates:
    """Options of the command line."""

    model: Path  # Folder of a saved model
    images: Path  # Folder of images
    against: Path | None = None  # A second folder; default: pairs within --images
    radius: int = 10  # Bits that may differ
    least: float = 0.8  # Correlation that confirms; our choice, from CIFAR-10's sample
    out: Path = Path("runs/duplicates")  # Folder of the results
    workers: int = 0  # Processes that read images

    def run(self) -> None:
        """Find candidates, check them, and write the results."""
        model = image_codes.load_model(self.model)
        dim, within = model.bottleneck.dim, self.against is None
        if not 0 <= self.radius < dim or not 0 < self.least <= 1:
            got = f"got {self.radius} and {self.least}"
            raise ValueError(f"--radius must be from 0 to {dim - 1} bits and --least in (0, 1], {got}")
        first = self.encode(model, self.images)
        second = first if within else self.encode(model, self.against)
        pairs = check(first, second, *candidates(first, second, self.radius))
        confirmed = pairs["correlation"] >= self.least
        images = pairs["a"][confirmed], pairs["b"][confirmed] + (0 if within else len(first.paths))
        links = coo_array((np.ones(len(images[0])), images), 2 * [len(first.paths) + len(second.paths)])
        linked = csgraph.connected_components(links, directed=False)[1][images[0]]
        pairs["group"][confirmed] = np.unique(linked, return_inverse=True)[1] + 1
        a, b = np.random.default_rng(0).integers(0, [[len(first.paths)], [len(second.paths)]], (2, RANDOM))
        by_chance = check(first, second, a, b)["correlation"][a != b if within else slice(None)] >= self.least
        rows = []
        for radius in range(self.radius + 1):
            near = pairs["hamming"] <= radius
            found, kept = int(near.sum()), int((near & confirmed).sum())
            row = {"radius": str(radius), "candidates": found, "confirmed": kept}
            rows.append(row | {"confirmed %": 100 * kept / max(found, 1)})
        duplicates = np.unique(np.concatenate(images))
        counts = {
            "images": len(first.paths),
            "images with a duplicate": int((duplicates < len(first.paths)).sum()),
            "against": 0 if within else len(second.paths),
            "against with a duplicate": int((duplicates >= len(first.paths)).sum()),
            "groups": int(pairs["group"].max(initial=0)),
            "random pairs": len(by_chance),
            "random pairs that the pixels alone confirm": int(by_chance.sum()),
        }
        image_codes.write_results(self.out, {"model": str(self.model), "least": self.least} | counts, rows)
        print(*(f"{name}: {count:,}" for name, count in counts.items()), sep="\n")
        self.write_pairs(first, second, pairs)

    def encode(self, model: image_codes.HubModel, root: Path) -> Side:
        """Encode the images of a folder, or read their codes from the cache."""
        paths = np.array(find_images(root, labelled=False).paths, object)
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
        version = image_codes.digest(self.model / "model.safetensors"), stats
        cached = Memory(self.out / "cache", verbose=0).cache(image_codes.encode_images, ["model", "workers"])
        rows, codes, _ = cached(model, paths, self.workers, version)
        return Side(paths[rows], np.array([os.path.relpath(p, root) for p in paths[rows]], object), codes)

    def write_pairs(self, first: Side, second: Side, pairs: np.ndarray) -> None:
        """Write and draw pairs: confirmed ones by the bits that differ, then the others by their correlation."""
        rejected = pairs["group"] == 0
        pairs = pairs[np.lexsort((np.where(rejected, -pairs["correlation"], pairs["hamming"]), rejected))]
        with open(self.out / "pairs.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "other", *COLUMNS[2:]])
            table.writerows([first.names[a], second.names[b], *values] for a, b, *values in pairs.tolist())
        count = len(pairs) - rejected.sum()
        spaced = np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int)
        for name, shown in (("confirmed", pairs[spaced]), ("rejected", pairs[count : count + SHOWN])):
            (self.out / f"{name}.png").unlink(missing_ok=True)  # of an earlier radius
            lines = []
            for start in range(0, len(shown), 8):
                eight = shown[start : start + 8].tolist()
                lines.append(("", [(first.paths[a], f"{d} bits, {c:.2f}", None) for a, _, d, c, *_ in eight]))
                lines.append(("", [(second.paths[b], second.names[b], None) for _, b, *_ in eight]))
            if lines:
                image_codes.draw_images(self.out / f"{name}.png", lines)


def candidates(first: Side, second: Side, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs whose codes differ in at most `radius` bits; within one side, each pair once."""
    index = faiss.IndexBinaryFlat(8 * first.codes.shape[1])
    index.add(first.codes)
    a, b = np.empty((2, 0), int)
    for start in tqdm(range(0, len(second.codes), 256), "searching", disable=None):
        limits, _, rows = index.range_search(second.codes[start : start + 256], radius + 1)  # distances below it
        queries = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(int)))
        keep = rows < queries if first is second else slice(None)
        a, b = np.append(a, rows[keep]), np.append(b, queries[keep])
        if len(a) > MAX_PAIRS:
            raise ValueError(f"--radius {radius} gives more than {MAX_PAIRS:,} pairs; give a smaller one")
    return a, b


def check(first: Side, second: Side, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairs with their codes' distance and the correlation of their images' details."""
    pairs = np.zeros(len(a), PAIR)
    pairs["a"], pairs["b"] = a, b
    pairs["hamming"] = hamming_distance(first.codes[a], second.codes[b]) if len(a) else 0
    (x, i), (y, j) = details(first, a), details(second, b)
    for s in (slice(start, start + 4096) for start in range(0, len(a), 4096)):
        straight, mirrored = (np.einsum("nhwc,nhwc->n", x[i[s]], z) for z in (y[j[s]], y[j[s], :, ::-1]))
        pairs["correlation"][s], pairs["mirrored"][s] = np.maximum(straight, mirrored), mirrored > straight
    return pairs


def details(side: Side, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Details of each image at length one, without light and large areas, and their position for each row."""
    unique, positions = np.unique(rows, return_inverse=True)
    box, cells = Image.Resampling.BOX, SIDE // COARSE
    images = [read_image(path, min_side=2 * SIDE).resize((SIDE, SIDE), box) for path in side.paths[unique]]
    small = np.array(images, np.float32).reshape(-1, cells, COARSE, cells, COARSE, 3)
    small = (small - small.mean(axis=(2, 4), keepdims=True)).reshape(-1, SIDE, SIDE, 3)
    length = np.sqrt((small**2).sum(axis=(1, 2, 3), keepdims=True))  # 0 for an image of one colour
    return small / length.clip(1e-6), positions


if __name__ == "__main__":
    sys.exit(image_codes.main(FindDuplicates, __doc__))
