"""The folder of a run: what is done stays done, and no other run is mixed in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import report
from recipes.files import write_json
from recipes.screen import console


class RunError(Exception):
    """A run that cannot start as asked, with what to change."""


def check_folder(folder: Path, config: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that holds another run.

    Args:
        folder: of the run.
        config: settings that a resumed run must share.
        resume: whether a run is to be gone on with.
    """
    path = folder / "config.json"
    if path.exists() and not resume:
        raise RunError(
            f"{folder} holds an earlier run; add --resume to finish or show it, or give another folder with --out"
        )
    if path.exists():
        earlier = json.loads(path.read_text())
        changed = [f"{k}: {earlier.get(k)} then, {v} now" for k, v in config.items() if earlier.get(k) != v]
        if changed:
            raise RunError(
                f"--resume: {folder} was started with other settings ({'; '.join(changed)}); give the same, or "
                "another folder with --out"
            )


class Stages:
    """Parts of a run, each kept in a file of its own as soon as it is done.

    Args:
        folder: of the run.
        fingerprint: of the data; a part made from other data is refused.
        total: number of parts, for the headings.
    """

    def __init__(self, folder: Path, fingerprint: str, total: int) -> None:
        self.folder, self.fingerprint, self.total = folder, fingerprint, total
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Result of a part: read where it was kept, worked out otherwise."""
        path = self.folder / name / "evaluation.json"
        done = json.loads(path.read_text()) if path.exists() else None
        if done and done["sha256"] != self.fingerprint:
            raise RunError(f"{path} was made from other data; give the same --data, or another --out")
        console.rule(
            f"{len(self.seconds) + 1}/{self.total}  {report.LABELS[name]}{', kept' if done else ''}",
            align="left",
        )
        if not done:
            begin = time.perf_counter()
            result = work()
            seconds = round(time.perf_counter() - begin, 1)
            done = {"sha256": self.fingerprint, "seconds": seconds, "result": result}
            write_json(path, done)
        self.seconds[name] = done["seconds"]
        return done["result"]
