"""How a full run is started and ends: exit codes, and the command that goes on."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from rich.markup import escape

from recipes.checkpoints import CheckpointError, Stopped
from recipes.feeds import DataError
from recipes.models import WeightsError
from recipes.screen import console
from recipes.stages import RunError
from recipes.training import TrainingError, leave, world

MENDABLE = (RunError, DataError, TrainingError, CheckpointError, WeightsError, OSError)
"""What the user can mend; everything else is a defect and keeps its traceback."""


def main(
    script: str,
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace, str], object],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a script from the command line.

    Args:
        script: its path, as a user types it.
        parse: makes its arguments.
        run: does its work, given them and the command.
        arguments: None for the process's own.

    Returns:
        Exit code: 0 when everything was done, 2 for what the user can mend, 130 or 143 when a signal stopped it.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    in_main_thread = threading.current_thread() is threading.main_thread()
    earlier = signal.signal(signal.SIGTERM, _terminated) if in_main_thread else None
    try:
        console.quiet = world().rank > 0
        run(parse(given), _command(script, given))
        leave()
    except MENDABLE as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        leave()
        by = f" by {stop.signal.name}" if isinstance(stop, Stopped) else ""
        resume = _command(script, [*given, *([] if "--resume" in given else ["--resume"])])
        console.print(
            f"\nstopped{by}; what is done is kept. Go on with:\n  {resume}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return stop.exit_code if isinstance(stop, Stopped) else 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, earlier)
    return 0


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number, None)


def _command(script: str, arguments: Sequence[str]) -> str:
    """What a user typed, as far as the environment tells of torchrun."""
    here, launcher = world(), "python"
    if here.size > here.local_size:
        launcher = f"torchrun --nnodes {here.size // here.local_size} ..."  # where they meet is not told
    elif here.size > 1:
        launcher = f"torchrun --nproc-per-node {here.size}"
    return f"{launcher} {shlex.join([script, *arguments])}"
