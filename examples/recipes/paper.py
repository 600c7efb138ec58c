"""What the paper reports, to stand beside what a run gives; never mixed with it."""

from __future__ import annotations

import re
from typing import Any

from recipes.figures import LABELS

SOURCE = (
    "Ramapuram et al., Stochastic Contrastive Learning, arXiv 2110.00552: the table of its poster, ResNet-50"
)
TOP_1: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "CIFAR-10": {
        "simclr": (94.35, 91.35),
        "bern": (96.42, 91.96),
        "gauss": (96.08, 92.40),
        "supervised": (95.00, None),
    },
    "ImageNet": {
        "simclr": (76.37, 71.34),
        "bern": (77.49, 67.00),
        "gauss": (None, None),
        "supervised": (76.13, None),
    },
}
"""Test top-1 in percent, fine-tuned and frozen; None where the poster gives none."""
COLUMNS = ("model", "fine-tuned", "paper's fine-tuned", "frozen, h", "frozen, z", "paper's frozen")


def is_cifar10(name: str) -> bool:
    """Whether a data set is called CIFAR-10, as a folder or a tar may be too."""
    return re.match(r"cifar-?10(?!\d)", name, re.IGNORECASE) is not None


def data_set(data: dict[str, Any]) -> str | None:
    """Which of the paper's test sets a run was evaluated on, whole; a part of one is nothing to compare on.

    Args:
        data: as in `results.json`.
    """
    sizes = (data["classes"], data["test"])
    if sizes == (10, 10_000) and is_cifar10(data["name"]):
        return "CIFAR-10"
    return "ImageNet" if sizes == (1_000, 50_000) else None


def beside(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS`: this run's top-1 and the paper's; none for data that it does not have."""
    published = TOP_1.get(data_set(results["data"]) or "", {})
    cells: list[tuple[str, ...]] = []
    for name, model in results["models"].items():
        if name in published:
            labelled = model.get("finetuned") or model.get("trained") or {}
            fine_tuned, frozen = published[name]
            cells.append(
                (
                    LABELS[name],
                    _said(labelled.get("accuracy"), 100),
                    _said(fine_tuned),
                    _said(model.get("h", {}).get("probe"), 100),
                    _said(model.get("z", {}).get("probe"), 100),
                    _said(frozen),
                )
            )
    return cells


def _said(number: float | None, factor: int = 1) -> str:
    return "-" if number is None else f"{factor * number:.2f}"
