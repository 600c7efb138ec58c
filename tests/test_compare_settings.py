"""The search for the quick preset's settings: what is kept, and the table that is published."""

import csv
import io
import json

import compare_settings
import pytest
import torch
from recipes.claims.cache import configuration
from recipes.claims.evidence import Setting
from recipes.data import ImageData, Images
from small_images import CLASSES, batch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes of 50 training and four held-out images, and one alternative to train on them."""
    labels = torch.arange(150) % 3
    images = ImageData(Images(batch(150), labels), Images(batch(12), labels[:12]), CLASSES, "small", "0" * 64)
    monkeypatch.setattr(compare_settings, "held_out", lambda: images)
    monkeypatch.setattr(compare_settings, "SETTINGS", {"preset": ("--epochs", "1")})
    monkeypatch.setattr(compare_settings, "FOR_BITS", {"straight-through": ("--epochs", "1", "--hard")})
    (tmp_path / "pixels.json").write_text(json.dumps({"probe": 0.5, "knn": 0.4}))
    return tmp_path


def rows(folder):
    return list(csv.DictReader(io.StringIO(compare_settings.table([0, 1], folder))))


@pytest.mark.filterwarnings("ignore:Cosine annealing")
def test_a_setting_is_trained_once_and_stands_in_the_table(folder):
    assert [row["setting"] for row in rows(folder)] == ["raw pixels"]
    options = ("--epochs", "1", "--hard")
    compare_settings.measure("bern", options, 0, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    compare_settings.measure("bern", options, 0, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    pixels, row = rows(folder)
    assert (pixels["h_probe"], pixels["h_knn"]) == ("0.5", "0.4")
    assert (row["setting"], row["model"], row["seed"]) == ("straight-through", "bern", "0")
    assert row["options"] == "--epochs 1 --hard"
    frozen = json.loads(next(folder.glob("*/bern/frozen.json")).read_text())["result"]
    assert row["h_probe"] == str(round(frozen["h"]["probe"], 4))
    assert row["z_knn"] == str(round(frozen["z"]["knn"], 4))
    assert row["bit_correlation"] == str(round(frozen["bits"]["correlation"], 4))
    assert "forest" not in frozen  # nothing here reads it, and it takes longer than the rest


def test_a_gauss_has_no_bits_to_tell_of(folder):
    place = compare_settings.runs(folder).args(Setting("gauss", ("--epochs", "1")), 1)
    (place.out / "gauss").mkdir(parents=True)
    (place.out / "config.json").write_text(json.dumps(configuration(place)))
    found = {"h": {"probe": 0.61234567, "knn": 0.5}, "z": {"probe": 0.4, "knn": 0.3}}
    content = {"sha256": "0" * 64, "commit": None, "seconds": 1.0, "result": found}
    (place.out / "gauss" / "frozen.json").write_text(json.dumps(content))
    row = rows(folder)[1]
    assert (row["model"], row["seed"], row["h_probe"], row["share_of_ones"]) == ("gauss", "1", "0.6123", "")
