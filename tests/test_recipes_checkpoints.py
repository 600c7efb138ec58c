"""Checkpoints: whole on the disk, checked before use, written when they should be, and resumed to the bit."""

import logging
import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from recipes import checkpoint_io, checkpoints, files
from recipes.checkpoint_io import steps_in
from recipes.checkpoints import (
    CheckpointError,
    Checkpoints,
    Stopped,
    WholeCheckpoints,
    check_space,
    newest_whole,
)
from recipes.files import whole_file, write_atomically, write_json
from stand_in_training import EPOCHS, STEPS, TOTAL, Tiny, fit

CONTENT = {"weights": torch.arange(40.0), "run": {"losses": [0.5, 0.25], "schedule": None}}


@pytest.fixture(autouse=True)
def quiet():
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def save(folder, step, content=CONTENT):
    path = folder / f"step={step:07d}.ckpt"
    WholeCheckpoints().save_checkpoint(content, path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def at(*steps):
    return [f"step={step:07d}.ckpt" for step in steps]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


# ---- whole files ----------------------------------------------------------------------------------------------


class FullDiskError(OSError):
    pass


def full_disk(*args):
    raise FullDiskError("no space left on device")


def test_a_failing_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "below" / "file.json"
    write_json(path, {"a": 1})
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(FullDiskError):
            write_atomically(path, b"half of it")
    assert path.read_bytes() == old
    assert names(path.parent) == ["file.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.json"]


def test_content_and_name_are_on_the_disk_in_that_order(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    write_atomically(path, b"old")
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        what = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        order.append((what, path.read_bytes()))
        real_fsync(descriptor)

    def replace(self, target):
        order.append(("replace", self.read_bytes()))
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(path, b"new")
    assert order == [("file", b"old"), ("replace", b"new"), ("folder", b"new")]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write():
        with whole_file(tmp_path / "file") as file:
            file.write(b"a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == []


# ---- one checkpoint -------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_by_plain_torch(tmp_path):
    path = save(tmp_path, 1)
    assert names(tmp_path) == at(1)
    assert equal(torch.load(path, weights_only=True), CONTENT)
    assert equal(WholeCheckpoints().load_checkpoint(path), CONTENT)


def test_a_full_disk_is_told_with_what_is_kept(tmp_path):
    """/dev/full fails as a full disk does: on the write itself."""
    full = tmp_path / "step=0000002.ckpt.partial"
    full.symlink_to("/dev/full")
    message = r"step=0000002\.ckpt could not be written \(No space left on device\): it takes 0\.0 MB and [\d.,]+ MB "
    with pytest.raises(CheckpointError, match=message + "are free.*there is no earlier checkpoint"):
        save(tmp_path, 2)
    assert names(tmp_path) == []
    assert Path("/dev/full").exists()
    first = save(tmp_path, 1)
    full.symlink_to("/dev/full")
    content = {"weights": torch.zeros(500_000)}
    with pytest.raises(CheckpointError, match=r"it takes 2\.0 MB .*step=0000001\.ckpt, is kept; make room"):
        save(tmp_path, 2, content)
    assert names(tmp_path) == at(1)
    assert newest_whole(tmp_path) == first


def test_a_disk_that_fails_at_its_end_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"could not be written \(no space left on device\)"):
        save(tmp_path, 2)
    assert names(tmp_path) == []


def test_what_cannot_be_pickled_is_not_a_full_disk(tmp_path):
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"pickle|Can't get local"):
        save(tmp_path, 2, {"a": lambda: None})
    assert names(tmp_path) == []


def test_space_is_looked_for(tmp_path):
    check_space(tmp_path / "not" / "there", 1000)
    assert names(tmp_path) == []
    with pytest.raises(
        CheckpointError, match=r"need 1,000,000,000,000\.0 MB and [\d.,]+ MB are free .* --out"
    ):
        check_space(tmp_path / "not" / "there", 10**18)


# ---- which checkpoint is used ---------------------------------------------------------------------------------


def test_the_newest_by_step_is_used(tmp_path):
    assert newest_whole(tmp_path / "missing") is None
    assert newest_whole(tmp_path) is None
    for step in (9, 12_345_678, 10):
        save(tmp_path, step)
    (tmp_path / "step=last.ckpt").touch()
    (tmp_path / "step=99999999.ckpt.partial").touch()
    assert newest_whole(tmp_path).name == "step=12345678.ckpt"


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, share):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    content = second.read_bytes()
    second.write_bytes(content[: int(share * len(content))])
    assert newest_whole(tmp_path) == first
    assert "step=0000002.ckpt is damaged" in capsys.readouterr().out
    assert second.exists()


