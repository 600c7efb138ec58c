"""What a run looks like from outside while it trains: metrics.csv and TensorBoard, exact over kills and resumptions."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim import Optimizer

from recipes.files import write_atomically
from recipes.readings import Row, gradient_norm, read
from recipes.screen import warn

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
    "temperature",
    "share_of_ones",
    "bit_entropy",
    "posterior_variance",
    "latent_variance",
    "kl",
    "accuracy",
    "knn",
)
"""Order of the columns of metrics.csv; those that a run never fills are left out."""
WRITE_EVERY = 30.0  # seconds between writings of metrics.csv, which is written whole each time


@runtime_checkable
class Notebook(Protocol):
    """A callback that takes down what another one has measured."""

    def note(self, step: int, values: Row) -> None:
        """Take down values of a step, counted from 1."""


def tell(trainer: L.Trainer, values: Row) -> None:
    """Let every `Notebook` among the callbacks take down values of the step just taken, whatever their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Notebook):
            callback.note(trainer.global_step, values)


class Track(L.Callback):
    """A row of numbers every so many steps and at the last step of every epoch.

    Every row holds `step` and `epoch`, both counted from 1, and of that step:

    - `loss`: as the module returns it, the mean over processes.
    - `learning_rate`, `gradient_norm`: of the optimizer's step; the Euclidean norm over all parameters, after
      Lightning has unscaled the gradients of mixed precision and DDP has averaged them.
    - `images_per_second`: of all processes together since the row before, checkpoints included. The time between
      epochs does not count, nor does the first step after a start, which waits for loaders and compilers.
    - `accuracy`: on the training batch, where the module returns it.
    - `knn`: what `OnlineKNN` measures, at the last step of its epochs.

    And of a latent, over the global batch (both ways round of a symmetric model count as images):

    - `temperature`: of the Concrete distribution.
    - `share_of_ones`, `bit_entropy`: of the posterior's mode; the entropy in bits, as a mean over bits. These are
      augmented images, and few: the evaluation's numbers are the ones to report.
    - `posterior_variance`: gauss: mean of the posterior's variances.
    - `latent_variance`: of the sampled z over the batch, as a mean over dimensions.
    - `kl`: from the prior, in nats an image.

    Tensors are read at these steps alone, by one reduction over the processes and one copy to the host, so that a
    GPU is not held up in between. The rows are part of the checkpoint, from which a resumed run takes them: none is
    there twice, none is missing. Rank 0 writes the files, which only show the rows: one that cannot be written is
    told and does not end the training.

    `training_step` returns {"loss": ..., "output": ...}, the latter with `z` and `posterior` where there is a latent.
    Lightning calls its checkpoint callbacks last, as it has to be; place one of another kind after this.

    Args:
        folder: gets `metrics.csv` and `tensorboard/`.
        every: steps between rows.

    Raises:
        ValueError: unless `every` is at least 1.
        ModuleNotFoundError: without tensorboard.
    """

    def __init__(self, folder: Path, every: int = 20) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        _summary_writer()  # before anything is spent
        self.folder, self.every = folder, every
        self.rows: list[Row] = []
        self.events: Any = None
        self.writes = False
        # Learning rate and gradient norm of a step that gets a row, until it does.
        self._before: tuple[float, Tensor] | None = None

    # ---- rows -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the steps before."""
        self.rows = state_dict["rows"]

    def note(self, step: int, values: Row) -> None:
        """Add values to the row of the newest step, which is made where there is none."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step, "epoch": (step - 1) // self.steps_an_epoch + 1})
        self.rows[-1].update(values)

        def add(events: Any) -> None:
            for name, value in values.items():
                events.add_scalar(name, value, step)

        self._to_events(add)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradient's norm, which stays on the device, and the rate of the step that follows."""
        step = trainer.global_step + 1
        if step % self.every == 0 or step % self.steps_an_epoch == 0:
            self._before = max(group["lr"] for group in optimizer.param_groups), gradient_norm(module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make and show the row."""
        step = trainer.global_step
        if self._before is None:
            if self._since is None:
                self._begin_timing(step)
            return
        (rate, norm), self._before = self._before, None
        values = {"learning_rate": rate, **read(trainer, outputs, norm)}  # waits for the device
        if self._since not in (None, step):
            images = extract_batch_size(batch) * trainer.world_size * (step - self._since)
            values["images_per_second"] = images / (time.perf_counter() - self._begin)
        self._begin_timing(step)
        self.note(step, values)
        if self.writes and time.perf_counter() - self._written >= WRITE_EVERY:
            self._write()

    # ---- beginnings and ends --------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the files, without what a killed run had shown after its last checkpoint."""
        self.steps_an_epoch = int(trainer.num_training_batches)
        self._begin_timing(None)
        self.writes = trainer.is_global_zero
        if self.writes:
            self._write()
            self._begin_events(self.folder / "tensorboard", trainer.global_step + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave out the time between epochs."""
        if self._since is not None:
            self._begin_timing(trainer.global_step)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Show what the checkpoint is about to hold, as a run that is resumed from it does not show it again."""
        self._show()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show everything."""
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Show everything; a resumed run takes back what its checkpoint does not hold."""
        self._close()

    def _begin_timing(self, step: int | None) -> None:
        self._since, self._begin = step, time.perf_counter()

    # ---- files ----------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self.writes:
            self._write()
            self._to_events(lambda events: events.flush())

    def _close(self) -> None:
        self._show()
        self._to_events(lambda events: events.close())
        self.events, self.writes = None, False

    def _write(self) -> None:
        self._written = time.perf_counter()
        path = self.folder / "metrics.csv"
        try:
            write_atomically(path, table(self.rows))
        except OSError as error:
            warn(f"cannot write {path} ({error}); training goes on, and its checkpoints hold all rows")

    def _begin_events(self, folder: Path, first_step: int) -> None:
        """Go on in a new file, which tells TensorBoard to forget steps from the first one on in the files before."""
        # Files are read in the order of the second in their names, so that this one needs a second of its own.
        named = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        newest = max((int(second) for second in named if second.isdigit()), default=0)
        time.sleep(min(1.0, max(0.0, newest + 1 - time.time())))
        try:
            self.events = _summary_writer()(str(folder), purge_step=first_step)
        except OSError as error:
            self._end_events(error)

    def _to_events(self, act: Callable[[Any], None]) -> None:
        if self.events is not None:
            try:
                act(self.events)
            except OSError as error:  # of the thread that writes
                self._end_events(error)

    def _end_events(self, error: OSError) -> None:
        self.events = None
        warn(
            f"cannot write to {self.folder / 'tensorboard'} ({error}); TensorBoard shows no more of this run"
        )


def table(rows: list[Row]) -> bytes:
    """Rows as CSV; a cell is empty where its row lacks the column."""
    names = {"step", "epoch"}.union(*rows)
    columns = [*(name for name in COLUMNS if name in names), *sorted(names.difference(COLUMNS))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:  # also torch's own, for a tensorboard that is too old
        raise ModuleNotFoundError(
            f'logging needs tensorboard ({error}); install it with pip install "stochastic-bottleneck[examples]"'
        ) from error
    return SummaryWriter
