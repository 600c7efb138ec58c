"""A few steps of a part of a run, to go by: how fast they are, and what they leave in memory."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipes.feeds import Feed
from recipes.training import Hardware, Schedule, TrainingError, configure

STEPS = 5  # measured after a warm-up; their median is taken
SMALLEST = 2  # images that batch norm in a head needs
READ = 32  # images to measure loading with; larger batches repeat them


class Stage(NamedTuple):
    """A part of a run to plan.

    Args:
        model: maps the views to an output. It is copied; its weights stay as they are. Parameters are counted by
            its children.
        feed: what it is trained on.
        schedule: how long and how.
        objective: maps output and labels to the loss; None for a frozen model, which only runs forward.
    """

    model: nn.Module
    feed: Feed
    schedule: Schedule
    objective: Callable[[Any, Tensor], Tensor] | None


class Trial:
    """A stage's steps on a copy of its model, on the device.

    Args:
        stage: of the run.
        hardware: to train on.
    """

    def __init__(self, stage: Stage, hardware: Hardware) -> None:
        self.stage, self.hardware, self.objective = stage, hardware, stage.objective
        self.model = copy.deepcopy(stage.model).to(hardware.device).to(memory_format=torch.channels_last)
        self.model.train(self.objective is not None)
        self.transform = copy.deepcopy(stage.feed.transform).to(hardware.device)
        self.optimizer: torch.optim.Optimizer | None = None
        if self.objective is not None:
            self.optimizer = configure(self.model, stage.schedule, STEPS + 2)["optimizer"]

    def read(self, batch_size: int) -> float:
        """Get a batch; returns the seconds that it took to read an image."""
        number = min(batch_size, READ)
        begin = time.perf_counter()
        dataset: Any = self.stage.feed.dataset
        images, labels = dataset.__getitems__([(i, 0) for i in range(number)])
        seconds = (time.perf_counter() - begin) / number
        repeats = -(-batch_size // number)
        self.images = torch.cat([images] * repeats)[:batch_size]
        self.labels = torch.cat([labels] * repeats)[:batch_size].to(self.hardware.device)
        return seconds

    def step(self) -> float:
        """One step on this batch, from images to changed weights; returns its seconds."""
        self._wait()
        begin = time.perf_counter()
        views = self.transform(self.images.to(self.hardware.device), seed=0)
        self.views = (views,) if isinstance(views, Tensor) else tuple(views)
        with self.conditions():
            loss = self.loss(self.model(*self.views), self.labels)
        if self.optimizer is not None and loss is not None:
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self._wait()
        return time.perf_counter() - begin

    def loss(self, output: Any, labels: Tensor) -> Tensor | None:
        """What is trained on; None for a frozen model."""
        return None if self.objective is None else self.objective(output, labels)

    @contextlib.contextmanager
    def conditions(self) -> Iterator[None]:
        """Precision of the run, and gradients where something is trained."""
        with torch.set_grad_enabled(self.objective is not None), self.hardware.autocast():
            yield

    def bytes_of_weights(self) -> int:
        """Size of parameters and buffers."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def bytes_of_gradients(self) -> int:
        """Size of the gradients that a step left."""
        return sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)

    def bytes_of_optimizer(self) -> int:
        """Size of what the optimizer keeps after a step."""
        states = self.optimizer.state.values() if self.optimizer else ()
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def _wait(self) -> None:
        if self.hardware.device == "cuda":
            torch.cuda.synchronize()


def measure(trial: Trial, largest: int, seconds: float) -> dict[str, Any]:
    """Time some steps.

    Args:
        trial: gets the batch that was measured.
        largest: images of the largest batch to try.
        seconds: to spend, about.
    """
    warm_up = _largest_that_fits if trial.hardware.device == "cuda" else _largest_in_time
    batch_size, reading, first = warm_up(trial, largest, seconds)
    if trial.hardware.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    number = min(STEPS, max(1, int(seconds / 2 / first)))
    median = statistics.median(trial.step() for _ in range(number))
    peak = torch.cuda.max_memory_allocated() if trial.hardware.device == "cuda" else None
    return {
        "batch_size": batch_size,
        "steps": number,
        "seconds_a_step": median,
        "seconds_an_image": median / batch_size,
        "seconds_to_read_an_image": reading,
        "peak_bytes": peak,
    }


def _largest_in_time(trial: Trial, largest: int, seconds: float) -> tuple[int, float, float]:
    """From two images up, so that a large model on a slow machine does not begin with an hour."""
    size, share = SMALLEST, seconds / 2 / STEPS
    while True:
        reading = trial.read(size)
        first = trial.step()  # may choose kernels and take memory
        if first < seconds / 2:
            first = trial.step()
        larger = min(largest, size * 2 ** int(math.log2(max(share / first, 1))))
        if larger <= size:
            return size, reading, first
        size = larger


def _largest_that_fits(trial: Trial, largest: int, seconds: float) -> tuple[int, float, float]:
    """From the whole batch down: what fits on the device is fast enough there."""
    size = largest
    while True:
        reading = trial.read(size)
        try:
            trial.step()  # chooses kernels and takes memory; the next one is like all that follow
            return size, reading, trial.step()
        except torch.cuda.OutOfMemoryError as error:
            if size <= SMALLEST:
                raise TrainingError(
                    f"a step of {size} images does not fit on the device ({error}); take a smaller --encoder, or "
                    "--precision bf16"
                ) from error
        size = max(SMALLEST, size // 2)
        torch.cuda.empty_cache()