def test_torch_itself_reads_flipped_bits_without_complaint(tmp_path):
    """Why checksums are compared: remove that when this fails."""
    path = save(tmp_path, 1, {"weights": torch.zeros(10_000)})
    content = bytearray(path.read_bytes())
    content[20_000] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weights"].count_nonzero() == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* reads whole; delete step=0000001\.ckpt"):
        newest_whole(tmp_path)


def test_no_flipped_byte_goes_unnoticed(tmp_path, monkeypatch):
    """Every byte in turn: the file is refused, or still holds exactly what was written (padding and dates)."""
    monkeypatch.setattr(checkpoint_io, "warn", lambda text: None)
    path = save(tmp_path, 1)
    content = path.read_bytes()
    assert equal(torch.load(newest_whole(tmp_path), weights_only=True), CONTENT)
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = newest_whole(tmp_path)
        except CheckpointError:
            refused += 1
        else:
            assert equal(torch.load(found, weights_only=True), CONTENT), place
    assert refused > len(content) / 4


def test_a_checkpoint_that_is_no_archive_is_damaged(tmp_path, capsys):
    (tmp_path / "step=0000003.ckpt").write_bytes(b"words")
    torch.save(CONTENT, tmp_path / "step=0000002.ckpt", _use_new_zipfile_serialization=False)
    assert newest_whole_or_error(tmp_path).startswith(
        f"no checkpoint in {tmp_path} reads whole; delete step=0000002.ckpt, step="
    )
    assert capsys.readouterr().out.count("BadZipFile") == 2


def newest_whole_or_error(folder):
    with pytest.raises(CheckpointError) as caught:
        newest_whole(folder)
    return str(caught.value)


# ---- when checkpoints are written -----------------------------------------------------------------------------


def test_every_few_steps_and_at_the_end_of_epochs(tmp_path):
    written = []

    class Watch(L.Callback):
        def on_train_batch_start(self, *args):
            written.append(names(tmp_path))

    fit(Tiny(), tmp_path, callbacks=[Watch()], every_steps=3, epochs=2)
    kept = [0, 0, 0, 3, 3, 3, 6, 7, 7, 9, 9, 9, 12, 12]
    before = {0: [], 3: [3], 6: [3, 6], 7: [6, 7], 9: [7, 9], 12: [9, 12]}
    assert written == [at(*before[step]) for step in kept]
    assert names(tmp_path) == at(12, 14)


def test_epoch_ends_can_be_left_out_and_the_end_cannot(tmp_path):
    fit(Tiny(), tmp_path, every_steps=STEPS - 1, epoch_ends=False, keep=9, epochs=3)
    assert names(tmp_path) == at(6, 12, 18, 21)


def test_a_step_that_is_due_and_ends_an_epoch_is_written_once(tmp_path, monkeypatch):
    saved = []
    real = WholeCheckpoints.save_checkpoint

    def watched(self, checkpoint, path, storage_options=None):
        saved.append(path.name)
        real(self, checkpoint, path)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", watched)
    fit(Tiny(), tmp_path, every_steps=STEPS, epochs=2)
    assert saved == at(7, 14)


def test_minutes_count_from_the_last_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    def a_minute_later(step):
        now[0] += 60

    fit(Tiny(before_step=a_minute_later), tmp_path, every_minutes=2.5, keep=9, epochs=2)
    assert names(tmp_path) == at(3, 6, 7, 10, 13, 14)


