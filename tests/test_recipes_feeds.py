"""Batches of the examples: an order that seed and step decide alone, and a run that goes on where it stopped."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from recipes.batches import InMemory, InOrder, Loader
from recipes.feeds import DataError, Feed, Order, TrainingData, evaluation_loader
from torch import nn
from torch.utils.data import Dataset

IMAGES, BATCH, EPOCHS = 22, 4, 3
STEPS = IMAGES // BATCH  # two images are left out of each epoch

lightnings_own = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:.*does not have many workers", "ignore:.*exists and is not empty"
)


def numbered(count=IMAGES):
    """Images whose pixels and labels tell their number."""
    labels = torch.arange(count)
    return InMemory(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), labels)


def feed(count=IMAGES, *, in_memory=False):
    return Feed(numbered(count), nn.Identity(), in_memory)


# ---- the order -----------------------------------------------------------------------------------------------

lengths, shares = st.integers(2, 60), st.integers(1, 4)
worlds, seeds = st.integers(1, 4), st.integers(0, 2**40)


def batches(length, batch, seed, rank=0, world=1, start=0):
    return list(Order(length, batch, seed, rank, world, start))


@given(lengths, shares, worlds, seeds, st.integers(0, 5))
def test_all_processes_together_see_the_batches_of_one(length, share, world, seed, epoch):
    batch = share * world
    assume(2 <= batch <= length)
    start = epoch * (length // batch)
    alone = batches(length, batch, seed, start=start)
    ranks = [batches(length, batch, seed, rank, world, start) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone
    assert all(len(part) == share for rank in ranks for part in rank)


@given(lengths, shares, worlds, seeds, st.integers(0, 200))
def test_an_order_that_begins_anywhere_is_the_rest_of_its_epoch(length, share, world, seed, start):
    batch = share * world
    assume(2 <= batch <= length)
    steps = length // batch
    epoch, step = divmod(start, steps)
    for rank in range(world):
        order = Order(length, batch, seed, rank, world, start)
        assert list(order) == batches(length, batch, seed, rank, world, epoch * steps)[step:]
        assert list(order) == list(order)
        assert (order.epoch, len(order)) == (epoch, steps)


@given(lengths, st.integers(2, 8), seeds, st.integers(0, 5))
def test_an_epoch_takes_no_image_twice_and_leaves_out_less_than_a_batch(length, batch, seed, epoch):
    assume(batch <= length)
    steps = length // batch
    pairs = list(chain(*batches(length, batch, seed, start=epoch * steps)))
    assert {told for _, told in pairs} == {epoch}
    indices = [index for index, _ in pairs]
    assert len(set(indices)) == len(indices) == steps * batch
    assert set(indices) <= set(range(length))


def test_epochs_and_seeds_differ_even_in_their_highest_bits():
    orders = {
        (seed, epoch): tuple(i for b in batches(60, 4, seed, start=15 * epoch) for i, _ in b)
        for seed in (0, 1, 2**32, 2**33)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == len(orders)


def test_every_place_of_an_epoch_is_as_likely_for_an_image():
    first = torch.tensor([batches(10, 5, seed)[0][0][0] for seed in range(2000)]).bincount(minlength=10)
    assert (first - 200).abs().max() < 5 * (2000 * 0.1 * 0.9) ** 0.5


def test_a_step_may_be_told_anew_each_time():
    step = 0
    order = Order(IMAGES, BATCH, 0, start_step=lambda: step)
    begun = iter(order)
    step = STEPS + 2
    assert list(begun) == batches(IMAGES, BATCH, 0)  # what has begun goes on
    assert (list(order), order.epoch) == (batches(IMAGES, BATCH, 0, start=STEPS + 2), 1)


@pytest.mark.parametrize("batch", [-1, 0, 1, IMAGES + 1])
def test_batches_that_do_not_fit_are_refused(batch):
    told = (
        f"--batch-size must be between 2 and the {IMAGES} training images, got {batch}; give at most {IMAGES}"
    )
    for make in (lambda: Order(IMAGES, batch, 0), lambda: TrainingData(feed(), batch, 0)):
        with pytest.raises(DataError, match=told):
            make()


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(DataError, match=r"all 3 processes and must be a multiple .* got 4; give 6$"):
        Order(IMAGES, 4, 0, rank=1, world=3)


@pytest.mark.parametrize("rank", [-1, 2])
def test_ranks_that_there_are_not_are_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be between 0 and world - 1 = 1, got {rank}"):
        Order(IMAGES, 4, 0, rank, 2)


# ---- loaders -------------------------------------------------------------------------------------------------


class Failing(Dataset):
    """Reads until it meets image 5."""

    def __len__(self):
        return IMAGES

    def __getitems__(self, pairs):
        if any(index == 5 for index, _ in pairs):
            raise DataError("cannot read the image five")
        return torch.zeros(len(pairs), 3, 1, 1, dtype=torch.uint8), torch.zeros(len(pairs))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_error_arrives_as_it_was_raised(workers):
    loader = iter(Loader(Failing(), InOrder(IMAGES, BATCH), workers, pin_memory=False))
    next(loader)
    with pytest.raises(DataError) as caught:
        next(loader)
    assert str(caught.value) == "cannot read the image five"


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_every_image_in_order(workers):
    loader = evaluation_loader(feed(), 8, workers)
    for _ in range(2):
        images, labels = zip(*loader, strict=True)
        assert [len(part) for part in labels] == [8, 8, 6]
        assert torch.cat(labels).tolist() == list(range(IMAGES))
        assert torch.cat(images)[:, 1, 0, 0].tolist() == list(range(IMAGES))
    assert len(loader) == 3


def test_images_in_memory_want_no_workers():
    assert evaluation_loader(feed(in_memory=True), 8, 2).num_workers == 0
    assert evaluation_loader(feed(), 8, 2).num_workers == 2
    assert TrainingData(feed(in_memory=True), 4, 0, 2).workers == 0
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluation_loader(feed(), 0)


def test_loading_leaves_the_global_numbers_alone():
    before = torch.get_rng_state()
    for _ in range(2):
        list(evaluation_loader(feed(), 8))
        batches(IMAGES, 4, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_workers_get_can_be_sent():
    loader = Loader(numbered(), InOrder(IMAGES, 4), 0, pin_memory=False)
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == IMAGES


READER = """
import multiprocessing, sys
from recipes.batches import InMemory, InOrder, Loader
import torch

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    data = InMemory(torch.zeros(40, 3, 1, 1, dtype=torch.uint8), torch.arange(40))
    loader = Loader(data, InOrder(40, 4), 2, pin_memory=False)
    batches = iter(loader)
    next(batches), next(batches)  # one of each worker
    print(*(worker.pid for worker in loader._iterator._workers), flush=True)
    sys.stdin.readline()
    print(sum(len(labels) for _, labels in batches), flush=True)
    if sys.argv[2] == "leave":
        batches = iter(loader)  # Python ends with workers at work
        next(batches)
