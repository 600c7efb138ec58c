"""The full run on CIFAR-10: what it leaves, the data it takes, and that several processes train as one does."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import timm
import torch
from full_runs import cifar10_full, measured, quick, run
from PIL import Image
from safetensors.torch import load_model
from small_images import CLASSES, batch, picture, write_folder
from torch import nn

from stochastic_bottleneck.hub import HubModel, preprocessing

QUICK = cifar10_full.QUICK


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), train=8, test=4)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """Folder and output of a run of all four models."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, output = run(cifar10_full, quick(folder, images))
    assert code == 0, output
    return folder, output


def test_the_run_ends_in_a_table_of_all_models(whole):
    folder, output = whole
    rows = [[*row.values()] for row in json.loads((folder / "results.json").read_text())["rows"]]
    cells = {(model, features): numbers for model, features, *numbers in rows}
    assert cells["StochCon Bern", "z"][-1] == "1536x"  # 32 x 32 x 3 x 8 bits over 16
    assert cells["Supervised", "h"][:3] == ["-", "-", "-"]
    for model in ("SimCLR", "StochCon Bern", "StochCon Gauss"):
        width, *numbers = cells[model, "h"][:5]
        assert width == "256"
        assert all(0 <= float(x) <= 100 for x in numbers)  # probe, neighbours, mAP, fine-tuned
    assert "Supervised" in output
    assert (folder / "f1_against_bits.png").stat().st_size > 1000
    results = measured(folder)[0]
    assert results["data"]["train"] == 24
    assert results["models"]["bern"]["z"]["forest"]["counts"][-1] == 16
    codes = {code: found["codes"] for code, found in results["models"]["simclr"]["codes"].items() if code != "fitted"}
    assert {code: found["dim"] for code, found in codes.items()} == {"random_sign": 16, "pca_sign": 16, "itq": 16}
    assert all(found["compression"] == 1536 and 0 < found["map"] <= 1 for found in codes.values())
    assert "pq is left out" in output  # 24 images are fewer than its centroids
    assert cells["SimCLR frozen + Bern", "z"][-1] == cells["StochCon Bern frozen + Bern", "z"][-1] == "1536x"
    assert cells["SimCLR frozen + Bern", "logits"][0] == cells["SimCLR h, ITQ", "codes"][0] == "16"


def test_the_metrics_have_loss_rate_latent_and_neighbours(whole):
    with next((whole[0] / "bern" / "logs").glob("*/metrics.csv")).open() as file:
        rows = [*csv.DictReader(file)]
    assert all(any(row[name] for row in rows) for name in ("knn", "latent/kl"))


def test_models_load_with_their_preprocessing(whole, images):
    model = HubModel.from_pretrained(whole[0] / "bern")
    file = next(images.rglob("*.png"))
    prepared = preprocessing(model)(Image.open(file))[None]
    pixels = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)[None]
    torch.testing.assert_close(prepared, cifar10_full.NORMALIZE(pixels / 255))
    load_model(simclr := cifar10_full.build_model("simclr", QUICK), whole[0] / "simclr" / "model.safetensors")
    assert not torch.equal(simclr.eval().encoder(prepared), model.encode(prepared))


def test_all_models_start_from_the_same_weights():
    models = [cifar10_full.build_model(name, QUICK) for name in ("simclr", "bern", "gauss")]
    weights = [{**model.encoder.state_dict(), **model.head.state_dict()} for model in models]
    plain = {key.removeprefix("backbone."): value for key, value in weights[0].items()}
    for found in weights[1:]:
        for key, value in found.items():
            torch.testing.assert_close(value, plain[key.removeprefix("backbone.")], rtol=0, atol=0)


def test_views_are_two_and_depend_on_seed_step_and_rank():
    module = cifar10_full.Pretraining("bern", QUICK, 3)
    first = module.on_after_batch_transfer([batch(6)], 0)
    again = module.on_after_batch_transfer([batch(6)], 0)
    assert not torch.equal(*first)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0][0], first[0][3])  # each image has a crop of its own


@pytest.mark.parametrize("layout", ["flat", "train/all", "train"])
def test_images_without_labels_are_pretrained_on(layout, tmp_path):
    folder = tmp_path / "images" / (layout if layout != "flat" else ".")
    folder.mkdir(parents=True)
    for i in range(24):
        Image.fromarray(picture(CLASSES[i % 3], i, (40, 32))).save(folder / f"{i}.png")
    code, output = run(cifar10_full, quick(tmp_path / "run", tmp_path / "images", "--models", "bern", "supervised"))
    assert code == 0, output
    assert "no labels: the models are trained and saved, evaluation is left out" in output
    assert HubModel.from_pretrained(tmp_path / "run" / "bern").bottleneck.dim == 16


def test_an_archive_is_read_as_its_folder(images, tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "gztar", images))
    for source in (images, archive):
        train, test = cifar10_full.load_images(replace(QUICK, data=source))
        assert train.pixels.shape == (24, 3, 32, 32)
        assert test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.classes == list(CLASSES)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_labels_train_in_every_precision_of_a_run(images, precision):
    s = replace(QUICK, data=images, precision=precision)
    options = {"epochs": 1, "lr": 0.1}
    found = cifar10_full.supervise(cifar10_full.build_encoder(s), s, *cifar10_full.load_images(s), options)
    assert 0 <= found["finetuned"]["accuracy"] <= 1


