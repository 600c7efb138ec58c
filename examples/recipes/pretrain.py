"""Contrastive pretraining of one model: its loss, its temperature by step, batches larger than the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from recipes.branches import drawn_again, without_noise
from recipes.feeds import Feed, TrainingData
from recipes.finished import keep, kept
from recipes.training import Hardware, Schedule, SteppedModule, TrainingError, fit
from stochastic_bottleneck import InfoNCELoss, StochConWrapper, TemperatureSchedule, cached_backward

__all__ = ["Pretraining", "Training", "TrainingError", "TrainingOptions", "pretrain"]


class TrainingOptions(NamedTuple):
    """What contrastive training adds to a schedule; the same for every model that is compared.

    Args:
        loss_temperature: of InfoNCE. SimCLR: 0.5 for CIFAR-10 (arXiv 2002.05709, appendix B.9), 0.1 for ImageNet.
        temperature_end: bern: Concrete temperature after the last step, reached exponentially; None to keep it.
        kl_weight: of the latent's KL divergence from its prior, in nats an image, where there is a latent. The
            poster of StochCon does not say whether its loss has that term; our choice is none.
        seed: of the order, views and noise.
        samples: of the latent an image and step; the loss is their mean.
        noiseless_epochs: at the start, in which the latent's noise is left out; its relaxation stays.
    """

    loss_temperature: float = 0.5
    temperature_end: float | None = None
    kl_weight: float = 0.0
    seed: int = 0
    samples: int = 1
    noiseless_epochs: float = 0.0


class Training(NamedTuple):
    """What a training run leaves.

    Args:
        model: with its trained weights, in evaluation mode, on the CPU.
        losses: of every step, in nats, as a mean over processes.
        seconds: from the first step to the last, over all resumptions.
    """

    model: nn.Module
    losses: list[float]
    seconds: float


class Pretraining(SteppedModule):
    """InfoNCE between two augmented views, for SimCLR and StochCon alike.

    The loss contrasts each image with those of all processes. Each process's loss is a mean over its own rows, and
    gathering hands every process's gradient in these rows back to it; so the average that DistributedDataParallel
    takes is the gradient of the mean over the whole batch.

    With `micro_batch`, activations of that many images a process are in memory at a time, by a gradient cache
    (`stochastic_bottleneck.cached_backward`): the gradient is that of the whole batch, with all its negatives, for one
    more forward pass. What the model computes over its batch it then computes over a micro batch: batch norm takes
    its statistics there, and a `micro_batch` of two images is two images to it. Lightning leaves the backward passes
    to this module then; the scale of 16-bit floats goes into the loss, before its gradient in the outputs is taken,
    and gradients are exchanged between processes once, with the last micro batch.

    Args:
        model: maps two views to an output with `v` and `v_prime`, and where there is a latent `posterior`.
        schedule: how long and how.
        options: the loss.
        micro_batch: largest number of images whose activations are kept; None for the whole batch.

    Raises:
        ValueError: for an option out of its range.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, options: TrainingOptions, micro_batch: int | None = None
    ) -> None:
        super().__init__(model, schedule)
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        if not 0 <= options.kl_weight < float("inf"):
            raise ValueError(f"kl_weight must be finite and not below 0, got {options.kl_weight}")
        if options.samples < 1:
            raise ValueError(f"samples must be at least 1, got {options.samples}")
        if micro_batch is not None and (options.samples > 1 or options.noiseless_epochs):
            raise ValueError(
                f"micro_batch={micro_batch} goes with samples=1 and noiseless_epochs=0 alone, got {options.samples} "
                f"and {options.noiseless_epochs}"
            )
        self.options, self.micro_batch = options, micro_batch
        self.loss = InfoNCELoss(options.loss_temperature, gather_distributed=True)
        self.annealing: TemperatureSchedule | None = None
        self.automatic_optimization = micro_batch is None

    # ---- a step ---------------------------------------------------------------------------------------------

    def step(self, views: tuple[Tensor, Tensor], labels: Tensor) -> dict[str, Any]:
        """Loss of one batch and what the model returned for it; with micro batches also the optimizer's step."""
        if self.micro_batch is not None:
            return self._step_by_micro_batches(views, self.micro_batch)
        output = without_noise(self.model, *views) if self.noiseless else self.model(*views)
        return {"loss": self.objective(output), "output": _detached(output)}

    @property
    def noiseless(self) -> bool:
        """Whether the next step leaves out the latent's noise."""
        epochs = self.options.noiseless_epochs
        return (
            epochs > 0
            and isinstance(self.model, StochConWrapper)
            and self.global_step < epochs * self.data.steps_an_epoch
        )

    def objective(self, output: Any) -> Tensor:
        """InfoNCE, as a mean over the latent's samples, and the weighted KL divergence. Shape: ()."""
        loss: Tensor = self.loss(output.v, output.v_prime)
        if not hasattr(output, "posterior"):
            return loss
        if self.options.samples > 1 and not self.noiseless:
            further = [drawn_again(self.model, output) for _ in range(self.options.samples - 1)]
            loss = (loss + sum(self.loss(output.v, v_prime) for v_prime in further)) / self.options.samples
        if self.options.kl_weight:
            loss = loss + self.options.kl_weight * output.posterior.kl().mean()
        return loss

    def _step_by_micro_batches(self, views: tuple[Tensor, Tensor], micro_batch: int) -> dict[str, Any]:
        optimizer: Any = self.optimizers()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        whole: dict[str, Any] = {}
        left = -(-len(views[0]) // micro_batch)

        def objective(output: Any) -> Tensor:
            loss = self.objective(output)
            whole.update(loss=loss.detach(), output=_detached(output))
            return loss if scaler is None else scaler.scale(loss)

        def backward(value: Tensor) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.trainer.strategy.pre_backward(value)  # has DDP exchange the gradients of this one
            value.backward()

        optimizer.zero_grad()
        cached_backward(self.model, objective, *views, chunk_size=micro_batch, backward=backward)
        optimizer.step()  # by Lightning, which takes the scale out again
        schedule: Any = self.lr_schedulers()
        self.lr_scheduler_step(schedule, None)
        return whole

    # ---- temperature ----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Plan the temperature over the steps of the run; before a checkpoint is loaded."""
        bottleneck = getattr(self.model, "bottleneck", None)
        if self.options.temperature_end is not None and getattr(bottleneck, "kind", "") == "bern":
            end, steps = self.options.temperature_end, self.total_steps
            self.annealing = TemperatureSchedule(bottleneck, end, steps)  # type: ignore[arg-type]

    def lr_scheduler_step(self, scheduler: CosineLRScheduler, metric: Any) -> None:
        """Anneal the Concrete temperature beside the learning rate."""
        if self.annealing is not None:
            self.annealing.step()
        super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the annealing stands."""
        super().on_save_checkpoint(checkpoint)
        if self.annealing is not None:
            checkpoint["annealing"] = self.annealing.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the annealing."""
        super().on_load_checkpoint(checkpoint)
        if self.annealing is not None:
            self.annealing.load_state_dict(checkpoint["annealing"])


def pretrain(
    model: nn.Module,
    feed: Feed,
    schedule: Schedule,
    options: TrainingOptions,
    hardware: Hardware,
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    micro_batch: int | None = None,
) -> Training:
    """Train a model, or finish or load what an earlier run left in `folder`.

    Args:
        model: maps two views to an output with `v` and `v_prime`; trained in place.
        feed: of a data set's `pretraining`.
        schedule: how long and how.
        options: the loss.
        hardware: to train on.
        folder: gets checkpoints and, at the end, `weights.safetensors` and `loss.csv`. With several processes, one
            that they share.
        callbacks: see `recipes.training.fit`.
        micro_batch: images a process whose activations are in memory at a time; see `Pretraining`. None for its whole
            part of the batch. Lightning's `accumulate_grad_batches` is no substitute and stays 1: sums over small
            batches take negatives away from every image.

    Raises:
        TrainingError: when the loss diverges, or what is in the folder does not fit.
        CheckpointError: when a checkpoint cannot be written, or none can be read.
        DataError: for images that cannot be read, or a batch that the processes cannot share.
        Stopped: when a signal asked for the end, after a checkpoint.
        ValueError: for an option out of its range.
    """
    account = kept(folder, model)
    if account is not None:
        return Training(model.eval(), *account)
    data = TrainingData(feed, schedule.batch_size, options.seed, hardware.workers)
    module = Pretraining(model, schedule, options, micro_batch)
    fit(module, data, folder, hardware, callbacks)
    if module.annealing is not None:  # an average of temperatures would be none of them
        module.annealing.bottleneck.set_temperature(module.annealing.end)
    return Training(model.eval(), *keep(folder, model.cpu(), module))


def _detached(output: Any) -> Any:
    """Nested tuples of tensors without their graph."""
    return tree_map_only(Tensor, torch.Tensor.detach, output)
