"""A training run of a few milliseconds a step, to kill, stop and resume; also a program of its own.

    python tests/stand_in_training.py FOLDER [--every-steps N] [--every-minutes M] [--workers N] [--pause SECONDS]

It leaves `log.txt`, a line a step that was begun: process, rank, step, batch. At the end it leaves `end.pt`.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from recipes.batches import Loader, Order
from recipes.checkpoints import (
    CheckpointError,
    Checkpoints,
    StopOnSignal,
    Stopped,
    WholeCheckpoints,
    newest_whole,
)
from recipes.training import leave
from torch import nn
from torch.utils.data import Dataset

STEPS, EPOCHS = 7, 4  # steps an epoch
TOTAL = STEPS * EPOCHS
BATCH = 4  # rows a step, of all processes


class Rows(Dataset):
    """Rows that depend on the epoch and their place in it."""

    def __getitems__(self, places):
        seeds = [1000 * epoch + index for index, epoch in places]
        rows = [torch.randn(5, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows), torch.zeros(len(rows), dtype=torch.int64)


class Tiny(L.LightningModule):
    """Seeded by the step, as the recipes' modules are; `seen` and `hooks` tell what Lightning did."""

    def __init__(self, log=None, pause=0.0, workers=0, before_step=None, optimizer="SGD"):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.log_file, self.pause, self.workers, self.before_step = log, pause, workers, before_step
        self.optimizer_name = optimizer
        self.losses, self.seen, self.hooks = [], [], []

    def train_dataloader(self):
        trainer = self.trainer
        rank, world = trainer.global_rank, trainer.world_size
        order = Order(STEPS * BATCH, BATCH, 0, rank, world, lambda: trainer.global_step)
        return Loader(Rows(), order, self.workers, pin_memory=False)

    def configure_optimizers(self):
        options = {"momentum": 0.9} if self.optimizer_name == "SGD" else {}
        return getattr(torch.optim, self.optimizer_name)(self.parameters(), lr=0.05, **options)

    def training_step(self, batch, batch_idx):
        if self.log_file is not None:
            with self.log_file.open("a") as file:
                file.write(f"{os.getpid()} {self.global_rank} {self.global_step} {batch_idx}\n")
        self.seen.append((self.global_step, batch_idx))
        if self.before_step is not None:
            self.before_step(self.global_step)
        time.sleep(self.pause)
        torch.manual_seed(self.global_step)
        loss = self.net(batch[0]).square().mean()
        self.losses.append(loss.detach().item())
        return loss

    def on_train_epoch_start(self):
        self.hooks.append(("start", self.current_epoch))

    def on_train_epoch_end(self):
        self.hooks.append(("end", self.current_epoch))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["run"] = {"losses": self.losses}

    def on_load_checkpoint(self, checkpoint):
        self.losses = list(checkpoint["run"]["losses"])


def fit(module, folder, resume="newest", callbacks=(), epochs=EPOCHS, **rules):
    """Train, or go on from the newest whole checkpoint, or from `resume`."""
    checkpoints = Checkpoints(folder, **{"every_minutes": None, **rules})
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        max_epochs=epochs,
        callbacks=[*callbacks, checkpoints, StopOnSignal(checkpoints)],
        plugins=WholeCheckpoints(),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        told = "LeafSpec|does not have many workers|barrier.. without"
        warnings.filterwarnings("ignore", message=f"(?s).*({told})")
        trainer.fit(module, ckpt_path=newest_whole(folder) if resume == "newest" else resume)
    return trainer


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every-steps", type=int)
    parser.add_argument("--every-minutes", type=float)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--limit", type=int, help="bytes that a file may have")
    args = parser.parse_args(arguments)
    if args.limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (args.limit, args.limit))
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    module = Tiny(args.folder / "log.txt", args.pause, args.workers)
    rules = {"every_steps": args.every_steps, "every_minutes": args.every_minutes}
    try:
        trainer = fit(module, args.folder, **rules)
    except Stopped as stopped:
        print(stopped, flush=True)
        return stopped.exit_code
    except CheckpointError as error:
        print(error, flush=True)
        return 2
    if trainer.is_global_zero:
        torch.save({"weights": module.net.state_dict(), "losses": module.losses}, args.folder / "end.pt")
    return 0


def child(script, arguments, output):
    """A script's `main` in a process that was forked from one that had it imported; see test_survival.py."""
    multiprocessing.set_start_method("fork", force=True)  # workers of the loader need not import it all again
    os.setsid()  # a group of its own, which can be signalled as a whole
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.exit(importlib.import_module(script).main(arguments))


if __name__ == "__main__":
    code = main()
    leave()
    sys.exit(code)
