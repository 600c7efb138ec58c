"""Small images for the steps, and a data loader that rests while others are timed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

SIDE = 32
COUNT = 2048  # images to draw batches from; their content changes no time
RECIPES = str(Path(__file__).parents[1] / "examples")


def recipes_path() -> None:
    """Let the recipes of `examples/` be imported, as its scripts do."""
    if RECIPES not in sys.path:
        sys.path.insert(0, RECIPES)


def pixels() -> Tensor:
    """Images as bytes. Shape: (COUNT, 3, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")
    return (255 * smooth).to(torch.uint8)


class PILImages(Dataset[Any]):
    """The same images the way torchvision's data sets give them: PIL, transformed, with a label."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform
        self.arrays = pixels().permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.arrays[index])), 0


class RestingLoader:
    """Endless batches from worker processes that are stopped between turns.

    A loader that is left alone fills its queue, in others' time and to its own later profit. Stopped with its
    contender, it does all its work in its own turns; once the queue is in balance, taking one batch costs making one.

    Args:
        dataset: what is loaded.
        batch_size: images a batch.
        workers: processes.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, workers: int) -> None:
        before = set(multiprocessing.active_children())
        order = RandomSampler(dataset, replacement=True, num_samples=10**9)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*worker processes in total")  # more than cores, as published
            loader = DataLoader(dataset, batch_size, sampler=order, num_workers=workers, drop_last=True)
            self.batches: Iterator[Any] | None = iter(loader)
        self.workers = [p for p in multiprocessing.active_children() if p not in before]

    def take(self) -> Any:
        """The next batch."""
        assert self.batches is not None
        return next(self.batches)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Workers run inside, and rest outside."""
        self._signal("SIGCONT")
        try:
            yield
        finally:
            self._signal("SIGSTOP")

    def close(self) -> None:
        """End the workers, which they do only when they run."""
        self._signal("SIGCONT")
        self.batches = None

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            for worker in self.workers:
                if worker.is_alive() and worker.pid is not None:
                    os.kill(worker.pid, getattr(signal, name))
