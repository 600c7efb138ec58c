"""Photographs in classes: folders, tars and shards give the same, from any process, and what is wrong is named."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from recipes import imagenet, tars
from recipes.batches import DataError, Loader, Order
from recipes.feeds import TrainingData, evaluation_loader
from recipes.sources import expand
from recipes.stored import Members
from small_images import WNIDS, encoded, photograph, photographs, write_photographs, write_tar

SIDE = 32


def write_shards(pattern, split="train", each=4, *, a_shard=5, label="cls", image="jpg"):
    """Write shards as WebDataset does, labels as text or in JSON; returns how many."""
    with webdataset.ShardWriter(str(pattern), maxcount=a_shard, verbose=0) as writer:
        for i, (name, content) in enumerate(photographs(split, each)):
            number = WNIDS.index(name[:3])
            told = number if label == "cls" else {"label": number, "caption": "a photograph"}
            writer.write({"__key__": f"{i:06}", image: content, label: told})
        return writer.shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of four training and two validation photographs."""
    return write_photographs(tmp_path_factory.mktemp("data") / "few")


@pytest.fixture(scope="module")
def tar(folder):
    return write_tar(folder, folder.with_name("few.tar"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Folder with three shards of training and two of validation photographs."""
    below = tmp_path_factory.mktemp("shards")
    assert write_shards(below / "train-%06d.tar") == 3
    assert write_shards(below / "val-%06d.tar", "val", 2) == 2
    return below


@pytest.fixture(autouse=True)
def index_folder(tmp_path, monkeypatch):
    """Indexes of each test for itself."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "index"


def load(*args, **options):
    return imagenet.load(*args, **{"size": SIDE, **options})


def contents(stored):
    return [stored.read(i) for i in range(len(stored))]


def same(a, b):
    return all(
        contents(x) == contents(y) and torch.equal(x.labels, y.labels)
        for x, y in ((a.train, b.train), (a.test, b.test))
    )


# ---- what is read --------------------------------------------------------------------------------------------


def test_a_folder_is_read_by_class_and_name(folder):
    data = load(folder)
    assert (data.name, data.classes, data.size) == ("few", WNIDS, SIDE)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train_labels.dtype == torch.int64
    assert contents(data.train) == [content for _, content in photographs("train", 4)]
    assert contents(data.test) == [content for _, content in photographs("val", 2)]


def test_the_default_size_is_224(folder):
    assert imagenet.load(folder).size == 224


def test_a_folder_of_each_split_may_be_given(folder):
    data, both = load(folder / "train", folder / "val"), load(folder)
    assert same(data, both)
    assert (data.name, data.fingerprint) == (both.name, both.fingerprint)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_tar_gives_what_its_folder_gives_in_whatever_order_it_was_packed(folder, tmp_path, reverse):
    data = load(write_tar(folder, tmp_path / "few.tar", reverse=reverse))
    assert same(data, load(folder))
    assert data.classes == WNIDS
    assert data.fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("prefix", ["", "./", "ILSVRC/CLS-LOC/"])
def test_a_tar_may_hold_everything_below_a_folder_of_its_own(folder, tmp_path, prefix):
    with tarfile.open(tmp_path / "outer.tar", "w") as archive:
        for path in sorted(folder.rglob("*.JPEG")):
            archive.add(path, prefix + str(path.relative_to(folder)))
        archive.add(next(folder.rglob("*.JPEG")), prefix + "cover.JPEG")
    data = load(tmp_path / "outer.tar")
    assert same(data, load(folder))
    assert data.fingerprint == load(folder).fingerprint


def test_a_tar_of_each_split_may_be_given(folder, tmp_path):
    train, val = (write_tar(folder / split, tmp_path / f"{split}.tar") for split in ("train", "val"))
    assert same(load(train, val), load(folder))
    assert same(load(train, folder / "val"), load(folder))


@pytest.mark.parametrize(
    ("label", "image"), [("cls", "jpg"), ("json", "jpg"), ("cls", "jpeg"), ("json", "png")]
)
def test_shards_of_webdataset_give_the_same(folder, tmp_path, label, image):
    write_shards(tmp_path / "train-%06d.tar", label=label, image=image)
    write_shards(tmp_path / "val-%06d.tar", "val", 2, label=label, image=image)
    data = load(f"{tmp_path}/train-{{000000..000002}}.tar", f"{tmp_path}/val-{{000000,000001}}.tar")
    assert same(data, load(folder))
    assert data.classes == ("0", "1", "2")
    assert data.name == "train-{000000..000002}.tar"
    starred = load(f"{tmp_path}/train-*.tar", f"{tmp_path}/val-00000[01].tar")
    assert same(starred, data)
    assert starred.fingerprint == data.fingerprint


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # WebDataset leaves closing to the collector
def test_shards_are_what_webdataset_itself_reads(shards):
    data = load(f"{shards}/train-*.tar", f"{shards}/val-*.tar")
    paths = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    read = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["jpg"] for sample in read] == contents(data.train)
    assert [int(sample["cls"]) for sample in read] == data.train_labels.tolist()


def test_one_shard_may_be_given(tmp_path, folder):
    write_shards(tmp_path / "all-%d.tar", a_shard=100)
    assert contents(load(tmp_path / "all-0.tar").train) == contents(load(folder).train)


def test_other_pictures_of_a_sample_are_passed_over(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/a-%d.tar", verbose=0) as writer:
        for i, (_, content) in enumerate(photographs("train", 1)):
            extra = {"seg.png": encoded(photograph(9), "PNG"), "txt": "words", "json": {"label": 9}}
            writer.write({"__key__": f"dir/{i}", "jpg": content, "cls": i, **extra})
    data = load(tmp_path / "a-0.tar")
    assert contents(data.train) == [content for _, content in photographs("train", 1)]
    assert data.train_labels.tolist() == [0, 1, 2]  # .cls comes before .json


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{9..11}.tar", ["a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{2..1}.tar", ["a-2.tar", "a-1.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("a-{0,{2..3}}.tar", ["a-0.tar", "a-2.tar", "a-3.tar"]),
    ],
)
def test_braces_stand_for_files(pattern, names, tmp_path):
    for name in names:
        Path(name).touch()
    assert [str(path) for path in expand(pattern)] == names


