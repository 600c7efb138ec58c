"""Where photographs come from: class folders, a tar of class folders, or WebDataset's shards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets import ImageFolder

from recipes.batches import DataError
from recipes.stored import Files, Members, Stored
from recipes.tars import NO_LABEL, TarIndex, index_tars

SPLITS = {"train": "train", "test": "test", "val": "test"}  # folders, and what they are taken for
LAYOUT = "train/<class>/*.jpg and val/<class>/*.jpg"
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Part(NamedTuple):
    """Photographs of one split.

    Args:
        images: with labels.
        classes: names in the order of the labels; None where the labels are numbers and nothing else.
    """

    images: Stored
    classes: tuple[str, ...] | None


def read_source(source: Path | str, cache: Path | None) -> dict[str, Part]:
    """All photographs below a path.

    Args:
        source: a folder or a tar that holds `train/<class>/` and `val/<class>/` or `test/<class>/`, or the class
            folders themselves; or shards: a tar whose images lie beside their labels, or a pattern of such tars with
            braces (`train-{000000..000146}.tar`) or wildcards (`train-*.tar`).
        cache: folder for indexes of tars; None to keep none.

    Returns:
        Parts "train" and "test", or "" for one that is not divided.

    Raises:
        DataError: when nothing is there, or it is incomplete, damaged or otherwise no such source.
    """
    text = os.fspath(source)
    if os.path.isdir(text):
        return _from_folder(Path(text))
    paths = expand(text)
    indexes = index_tars(paths, cache)
    if len(paths) == 1 and (indexes[0].labels == NO_LABEL).all():
        return _from_tar(paths[0], indexes[0])
    return {"": Part(_from_shards(paths, indexes), None)}


def expand(pattern: str) -> list[Path]:
    """Files that a pattern names: braces in the order they are written in, wildcards by name.

    Raises:
        DataError: for a file that is not there, or a pattern that fits none.
    """
    names = [pattern]
    while any(BRACES.search(name) for name in names):
        names = list(dict.fromkeys(chain.from_iterable(_alternatives(name) for name in names)))
    found = [sorted(glob.glob(name)) or [name] if glob.has_magic(name) else [name] for name in names]
    paths = [Path(name) for name in chain.from_iterable(found)]
    missing = [path for path in paths if not path.is_file()]
    if missing and len(paths) == 1:
        raise DataError(
            f"no data at {pattern}; give a folder or a tar that holds {LAYOUT}, or shards such as "
            "train-{000000..000146}.tar or train-*.tar"
        )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{len(missing)} of the {len(paths)} shards of {pattern} are missing: "
            f"{', '.join(map(str, missing[:3]))}{more}; fetch them or correct the pattern"
        )
    return paths


def _alternatives(name: str) -> list[str]:
    """A name for each choice within the first braces."""
    braces = BRACES.search(name)
    assert braces is not None
    choices = braces[1].split(",")
    if span := RANGE.fullmatch(braces[1]):
        first, last = int(span[1]), int(span[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        width = (
            max(map(len, span.groups()))
            if any(n.startswith("0") and len(n) > 1 for n in span.groups())
            else 0
        )
        choices = [f"{number:0{width}}" for number in numbers]
    return [name[: braces.start()] + choice + name[braces.end() :] for choice in choices]


# ---- each kind of source --------------------------------------------------------------------------------------


def _from_folder(folder: Path) -> dict[str, Part]:
    below = {SPLITS[name]: folder / name for name in ("test", "val", "train") if (folder / name).is_dir()}
    return {split: _class_folders(path) for split, path in (below or {"": folder}).items()}


def _class_folders(folder: Path) -> Part:
    try:
        found = ImageFolder(folder, allow_empty=True)
    except FileNotFoundError as error:
        hint = f"; for shards, give {folder}/*.tar" if any(folder.glob("*.tar")) else ""
        raise DataError(f"{folder} holds no class folders; the layout must be {LAYOUT}{hint}") from error
    labels = np.array(found.targets, np.int64)
    empty = sorted(set(range(len(found.classes))) - set(found.targets))
    if empty:
        folders = ", ".join(str(folder / found.classes[label]) for label in empty)
        raise DataError(f"class folders without images: {folders}; fill or remove them")
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples])
    try:
        sizes = np.array([os.stat(path).st_size for path, _ in found.samples], np.int64)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror})") from error
    return Part(Files(folder, names, sizes, labels), tuple(found.classes))


def _from_tar(path: Path, index: TarIndex) -> dict[str, Part]:
    places: dict[str, list[tuple[str, str, int]]] = {}
    for number, name in enumerate(index.names.tolist()):
        folders = os.fsdecode(name).removeprefix("./").split("/")
        at = next((i for i, folder in enumerate(folders[:-2]) if folder in SPLITS), None)
        if at is not None:
            split, rest = SPLITS[folders[at]], folders[at + 1 :]
        else:
            split, rest = "", folders[-2:]
        if len(rest) >= 2:
            places.setdefault(split, []).append((rest[0], "/".join(rest), number))
    if len(places) > 1:
        places.pop("", None)  # images beside the splits, such as a cover
    if not places:
        raise DataError(f"{path} holds no images in class folders; the layout must be {LAYOUT}")
    return {split: _class_members(path, index, sorted(found)) for split, found in places.items()}


def _class_members(path: Path, index: TarIndex, found: Sequence[tuple[str, str, int]]) -> Part:
    folders, names, numbers = zip(*found, strict=True)
    classes = sorted(set(folders))
    label = {name: number for number, name in enumerate(classes)}
    kept = np.array(numbers)
    images = Members(
        [path],
        np.zeros(len(kept), np.int64),
        index.offsets[kept],
        np.array([os.fsencode(name) for name in names]),
        index.sizes[kept],
        np.array([label[folder] for folder in folders], np.int64),
    )
    return Part(images, tuple(classes))


def _from_shards(paths: list[Path], indexes: list[TarIndex]) -> Members:
    for path, index in zip(paths, indexes, strict=True):
        without = (index.labels == NO_LABEL).nonzero()[0]
        if len(without):
            name = os.fsdecode(index.names[without[0]])
            raise DataError(
                f"{path}: {name} has no label; each image needs a .cls or .json of its name beside it"
            )
    names, offsets, sizes, labels = (np.concatenate(column) for column in zip(*indexes, strict=True))
    tar = np.repeat(np.arange(len(paths)), [len(index.names) for index in indexes])
    return Members(paths, tar, offsets, names, sizes, labels)
