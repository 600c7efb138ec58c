"""A full run: the parts of each model's chain, each kept when it is done, and the report they make together."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import date
from typing import Any

from torch import nn

from recipes import classify, plan, report
from recipes.feeds import LabelledImages
from recipes.files import write_json
from recipes.grid import save_grid
from recipes.models import load_model, save_model
from recipes.results import by_epoch, gather
from recipes.screen import console
from recipes.settings import (
    callbacks,
    hardware,
    planned_stages,
    pretrain_model,
    pretraining_feed,
    schedule,
    start_encoder,
    start_model,
    width_of,
)
from recipes.stages import RunError, Stages, check_folder
from recipes.training import world
from stochastic_bottleneck import StochConWrapper

Judge = Callable[[nn.Module], dict[str, Any]]
Classify = Callable[..., classify.Classified]
SCHEDULE_OF = {"probe": "probe_", "finetune": "finetune_", "train": "supervised_"}
"""Prefix of the arguments that a part's schedule has."""
FREE_TO_CHANGE = (
    "model", "data", "test_data", "out", "resume", "dry_run", "reason", "workers", "checkpoint_steps",
    "checkpoint_minutes", "track_every", "knn_every",
)  # fmt: skip
"""Arguments that change no number, or are told by the data's fingerprint. A resumed run must share all others."""


