"""Runs that are killed, stopped, damaged or diverge, and what they leave."""

import os
import random
import shutil
import signal
import time

import pytest
import runs
import torch
from checkpointing import ResumableSampler, newest_checkpoint, seed_for
from full_runs import cifar10_full, measured, quick, run, start
from small_images import write_folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), train=8, test=4)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that was never interrupted, and its seconds."""
    folder, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    code, output = run(cifar10_full, quick(folder, images, "--models", "bern", "gauss"))
    assert code == 0, output
    return folder, time.monotonic() - begin


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_run_killed_at_random_moments_ends_equal_to_the_bit(whole, images, tmp_path, moments):
    reference, seconds = whole
    arguments = quick(tmp_path / "run", images, "--models", "bern", "gauss")
    random.seed(moments)
    killed = 0
    for _ in range(moments):
        process = start(cifar10_full, [*arguments, "--resume"])
        process.join(random.uniform(0.05, 0.6) * seconds)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
    assert killed
    code, output = run(cifar10_full, [*arguments, "--resume"])
    assert code == 0, output
    assert measured(tmp_path / "run") == measured(reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_a_checkpoint(whole, images, tmp_path, number):
    arguments = quick(tmp_path / "run", images, "--models", "bern", "gauss")
    process = start(cifar10_full, arguments)
    checkpoints = tmp_path / "run" / "bern" / "checkpoints"
    while not any(checkpoints.glob("*.ckpt")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    assert newest_checkpoint(checkpoints)
    assert run(cifar10_full, [*arguments, "--resume"])[0] == 0
    assert measured(tmp_path / "run") == measured(whole[0])


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(whole, images, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    newest, before = sorted((tmp_path / "run" / "bern" / "checkpoints").glob("*.ckpt"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--models", "bern", "gauss", "--resume"))
    assert code == 0
    assert f"{newest} is damaged" in output
    assert newest_checkpoint(newest.parent) == newest  # made again
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == content
    assert before.exists()
    assert measured(tmp_path / "run") == measured(whole[0])


def test_a_loss_that_diverges_leaves_a_good_checkpoint(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10_full.Pretraining, "training_step", diverging(cifar10_full.Pretraining.training_step))
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--models", "simclr"))
    assert code == 2
    assert "became inf or nan by step 5" in output
    assert "--lr" in output
    newest = newest_checkpoint(tmp_path / "run" / "simclr" / "checkpoints")
    assert newest.name == "step=000000004.ckpt"
    assert str(newest) in output
    weights = torch.load(newest, weights_only=True)["state_dict"].values()
    assert all(value.isfinite().all() for value in weights if value.is_floating_point())


def diverging(step):
    def training_step(module, batch, batch_idx):
        return step(module, batch, batch_idx) * (float("nan") if module.global_step == 4 else 1)

    return training_step


def test_a_full_disk_leaves_the_checkpoints_before(images, tmp_path, monkeypatch):
    save = torch.save

    def full(value, file):
        save(value, file)
        if "step=000000005" in file.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--models", "simclr"))
    assert code == 2
    assert "No space left on device" in output
    assert "--resume" in output
    left = sorted(path.name for path in (tmp_path / "run" / "simclr" / "checkpoints").iterdir())
    assert left == ["step=000000003.ckpt", "step=000000004.ckpt"]


@pytest.mark.parametrize(
    ("change", "quoted"), [(["--lr", "0.3"], "lr: 0.2 before, 0.3 now"), (["--seed", "1"], "seed: 0 before, 1 now")]
)
def test_settings_that_changed_are_refused(whole, images, tmp_path, change, quoted):
    shutil.copytree(whole[0], tmp_path / "run")
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--resume", *change))
    assert code == 2
    assert quoted in output
    (tmp_path / "run" / "results.json").unlink()  # the checkpoints know, too
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--models", "bern", "--resume", *change))
    assert code == 2
    assert quoted in output


def test_images_that_changed_are_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    other = write_folder(tmp_path / "other", train=8, test=4, first=100)
    code, output = run(cifar10_full, quick(tmp_path / "run", other, "--resume"))
    assert code == 2
    assert "images: " in output


def test_a_second_run_in_one_folder_is_refused(whole, images, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    code, output = run(cifar10_full, quick(tmp_path / "run", images))
    assert code == 2
    assert "add --resume" in output
    with runs.FileLock(tmp_path / "run" / ".lock"):
        code, output = run(cifar10_full, quick(tmp_path / "run", images, "--resume"))
    assert code == 2
    assert "another process is running" in output


class Progress:
    """What the sampler asks of a trainer."""

    def __init__(self, step=0, rank=0, world=1):
        self.global_step, self.global_rank, self.world_size = step, rank, world


def test_processes_share_the_batches_of_one():
    whole = [*ResumableSampler(50, 8, 0, Progress())]
    parts = [[*ResumableSampler(50, 4, 0, Progress(rank=rank, world=2))] for rank in (0, 1)]
    assert len(whole) == 48 == len({*whole})
    for step in range(6):
        batch = [i for part in parts for i in part[4 * step : 4 * step + 4]]
        assert sorted(batch) == sorted(whole[8 * step : 8 * step + 8])


def test_a_resumed_epoch_continues_at_its_batch():
    assert [*ResumableSampler(50, 8, 0, Progress(step=2))] == [*ResumableSampler(50, 8, 0, Progress())][16:]
    assert [*ResumableSampler(50, 8, 0, Progress(step=6))] != [*ResumableSampler(50, 8, 0, Progress())]


def test_neighbouring_seeds_are_unrelated():
    assert len({seed_for(a, b) for a in range(20) for b in range(20)}) == 400
