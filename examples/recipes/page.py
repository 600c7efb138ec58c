"""A run on one page: everything inside one file, nothing from the network, readable on a phone and in the dark."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recipes import paper, plan_table
from recipes.figures import LABELS, PARTS, Picture
from recipes.files import write_atomically

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # names of folders and classes come from the user
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
WORDS = {
    "model": "Model",
    "features": "features that are judged: the encoder's h, or the latent z",
    "width": "their number",
    "probe %": "top-1 of a linear probe on the frozen features",
    "probe top-5 %": "its top-5",
    "kNN %": "top-1 of the nearest neighbours",
    "fine-tuned %": "top-1 with all weights trained on labels; for the supervised model, from scratch",
    "fine-tuned top-5 %": "its top-5",
    "forest F1 %": "mean F1 of a random forest on all latent dimensions",
    "ones %": "share of ones among the bits",
    "compression": "bytes of an image over bytes of its code",
}
"""What the headline table's columns hold."""


def write_page(
    results: dict[str, Any],
    pictures: Sequence[Picture],
    path: Path,
    *,
    title: str,
    table: Sequence[tuple[str, ...]],
    sentences: Sequence[str] = (),
    views: bytes | None = None,
) -> None:
    """Write the page.

    Args:
        results: of the run, as in its `results.json`.
        pictures: figures with their words.
        path: of the page.
        title: what was trained on what.
        table: header and rows of the headline table.
        sentences: what to say below it.
        views: PNG of augmented views beside their originals.
    """
    header, *cells = table
    content = TEMPLATES.get_template("page.html").render(
        title=title,
        header=header,
        cells=cells,
        glossary=[(column, WORDS[column]) for column in header[1:] if column in WORDS],
        sentences=sentences,
        compression=_compression(results),
        paper={"source": paper.SOURCE, "header": paper.COLUMNS, "cells": paper.beside(results)},
        pictures=[(_inline(p.svg().encode(), "svg+xml"), p.caption, p.alt) for p in pictures],
        views=views and _inline(views, "png"),
        plan=_plan(results.get("plan")),
        tables=[
            ("Data", _data(results["data"])),
            ("Settings", _pairs(results["config"])),
            ("Machine and versions", _pairs(results.get("environment", {}))),
            ("Time of each part", _seconds(results.get("seconds", {}))),
        ],
        command=results.get("command"),
        date=results.get("date"),
    )
    write_atomically(path, content.encode())


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _compression(results: dict[str, Any]) -> str | None:
    """How the compression comes about, from the tensors' bytes."""
    bits, shape = results["models"].get("bern", {}).get("bits", {}), results["data"].get("image_shape")
    if "image_bytes" not in bits or "code_bytes" not in bits:
        return None
    of = f" of {' x '.join(str(side) for side in shape)} values" if shape else ""
    return f"An image{of} takes {bits['image_bytes']:,} bytes, its code {bits['code_bytes']:,}."


def _plan(plan: dict[str, Any] | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {
        "tables": [
            ("Plan", plan_table.COLUMNS, plan_table.rows(plan)),
            ("Memory of a device", plan_table.MEMORY_COLUMNS, plan_table.memory_rows(plan)),
        ],
        "sentences": plan_table.sentences(plan),
    }


def _pairs(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, one level of nesting spelt out."""
    flat: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += [(str(inner), _said(of_inner)) for inner, of_inner in value.items()]
        else:
            flat.append((name.replace("_", " "), _said(value)))
    return flat


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(item) for item in value)
    return str(value)


def _data(data: dict[str, Any]) -> list[tuple[str, str]]:
    shown = {"train": "training images", "test": "test images", "image_shape": "height, width, channels"}
    return [
        (shown.get(key, key), f"{value:,}" if isinstance(value, int) else _said(value))
        for key, value in data.items()
    ]


def _seconds(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """Parts in the order in which they were done, the sums at the end."""
    names, parts = list(LABELS), list(PARTS)

    def place(key: str) -> tuple[int, int]:
        name, _, part = key.partition("/")
        known = names.index(name) if name in names else len(names)
        return known, parts.index(part) if part in parts else len(parts)

    return [(_part(key), plan_table.duration(seconds[key] / 3600)) for key in sorted(seconds, key=place)]


def _part(key: str) -> str:
    """A part of a chain, named as "bern/finetune", in words."""
    name, _, part = key.partition("/")
    label = LABELS.get(name, name.replace("_", " "))
    return f"{label}, {PARTS.get(part, part)}" if part else label
