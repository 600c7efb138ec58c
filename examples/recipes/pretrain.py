"""Contrastive pretraining of one model with Lightning: checkpointed every epoch, resumable, seeded by epoch."""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from recipes.augment import TwoViews
from stochastic_bottleneck import InfoNCELoss, TemperatureSchedule

LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class TrainingError(Exception):
    """Training that cannot go on, with what to change."""


class TrainingOptions(NamedTuple):
    """How a model is trained; the same for every model that is compared.

    Args:
        epochs: passes over the training images.
        batch_size: images a step, two views of each.
        optimizer: a name that timm knows.
        learning_rate: peak rate.
        weight_decay: on weights; biases and norms are left out.
        warmup_epochs: linear warm-up, then cosine decay to zero.
        loss_temperature: of InfoNCE.
        jitter_strength: of the colour augmentation.
        min_crop: smallest share of the image that a crop keeps.
        temperature_end: Concrete temperature at the last step; None to keep it.
        precision: "32", "bf16" or "16".
        device: "cpu" or "cuda".
        compile: train through torch.compile.
        seed: of weights, order, augmentation and noise.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    loss_temperature: float
    jitter_strength: float
    min_crop: float
    temperature_end: float | None
    precision: str
    device: str
    compile: bool
    seed: int


class Training(NamedTuple):
    """What a training run leaves.

    Args:
        model: with its trained weights, in evaluation mode.
        losses: InfoNCE of every step, in nats.
        seconds: time spent in training steps, over all resumptions.
    """

    model: nn.Module
    losses: list[float]
    seconds: float


class ImageBatches(Dataset[Tensor]):
    """Images in memory, taken a whole batch at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """One batch. Shape: (N, 3, H, W)."""
        return self.images[indices]


