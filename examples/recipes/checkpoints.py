"""Checkpoints that survive: written whole, checked before they are used, asked for by a signal.

What Lightning's loops do with a checkpoint written inside a hook, found by experiment and by reading them (2.6):

- Written by a callback in `on_train_batch_end`, mid-epoch: the progress says that the step is processed and not
  yet completed; a resumed run completes it, takes the next batch, and neither repeats nor skips one. It calls
  `on_train_start`, then goes on inside the epoch: `on_train_epoch_start` is not called again.
- The same at the last batch of an epoch: a resumed run calls neither `on_train_epoch_end` of the epoch that ended
  nor `on_train_epoch_start` of the next, and what it writes mid-epoch counts batches wrongly when resumed again.
  So that step's checkpoint waits for `on_train_epoch_end`.
- Written in `on_train_epoch_end`: a resumed run starts with the next epoch's `on_train_epoch_start`.
- Callbacks' `on_train_batch_end` comes before the module's own: what a module changes there is not in the
  checkpoint of that step. `Checkpoints` refuses such a module. Of the callbacks, those that derive from
  `lightning.pytorch.callbacks.Checkpoint` come last, so others may change their state there.
- A loader is asked for with `trainer.global_step` already restored, and before any `set_epoch`.

Lightning's `ModelCheckpoint` has one trigger each, writes in `on_train_batch_end` of an epoch's last batch too, and
never deletes the file that it resumed from.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from recipes.checkpoint_io import CheckpointError, WholeCheckpoints, check_space, newest_whole, steps_in

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "StopOnSignal",
    "Stopped",
    "WholeCheckpoints",
    "check_space",
    "newest_whole",
]


class Stopped(BaseException):
    """Training that ended early because a signal asked for it, after a checkpoint of its last step.

    Not an `Exception`, so that nothing on the way takes it for a failure; not a `KeyboardInterrupt`, which
    Lightning turns into `SystemExit`.

    Args:
        number: of the signal.
        checkpoint: the file that a resumed run goes on from; None where there is none yet.
    """

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(number, checkpoint)
        self.signal, self.checkpoint = signal.Signals(number), checkpoint

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signal

    def __str__(self) -> str:
        kept = f"{self.checkpoint} is written" if self.checkpoint else "there is no checkpoint yet"
        return f"stopped by {self.signal.name}; {kept}"


class Checkpoints(Checkpoint):
    """Writes `step=0000123.ckpt` every so many steps or minutes, at the end of epochs, and at the end.

    With several processes all of them enter each save together: the first clock and any signal decide for all, through
    one small reduction a step. A write that fails on rank 0 is raised on every rank.

    Args:
        folder: gets the checkpoints.
        every_steps: steps between checkpoints; None for no such rule.
        every_minutes: minutes after the last checkpoint; None for no such rule.
        keep: newest whole checkpoints that stay. Others are deleted once there are as many, damaged ones with them.
        epoch_ends: also write at the end of every epoch.

    Raises:
        ValueError: when an argument is not above 0.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int | None = None,
        every_minutes: float | None = 10,
        keep: int = 2,
        epoch_ends: bool = True,
    ) -> None:
        for name, value in {"every_steps": every_steps, "every_minutes": every_minutes, "keep": keep}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, or None for no such rule, got {value}")
        self.folder, self.keep, self.epoch_ends = folder, keep, epoch_ends
        self.every_steps = every_steps
        self.every_seconds = None if every_minutes is None else 60 * every_minutes
        self.newest: Path | None = None  # that a run which stopped now would go on from
        self.stop = 0  # number of the signal that asks for a checkpoint and the end; see StopOnSignal

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look for room before anything is spent, and clear away what a killed write left."""
        if type(module).on_train_batch_end is not L.LightningModule.on_train_batch_end:
            raise TypeError(
                f"{type(module).__name__} overrides on_train_batch_end, which Lightning calls after the checkpoint of "
                "that step is written; change state in training_step, optimizer_step or lr_scheduler_step"
            )
        with _together(trainer) as on_rank_zero:
            if on_rank_zero:
                for partial in self.folder.glob("step=*.ckpt.partial"):
                    partial.unlink()
                there = sum(path.stat().st_size for path in steps_in(self.folder))
                # One more than are kept, as the oldest is deleted after the newest is written.
                check_space(self.folder, (self.keep + 1) * _expected_bytes(trainer, module) - there)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin from where the run stands."""
        self.newest = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        self.whole = [path for path in steps_in(self.folder) if self.newest and path.samefile(self.newest)]
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time; the last step of an epoch waits for the end of the epoch."""
        if not (trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches):
            self._save_or_stop(trainer, self._is_due(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write after what the other callbacks and the module do at the end of an epoch."""
        self._save_or_stop(trainer, self._is_due(trainer) or self.epoch_ends)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the last step, and heed a signal that came meanwhile."""
        self._is_due(trainer)
        self._save_or_stop(trainer, True)

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether a rule asks for a checkpoint now; the same on every rank. Takes note of signals to other ranks."""
        seconds = time.monotonic() - self.saved_at
        late = self.every_seconds is not None and seconds >= self.every_seconds
        if trainer.world_size > 1:
            # Waits for the device, as Lightning's own broadcast of each step does anyway.
            mine = torch.tensor([self.stop, int(late)], device=trainer.strategy.root_device)
            dist.all_reduce(mine, dist.ReduceOp.MAX)
            self.stop, late = mine.tolist()
        steps = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        return bool(late) or steps

    def _save_or_stop(self, trainer: L.Trainer, due: bool) -> None:
        if due or self.stop:
            self._save(trainer)
        if self.stop:
            raise Stopped(self.stop, self.newest)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self.saved_step:
            return
        path = self.folder / f"step={trainer.global_step:07d}.ckpt"
        with _together(trainer) as on_rank_zero:
            try:
                trainer.save_checkpoint(path, weights_only=False)
            except CheckpointError:  # on rank 0; the others wait in the barrier that follows the write
                trainer.strategy.barrier()
                raise
            if on_rank_zero:
                self._delete_older(path)
        self.newest, self.saved_step, self.saved_at = path, trainer.global_step, time.monotonic()

    def _delete_older(self, path: Path) -> None:
        self.whole = [*self.whole, path][-self.keep :]
        if len(self.whole) == self.keep:
            for other in set(steps_in(self.folder)) - set(self.whole):
                other.unlink()


