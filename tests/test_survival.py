"""Runs that are really killed, signalled, damaged and starved of disk, as processes of their own."""

import contextlib
import csv
import itertools
import multiprocessing.forkserver
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipes.checkpoint_io import steps_in
from recipes.checkpoints import newest_whole
from safetensors.torch import load_file
from small_images import write_folder
from stand_in_training import STEPS, TOTAL, Tiny, child, fit

HERE = Path(__file__).parent
PATHS = [str(HERE), str(HERE.parent), str(HERE.parent / "examples")]
LIMIT = 100  # seconds until a run counts as hanging
PROCESSES = multiprocessing.get_context(
    "forkserver"
)  # torch and Lightning are imported once, not for every run
PROCESSES.set_forkserver_preload(["stand_in_training", "cifar10_full"])


class Run:
    """A run in a process, and session, of its own."""

    def __init__(self, folder, *arguments, script="stand_in_training"):
        folder.mkdir(exist_ok=True)
        self.output = folder / f"run{len(list(folder.glob('run*.out')))}"
        arguments = [str(folder), *map(str, arguments)] if script == "stand_in_training" else arguments
        self.process = PROCESSES.Process(target=child, args=(script, arguments, self.output))
        self.process.start()
        self.pid = self.process.pid

    def running(self):
        return self.process.is_alive()

    def end(self):
        """Exit code, and what it said; nothing is left running."""
        self.process.join(LIMIT)
        kill_group(self.pid)
        self.process.join()
        return self.process.exitcode, *(Path(f"{self.output}.{name}").read_text() for name in ("out", "err"))


