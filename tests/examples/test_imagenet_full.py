"""The ImageNet run on tiny images: class folders, shards and unlabelled images, resumed, and on two processes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import imagenet_full
import pytest
import torch
from full_runs import measured, run
from image_files import read_image
from image_loaders import TrainingLoader, find_split
from small_images import WNIDS, encoded, photograph, photographs, write_photographs, write_shards

from stochastic_bottleneck.hub import HubModel, preprocessing

TINY = ["smoke", "--size", "32", "--dim", "16", "--epochs", "2", "--batch-size", "8", "--workers", "0"]
TINY += ["--probe.batch-size", "8", "--finetune.batch-size", "8", "--supervised.batch-size", "8"]
TINY += ["--precision", "32-true"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of eight training and three test images."""
    return write_photographs(tmp_path_factory.mktemp("images"), train=8, val=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The options for the same images in shards."""
    folder = tmp_path_factory.mktemp("shards")
    patterns = [write_shards(folder, split, each, 3) for split, each in (("train", 8), ("val", 3))]
    return ["--data", patterns[0], "--test-data", patterns[1]]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run of two models that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(folder, "--data", images, "--models", "bern", "supervised")
    return folder


def go(folder, *options):
    """Exit code and output of a tiny run."""
    return run(imagenet_full, [*TINY, "--out", folder, *options])


def finish(folder, *options):
    """Results of a tiny run, and its output."""
    code, output = go(folder, *options)
    assert code == 0, output
    return results(folder), output


def results(folder):
    path = folder / "results.json"
    return json.loads(path.read_text())["models"] if path.exists() else None


def settings(**options):
    return imagenet_full.Settings(**{"data": "", "encoder": "small", "workers": 0} | options)


def load(**options):
    return imagenet_full.load_data(settings(**options))


def test_a_run_leaves_results_a_table_and_a_model_that_loads(whole, images):
    found = results(whole)
    assert found["bern"]["h"].keys() == {"dim", "knn", "probe", "probe_top5"}
    assert found["bern"]["z"].keys() == {"dim", "knn", "probe", "probe_top5", "bits", "compression"}
    assert found["supervised"].keys() == {"finetuned"}
    assert found["bern"]["finetuned"].keys() == {"accuracy", "top5", "f1"}
    assert found["bern"]["finetuned"]["top5"] == 1  # there are three classes
    assert "StochCon Bern" in {row["model"] for row in json.loads((whole / "results.json").read_text())["rows"]}
    model = HubModel.from_pretrained(whole / "bern")
    image = read_image(next((images / "val").rglob("*.JPEG")))
    assert model.encode(preprocessing(model)(image)[None], "bits").shape == (1, 2)


@pytest.mark.slow
def test_every_model_is_trained_and_logged(images, tmp_path):
    found, _ = finish(tmp_path / "run", "--data", images, "--epochs", "10", "--knn-every", "5")
    assert [*found] == ["simclr", "bern", "gauss", "supervised"]
    assert found["gauss"]["z"].keys() == {"dim", "knn", "probe", "probe_top5"}
    with next((tmp_path / "run" / "bern" / "logs").rglob("metrics.csv")).open() as file:
        columns = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"loss", "knn", "latent/kl"} <= columns


@pytest.mark.parametrize("layout", ["flat", "one folder"])
def test_images_without_labels_are_pretrained_on(tmp_path, layout):
    folder = tmp_path / "images" / ("" if layout == "flat" else "train/all")
    folder.mkdir(parents=True)
    for number, (_, content) in enumerate(photographs("train", 4)):
        (folder / f"{number}.jpg").write_bytes(content)
    found, output = finish(tmp_path / "run", "--data", tmp_path / "images", "--models", "bern", "supervised")
    assert "no class folders or labels: pretraining only" in output
    assert [*found] == ["bern"]
    assert found["bern"]["z"].keys() == {"dim", "bits", "compression"}
    assert found["bern"]["z"]["bits"]["class_information"] is None
    HubModel.from_pretrained(tmp_path / "run" / "bern")


# ---- resuming ------------------------------------------------------------------------------------------------------


def stopping(step, at):
    """A training step that asks for the end of the run at a step."""

    def training_step(module, batch, batch_idx):
        if module.global_step == at:
            signal.raise_signal(signal.SIGTERM)
        return step(module, batch, batch_idx)

    return training_step


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_a_stopped_run_continues_to_the_same_results(images, shards, tmp_path, monkeypatch, source):
    options = [*(["--data", images] if source == "folder" else shards), "--models", "gauss", "--workers", "2"]
    finish(tmp_path / "whole", *options)
    for name, step in (("Pretraining", 4), ("Classification", 1)):  # within epochs of three steps
        with monkeypatch.context() as patch:
            part = getattr(imagenet_full, name)
            patch.setattr(part, "training_step", stopping(part.training_step, step))
            code, output = go(tmp_path / "run", *options, "--resume")
        assert code == 128 + signal.SIGTERM, output
    finish(tmp_path / "run", *options, "--resume")
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(whole, images, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    finish(tmp_path / "run", "--data", images, "--models", "bern", "supervised", "--resume")
    assert measured(tmp_path / "run") == measured(whole)


def test_images_that_changed_are_refused(whole, images, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    changed = shutil.copytree(images, tmp_path / "images")
    next((changed / "train").rglob("*.JPEG")).write_bytes(encoded(photograph(999, 50, 50)))
    code, output = go(tmp_path / "run", "--data", changed, "--models", "bern", "supervised", "--resume")
    assert code == 2
    assert "images: " in output


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("source", ["folder", "shards"])
def test_two_processes_train_and_report_once(images, shards, tmp_path, source):
    options = ["--models", "bern", *(["--data", images] if source == "folder" else shards)]
    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(imagenet_full.__file__).parent), *sys.path])
    done = subprocess.run(
        [*script, imagenet_full.__file__, *TINY, "--out", tmp_path / "run", *map(str, options)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "run")["bern"]
    assert found["z"]["probe_top5"] == found["finetuned"]["top5"] == 1
    assert (tmp_path / "run/bern/checkpoints/step=000000006.ckpt").exists()  # of 24 images in batches of 8


# ---- before and around training ------------------------------------------------------------------------------------


def test_a_dry_run_counts_a_step_of_each_stage_and_leaves_nothing(images, tmp_path):
    rare = ["--symmetric", "--samples", "2", "--kl", "0.1", "--projector", "mlp", "--jitter", "0.5"]
    rare += ["--probe.weight-decay", "0.1", "--optimizer", "lars", "--temperature", "0.5"]
    models = ["--models", "bern", "supervised"]
    found, output = finish(tmp_path / "run", "--data", images, *models, "--dry-run", *rare)
    assert found is None
    for stage in ("bern", "bern/probe", "bern/finetune", "supervised"):
        assert re.search(rf"^{stage}, a step: [\d.e+]+ FLOPs, peak memory [\d.]+ GiB$", output, re.MULTILINE)
    assert "Trainable params" in output
    assert not (tmp_path / "run").exists()


def test_images_and_options_that_cannot_be_used_end_the_run_before_training(images, tmp_path):
    damaged, other = (shutil.copytree(images, tmp_path / name) for name in ("damaged", "other"))
    path = next((damaged / "val").rglob("*.JPEG"))
    path.write_bytes(path.read_bytes()[:-200])
    shutil.rmtree(other / "val" / WNIDS[1])
    for data, quoted, *options in (
        (damaged, path.name),
        (other, f"must have the same classes; they differ in {{'{WNIDS[1]}'}}"),
        (tmp_path / "none", f"no images in {tmp_path / 'none'}"),
        (images, "--probe.batch-size must be at most the 24 training images and", "--probe.batch-size", "32"),
        (tmp_path / "none", "--deterministic 0.0 and --codes 1.0 need --symmetric", "--codes", "1"),
    ):
        code, output = go(tmp_path / "run", "--data", data, *options)
        assert code == 2
        assert quoted in output
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "batch_size", "world", "items"),
    [("at most the 24", 25, 1, 24), ("multiple of the 2", 5, 2, 24), ("needs a shard or an image, got 3", 8, 4, 3)],
)
def test_batch_sizes_that_cannot_be_made_are_refused(words, batch_size, world, items, monkeypatch, images):
    monkeypatch.setattr(imagenet_full, "WORLD", world)
    split = find_split(str(images), "train")
    split = replace(split, items=split.items[:items])
    good, bad = (imagenet_full.Schedule(0, size, 0.1) for size in (8, batch_size))  # a probe of no epochs reads images
    for wrong in ({"batch_size": batch_size}, {"probe": bad}):
        given = settings(**{"batch_size": 8, "probe": good, "finetune": good} | wrong)
        with pytest.raises(imagenet_full.TrainingError, match=words):
            imagenet_full.check_batch_sizes(given, split)


def test_images_to_evaluate_on_are_found_or_held_out(images):
    train, test, about = load(data=str(images / "train"))
    assert train == test
    assert about["name"] == f"{images / 'train'}, evaluated on its training images"
    train, test, about = load(data=str(images), held_out=True)
    assert (train.count, test.count) == (19, 5)
    assert not {*train.items} & {*test.items}


def test_the_codes_are_588_times_smaller_than_the_images(images):
    train, test, _ = load(data=str(images))
    model = imagenet_full.build_model("bern", settings())
    scores = {part: {"accuracy": 0.5, "top5": 1} for part in ("h", "z")}
    found = imagenet_full.evaluate(model, scores, settings(), train, test)
    assert (found["z"]["dim"], found["z"]["compression"]) == (2048, 588)


@pytest.mark.parametrize("frozen", [True, False])
def test_probes_leave_the_encoder_alone_and_fine_tuning_does_not(frozen):
    torch.manual_seed(0)
    s = settings(dim=16)
    model = imagenet_full.build_model("bern", s)
    module = imagenet_full.Classification(model, frozen, s.probe, s, classes=3, batches=1)
    assert [*module.classifiers] == (["h", "z"] if frozen else ["h"])
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(2):  # the classifier starts at zero, so that the encoder has no gradient at first
        sum(logits.logsumexp(1).sum() for logits in module(torch.randn(4, 3, 32, 32)).values()).backward()
        optimizer.step()
    after = module.encoder.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert bool(changed) is not frozen
    assert frozen or any("running_mean" in name for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


def test_labelled_crops_are_normalized_and_pairs_of_crops_are_bytes(images):
    split = find_split(str(images), "train")
    trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    for labelled, dtype in ((True, torch.float32), (False, torch.uint8)):
        crop = imagenet_full.random_crop(settings(size=32), labelled)
        *crops, labels = next(iter(TrainingLoader(split, crop, 2 - labelled, 8, trainer, 0, 0)))
        assert [(x.shape, x.dtype) for x in crops] == [((8, 3, 32, 32), dtype)] * (2 - labelled)
        assert labels.shape == (8,)
