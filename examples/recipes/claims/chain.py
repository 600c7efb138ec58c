"""Doing what is missing of a run: the parts of `cifar10_full.py`, and what claims measure on its models beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from recipes import evaluate
from recipes.claims.cache import Cache, read_config
from recipes.claims.evidence import Grid, Setting, label
from recipes.data import ImageData
from recipes.evaluate import Split
from recipes.run import Run
from recipes.screen import console
from recipes.settings import hardware
from recipes.training import Hardware
from stochastic_bottleneck import StochConWrapper

TRAINED = ("pretrain", "frozen", "finetune", "train")
"""Parts that a run of `cifar10_full.py` has."""


class Subject:
    """A trained model to measure on, its features worked out once.

    Args:
        model: in evaluation mode.
        images: that it was trained on, and test images.
        machine: to run on.
        seed: of what is drawn.
        grid: sizes to measure at.
        scores: the run's frozen evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageData,
        machine: Hardware,
        seed: int,
        grid: Grid,
        scores: dict[str, Any],
    ) -> None:
        self.model, self.images, self.machine, self.seed = model, images, machine, seed
        self.grid, self.scores = grid, scores

    @property
    def probe_device(self) -> str | None:
        """Where linear probes are fitted; None for scikit-learn on the CPU."""
        return evaluate.probe_device(self.machine)

    @cached_property
    def features(self) -> dict[str, Split]:
        """Features "h", and the latent's mode "z" where there is one, of training and test images."""
        parts = {"h": self.model.encoder}
        if isinstance(self.model, StochConWrapper):
            parts["z"] = self.model.feature_extractor("z")
        return evaluate.features(parts, self.images, self.machine, "features")


Measure = Callable[[Subject], dict[str, Any]]


class ClaimRun(Run):
    """A run that keeps further measures of its models beside its own parts."""

    def measure(self, name: str, part: str, grid: Grid, measure: Measure) -> None:
        """Measure something on a pretrained model, unless that was done."""
        console.print(f"for the claims: {part}", highlight=False, markup=False)
        self.stages.run(name, part, lambda: measure(self.subject(name, grid)))

    def subject(self, name: str, grid: Grid) -> Subject:
        """The model with what was measured on it, and its features from one measure to the next."""
        held = getattr(self, "held", None)
        if held is None or held[0] != name:
            scores = self.stages.kept(name, "frozen") or {}
            made = Subject(self._model(name), self.data, exact(self.hardware), self.args.seed, grid, scores)
            self.held = held = (name, made)
        subject: Subject = held[1]
        return subject


def exact(machine: Hardware) -> Hardware:
    """The same machine in float32, to measure alike whatever it was trained by: not every CPU is fast in bfloat16."""
    return machine._replace(precision="32")


def complete(
    cache: Cache,
    setting: Setting,
    seed: int,
    parts: Sequence[str],
    grid: Grid,
    images: ImageData,
    measures: dict[str, Measure],
    told: str,
) -> bool:
    """Do the parts of a run that are missing.

    Args:
        cache: of runs.
        setting: of the run.
        seed: of the run.
        parts: that are asked for, those first that others build on.
        grid: sizes to measure at.
        images: with the held-out part in place of the test images where the setting says so.
        measures: by the names of their parts.
        told: command that the run is made by.

    Returns:
        Whether anything was done.
    """
    missing = [part for part in parts if cache.read(setting, seed, part) is None]
    if not missing:
        return False
    args, name = cache.args(setting, seed), setting.model
    machine = hardware(args)
    if (args.out / "config.json").exists():  # a run may go on elsewhere than where it was begun
        made = read_config(args.out)
        args.device, args.compile = made.get("device", args.device), made.get("compile", args.compile)
    console.rule(f"{label(setting)}, seed {seed}")
    job = ClaimRun(args, told, lambda _: images)
    job.hardware, job.stages.total = machine, len(missing)

    def judge(model: nn.Module) -> dict[str, Any]:  # no claim reads its forest, which takes longest
        return evaluate.evaluate(model, images, exact(machine), seed, forest=False)

    for part in missing:
        if part == "pretrain":
            job.pretrain(name)
        elif part == "frozen":
            job.frozen(name, judge)
        elif part == "finetune":
            job.finetune(name)
        elif part == "train":
            job.supervise()
        else:
            job.measure(name, part, grid, measures[part])
    return True
