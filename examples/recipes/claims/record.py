"""What is written of a claim: its numbers, where they come from, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes import report
from recipes.claims.cache import Cache, configuration, read_config
from recipes.claims.evidence import Evidence, Grid, Need, Setting, label, merged
from recipes.claims.series import RULE, verdict
from recipes.data import ImageData
from recipes.files import write_atomically, write_json
from recipes.stages import MODEL_CONFIG, Stages

KEPT = ("/*.json", "/pretrain/metrics.csv")
"""Files of a model that its claims are made from."""


def missing(
    cache: Cache, needs: Sequence[Need], seeds: Sequence[int]
) -> dict[tuple[Setting, int], list[str]]:
    """Parts of runs that are not done, by setting and seed."""
    found = {
        (setting, seed): [part for part in need.parts if cache.read(setting, seed, part) is None]
        for setting, need in merged(needs).items()
        for seed in need.of(seeds)
    }
    return {run: parts for run, parts in found.items() if parts}


def make(
    name: str,
    claim: ModuleType,
    cache: Cache,
    seeds: Sequence[int],
    grid: Grid,
    images: ImageData,
    command: str,
) -> dict[str, Any]:
    """Everything about a claim that its runs tell so far.

    Args:
        name: of the claim.
        claim: its module.
        cache: of runs.
        seeds: that were asked for.
        grid: sizes that were asked at.
        images: that the runs are of.
        command: that this is written by.

    Returns:
        Plain numbers, lists and dictionaries.
    """
    needs = claim.needs(grid)
    answer = claim.answer(Evidence(cache.read, tuple(seeds), grid))
    lacking = missing(cache, needs, seeds)
    criteria = [criterion._asdict() for criterion in answer.criteria]
    places = {
        label(setting): {str(seed): cache.place(setting, seed).name for seed in need.of(seeds)}
        for setting, need in merged(needs).items()
    }
    return {
        "claim": name,
        "title": claim.TITLE,
        "text": claim.CLAIM,
        "paper": claim.PAPER,
        "command": command,
        "date": date.today().isoformat(),
        "environment": report.environment(),
        "commits": commits(cache, needs, seeds),
        "data": {
            "name": images.name,
            "train": len(images.train_labels),
            "test": len(images.test_labels),
            "classes": len(images.classes),
            "image_shape": [images.size, images.size, 3],
            "sha256": images.fingerprint,
        },
        "config": {
            k: v for k, v in configuration(cache.args(Setting("simclr"), seeds[0])).items() if k != "seed"
        },
        "seeds": list(seeds),
        "runs": places,
        "trained_on": trained_on(cache, needs, seeds),
        "missing": [
            f"{label(setting)}, seed {seed}: {', '.join(parts)}" for (setting, seed), parts in lacking.items()
        ],
        "values": answer.values,
        "criteria": criteria,
        "verdict": None if lacking else verdict(answer.criteria),
        "rule": RULE,
        "notes": list(answer.notes),
    }


def commits(cache: Cache, needs: Sequence[Need], seeds: Sequence[int]) -> list[str]:
    """Commits that the parts were made by, which may be several, as runs are spread over days."""
    found = set()
    for setting, need in merged(needs).items():
        for seed in need.of(seeds):
            told = Stages(cache.place(setting, seed), cache.fingerprint, 0).told("commit")
            found |= {told.get(f"{setting.model}/{part}") for part in need.parts}
    return sorted(commit for commit in found if commit)


def trained_on(cache: Cache, needs: Sequence[Need], seeds: Sequence[int]) -> list[str]:
    """Devices and precisions of the runs, which may be several, as one machine goes on with another's."""
    places = {
        cache.place(setting, seed) for setting, need in merged(needs).items() for seed in need.of(seeds)
    }
    configs = [read_config(place) for place in places if (place / "config.json").exists()]
    return sorted({f"{config['device']}, {config['precision']}" for config in configs})


def keep_runs(cache: Cache, needs: Sequence[Need], seeds: Sequence[int], folder: Path) -> None:
    """Copy settings and measurements of a claim's runs, without their weights, so that it can be written from them.

    Args:
        cache: of runs.
        needs: of the claim.
        seeds: that were asked for.
        folder: gets a folder a run, a cache of its own with nothing left to do.
    """
    for setting, need in merged(needs).items():
        for seed in need.of(seeds):
            source = cache.place(setting, seed)
            for path in (
                source / "config.json",
                *(p for kept in KEPT for p in source.glob(setting.model + kept) if p.name != MODEL_CONFIG),
            ):
                target = folder / source.name / path.relative_to(source)
                if path.exists() and not (target.exists() and target.read_bytes() == path.read_bytes()):
                    write_atomically(target, path.read_bytes())


def write(content: dict[str, Any], claim: ModuleType, folder: Path) -> list[Path]:
    """Write a claim's numbers and its figure.

    Returns:
        Their paths.
    """
    path, drawn = folder / f"{content['claim']}.json", folder / f"{content['claim']}.png"
    write_json(path, content)
    write_atomically(drawn, claim.draw(content).png())
    return [path, drawn]