def test_a_second_run_keeps_as_many_as_one(tmp_path):
    fit(Tiny(), tmp_path, every_steps=2, epochs=2)
    assert names(tmp_path) == at(12, 14)
    fit(Tiny(), tmp_path, every_steps=100, epochs=3)
    assert names(tmp_path) == at(14, 21)


def test_damaged_files_and_parts_go_when_there_are_enough_whole_ones(tmp_path):
    fit(Tiny(), tmp_path, every_steps=5, epochs=1)
    assert names(tmp_path) == at(5, 7)
    newest = tmp_path / at(7)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    (tmp_path / "step=0000009.ckpt.partial").touch()
    left = {}

    def look(step):
        left[step] = names(tmp_path)

    fit(Tiny(before_step=look), tmp_path, every_steps=6, epochs=2)
    assert left[5] == at(5, 7)  # the damaged one does not count
    assert left[6] == at(5, 6)
    assert names(tmp_path) == at(12, 14)


def test_only_its_own_files_are_deleted(tmp_path):
    others = ["step=best.ckpt", "weights.safetensors", "step=0000001.txt"]
    for name in others:
        (tmp_path / name).touch()
    fit(Tiny(), tmp_path, every_steps=1, epochs=1)
    assert names(tmp_path) == sorted([*others, *at(6, 7)])


def test_room_is_looked_for_before_the_first_step(tmp_path, monkeypatch):
    """Three files at most: weights, and momentum of each that is trained."""
    asked = []
    monkeypatch.setattr(checkpoints, "check_space", lambda folder, needed: asked.append((folder, needed)))
    module = Tiny()
    fit(module, tmp_path, epochs=1)
    trained = sum(p.numel() for p in module.parameters())
    assert asked == [(tmp_path, 3 * (4 * trained + 4 * (8 + 8) + 8 + 4 * trained))]  # and batch norm's
    there = sum(path.stat().st_size for path in tmp_path.iterdir())
    fit(Tiny(), tmp_path, epochs=2)
    assert asked[1] == (tmp_path, asked[0][1] - there)
    fit(Tiny(optimizer="AdamW"), tmp_path / "adam", epochs=1)
    assert asked[2][1] == asked[0][1] + 3 * 4 * trained
    taken = []
    monkeypatch.setattr(checkpoints, "check_space", lambda *args: check_space(tmp_path, 10**18))
    with pytest.raises(CheckpointError, match="make room"):
        fit(Tiny(before_step=taken.append), tmp_path / "other", epochs=1)
    assert taken == []


@pytest.mark.parametrize("rule", [{"every_steps": 0}, {"every_minutes": -1.0}, {"keep": 0}])
def test_rules_that_cannot_be_kept_are_refused(tmp_path, rule):
    (name, value), *_ = rule.items()
    with pytest.raises(ValueError, match=f"{name} must be above 0.* got {value}"):
        Checkpoints(tmp_path, **rule)


def test_a_module_that_changes_after_its_checkpoint_is_refused(tmp_path):
    class Late(Tiny):
        def on_train_batch_end(self, *args):
            self.losses.append(0.0)

    with pytest.raises(TypeError, match=r"Late overrides on_train_batch_end.*training_step"):
        fit(Late(), tmp_path)


# ---- resumed --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """A whole run, and its checkpoints of every step."""
    folder = tmp_path_factory.mktemp("whole")
    module = Tiny()
    fit(module, folder, every_steps=1, keep=TOTAL)
    assert len(steps_in(folder)) == TOTAL
    return module, folder


def assert_same_end(module, whole):
    assert equal(dict(module.state_dict()), dict(whole.state_dict()))
    assert module.losses == whole.losses
    momentum = [list(m.trainer.optimizers[0].state_dict()["state"].values()) for m in (module, whole)]
    assert len(momentum[0]) == len(list(whole.parameters()))
    assert all(
        torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(*momentum, strict=True)
    )


