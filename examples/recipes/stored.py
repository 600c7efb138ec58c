"""Encoded images by number, in files or in tars: bytes when asked for, and what is told of them in a few tensors.

Every worker of every process holds this for a million images. Python's lists would be copied for each; tensors lie in
memory that all of them share.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.batches import DataError

T = TypeVar("T", bound="Stored")


class Stored:
    """What images in files and in tars have in common.

    Args:
        names: of the images, relative to what holds them all. Shape: (N,)
        sizes: in bytes. Shape: (N,)
        labels: Shape: (N,)
    """

    def __init__(
        self, names: NDArray[np.bytes_], sizes: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        self.names = torch.from_numpy(names.view(np.uint8).reshape(len(names), -1))
        self.sizes, self.labels = torch.from_numpy(sizes), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Of one image."""
        return os.fsdecode(self.names[index].numpy().tobytes().rstrip(b"\0"))

    def keys(self) -> list[bytes]:
        """A name for each image that no other has."""
        return self.names.numpy().view(f"S{self.names.shape[1]}").ravel().tolist()

    def where(self, index: int) -> str:
        """Name of one image in messages."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """Bytes of one image.

        Raises:
            DataError: when they cannot be read.
        """
        raise NotImplementedError

    def select(self: T, index: Tensor) -> T:
        """Some of the images, by their numbers or by marks."""
        part = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(part, name, value[index])
        return part


class Files(Stored):
    """Images in files of their own.

    Args:
        root: folder that the names are relative to.
        names: as in `Stored`.
        sizes: as in `Stored`.
        labels: as in `Stored`.
    """

    def __init__(self, root: Path, *told: Any) -> None:
        super().__init__(*told)
        self.root = root

    def where(self, index: int) -> str:
        """Path of the file."""
        return str(self.root / self.name(index))

    def read(self, index: int) -> bytes:
        """The file's content."""
        try:
            return (self.root / self.name(index)).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.where(index)} ({error.strerror}); was it moved?") from error


class Members(Stored):
    """Images in tars, read where they lie.

    A tar is opened when a process first reads from it, and stays open: few at a time, as there may be thousands.

    Args:
        tars: the files.
        tar: number of each image's tar. Shape: (N,)
        offsets: of each image in its tar. Shape: (N,)
        names: as in `Stored`.
        sizes: as in `Stored`.
        labels: as in `Stored`.
    """

    AT_ONCE = 64  # open tars of a process, of which systems commonly allow 1024 files

    def __init__(
        self, tars: Sequence[Path], tar: NDArray[np.int64], offsets: NDArray[np.int64], *told: Any
    ) -> None:
        super().__init__(*told)
        self.tars = list(tars)
        self.tar, self.offsets = torch.from_numpy(tar), torch.from_numpy(offsets)
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def keys(self) -> list[bytes]:
        """Names of the members, with their tar's before them when there are several."""
        members = super().keys()
        if len(self.tars) == 1:
            return members
        tars = [os.fsencode(path.name) for path in self.tars]
        return [tars[tar] + b"/" + name for tar, name in zip(self.tar.tolist(), members, strict=True)]

    def where(self, index: int) -> str:
        """The tar and its member."""
        return f"{self.tars[self.tar[index]]}: {self.name(index)}"

    def read(self, index: int) -> bytes:
        """The member's content."""
        path, size = self.tars[self.tar[index]], int(self.sizes[index])
        try:
            # Not seek and read: a process that was forked shares its place in an open file.
            content = os.pread(self._file(path).fileno(), size, int(self.offsets[index]))
        except OSError as error:
            raise DataError(f"cannot read {self.where(index)} ({error.strerror})") from error
        if len(content) < size:
            raise DataError(f"{self.where(index)} breaks off; {path} is shorter than it was, fetch it again")
        return content

    def _file(self, path: Path) -> BinaryIO:
        if path not in self._open:
            self._open[path] = path.open("rb", buffering=0)
            if len(self._open) > self.AT_ONCE:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}  # open files stay with their process, and with one part

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()


def fingerprint(parts: Mapping[str, Stored]) -> str:
    """SHA-256 over what every image is called, how long it is and what it shows; the images are not read.

    Args:
        parts: training and test images by the name of their part.
    """
    lines = []
    for split, part in parts.items():
        told = zip(part.keys(), part.sizes.tolist(), part.labels.tolist(), strict=True)
        lines += [b"%s\t%s\t%d\t%d\n" % (split.encode(), *values) for values in told]
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()
