"""The example that finds near-duplicates: planted ones are found, others are not believed."""

import csv
import json

import find_duplicates
import numpy as np
import pytest
from PIL import Image
from small_images import photograph
from small_search import write_run

PLANTED = {"train/c.png": "test/recompressed.jpg", "train/d.png": "test/one_pixel.png"}


def write_images(where):
    """Pictures in two folders; two of the second are the first's, one recompressed and one with a pixel changed."""
    for split, seeds in (("train", range(10)), ("test", range(100, 106))):
        (where / split).mkdir(parents=True)
        for name, seed in zip("abcdefghij", seeds, strict=False):
            photograph(seed, 32, 32).save(where / split / f"{name}.png")
    photograph(2, 32, 32).save(where / "test" / "recompressed.jpg", quality=75)
    pixels = np.asarray(photograph(3, 32, 32)).copy()
    pixels[5, 6] = 255 - pixels[5, 6]
    Image.fromarray(pixels).save(where / "test" / "one_pixel.png")
    return where


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    where = write_images(tmp_path_factory.mktemp("pictures"))
    write_run(where / "run")
    return where


@pytest.fixture
def call(images, tmp_path, capsys):
    def called(*arguments, first=images / "train", against=images / "test"):
        given = ["--model", images / "run" / "bern", "--images", first, "--out", tmp_path / "out"]
        given += ["--against", against] if against else []
        try:
            code = find_duplicates.main([str(argument) for argument in (*given, *arguments)])
        except SystemExit as stop:  # argparse's way out
            code = stop.code
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return called


def listed(out):
    return list(csv.DictReader((out / "pairs.csv").read_text().splitlines()))


def test_planted_duplicates_are_found_and_others_not_believed(call, tmp_path):
    code, said = call("--radius", "19")  # of 20 bits: the check has to tell them apart alone
    assert code == 0
    out = tmp_path / "out"
    rows = listed(out)
    confirmed = {(row["image"], row["other"]) for row in rows if row["confirmed"] == "1"}
    assert confirmed == {(a.split("/")[1], b.split("/")[1]) for a, b in PLANTED.items()}
    assert [row["group"] for row in rows[:2]] in (["1", "2"], ["2", "1"])
    assert all(row["group"] == "" for row in rows[2:])
    results = json.loads((out / "results.json").read_text())
    assert results["by_radius"][-1] == {"radius": 19, "candidates": len(rows), "confirmed": 2}
    assert len(results["by_radius"]) == 20
    assert results["with_a_confirmed_pair"] == {"images": 2, "against": 2}
    assert results["groups"] == 2
    assert results["random_pairs"]["count"] == find_duplicates.RANDOM
    assert "--against: 2 of 8 have a near-duplicate (25.00 %)" in said
    for name in ("confirmed.png", "rejected.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text().startswith("| bits apart, at most | candidates |")


def test_a_picture_with_one_pixel_changed_is_the_nearest_by_its_bits(call, tmp_path):
    """A recompressed one need not be to a model that was never trained to see past such changes."""
    assert call("--radius", "19")[0] == 0
    rows = listed(tmp_path / "out")
    apart = {row["image"]: int(row["hamming"]) for row in rows if row["other"] == "one_pixel.png"}
    assert apart.pop("d.png") < min(apart.values())


def test_another_radius_encodes_nothing_and_leaves_no_old_figure(call, tmp_path, monkeypatch):
    assert call("--radius", "19")[0] == 0
    monkeypatch.setattr(find_duplicates.encoding, "encode_pixels", lambda *_: 1 / 0)
    assert call("--radius", "19", "--least", "1")[0] == 0
    out = tmp_path / "out"
    assert not (out / "confirmed.png").exists()
    assert not any(int(row["confirmed"]) for row in listed(out))


def test_within_one_folder_each_pair_comes_once(call, images, tmp_path):
    code, said = call("--radius", "19", first=images, against=None)
    assert code == 0
    rows = listed(tmp_path / "out")
    found = {frozenset((row["image"], row["other"])) for row in rows if row["confirmed"] == "1"}
    assert found == {frozenset(pair) for pair in PLANTED.items()}
    assert {row["class"] for row in rows} == {"train", "test"}
    assert len({frozenset((row["image"], row["other"])) for row in rows}) == len(rows)
    assert "--images: 2 of 18" not in said  # as they are counted on one side
    assert "--images: 4 of 18 have a near-duplicate" in said


def test_no_pair_at_all_is_an_answer(call, images, tmp_path):
    (tmp_path / "one").mkdir()
    photograph(500, 32, 32).save(tmp_path / "one" / "a.png")
    code, said = call(first=tmp_path / "one", against=None)
    assert code == 0
    assert listed(tmp_path / "out") == []
    assert "0 of 1 have a near-duplicate" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--radius", "-1"], "--radius must be at least 0, got -1"),
        (["--show", "0"], "--show must be at least 1, got 0"),
        (["--least", "0"], "--least must be above 0 and at most 1, got 0.0"),
        (["--radius", "20"], "--radius must be below the code's 20 bits, got 20"),
        (["--images", "nowhere"], "no images at nowhere"),
        (["--model", "nowhere/bern"], "nowhere/bern holds no trained model"),
    ],
)
def test_what_the_user_can_mend_is_said(arguments, said, call):
    code, printed = call(*arguments)
    assert code == 2
    assert said in printed


def test_a_stop_is_told(call, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(find_duplicates.encoding, "encode", stops)
    code, said = call()
    assert code == 130
    assert "the same command goes on from there" in said
