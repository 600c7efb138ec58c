"""Start a full run on tiny images, in this process or in one forked from a server that has imported everything."""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import sys
import warnings
from functools import partial

import cifar10_full
import runs
import torch
from checkpointing import ExactCheckpoint

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["full_runs"])
TINY = ["--encoder", "small", "--epochs", "3", "--batch-size", "8", "--finetune-epochs", "1"]
TINY += ["--supervised-epochs", "1", "--precision", "32-true", "--dim", "16"]


def run(script, arguments, **environment):
    """Exit code and output of a full run within this process; a checkpoint and metrics after every step."""
    earlier, os.environ = os.environ, {**os.environ, **environment}
    output, argv = io.StringIO(), sys.argv
    sys.argv = [script.__file__, *map(str, arguments)]
    runs.ExactCheckpoint, runs.LOG_EVERY = partial(ExactCheckpoint, minutes=0), 1
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("default")  # Lightning's are printed, as they are for a user
            code = runs.exit_code(script.main)
    finally:
        sys.argv, os.environ = argv, earlier
        runs.ExactCheckpoint = ExactCheckpoint
    return code, output.getvalue()


def start(script, arguments, **environment):
    """The same in a process of its own, to be killed; its exit code is that of the run."""
    process = CONTEXT.Process(target=_child, args=(script.__name__, [*map(str, arguments)], environment))
    process.start()
    return process


def _child(script, arguments, environment):
    torch.set_num_threads(1)
    code, output = run(importlib.import_module(script), arguments, **environment)
    sys.stderr.write(output)
    sys.stderr.flush()
    os._exit(code)


def measured(folder):
    """Results that must not depend on interruptions, and the bytes of the saved weights."""
    results = json.loads((folder / "results.json").read_text())
    weights = {path.parent.name: path.read_bytes() for path in folder.glob("*/model.safetensors")}
    return {key: results[key] for key in ("baselines", "models", "identity", "data")}, weights


def quick(folder, data, *more):
    """Arguments of a tiny run of `cifar10_full.py`."""
    return ["quick", *TINY, "--data", data, "--out", folder, *more]


__all__ = ["cifar10_full", "measured", "quick", "run", "start"]
