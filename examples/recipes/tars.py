"""Where the images of a tar lie, found out once and kept: a tar tells it only to who reads it from end to end."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS

from recipes.batches import DataError
from recipes.files import write_atomically
from recipes.screen import console, passing_bar

NO_LABEL = -1
FORM = 1  # of the kept files; another number makes them anew
SAMPLE_PARTS = re.compile(
    r"((?:.*/)?[^./][^.]*)\.([^/]*)"
)  # WebDataset: a key, then what comes after its first dot


class TarIndex(NamedTuple):
    """The images of a tar, in their order.

    Args:
        names: of the members. Shape: (N,)
        offsets: of their content. Shape: (N,)
        sizes: of their content, in bytes. Shape: (N,)
        labels: from the .cls or .json beside them, -1 for none. Shape: (N,)
    """

    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def index_tars(paths: list[Path], cache: Path | None) -> list[TarIndex]:
    """Images of each tar: as kept by an earlier run where the tar has not changed since, read from it otherwise.

    Args:
        paths: plain tars, not compressed.
        cache: folder for what is kept; None to keep nothing.

    Raises:
        DataError: for a tar that cannot be read or is damaged, or a label that is none.
    """
    if len(paths) == 1:
        return [_index(paths[0], cache, alone=True)]
    watched = passing_bar(paths, f"indexing {len(paths)} shards")
    return [_index(path, cache, alone=False) for path in watched]


def _index(path: Path, cache: Path | None, alone: bool) -> TarIndex:
    try:
        stamp = _stamp(path)  # before the tar is read, so that a later change shows
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error
    index = None if cache is None else _kept(_kept_in(path, cache), stamp)
    if index is None:
        index = _read(path, alone)
        if cache is not None:
            _keep(_kept_in(path, cache), stamp, index)
    return index


def _read(path: Path, alone: bool) -> TarIndex:
    images: list[tuple[str, int, int]] = []
    labels: dict[str, tuple[str, bytes]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = _members(archive)
            for member in passing_bar(members, f"indexing {path.name}") if alone else members:
                name, (key, suffix) = member.name, sample_parts(member.name)
                if name.lower().endswith(IMG_EXTENSIONS):
                    images.append((name, member.offset_data, member.size))
                elif suffix == "cls" or (suffix == "json" and key not in labels):
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file has content
                    labels[key] = name, content.read()
            _check_end(archive)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is damaged, compressed or not a tar ({error}); fetch it again, and unpack it if it is compressed: "
            "images are read from any place of it"
        ) from error
    rows = []
    for name, offset, size in images:
        key, suffix = sample_parts(name)
        if key not in labels:
            rows.append((os.fsencode(name), offset, size, NO_LABEL))
        elif f".{suffix}" in IMG_EXTENSIONS:  # not another picture of the sample, such as its segmentation
            rows.append((os.fsencode(name), offset, size, _label(path, *labels[key])))
    if not rows:
        raise DataError(f"{path} holds no images; they must end in {', '.join(IMG_EXTENSIONS)}")
    names, *numbers = zip(*rows, strict=True)
    return TarIndex(np.array(names), *(np.array(column, np.int64) for column in numbers))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files; of a million members, `tarfile` would remember each."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        if member.isreg() and not member.issparse():
            yield member


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive whose end is none: `tarfile` takes a damaged header for the end."""
    archive.fileobj.seek(archive.offset)
    blocks = archive.fileobj.read(tarfile.RECORDSIZE)
    if len(blocks) < tarfile.BLOCKSIZE or blocks.strip(tarfile.NUL):
        raise tarfile.ReadError("it breaks off before its end")


def sample_parts(name: str) -> tuple[str, str]:
    """Key and suffix of a member, as WebDataset has it: split at the first dot of the file's own name."""
    found = SAMPLE_PARTS.fullmatch(name)
    return (found[1], found[2].lower()) if found else (name, "")


def _label(path: Path, name: str, content: bytes) -> int:
    """The number in a .cls, or under "label" or "cls" in a .json."""
    try:
        value: Any = json.loads(content) if name.lower().endswith(".json") else int(content)
    except ValueError:
        value = content[:40].decode(errors="replace")
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
    if type(value) is not int or value < 0:
        place = ', as "label" or "cls"' if name.lower().endswith(".json") else ""
        raise DataError(f"{path}: {name} must hold a class number from 0 on{place}; got {value!r}")
    return value


# ---- what is kept ---------------------------------------------------------------------------------------------


def _kept_in(path: Path, cache: Path) -> Path:
    return cache / f"{path.name}.{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.npz"


def _stamp(path: Path) -> NDArray[np.int64]:
    """What tells that a tar is still the one that was read."""
    told = path.stat()
    return np.array([FORM, told.st_size, told.st_mtime_ns])


def _kept(place: Path, stamp: NDArray[np.int64]) -> TarIndex | None:
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as kept:
            if np.array_equal(kept["stamp"], stamp):
                return TarIndex(*(kept[name] for name in TarIndex._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # none there, or a damaged one: it is made anew
    return None


def _keep(place: Path, stamp: NDArray[np.int64], index: TarIndex) -> None:
    content = io.BytesIO()
    np.savez(content, stamp=stamp, **index._asdict())
    own = place.with_name(f"{place.name}.{uuid.uuid4().hex}")  # other processes may write the same one
    try:
        write_atomically(own, content.getvalue())
        own.replace(place)
    except OSError as error:
        console.print(f"{place} cannot be written ({error}); the tar will be indexed anew", markup=False)