@pytest.mark.parametrize("pattern", ["a-{000..012}.tar", "{b,a}/{3..1}-{x,y}", "a{0..0}", "{08..11}"])
def test_braces_are_those_of_the_library_that_webdataset_uses(pattern, monkeypatch):
    braceexpand = pytest.importorskip("braceexpand")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert [str(path) for path in expand(pattern)] == list(braceexpand.braceexpand(pattern))


# ---- what to evaluate on -------------------------------------------------------------------------------------


def test_without_a_test_split_the_training_images_are_evaluated_on_and_it_is_said(tmp_path):
    data = load(write_photographs(tmp_path / "sample", 1, 0))
    assert data.name == "sample, evaluated on its training images"
    assert contents(data.test) == contents(data.train)
    assert torch.equal(data.test_labels, data.train_labels)


@pytest.mark.parametrize(("share", "each"), [(0.5, 2), (0.25, 1), (0.01, 1)])
def test_a_share_of_each_class_may_be_held_out(folder, shards, share, each):
    for source in (folder, f"{shards}/train-*.tar"):
        data, whole = load(source, hold_out=share), load(source)
        assert data.name.endswith(f", {share:.0%} of the training images held out")
        assert data.test_labels.bincount().tolist() == [each] * 3
        assert data.train_labels.bincount().tolist() == [4 - each] * 3
        assert sorted(contents(data.train) + contents(data.test)) == sorted(contents(whole.train))
        assert data.fingerprint != whole.fingerprint


