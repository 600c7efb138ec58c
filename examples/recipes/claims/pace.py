"""How long the runs that are missing would take, from those that are done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.claims.cache import Cache, read_config
from recipes.claims.evidence import Setting
from recipes.data import ImageData
from recipes.run import SCHEDULE_OF
from recipes.stages import RunError

HELD_OUT = 0.8  # share of the training images that are left, as in recipes.data.hold_out
HOUR = 3600.0
TRAINS = {"pretrain": "", **{part: prefix for part, prefix in SCHEDULE_OF.items() if part != "probe"}}
"""Prefix of the schedule's options of the parts that train."""


class Rates(NamedTuple):
    """Measured speeds.

    Args:
        by_image: seconds an image and epoch of the parts that train, by model and part.
        by_part: seconds of the other parts, by model and part.
        runs: number of runs they are from.
    """

    by_image: Mapping[tuple[str, str], float]
    by_part: Mapping[tuple[str, str], float]
    runs: int

    def seconds(self, setting: Setting, part: str, config: dict[str, Any], images: int) -> float | None:
        """Time that a part takes; None where nothing like it was measured."""
        if part in TRAINS:
            rate = self._of(self.by_image, setting.model, part)
            return (
                None if rate is None else rate * config[f"{TRAINS[part]}epochs"] * trained_on(config, images)
            )
        return self._of(self.by_part, setting.model, part)

    def _of(self, rates: Mapping[tuple[str, str], float], model: str, part: str) -> float | None:
        """Of this model; where it has none, the mean of the others, which cost about the same."""
        if (model, part) in rates:
            return rates[model, part]
        others = [rate for (_, of_part), rate in rates.items() if of_part == part]
        return statistics.fmean(others) if others else None


def trained_on(config: dict[str, Any], images: int) -> float:
    """Training images of a run."""
    return images * (HELD_OUT if config.get("held_out") else 1.0)


def measured(folders: Iterable[Path], fingerprint: str, images: int, encoder: str) -> Rates:
    """Speeds of finished parts.

    Args:
        folders: of runs, those of other data or another encoder are left out.
        fingerprint: of the data.
        images: training images in them.
        encoder: of the runs that are planned.
    """
    by_image: dict[tuple[str, str], list[float]] = {}
    by_part: dict[tuple[str, str], list[float]] = {}
    counted = set()
    for folder in folders:
        try:
            config = read_config(folder)
        except RunError:
            continue
        if config.get("encoder") != encoder:
            continue
        for path in sorted(folder.glob("*/*.json")):
            content = _read(path)
            if content.get("sha256") != fingerprint or "result" not in content:
                continue
            place, result = (path.parent.name, path.stem), content["result"]
            if path.stem in TRAINS:
                seconds = result.get("training_seconds", result.get("seconds", content["seconds"]))
                work = config[f"{TRAINS[path.stem]}epochs"] * trained_on(config, images)
                by_image.setdefault(place, []).append(seconds / work)
            else:
                by_part.setdefault(place, []).append(content["seconds"])
            counted.add(folder)
    mean_by_image, mean_by_part = (
        {place: statistics.fmean(found) for place, found in table.items()} for table in (by_image, by_part)
    )
    return Rates(mean_by_image, mean_by_part, len(counted))


def _read(path: Path) -> dict[str, Any]:
    """Content of a part's file; nothing where it is damaged, which those are told who need it."""
    try:
        content: Any = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


class Left(NamedTuple):
    """What is left to do.

    Args:
        hours: of the parts whose speed is known.
        unknown: parts whose speed was not measured yet.
    """

    hours: float
    unknown: tuple[str, ...]


def left(
    lacking: Mapping[tuple[Setting, int], Sequence[str]], cache: Cache, rates: Rates, images: ImageData
) -> Left:
    """Time that the missing parts take."""
    total, unknown = 0.0, set()
    for (setting, seed), parts in lacking.items():
        config = vars(cache.args(setting, seed))
        for part in parts:
            if part == "metrics":
                continue
            seconds = rates.seconds(setting, part, config, len(images.train_labels))
            if seconds is None:
                unknown.add(part)
            else:
                total += seconds
    return Left(total / HOUR, tuple(sorted(unknown)))
