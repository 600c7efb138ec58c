"""One checkpoint: written whole or not at all, and checked before it is used."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from recipes.files import whole_file
from recipes.screen import warn


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read, with what to do and what is kept."""


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that a kill cannot halve, written straight to the disk rather than built in memory first.

    Lightning's own are put together in memory, and moved from the system's temporary files, which can be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one.

        Args:
            checkpoint: what Lightning wants to keep.
            path: of the file.
            storage_options: not used.

        Raises:
            CheckpointError: when the disk is full or cannot be written to; the partial file is removed.
        """
        path = Path(path)
        try:
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = _first_os_error(error)
            if cause is None:
                raise
            raise CheckpointError(_explain(path, checkpoint, cause)) from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read one; tensors and plain values only, to the CPU."""
        return torch.load(path, "cpu", weights_only=True)


def check_space(folder: Path, bytes_needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: to write to; it need not exist.
        bytes_needed: in all.

    Raises:
        CheckpointError: when less is free.
    """
    free = _free(folder)
    if free < bytes_needed:
        raise CheckpointError(
            f"checkpoints in {folder} need {_size(bytes_needed)} and {_size(free)} are free on that disk; make room, "
            "or give a folder on another disk with --out"
        )


def newest_whole(folder: Path) -> Path | None:
    """Newest checkpoint that reads whole. Damaged ones are named on the console and left aside.

    `torch.load` reads flipped bits without complaint: it skips the checksum that `torch.save` wrote of every
    tensor. They are compared here.

    Args:
        folder: that `Checkpoints` wrote to; it need not exist.

    Returns:
        Its path, or None where there is no checkpoint at all.

    Raises:
        CheckpointError: when there are checkpoints and none of them is whole.
    """
    paths = steps_in(folder)
    for path in reversed(paths):
        fault = _fault(path)
        if fault is None:
            return path
        rank_zero_only(warn)(f"{path} is damaged ({fault}); looking for the checkpoint before it")
    if paths:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"no checkpoint in {folder} reads whole; delete {names} there to train from the start"
        )
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"the checksum of {damaged} does not match"
        torch.load(path, "cpu", weights_only=True, mmap=True)  # reads no tensor's data again
    except Exception as error:  # a flipped bit can make zipfile and pickle raise almost anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def steps_in(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step=*.ckpt") if re.fullmatch(r"step=\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step=")))


class _Count(io.RawIOBase):
    """A file that only counts."""

    total = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.total += len(data)
        return len(data)


def _bytes_of(content: Any) -> int:
    """Size of the file that `torch.save` would write."""
    count = _Count()
    torch.save(content, count)
    return count.total


def _explain(path: Path, checkpoint: dict[str, Any], cause: OSError) -> str:
    steps = steps_in(path.parent)
    kept = f"the last checkpoint, {steps[-1].name}, is kept" if steps else "there is no earlier checkpoint"
    return (
        f"{path} could not be written ({cause.strerror or cause}): it takes {_size(_bytes_of(checkpoint))} and "
        f"{_size(_free(path.parent))} are free on that disk; {kept}; make room and go on with --resume"
    )


def _first_os_error(error: BaseException | None) -> OSError | None:
    """The failed write beneath what torch made of it while it tried to end the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
