"""One training step and its account, the same for all that is trained here.

All that is random is a function of seed, step and process, and never of hidden state, so that a run that was stopped
and goes on takes the very steps it would have taken: the order and crops of the images (`recipes.feeds`), the views
(drawn for the batch of all processes, each taking its part) and the noise of a latent (here).
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from recipes.checkpoints import Checkpoints
from recipes.draws import seeded
from recipes.feeds import TrainingData
from recipes.optimization import Schedule, configure

CHECK_EVERY = 100  # steps; a divergence costs no more than these, and a device is not kept waiting often


class TrainingError(Exception):
    """Training that cannot go on, with what to change."""


class SteppedModule(L.LightningModule):
    """What pretraining and classification share: seeds, optimizer, the account of losses, and its refusals.

    Before step s (counted from 0), the images become views by the data's transform, seeded by the data's seed and s
    for the batch of all processes; then torch's global generators are seeded by seed, s and rank, for the noise of
    latents and dropout. Models that draw more or less noise see the same views.

    A subclass defines `step`. What it changes after each step, beside the weights, belongs into `lr_scheduler_step`:
    Lightning calls `on_train_batch_end` of a module after the checkpoint of that step.

    Losses stay on the device, so that no step waits for it. They are looked at every 100 steps and before every
    checkpoint, together with all tensors that the checkpoint is to hold: a state that has diverged is never written,
    and the checkpoint before it stays.

    Args:
        model: what is trained, averaged and compiled.
        schedule: how.

    Attributes:
        losses: of every step so far that was looked at, as a mean over processes.
        seconds: from the first step to the newest, checkpoints and measurements between them included; over all
            resumptions.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule = model, schedule
        self.losses: list[float] = []
        self.seconds = 0.0
        self._recent: list[Tensor] = []
        self._begin: float | None = None

    # ---- a step ---------------------------------------------------------------------------------------------

    def step(self, views: Any, labels: Tensor) -> dict[str, Any]:
        """Output of one batch.

        Args:
            views: what the transform returns. Shape: (N, 3, H, W) each
            labels: Shape: (N,)

        Returns:
            "loss", a mean over this process's part of the batch, and what callbacks may want: "output", "accuracy".
        """
        raise NotImplementedError

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> dict[str, Any]:
        """Take down the loss of a step."""
        outputs = self.step(*batch)
        self._recent.append(outputs["loss"].detach())
        return outputs

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Any, Tensor]:
        """Make views on the device, and seed the noise."""
        (images, labels), step, seed = batch, self.global_step, self.data.seed
        rank, size = self.trainer.global_rank, self.trainer.world_size
        views = self.data.feed.transform(images, seed=_number("views", seed, step), rank=rank, world=size)
        torch.manual_seed(_number("noise", seed, step, rank))
        return views, labels

    def configure_optimizers(self) -> Any:
        """Of the model's parameters; see `configure`."""
        return configure(self.model, self.schedule, self.total_steps)

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: Any) -> None:
        """Advance what goes by steps: timm's schedule counts them itself."""
        scheduler.step_update(self.global_step)
        if self.global_step % CHECK_EVERY == 0:
            self.collect()

    @property
    def data(self) -> TrainingData:
        """What is trained on."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.schedule.epochs * self.data.steps_an_epoch

    # ---- the account ----------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Wait for the losses of the newest steps; every process calls this at the same step.

        Raises:
            TrainingError: on every process, when one of them is not finite.
        """
        if not self._recent:
            return
        recent = torch.stack(self._recent).float()
        self._recent = []
        for loss in self.trainer.strategy.reduce(recent, reduce_op="mean").tolist():
            if not math.isfinite(loss):
                self._refuse(f"the loss became {loss} at step {len(self.losses) + 1}")
            self.losses.append(loss)

    def on_train_start(self) -> None:
        """Begin from where the run stands, the same for every process."""
        step = self.trainer.strategy.broadcast(self.global_step)
        if step != self.global_step:
            raise TrainingError(
                f"the first process goes on from step {step}, this one of rank {self.global_rank} from step "
                f"{self.global_step}; keep the run's folder on a file system that all machines share"
            )
        self.data.feed.transform.to(self.device)
        self._begin = time.perf_counter()

    def on_train_end(self) -> None:
        """Close the account."""
        self.collect()
        self.seconds, self._begin = self._elapsed(), None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beside weights and optimizer, if all of it is sound.

        Raises:
            TrainingError: for a loss, weight, buffer or value of the optimizer that is not finite.
        """
        self.collect()
        spoiled = [
            *_not_finite(checkpoint["state_dict"]),
            *_not_finite(checkpoint["optimizer_states"], "optimizer"),
        ]
        if spoiled:
            more = f" and {len(spoiled) - 1} more" if len(spoiled) > 1 else ""
            self._refuse(f"{spoiled[0]}{more} became inf or nan by step {self.global_step}")
        checkpoint["run"] = {
            "schedule": self.schedule._asdict(),
            "losses": torch.tensor(self.losses),
            "seconds": self._elapsed(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up where the checkpoint was written.

        Raises:
            TrainingError: when it is of another schedule, which would not end where either of them does.
        """
        run, own = checkpoint["run"], self.schedule._asdict()
        changed = [f"{name}: {run['schedule'].get(name)} then, {own[name]} now" for name in own
                   if run["schedule"].get(name) != own[name]]  # fmt: skip
        if changed:
            raise TrainingError(
                f"the checkpoint is of another schedule ({'; '.join(changed)}); give the same, or another folder"
            )
        self.losses, self.seconds = run["losses"].tolist(), run["seconds"]

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._begin is None else time.perf_counter() - self._begin)

    def _refuse(self, what: str) -> None:
        """Say what diverged, what is left of the run, and what to change."""
        newest = next((c.newest for c in self.trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
        kept = f"{newest} is kept" if newest else "there is no checkpoint yet"
        wider = "" if self.trainer.precision == "32-true" else ", or --precision 32"
        raise TrainingError(
            f"{what}; {kept}; start anew with a lower learning rate than {self.schedule.learning_rate:g}, a longer "
            f"warm-up than {self.schedule.warmup_epochs:g} epochs{wider}"
        )


def _number(*parts: int | str) -> int:
    """A seed that is known from what it is for."""
    return seeded(*parts).initial_seed()


def _not_finite(state: Any, name: str = "") -> list[str]:
    """Names of floating point tensors that hold inf or nan, in nested containers."""
    if isinstance(state, Tensor):
        return [] if not state.is_floating_point() or bool(state.isfinite().all()) else [name]
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return [found for key, value in items for found in _not_finite(value, f"{name}.{key}".removeprefix("."))]
