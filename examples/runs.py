"""Shared by both full runs: folder, Trainer, table of results and exit codes."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import provenance
import timm
import torch
import tyro
from checkpointing import AtomicCheckpointIO, ExactCheckpoint, TrainingError, newest_checkpoint
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import TorchSyncBatchNorm
from provenance import DEVICE, Stopped
from safetensors.torch import save_model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from stochastic_bottleneck import StochConWrapper
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import ForestCurve, knn_accuracy, linear_probe, retrieval_scores
from stochastic_bottleneck.hub import HubModel
from stochastic_bottleneck.plots import f1_against_bits

MAY_CHANGE = {"data", "models", "out", "resume", "dry_run", "logger"}  # between a run and its continuation
NAMES = {
    "pixels": "raw pixels", "untrained": "untrained encoder", "simclr": "SimCLR", "penalized": "SimCLR + penalty",
    "bern": "StochCon Bern", "gauss": "StochCon Gauss", "supervised": "Supervised", "fitted": "frozen + Bern",
    "itq": "h, ITQ", "random_sign": "h, random signs", "pca_sign": "h, PCA signs", "pq": "h, PQ",
    "opq": "h, OPQ",
}  # fmt: skip
LOGGERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}
WORLD, LOCAL_WORLD = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))  # set by torchrun
LOG_EVERY = 20  # steps
MAIN_PROCESS = os.environ.get("RANK", "0") == "0"


class SyncBatchNorm(TorchSyncBatchNorm):
    """Batch norms over all processes, of timm too, whose activations torch's conversion would drop."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert all batch norms; the parameters stay the same objects."""
        norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        model = timm.layers.convert_sync_batchnorm(model)
        self.originals = {model.get_submodule(name): norm for name, norm in norms.items()}
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original norms back, with the statistics of the training."""
        for parent in [*model.modules()]:
            for name, child in parent.named_children():
                if original := self.originals.get(child):
                    original.load_state_dict(child.state_dict())
                    setattr(parent, name, original)
        return model


class Run:
    """A run's folder and its `results.json`, which is written after every stage.

    Args:
        folder: of the run.
        settings: dataclass with `resume` and `dry_run`; a folder of other settings is refused.
        data: description of the images; "fingerprint" must be that of the earlier run.
    """

    def __init__(self, folder: Path, settings: Any, data: dict[str, Any]) -> None:
        self.folder, self.settings, self.path = folder, settings, folder / "results.json"
        self.results: dict[str, Any] = {"baselines": {}, "models": {}}
        wanted = json.loads(json.dumps(asdict(settings), default=str))
        may_change = MAY_CHANGE if data.get("sharded") else {*MAY_CHANGE, "workers"}  # workers share the shards
        self.identity = {k: v for k, v in wanted.items() if k not in may_change}
        self.identity |= {"images": data["fingerprint"], "processes": WORLD}
        if settings.dry_run or not MAIN_PROCESS:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(f"another process is running in {folder}; wait for it, or give another --out") from None
        if not settings.resume and (self.path.exists() or any(folder.glob("*/checkpoints/*"))):
            raise TrainingError(f"{folder} holds an earlier run; add --resume to continue it, or give another --out")
        if self.path.exists():
            self.results = json.loads(self.path.read_text())
            ExactCheckpoint(folder, self.identity).load_state_dict(self.results["identity"])
        self.results |= {"settings": wanted, "identity": self.identity, "data": data, **provenance.provenance()}

    def trainer(self, name: str, epochs: int, *callbacks: L.Callback) -> L.Trainer:
        """Lightning's Trainer on one process, or on torchrun's; logs and exact checkpoints are in folder `name`."""
        s, folder = self.settings, self.folder / name
        title = f"{self.folder.name} {name}" if s.logger == "wandb" else "logs"  # a title in wandb, elsewhere a folder
        every: list[L.Callback] = [RichProgressBar(refresh_rate=LOG_EVERY), LearningRateMonitor(), *callbacks]
        if s.ema:
            every.append(EMAWeightAveraging(decay=s.ema))
        if not s.dry_run:
            every.append(ExactCheckpoint(folder / "checkpoints", self.identity))
        return L.Trainer(
            max_epochs=epochs,
            precision=s.precision,
            callbacks=every,
            logger=LOGGERS[s.logger](save_dir=folder, name=title),
            log_every_n_steps=LOG_EVERY,
            devices=LOCAL_WORLD,
            num_nodes=WORLD // LOCAL_WORLD,
            strategy="ddp" if WORLD > 1 else "auto",
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(), *([SyncBatchNorm()] if torch.cuda.is_available() else [])],
            fast_dev_run=s.dry_run,
            enable_checkpointing=not s.dry_run,
        )

    def fit(self, name: str, trainer: L.Trainer, module: L.LightningModule, loader: Any) -> None:
        """Train, from the newest checkpoint if there is one; a dry run counts one step."""
        if self.settings.dry_run:
            with FlopCounterMode(display=False) as flops:
                trainer.fit(module, loader)
            memory = torch.cuda.max_memory_allocated() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{name}, a step: {flops.get_total_flops():.3g} FLOPs, peak memory {memory / 2**30:.2f} GiB")
            return
        checkpoints = self.folder / name / "checkpoints"
        newest = newest_checkpoint(checkpoints)
        if newest is None and MAIN_PROCESS:  # other settings are then refused before weights of other shapes are read
            provenance.write(self.path, json.dumps(self.results, indent=1))
        trainer.fit(module, loader, ckpt_path=newest, weights_only=True)
        if self.settings.logger == "wandb" and MAIN_PROCESS:
            trainer.logger.experiment.finish()  # the next model's metrics would go to the same run
        if self.settings.ema:  # Lightning does not give the average to a training that had ended before
            state = torch.load(newest_checkpoint(checkpoints), map_location="cpu", weights_only=True)
            module.load_state_dict(state["state_dict"])

    def save_model(self, name: str, model: nn.Module, config: dict[str, Any], *, small_images: bool = False) -> None:
        """Save StochCon for `HubModel.from_pretrained`, with preprocessing by timm's keys, or SimCLR's weights."""
        if self.settings.dry_run or not MAIN_PROCESS:
            return
        if isinstance(model, StochConWrapper):
            encoder, options = encoder_spec(self.settings.encoder)
            spec = {"encoder_name": f"timm:{encoder}", "encoder_options": options, "small_images": small_images}
            HubModel.from_wrapper(model, pretrained_cfg=config, **spec).save_pretrained(self.folder / name)
        else:
            save_model(model, self.folder / name / "model.safetensors")

    def stage(self, section: str, name: str, key: str, measure: Callable[..., dict[str, Any]], *args: Any) -> None:
        """Add what `measure(*args)` returns to the results of a model or baseline, unless `key` is there already."""
        found = self.results[section].setdefault(name, {})
        if key not in found:
            found |= measure(*args)
            provenance.write(self.path, json.dumps(self.results, indent=1))

    def report(self, title: str) -> None:
        """Print the table of results, and add its rows to `results.json`."""
        data, seed = self.results["data"], self.settings.seed
        title = f"{data['name']}: {title} on {data['train']:,} images, seed {seed}, tested on {data['test']:,}."
        table, curves = [], {}
        for name, found in (self.results["baselines"] | self.results["models"]).items():
            tuned = found.get("finetuned", {}).get("accuracy")
            row, codes = NAMES[name], found.get("codes", {}).items()
            rows = [(row, part, found[part]) for part in ("h", "z", "logits") if part in found] or [(row, "h", {})]
            rows += [(f"{row} {NAMES[code]}", part, r) for code, parts in codes for part, r in parts.items()]
            for label, part, r in rows:
                numbers = r.get("probe"), r.get("knn"), r.get("map"), tuned if (label, part) == (row, "h") else None
                numbers += r.get("forest", {}).get("f1", [None])[-1], r.get("bits", {}).get("share_of_ones")
                cells = ["-" if x is None else f"{100 * x:.1f}" for x in numbers]
                row = {"model": label, "features": part, "width": str(r.get("dim", "-"))}
                row |= zip(("probe %", "kNN %", "mAP %", "fine-tuned %", "forest F1 %", "ones %"), cells, strict=True)
                table.append(row | {"compression": f"{r['compression']:.0f}x" if "compression" in r else "-"})
                if "forest" in r:
                    curves[label] = ForestCurve(**r["forest"])
        self.results |= {"title": title, "rows": table}
        provenance.write(self.path, json.dumps(self.results, indent=1))
        print(f"\n{title}\n\n{provenance.markdown(table)}")
        if curves:
            f1_against_bits(curves).figure.savefig(self.folder / "f1_against_bits.png", dpi=150)


def encoder_spec(name: str) -> tuple[str, dict[str, Any]]:
    """A timm model and its options; "small", made for CPUs, is half as wide as ResNet-10."""
    small = {"channels": (32, 64, 128, 256), "stem_type": "deep", "stem_width": 16, "avg_down": False}
    if name != "small" and not timm.is_model(name):
        raise TrainingError(f'--encoder must be "small" or a model of timm\'s, such as resnet50, got {name!r}')
    return ("resnet10t", {"num_classes": 0, **small}) if name == "small" else (name, {"num_classes": 0})


def scores(features: Sequence[Any], labels: Sequence[Any], metric: str, probe: Sequence[float]) -> dict[str, Any]:
    """Linear probe with the best of some inverse penalties, nearest neighbours and mAP@1000 of frozen features.

    Of training images, which are searched, and test images; 0/1 bits for the metric "hamming", floats for "cosine".
    """
    (x, x_test), (y, y_test) = features, labels
    found = {"dim": x.shape[1], "knn": knn_accuracy(x, y, x_test, y_test, k=20, metric=metric, device=DEVICE)}
    found["probe"] = linear_probe(x, y, x_test, y_test, regularisations=probe, device=DEVICE).accuracy
    if metric == "hamming":
        x, x_test = pack_bits(x), pack_bits(x_test)
    return found | {"map": retrieval_scores(x_test, y_test, x, y, r=1000, k=1, metric=metric, device=DEVICE).map}


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> dict[str, Any]:
    """Linear warm-up from 1 % of the rate, then cosine decay to 0, by step, in Lightning's form."""

    def factor(step: int) -> float:
        if step < warmup:
            return 0.01 + 0.99 * step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def parse_settings(presets: dict[str, tuple[str, Any]]) -> Any:
    """Settings of the command line; those that do not go together are refused before any image is read."""
    s = tyro.extras.overridable_config_cli(presets, config=[tyro.conf.FlagCreatePairsOff])
    if (s.deterministic or s.codes) and not s.symmetric:
        raise TrainingError(f"--deterministic {s.deterministic} and --codes {s.codes} need --symmetric, or 0 for both")
    return s


def exit_code(script: Callable[[], None]) -> int:
    """Run a script; 2 for a user error, 143 or 130 after SIGTERM or Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(signal.Signals(number))

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return provenance.exit_code(script)
