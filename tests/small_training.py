"""A pretraining of a second by the recipes themselves, for their tests; also a program of its own.

    python tests/small_training.py FOLDER '{"bern": {"name": "bern", "kill_at": 7}, ...}'
    torchrun --nproc-per-node 2 tests/small_training.py FOLDER '{...}'

Trains one after the other, each in a folder below, with words of `train`. Of each, every process leaves `end0.pt`,
`end1.pt`, ...: what came out and what it saw, or its error.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from recipes.checkpoints import CheckpointError, Checkpoints, Stopped
from recipes.data import ImageData, Images
from recipes.feeds import DataError
from recipes.models import SimCLR
from recipes.pretrain import TrainingOptions, pretrain
from recipes.training import Hardware, Schedule, TrainingError, leave, world
from small_images import CLASSES, batch
from torch import nn

from stochastic_bottleneck import StochasticBottleneck, StochConWrapper

EPOCHS, STEPS, BATCH = 3, 4, 8  # steps an epoch
TOTAL = EPOCHS * STEPS
IMAGES = STEPS * BATCH + 3  # a last, smaller batch is dropped
SCHEDULE = Schedule(EPOCHS, BATCH, "sgd", 0.1, 1e-3, 1)
OPTIONS = TrainingOptions(loss_temperature=0.5, temperature_end=0.25, seed=5)
CPU = Hardware("cpu", "32", compile=False, workers=0)
WIDTH, DIM = 8, 6
HERE = Path(__file__).parent


def images(count=IMAGES):
    """Images of three classes in turn, in memory."""
    part = Images(batch(count), torch.arange(count) % len(CLASSES))
    return ImageData(part, part, CLASSES, "small", "0")


def make(name="bern", norm="batch", symmetric=False, **options):
    """SimCLR or StochCon around the smallest of encoders, always with the same weights."""
    torch.manual_seed(3)
    layer = nn.BatchNorm2d(WIDTH) if norm == "batch" else nn.GroupNorm(2, WIDTH)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=4), layer, nn.ReLU(), *pool)
    encoder.num_features = WIDTH
    simclr = SimCLR(encoder, 4)
    if norm == "group":  # a head without a norm: over so few channels it would leave nothing but signs
        simclr.head = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 4))
    if name == "simclr":
        return simclr
    bottleneck = StochasticBottleneck(name, DIM, in_features=WIDTH, **options)
    return StochConWrapper.from_simclr(simclr, bottleneck=bottleneck, symmetric=symmetric)


class Before(L.Callback):
    """Calls `act(step)` before each step, counted from 1 over the whole run, and keeps what was taken."""

    def __init__(self, act=lambda step: None):
        self.act, self.taken = act, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.taken.append(trainer.global_step + 1)
        self.act(trainer.global_step + 1)


def at_step(number, act):
    """Something done before one step."""
    return Before(lambda step: act() if step == number else None)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def train(
    folder,
    name="bern",
    *,
    norm="batch",
    model=None,
    every_steps=None,
    epoch_ends=True,
    callbacks=(),
    micro_batch=None,
    kill_at=None,
    hardware=CPU,
    precision=None,
    compile=None,
    count=IMAGES,
    latent=None,
    strength=0.5,
    min_scale=0.2,
    **changes,
):
    """Pretrain; changes are of the schedule or the options."""
    schedule = SCHEDULE._replace(**{k: v for k, v in changes.items() if k in Schedule._fields})
    options = OPTIONS._replace(**{k: v for k, v in changes.items() if k in TrainingOptions._fields})
    assert changes.keys() <= {*Schedule._fields, *TrainingOptions._fields}
    given = {"precision": precision, "compile": compile}
    hardware = hardware._replace(**{k: v for k, v in given.items() if v is not None})
    model = model or make(name, norm, **(latent or {}))
    rules = [Checkpoints(folder, every_steps, None, epoch_ends=epoch_ends)]
    if kill_at is not None:
        rules.append(at_step(kill_at, kill))
    feed = images(count).pretraining(strength, min_scale)
    return pretrain(model, feed, schedule, options, hardware, folder, [*callbacks, *rules], micro_batch)


def environment():
    """For processes that import what tests do."""
    path = os.pathsep.join((str(HERE), str(HERE.parent / "examples"), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(launcher, folder, runs):
    """Start this file as a program of its own."""
    command = [*launcher, str(Path(__file__)), str(folder), json.dumps(runs)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait(child, seconds=240):
    """Exit code, and what a program wrote."""
    try:
        out, err = child.communicate(timeout=seconds)
    finally:
        child.kill()
    return child.returncode, out, err


class Seen(Before):
    """What a process sees of its steps: their numbers, its labels, and the first number its generators give."""

    def __init__(self, spoil_at=None):
        super().__init__()
        self.labels, self.noise, self.spoil_at = [], [], spoil_at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.labels += batch[1].tolist()
        with torch.random.fork_rng():
            self.noise.append(torch.rand(()).item())
        if self.taken[-1] == self.spoil_at and trainer.global_rank == 1:
            module.model.register_forward_hook(
                lambda m, views, output: output._replace(v=output.v * float("nan"))
            )


def main():
    torch.set_num_threads(1)
    for name, words in json.loads(sys.argv[2]).items():
        seen, folder = Seen(words.pop("spoil_at", None)), Path(sys.argv[1]) / name
        callbacks = [seen]
        if (step := words.pop("terminate_second_at", None)) and world().rank == 1:
            callbacks.append(at_step(step, terminate))
        try:
            end = train(folder, callbacks=callbacks, **words)
        except (TrainingError, DataError, CheckpointError) as error:
            left = {"error": f"{type(error).__name__}: {error}"}
        except Stopped as stopped:
            leave()
            return stopped.exit_code
        else:
            left = {"losses": end.losses, "weights": dict(end.model.state_dict())}
        left |= {"steps": seen.taken, "labels": seen.labels, "noise": seen.noise}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(left, folder / f"end{world().rank}.pt")
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