def test_one_photograph_a_class_leaves_none_to_hold_out(tmp_path):
    told = r"class n01 has 1 training images, of which a share of 0\.5 held out leaves none; give a smaller share"
    with pytest.raises(DataError, match=told):
        load(write_photographs(tmp_path / "sample", 1, 0), hold_out=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hold_out": 1.0}, r"hold_out must be from 0 to below 1, got 1\.0"),
        ({"hold_out": -0.1}, r"hold_out must be from 0 to below 1, got -0\.1"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
    ],
)
def test_options_out_of_range_are_refused(folder, options, told):
    with pytest.raises(ValueError, match=told):
        load(folder, **options)


# ---- the fingerprint -----------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_every_name_size_and_label(folder):
    lines = [
        f"{part}\t{name}\t{len(content)}\t{WNIDS.index(name[:3])}\n"
        for part, split, each in (("train", "train", 4), ("test", "val", 2))
        for name, content in photographs(split, each)
    ]
    assert load(folder).fingerprint == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_another_photograph_has_another_fingerprint(folder, tmp_path):
    copy = write_photographs(tmp_path / "few")
    before = load(copy).fingerprint
    assert before == load(folder).fingerprint
    (copy / "train" / "n02" / "n02_1.JPEG").write_bytes(encoded(photograph(99)))
    changed = load(copy).fingerprint
    (copy / "train" / "n02" / "n02_1.JPEG").rename(copy / "train" / "n02" / "n02_9.JPEG")
    assert len({before, changed, load(copy).fingerprint}) == 3


# ---- crops ---------------------------------------------------------------------------------------------------


def test_seed_epoch_and_image_decide_a_crop_and_nothing_else(folder, tar, shards):
    sets = [load(folder), load(tar), load(f"{shards}/train-*.tar", f"{shards}/val-*.tar")]
    feeds = [TrainingData(data.pretraining(), 2, seed=3).feed for data in sets]
    pairs = [(5, 0), (5, 1), (6, 0), (5, 0)]
    expected, labels = feeds[0].dataset.__getitems__(pairs)
    assert expected.shape == (4, 2, 3, SIDE, SIDE)
    assert (expected.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert labels.tolist() == [1, 1, 1, 1]
    for feed in feeds[1:]:
        assert torch.equal(feed.dataset.__getitems__(pairs)[0], expected)
        alone = torch.cat([feed.dataset.__getitems__([pair])[0] for pair in reversed(pairs)]).flip(0)
        assert torch.equal(alone, expected)
    assert torch.equal(expected[0], expected[3])
    views = [view.numpy().tobytes() for image in expected[:3] for view in image]
    assert len(set(views)) == 6
    other = TrainingData(sets[0].pretraining(), 2, seed=4).feed
    assert not torch.equal(other.dataset.__getitems__(pairs)[0], expected)


def test_copies_of_one_photograph_get_crops_of_their_own(tmp_path):
    content = encoded(photograph(1, 96, 72))
    for name in ("a", "b", "c"):
        path = tmp_path / "copies" / "train" / "n01" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    crops, _ = load(tmp_path / "copies").pretraining().dataset.__getitems__([(0, 0), (1, 0), (2, 0)])
    assert len({crop.numpy().tobytes() for crop in crops.flatten(0, 1)}) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(tar, workers):
    data = load(tar)
    for feed in (data.pretraining(), data.training(0.2)):
        read = list(Loader(feed.dataset, Order(12, 4, 0), workers, pin_memory=False))
        expected = [feed.dataset.__getitems__(pairs) for pairs in Order(12, 4, 0)]
        for batch, other in zip(read, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    for split in ("train", "test"):
        images, labels = zip(*evaluation_loader(data.evaluation(split), 5, workers), strict=True)
        stored = getattr(data, split)
        assert torch.equal(torch.cat(labels), stored.labels)
        assert torch.cat(images).shape == (len(stored), 3, SIDE, SIDE)


def test_each_purpose_has_its_views(folder):
    data = load(folder)
    images, _ = data.pretraining().dataset.__getitems__([(0, 0), (4, 0)])
    for view in data.pretraining().transform(images, seed=1):
        assert view.shape == (2, 3, SIDE, SIDE)
        assert view.is_contiguous(memory_format=torch.channels_last)
    images, _ = data.training(0.2).dataset.__getitems__([(0, 0), (4, 0)])
    assert data.training(0.2).transform(images, seed=1).shape == (2, 3, SIDE, SIDE)
    images, _ = data.evaluation("test").dataset.__getitems__([(0, 0), (4, 0)])
    normalised = data.evaluation("test").transform(images, seed=1)
    back = normalised * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
        [0.485, 0.456, 0.406]
    ).view(3, 1, 1)
    torch.testing.assert_close(back * 255, images.float(), rtol=0, atol=1e-3)
    assert not any(feed.in_memory for feed in (data.pretraining(), data.training(), data.evaluation("train")))
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'val\''):
        data.evaluation("val")


