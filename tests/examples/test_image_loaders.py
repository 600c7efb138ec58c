"""Loaders of files and of WebDataset shards: every image once, random crops that follow from the seed, exact resume."""

import json
import tarfile
from types import SimpleNamespace

import pytest
import torch
from image_files import ImageError
from image_loaders import Shards, TrainingLoader, evaluation_loader, find_split
from small_images import WNIDS, encoded, photograph, write_files, write_photographs, write_shards
from torch.utils.data import DataLoader
from torchvision.transforms import v2

CONFIG = {"input_size": (3, 8, 8), "crop_pct": 1.0, "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
CROP = v2.Compose([v2.RandomResizedCrop(8), v2.PILToTensor()])


@pytest.fixture
def shards(tmp_path):
    """Three shards of ten images each, of three classes."""
    return str(write_shards(tmp_path, "train", each=10, shards=3))


@pytest.fixture
def folder(tmp_path):
    return str(write_photographs(tmp_path / "images", train=10, val=2))


def trainer(step=0, rank=0, world=1):
    return SimpleNamespace(global_step=step, global_rank=rank, world_size=world)


def batches(split, step=0, rank=0, world=1, workers=0, batch_size=4, seed=0):
    loader = TrainingLoader(split, CROP, 2, batch_size, trainer(step, rank, world), seed, workers)
    return [*loader]


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True)
    )


def names(images):
    return [name for (_, name, _), _ in images]


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_splits_are_found_and_loaded_in_order(kind, folder, shards):
    split = find_split(folder if kind == "folder" else shards, "train")
    assert (split.count, len(split.classes), split.sharded) == (30, 3, kind == "shards")
    found = [*evaluation_loader(split, CONFIG, workers=0)]
    assert found[0][0].shape == (30, 3, 8, 8)
    assert found[0][1].bincount().tolist() == [10, 10, 10]
    shares = [
        label for rank in (0, 1) for _, labels in evaluation_loader(split, CONFIG, 0, rank, 2) for label in labels
    ]
    assert sorted(shares) == sorted(found[0][1])
    assert equal(found, [*evaluation_loader(split, CONFIG, workers=1)])


def test_the_first_subfolder_of_that_name_is_taken(folder, tmp_path):
    assert find_split(folder, "test", "val", "train").count == 6
    assert find_split(str(tmp_path), "train").count == 30  # one level deeper
    assert find_split(folder + "/val", "train").classes == [*WNIDS]