class Run:
    """One run in its folder. Each method is a part of a chain; one that was done before gives its result again.

    With several processes all of them make the same calls.

    Args:
        args: of the command line, complete.
        command: that the run was started by.
        load: reads the data.
        baselines: number of them, for the headings.

    Raises:
        RunError: for a folder that holds another run, or a batch larger than the data.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        command: str,
        load: Callable[[argparse.Namespace], LabelledImages],
        baselines: int = 0,
    ) -> None:
        self.args, self.command, self.begin = args, command, time.perf_counter()
        self.hardware = hardware(args)
        self.config = {name: value for name, value in vars(args).items() if name not in FREE_TO_CHANGE}
        announce(args)
        first = world().rank == 0
        if first and not args.dry_run:  # the others may come when config.json is written
            check_folder(args.out, self.config, args.resume)
        self.data = load(args)
        train, test = len(self.data.train_labels), len(self.data.test_labels)
        console.print(f"{self.data.name}: {train:,} training, {test:,} test images", markup=False)
        check_batches(args, train)
        if first and not args.dry_run and not (args.out / "config.json").exists():
            write_json(args.out / "config.json", self.config)
        chain = 2 + ("probe_epochs" in args) + (args.finetune_epochs > 0)
        total = baselines + sum(1 if name == "supervised" else chain for name in args.model)
        self.stages = Stages(args.out, self.data.fingerprint, total, world().rank)
        self.at_hand: tuple[str, nn.Module] | None = None  # name of a pretrained model, and the model
        self.written: list[str] = []  # files of the report

    def plan(self) -> dict[str, Any]:
        """What this run would take, counted and measured in a few steps; it is kept for the report."""
        if world().rank:
            return {}
        told = plan.make(planned_stages(self.args, self.data), self.hardware, world().size)
        plan.show(told)
        if self.args.micro_batch:
            console.print(
                f"- With --micro-batch {self.args.micro_batch} activations of so many images are held in pretraining, "
                "not of the whole batch, and its FLOPs grow by a third.",
                highlight=False,
            )
        write_json(
            self.args.out / "plan.json",
            {"config": self.config, "environment": report.environment(), "plan": told},
        )
        return told

    # ---- parts ------------------------------------------------------------------------------------------------

    def views(self) -> None:
        """Draw a few images beside the views that pretraining makes of them."""
        path = self.args.out / "views.png"
        if world().rank == 0 and not path.exists():
            save_grid(
                pretraining_feed(self.args, self.data),
                path,
                seed=self.args.seed,
                originals=self.data.evaluation("train"),
                classes=self.data.classes,
            )

    def baseline(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Judge something that is not trained."""
        self.stages.run(name, "frozen", work)

    def pretrain(self, name: str) -> None:
        """Pretrain a model."""

        def work() -> dict[str, Any]:
            training = pretrain_model(
                name, self.args, self.data, self.hardware, self.stages.place(name, "pretrain")
            )
            self.at_hand = name, training.model
            if isinstance(training.model, StochConWrapper) and world().rank == 0:
                args, folder = self.args, self.stages.folder / name
                save_model(training.model, args.encoder, self.data.size, args.norm, folder)
            return {
                "training_seconds": training.seconds,
                "epoch_losses": by_epoch(training.losses, self.args.epochs),
            }

        self.stages.run(name, "pretrain", work, together=True)

    def probe(self, name: str) -> None:
        """Train linear probes on the frozen features and latent, all in one pass over the images."""

        def work() -> dict[str, Any]:
            model = self._model(name)
            represent = {"h": model.encoder}
            if isinstance(model, StochConWrapper):
                represent["z"] = model.feature_extractor("z")
            widths = {"h": width_of(model), "z": self.args.dim}
            found = self._train(classify.probe, represent, widths, name, "probe")
            return {
                key: {
                    "probe": found.accuracy[key],
                    "probe_top5": found.top5[key],
                    "probe_f1": found.f1[key],
                }
                for key in represent
            }

        self.stages.run(name, "probe", work, together=True)

    def frozen(self, name: str, judge: Judge) -> None:
        """Evaluate a pretrained model as it is."""
        self.stages.run(name, "frozen", lambda: judge(self._model(name)))

    def finetune(self, name: str) -> None:
        """Train a pretrained encoder on with labels; head and bottleneck are dropped, the classifier is on h."""

        def work() -> dict[str, Any]:
            model = self._model(name)
            return self._classify(classify.fine_tune, model.encoder, width_of(model), name, "finetune")

        if self.args.finetune_epochs:
            self.stages.run(name, "finetune", work, together=True)

    def supervise(self) -> None:
        """Train the encoder with labels from the start."""

        def work() -> dict[str, Any]:
            encoder = start_encoder(self.args, self.data)
            return self._classify(classify.supervise, encoder, encoder.num_features, "supervised", "train")

        self.stages.run("supervised", "train", work, together=True)

    def _classify(
        self, train: Classify, encoder: nn.Module, width: int, name: str, part: str
    ) -> dict[str, Any]:
        found = self._train(train, encoder, width, name, part)
        return {
            "accuracy": found.accuracy["h"],
            "f1": found.f1["h"],
            "top5": found.top5["h"],
            "seconds": found.seconds,
            "epoch_losses": by_epoch(found.losses, schedule(self.args, SCHEDULE_OF[part]).epochs),
        }

    def _train(self, train: Classify, model: Any, width: Any, name: str, part: str) -> classify.Classified:
        """Train on labels, the same way for all parts."""
        planned, folder = schedule(self.args, SCHEDULE_OF[part]), self.stages.place(name, part)
        return train(
            model,
            width,
            self.data,
            planned,
            self.hardware,
            folder,
            seed=self.args.seed,
            min_scale=self.args.labelled_min_crop,
            callbacks=callbacks(self.args, folder, name, part, planned.batch_size),
        )

    def _model(self, name: str) -> nn.Module:
        """A pretrained model, read where it is not at hand."""
        if self.at_hand is None or self.at_hand[0] != name:
            path = self.stages.place(name, "pretrain") / "weights.safetensors"
            if not path.exists():
                raise RunError(f"{path} is missing; delete {path.parent}.json too, to pretrain {name} anew")
            model = start_model(name, self.args, self.data)
            load_model(model, path)
            self.at_hand = name, model.eval()
        return self.at_hand[1]

    # ---- report -----------------------------------------------------------------------------------------------

    def report(self) -> None:
        """Write what is done so far, also by earlier calls, where a part is new."""
        if world().rank == 0 and self.stages.news:
            self._write()

    def show(self) -> dict[str, Any]:
        """Print the table, after making sure that the report is written; returns the results."""
        results = self.results()
        if world().rank == 0:
            files = self._write() if self.stages.news or not self.written else self.written
            console.print(report.terminal_table(results))
            for sentence in report.against_baselines(results):
                console.print(sentence, highlight=False)
            said = f"{self.args.out}{os.sep}: {', '.join(files)}"
            console.print(said, highlight=False, soft_wrap=True, markup=False)
        return results

    def _write(self) -> list[str]:
        results = self.results()
        write_json(self.args.out / "results.json", results)
        self.written = ["results.json", *(path.name for path in report.write(results, self.args.out))]
        self.stages.news = False
        return self.written

    def results(self) -> dict[str, Any]:
        """Everything that is known of this run."""
        results = gather(self.stages, self.data, self.config)
        results["seconds"]["this_call"] = round(time.perf_counter() - self.begin, 1)
        return {"command": self.command, "date": date.today().isoformat(), **results}


# ---- helpers ----------------------------------------------------------------------------------------------------


def announce(args: argparse.Namespace) -> None:
    """Say what is about to happen, and why, before anything is spent."""
    processes = f", {world().size} processes" if world().size > 1 else ""
    console.print(
        f"[bold]preset {args.preset}[/] ({args.reason}), device {args.device}{processes}, precision {args.precision}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{', '.join(report.LABELS[name] for name in args.model)}: encoder {args.encoder}, {args.epochs} epochs "
        f"of batch {args.batch_size}, {args.dim} latent dimensions, seed {args.seed}; results go to {args.out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def check_batches(args: argparse.Namespace, images: int) -> None:
    """Refuse a batch larger than the data before anything is trained.

    Raises:
        RunError: naming the option.
    """
    for prefix in ("", "probe_", "finetune_", "supervised_"):
        size = getattr(args, f"{prefix}batch_size", 0)
        if size > images:
            option = f"--{prefix}batch-size".replace("_", "-")
            raise RunError(f"{option} must be at most the {images} training images, got {size}")
