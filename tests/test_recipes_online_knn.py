"""Nearest neighbours during training: the right number, and a run that does not notice."""

import copy
import math

import lightning as L
import pytest
import torch
from recipes import online_knn
from recipes.batches import DataError
from recipes.online_knn import OnlineKNN, choose
from recipes.track import Track
from small_run import EPOCHS, STEPS, TOTAL, Small, fit, images, start

from stochastic_bottleneck.evaluation import knn_accuracy

FEW = {"bank": 20, "queries": 10}


class ByHand(L.Callback):
    """The same accuracy from a copy of the encoder and the images in memory, at the end of every epoch."""

    def __init__(self, data, knn):
        self.data, self.knn, self.accuracies = data, knn, {}

    def on_train_epoch_end(self, trainer, module):
        encoder, sets = copy.deepcopy(module.model.encoder).eval(), []
        for split, index in (("train", self.knn.chosen.bank), (self.knn.split, self.knn.chosen.queries)):
            pictures, labels = getattr(self.data, split)
            pixels = self.data.evaluation(split).transform(pictures[index])
            sets += [encoder(pixels).detach(), labels[index]]
        self.accuracies[module.global_step] = knn_accuracy(*sets, k=min(20, len(sets[0])))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_accuracy_is_that_of_the_frozen_encoder(tmp_path, split):
    data = images()
    knn = OnlineKNN(data, split=split, **FEW)
    by_hand, tracked = ByHand(data, knn), Track(tmp_path)
    fit(Small(), tmp_path, [tracked, knn, by_hand], data=data)
    measured = {row["step"]: row["knn"] for row in tracked.rows}
    assert measured == by_hand.accuracies
    assert list(measured) == [STEPS, 2 * STEPS, 3 * STEPS]
    assert knn.accuracy == measured[TOTAL]
    assert all(0 < accuracy < 1 for accuracy in measured.values())


def test_images_are_encoded_in_batches_of_any_size(tmp_path, monkeypatch):
    accuracies = []
    for size in (256, 7):
        monkeypatch.setattr(online_knn, "BATCH", size)
        knn = OnlineKNN(images(), **FEW)
        fit(Small(), tmp_path / str(size), [knn], epochs=1)
        accuracies.append(knn.accuracy)
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_it_is_measured_every_few_epochs_and_after_the_last(tmp_path, monkeypatch, every, epochs):
    monkeypatch.setattr(OnlineKNN, "measure", lambda self, trainer, module: 0.5)
    tracked = Track(tmp_path)
    fit(Small(), tmp_path, [OnlineKNN(images(), every, **FEW), tracked], epochs=4)
    assert [row["epoch"] for row in tracked.rows if "knn" in row] == epochs


# ---- nothing is touched -------------------------------------------------------------------------------------


