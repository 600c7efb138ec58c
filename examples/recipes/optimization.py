"""How weights change: the optimizer, its learning rate by step, and a moving average of what comes out."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

MOMENTUM = 0.9  # SimCLR (arXiv 2002.05709), appendices B.1 and B.5 to B.9; for optimizers that have one
TIMM_NAMES = {"sgd": "momentum"}  # timm's "sgd" has Nesterov's momentum; lightly's has not
RATE_BATCH = 256  # images that a base rate is for: arXiv 1706.02677, section 5.1; SimCLR's README


class Schedule(NamedTuple):
    """How long and how something is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images a step, in all processes together.
        optimizer: "sgd", with plain momentum; "nesterov", with Nesterov's; or any name that timm knows.
        learning_rate: peak, for this batch size; see `scaled_rate`.
        weight_decay: on weights; biases and norms are left out.
        warmup_epochs: linear warm-up to the peak, then cosine decay to zero.
        ema: decay of a moving average of the weights, which is then what is kept and evaluated; None for none.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    ema: float | None = None


def scaled_rate(base: float, batch_size: int, rule: Literal["linear", "sqrt"] = "linear") -> float:
    """Peak learning rate for a batch size.

    "linear": base x batch / 256, of Goyal et al. (arXiv 1706.02677), also SimCLR's default. "sqrt": base x
    sqrt(batch / 256), for smaller batches and many epochs; the 0.075 x sqrt(batch) of SimCLR's appendix B.1 is base
    1.2.

    Args:
        base: rate for 256 images a step.
        batch_size: images a step, in all processes together.
        rule: how the rate follows the batch.

    Raises:
        ValueError: for another rule, or a batch below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if rule not in ("linear", "sqrt"):
        raise ValueError(f'rule must be "linear" or "sqrt", got {rule!r}')
    share = batch_size / RATE_BATCH
    return base * (share if rule == "linear" else share**0.5)


def configure(model: nn.Module, schedule: Schedule, steps: int) -> dict[str, Any]:
    """Optimizer and learning rate of a model's trainable parameters, in Lightning's form.

    Biases and the parameters of norms (all of one dimension) are left out of weight decay. LARS and LAMB do not adapt
    their rate either, and do adapt that of every other parameter, with or without a decay: timm's own rule is to
    adapt where there is a decay, so that with none LARS would be plain SGD at a rate made for LARS.

    Timm's LARS follows the paper (arXiv 1708.03888): trust coefficient 0.001, the norm of the decay term added to
    that of the gradient. SimCLR's code takes the norm of the sum, and keeps the learning rate inside the momentum.

    Args:
        model: whose parameters are trained, those that require a gradient.
        schedule: how.
        steps: of the whole run.

    Returns:
        "optimizer" and "lr_scheduler"; the latter counts steps itself, see `SteppedModule.lr_scheduler_step`.

    Raises:
        ValueError: for a model without trainable parameters, or an optimizer that timm does not know.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if not trainable:
        raise ValueError("model has no parameter that requires a gradient; unfreeze some")
    optimizer = create_optimizer_v2(
        [group for group in groups if group["params"]],
        TIMM_NAMES.get(schedule.optimizer, schedule.optimizer),
        schedule.learning_rate,
        momentum=MOMENTUM,
    )
    for group in optimizer.param_groups:
        if "always_adapt" in group:  # LARS and LAMB
            group["always_adapt"] = group["params"][0].ndim > 1
    warmup = min(round(schedule.warmup_epochs / schedule.epochs * steps), steps - 1)
    rate = CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_prefix=True,  # the cosine begins at the peak, where the warm-up ends
        warmup_lr_init=schedule.learning_rate / 100,  # our choice; SimCLR begins at 0, a step without effect
        t_in_epochs=False,
    )
    rate.step_update(0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class Average(L.Callback):
    """Moving average of a module's `model`, parameters and buffers alike, by timm's `ModelEmaV3`.

    Its decay rises from 0 to the given one as timm's warm-up has it, so that the first weights, which are random, do
    not linger. Checkpoints hold the weights being trained, and the average beside them.

    Args:
        decay: share of the average that stays at each step, once it has warmed up; below 1.

    Raises:
        ValueError: for a decay outside 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.average: ModelEmaV3 | None = None
        self.resumed: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return {"weights": self.weights()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up an average, once the model is on its device."""
        self.resumed = state_dict["weights"]

    def weights(self) -> dict[str, Tensor] | None:
        """State dict of the average; None before the first step."""
        return self.resumed if self.average is None else self.average.module.state_dict()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin at the first weights, or where the checkpoint stands."""
        average = ModelEmaV3(module.model, self.decay, use_warmup=True)  # type: ignore[arg-type]
        if self.resumed is not None:
            average.module.load_state_dict(self.resumed)
        self.average, self.resumed = average, None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow a step; before the checkpoint of that step, as Lightning calls `Checkpoint` callbacks last."""
        assert self.average is not None  # made when training began
        self.average.update(module.model, trainer.global_step)
