"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write so that it takes its name only when it is complete and on the disk.

    A reader, or a run that is killed or whose machine fails, meets the old content or the new, never a part.
    When writing fails, the part is removed and what was there before stays.

    Args:
        path: of the file; folders that are missing are made.

    Returns:
        The open file, for a `with` statement.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole; see `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Put the name itself on the disk; without it a power cut may bring back the old file, or none."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which has no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
