"""Training on labels: what is trained and what is not, the scores, and the same end however often it was stopped."""

import copy
import json
import math
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import small_classification
import torch
from recipes import classify as recipe
from recipes.checkpoints import newest_whole
from recipes.classifier import Classifier, Representations
from recipes.classify import Classification
from recipes.data import ImageData, Images
from recipes.feeds import DataError
from recipes.scores import Counts, score
from recipes.training import TrainingError, configure
from safetensors.torch import load_file
from sklearn.metrics import f1_score, top_k_accuracy_score
from small_classification import (
    BATCH,
    CPU,
    DIM,
    EPOCHS,
    SCHEDULE,
    STEPS,
    TOTAL,
    Pixels,
    classify,
    data,
    pretrained,
)
from small_images import CLASSES
from small_training import WIDTH, Before, at_step, environment
from torch import nn
from torch.nn import functional as F

EXACT = {"rtol": 0, "atol": 0}
KINDS = ("probe", "fine_tune", "supervise")


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def weights(folder):
    return load_file(folder / "weights.safetensors")


def assert_same(a, b):
    torch.testing.assert_close(a, b, **EXACT)


def encoder_of(folder):
    """The encoder's state in the newest checkpoint of a folder."""
    content = torch.load(newest_whole(folder), weights_only=True)["state_dict"]
    start = "model.represent.parts.h."
    return {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders and results of trainings that nothing stopped."""
    folders = {kind: tmp_path_factory.mktemp(kind) / "run" for kind in KINDS}
    return {kind: (folder, classify(folder, kind)) for kind, folder in folders.items()}


# ---- what is learnt -------------------------------------------------------------------------------------------


def test_classes_that_colours_tell_apart_are_learnt_without_a_fault(tmp_path):
    found = recipe.probe(
        {"colours": Pixels()}, {"colours": 3}, data(), SCHEDULE._replace(epochs=20), CPU, tmp_path
    )
    assert found.accuracy == found.top5 == found.f1 == {"colours": 1.0}
    assert len(found.losses) == 20 * STEPS
    assert found.losses[0] == pytest.approx(math.log(3))  # layers begin at zero
    assert found.losses[-1] < 0.7 * found.losses[0]


@pytest.mark.parametrize("kind", ["fine_tune", "supervise"])
def test_an_encoder_learns_classes_without_a_fault(tmp_path, kind):
    found = classify(tmp_path, kind, epochs=20, learning_rate=0.1)
    assert found.accuracy == {"h": 1.0}
    assert found.losses[0] == pytest.approx(math.log(3))
    assert np.mean(found.losses[-STEPS:]) < 0.3


class Seen(nn.Module):
    """A representation that notes what it gave."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def forward(self, x):
        rows = x.mean(dim=(2, 3)) + 0.1 * x.std(dim=(2, 3))
        if self.training:
            raise AssertionError("a frozen representation is never in training mode")
        self.notes(rows)
        return rows


def test_a_frozen_probe_is_a_logistic_regression_by_hand(tmp_path):
    """Three steps of one batch each: softmax, momentum, decay of the weights alone, and a cosine."""
    rows, images, rate, decay, momentum = [], data(train=9), 0.3, 0.01, 0.9

    class Labels(Before):
        def __init__(self):
            super().__init__()
            self.labels = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.labels.append(batch[1])

    watch = Labels()
    represent = {"rows": Seen(lambda found: rows.append(found.double()))}
    schedule = SCHEDULE._replace(
        epochs=3, batch_size=9, learning_rate=rate, weight_decay=decay, warmup_epochs=0
    )
    found = recipe.probe(represent, {"rows": 3}, images, schedule, CPU, tmp_path, callbacks=[watch])
    rows = rows[1:4]  # after the look at the features, before the test
    w, b, vw, vb, losses = np.zeros((3, 3)), np.zeros(3), 0.0, 0.0, []
    for step, (x, labels) in enumerate(zip(rows, watch.labels, strict=True)):
        x, y = x.numpy(), np.eye(3)[labels.numpy()]
        logits = x @ w.T + b
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses.append(-np.log((p * y).sum(axis=1)).mean())
        gw, gb = (p - y).T @ x / len(x) + decay * w, (p - y).mean(axis=0)
        vw, vb = momentum * vw + gw, momentum * vb + gb
        now = rate * 0.5 * (1 + math.cos(math.pi * step / 3))
        w, b = w - now * vw, b - now * vb
    kept = weights(tmp_path)
    assert set(kept) == {"rows.weight", "rows.bias"}
    np.testing.assert_allclose(kept["rows.weight"], w, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(kept["rows.bias"], b, rtol=1e-5, atol=1e-7)
    assert found.losses == pytest.approx(losses, rel=1e-5)


# ---- what is trained and what is not --------------------------------------------------------------------------


def test_a_frozen_encoder_stays_as_it_is_its_buffers_too(tmp_path):
    model, seen = pretrained(), []

    def look(module, inputs, output):
        seen.append((module.training, output.requires_grad, module[0].weight.requires_grad))

    model.encoder.backbone.register_forward_hook(look)
    before = state(model)
    classify(tmp_path, "probe", model=model)
    frozen = encoder_of(tmp_path)
    assert "backbone.1.running_mean" in frozen
    assert_same(frozen, state(model.encoder))
    assert_same(state(model), before)
    assert len(seen) == 1 + TOTAL + 1  # the look at the features, the steps, the test
    assert set(seen) == {(False, False, False)}
    assert all(p.requires_grad for p in model.parameters())  # of the model that was handed in
    assert set(weights(tmp_path)) == {"h.weight", "h.bias", "z.weight", "z.bias"}


@pytest.mark.parametrize("kind", ["fine_tune", "supervise"])
def test_fine_tuning_trains_every_weight_of_a_copy(tmp_path, kind):
    model, modes = pretrained(), []
    model.encoder.requires_grad_(False)  # all weights are trained whatever was frozen
    model.encoder.backbone[1].register_forward_hook(lambda m, *rest: modes.append(m.training))
    before = state(model)
    classify(tmp_path, kind, model=model)
    tuned = encoder_of(tmp_path)
    for name, value in model.encoder.state_dict().items():
        assert not torch.equal(tuned[name], value), name  # weights, biases, and what batch norm counts
    assert modes == [False] + TOTAL * [True] + [False]
    assert_same(state(model), before)
    assert not model.training
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_train_does_not_wake_a_frozen_encoder():
    model = pretrained()
    frozen = Classifier(Representations({"h": model.encoder}), {"h": WIDTH}, 3, frozen=True)
    assert frozen.training
    assert frozen.heads.training
    frozen.eval().train()
    nn.Sequential(frozen).train()
    assert frozen.heads.training
    assert not any(m.training for m in frozen.represent.modules())
    logits = frozen(torch.randn(4, 3, 32, 32))["h"]
    logits.sum().backward()
    assert {name for name, p in frozen.named_parameters() if p.grad is not None} == {
        "heads.h.weight",
        "heads.h.bias",
    }


def test_a_classifier_that_is_trained_begins_in_training_mode():
    """Whatever mode pretraining left the encoder in: Lightning keeps the mode it finds."""
    model = Classifier(Representations({"h": pretrained().encoder}), {"h": WIDTH}, 3, frozen=False)
    assert all(m.training for m in model.modules())


def test_heads_run_in_float32_and_the_encoder_in_the_precision_of_the_run(tmp_path):
    model, seen = pretrained(), {"encoder": set(), "head": set()}
    model.encoder.register_forward_hook(lambda m, i, output: seen["encoder"].add(output.dtype))
    counted = Counts.add

    def look(self, logits, labels):
        seen["head"].add(logits.dtype)
        counted(self, logits, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counts, "add", look)
        found = classify(tmp_path, "probe", model=model, precision="bf16")
    assert torch.bfloat16 in seen["encoder"]
    assert seen["head"] == {torch.float32}
    assert all(math.isfinite(loss) for loss in found.losses)
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_no_decay_on_norms_and_biases(name, decay):
    model = Classifier(Representations({"h": pretrained().encoder}), {"h": WIDTH}, 3, frozen=False)
    schedule = SCHEDULE._replace(optimizer=name, weight_decay=decay)
    optimizer = configure(model, schedule, 1000)["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD) or type(optimizer).__name__ == "SGD"
    for group in optimizer.param_groups:
        assert group["nesterov"] == (name == "nesterov")
        assert group["momentum"] == 0.9
        assert group["weight_decay"] == (decay if group["params"][0].ndim > 1 else 0.0)


# ---- several representations in one pass ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "lars", "adamw"])
def test_probes_trained_together_end_as_each_alone(tmp_path, optimizer):
    together = classify(tmp_path / "both", optimizer=optimizer)
    alone = {name: classify(tmp_path / name, only=name, optimizer=optimizer) for name in ("h", "z")}
    both = weights(tmp_path / "both")
    for name, found in alone.items():
        assert_same({k: v for k, v in both.items() if k.startswith(name)}, weights(tmp_path / name))
        assert {name: together.accuracy[name]} == found.accuracy
        assert (together.top5[name], together.f1[name]) == (found.top5[name], found.f1[name])
    assert together.losses == pytest.approx(
        [h + z for h, z in zip(alone["h"].losses, alone["z"].losses, strict=True)], rel=1e-6
    )


def test_the_encoder_runs_once_for_all_representations():
    model, calls = pretrained(), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    parts = {
        "h": model.encoder,
        "z": model.feature_extractor("z"),
        "up": model.feature_extractor("upsampled"),
    }
    images = torch.randn(4, 3, 32, 32)
    expected = {name: part(images) for name, part in parts.items()}
    assert len(calls) == 3
    found = Representations(parts)(images)
    assert len(calls) == 4
    assert_same(found, expected)
    assert set(found["z"].unique().tolist()) <= {0.0, 1.0}  # the latent's mode
    assert parts["z"].encoder is model.encoder  # what was handed in is as it was


def test_representations_of_different_encoders_each_run_theirs():
    first, second = pretrained("simclr").encoder, pretrained("gauss")
    parts = {"a": first, "b": second.feature_extractor("z")}
    images = torch.randn(4, 3, 32, 32)
    assert_same(Representations(parts)(images), {name: part(images) for name, part in parts.items()})


# ---- scores ---------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(8), torch.randint(0, 8, (52,), generator=generator)])
    logits = torch.randn(60, 8, generator=generator)
    counts = Counts(8)
    for part in (slice(0, 7), slice(7, 60)):
        counts.add(logits[part], labels[part])
    found, predicted = counts.scores(), logits.argmax(dim=1)
    assert found.accuracy == (predicted == labels).sum().item() / 60
    assert found.top5 == top_k_accuracy_score(labels, logits, k=5)
    assert found.f1 == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_a_class_that_is_never_found_counts_as_zero_in_f1():
    counts = Counts(3)
    counts.add(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 2]))
    assert counts.scores() == pytest.approx((3 / 4, 1.0, (1 + 2 / 3 + 0) / 3))


def test_the_test_images_are_classified_after_the_last_epoch_alone(tmp_path):
    """By the last weights, whatever did better on the way."""
    images, asked = data(), []

    class Watched(ImageData):
        def evaluation(self, split):
            asked.append((split, taken[-1] if taken else 0))
            return super().evaluation(split)

    watch = Before()
    taken = watch.taken
    classify(tmp_path, "probe", images=Watched(*images), callbacks=[watch])
    assert [(split, step) for split, step in asked if split == "test"] == [("test", TOTAL)]


def test_the_last_short_batch_of_test_images_counts(monkeypatch):
    monkeypatch.setattr("recipes.scores.BATCH", 4)
    model = Classifier(Representations({"h": Pixels()}), {"h": 3}, 3, frozen=True)
    nn.init.eye_(model.heads["h"].weight)
    images, order = data(), [CLASSES.index(name) for name in ("red", "green", "blue")]
    normal = images.evaluation("test").transform(images.test.images)
    logits = normal.mean(dim=(2, 3))
    expected = (logits.argmax(dim=1) == images.test_labels).float().mean().item()
    assert score(model, images, CPU)["h"].accuracy == pytest.approx(expected)
    right = torch.tensor(order)[logits.argmax(dim=1)] == images.test_labels
    assert right.all()


# ---- stopped and resumed, finished and loaded -----------------------------------------------------------------


class InterruptionError(Exception):
    pass


def interrupt():
    raise InterruptionError


def assert_ends_as(whole, kind, folder, step):
    """A training goes on from before a step, and ends as one that was not stopped, bit for bit."""
    assert not (folder / "weights.safetensors").exists()
    watch = Before()
    found = classify(folder, kind, callbacks=[watch])
    assert watch.taken == list(range(step, TOTAL + 1))
    expected_folder, expected = whole[kind]
    assert found._replace(seconds=0) == expected._replace(seconds=0)
    assert (folder / "weights.safetensors").read_bytes() == (
        expected_folder / "weights.safetensors"
    ).read_bytes()
    assert_same(encoder_of(folder), encoder_of(expected_folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, STEPS + 1, TOTAL])
def test_a_stopped_training_goes_on_and_ends_as_one_that_was_not(whole, tmp_path, kind, step):
    with pytest.raises(InterruptionError):
        classify(tmp_path, kind, every_steps=1, callbacks=[at_step(step, interrupt)])
    assert_ends_as(whole, kind, tmp_path, step)


@pytest.mark.parametrize("kind", ["probe", "fine_tune"])
def test_a_killed_training_goes_on_and_ends_as_one_that_was_not(whole, tmp_path, kind):
    step = 7
    words = json.dumps({"kind": kind, "kill_at": step, "every_steps": 1})
    command = [sys.executable, small_classification.__file__, str(tmp_path), words]
    child = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert_ends_as(whole, kind, tmp_path, step)


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_training_is_loaded(whole, tmp_path, kind):
    folder, expected = whole[kind]
    shutil.copytree(folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    watch = Before()
    found = classify(tmp_path / "run", kind, callbacks=[watch])
    assert watch.taken == []
    assert found._replace(seconds=0) == expected._replace(seconds=0)
    assert found.seconds == pytest.approx(expected.seconds, abs=0.01)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_training_stopped_after_its_last_step_only_writes_what_was_missing(whole, tmp_path):
    folder, expected = whole["fine_tune"]
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()
    watch = Before()
    found = classify(tmp_path / "run", "fine_tune", callbacks=[watch])
    assert watch.taken == []
    assert found._replace(seconds=0) == expected._replace(seconds=0)
    assert_same(weights(tmp_path / "run"), weights(folder))


def test_damaged_weights_are_named(whole, tmp_path):
    shutil.copytree(whole["probe"][0], tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"(?s)weights\.safetensors is damaged .*; delete it"):
        classify(tmp_path / "run", "probe")


def test_the_same_seed_gives_the_same_training_and_another_does_not(whole, tmp_path):
    expected = whole["supervise"][1]
    assert classify(tmp_path / "same", "supervise").losses == expected.losses
    assert classify(tmp_path / "other", "supervise", seed=6).losses != expected.losses
    assert classify(tmp_path / "crops", "supervise", min_scale=1.0).losses != expected.losses


# ---- label smoothing, mixup, average, compiler ----------------------------------------------------------------


class Logits(nn.Module):
    """Stands for a classifier; keeps the images it was given."""

    def __init__(self):
        super().__init__()
        self.layer, self.images = nn.Linear(12, 3), []

    def forward(self, x):
        self.images.append(x)
        return {"h": self.layer(x.flatten(1))}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_the_loss_is_that_of_smoothed_and_mixed_labels(smoothing, mixup):
    model, labels = Logits(), torch.tensor([0, 2, 1, 1])
    views = torch.randn(4, 3, 2, 2)
    module = Classification(model, SCHEDULE, label_smoothing=smoothing, mixup=mixup)
    torch.manual_seed(1)
    outputs = module.step(views, labels)
    torch.manual_seed(1)
    share = torch.distributions.Beta(mixup, mixup).sample().item() if mixup else 1.0
    assert (0 < share < 1) == bool(mixup)
    mixed = share * views + (1 - share) * views.flip(0)
    torch.testing.assert_close(model.images[0], mixed)
    targets = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
    targets = share * targets + (1 - share) * targets.flip(0)
    expected = F.cross_entropy(model(mixed)["h"], targets)
    torch.testing.assert_close(outputs["loss"], expected)
    assert outputs["accuracy"] == (model(mixed)["h"].argmax(dim=1) == labels).float().mean()


@pytest.mark.parametrize("option", ["label_smoothing", "mixup"])
def test_options_reach_training_and_are_off_unless_asked_for(whole, tmp_path, option):
    for kind in ("supervise", "fine_tune"):
        expected = whole[kind][1].losses
        assert classify(tmp_path / f"off-{kind}", kind, options={option: 0.0}).losses == expected
        assert classify(tmp_path / f"on-{kind}", kind, options={option: 0.2}).losses != expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, got -0.1"),
        ({"mixup": -1.0}, "mixup must be finite and at least 0, got -1.0"),
        ({"mixup": math.inf}, "mixup must be finite and at least 0, got inf"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        classify(tmp_path, "supervise", options=options)
    assert not list(tmp_path.iterdir())


def test_an_average_of_weights_is_what_is_scored_and_kept(whole, tmp_path):
    found = classify(tmp_path, "fine_tune", ema=0.9)
    assert found.losses == whole["fine_tune"][1].losses
    last = encoder_of(tmp_path)
    averaged = weights(tmp_path)["represent.parts.h.backbone.0.weight"]
    assert not torch.equal(averaged, last["backbone.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "fine_tune"])
def test_a_compiled_training_is_as_one_that_is_not(whole, tmp_path, kind):
    expected = whole[kind][1]
    found = classify(tmp_path, kind, hardware=CPU._replace(compile=True))
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.accuracy == expected.accuracy


@pytest.mark.parametrize("frozen", [True, False])
def test_a_classifier_is_one_graph(graphs, frozen):
    model = pretrained()
    parts = {"h": model.encoder, "z": model.feature_extractor("z")}
    classifier = Classifier(Representations(parts), {"h": WIDTH, "z": DIM}, 3, frozen=frozen)
    images = torch.randn(4, 3, 32, 32)
    nn.init.normal_(classifier.heads["h"].weight)
    expected = copy.deepcopy(classifier)(images)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        found = torch.compile(classifier, fullgraph=True, backend=graphs.backend)(images)
    torch.testing.assert_close(found, expected)
    assert len(graphs) == 1


# ---- what can go wrong ----------------------------------------------------------------------------------------


def relabelled(images, labels, split):
    part = getattr(images, split)
    return images._replace(**{split: Images(part.images[: len(labels)], torch.tensor(labels))})


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (
            relabelled(data(), [0, 1, 0, 1], "test"),
            "the test images of small lack 1 of its 3 classes: red; add images of them",
        ),
        (
            relabelled(data(), 6 * [1], "train"),
            "the training images of small lack 2 of its 3 classes: blue, red; add images of them",
        ),
        (
            relabelled(data(), [0, 1, 3], "test"),
            "small has test images of class number 3, and only 3 classes; give labels from 0 on",
        ),
        (
            relabelled(relabelled(data(), 6 * [0], "train"), [0], "test")._replace(classes=("blue",)),
            "small must have at least two classes to tell apart, got 1: blue",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_cannot_be_learnt_or_judged_are_named(tmp_path, kind, images, told):
    with pytest.raises(DataError, match=told):
        classify(tmp_path, kind, images=images)
    assert not list(tmp_path.iterdir())


def test_many_lacking_classes_are_counted_and_not_all_named(tmp_path):
    images = data()._replace(classes=tuple(f"c{i}" for i in range(12)))
    with pytest.raises(DataError, match=r"lack 9 of its 12 classes: c3, c4, c5, c6, c7 and 4 more; add"):
        classify(tmp_path, "probe", images=images)


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_not_finite_are_named_before_anything_is_trained(tmp_path, kind):
    model = pretrained()
    with torch.no_grad():
        model.encoder.backbone[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"representation h .* holds inf or nan: its model has diverged"):
        classify(tmp_path, kind, model=model)
    assert not list(tmp_path.iterdir())


class NotFinite(nn.Module):
    """Features of which one is not finite, from a call on: the first is the look at the features."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def forward(self, x):
        self.left -= 1
        rows = x.mean(dim=(2, 3))
        if self.left <= 0:
            rows[1, 2] = math.nan
        return rows


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (4, "the loss became nan at step 3"),
        (1 + TOTAL + 1, "the classifier on h gives inf or nan for some test images"),
    ],
)
def test_features_that_are_not_finite_later_are_told(tmp_path, call, told):
    with pytest.raises(TrainingError, match=told):
        recipe.probe({"h": NotFinite(call)}, {"h": 3}, data(), SCHEDULE, CPU, tmp_path)


def test_a_wrong_width_is_told(tmp_path):
    model = pretrained()
    parts = {"h": model.encoder, "z": model.feature_extractor("z")}
    for widths, told in (
        ({"h": WIDTH, "z": 4}, r"width of z must be that of its rows, got 4 for rows of shape \(2, 6\)"),
        ({"h": WIDTH}, r"widths must tell the width of z, got \{'h': 8\}"),
    ):
        with pytest.raises(ValueError, match=told):
            recipe.probe(parts, widths, data(), SCHEDULE, CPU, tmp_path)
    with pytest.raises(ValueError, match="represent must name at least one module"):
        recipe.probe({}, {}, data(), SCHEDULE, CPU, tmp_path)


def test_a_batch_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--batch-size must be between 2 and the 26 training images, got 27"):
        classify(tmp_path, "probe", batch_size=27)


# ---- several processes ----------------------------------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["probe", "fine_tune"])
def test_two_processes_are_as_one_with_the_whole_batch(tmp_path, kind):
    """GroupNorm, as CPUs do not share the statistics of batch norm; the processes cannot halve the test images."""
    words = {"kind": kind, "norm": "group"}
    expected = classify(tmp_path / "one", kind, norm="group")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [small_classification.__file__, str(tmp_path / "two"), json.dumps(words)]
    (tmp_path / "two").mkdir()
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = [torch.load(tmp_path / "two" / f"end{rank}.pt", weights_only=True) for rank in range(2)]
    assert {k: v for k, v in ends[0].items() if k != "seconds"} == {
        k: v for k, v in ends[1].items() if k != "seconds"
    }
    assert ends[0]["losses"] == pytest.approx(expected.losses, rel=1e-5)
    for name in ("accuracy", "top5", "f1"):
        assert ends[0][name] == getattr(expected, name)
    assert 0 < expected.accuracy["h"] < 1  # so that an image that counts twice would show
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)


def test_the_small_run_has_the_batches_that_these_tests_count():
    assert TOTAL == EPOCHS * STEPS
    assert len(data().train_labels) // BATCH == STEPS
