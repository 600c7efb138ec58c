"""A data loader over PIL images whose worker processes are paused while other contenders are timed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

SIDE = 32
COUNT = 2048  # images that batches are sampled from; their content does not affect the time


def random_images() -> Tensor:
    """Smooth random images, uint8. Shape: (COUNT, 3, SIDE, SIDE)."""
    coarse = torch.rand(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")
    return (255 * smooth).to(torch.uint8)


class PILImages(Dataset[Any]):
    """The same images as torchvision's data sets return them: PIL, transformed, with a label."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform
        self.arrays = random_images().permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.arrays[index])), 0


class PausedLoader:
    """Endless batches from worker processes that are stopped between turns.

    Workers that keep running would fill their queue during other contenders' turns: they would slow those down and
    make this contender look faster. Stopped, they do all their work in their own turns.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, workers: int) -> None:
        before = set(multiprocessing.active_children())
        order = RandomSampler(dataset, replacement=True, num_samples=10**9)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*worker processes in total")  # more workers than cores is meant
            loader = DataLoader(dataset, batch_size, sampler=order, num_workers=workers, drop_last=True)
            self.batches: Iterator[Any] | None = iter(loader)
        self.workers = [p for p in multiprocessing.active_children() if p not in before]

    def next(self) -> Any:
        """The next batch."""
        assert self.batches is not None
        return next(self.batches)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let the workers run inside the context only."""
        self._signal("SIGCONT")
        try:
            yield
        finally:
            self._signal("SIGSTOP")

    def close(self) -> None:
        """Continue the workers, so that they end."""
        self._signal("SIGCONT")
        self.batches = None

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            for worker in self.workers:
                if worker.is_alive() and worker.pid is not None:
                    os.kill(worker.pid, getattr(signal, name))