def test_synchronized_batch_norms_keep_activations_and_come_back():
    norms, images = nn.modules.batchnorm._BatchNorm, torch.rand(2, 3, 32, 32)
    model = timm.create_model("test_efficientnet").eval()
    before, expected = [*model.modules()], model(images)
    sync = runs.SyncBatchNorm()
    converted = sync.apply(model)
    assert all(isinstance(m, nn.SyncBatchNorm) for m in converted.modules() if isinstance(m, norms))
    torch.testing.assert_close(converted(images), expected)
    for m in converted.modules():
        if isinstance(m, norms):
            m.running_mean = m.running_mean + 1  # as a GPU's, no longer the same tensor
    changed = converted(images)
    reverted = sync.revert(converted)
    assert [*reverted.modules()] == before
    torch.testing.assert_close(reverted(images), changed)


def test_held_out_images_are_training_images(images):
    train, test = cifar10_full.load_images(replace(QUICK, data=images, held_out=True))
    assert (len(train.pixels), len(test.pixels)) == (19, 5)


def test_other_classes_in_the_test_images_are_refused(images, tmp_path):
    write_folder(tmp_path / "images", train=2, test=2)
    (tmp_path / "images" / "test" / "red").rename(tmp_path / "images" / "test" / "yellow")
    code, output = run(cifar10_full, quick(tmp_path / "run", tmp_path / "images"))
    assert code == 2
    assert "same classes" in output
    assert "yellow" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--encoder", "resnet5"], "--encoder must be"),
        (["--batch-size", "25"], "--batch-size must be a multiple of 1 up to 24 images, got 25"),
        (["--location-std", "-1"], "location_std"),
        (["--no-symmetric"], "--deterministic 1.0 and --codes 0.0 need --symmetric, or 0 for both"),
    ],
)
def test_bad_arguments_are_named_before_training(arguments, words, images, tmp_path):
    code, output = run(cifar10_full, [*quick(tmp_path / "run", images), *arguments])
    assert code == 2
    assert words in output


def test_a_dry_run_counts_a_step_and_leaves_nothing(images, tmp_path):
    code, output = run(cifar10_full, quick(tmp_path / "run", images, "--models", "bern", "--dry-run"))
    assert code == 0, output
    assert "FLOPs" in output
    assert "Trainable params" in output
    assert not (tmp_path / "run").exists()


def test_a_moving_average_resumes_to_the_bit(images, tmp_path):
    average = ["--models", "bern", "--ema", "0.9", "--finetune-epochs", "0"]
    assert run(cifar10_full, quick(tmp_path / "one", images, *average))[0] == 0
    for left in (1, 2):  # checkpoints; the second is of the end of the training
        folder = shutil.copytree(tmp_path / "one", tmp_path / str(left))
        for path in sorted((folder / "bern" / "checkpoints").glob("*.ckpt"))[left:]:
            path.unlink()
        (folder / "results.json").unlink()
        assert run(cifar10_full, quick(folder, images, *average, "--resume"))[0] == 0
        assert measured(tmp_path / "one") == measured(folder)


def test_presets_can_be_saved_and_loaded(tmp_path):
    for s in (QUICK, replace(cifar10_full.PRESETS["resnet18"][1])):
        job = runs.Run(tmp_path / s.preset, s, {"fingerprint": ""})
        model = cifar10_full.build_model("bern", s).eval()
        job.save_model("bern", model, cifar10_full.PREPROCESSING, small_images=True)
        loaded = HubModel.from_pretrained(tmp_path / s.preset / "bern")
        views = cifar10_full.NORMALIZE(batch(2) / 255)
        torch.testing.assert_close(loaded.encode(views, "z"), model.encode(views, "z"))


def test_help_fits_a_screen():
    command, environment = [sys.executable, cifar10_full.__file__, "quick", "--help"], {**os.environ, "COLUMNS": "120"}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) <= 60


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_doubled_batch(tmp_path):
    """Views and noise differ, images of a batch do not; so the loss curves agree up to their noise."""
    images = write_folder(tmp_path / "images", train=32, test=4)
    arguments = ["--models", "bern", "--finetune-epochs", "0", "--epochs", "8", "--batch-size", "32"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    curves = []
    for folder, start in (("one", [sys.executable]), ("two", launcher)):
        command = [*start, cifar10_full.__file__, *map(str, quick(tmp_path / folder, images, *arguments))]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        newest = runs.newest_checkpoint(tmp_path / folder / "bern" / "checkpoints")
        assert torch.load(newest, weights_only=True)["global_step"] == 24
        with next((tmp_path / folder / "bern" / "logs").glob("*/metrics.csv")).open() as file:
            curves.append([float(row["loss"]) for row in csv.DictReader(file) if row["loss"]])
    assert len(curves[0]) == len(curves[1])
    np.testing.assert_allclose(curves[0], curves[1], rtol=0.15)
