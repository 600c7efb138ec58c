"""Exact resume: a run that was killed at any moment and started again ends with the same weights, bit for bit.

The order of images follows from (seed, epoch), random numbers from (seed, step, rank); Lightning restores the rest.
Added is what Lightning 2.6 lacks: `ModelCheckpoint` has one trigger and saves the last batch of an epoch in a state
that cannot be resumed; `OnExceptionCheckpoint` saves half-finished steps and diverged weights.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from provenance import Stopped
from torch.utils.data import DataLoader, Sampler


class TrainingError(ValueError):
    """Training that cannot continue; the message says what to change."""


def seed_for(*parts: int) -> int:
    """A 32-bit seed from integers such as (seed, step, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums are right; a damaged one is reported and renamed."""
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        with suppress(zipfile.BadZipFile, OSError):
            if zipfile.ZipFile(path).testzip() is None:
                return path
        print(f"{path} is damaged; trying the checkpoint before it")
        with suppress(OSError):  # another process may have done it
            path.rename(f"{path}.damaged")
    return None


class ResumableSampler(Sampler[int]):
    """One process's images of an epoch, starting at the batch that the trainer has reached.

    The order is dealt out to the processes in turn: N of them with batches of B see what one sees in batches of N B.
    """

    def __init__(self, images: int, batch_size: int, seed: int, trainer: L.Trainer) -> None:
        self.images, self.batch_size, self.seed, self.trainer = images, batch_size, seed, trainer
        self.batches = images // (batch_size * trainer.world_size)

    def __iter__(self) -> Iterator[int]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        epoch, batch = divmod(self.trainer.global_step, self.batches)
        order = torch.randperm(self.images, generator=torch.Generator().manual_seed(seed_for(self.seed, epoch)))
        return iter(order[: len(self) * world][rank::world][batch * self.batch_size :].tolist())

    def __len__(self) -> int:
        return self.batches * self.batch_size


def resumable_loader(data: Any, batch_size: int, seed: int, trainer: L.Trainer) -> DataLoader[Any]:
    """A loader of this process's share of each batch that continues within an epoch, at the trainer's step."""
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # as it has no `state_dict`
    world, images = trainer.world_size, len(data)
    if batch_size % world or not 0 < batch_size <= images:
        raise TrainingError(f"--batch-size must be a multiple of {world} up to {images} images, got {batch_size}")
    sampler = ResumableSampler(images, batch_size // world, seed, trainer)
    return DataLoader(data, batch_size // world, sampler=sampler, drop_last=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint next to its final name, flush it to disk and rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save; where that fails, earlier checkpoints stay as they are."""
        partial = Path(f"{path}.partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise TrainingError(f"cannot write {path} ({error}); free some space, then add --resume") from error


class ExactCheckpoint(Checkpoint):
    """Save after each epoch, every few minutes, and when SIGTERM or Ctrl-C ends the run; keep the newest two.

    `run` has the settings and the data of the run; a checkpoint of another run is refused.
    """

    def __init__(self, folder: Path, run: dict[str, Any], minutes: float = 10.0) -> None:
        self.folder, self.run, self.minutes = folder, run, minutes
        self.saved_at, self.signal = time.monotonic(), 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one."""
        return self.run

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings or images."""
        if changed := [f"{k}: {state.get(k)!r} before, {v!r} now" for k, v in self.run.items() if state.get(k) != v]:
            raise TrainingError(f"{self.folder} differs ({'; '.join(changed)}); change it back, or give another --out")

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Let a signal wait for the end of the step: half a step cannot be resumed. Lightning restores the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: setattr(self, "signal", n))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        """Save within an epoch, all processes at the same step; the last batch waits for the end of the epoch."""
        if trainer.global_step % 50 == 0 and not outputs["loss"].isfinite():  # each look makes a GPU wait
            self.refuse(f"the loss became {outputs['loss']:g} by step {trainer.global_step}")
        due = not trainer.is_last_batch and (self.signal != 0 or time.monotonic() - self.saved_at > 60 * self.minutes)
        asks = trainer.world_size == 1 or trainer.global_step % 5 == 0  # waits for the other processes
        if asks and trainer.strategy.reduce_boolean_decision(due, all=False):
            self.save(trainer)

    def save(self, trainer: L.Trainer, module: Any = None) -> None:
        """Write a checkpoint, delete those before the newest two, and stop if a signal asked for it."""
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:09d}.ckpt")
        self.saved_at = time.monotonic()
        for old in sorted(self.folder.glob("*.ckpt"))[:-2]:
            old.unlink(missing_ok=True)
        if trainer.strategy.reduce_boolean_decision(self.signal != 0, all=False):
            raise Stopped(signal.Signals(self.signal or signal.SIGTERM))

    on_train_epoch_end = save

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that diverged."""
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                self.refuse(f"{name} became inf or nan by step {trainer.global_step}")

    def refuse(self, what: str) -> None:
        """End a run that diverged; the last good checkpoint stays."""
        good = max(self.folder.glob("*.ckpt"), default="none")
        raise TrainingError(f"{what}; last good checkpoint: {good}; take a lower --lr or another --precision")
