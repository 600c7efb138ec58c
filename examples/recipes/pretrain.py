"""Contrastive pretraining of one model with Lightning: checkpointed every epoch, resumable, seeded by step."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from safetensors.torch import load_file, save
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from recipes.augment import TwoViews
from recipes.files import write_atomically
from recipes.screen import RunProgress
from stochastic_bottleneck import InfoNCELoss, TemperatureSchedule

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notes on the hardware; ours say more

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
        view_size: side of the views in pixels; None for the images' own.
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
    view_size: int | None = None


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

    The order is seeded by the epoch, views and noise by the step: a run that was stopped and resumed takes the
    same steps as one that was not, and models that draw more or less noise see the same views.
    """

    def __init__(self, model: nn.Module, images: Tensor, options: TrainingOptions) -> None:
        super().__init__()
        self.model, self.images, self.options = model, images, options
        self.augment = TwoViews(
            options.view_size or images.shape[-1], options.jitter_strength, options.min_crop
        )
        self.loss = InfoNCELoss(options.loss_temperature, gather_distributed=True)
        self.steps_an_epoch = len(images) // options.batch_size
        self.losses: list[float] = []
        self.seconds = 0.0
        self.schedule: TemperatureSchedule | None = None
        if (
            options.temperature_end is not None
            and getattr(getattr(model, "bottleneck", None), "kind", "") == "bern"
        ):
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
        """Timm's optimizer without decay on biases and norms, linear warm-up and cosine decay by step."""
        o = self.options
        optimizer = create_optimizer_v2(self.model, o.optimizer, o.learning_rate, o.weight_decay)
        total = o.epochs * self.steps_an_epoch
        warmup = min(round(o.warmup_epochs * self.steps_an_epoch), total - 1)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=total - warmup,
            warmup_t=warmup,
            warmup_prefix=True,  # the cosine begins at the peak, where the warm-up ends
            warmup_lr_init=o.learning_rate / 100,
            t_in_epochs=False,
        )
        schedule.step_update(0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: Any) -> None:
        """Advance timm's schedule, which counts steps itself."""
        scheduler.step_update(self.global_step)

    def on_train_epoch_start(self) -> None:
        """Begin this epoch's account."""
        self._epoch_losses: list[Tensor] = []
        self._epoch_start = time.perf_counter()

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Two views, made on the device; seeds this step's augmentation and noise."""
        step = self.global_step * self.trainer.world_size + self.global_rank
        torch.manual_seed((self.options.seed << 32) + step)
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
            kept = "the checkpoint of the epoch before is kept; " if self.current_epoch else ""
            raise TrainingError(
                f"the loss became {losses[~losses.isfinite()][0].item()} in epoch {self.current_epoch + 1}; "
                f"{kept}try a lower --lr, or --precision 32"
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


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that a kill cannot halve; Lightning's own move from the system's temporary files can be a copy."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


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
    if not 2 <= options.batch_size <= len(images):
        raise TrainingError(
            f"--batch-size must be between 2 and the {len(images)} training images, got {options.batch_size}"
        )
    weights, log, last = folder / "weights.safetensors", folder / "loss.csv", folder / "last.ckpt"
    if weights.exists() and log.exists():
        _restore(model, weights, load_file)
        rows = list(csv.DictReader(log.read_text().splitlines()))
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
        callbacks=[checkpoint, RunProgress(name, options.batch_size)],
        plugins=WholeCheckpoints(),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    if last.exists():
        _restore(module, last, lambda path: torch.load(path, "cpu", weights_only=True)["state_dict"])
    _fit(trainer, module, last if last.exists() else None)
    model.eval()
    write_atomically(log, _loss_table(module))
    write_atomically(weights, save({k: v.contiguous() for k, v in model.cpu().state_dict().items()}))
    return Training(model, module.losses, module.seconds)


def _fit(trainer: L.Trainer, module: Pretraining, checkpoint: Path | None) -> None:
    try:
        with warnings.catch_warnings():
            # A deprecation inside Lightning; its advice on workers, which images in memory do not need; and its
            # notes on a folder that holds files, as that of a resumed run does, or that was moved.
            told = "LeafSpec|does not have many workers|exists and is not empty|dirpath has changed"
            warnings.filterwarnings("ignore", message=f".*({told})")
            trainer.fit(module, ckpt_path=checkpoint)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop


def _as_is(batch: Tensor) -> Tensor:
    return batch


def _restore(module: nn.Module, path: Path, read: Callable[[Path], dict[str, Tensor]]) -> None:
    try:
        module.load_state_dict(read(path))
    except Exception as error:
        raise TrainingError(
            f"{path} is damaged or of another model ({error}); delete it to train this model anew"
        ) from error


def _loss_table(module: Pretraining) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "loss", "seconds"])
    share = module.seconds / max(1, len(module.losses))
    writer.writerows([i, repr(loss), f"{share * i:.2f}"] for i, loss in enumerate(module.losses, 1))
    return table.getvalue().encode()