def test_pretraining_has_simclrs_settings(folder):
    feed = load(folder, size=224).pretraining()
    views = feed.transform
    assert (views.size, views.strength, views.blur, feed.dataset.min_scale) == (224, 1.0, 0.5, 0.08)
    other = load(folder).pretraining(0.5, 0.3, 0.0)
    assert (other.transform.strength, other.transform.blur, other.dataset.min_scale) == (0.5, 0.0, 0.3)


# ---- tars: indexes and open files ----------------------------------------------------------------------------


def test_an_index_is_kept_and_used_until_the_tar_changes(tar, tmp_path, index_folder, monkeypatch):
    path = tmp_path / "few.tar"
    path.write_bytes(tar.read_bytes())
    reads = []
    read = tars._read
    monkeypatch.setattr(tars, "_read", lambda *args: reads.append(args[0]) or read(*args))
    first = load(path)
    (kept,) = index_folder.iterdir()
    assert len(reads) == 1
    assert same(load(path), first)
    assert len(reads) == 1
    kept.write_bytes(kept.read_bytes()[:-100])  # a damaged one is made anew
    assert same(load(path), first)
    assert len(reads) == 2
    os.utime(path, (1, 1))
    assert same(load(path), first)
    assert len(reads) == 3
    with tarfile.open(path, "a") as archive:
        content = encoded(photograph(50))
        told = tarfile.TarInfo("train/n01/new.JPEG")
        told.size = len(content)
        archive.addfile(told, io.BytesIO(content))
    assert len(load(path).train) == len(first.train) + 1
    assert len(reads) == 4
    assert [file.name for file in index_folder.iterdir()] == [kept.name]


def test_processes_that_index_at_once_write_files_of_their_own(tar, index_folder, monkeypatch):
    written, write = [], tars.write_atomically
    monkeypatch.setattr(
        tars, "write_atomically", lambda path, content: written.append(path) or write(path, content)
    )
    for _ in range(2):
        load(tar)
        (kept,) = index_folder.iterdir()
        kept.unlink()
    assert len({*written, kept}) == 3


def test_indexes_need_not_be_kept(tar, index_folder, capsys):
    load(tar, cache=None)
    assert not index_folder.exists()
    index_folder.parent.write_text("a file in the way")
    assert same(load(tar), load(tar, cache=None))
    assert "cannot be written" in capsys.readouterr().out


def test_tars_stay_open_a_few_at_a_time_and_with_their_process(shards, monkeypatch):
    monkeypatch.setattr(Members, "AT_ONCE", 2)
    stored = load(f"{shards}/train-*.tar", f"{shards}/val-*.tar").train
    assert not stored._open
    for index in (0, 11, 5, 0, 11):
        stored.read(index)
        assert len(stored._open) <= 2
    kept = list(stored._open.values())
    stored.read(11)
    assert list(stored._open.values()) == kept
    sent = pickle.loads(pickle.dumps(stored))
    assert not sent._open
    assert contents(sent) == contents(stored)
    part = stored.select(torch.tensor([0, 11]))
    assert not part._open
    assert contents(part) == [stored.read(0), stored.read(11)]


# ---- what can be wrong ---------------------------------------------------------------------------------------


def wrong(told, *args, **options):
    with pytest.raises(DataError, match=rf"(?s)^{told}$"):
        load(*args, **options)


