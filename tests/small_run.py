"""A pretraining run of a second, for the tests of what watches one; also a program of its own.

    python tests/small_run.py FOLDER [--knn] [--kill-before STEP]

Its steps are seeded by their number, as those of the recipes are. At the end every process leaves what it saw; `start`
runs the program, in one process or in two.
"""

import argparse
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from recipes.checkpoints import Checkpoints, WholeCheckpoints, newest_whole
from recipes.data import ImageData, Images
from recipes.feeds import TrainingData
from recipes.models import SimCLROutput
from recipes.online_knn import OnlineKNN
from recipes.screen import RunProgress
from recipes.track import Track
from recipes.training import leave
from small_images import CLASSES, batch
from torch import nn

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper

STEPS, EPOCHS, BATCH = 5, 3, 8  # steps an epoch
TOTAL = STEPS * EPOCHS
IMAGES = STEPS * BATCH + 2
DIM = 6


def images(train=IMAGES, test=12):
    """A data set whose three classes the colours tell badly, so that neighbours are right and wrong."""
    every = batch(train + test)
    labels = torch.arange(train + test) // 2 % len(CLASSES)
    return ImageData(
        Images(every[:train], labels[:train]), Images(every[train:], labels[train:]), CLASSES, "small", "0"
    )


def encoder(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class SimCLR(nn.Module):
    """Without a latent."""

    def __init__(self, norm):
        super().__init__()
        self.encoder, self.head = encoder(norm), nn.Linear(8, 4)

    def forward(self, x, x_prime):
        return SimCLROutput(*(self.head(self.encoder(view)) for view in (x, x_prime)))


def make_model(kind, norm=nn.BatchNorm2d, **options):
    torch.manual_seed(3)
    if kind == "simclr":
        return SimCLR(norm)
    bottleneck = StochasticBottleneck(kind, DIM, in_features=8, location_std=None)
    return StochConWrapper(encoder(norm), bottleneck=bottleneck, head=nn.Linear(8, 4), **options)


class Small(L.LightningModule):
    """InfoNCE of two views; `seen` keeps every step's outputs on this process."""

    def __init__(self, kind="bern", before_step=None, spoil=None, **options):
        super().__init__()
        self.model, self.loss = make_model(kind, **options), InfoNCELoss(gather_distributed=True)
        self.before_step, self.spoil = before_step, spoil
        self.seen = {}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        if self.before_step is not None:
            self.before_step(self.global_step + 1)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        torch.manual_seed(1000 * rank + self.global_step)
        views = self.trainer.datamodule.feed.transform(batch[0], self.global_step, rank, world)
        output = self.model(*views)
        loss = self.loss(output[0], output[1])
        if self.global_step + 1 == self.spoil:
            loss = loss * float("nan")
        if not hasattr(output, "posterior"):
            self.seen[self.global_step + 1] = {"loss": loss.detach()}
            return {"loss": loss, "output": output}
        output = type(output)(*(_detached(field) for field in output))
        self.seen[self.global_step + 1] = {
            "loss": loss.detach(),
            "z": output.z,
            "posterior": tuple(output.posterior),
        }
        return {"loss": loss, "output": output}


def _detached(field):
    return type(field)(*(x.detach() for x in field)) if isinstance(field, tuple) else field.detach()


def fit(module, folder, callbacks=(), *, data=None, epochs=EPOCHS, every_steps=None, plugins=(), **options):
    """Train, or go on from the newest checkpoint in the folder, which is written every so many steps."""
    feed = (data or images()).pretraining(0.5, 0.5)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        max_epochs=epochs,
        callbacks=[*callbacks, Checkpoints(folder, every_steps, None, epoch_ends=False)],
        plugins=[WholeCheckpoints(), *plugins],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    with warnings.catch_warnings():
        told = "LeafSpec|does not have many workers|barrier.. without"
        warnings.filterwarnings("ignore", message=f"(?s).*({told})")
        trainer.fit(module, TrainingData(feed, BATCH, seed=1), ckpt_path=newest_whole(folder))
    return trainer


def start(folder, *arguments, processes=1):
    """Run this file as a program of its own; the finished process, and what every process of it saw."""
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parent / "examples"), os.environ.get("PYTHONPATH", "")))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), __file__, str(folder), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done, [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("rank*.pt"))]


def watch(folder, rank, *, knn=None, before_step=None):
    """One run with everything that watches it; what this process saw."""
    module, track = Small(before_step=before_step), Track(folder, every=2)
    callbacks = [track, RunProgress("bern", BATCH)]
    if knn is not None:
        measured = OnlineKNN(images(), every_epochs=2, bank=20, queries=10)
        if knn == "fails" and rank == 0:
            measured.measure = lambda trainer, module: 1 / 0
        callbacks.append(measured)
    try:
        fit(module, folder, callbacks, every_steps=4)
    except (ZeroDivisionError, RuntimeError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"seen": module.seen, "rows": track.rows, "weights": module.model.state_dict()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--knn", action="store_true", help="three runs: without it, with it, and with one that fails"
    )
    parser.add_argument("--kill-before", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))

    def before_step(step):
        if step == args.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    if args.knn:
        choices = {"without": None, "with": "works", "fails": "fails"}
        saw = {name: watch(args.folder / name, rank, knn=knn) for name, knn in choices.items()}
    else:
        saw = watch(args.folder, rank, before_step=before_step)
    torch.save(saw, args.folder / f"rank{rank}.pt")
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
