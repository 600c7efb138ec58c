"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str) -> None:
    """Write a file so that a reader, or a run that is stopped, meets the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON, atomically; lists of numbers on one line each."""
    write_atomically(path, json.dumps(_rounded(content), indent=1, allow_nan=False) + "\n")


def _rounded(value: Any) -> Any:
    """Six digits say all that a clock knows."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
