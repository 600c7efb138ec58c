"""Where and by what the numbers were made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "stochastic-bottleneck",
    "torch",
    "torchvision",
    "lightly",
    "pytorch-metric-learning",
    "kornia",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Hardware, versions and commit; threads are added by a process that has them."""
    # What this run itself writes is no change of what is measured.
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def measured_on(environment: dict[str, Any]) -> str:
    """Hardware and versions in one line, for every row."""
    versions = [f"{k} {v}" for k, v in environment["packages"].items() if v is not None]
    return f"{hardware(environment)}; Python {environment['python']}, {', '.join(versions)}"


def hardware(environment: dict[str, Any]) -> str:
    """The machine in one line."""
    memory, gpu = environment["memory_bytes"], environment.get("gpu")
    parts = [gpu] if gpu else []
    parts += [environment["cpu"], _count(environment["cores"], "core")]
    if memory:
        parts.append(f"{memory / 2**30:.0f} GiB")
    if environment.get("threads"):
        parts.append(_count(environment["threads"], "thread"))
    return ", ".join(parts)


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _cpu() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        told = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return None
    return told.stdout.strip()