@pytest.mark.parametrize("kind", ["folder", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_at_any_batch(kind, workers, folder, shards):
    split = find_split(folder if kind == "folder" else shards, "train")
    whole = batches(split, workers=workers)
    assert len(whole) == 7
    for batch in (1, 4, 6):
        assert equal(batches(split, batch, workers=workers), whole[batch:])
    second = batches(split, step=7, workers=workers)
    assert not equal(second, whole)
    assert equal(batches(split, step=12, workers=workers), second[5:])
    assert not equal(batches(split, workers=workers, seed=1), whole)


def test_each_worker_of_each_process_reads_shards_of_its_own(shards):
    paths = find_split(shards).items
    whole = sorted(names(Shards(paths, 0, 1)))
    assert len({*whole}) == 30
    for world, workers in ((1, 2), (3, 0)):
        loaders = [DataLoader(Shards(paths, rank, world), None, num_workers=workers) for rank in range(world)]
        assert sorted(name for loader in loaders for name in names(loader)) == whole


def test_each_image_is_trained_on_once_an_epoch_in_another_order(shards):
    orders = []
    for epoch in (0, 1):
        data = Shards(find_split(shards).items, 0, 1, batch_size=5, batches=6)
        data.epoch = epoch
        orders.append(names(data))
    assert len({*orders[0]}) == len({*orders[1]}) == 30
    assert orders[0] != orders[1]


def test_processes_get_the_same_number_of_batches_from_unequal_shards(shards):
    split = find_split(shards)  # two shards for one process, one for the other
    counts = [len(batches(split, rank=rank, world=2, batch_size=6, workers=1)) for rank in (0, 1)]
    assert counts == [5, 5]


# ---- shards as people have them ------------------------------------------------------------------------------------


JPEG = encoded(photograph(0, 40, 30))


@pytest.mark.parametrize("label", [{"a.cls": b"2"}, {"a.json": b'{"label": 2}'}, {"a.json": b'{"cls": 2, "x": 1}'}])
def test_labels_are_read_from_cls_or_json(tmp_path, label):
    split = find_split(write_files(tmp_path / "x.tar", {"a.jpg": JPEG} | label))
    assert split.classes == ["0", "1", "2"]
    assert next(iter(evaluation_loader(split, CONFIG, 0)))[1].tolist() == [2]


def test_shards_without_labels_have_no_classes(tmp_path):
    for name in ("x-0.tar", "x-1.tar"):
        write_files(tmp_path / name, {"a.jpg": JPEG, "b.png": encoded(photograph(1, 40, 30), "PNG")})
    split = find_split(str(tmp_path / "x-*.tar"))
    assert (split.count, split.classes) == (4, [])


def test_every_nth_shard_can_be_held_out(shards):
    split = find_split(shards)
    assert split.every(3).items == split.items[:1]
    assert split.every(3, rest=True).items == split.items[1:]
    assert (split.every(3).count, split.every(3, rest=True).count) == (10, 20)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": JPEG[:-200], "a.cls": b"0"}, r"x-0.tar/a.jpg: .*truncated"),
        ({"a.jpg": JPEG, "a.cls": b"cat"}, r"x-0.tar: .*cat"),
        ({"a.jpg": JPEG, "a.cls": b"0", "b.jpg": JPEG}, "1 of 2 images .* have no label"),
        ({"a.txt": b"", "a.cls": b"0"}, "a has no image"),
        ({"a.cls": b"0", "a.jpg": b"text"}, "a.jpg: not an image"),
        ({"a.jpg": JPEG, "a.cls": b"1000000"}, r"labels must be below 1,000,000, got 1000000 in .*x-0.tar"),
    ],
)
def test_shards_that_cannot_be_used_are_named(tmp_path, files, message):
    write_files(tmp_path / "x-0.tar", files)
    with pytest.raises(ImageError, match=message):
        find_split(str(tmp_path / "x-*.tar"))


def test_links_in_shards_are_named(shards, tmp_path):
    with tarfile.open(tmp_path / "train-2.tar", "a") as tar:
        link = tarfile.TarInfo("latest.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "2_000.jpg"
        tar.addfile(link)
    with pytest.raises(ImageError, match=r"train-2.tar/latest.jpg: a link, which would be left out"):
        find_split(shards)


def test_damaged_and_missing_shards_are_named(shards, tmp_path):
    path = tmp_path / "train-1.tar"
    content = bytearray(path.read_bytes())
    header = content.rindex(b"1_009.cls")
    content[header : header + 512] = b"\1" * 512
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"train-1\.tar"):
        find_split(shards)
    path.unlink()
    with pytest.raises(ImageError, match=r"1 of 3 shards of .* are missing: .*train-1\.tar"):
        find_split(shards)


def test_fingerprints_follow_images_and_labels(tmp_path):
    found = set()
    for number, files in enumerate(
        [
            {"a.jpg": JPEG, "a.cls": b"0"},
            {"a.jpg": JPEG, "a.cls": b"1"},
            {"a.jpg": encoded(photograph(1, 40, 30)), "a.cls": b"0"},
            {"a.jpg": JPEG, "a.json": json.dumps({"label": 0, "text": "x"}).encode()},
        ]
    ):
        (tmp_path / str(number)).mkdir()
        found.add(find_split(write_files(tmp_path / str(number) / "x.tar", files)).fingerprint)
    assert len(found) == 3  # the last has the image and the label of the first
