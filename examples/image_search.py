"""Search a folder of images by the bits of a trained model, and compare with a search by its features.

    python examples/image_search.py build --images FOLDER --model MODEL --index INDEX
    python examples/image_search.py query --index INDEX photo.jpg another.jpg
    python examples/image_search.py compare --index INDEX                    # memory, speed, recall and precision
    python examples/image_search.py compare --index INDEX --queries FOLDER   # with images that are not in it

MODEL is a folder that `HubModel.save_pretrained` wrote, such as runs/cifar10-quick-seed0/bern of cifar10_full.py. The
name of an image's folder is its class. Images that cannot be read are left out, named and counted.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import faiss
import image_codes
import numpy as np
import tyro
from image_codes import digest, encode_images, load_model
from image_files import find_images, printable, read_image
from provenance import provenance, write

from stochastic_bottleneck.evaluation import neighbour_recall

NAMES = {"float": "h, exact", "flat": "bits, exact", "hnsw": "bits, HNSW"}
SHOWN, QUERIES_SHOWN = 12, 4  # in a figure
LINKS = 32  # per image in HNSW's graph; faiss's default
EF_CONSTRUCTION = 200  # candidates while the graph is built; in the range of HNSW's paper (arXiv 1603.09320)


@dataclass(kw_only=True)
class Build:
    """Encode the images of a folder and index their codes."""

    images: Path  # Folder of images
    model: Path  # Folder of a saved model
    index: Path  # New folder
    workers: int = 0  # Processes that read images

    def run(self) -> None:
        """Write the three indexes, and last `index.json`."""
        if (self.index / "index.json").exists():
            raise ValueError(f"{self.index} has an index already; delete it, or give another --index")
        model, paths = load_model(self.model), find_images(self.images, labelled=False).paths
        rows, codes, h = encode_images(model, paths, self.workers)
        names = [os.path.relpath(paths[i], self.images) for i in rows]
        write_index(self.index, self.model, self.images, names, codes, h)


def write_index(
    folder: Path, model: Path, images: Path, names: Sequence[str], codes: np.ndarray, h: np.ndarray
) -> None:
    """Index packed bits (N, B) and features of length one (N, F) of images, by their names relative to a folder."""
    bits = 8 * codes.shape[1]  # with the padding of the last byte, zeros in all codes
    hnsw = faiss.IndexBinaryHNSW(bits, LINKS)
    hnsw.hnsw.efConstruction = EF_CONSTRUCTION
    indexes = {"float": faiss.IndexFlatIP(h.shape[1]), "flat": faiss.IndexBinaryFlat(bits), "hnsw": hnsw}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, index in indexes.items():
        index.add(h if kind == "float" else codes)
        save = faiss.write_index if kind == "float" else faiss.write_index_binary
        save(index, str(folder / f"{kind}.faiss"))
    files = model / "model.safetensors", *folder.glob("*.faiss")
    about = provenance() | {
        "model": str(model.resolve()),
        "images": str(images.resolve()),
        "sha256": {file.name: digest(file) for file in files},
        "names": names,
    }
    write(folder / "index.json", json.dumps(about, indent=1))
    print(f"{len(names):,} images, {codes.shape[1]} bytes of bits each: {folder}")


@dataclass(kw_only=True)
class Search:
    """An index that `build` wrote; its model and images may have been moved since."""

    index: Path  # Folder of the index
    model: Path | None = None  # Default: where it was when the index was built
    images: Path | None = None  # Default: where they were when the index was built
    ef_search: int = 64  # Candidates that HNSW examines

    @cached_property
    def about(self) -> dict[str, Any]:
        """Content of `index.json`."""
        if not (self.index / "index.json").exists():
            raise ValueError(f"{self.index} has no complete index; make one with image_search.py build")
        return json.loads((self.index / "index.json").read_text())

    @cached_property
    def faiss(self) -> dict[str, Any]:
        """Indexes by kind."""
        paths = {kind: self.checked(self.index / f"{kind}.faiss") for kind in NAMES}
        found = {kind: faiss.read_index_binary(paths[kind]) for kind in ("flat", "hnsw")}
        found["hnsw"].hnsw.efSearch = self.ef_search
        return {"float": faiss.read_index(paths["float"]), **found}

    def checked(self, file: Path) -> str:
        """Refuse a file that is not as it was when the index was built."""
        if not file.exists() or digest(file) != self.about["sha256"][file.name]:
            raise ValueError(f"{file} is missing or not as it was for {self.index}; build the index again")
        return str(file)

    def encode(self, paths: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Encode images with the index's model."""
        model = load_model(folder := self.model or Path(self.about["model"]))
        self.checked(folder / "model.safetensors")
        return encode_images(model, paths)

    @property
    def names(self) -> list[str]:
        """Paths of the images relative to their folder."""
        return self.about["names"]

    def path(self, row: int) -> str:
        """Path of an image."""
        return os.path.join(self.images or self.about["images"], self.names[row])

    def nearest(self, kind: str, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> tuple:
        """Distances and rows (Q, k) of the nearest images, -1 where HNSW finds fewer; `own` (Q,) are left out."""
        most = len(self.names) - (own is not None)
        if not 1 <= k <= most:
            raise ValueError(f"--k must be between 1 and the {most:,} other images of the index, got {k}")
        if own is None:
            return self.faiss[kind].search(queries, k)
        distances, rows = self.faiss[kind].search(queries, k + 1)
        keep = rows != own[:, None]
        keep[keep.all(axis=1), -1] = False  # among many at the same distance, a query may not find itself
        return distances[keep].reshape(-1, k), rows[keep].reshape(-1, k)


@dataclass(kw_only=True)
class Query(Search):
    """Find the images nearest to some files."""

    queries: tyro.conf.Positional[tuple[Path, ...]]  # Image files
    k: int = 8  # Neighbours
    kind: Literal["flat", "hnsw"] = "flat"  # Exact or approximate search
    shown: int = SHOWN  # Neighbours in the figure; 0 draws none
    figure: Path | None = None  # Default: query.png in the index

    def run(self) -> None:
        """Print and draw the nearest images."""
        paths, lines = [str(path) for path in self.queries], []
        if not paths:
            raise ValueError("query needs at least one image file")
        for path in paths:
            read_image(path)  # raises an error: a query is not left out
        distances, rows = self.nearest(self.kind, self.encode(paths)[1], self.k)
        for path, far, near in zip(paths, distances, rows, strict=True):
            found = [(row, f"{bits} bits") for row, bits in zip(near, far, strict=True) if row >= 0]
            print(f"\n{printable(path)}")
            for row, bits in found:
                print(f"{bits:>12}  {printable(self.names[row])}")
            cells = [(self.path(row), bits, None) for row, bits in found[: self.shown]]
            lines.append((os.path.basename(path), [(path, "query", None), *cells]))
        if self.shown:
            image_codes.draw_images(self.figure or self.index / "query.png", lines)


@dataclass(kw_only=True)
class Compare(Search):
    """Compare a search by bits with a search by features."""

    queries: Path | None = None  # Folder; default: images of the index, each left out of its own neighbours
    count: int = 1000  # Random queries
    k: tuple[int, ...] = (1, 10)  # Neighbours
    seed: int = 0  # Of the choice of queries
    out: Path | None = None  # Default: compare in the index

    def run(self) -> None:
        """Measure both, write the table, and draw some queries."""
        random, own, total = np.random.default_rng(self.seed), None, len(self.names)
        if self.queries is None:
            own = np.sort(random.permutation(total)[: self.count])
            codes, h = (self.faiss[kind].reconstruct_n(0, total)[own] for kind in ("flat", "float"))
            paths, classes = [self.path(row) for row in own], class_names(self.names)[own]
        else:
            files = find_images(self.queries, labelled=False).paths
            rows, codes, h = self.encode(files)
            drawn = np.sort(random.permutation(len(rows))[: self.count])
            codes, h, paths = codes[drawn], h[drawn], [files[row] for row in rows[drawn]]
            classes = class_names([os.path.relpath(path, self.queries) for path in paths])
        queries, of_index = {"float": h, "flat": codes, "hnsw": codes}, class_names(self.names)
        found = {kind: self.nearest(kind, queries[kind], max(self.k), own) for kind in NAMES}
        same = {kind: (of_index[rows] == classes[:, None]) & (rows >= 0) for kind, (_, rows) in found.items()}
        # Queries without another image of their class in the index have no precision.
        known = np.array([name != "" and (of_index == name).sum() > (own is not None) for name in classes])
        out, index = self.out or self.index / "compare", {**self.about, "names": total}
        settings = {"queries": len(codes), "own_left_out": own is not None, "seed": self.seed}
        measured = [self.measure(kind, queries[kind], found, same[kind][known]) for kind in NAMES]
        image_codes.write_results(out, {"index": index, **settings, "ef_search": self.ef_search}, measured)
        lines = []
        for i in range(0, len(paths), -(-len(paths) // QUERIES_SHOWN)):
            for kind, unit in (("flat", "{} bits"), ("float", "{:.2f}")):
                cells = [(paths[i], "query", None)]
                for distance, row, right in zip(*(x[i, :SHOWN] for x in (*found[kind], same[kind])), strict=True):
                    cells.append((self.path(row), unit.format(distance), bool(right) if known[i] else None))
                lines.append((NAMES[kind].partition(",")[0], cells))
        image_codes.draw_images(out / "neighbours.png", lines)

    def measure(self, kind: str, queries: np.ndarray, found: dict[str, tuple], same: np.ndarray) -> dict[str, Any]:
        """Memory, speed, recall of the neighbours by h, and precision: neighbours of the query's class."""
        size, images = (self.index / f"{kind}.faiss").stat().st_size, len(self.names)
        each = size / images if kind == "hnsw" else queries[0].nbytes  # with the links of HNSW's graph
        seconds = timeit.repeat(lambda: self.faiss[kind].search(queries, max(self.k)), number=1, repeat=4)
        row = {"index": NAMES[kind], "bytes an image": each, "index, bytes": size}
        row |= {"GB per 100 million": each / 10, "queries / s": len(queries) / statistics.median(seconds[1:])}
        for k in self.k:
            row[f"recall @{k} %"] = 100 * neighbour_recall(found[kind][1][:, :k], found["float"][1][:, :k])
        return row | {f"precision @{k} %": 100 * same[:, :k].mean() for k in self.k if len(same)}


def class_names(names: Sequence[str]) -> np.ndarray:
    """Names of the folders that images are in, by their relative paths; "" for those in no folder."""
    return np.array([os.path.basename(os.path.dirname(name)) for name in names], object)


if __name__ == "__main__":
    sys.exit(image_codes.main(Build | Query | Compare, __doc__))