class States(L.Callback):
    """Everything that a measurement could change, right before and right after it."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        modes = {name: m.training for name, m in module.named_modules()}
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        gradients = [p.grad.clone() for p in module.parameters()]
        self.seen.append((modes, weights, gradients, torch.get_rng_state(), torch.is_grad_enabled()))


class Before(States):
    pass


def _draw(module, inputs):
    torch.rand(3)  # as an encoder may that draws in evaluation mode too


def test_a_measurement_changes_nothing(tmp_path):
    module, before, after = Small(), Before(), States()
    norm = module.model.encoder.backbone[1]
    module.before_step = lambda step: norm.eval()  # someone froze this one's statistics
    module.model.encoder.register_forward_pre_hook(_draw)
    knn = OnlineKNN(images(), **FEW)
    fit(module, tmp_path, [before, knn, after], epochs=1)
    assert knn.accuracy is not None
    (modes, weights, gradients, random, grad), (modes_after, *rest) = before.seen[-1], after.seen[-1]
    assert modes == modes_after
    assert set(modes.values()) == {True, False}
    assert weights.keys() == rest[0].keys()
    assert all(torch.equal(weights[name], rest[0][name]) for name in weights)
    assert all(torch.equal(a, b) for a, b in zip(gradients, rest[1], strict=True))
    assert torch.equal(random, rest[2])
    assert (grad, rest[3]) == (True, True)


class Unseeded(Small):
    """Its noise goes on from step to step, so that a number drawn in between would show."""

    def training_step(self, batch, batch_idx):
        state = torch.get_rng_state()
        output = super().training_step(batch, batch_idx)
        torch.set_rng_state(state)
        torch.rand(3)
        return output


def test_a_run_with_it_ends_bit_for_bit_as_one_without(tmp_path):
    ends = []
    for name, callbacks in (("without", []), ("with", [OnlineKNN(images(), **FEW)])):
        torch.manual_seed(11)
        module = Unseeded()
        module.model.encoder.register_forward_pre_hook(_draw)
        fit(module, tmp_path / name, callbacks)
        ends.append((module.state_dict(), [s["loss"] for s in module.seen.values()], torch.get_rng_state()))
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
    assert torch.equal(ends[0][2], ends[1][2])
    assert "encoder.backbone.1.running_mean" in {name.removeprefix("model.") for name in ends[0][0]}


def test_modes_come_back_when_a_measurement_fails(tmp_path):
    module, knn = Small(), OnlineKNN(images(), **FEW)
    module.model.encoder.register_forward_pre_hook(lambda m, _: None if m.training else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(module, tmp_path, [knn], epochs=1)
    assert all(m.training for m in module.modules())


# ---- resumed, diverged, failed ------------------------------------------------------------------------------


def test_a_resumed_run_measures_the_same(tmp_path):
    rows = []
    for folder, stops in (("whole", []), ("stopped", [4, 8, 11])):
        for stop in [*stops, None]:

            def before_step(step, stop=stop):
                if step == stop:
                    raise KeyboardInterrupt

            tracked = Track(tmp_path / folder)
            callbacks = [OnlineKNN(images(), **FEW), tracked]
            if stop is None:
                fit(Small(), tmp_path / folder, callbacks, every_steps=3)
            else:
                with pytest.raises(SystemExit):
                    fit(Small(before_step=before_step), tmp_path / folder, callbacks, every_steps=3)
        rows.append([(row["step"], row["knn"]) for row in tracked.rows])
    assert rows[0] == rows[1]
    assert len(rows[0]) == EPOCHS


def test_features_that_are_not_finite_leave_the_verdict_to_the_module(tmp_path):
    module, tracked = Small(), Track(tmp_path)
    knn = OnlineKNN(images(), **FEW)
    module.model.encoder.register_forward_hook(lambda m, _, h: h if m.training else h * float("nan"))
    fit(module, tmp_path, [tracked, knn], epochs=1)
    assert math.isnan(tracked.rows[-1]["knn"])


def test_an_image_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def damaged(*args):
        raise DataError("cannot read the image 7.jpg; replace or remove it")

    knn = OnlineKNN(images(), **FEW)
    monkeypatch.setattr(online_knn, "evaluation_loader", damaged)
    with pytest.raises(DataError, match="cannot read the image 7"):
        fit(Small(), tmp_path, [knn], epochs=1)


# ---- several processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes saw in a run without it, in one with it and in one where it fails."""
    folder = tmp_path_factory.mktemp("two")
    done, ranks = start(folder, "--knn", processes=2)
    assert done.returncode == 0, done.stderr
    return ranks


@pytest.mark.distributed
def test_processes_agree_on_the_number_and_take_the_same_steps(two):
    measured = [[(row["step"], row["knn"]) for row in rank["with"]["rows"] if "knn" in row] for rank in two]
    assert measured[0] == measured[1]
    assert [step for step, _ in measured[0]] == [2 * STEPS, 3 * STEPS]
    for rank in two:
        a, b = rank["with"]["weights"], rank["without"]["weights"]
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.distributed
def test_a_failure_reaches_every_process(two):
    told = [rank["fails"]["failed"] for rank in two]
    assert told[0].startswith("ZeroDivisionError")
    assert told[1].startswith("RuntimeError: nearest neighbours failed on rank 0 (ZeroDivisionError: ")


# ---- which images -------------------------------------------------------------------------------------------

LABELS = torch.arange(10).repeat_interleave(60)  # in the order of the classes, as folders are


@pytest.mark.parametrize("order", ["by class", "in turn", "random"])
def test_bank_and_queries_are_apart_and_even_over_classes(order):
    labels = {
        "by class": LABELS,
        "in turn": LABELS.view(10, 60).T.flatten(),
        "random": LABELS[torch.randperm(600, generator=torch.Generator().manual_seed(1))],
    }[order]
    bank, queries = choose(labels, None, 200, 100)
    assert (len(bank), len(queries)) == (200, 100)
    assert not set(bank) & set(queries)
    assert bank == sorted(bank)
    assert queries == sorted(queries)
    assert labels[bank].bincount().tolist() == [20] * 10
    assert labels[queries].bincount().tolist() == [10] * 10
    assert (bank, queries) == choose(labels, None, 200, 100)


def test_few_images_are_shared_in_proportion():
    bank, queries = choose(LABELS, None, 5000, 2500)
    assert (len(bank), len(queries)) == (400, 200)
    assert sorted(bank + queries) == list(range(600))
    assert [len(part) for part in choose(LABELS[58:62], None, 5000, 10)] == [3, 1]


def test_queries_may_come_from_the_test_set():
    bank, queries = choose(LABELS, LABELS[::3], 5000, 50)
    assert bank == list(range(600))
    assert LABELS[::3][queries].bincount().tolist() == [5] * 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every_epochs": 0}, "every_epochs must be at least 1, got 0"),
        ({"bank": 0}, "bank must be at least 1, got 0"),
        ({"queries": -1}, "queries must be at least 1, got -1"),
        ({"split": "val"}, 'split must be "train" or "test", got \'val\''),
        ({"bank": 1}, "the bank of 1 images holds one class; give a larger bank"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        OnlineKNN(images(), **options)
