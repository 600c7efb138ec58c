"""The folder of a run: what is done stays done, and no other run is mixed in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import report
from recipes.figures import PARTS
from recipes.files import write_json
from recipes.screen import console

MODEL_CONFIG = "config.json"  # beside the parts' files, of the model that HubModel loads
POLL = 0.5  # seconds between looks for a file that another process writes


class RunError(Exception):
    """A run that cannot start as asked, with what to change."""


def check_folder(folder: Path, config: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that holds another run.

    Args:
        folder: of the run.
        config: settings that a resumed run must share.
        resume: whether a run is to be gone on with.

    Raises:
        RunError: for a folder with a run that is not to be resumed, or that had other settings.
    """
    path = folder / "config.json"
    if path.exists() and not resume:
        raise RunError(
            f"{folder} holds an earlier run; add --resume to finish or show it, or give another folder with --out"
        )
    if path.exists():
        earlier = _read(path)
        changed = [f"{k}: {earlier.get(k)} then, {v} now" for k, v in config.items() if earlier.get(k) != v]
        if changed:
            raise RunError(
                f"--resume: {folder} was started with other settings ({'; '.join(changed)}); give the same, or "
                "another folder with --out"
            )


class Stages:
    """Parts of a run, each kept in a file of its own as soon as it is done.

    With several processes all of them call `run` in the same order and get the same result. What trains, all of
    them do; the rest one does, while the others wait for its file: the folder is on a file system they share.

    Args:
        folder: of the run.
        fingerprint: of the data; a part made from other data is refused.
        total: number of parts, for the headings.
        rank: of this process; 0 writes.
    """

    def __init__(self, folder: Path, fingerprint: str, total: int, rank: int = 0) -> None:
        self.folder, self.fingerprint, self.total, self.rank = folder, fingerprint, total, rank
        self.count = 0
        self.news = False  # whether a part was worked out since this was last put to False

    def place(self, name: str, part: str) -> Path:
        """Folder for what a part leaves beside its result."""
        return self.folder / name / part

    def run(
        self, name: str, part: str, work: Callable[[], dict[str, Any]], *, together: bool = False
    ) -> dict[str, Any]:
        """Result of a part: read where it was kept, worked out otherwise.

        Args:
            name: model or baseline.
            part: of its chain.
            work: gives the result, plain numbers and lists.
            together: every process does the work, as in training; otherwise rank 0 alone.
        """
        path = self._file(name, part)
        self.count += 1
        kept = self.kept(name, part)
        of_chain = f", {PARTS[part]}" if part in PARTS else ""
        done = ", kept" if kept is not None else ""
        console.rule(f"{self.count}/{self.total}  {report.LABELS[name]}{of_chain}{done}", align="left")
        if kept is not None:
            return kept
        if together or self.rank == 0:
            begin = time.perf_counter()
            result = work()
            if self.rank == 0:
                seconds = round(time.perf_counter() - begin, 1)
                of = {
                    "sha256": self.fingerprint,
                    "commit": report.environment()["commit"],
                    "seconds": seconds,
                }
                write_json(path, {**of, "result": result})
                self.news = True
        while not path.exists():  # rank 0 writes it; if that fails, the launcher ends this process too
            time.sleep(POLL)
        kept = self.kept(name, part)
        assert kept is not None  # its file is there
        return kept

    def kept(self, name: str, part: str) -> dict[str, Any] | None:
        """Result of a part that is done, or None.

        Raises:
            RunError: for a part that was made from other data, or a file that does not read.
        """
        path = self._file(name, part)
        if not path.exists():
            return None
        content = _read(path)
        if content["sha256"] != self.fingerprint:
            raise RunError(f"{path} was made from other data; give the same --data, or another --out")
        result: dict[str, Any] = content["result"]
        return result

    def told(self, key: str) -> dict[str, Any]:
        """Of every part that is done, as "name/part": its "seconds", or the "commit" that it was made by."""
        files = sorted(path for path in self.folder.glob("*/*.json") if path.name != MODEL_CONFIG)
        return {f"{path.parent.name}/{path.stem}": _read(path).get(key) for path in files}

    def _file(self, name: str, part: str) -> Path:
        return self.folder / name / f"{part}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete it to do this part again") from error
    return content
