"""A plan before the work: parameters, FLOPs, memory, steps and hours of every part of a run.

FLOPs and activations are counted on fake tensors, shapes without values, at the batch that a device will really hold;
that takes no arithmetic and no memory. Speed is measured: a few real steps on this device and on real images, of as
many images as some seconds and the device's memory allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from recipes import plan_table
from recipes.screen import console
from recipes.training import Hardware, TrainingError
from recipes.trial import SMALLEST, Stage, Trial, measure

__all__ = ["Stage", "make", "show"]


class Counted(NamedTuple):
    """What fake tensors tell about a step of one device.

    Args:
        flops: of matrix products and convolutions, forward and backward.
        activations: bytes of the views and of what is kept for the backward pass, each storage once, without weights.
    """

    flops: int
    activations: int


def make(
    models: Mapping[str, Mapping[str, Stage]], hardware: Hardware, world: int = 1, seconds: float = 4.0
) -> dict[str, Any]:
    """Plan a run.

    Args:
        models: for each model, the stages of its chain by their names. One that stands in several chains (the same
            object) is measured once.
        hardware: to train on.
        world: number of processes, each with a device like this one.
        seconds: to spend on measuring a stage, about; steps of two images may take longer.

    Returns:
        Plain numbers and lists: in "models" what `show` prints of each stage (bytes, FLOPs, steps, hours), and the
        "hours" of all together.

    Raises:
        TrainingError: for a batch that the images do not fill or that does not fit on the device.
    """
    plans: dict[int, dict[str, Any]] = {}
    chains: dict[str, dict[str, Any]] = {}
    for name, chain in models.items():
        chains[name] = {}
        for part, stage in chain.items():
            if id(stage) not in plans:
                plans[id(stage)] = _plan(stage, hardware, world, seconds)
            chains[name][part] = plans[id(stage)]
    return {
        "hardware": {**hardware._asdict(), "processes": world},
        "models": chains,
        "hours": sum(stage["hours"] for chain in chains.values() for stage in chain.values()),
    }


def show(plan: dict[str, Any]) -> None:
    """Print a plan: what each stage takes, what fills the memory, and what of it was measured."""
    for table in plan_table.terminal_tables(plan):
        console.print(table)
    for sentence in plan_table.sentences(plan):
        console.print(f"- {sentence}", highlight=False, markup=False)


def _plan(stage: Stage, hardware: Hardware, world: int, seconds: float) -> dict[str, Any]:
    dataset: Any = stage.feed.dataset
    images, schedule, trained = len(dataset), stage.schedule, stage.objective is not None
    on_a_device = schedule.batch_size // world
    if trained and not SMALLEST * world <= schedule.batch_size <= images:
        raise TrainingError(
            f"the batch size must be between {SMALLEST * world} and the {images} training images, got "
            f"{schedule.batch_size}"
        )
    with torch.random.fork_rng([torch.cuda.current_device()] if hardware.device == "cuda" else []):
        torch.manual_seed(0)
        trial = Trial(stage, hardware)
        measured = measure(trial, min(on_a_device, images), seconds)
    counted = count(trial, on_a_device)
    weights = trial.bytes_of_weights()
    memory = {
        "weights": weights,
        "gradients": trial.bytes_of_gradients(),
        "optimizer": trial.bytes_of_optimizer(),
        "average": weights if schedule.ema and trained else 0,
        "activations": counted.activations,
    }
    # Training drops the last, short batch of an epoch.
    steps = schedule.epochs * (math.floor if trained else math.ceil)(images / schedule.batch_size)
    speed = world * together(measured, hardware.workers, stage.feed.in_memory)
    return {
        "parameters": parameters(stage.model),
        "trained": trained,
        "images": images,
        "image_shape": list(trial.views[0].shape[1:]),
        "views": len(trial.views),
        "epochs": schedule.epochs,
        "batch_size": schedule.batch_size,
        "steps": steps,
        "flops_a_step": counted.flops * world,
        "flops_an_image": counted.flops / on_a_device,
        "memory": {**memory, "total": sum(memory.values())},
        "measured": measured,
        "images_a_second": speed,
        "hours": steps * schedule.batch_size / speed / 3600,
    }


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each child that has a name and some of them, and of all."""
    children = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    counts = {name: number for name, number in children.items() if number and not name.isdigit()}
    return {**counts, "total": sum(p.numel() for p in model.parameters())}


def together(measured: dict[str, Any], workers: int, in_memory: bool) -> float:
    """Images a second of one process: workers read while it computes; without them it does both in turn."""
    computing: float = measured["seconds_an_image"]
    reading: float = measured["seconds_to_read_an_image"]
    if workers and not in_memory:
        return 1 / max(computing, reading / workers)
    return 1 / (computing + reading)


# ---- counted --------------------------------------------------------------------------------------------------


def count(trial: Trial, batch_size: int) -> Counted:
    """FLOPs and activations of a step that is not done.

    Args:
        trial: after a step; its views say what the model is given.
        batch_size: images of the step.
    """
    mode = FakeTensorMode()
    state: dict[str, Tensor] = {name: mode.from_tensor(p) for name, p in trial.model.named_parameters()}
    state |= {name: mode.from_tensor(buffer) for name, buffer in trial.model.named_buffers()}
    weights = {tensor.untyped_storage()._cdata for tensor in state.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with mode, FlopCounterMode(display=False) as counter:
        like = {"dtype": trial.views[0].dtype, "device": trial.hardware.device}
        views = [torch.empty(batch_size, *view.shape[1:], **like) for view in trial.views]
        labels = torch.empty(batch_size, dtype=trial.labels.dtype, device=trial.hardware.device)
        for view in views:
            keep(view)
        with trial.conditions(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = trial.loss(functional_call(trial.model, state, tuple(views)), labels)
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
    return Counted(counter.get_total_flops(), sum(kept.values()))
