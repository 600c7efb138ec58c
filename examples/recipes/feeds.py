"""What a data set gives to each purpose, and batches for Lightning from the very step on that a run has come to."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipes.batches import DataError, InMemory, InOrder, Loader, Order, check_batch

__all__ = [
    "DataError",
    "Feed",
    "InMemory",
    "LabelledImages",
    "Loader",
    "Order",
    "TrainingData",
    "evaluation_loader",
]


class Feed(NamedTuple):
    """Images for one purpose, and what the device makes of them.

    Args:
        dataset: map style. `len()` counts images; `__getitems__` takes pairs (index, epoch) and returns images and
            labels. Images are uint8, Shape: (N, 3, H, W), or two crops each, made by the workers,
            Shape: (N, 2, 3, H, W). Labels are int64, Shape: (N,). If it draws random numbers, its method
            `seeded(seed)` returns the same with these of another seed.
        transform: on the device, called as `transform(images, seed=None, rank=0, world=1)`. Pretraining: two
            normalised views; training: one; evaluation: the normalised images. Shape: (N, 3, H, W) each
        in_memory: whether the images lie in memory, so that workers would only be in the way.
    """

    dataset: Dataset[Any]
    transform: nn.Module
    in_memory: bool


class LabelledImages(Protocol):
    """What a data set offers: `recipes.data.ImageData` and `recipes.imagenet.ImageNetData`."""

    @property
    def name(self) -> str:
        """What results are reported on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that tells data sets apart."""

    @property
    def size(self) -> int:
        """Side of the images in pixels."""

    @property
    def train_labels(self) -> Tensor:
        """Of the training images, int64. Shape: (N,)."""

    @property
    def test_labels(self) -> Tensor:
        """Of the test images, int64. Shape: (M,)."""

    def pretraining(self, strength: float, min_scale: float, blur: float | None = None) -> Feed:
        """Training images, two random views each."""

    def training(self, min_scale: float) -> Feed:
        """Training images, one random crop each, flipped or not."""

    def evaluation(self, split: str) -> Feed:
        """Images of "train" or "test", nothing random."""


class TrainingData(L.LightningDataModule):
    """Batches for Lightning that begin where the trainer stands, in the middle of an epoch too.

    A step of the trainer is one batch: gradients must not be accumulated over several. The trainer needs
    `use_distributed_sampler=False`, as the order shares the batches out itself.

    Args:
        feed: to train on.
        batch_size: images a step, in all processes together.
        seed: of the order, and of what the data set's workers draw.
        workers: processes that read for each process that trains; none for images in memory.

    Raises:
        DataError: for a batch that does not fit the data, when it is made, or the processes, when training begins.
    """

    def __init__(self, feed: Feed, batch_size: int, seed: int, workers: int = 0) -> None:
        super().__init__()
        check_batch(batch_size, len(feed.dataset))  # type: ignore[arg-type]
        with_seed = getattr(feed.dataset, "seeded", None)
        self.feed = feed._replace(dataset=with_seed(seed)) if with_seed else feed
        self.batch_size, self.seed = batch_size, seed
        self.workers = 0 if feed.in_memory else workers

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches that the data gives."""
        return len(self.feed.dataset) // self.batch_size  # type: ignore[arg-type]

    def train_dataloader(self) -> Loader:
        """Of this process, from the step on that the trainer is to take next.

        Raises:
            DataError: for a batch that the processes cannot share.
            ValueError: for a trainer that accumulates gradients.
        """
        trainer = self.trainer
        assert trainer is not None  # Lightning asks for the loader after it has attached itself
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches must be 1, got {trainer.accumulate_grad_batches}; "
                "the place in the data is counted in the trainer's steps"
            )
        order = Order(
            len(self.feed.dataset),  # type: ignore[arg-type]
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            lambda: trainer.global_step,
        )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        return Loader(self.feed.dataset, order, self.workers, pin_memory=on_gpu)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must share for its steps to mean the same batches."""
        return {"images": len(self.feed.dataset), "batch_size": self.batch_size, "seed": self.seed}  # type: ignore[arg-type]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare a checkpoint's with this run's.

        Raises:
            DataError: when they differ.
        """
        own = self.state_dict()
        changed = [f"{name}: {state[name]} then, {own[name]} now" for name in own if state[name] != own[name]]
        if changed:
            raise DataError(
                f"the checkpoint is of other data or settings ({'; '.join(changed)}); give the same"
            )


def evaluation_loader(feed: Feed, batch_size: int, workers: int = 0) -> Loader:
    """Images and labels in their order, the last batch as small as it comes.

    Args:
        feed: of a data set's `evaluation`.
        batch_size: images at a time.
        workers: processes that read; none for images in memory.
    """
    batches = InOrder(len(feed.dataset), batch_size)  # type: ignore[arg-type]
    workers = 0 if feed.in_memory else workers
    return Loader(feed.dataset, batches, workers, pin_memory=torch.cuda.is_available())