class StopOnSignal(L.Callback):
    """Ends training after the running step, with a checkpoint, when a signal asks for it; a second one ends it at once.

    SIGTERM (schedulers, containers, torchrun), SIGINT (Ctrl-C) and SIGUSR1 (SLURM's --signal). `fit` then raises
    `Stopped` on every rank, whichever of them got the signal. Lightning's own handlers are set aside meanwhile: that
    of SIGTERM ends training without a checkpoint and broadcasts from within the handler, where other ranks may be in
    another collective; that of SIGUSR1 writes a checkpoint in the middle of a step.

    Args:
        checkpoints: that write the last step.
    """

    SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # by name: Windows has no SIGUSR1
    SAME_WISH = 2.0  # seconds; torchrun passes on what a terminal or scheduler sends its processes as well

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.earlier: dict[int, Any] = {}
        self.received_at: float | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen; Lightning has installed its own handlers just before."""
        if threading.current_thread() is not threading.main_thread():
            return
        if trainer.received_sigterm:  # while the data was opened
            self._receive(signal.SIGTERM, None)
        for number in _numbers():
            self.earlier[number] = signal.signal(number, self._receive)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put back the earlier handlers, before the last look at `stop`; after a failure Lightning does."""
        while self.earlier:
            signal.signal(*self.earlier.popitem())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received_at is None:
            self.checkpoints.stop, self.received_at = self.checkpoints.stop or number, time.monotonic()
            _say(f"\n{signal.Signals(number).name}: stopping after this step; again to stop at once\n")
        elif time.monotonic() - self.received_at > self.SAME_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _numbers() -> list[signal.Signals]:
    return [number for number in signal.Signals if number.name in StopOnSignal.SIGNALS]


@contextmanager
def _together(trainer: L.Trainer) -> Iterator[bool]:
    """Tells whether this is rank 0, and raises on every rank what fails there, so that none waits for ever."""
    cause: Exception | None = None
    try:
        yield trainer.is_global_zero
    except (CheckpointError, OSError) as error:
        cause = error
    told = trainer.strategy.broadcast("" if cause is None else str(cause))
    if told:
        raise CheckpointError(told) from cause


def _expected_bytes(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Weights, their average, and what the optimizer keeps of each: two values with betas (Adam), one otherwise."""

    def count(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    total = count(module.state_dict().values())
    if getattr(getattr(module, "schedule", None), "ema", None):
        total *= 2
    for optimizer in trainer.optimizers:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        total += count(parameters) * (2 if "betas" in optimizer.defaults else 1)
    return total


@rank_zero_only
def _say(text: str) -> None:
    os.write(2, text.encode())  # print and rich are not safe in a signal handler
