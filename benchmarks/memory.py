"""What an operation needs beyond what was there before it, and a limit that turns too much into an exception."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

SHARE = 0.9  # of the memory that is free, what a contender may take
CLEAR = Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Peak:
    """Extra bytes at the worst moment, and how they were measured; None where that is not possible."""

    bytes: int | None = None
    method: str = "none"


@contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Measure the extra memory of what runs inside, this process's alone."""
    measured = Peak()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield measured
        measured.bytes, measured.method = torch.cuda.max_memory_allocated() - before, "cuda allocator"
    elif CLEAR.exists():
        _trim()  # memory that was freed and kept by malloc would be used again and not show
        before = _status("VmRSS")
        CLEAR.write_text("5")  # sets VmHWM, the peak, back to VmRSS; man 5 proc
        yield measured
        measured.bytes, measured.method = max(0, _status("VmHWM") - before), "VmHWM - VmRSS"
    elif resource is not None:
        before = _max_rss()
        yield measured
        # The process's own highest peak: a lower bound, 0 for a call that needs less than an earlier one.
        measured.bytes, measured.method = _max_rss() - before, "ru_maxrss growth"
    else:
        yield measured


def limit_to_available() -> None:
    """Let an allocation that the machine cannot serve raise, before the kernel ends some process for it."""
    free = available()
    if resource is None or free is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _status("VmSize") + int(SHARE * free)
    resource.setrlimit(
        resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def available() -> int | None:
    """Bytes that can still be used, by the machine's and the control group's account; None where not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    try:
        most = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return free
    return min(free, max(0, most - used))


def _status(key: str) -> int:
    """Bytes under a key of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def _trim() -> None:
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