"""


@pytest.fixture(params=["fork", "forkserver"])
def reader(request, tmp_path):
    """Starts a process that reads with two workers; gives it, and the workers' numbers."""
    if request.param not in multiprocessing.get_all_start_methods() or not hasattr(signal, "sigtimedwait"):
        pytest.skip("this system has no such signals")
    (tmp_path / "reader.py").write_text(READER)
    started = []

    def start(how="leave"):
        command = [sys.executable, str(tmp_path / "reader.py"), request.param, how]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=paths)
        started.append(process)
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2, process.stderr.read()
        return process, workers

    yield start
    for process in started:
        process.kill()
        process.communicate()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_workers_outlive_a_signal_to_end_and_end_with_their_process(reader):
    process, workers = reader()
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert all(map(running, workers))
    told, errors = process.communicate("go on\n", timeout=60)
    assert told.split() == ["32"]
    assert (process.returncode, errors) == (0, "")
    assert not any(map(running, workers))


def test_workers_do_not_outlive_a_killed_process(reader):
    process, workers = reader()
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(running, workers))


# ---- under Lightning's trainer -------------------------------------------------------------------------------


class StopError(Exception):
    """What stops a run from outside."""


class Recorder(L.LightningModule):
    """Trains one number, and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        self.seen.append((self.global_step, batch_idx, labels.tolist()))
        return self.weight * labels.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Stop(L.Callback):
    """Saves a checkpoint after some step, in one hook or another, and stops the run."""

    def __init__(self, step, hook, path):
        self.step, self.hook, self.path = step, hook, path

    def on_train_batch_end(self, trainer, *_):
        self.perhaps(trainer, "batch")

    def on_train_epoch_end(self, trainer, *_):
        self.perhaps(trainer, "epoch")

    def perhaps(self, trainer, hook):
        if hook == self.hook and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise StopError


def fit(folder, workers, *, stop=None, hook="batch", resume=None, batch=BATCH, seed=0, **options):
    """What a run sees from where it begins to where it stops."""
    module, data = Recorder(), TrainingData(feed(), batch, seed, workers)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        callbacks=[Stop(stop, hook, folder / f"{stop}.ckpt")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    if stop is None:
        trainer.fit(module, data, ckpt_path=resume)
    else:
        with pytest.raises(StopError):
            trainer.fit(module, data, ckpt_path=resume)
    return module.seen


WHOLE = [
    (STEPS * epoch + step, step, [index for index, _ in batch])
    for epoch in range(EPOCHS)
    for step, batch in enumerate(Order(IMAGES, BATCH, 0, start_step=STEPS * epoch))
]


@lightnings_own
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_sees_every_epoch_in_its_order(tmp_path, workers):
    assert fit(tmp_path, workers) == WHOLE


@lightnings_own
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("step", "hook"),
    [(1, "batch"), (3, "batch"), (5, "batch"), (5, "epoch"), (6, "batch"), (10, "epoch"), (12, "batch")],
)
def test_a_resumed_run_sees_the_rest(tmp_path, workers, step, hook):
    assert fit(tmp_path, workers, stop=step, hook=hook) == WHOLE[:step]
    assert fit(tmp_path, workers, resume=tmp_path / f"{step}.ckpt") == WHOLE[step:]


@lightnings_own
def test_a_run_may_stop_again_and_again(tmp_path):
    seen, last = [], None
    for step, hook in [
        (2, "batch"),
        (3, "batch"),
        (5, "epoch"),
        (8, "batch"),
        (13, "batch"),
        (None, "batch"),
    ]:
        seen += fit(tmp_path, 0, stop=step, hook=hook, resume=last)
        last = tmp_path / f"{step}.ckpt"
    assert seen == WHOLE


@lightnings_own
def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(tmp_path, 0, stop=3)
    for changed, told in (({"batch": 6}, "batch_size: 4 then, 6 now"), ({"seed": 1}, "seed: 0 then, 1 now")):
        with pytest.raises(DataError, match=rf"of other data or settings \({told}\); give the same"):
            fit(tmp_path, 0, resume=tmp_path / "3.ckpt", **changed)


@lightnings_own
def test_accumulated_gradients_are_refused(tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches must be 1, got 2"):
        fit(tmp_path, 0, accumulate_grad_batches=2)
