"""The frozen evaluation asks each representation what suits it, and says what it left out."""

import pytest
import torch
from recipes import evaluate
from recipes.data import ImageData, Images
from recipes.models import make_model
from recipes.training import Hardware
from small_images import batch
from torch import nn

CPU = Hardware("cpu", "32", compile=False, workers=0)
DIM = 16


def made_of(count, classes=3, test=None):
    train = Images(batch(count), torch.arange(count) % classes)
    tested = train if test is None else Images(batch(test), torch.arange(test) % classes)
    return ImageData(train, tested, tuple("abcdefgh"[:classes]), "tiny", "0")


@pytest.fixture
def data():
    return made_of(24)


@pytest.fixture
def asked(monkeypatch):
    """What nearest neighbours were asked: images and width of the bank, and the metric."""
    calls, knn_accuracy = [], evaluate.knn_accuracy

    def recorder(*args, **options):
        calls.append((*args[0].shape, options["metric"]))
        return knn_accuracy(*args, **options)

    monkeypatch.setattr(evaluate, "knn_accuracy", recorder)
    return calls


@pytest.mark.parametrize(("kind", "metric"), [("bern", "hamming"), ("gauss", "cosine")])
def test_neighbours_of_bits_are_found_by_hamming_distance(kind, metric, data, asked):
    evaluate.evaluate(make_model(kind, "small", DIM, 8), data, CPU, seed=0)
    assert asked == [(24, 256, "cosine"), (24, DIM, metric)]


def test_a_model_without_a_latent_is_judged_by_its_features(data):
    found = evaluate.evaluate(make_model("simclr", "small", DIM, 8), data, CPU, seed=0)
    assert set(found) == {"h"}
    assert set(found["h"]) == {"dim", "probe", "probe_f1", "probe_c", "knn"}


# ---- features -------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_images_in_order(data):
    model = make_model("simclr", "small", DIM, 8).eval()
    train, test = evaluate.features({"h": model.encoder}, data, CPU, "features")["h"]
    normalized = data.evaluation("train").transform(data.train.images)
    with torch.no_grad():
        expected = model.encoder(normalized).numpy()
    assert train == pytest.approx(expected, abs=1e-5)
    assert test == pytest.approx(expected, abs=1e-5)


def test_pixels_are_normalised_and_flat(data):
    train, _ = evaluate.pixels(data, CPU._replace(precision="bf16"))
    assert train.shape == (24, 3 * 32 * 32)
    normalized = data.evaluation("train").transform(data.train.images)
    assert (train == normalized.flatten(1).numpy()).all()


def test_a_part_of_the_images_is_read_by_its_own_numbers(data):
    train, _ = evaluate.features({"x": nn.Flatten()}, data, CPU, "pixels", kept=[5, 2, 23])["x"]
    whole, _ = evaluate.features({"x": nn.Flatten()}, data, CPU, "pixels")["x"]
    assert (train == whole[[5, 2, 23]]).all()


# ---- large data -----------------------------------------------------------------------------------------------


def test_a_large_training_set_is_stood_for_by_the_same_share_of_each_class():
    labels = torch.tensor([2, 0, 1, 0, 0, 2, 1, 0, 2, 0])  # five, two and three
    assert evaluate.evenly(labels, 20) == list(range(10))
    for count, shares in ((9, [5, 2, 2]), (6, [3, 2, 1]), (3, [2, 1, 0]), (1, [1, 0, 0])):
        chosen = evaluate.evenly(labels, count)
        assert chosen == sorted(set(chosen))
        assert labels[chosen].bincount(minlength=3).tolist() == shares


def test_all_images_are_the_bank_where_they_are_few(data, asked, monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_BANK", 24)
    found = evaluate.evaluate(make_model("gauss", "small", DIM, 8), data, CPU, seed=0, probe=False)
    assert "knn_images" not in found
    assert asked == [(24, 256, "cosine"), (24, DIM, "cosine")]


def test_probes_trained_elsewhere_are_not_fitted_here(data, asked, monkeypatch):
    def not_here(*args, **options):
        raise AssertionError("the probe is trained by classify.probe")

    monkeypatch.setattr(evaluate, "linear_probe", not_here)
    monkeypatch.setattr(evaluate, "MAX_BANK", 12)
    found = evaluate.evaluate(make_model("bern", "small", DIM, 8), data, CPU, seed=0, probe=False)
    assert set(found["h"]) == set(found["z"]) == {"dim", "knn"}
    assert found["knn_images"] == 12
    assert asked == [(12, 256, "cosine"), (12, DIM, "hamming")]


def test_a_forest_too_large_for_the_memory_is_left_out_and_said(data, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "MAX_FOREST_CELLS", 24 * 3 - 1)
    found = evaluate.evaluate(make_model("bern", "small", DIM, 8), data, CPU, seed=0)
    assert "forest" not in found
    assert "no random forest: 3 classes and 24 images, more than the memory" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "MAX_FOREST_CELLS", 24 * 3)
    assert "forest" in evaluate.evaluate(make_model("gauss", "small", DIM, 8), data, CPU, seed=0)


def test_a_forest_is_not_grown_on_single_images(capsys):
    found = evaluate.evaluate(make_model("gauss", "small", DIM, 8), made_of(6, 6), CPU, seed=0, probe=False)
    assert "forest" not in found
    assert "no random forest: 6 classes and 6 images, too few" in capsys.readouterr().out


# ---- bits -----------------------------------------------------------------------------------------------------


def test_bits_are_counted_on_the_tensors(data):
    bits = torch.zeros(24, 20)
    bits[:6, 0] = 1
    bits[::2, 1] = 1
    used = evaluate.bit_usage(bits.numpy(), data)
    assert used["share_of_ones_by_bit"][:3] == [0.25, 0.5, 0.0]
    assert used["share_of_ones"] == pytest.approx(0.75 / 20)
    assert (used["images"], used["distinct_codes"]) == (24, 4)
    assert type(used["distinct_codes"]) is int
    assert used["image_bytes"] == data.test.images[0].nbytes == 3072
    assert used["code_bytes"] == 3  # 20 bits, padded
    assert used["compression_ratio"] == 3072 * 8 / 20


def test_a_correlation_that_is_not_defined_is_none(data):
    used = evaluate.bit_usage(torch.zeros(24, 4).numpy(), data)
    assert used["correlation"] is None
