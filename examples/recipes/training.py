"""How everything here is trained: by Lightning, on one device or on many, to the end or until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.checkpoints import Checkpoints, StopOnSignal, WholeCheckpoints, newest_whole
from recipes.feeds import TrainingData
from recipes.optimization import Average, Schedule, configure, scaled_rate
from recipes.screen import warn
from recipes.stepped import SteppedModule, TrainingError

__all__ = [
    "Hardware",
    "Schedule",
    "SteppedModule",
    "TrainingError",
    "World",
    "configure",
    "fit",
    "leave",
    "scaled_rate",
    "wait_for_all",
    "world",
]

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notes on the hardware; ours say more

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# A deprecation inside Lightning; its advice on workers, which images in memory do not need; and its note that of
# module and data the module prepares the batches, as is meant.
TOLD = "LeafSpec|does not have many workers|have overridden .on_after_batch_transfer"


class Hardware(NamedTuple):
    """What a run is trained on.

    Args:
        device: "cpu" or "cuda"; one for each process.
        precision: "32", or "bf16" or "16" to train by autocast, with weights in float32 either way.
        compile: train through torch.compile.
        workers: processes that read images, for each one that trains.
    """

    device: str
    precision: str
    compile: bool
    workers: int

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision, for what runs without Lightning."""
        dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(self.precision)
        return torch.autocast(self.device, dtype) if dtype else contextlib.nullcontext()


class World(NamedTuple):
    """The processes of this run, which torchrun has started on one machine or on several.

    Args:
        rank: of this process, among all.
        size: number of processes.
        local_size: number of those on this machine, the same on each.
    """

    rank: int
    size: int
    local_size: int


def world() -> World:
    """Who this process is.

    Raises:
        TrainingError: for processes that something else than torchrun started, which would not know of one another.
    """
    if TorchElasticEnvironment.detect():
        return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1:
        raise TrainingError(
            f"srun has started {tasks} processes that do not know of one another; start one a machine, and the others "
            "by torchrun: srun --ntasks-per-node 1 torchrun --nnodes ... --nproc-per-node ..."
        )
    return World(0, 1, 1)


def wait_for_all() -> None:
    """Return when every process has come here; at once where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Take this process out of the group, when all have done their work.

    Left to the end of the interpreter, threads of the group can abort a process that has done everything right.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


# ---- a run ----------------------------------------------------------------------------------------------------


def fit(
    module: SteppedModule,
    data: TrainingData,
    folder: Path,
    hardware: Hardware,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train, or go on from the newest whole checkpoint in a folder, to the schedule's end.

    With several processes all of them call this, and the folder is one that they share. DistributedDataParallel
    averages their gradients; as each loss is a mean over equal parts of the batch, that is the gradient of the mean
    over the batch. Batch norms then take their statistics over all processes on CUDA. They cannot on CPUs, where
    torch has no kernel for that: each process normalises its own images.

    Gradients are never accumulated over several steps: under a contrastive loss that takes negatives away (see
    `recipes.pretrain.pretrain` for what gives the same memory and keeps them).

    On CUDA torch is asked for deterministic algorithms, and warns of an operation that has none: without them no run,
    resumed or not, ends as another.

    Args:
        module: is trained in place; with `schedule.ema` it ends with the average of its weights.
        data: to train on.
        folder: gets the checkpoints.
        hardware: to train on.
        callbacks: a `Checkpoints` among them says when checkpoints are written; otherwise every ten minutes and at
            the end of epochs.

    Raises:
        TrainingError: when the loss or the weights diverge, or a checkpoint does not fit.
        CheckpointError: when a checkpoint cannot be written, or none can be read.
        DataError: for images that cannot be read, or a batch that the processes cannot share.
        Stopped: when a signal asked for the end, after a checkpoint.
    """
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None) or Checkpoints(folder)
    average = None if module.schedule.ema is None else Average(module.schedule.ema)
    own = [callback for callback in (average, checkpoints, StopOnSignal(checkpoints)) if callback is not None]
    trainer = make_trainer(module, hardware, [*(c for c in callbacks if c is not checkpoints), *own])
    newest = newest_whole(folder)
    if newest is not None:
        _check_weights(module, newest)
    module.model.to(memory_format=torch.channels_last)
    if hardware.compile:
        module.model.compile()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f"(?s).*({TOLD})")
            trainer.fit(module, data, ckpt_path=newest)
    except SystemExit as stop:
        # What Lightning makes of Ctrl-C before training has begun, ignoring further ones.
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stop
    if average is not None and (weights := average.weights()) is not None:
        module.model.load_state_dict(weights)


def make_trainer(module: SteppedModule, hardware: Hardware, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Lightning's Trainer for this process and all others of the run; see `fit`.

    Raises:
        TrainingError: when there are more processes on this machine than GPUs.
    """
    here = world()
    several, cuda = here.size > 1, hardware.device == "cuda"
    if cuda and torch.cuda.device_count() < here.local_size:
        raise TrainingError(
            f"{here.local_size} processes on this machine need a GPU each, found {torch.cuda.device_count()}; give "
            "torchrun that number as --nproc-per-node"
        )
    shares = any(isinstance(m, _BatchNorm) and m.training for m in module.modules())
    if shares and several and not cuda and here.rank == 0:
        images = module.schedule.batch_size // here.size
        warn(
            f"batch norm: each of the {here.size} processes normalises its own {images} images, as torch cannot share "
            "statistics between CPUs; --norm group does not need it"
        )
    return L.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu"}[hardware.device],
        devices=here.local_size,
        num_nodes=here.size // here.local_size,
        strategy="ddp" if several else "auto",
        sync_batchnorm=several and cuda,
        precision=PRECISIONS[hardware.precision],
        deterministic="warn" if cuda else None,
        max_epochs=module.schedule.epochs,
        callbacks=list(callbacks),
        # Not Lightning's own choice, which takes the tasks of a SLURM job for processes of this run.
        plugins=[WholeCheckpoints(), TorchElasticEnvironment() if several else LightningEnvironment()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def _check_weights(module: nn.Module, path: Path) -> None:
    """Refuse a checkpoint of another model with more than Lightning's list of names."""
    try:
        module.load_state_dict(torch.load(path, "cpu", weights_only=True, mmap=True)["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{path} is of another model ({error}); delete {path.parent} to train this model anew"
        ) from error
