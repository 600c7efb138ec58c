"""The example that finds near-duplicates: planted ones are confirmed, other pairs are not."""

import csv
import json

import find_duplicates
import image_codes
import numpy as np
import pytest
from PIL import Image
from small_images import photograph, write_model

PLANTED = {("c.png", "recompressed.jpg"), ("d.png", "one_pixel.png"), ("e.png", "mirrored.jpg")}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two folders of images; the second has three of the first, recompressed, changed in a pixel, and mirrored."""
    where = tmp_path_factory.mktemp("images")
    for split, seeds in (("train", range(10)), ("test", range(100, 106))):
        (where / split).mkdir(parents=True)
        for name, seed in zip("abcdefghij", seeds, strict=False):
            photograph(seed, 32, 32).save(where / split / f"{name}.png")
    photograph(2, 32, 32).save(where / "test" / "recompressed.jpg", quality=75)
    pixels = np.asarray(photograph(3, 32, 32)).copy()
    pixels[5, 6] = 255 - pixels[5, 6]
    Image.fromarray(pixels).save(where / "test" / "one_pixel.png")
    mirrored = photograph(4, 32, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(where / "test" / "mirrored.jpg", quality=90)
    return where


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def call(images, model, tmp_path, capsys):
    def called(*arguments, first=images / "train", against=images / "test"):
        given = ["--model", model, "--images", first, "--out", tmp_path / "out"]
        given += ["--against", against] if against else []
        command = [str(argument) for argument in (*given, *arguments)]
        code = image_codes.main(find_duplicates.FindDuplicates, "", command)
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return called


def listed(out):
    return list(csv.DictReader((out / "pairs.csv").read_text().splitlines()))


def test_planted_duplicates_are_confirmed_and_other_pairs_are_not(call, tmp_path):
    code, printed = call("--radius", "19")  # of 20 bits, so that the pixels decide
    assert code == 0
    out = tmp_path / "out"
    rows = listed(out)
    assert {(row["image"], row["other"]) for row in rows[:3]} == PLANTED
    assert {row["group"] for row in rows[:3]} == {"1", "2", "3"}
    assert {row["group"] for row in rows[3:]} == {"0"}
    assert [row["other"] for row in rows if row["group"] != "0" and row["mirrored"] == "True"] == ["mirrored.jpg"]
    results = json.loads((out / "results.json").read_text())
    last = {"radius": "19", "candidates": len(rows), "confirmed": 3, "confirmed %": 300 / len(rows)}
    assert results["rows"][-1] == pytest.approx(last)
    assert len(results["rows"]) == 20
    assert (results["images"], results["images with a duplicate"], results["groups"]) == (10, 3, 3)
    assert (results["against"], results["against with a duplicate"]) == (9, 3)
    assert results["random pairs"] == find_duplicates.RANDOM
    assert "against with a duplicate: 3" in printed
    for name in ("confirmed.png", "rejected.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "| radius | candidates | confirmed | confirmed % |" in printed


def test_an_image_with_one_pixel_changed_is_the_nearest_by_its_bits(call, tmp_path):
    """A recompressed one need not be, for a model that was not trained to ignore such changes."""
    assert call("--radius", "19")[0] == 0
    apart = {row["image"]: int(row["hamming"]) for row in listed(tmp_path / "out") if row["other"] == "one_pixel.png"}
    assert apart.pop("d.png") < min(apart.values())


def test_another_radius_encodes_nothing_and_leaves_no_old_figure(call, images, tmp_path, monkeypatch):
    assert call("--radius", "19")[0] == 0
    encoded = []
    monkeypatch.setattr(image_codes, "encode", lambda *_: encoded.append(1) or 1 / 0)
    assert call("--radius", "19", "--least", "1")[0] == 0
    assert not encoded
    assert not (tmp_path / "out" / "confirmed.png").exists()
    assert {row["group"] for row in listed(tmp_path / "out")} == {"0"}
    with pytest.raises(ZeroDivisionError):  # other images are encoded
        call("--radius", "19", first=images)


def test_within_one_folder_each_pair_comes_once(call, images, tmp_path):
    code, printed = call("--radius", "19", first=images, against=None)
    assert code == 0
    rows = listed(tmp_path / "out")
    found = {frozenset((row["image"], row["other"])) for row in rows if row["group"] != "0"}
    assert found == {frozenset((f"train/{a}", f"test/{b}")) for a, b in PLANTED}
    assert len({frozenset((row["image"], row["other"])) for row in rows}) == len(rows)
    assert "images: 19 images with a duplicate: 6 against: 0" in printed


def test_linked_pairs_are_one_group(call, images, tmp_path):
    (tmp_path / "copies").mkdir()
    for name in "abc":
        photograph(7, 32, 32).save(tmp_path / "copies" / f"{name}.png")
    assert call(first=tmp_path / "copies", against=None)[0] == 0
    assert [row["group"] for row in listed(tmp_path / "out")] == ["1"] * 3


def test_no_pair_is_a_result_too(call, tmp_path):
    (tmp_path / "one").mkdir()
    photograph(500, 32, 32).save(tmp_path / "one" / "a.png")
    code, printed = call(first=tmp_path / "one", against=None)
    assert (code, listed(tmp_path / "out")) == (0, [])
    assert "images: 1 images with a duplicate: 0" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--radius", "-1"], "--radius must be from 0 to 19 bits and --least in (0, 1], got -1 and 0.8"),
        (["--least", "0"], "got 10 and 0.0"),
        (["--radius", "20"], "got 20 and 0.8"),
        (["--images", "nowhere"], "nowhere"),
        (["--model", "nowhere/bern"], "there is no folder nowhere/bern"),
    ],
)
def test_errors_name_the_argument(arguments, message, call):
    code, printed = call(*arguments)
    assert code == 2
    assert message in printed


def test_more_pairs_than_memory_holds_are_refused(call, monkeypatch):
    monkeypatch.setattr(find_duplicates, "MAX_PAIRS", 5)
    assert "--radius 19 gives more than 5 pairs; give a smaller one" in call("--radius", "19")[1]
