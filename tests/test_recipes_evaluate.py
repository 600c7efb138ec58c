"""The frozen evaluation asks each representation what suits it."""

import pytest
import torch
from recipes import evaluate
from recipes.data import ImageData, Images
from recipes.models import make_model
from small_images import batch


@pytest.fixture
def data():
    part = Images(batch(24), torch.arange(24) % 3)
    return ImageData(part, part, ("a", "b", "c"), "tiny", "0")


@pytest.mark.parametrize(("kind", "metric"), [("bern", "hamming"), ("gauss", "cosine")])
def test_neighbours_of_bits_are_found_by_hamming_distance(kind, metric, data, monkeypatch):
    asked, knn_accuracy = [], evaluate.knn_accuracy

    def recorder(*args, **options):
        asked.append((args[0].shape[1], options["metric"]))
        return knn_accuracy(*args, **options)

    monkeypatch.setattr(evaluate, "knn_accuracy", recorder)
    evaluate.evaluate(make_model(kind, "small", 16, 8), data, "cpu", "32", seed=0)
    assert asked == [(256, "cosine"), (16, metric)]
