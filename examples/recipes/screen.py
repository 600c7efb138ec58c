"""What a run shows on the terminal: bars with the time left there, a line an epoch where output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

T = TypeVar("T")

console = Console()


def passing_bar(items: Iterable[T], description: str) -> Iterator[T]:
    """Go through items with a progress bar that leaves nothing behind."""
    yield from track(
        items, escape(description), console=console, transient=True, disable=not console.is_terminal
    )


class RunProgress(L.Callback):
    """Progress of one model's training: loss, images a second and the time left.

    Args:
        name: of the model.
        batch_size: images a step.
    """

    READ_EVERY = 20  # steps between readings of the loss, so that a GPU is not held up

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin from where the run stands."""
        self.first_step, self.begin = trainer.global_step, time.perf_counter()
        self.total = trainer.max_epochs * trainer.num_training_batches
        fields = {"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}", "loss": "-", "speed": "-"}
        self.task = self.bar.add_task(self.name, total=self.total, completed=trainer.global_step, **fields)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Advance by a step."""
        ends_epoch = trainer.global_step % trainer.num_training_batches == 0
        if not ends_epoch and trainer.global_step % self.READ_EVERY:
            self.bar.update(self.task, completed=trainer.global_step)
            return
        seconds_a_step = (time.perf_counter() - self.begin) / (trainer.global_step - self.first_step)
        fields = {
            "epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            "loss": f"{outputs['loss'].item():.3f}",
            "speed": f"{self.batch_size / seconds_a_step:,.0f}",
        }
        self.bar.update(self.task, completed=trainer.global_step, **fields)
        if ends_epoch and not console.is_terminal:
            left = timedelta(seconds=round(seconds_a_step * (self.total - trainer.global_step)))
            said = "{epoch}  loss {loss}  {speed} images/s".format(**fields)
            console.print(f"{self.name}  epoch {said}  left {left}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()
