"""The cache of runs: one folder for each full configuration, a run folder of `cifar10_full.py` like any other."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recipes.claims.evidence import Setting
from recipes.feeds import DataError
from recipes.models import CONTRASTIVE
from recipes.results import thinned
from recipes.run import FREE_TO_CHANGE
from recipes.stages import MODEL_CONFIG, RunError, Stages

MACHINE = ("device", "compile")
"""Settings of a run that say where it was made, not what."""
LEFT_OUT = ("*.ckpt", "tensorboard", "*.partial")
"""Files of a finished run that nothing reads any more."""
Parse = Callable[[Sequence[str]], argparse.Namespace]


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a run, as its `config.json` holds them."""
    return {name: value for name, value in vars(args).items() if name not in FREE_TO_CHANGE}


def key(config: dict[str, Any], fingerprint: str) -> str:
    """Name of a run's folder: a hash of its settings and of its images.

    Where it was made is left out, and so is what is None: an option that is added later, off by default, leaves the
    names of the runs before it as they are.

    Args:
        config: of the run; see `configuration`.
        fingerprint: of the data.
    """
    content = {"data": fingerprint, "config": lasting(config)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that make a run what it is."""
    return {name: value for name, value in config.items() if name not in MACHINE and value is not None}


class Cache:
    """Runs below one folder.

    Args:
        folder: of the cache.
        parse: makes a run's arguments, as `cifar10_full.parse`.
        base: options that all runs share.
        fingerprint: of the data that they are of.
    """

    def __init__(self, folder: Path, parse: Parse, base: Sequence[str], fingerprint: str) -> None:
        self.folder, self.parse, self.base, self.fingerprint = folder, parse, tuple(base), fingerprint
        self.parsed: dict[tuple[Setting, int], argparse.Namespace] = {}

    def args(self, setting: Setting, seed: int) -> argparse.Namespace:
        """Arguments of a run, which always goes on with what is there."""
        if (setting, seed) not in self.parsed:
            args = self.parse([*self.base, *setting.options, "--seed", str(seed), "--model", setting.model])
            args.out, args.resume = self.folder / key(configuration(args), self.fingerprint), True
            self.parsed[setting, seed] = args
        return copy.copy(self.parsed[setting, seed])

    def place(self, setting: Setting, seed: int) -> Path:
        """Folder of a run, whether it is there or not."""
        found: Path = self.args(setting, seed).out
        return found

    @contextmanager
    def held(self, setting: Setting, seed: int) -> Iterator[bool]:
        """Hold a model's run, so that no other process does the same; False where another holds it already.

        The lock ends with the process that holds it, however that ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{self.place(setting, seed).name}-{setting.model}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
        else:
            try:
                yield True
            finally:
                lock.release()

    def read(self, setting: Setting, seed: int, part: str) -> dict[str, Any] | None:
        """Result of a part, None where it is missing; "metrics" are the rows of pretraining.

        Raises:
            RunError: for a file that is damaged, of other images or of other settings.
        """
        args = self.args(setting, seed)
        if part == "metrics":
            return self._metrics(args.out / setting.model / "pretrain")
        try:
            found = Stages(args.out, self.fingerprint, 0).kept(setting.model, part)
        except (KeyError, TypeError) as error:
            path = args.out / setting.model / f"{part}.json"
            raise RunError(f"{path} is damaged ({error!r}); delete it to do this part again") from error
        if found is not None:
            check_config(args.out, configuration(args))
        return found

    def _metrics(self, folder: Path) -> dict[str, Any] | None:
        path = folder / "metrics.csv"
        if not folder.with_suffix(".json").exists():
            return None
        try:
            return dict(thinned(path, most=10**9))  # all rows
        except (OSError, KeyError, ValueError) as error:
            raise RunError(
                f"{path} is missing or damaged ({error!r}); delete {folder} and {folder}.json to train this model anew"
            ) from error

    def adopt(self, source: Path, setting: Setting, seeds: Sequence[int]) -> list[str]:
        """Copy the models of a finished run that are complete into the cache.

        Args:
            source: folder of `cifar10_full.py`.
            setting: whose place it is to take, with any model.
            seeds: one of which it has to be of.

        Returns:
            Names of the models and baselines that were copied; those that are there already stay as they are.

        Raises:
            RunError: for a folder that is no run, or a run of other settings, another seed or other images.
        """
        config = read_config(source)
        seed = config.get("seed")
        if seed not in seeds:
            raise RunError(
                f"--adopt: {source} is of seed {seed}, and the seeds are {', '.join(map(str, seeds))}; add it to "
                "--seeds, or give another folder"
            )
        args = self.args(setting, seed)
        check_config(source, configuration(args), "--adopt: ")
        copied = []
        for name in sorted({path.parent.name for path in source.glob("*/*.json")}):
            if (args.out / name).exists() or not whole(source / name):
                continue
            for path in (source / name).glob("*.json"):
                if path.name != MODEL_CONFIG:
                    self._check_data(path)
            shutil.copytree(source / name, args.out / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
            copied.append(name)
        if copied and not (args.out / "config.json").exists():
            shutil.copyfile(source / "config.json", args.out / "config.json")
        return copied

    def _check_data(self, path: Path) -> None:
        try:
            told = json.loads(path.read_text())["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"--adopt: {path} is damaged ({error!r}); give a whole run") from error
        if told != self.fingerprint:
            raise DataError(f"--adopt: {path} was made from other images than --data gives; give the same")


def whole(folder: Path) -> bool:
    """Whether a model's folder holds everything that its claims may ask for; a copy without weights does not."""
    if folder.name in CONTRASTIVE:
        needed = ("pretrain.json", "frozen.json", "pretrain/weights.safetensors", "pretrain/metrics.csv")
        return all((folder / name).exists() for name in needed)
    return any(folder.glob("*.json"))


def read_config(folder: Path) -> dict[str, Any]:
    """Settings of a run.

    Raises:
        RunError: for a folder without one, or a damaged one.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no settings in it")
    except OSError as error:
        raise RunError(
            f"{folder} is no run of examples/cifar10_full.py ({path.name} cannot be read: {error.strerror}); give "
            "the --out folder of one"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete {folder} to make this run anew") from error
    return content


def check_config(folder: Path, expected: dict[str, Any], option: str = "") -> None:
    """Refuse a run of other settings than its place says.

    Raises:
        RunError: naming what differs.
    """
    found, wanted = lasting(read_config(folder)), lasting(expected)
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if names:
        told = "; ".join(f"{name}: {found.get(name)} there, {wanted.get(name)} here" for name in names)
        raise RunError(
            f"{option}{folder} is of other settings ({told}); give or keep a run of these settings"
        )
