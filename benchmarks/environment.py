"""Hardware, versions and commit of a run, and the files that results are written to."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PACKAGES = (
    *("stochastic-bottleneck", "torch", "torchvision", "timm", "lightly"),
    *("pytorch-metric-learning", "open-clip-torch", "kornia", "numpy", "triton"),
)


def describe() -> dict[str, Any]:
    """Hardware, versions and commit; a process that has imported torch adds its number of threads."""
    # Results that this run writes do not make the measured code dirty.
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "cpu": _cpu(),
        "cores": CORES,
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def hardware(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    memory, threads = machine["memory_bytes"], machine.get("threads")
    parts = [machine.get("gpu"), machine["cpu"], _count(machine["cores"], "core")]
    parts += [memory and f"{memory / 2**30:.0f} GiB", threads and _count(threads, "thread")]
    return ", ".join(filter(None, parts))


def versions(machine: dict[str, Any], names: tuple[str, ...] = ()) -> str:
    """Versions of the packages, or of those named, in one line."""
    packages = machine["packages"]
    return ", ".join(f"{name} {packages[name]}" for name in names or packages if packages.get(name))


def commit(machine: dict[str, Any]) -> str:
    """The commit, and whether there were changes on top of it."""
    return f"{machine['commit']}{' with changes' if machine['dirty'] else ''}"


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_atomically(path: Path, content: str) -> None:
    """Write a file so that an interrupted run leaves either the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON, its numbers to six digits."""
    rounded = json.loads(json.dumps(content, allow_nan=False), parse_float=lambda x: float(f"{float(x):.6g}"))
    write_atomically(path, json.dumps(rounded, indent=1) + "\n")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or this is no repository
        return None
    return run.stdout.strip()