LAYOUT = r"train/<class>/\*\.jpg and val/<class>/\*\.jpg"


def test_a_missing_source_is_named(tmp_path):
    for name in ("nowhere", "nowhere.tar", "a-*.tar", "a-{3..3}.tar"):
        wrong(
            rf"no data at {re.escape(f'{tmp_path}/{name}')}; give a folder or a tar that holds {LAYOUT}, or shards.*",
            f"{tmp_path}/{name}",
        )


def test_missing_shards_are_named(shards):
    wrong(
        r"1 of the 4 shards of .*train-\{000000\.\.000003\}\.tar are missing: .*train-000003\.tar; fetch them.*",
        f"{shards}/train-{{000000..000003}}.tar",
    )
    wrong(
        r"7 of the 10 shards of .* are missing: .*000003\.tar, .*000004\.tar, .*000005\.tar and 4 more; .*",
        f"{shards}/train-{{000000..000009}}.tar",
    )


def test_missing_splits_are_named(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong(rf".*empty holds no class folders; the layout must be {LAYOUT}", empty)
    (empty / "a.tar").touch()
    wrong(r".*; for shards, give .*/empty/\*\.tar", empty)
    only = write_photographs(tmp_path / "only")
    (only / "train").rename(only / "training")
    wrong(rf".*only holds no train images; the layout must be {LAYOUT}", only)


def test_pictures_beside_the_splits_are_no_split(folder, tmp_path):
    path = tmp_path / "only.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted((folder / "train").rglob("*.JPEG")):
            archive.add(file, f"few/train/{file.relative_to(folder / 'train')}")
        archive.add(file, "few/pictures/cover.JPEG")
    assert load(path).classes == WNIDS
    wrong(rf".*only\.tar holds no test images; the layout must be {LAYOUT}", folder, path)


def test_an_empty_class_is_named(tmp_path):
    folder = write_photographs(tmp_path / "few")
    (folder / "train" / "n00").mkdir()
    wrong(r"class folders without images: .*train/n00; fill or remove them", folder)


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_on_one_side_is_named(tmp_path, packed):
    folder = write_photographs(tmp_path / "few")
    (folder / "val" / "n02").rename(folder / "val" / "n04")
    source = write_tar(folder, tmp_path / "few.tar") if packed else folder
    wrong(r"the classes of .* must be the same and none empty; .* one side only: n02, n04", source)


def test_classes_by_name_and_by_number_do_not_mix(folder, shards):
    wrong(
        "one of .* tells classes by folders and the other by numbers; give both alike",
        folder / "train",
        f"{shards}/val-*.tar",
    )


def shard(path, *labels, suffix="cls"):
    with webdataset.TarWriter(str(path)) as writer:
        for i, label in enumerate(labels):
            sample = {"__key__": f"{i:03}", "jpg": encoded(photograph(i))}
            writer.write(sample if label is None else {**sample, suffix: label})
    return path


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            [1, 2, 3],
            r"labels of .*a\.tar must be 0, 1, 2 and so on, each with images; they go up to 3 and none is 0",
        ),
        ([0, 2, 10**9], r"labels of .*a\.tar must be .* go up to 1000000000 and none is 1"),
        ([0, -1], r".*a\.tar: 001\.cls must hold a class number from 0 on; got -1"),
        ([0, b"cat"], r".*a\.tar: 001\.cls must hold a class number from 0 on; got 'cat'"),
        (
            [0, None],
            r".*a\.tar: 001\.jpg has no label; each image needs a \.cls or \.json of its name beside it",
        ),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, labels, told):
    wrong(told, shard(tmp_path / "a.tar", *labels))
    with pytest.raises(DataError):
        load(tmp_path / "a.tar", hold_out=0.5)


@pytest.mark.parametrize("content", [{"caption": "a cat"}, {"label": "3"}, {"label": True}, [1]])
def test_json_without_a_label_is_named(tmp_path, content):
    path = shard(tmp_path / "a.tar", json.dumps(content).encode(), suffix="json")
    wrong(r".*a\.tar: 000\.json must hold a class number from 0 on, as .label. or .cls.; got .+", path)