class Pretraining(L.LightningModule):
    """InfoNCE between two augmented views, for SimCLR and StochCon alike.

    Order, augmentation and noise are seeded by the epoch, so a run that was stopped and resumed takes the same
    steps as one that was not.
    """

    def __init__(self, model: nn.Module, images: Tensor, options: TrainingOptions) -> None:
        super().__init__()
        self.model, self.images, self.options = model, images, options
        self.augment = TwoViews(images.shape[-1], options.jitter_strength, options.min_crop)
        self.loss = InfoNCELoss(options.loss_temperature, gather_distributed=True)
        self.steps_an_epoch = len(images) // options.batch_size
        self.losses: list[float] = []
        self.seconds = 0.0
        self.schedule: TemperatureSchedule | None = None
        if options.temperature_end is not None and getattr(getattr(model, "bottleneck", None), "kind", "") == "bern":
            total = options.epochs * self.steps_an_epoch
            self.schedule = TemperatureSchedule(model.bottleneck, options.temperature_end, total)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Shuffled batches of uint8 images; the last, smaller one is dropped."""
        data = ImageBatches(self.images)
        order = DistributedSampler(
            data, self.trainer.world_size, self.trainer.global_rank, seed=self.options.seed, drop_last=True
        )
        return DataLoader(data, self.options.batch_size, sampler=order, drop_last=True, collate_fn=_as_is)

    def configure_optimizers(self) -> Any:
        """timm's optimizer without decay on biases and norms, linear warm-up and cosine decay by step."""
        o = self.options
        optimizer = create_optimizer_v2(self.model, o.optimizer, o.learning_rate, o.weight_decay)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=max(1, o.epochs * self.steps_an_epoch),
            warmup_t=max(1, round(o.warmup_epochs * self.steps_an_epoch)),
            warmup_lr_init=o.learning_rate / 100,
            t_in_epochs=False,
        )
        schedule.step_update(0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: Any) -> None:
        """Advance timm's schedule, which counts steps itself."""
        scheduler.step_update(self.global_step)

    def on_train_epoch_start(self) -> None:
        """Seed this epoch's augmentation and noise."""
        torch.manual_seed(self.options.seed * 1_000_003 + self.current_epoch * 1009 + self.global_rank)
        self._epoch_losses: list[Tensor] = []
        self._epoch_start = time.perf_counter()

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Two views, made on the device."""
        return self.augment(batch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """InfoNCE of one batch."""
        output = self.model(*batch)
        loss: Tensor = self.loss(output.v, output.v_prime)
        self._epoch_losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        """Anneal the Concrete temperature."""
        if self.schedule is not None:
            self.schedule.step()

    def on_train_epoch_end(self) -> None:
        """Keep the losses, and stop before a diverged state replaces the last good checkpoint."""
        losses = torch.stack(self._epoch_losses).float()
        if not losses.isfinite().all():
            raise TrainingError(
                f"the loss became {losses[~losses.isfinite()][0].item()} in epoch {self.current_epoch + 1}; the "
                "checkpoint of the epoch before is kept; try a lower --lr, or --precision 32"
            )
        self.losses += losses.tolist()
        self.seconds += time.perf_counter() - self._epoch_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beside weights and optimizer."""
        checkpoint["run"] = {
            "losses": self.losses,
            "seconds": self.seconds,
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up where the checkpoint was written."""
        run = checkpoint["run"]
        self.losses, self.seconds = run["losses"], run["seconds"]
        if self.schedule is not None:
            self.schedule.load_state_dict(run["schedule"])


class RunProgress(L.Callback):
    """One bar over the whole run, with the loss, the speed and the time left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the bar from where the run stands."""
        self.total_epochs = trainer.max_epochs
        fields = {"epoch": f"{trainer.current_epoch}/{self.total_epochs}", "loss": "-", "speed": "-"}
        total = trainer.max_epochs * trainer.num_training_batches
        self.task = self.bar.add_task(self.name, total=total, completed=trainer.global_step, **fields)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Pretraining, *args: Any) -> None:
        """Advance by a step."""
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, module: Pretraining) -> None:
        """Show the epoch's loss; read once an epoch, so that a GPU is not held up."""
        loss = torch.stack(module._epoch_losses).float().mean().item()
        speed = module.steps_an_epoch * module.options.batch_size / (time.perf_counter() - module._epoch_start)
        epoch = f"{trainer.current_epoch + 1}/{self.total_epochs}"
        self.bar.update(self.task, epoch=epoch, loss=f"{loss:.3f}", speed=f"{speed:,.0f}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()


def pretrain(model: nn.Module, images: Tensor, options: TrainingOptions, folder: Path, name: str) -> Training:
    """Train a model, or finish or load what an earlier run left in `folder`.

    Args:
        model: maps two views to an output with `v` and `v_prime`.
        images: uint8. Shape: (N, 3, H, W)
        options: how to train.
        folder: gets `last.ckpt` after every epoch and, at the end, `weights.safetensors` and `loss.csv`.
        name: shown beside the progress bar.

    Raises:
        TrainingError: when a batch is larger than the data, the loss diverges, or a checkpoint does not fit.
    """
    if options.batch_size > len(images):
        raise TrainingError(f"--batch-size {options.batch_size} is more than the {len(images)} training images")
    weights, log, last = folder / "weights.safetensors", folder / "loss.csv", folder / "last.ckpt"
    if weights.exists() and log.exists():
        model.load_state_dict(load_file(weights))
        rows = list(csv.DictReader(log.open()))
        losses, seconds = [float(row["loss"]) for row in rows], float(rows[-1]["seconds"]) if rows else 0.0
        return Training(model.eval(), losses, seconds)
    module = Pretraining(model.to(memory_format=torch.channels_last), images, options)
    if options.compile:
        model.compile()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = ModelCheckpoint(folder, "last", save_top_k=1, every_n_epochs=1, enable_version_counter=False)
    trainer = L.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu"}[options.device],
        devices=1,
        precision=LIGHTNING_PRECISION[options.precision],
        max_epochs=options.epochs,
        callbacks=[checkpoint, RunProgress(name)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=last if _readable(last) else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    model.eval()
    write_atomically(log, _loss_table(module))
    write_atomically(weights, save({k: v.contiguous() for k, v in model.cpu().state_dict().items()}))
    return Training(model, module.losses, module.seconds)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run that is killed, meets the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _as_is(batch: Tensor) -> Tensor:
    return batch


def _readable(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{checkpoint} is damaged ({error}); delete it to train this model anew") from error
    return True


def _loss_table(module: Pretraining) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "loss", "seconds"])
    share = module.seconds / max(1, len(module.losses))
    writer.writerows([i, f"{loss:.6f}", f"{share * i:.2f}"] for i, loss in enumerate(module.losses, 1))
    return table.getvalue().encode()
