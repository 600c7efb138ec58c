"""Search among images by their codes: faiss's indexes of bits beside one of floats, kept in a folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from recipes import report
from recipes.encoding import Encoded, Trained
from recipes.files import write_atomically, write_json
from recipes.folders import NO_CLASS, Collection
from recipes.stages import RunError

FORM = 1  # of the folder; another number is refused
LABELS = {
    "float": "h, exact",
    "flat": "bits, exact",
    "hnsw": "bits, HNSW",
}
LINKS = 32  # of an image in HNSW's graph: faiss's default
EF_CONSTRUCTION = (
    200  # candidates while the graph is built: the HNSW paper's (arXiv 1603.09320) range; faiss has 40
)


class SearchError(RunError):
    """An index that is missing, damaged or of another model, or a question that it cannot answer."""


class Index(NamedTuple):
    """A folder of indexes, read.

    Args:
        about: what they were made of, and how.
        names: of the images, relative to their source, by the indexes' numbers.
        labels: classes of the images; -1 where folders give none. Shape: (N,)
        by_kind: faiss's indexes by "float", "flat" and "hnsw", as far as they were asked for.
    """

    about: dict[str, Any]
    names: list[str]
    labels: NDArray[np.int64]
    by_kind: dict[str, Any]


# ---- made and kept --------------------------------------------------------------------------------------------


def make(encoded: Encoded) -> dict[str, Any]:
    """The three indexes of codes and features; the rows' numbers are the images'."""
    width = 8 * encoded.codes.shape[1]  # with the zeros that fill the last byte, the same in all codes
    hnsw = faiss.IndexBinaryHNSW(width, LINKS)
    hnsw.hnsw.efConstruction = EF_CONSTRUCTION
    made = {
        "float": faiss.IndexFlatIP(encoded.h.shape[1]),
        "flat": faiss.IndexBinaryFlat(width),
        "hnsw": hnsw,
    }
    for kind, index in made.items():
        index.add(encoded.h if kind == "float" else encoded.codes)
    return made


def save(
    folder: Path, collection: Collection, trained: Trained, encoded: Encoded, told: str
) -> dict[str, Any]:
    """Write the indexes, `images.csv` and, last, `index.json`: a folder without it is not finished.

    Args:
        folder: for all of it.
        collection: the images.
        trained: the model.
        encoded: what it made of them.
        told: the command.

    Returns:
        The content of `index.json`.
    """
    labels, classes = collection.images.labels.numpy()[encoded.numbers], collection.classes
    names = collection.names
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "class"])
    for number, label in zip(encoded.numbers.tolist(), labels.tolist(), strict=True):
        writer.writerow([names[number], "" if label == NO_CLASS else classes[label]])
    contents = {"images.csv": table.getvalue().encode(errors="surrogateescape")}
    for kind, index in make(encoded).items():
        serialize = faiss.serialize_index if kind == "float" else faiss.serialize_index_binary
        contents[f"{kind}.faiss"] = serialize(index).tobytes()
    for name, content in contents.items():
        write_atomically(folder / name, content)
    about = {
        "form": FORM,
        "command": told,
        "environment": environment(),
        "model": trained.identity,
        "images": {
            "source": str(collection.source),
            "count": len(encoded.numbers),
            "classes": list(classes),
            "skipped": encoded.skipped,
        },
        "bytes_an_image": {"h": encoded.h[0].nbytes, "bits": encoded.codes[0].nbytes},
        "hnsw": {"links": LINKS, "ef_construction": EF_CONSTRUCTION},
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    write_json(folder / "index.json", about)
    return about


def load(folder: Path, kinds: Sequence[str] = tuple(LABELS)) -> Index:
    """Read what `save` wrote, every file compared with the size and SHA-256 that it had.

    Args:
        folder: of the index.
        kinds: indexes to read.

    Raises:
        SearchError: for a folder that holds no finished index, or whose files are not as they were written.
    """
    path = folder / "index.json"
    if not path.exists():
        raise SearchError(
            f"{folder} holds no finished index; make one with image_search.py build --index {folder}"
        )
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        if about["form"] != FORM:
            raise SearchError(
                f"{path} has form {about['form']}, this version reads {FORM}; build the index anew"
            )
        files = about["files"]
        told = {name: (files[name]["bytes"], files[name]["sha256"]) for name in _files(kinds)}
        classes = about["images"]["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise SearchError(
            f"{path} is damaged ({error!r}); delete {folder} and build the index anew"
        ) from error
    contents = {name: _checked(folder / name, *expected) for name, expected in told.items()}
    rows = list(csv.reader(io.StringIO(contents.pop("images.csv").decode(errors="surrogateescape"))))[1:]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number.get(name, NO_CLASS) for _, name in rows], np.int64)
    by_kind = {}
    for kind in kinds:
        deserialize = faiss.deserialize_index if kind == "float" else faiss.deserialize_index_binary
        by_kind[kind] = deserialize(np.frombuffer(contents[f"{kind}.faiss"], np.uint8))
    return Index(about, [name for name, _ in rows], labels, by_kind)


def _files(kinds: Sequence[str]) -> list[str]:
    return ["images.csv", *(f"{kind}.faiss" for kind in kinds)]


def _checked(path: Path, size: int, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SearchError(f"cannot read {path} ({error.strerror}); build the index anew") from error
    if len(content) != size:
        raise SearchError(
            f"{path} has {len(content):,} of {size:,} bytes; copy it again, or build the index anew"
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SearchError(
            f"{path} is not as it was written (SHA-256 differs); copy it again, or build it anew"
        )
    return content


def check_model(index: Index, trained: Trained) -> None:
    """Refuse a model whose codes mean something else than those of the index.

    Raises:
        SearchError: naming both.
    """
    made_by, given = index.about["model"], trained.identity
    if made_by["sha256"] != given["sha256"]:
        raise SearchError(
            f"the index was made by the model in {made_by['folder']} (SHA-256 {made_by['sha256'][:12]}), got the one "
            f"in {given['folder']} ({given['sha256'][:12]}); give the first with --model, or build another index"
        )


def environment() -> dict[str, Any]:
    """Hardware and versions, faiss's too."""
    told = report.environment()
    packages = {**told["packages"], "faiss": faiss.__version__}
    return {**told, "packages": packages, "faiss_threads": faiss.omp_get_max_threads()}


def neighbours(
    index: Any, queries: NDArray[Any], k: int, own: NDArray[np.int64] | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The k nearest images of each query.

    Args:
        index: of faiss.
        queries: packed bits, or features at length one. Shape: (Q, B) or (Q, F)
        k: how many.
        own: number of each query where it is in the index itself; it is left out. Shape: (Q,)

    Returns:
        Hamming distances or cosines, and images' numbers, -1 where an approximate search found fewer. Shape: (Q, k)

    Raises:
        SearchError: for more than there are.
    """
    most = index.ntotal - (own is not None)
    if not 1 <= k <= most:
        raise SearchError(f"neighbours must be between 1 and the {most:,} other images of the index, got {k}")
    if own is None:
        found: tuple[NDArray[Any], NDArray[np.int64]] = index.search(queries, k)
        return found
    distances, numbers = index.search(queries, k + 1)
    kept = numbers != own[:, None]
    kept[kept.all(axis=1), -1] = False  # among many at the same distance, a query may not find itself
    return distances[kept].reshape(-1, k), numbers[kept].reshape(-1, k)