def test_json_that_is_none_is_named(tmp_path):
    wrong(
        r".*a\.tar: 000\.json must hold a class number .* got '\{'",
        shard(tmp_path / "a.tar", b"{", suffix="json"),
    )


def test_labels_out_of_the_range_of_training_are_named(tmp_path):
    wrong(
        r"label 3 of .*b\.tar is out of the range 0 to 1 that the labels of .*a\.tar have",
        shard(tmp_path / "a.tar", 0, 1),
        shard(tmp_path / "b.tar", 0, 3),
    )


def test_a_tar_without_images_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(__file__, "notes.txt")
    wrong(r".*a\.tar holds no images; they must end in \.jpg, .*", tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        told = tarfile.TarInfo("a.jpg")
        archive.addfile(told)
    wrong(rf".*b\.tar holds no images in class folders; the layout must be {LAYOUT}", tmp_path / "b.tar")


def cut_in_a_photograph(path):
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    return path.read_bytes()[: last.offset_data + last.size // 2]


def cut_between_members(path):
    with tarfile.open(path) as archive:
        return path.read_bytes()[: archive.getmembers()[-1].offset]


def damaged_header(path):
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmembers()[3].offset
    content[place : place + 8] = b"\xff" * 8
    return bytes(content)


def compressed(path):
    return gzip.compress(path.read_bytes())


def words(path):
    return b"not a tar at all\n" * 100


def nothing(path):
    return b""


@pytest.mark.parametrize(
    "harm", [cut_in_a_photograph, cut_between_members, damaged_header, compressed, words, nothing]
)
def test_a_damaged_tar_is_refused(tar, tmp_path, harm, index_folder):
    path = tmp_path / "bad.tar"
    path.write_bytes(harm(tar))
    wrong(r".*bad\.tar is damaged, compressed or not a tar \(.+\); fetch it again.*", path)
    assert not index_folder.exists()


def test_a_tar_that_became_shorter_is_named(tar, tmp_path):
    path = tmp_path / "few.tar"
    path.write_bytes(tar.read_bytes())
    stored = load(path).train
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"few\.tar: n01/n01_1\.JPEG breaks off; .* shorter than it was"):
        contents(stored)


def test_a_file_or_tar_that_is_gone_is_named(tmp_path):
    folder = write_photographs(tmp_path / "few")
    path = write_tar(folder, tmp_path / "few.tar")
    stored = [load(folder).train, load(path).train]
    (folder / "train" / "n01" / "n01_0.JPEG").unlink()
    path.unlink()
    for images, told in zip(stored, [r"train/n01/n01_0\.JPEG", r"few\.tar: n01/n01_0\.JPEG"], strict=True):
        with pytest.raises(DataError, match=rf"^cannot read .*{told} \(No such file or directory\)"):
            images.read(0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_an_unreadable_photograph_is_named_by_whoever_reads_it(tmp_path, workers, packed):
    folder = write_photographs(tmp_path / "few")
    (folder / "train" / "n02" / "n02_1.JPEG").write_bytes(b"not an image")
    data = load(write_tar(folder, tmp_path / "few.tar") if packed else folder)
    place = r"few\.tar: n02/n02_1\.JPEG" if packed else r"few/train/n02/n02_1\.JPEG"
    for feed in (data.pretraining(), data.training(), data.evaluation("train")):
        with pytest.raises(
            DataError, match=rf"^cannot read the image \S*{place} \([^\n]+\); replace or remove it$"
        ):
            list(evaluation_loader(feed, 4, workers))


def test_a_link_to_nowhere_is_named(tmp_path):
    folder = write_photographs(tmp_path / "few")
    (folder / "train" / "n01" / "a.JPEG").symlink_to("nowhere.JPEG")
    wrong(r"cannot read .*train/n01/a\.JPEG \(No such file or directory\)", folder)
