"""What is known of a run, put together from the files of its parts: the content of results.json."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch

from recipes import report
from recipes.feeds import LabelledImages
from recipes.models import MODELS
from recipes.stages import Stages


def gather(stages: Stages, data: LabelledImages, config: dict[str, Any]) -> dict[str, Any]:
    """Results of every model that has been evaluated, in this call or an earlier one.

    Args:
        stages: of the run.
        data: that it is of.
        config: its settings.

    Returns:
        Plain numbers and lists.
    """
    baselines = {name: stages.kept(name, "frozen") for name in ("pixels", "untrained")}
    models = {name: result for name in MODELS if (result := of_model(stages, name))}
    planned = stages.folder / "plan.json"
    plans = json.loads(planned.read_text()) if planned.exists() else {}
    return {
        "config": {**config, "model": list(models)},
        "environment": report.environment(),
        "data": {
            "name": data.name,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
            "classes": len(data.classes),
            "image_shape": [data.size, data.size, 3],
            "sha256": data.fingerprint,
        },
        "baselines": {name: result for name, result in baselines.items() if result},
        "models": models,
        **({"plan": plans["plan"]} if plans.get("config") == config else {}),
        "commits": stages.told("commit"),
        "seconds": stages.told("seconds"),
    }


def of_model(stages: Stages, name: str) -> dict[str, Any] | None:
    """One model's entry; None before its first evaluation is done."""
    if name == "supervised":
        trained = stages.kept(name, "train")
        return trained and {
            "trained": trained,
            "training_seconds": trained["seconds"],
            "epoch_losses": trained["epoch_losses"],
        }
    frozen, pretrained = stages.kept(name, "frozen"), stages.kept(name, "pretrain")
    if frozen is None or pretrained is None:
        return None
    result = {**frozen, **pretrained}
    for key, scores in (stages.kept(name, "probe") or {}).items():
        result[key] = {**frozen[key], **scores}
    if finetuned := stages.kept(name, "finetune"):
        result["finetuned"] = finetuned
    metrics = stages.place(name, "pretrain") / "metrics.csv"
    if metrics.exists():
        result["metrics"] = thinned(metrics)
    return result


def by_epoch(losses: list[float], epochs: int) -> list[float]:
    """Mean loss of each epoch."""
    means: list[float] = torch.tensor(losses, dtype=torch.float64).view(epochs, -1).mean(dim=1).tolist()
    return means


def thinned(path: Path, most: int = 200) -> dict[str, list[float | None]]:
    """Columns of a metrics.csv, with so many of its rows and all that hold a rare value, enough for a figure."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    step = max(1, len(rows) // most)
    kept = [row for i, row in enumerate(rows, 1) if i % step == 0 or i == len(rows) or row.get("knn")]
    return {name: [_number(row[name]) for row in kept] for name in (kept[0] if kept else ())}


def _number(cell: str) -> float | None:
    """Value of a cell; None where it is empty or not finite, which JSON lacks."""
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None
