"""What a run shows on the terminal: bars with the time left there, lines where output goes to a file."""

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


def warn(text: str) -> None:
    """Say what the reader should know and training goes on without."""
    console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True, highlight=False)


def passing_bar(items: Iterable[T], description: str) -> Iterator[T]:
    """Go through items with a progress bar that leaves nothing behind."""
    yield from track(
        items, escape(description), console=console, transient=True, disable=not console.is_terminal
    )


class RunProgress(L.Callback):
    """Progress of one training: epoch, loss, nearest neighbours, images a second and the time left.

    On a terminal a bar; elsewhere a line an epoch, and within long epochs a line every few minutes. Of several
    processes rank 0 shows it: the loss of its own part of the batch, the speed of all. A resumed run starts where its
    checkpoint stands, within an epoch too. Speed and time left are those of this process since it started, pauses for
    measurements and checkpoints included.

    Args:
        name: of the model, and of what is done with it.
        batch_size: images a step, of all processes together.
    """

    READ_EVERY = 20  # steps between readings of the loss, so that a GPU is not held up
    LINE_EVERY = 300.0  # seconds between lines within an epoch

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size
        self.bar: Progress | None = None
        self.loss = self.neighbours = self.speed = self.left = ""
        self.owes_line = False

    def note(self, step: int, values: dict[str, float]) -> None:
        """Show the accuracy of nearest neighbours from now on."""
        if "knn" in values:
            self.neighbours = f"kNN {100 * values['knn']:.1f} %"
            if self.bar is not None:
                self.bar.update(self.task, said=self._said())

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin from where the run stands."""
        if not trainer.is_global_zero:
            return
        self.first_step = self.step = trainer.global_step
        self.begin = self.line_at = time.perf_counter()
        self.steps_an_epoch, self.epochs = int(trainer.num_training_batches), trainer.max_epochs or 0
        self.total = self.epochs * self.steps_an_epoch
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(
            escape(self.name), total=self.total, completed=self.step, said=self._said()
        )
        self.bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Print the line of the epoch before, as all that belongs to it is measured by now."""
        self._print_owed()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by a step."""
        if self.bar is None:
            return
        self.step = trainer.global_step
        ends_epoch = self.step % self.steps_an_epoch == 0
        line_is_due = not console.is_terminal and time.perf_counter() - self.line_at >= self.LINE_EVERY
        if not (ends_epoch or line_is_due or self.step % self.READ_EVERY == 0):
            self.bar.update(self.task, completed=self.step)
            return
        self.loss = f"loss {outputs['loss'].item():.3f}"  # waits for the device
        seconds_a_step = (time.perf_counter() - self.begin) / max(1, self.step - self.first_step)
        self.speed = f"{self.batch_size / seconds_a_step:,.0f} images/s"
        self.left = f"left {timedelta(seconds=round(seconds_a_step * (self.total - self.step)))}"
        self.bar.update(self.task, completed=self.step, said=self._said())
        self.owes_line = ends_epoch or line_is_due
        if not ends_epoch:
            self._print_owed()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the finished bar, or the last line, on the screen."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _said(self) -> str:
        epoch, within = divmod(self.step, self.steps_an_epoch)
        begun = within > 0 or self.step == self.first_step
        where = f"epoch {min(epoch + begun, self.epochs)}/{self.epochs}"
        if within and not console.is_terminal:
            where += f", step {within:,}/{self.steps_an_epoch:,}"
        return "  ".join(filter(None, (where, self.loss, self.neighbours, self.speed)))

    def _print_owed(self) -> None:
        if self.owes_line and not console.is_terminal:
            line = f"{self.name}  {self._said()}  {self.left}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.line_at = time.perf_counter()
        self.owes_line = False

    def _stop(self) -> None:
        self._print_owed()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
