"""Peak memory of an operation, and a limit that turns too large an allocation into an exception."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

SHARE = 0.9  # of the free memory that a contender may use
CLEAR_REFS = Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def peak(device: str) -> Iterator[dict[str, Any]]:
    """Measure the extra bytes that this process needs at the peak inside the context, where that is possible."""
    measured: dict[str, Any] = {"peak_bytes": None}
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield measured
        measured["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    elif CLEAR_REFS.exists():
        with suppress(AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)  # return freed memory, whose reuse would not be counted
        before = _status("VmRSS")
        CLEAR_REFS.write_text("5")  # reset the peak VmHWM to VmRSS; man 5 proc
        yield measured
        measured["peak_bytes"] = max(0, _status("VmHWM") - before)
    else:
        yield measured


def limit_to_available() -> None:
    """Make an allocation that does not fit raise, before the kernel kills a process for it."""
    free = available()
    if resource is None or free is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _status("VmSize") + int(SHARE * free)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def available() -> int | None:
    """Free bytes of the machine and of the control group; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return free
    return min(free, max(0, limit - used))


def _status(key: str) -> int:
    """A number of bytes in this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))