@pytest.mark.parametrize("step", range(1, TOTAL, 2))
def test_a_run_resumed_at_any_step_and_again_ends_as_one_that_was_not(every_step, tmp_path, step):
    whole, folder = every_step
    once = Tiny()
    fit(once, tmp_path / "once", resume=folder / at(step)[0], every_steps=3, keep=TOTAL)
    assert once.seen == [(i, i % STEPS) for i in range(step, TOTAL)]
    ends = [("end", epoch) for epoch in range(step // STEPS, EPOCHS)]
    starts = [("start", epoch) for epoch in range(-(-step // STEPS), EPOCHS)]
    assert sorted(once.hooks) == sorted(starts + ends)
    assert_same_end(once, whole)
    later = steps_in(tmp_path / "once")[0]
    twice = Tiny()
    fit(twice, tmp_path / "twice", resume=later)
    assert twice.seen == [(i, i % STEPS) for i in range(int(later.stem[5:]), TOTAL)]
    if twice.seen:
        assert_same_end(twice, whole)


def test_a_finished_run_takes_no_step(every_step, tmp_path):
    whole, folder = every_step
    again = Tiny()
    fit(again, tmp_path, resume=folder / at(TOTAL)[0])
    assert again.seen == []
    assert equal(dict(again.state_dict()), dict(whole.state_dict()))
    assert names(tmp_path) == []


# ---- signals, within one process (test_survival.py has real ones) ---------------------------------------------


def send(number, at_step):
    def before_step(step):
        if step == at_step:
            os.kill(os.getpid(), number)

    return before_step


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
def test_a_signal_lets_the_step_end_and_leaves_a_checkpoint(every_step, tmp_path, capfd, number, code):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    module = Tiny(before_step=send(number, 9))
    with pytest.raises(Stopped) as stopped:
        fit(module, tmp_path)
    assert module.seen[-1] == (9, 2)
    assert stopped.value.exit_code == code
    assert stopped.value.checkpoint == tmp_path / at(10)[0]
    assert str(stopped.value) == f"stopped by {number.name}; {tmp_path / at(10)[0]} is written"
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert names(tmp_path) == at(7, 10)
    resumed = Tiny()
    fit(resumed, tmp_path)
    assert resumed.seen[0] == (10, 3)
    assert_same_end(resumed, every_step[0])


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_end(every_step, tmp_path):
    module = Tiny(before_step=send(signal.SIGTERM, STEPS - 1))
    with pytest.raises(Stopped):
        fit(module, tmp_path, epoch_ends=False)
    assert module.hooks == [("start", 0), ("end", 0)]
    assert names(tmp_path) == at(STEPS)
    resumed = Tiny()
    fit(resumed, tmp_path)
    assert resumed.hooks[0] == ("start", 1)
    assert_same_end(resumed, every_step[0])


def test_a_signal_while_the_run_ends_is_heeded(tmp_path):
    class Late(L.Callback):
        def on_train_end(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        fit(Tiny(), tmp_path, callbacks=[Late()], epochs=1)
    assert stopped.value.checkpoint == tmp_path / at(STEPS)[0]


def test_a_signal_while_the_data_is_opened_is_heeded(tmp_path):
    class Early(Tiny):
        def train_dataloader(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_dataloader()

    module = Early()
    with pytest.raises(Stopped):
        fit(module, tmp_path)
    assert module.seen == [(0, 0)]
    assert names(tmp_path) == at(1)


def test_a_signal_that_a_launcher_repeats_is_one_wish(tmp_path):
    """Ctrl-C reaches torchrun and its processes; torchrun then passes it on."""

    def twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        fit(Tiny(before_step=twice), tmp_path)
    assert stopped.value.signal == signal.SIGINT
    assert names(tmp_path) == at(4)


def test_handlers_are_put_back_when_training_fails(tmp_path):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def fail(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Tiny(before_step=fail), tmp_path)
    assert {n: signal.getsignal(n) for n in handlers} == handlers
