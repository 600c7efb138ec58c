"""Where a result comes from: command, date, commit, versions and machine, for its JSON file."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("stochastic-bottleneck", "torch", "torchvision", "timm", "lightning", "faiss-cpu")


def provenance() -> dict[str, Any]:
    """Describe this process."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = cpuinfo.partition("model name\t: ")[2].partition("\n")[0] or platform.machine()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "environment": {
            "python": platform.python_version(),
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
            "threads": torch.get_num_threads(),
            "packages": {name: version(name) for name in PACKAGES},
        },
    }
