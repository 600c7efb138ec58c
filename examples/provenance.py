"""Shared by all scripts: device and precision, exit codes, whole files, and where a result comes from."""

from __future__ import annotations

import io
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from image_files import printable
from rich.box import MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stochastic_bottleneck.functional import fast_precision

PACKAGES = ("stochastic-bottleneck", "torch", "torchvision", "timm", "lightning", "faiss-cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = fast_precision(DEVICE)


class Stopped(BaseException):
    """A signal, its argument, ended the script. Not an `Exception`, so that no library handles it."""


def exit_code(script: Callable[[], None]) -> int:
    """Run a script; 2 for a user error, 143 or 130 after SIGTERM or Ctrl-C."""
    try:
        script()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except Stopped as stopped:
        print(f"stopped by {stopped.args[0].name}; to continue: add --resume to the same command", file=sys.stderr)
        return 128 + stopped.args[0]
    return 0


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table by rich, with a column for each key."""
    table, console = Table(*map(escape, rows[0]), box=MARKDOWN), Console(file=io.StringIO(), width=10_000)
    for row in rows:
        cells = (x if isinstance(x, str) else f"{x:,.0f}" if x >= 1000 else f"{x:.4g}" for x in row.values())
        table.add_row(*map(escape, cells))
    console.print(table)
    return "".join(f"{line.strip()}\n" for line in console.file.getvalue().splitlines() if line.strip())


def provenance() -> dict[str, Any]:
    """Command, date, commit, versions and machine, for the JSON file of a result."""
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