class TwoRanks:
    """The same as two processes under torchrun."""

    def __init__(self, folder, *arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        self.process = subprocess.Popen(
            [*command, str(HERE / "stand_in_training.py"), str(folder), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def running(self):
        return self.process.poll() is None

    def end(self):
        """Exit code, and what it said; nothing is left running."""
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        finally:
            kill_group(self.process.pid)
        return self.process.returncode, out, err


def kill_group(number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def log(folder):
    """Process, rank, step and batch of every step that was begun, of all runs in a folder."""
    path = folder / "log.txt"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]


def wait_for(condition, run):
    limit = time.monotonic() + LIMIT
    while not condition():
        assert run.running(), run.end()
        assert time.monotonic() < limit, "the run did not get there"
        time.sleep(0.002)


def begun(folder, more):
    """Whether so many steps were begun since now."""
    before = len(log(folder))
    return lambda: len(log(folder)) >= before + more


@pytest.fixture(scope="module", autouse=True)
def imported_once():
    """Have the process that runs are forked from import torch and Lightning, so that not every run has to."""
    PROCESSES.set_forkserver_preload(["stand_in_training", "cifar10_full"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of a run that nothing happened to."""
    module = Tiny()
    fit(module, tmp_path_factory.mktemp("whole"))
    return module


def assert_same_end(folder, whole):
    left = torch.load(folder / "end.pt", weights_only=True)
    weights = whole.net.state_dict()
    assert left["weights"].keys() == weights.keys()
    assert all(torch.equal(left["weights"][name], weights[name]) for name in weights)
    assert left["losses"] == whole.losses


def step_of(path):
    return int(path.stem.removeprefix("step="))


# ---- kill -9 --------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_a_run_ends_as_one_that_was_not(whole, tmp_path):
    """Five kills, some within a write: each costs at most the steps since the last checkpoint."""
    every, chance, lost = 3, random.Random(4), []
    for _ in range(5):
        run = Run(tmp_path, "--every-steps", every)
        wait_for(begun(tmp_path, chance.randint(1, 4)), run)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(run.pid, signal.SIGKILL)
        assert run.end()[0] == -signal.SIGKILL
        running = log(tmp_path)[-1][2]  # as many steps were done before it
        newest = newest_whole(tmp_path)
        lost.append(running - (step_of(newest) if newest else 0))
    code, out, err = Run(tmp_path, "--every-steps", every, "--pause", 0).end()
    assert code == 0, (out, err)
    assert_same_end(tmp_path, whole)
    assert all(steps < every for steps in lost), lost
    # Each run began at the checkpoint, went on without a gap, and they took all steps in the end.
    runs = [
        [line[2:] for line in lines] for _, lines in itertools.groupby(log(tmp_path), lambda line: line[0])
    ]
    assert len(runs) == 6
    for steps in runs:
        first = steps[0][0]
        assert steps == [(step, step % STEPS) for step in range(first, first + len(steps))]
    for earlier, later, steps in zip(runs[:-1], runs[1:], lost, strict=True):
        assert later[0][0] == earlier[-1][0] - steps
    assert runs[-1][-1][0] == TOTAL - 1
    assert [step_of(path) for path in steps_in(tmp_path)] == [27, 28]
    assert not list(tmp_path.glob("*.partial"))


# ---- signals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_a_signal_ends_a_run_with_a_checkpoint(whole, tmp_path, number, code):
    """As schedulers and terminals send it: to the processes that read the data as well."""
    run = Run(tmp_path, "--workers", 1)
    wait_for(begun(tmp_path, 3), run)
    os.killpg(run.pid, number)
    told, out, err = run.end()
    assert told == code, (out, err)
    checkpoint = newest_whole(tmp_path)
    assert out == f"stopped by {number.name}; {checkpoint} is written\n"
    assert f"{number.name}: stopping after this step" in err
    assert "Traceback" not in err
    assert step_of(checkpoint) == log(tmp_path)[-1][2] + 1  # the running step was finished
    code, out, err = Run(tmp_path, "--pause", 0).end()
    assert code == 0, (out, err)
    assert [line[2] for line in log(tmp_path)] == list(range(TOTAL))  # nothing lost
    assert_same_end(tmp_path, whole)


def test_a_second_signal_ends_at_once(tmp_path):
    run = Run(tmp_path, "--pause", 60)
    wait_for(begun(tmp_path, 1), run)
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(2.2)  # a launcher's repetition comes sooner
    assert run.running()
    os.kill(run.pid, signal.SIGTERM)
    assert run.end()[0] == -signal.SIGTERM
    assert not steps_in(tmp_path)


@pytest.mark.distributed
def test_a_signal_to_one_of_two_processes_ends_both_at_the_same_step(tmp_path):
    run = TwoRanks(tmp_path, "--every-minutes", 0.0005)  # 30 ms: several within an epoch
    wait_for(begun(tmp_path, 9), run)
    (second,) = {pid for pid, rank, *_ in log(tmp_path) if rank == 1}
    os.kill(second, signal.SIGTERM)
    _, out, err = run.end()
    first, second = ([line[2] for line in log(tmp_path) if line[1] == rank] for rank in (0, 1))
    checkpoint = newest_whole(tmp_path)
    assert first == second == list(range(step_of(checkpoint)))
    assert out.count(f"stopped by SIGTERM; {checkpoint} is written") == 2, (out, err)
    assert "143" in err  # told by torchrun, as of each process that did not end with 0
    assert 'stand_in_training.py", line' not in err  # no traceback of ours beside that of torchrun


@pytest.mark.distributed
@pytest.mark.slow
def test_torchrun_passes_a_signal_on_and_both_processes_go_on_to_the_same_end(tmp_path):
    run = TwoRanks(tmp_path / "stopped", "--workers", 1)
    wait_for(begun(tmp_path / "stopped", 9), run)
    os.killpg(
        run.process.pid, signal.SIGINT
    )  # a terminal's Ctrl-C: torchrun gets it and passes it on as well
    _, out, err = run.end()
    assert out.count("stopped by SIGINT") == 2, (out, err)
    for folder in ("stopped", "whole"):
        code, out, err = TwoRanks(tmp_path / folder, "--pause", 0).end()
        assert code == 0, (out, err)
    first = [line[2] for line in log(tmp_path / "stopped") if line[1] == 0]
    assert first == list(range(TOTAL))
    left, unbroken = (torch.load(tmp_path / f / "end.pt", weights_only=True) for f in ("stopped", "whole"))
    assert left["losses"] == unbroken["losses"]
    assert all(torch.equal(left["weights"][name], value) for name, value in unbroken["weights"].items())


# ---- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path, damage):
    run = Run(tmp_path, "--every-steps", 2)
    wait_for(lambda: len(steps_in(tmp_path)) == 2, run)
    os.kill(run.pid, signal.SIGKILL)
    run.end()
    before, newest = steps_in(tmp_path)
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[content.index(whole_weight(newest))] ^= 16
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    begin = len(log(tmp_path))
    code, out, err = Run(tmp_path, "--pause", 0).end()
    assert code == 0, (out, err)
    assert f"{newest} is damaged" in out.replace("\n", "")
    assert log(tmp_path)[begin][2] == step_of(before)
    assert_same_end(tmp_path, whole)


def whole_weight(path):
    """Bytes of a weight, which torch.load would not miss."""
    return torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].numpy().tobytes()


def test_when_all_are_damaged_the_run_says_what_to_delete(tmp_path):
    fit(Tiny(), tmp_path, epochs=1)
    for path in steps_in(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    code, out, err = Run(tmp_path).end()
    assert code == 2
    told = f"no checkpoint in {tmp_path} reads whole; delete step=0000007.ckpt there to train from the start"
    assert told in out
    assert "Traceback" not in err


# ---- a full disk ----------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_the_second_checkpoint_leaves_the_first(whole, tmp_path):
    """/dev/full fails as a full disk does: on the write itself."""
    run = Run(tmp_path, "--every-steps", 2, "--pause", 0.3)
    wait_for(begun(tmp_path, 3), run)
    partial = tmp_path / "step=0000004.ckpt.partial"
    partial.symlink_to("/dev/full")
    code, out, err = run.end()
    assert code == 2, (out, err)
    assert "step=0000004.ckpt could not be written (No space left on device): it takes" in out
    assert "the last checkpoint, step=0000002.ckpt, is kept; make room and go on with --resume" in out
    assert "Traceback" not in err
    assert not partial.is_symlink()
    code, out, err = Run(tmp_path, "--pause", 0).end()
    assert code == 0, (out, err)
    assert [line[2] for line in log(tmp_path)] == [0, 1, 2, 3, *range(2, TOTAL)]
    assert_same_end(tmp_path, whole)


@pytest.mark.distributed
def test_a_file_that_may_not_grow_ends_both_processes_with_the_reason(tmp_path):
    """The write fails in one process; the other must not wait for it."""
    run = TwoRanks(tmp_path, "--limit", 4096, "--every-steps", 2)
    _, out, err = run.end()
    assert out.count("step=0000002.ckpt could not be written (File too large): it takes") == 2, (out, err)
    assert "there is no earlier checkpoint" in out
    assert not list(tmp_path.glob("step=*"))


# ---- the main job ---------------------------------------------------------------------------------------------

BATCHES = 6  # an epoch; three classes of twelve images
MAIN_JOB = [
    *("--preset", "quick", "--model", "bern", "supervised", "--dim", "16", "--checkpoint-steps", "2"),
    *("--epochs", "3", "--batch-size", "6", "--temperature-end", "0.5", "--ema", "0.9"),
    *("--finetune-epochs", "2", "--finetune-batch-size", "6"),
    *("--supervised-epochs", "2", "--supervised-batch-size", "6"),
]
PARTS = ("bern/pretrain", "bern/finetune", "supervised/train")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_main_job_killed_within_epochs_ends_with_the_same_weights(tmp_path, precision):
    source, killed = write_folder(tmp_path / "data", 12, 6), tmp_path / "killed" / "out"
    told = [*MAIN_JOB, "--precision", precision, "--data", str(source), "--out"]
    for part, step in (
        ("bern/pretrain", 2),
        ("bern/pretrain", 8),
        ("bern/finetune", 4),
        ("supervised/train", 8),
    ):
        resume = ["--resume"] if killed.exists() else []
        run = Run(tmp_path / "killed", *told, str(killed), *resume, script="cifar10_full")
        wait_for(lambda part=part, step=step: last_step(killed / part) >= step, run)
        os.kill(run.pid, signal.SIGKILL)
        code, out, _ = run.end()
        assert code == -signal.SIGKILL, out
        assert last_step(killed / part) % BATCHES  # within an epoch
        assert not (killed / part / "weights.safetensors").exists()
    whole = tmp_path / "whole" / "out"
    for folder, resume in ((killed, ["--resume"]), (whole, [])):
        code, out, err = Run(folder.parent, *told, str(folder), *resume, script="cifar10_full").end()
        assert code == 0, (out, err)
    for part in PARTS:
        left, unbroken = (load_file(folder / part / "weights.safetensors") for folder in (killed, whole))
        assert len(left) > 20
        assert left.keys() == unbroken.keys()
        assert all(torch.equal(left[name], unbroken[name]) for name in left), part
        left, unbroken = (column(folder / part / "loss.csv", "loss") for folder in (killed, whole))
        assert len(left) == BATCHES * (3 if part == "bern/pretrain" else 2)
        assert left == unbroken, part


def last_step(folder):
    paths = steps_in(folder)
    return step_of(paths[-1]) if paths else 0


def column(path, name):
    return [row[name] for row in csv.DictReader(path.read_text().splitlines())]
