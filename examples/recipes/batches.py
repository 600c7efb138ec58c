"""Batches by number: which images make them up, and processes that read them. Workers import nothing heavier."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recipes.draws import seeded

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")
WATCH_EVERY = 2.0  # seconds between a worker's looks at the process it reads for


class DataError(Exception):
    """A data set that is missing, damaged or does not fit the run, said so that the reader can mend it."""


class Order(Sampler[list[tuple[int, int]]]):
    """Which images make up each batch of an epoch, from any step on.

    An epoch's order is a permutation seeded by seed and epoch. Batch s of all processes is its s-th stretch of
    `batch_size` images, and every process takes its own part of that stretch: the batches are the same whatever the
    number of processes. Images that do not fill a last batch are left out of the epoch.

    Each `iter()` begins at `start_step`, in the epoch that this step belongs to, and ends with that epoch.

    Args:
        length: number of images.
        batch_size: images a step, in all processes together.
        seed: of the order.
        rank: of this process.
        world: number of processes.
        start_step: steps of the run that are done, over all epochs; or a function that tells, asked at each `iter()`.

    Raises:
        DataError: for a batch that is larger than the data, or that the processes cannot share.
        ValueError: for a rank that there is not.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int | Callable[[], int] = 0,
    ) -> None:
        check_batch(batch_size, length)
        if not 0 <= rank < world:
            raise ValueError(f"rank must be between 0 and world - 1 = {world - 1}, got {rank}")
        if batch_size % world:
            raise DataError(
                f"--batch-size counts the images of all {world} processes and must be a multiple of their number, got "
                f"{batch_size}; give {-(-batch_size // world) * world}"
            )
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.start_step = start_step

    @property
    def epoch(self) -> int:
        """The one that the next `iter()` goes through."""
        return self._start() // len(self)

    def __len__(self) -> int:
        """Steps in a whole epoch, wherever it begins."""
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This process's images of each step, as pairs (index, epoch)."""
        epoch, step = divmod(self._start(), len(self))
        order = torch.randperm(self.length, generator=seeded("order", self.seed, epoch))
        share = self.batch_size // self.world
        batches = order[: len(self) * self.batch_size].view(len(self), self.world, share)[step:, self.rank]
        return ([(index, epoch) for index in batch.tolist()] for batch in batches)

    def _start(self) -> int:
        return self.start_step() if callable(self.start_step) else self.start_step


class InOrder(Sampler[list[tuple[int, int]]]):
    """All images once, first to last, in batches of which the last may be smaller.

    Args:
        length: number of images.
        batch_size: images a batch.
    """

    def __init__(self, length: int, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.length, self.batch_size = length, batch_size

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Pairs (index, 0)."""
        starts = range(0, self.length, self.batch_size)
        return ([(i, 0) for i in range(s, min(s + self.batch_size, self.length))] for s in starts)


class InMemory(Dataset[Batch]):
    """Images in memory, taken a whole batch at a time.

    Args:
        images: uint8. Shape: (N, 3, H, W)
        labels: int64. Shape: (N,)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """Images and labels of pairs (index, epoch). Shape: (N, 3, H, W), (N,)."""
        index = torch.tensor([index for index, _ in pairs])
        return self.images[index], self.labels[index]


class Loader(DataLoader[Any]):
    """Torch's loader of whole batches, made to fit.

    A `DataError` of a worker arrives as it was raised, without the worker's traceback. A signal that asks a whole job
    to end does not end the workers before the process they read for. The global random numbers stay untouched.
    Lightning may save and load its state, which is empty: where an `Order` stands is told by the trainer.

    Args:
        dataset: of a `Feed`.
        batches: pairs (index, epoch) of each batch.
        workers: processes that read; 0 to read in this one.
        pin_memory: whether batches go to pinned memory, from which a GPU copies them while the host goes on.
    """

    def __init__(
        self, dataset: Dataset[Any], batches: Order | InOrder, workers: int, *, pin_memory: bool
    ) -> None:
        super().__init__(
            _Messenger(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of images and labels."""
        with _blocked():
            return _raised(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Nothing; there it is for Lightning to know that a run may go on from the middle of an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def check_batch(batch_size: int, images: int) -> None:
    """Refuse a batch that the data cannot fill, or of one image, which neither batch norm nor a contrast can use.

    Raises:
        DataError: if so.
    """
    if not 2 <= batch_size <= images:
        raise DataError(
            f"--batch-size must be between 2 and the {images} training images, got {batch_size}; "
            f"give at most {images}, or more images"
        )


class _Messenger(Dataset[Any]):
    """Hands a `DataError` over in place of the batch, as torch would wrap it in the worker's whole traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, pair: tuple[int, int]) -> Any:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Any:
        try:
            return self.dataset.__getitems__(pairs)  # type: ignore[attr-defined]
        except DataError as error:
            return error


def _raised(batches: Iterator[Any]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _as_is(batch: T) -> T:
    return batch


@contextmanager
def _blocked() -> Iterator[None]:
    """Start workers with SIGTERM blocked: threads that libraries begin in them on import would take it otherwise."""
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # on its start it unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(number: int) -> None:
    """Leave signals to the process that trains: block SIGTERM and watch for it, where the system has such a call."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigtimedwait") and parent is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: Any) -> None:
    """End the worker when the process that it reads for ends, or ends it.

    Schedulers send SIGTERM to all processes of a job. Only the one that trains knows what is to be saved first, and
    for that it may need the batches of its workers.
    """
    while parent.is_alive():
        signalled = signal.sigtimedwait({signal.SIGTERM}, WATCH_EVERY)
        if signalled is not None and signalled.si_pid == parent.pid:
            break
    os._exit(0)
