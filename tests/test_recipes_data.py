"""Images of the examples: every source gives the same tensors, and whatever is wrong is said with its cure."""

import hashlib
import importlib.util
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import data
from recipes.augment import Normalize
from small_images import CLASSES, batch, picture, write_folder, write_tar, write_torchvision
from torchvision.datasets import CIFAR10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of four training and two test images."""
    return write_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def sample():
    return data.load(data.SAMPLE)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip((*a.train, *a.test), (*b.train, *b.test), strict=True))


# ---- what is read ---------------------------------------------------------------------------------------------


def test_a_folder_is_read_by_class_and_name(folder):
    images = data.load(folder)
    assert images.name == "colours"
    assert images.classes == CLASSES
    assert images.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.train.images.shape == (12, 3, 32, 32)
    assert images.train.images.dtype == torch.uint8
    expected = np.stack([picture(c, i) for c in CLASSES for i in range(4)]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.train.images, expected)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_tar_gives_what_its_folder_gives_in_whatever_order_it_was_packed(folder, tmp_path, name, reverse):
    from_folder, from_tar = data.load(folder), data.load(write_tar(folder, tmp_path / name, reverse=reverse))
    assert same(from_folder, from_tar)
    assert from_folder.fingerprint == from_tar.fingerprint


def test_a_tar_may_hold_everything_below_a_folder_of_its_own(folder, tmp_path):
    outer = tmp_path / "outer.tar"
    with tarfile.open(outer, "w") as archive:
        archive.add(folder, "colours-1.0")
    assert same(data.load(folder), data.load(outer))


def test_val_stands_for_test(folder, tmp_path):
    assert same(data.load(folder), data.load(write_folder(tmp_path / "colours", test_name="val")))


def test_other_files_are_passed_over(tmp_path):
    folder = write_folder(tmp_path / "colours")
    before = data.load(folder)
    (folder / "train" / "red" / "notes.txt").write_text("not an image")
    Image.fromarray(picture("red", 99)).save(folder / "cover.png")
    assert same(before, data.load(folder))


@pytest.mark.parametrize("size", [(64, 64), (20, 20), (48, 32)])
def test_other_sizes_are_fitted_to_32(tmp_path, size):
    images = data.load(write_folder(tmp_path / "colours", size=size)).train.images
    assert images.shape == (12, 3, 32, 32)
    assert images.float().std() > 10


def test_the_middle_of_a_long_image_is_kept(tmp_path):
    folder = write_folder(tmp_path / "colours")
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = picture("red", 0)
    Image.fromarray(wide).save(folder / "train" / "red" / "0000.png")
    assert same(data.load(write_folder(tmp_path / "plain")), data.load(folder))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    folder = write_folder(tmp_path / "colours")
    grey = Image.fromarray(picture("red", 0)).convert("L")
    grey.save(folder / "train" / "red" / "0000.png")
    Image.fromarray(picture("red", 1)).convert("RGBA").save(folder / "train" / "red" / "0001.png")
    red = data.load(folder).train.images[8:10]
    assert torch.equal(red[0], torch.from_numpy(np.array(grey)).expand(3, 32, 32))
    assert np.array_equal(red[1], picture("red", 1).transpose(2, 0, 1))


def test_jpeg_is_read_close_to_the_original(folder, tmp_path):
    jpeg = data.load(write_folder(tmp_path / "colours", suffix=".JPEG"))
    exact = data.load(folder)
    assert jpeg.fingerprint != exact.fingerprint
    difference = (jpeg.train.images.float() - exact.train.images.float()).mean(dim=(1, 2, 3))
    assert difference.abs().max() < 5


def test_the_fingerprint_covers_every_pixel_and_label(folder):
    images = data.load(folder)
    digest = hashlib.sha256()
    for part in (*images.train, *images.test):
        digest.update(part.numpy().tobytes())
    assert images.fingerprint == digest.hexdigest()


# ---- the sample that ships ------------------------------------------------------------------------------------


def test_the_sample_has_ten_classes_alike(sample):
    assert len(sample.classes) == 10
    assert sample.name == "CIFAR-10 sample (JPEG copy)"
    assert sample.train.labels.bincount().tolist() == [500] * 10
    assert sample.test.labels.bincount().tolist() == [100] * 10


def test_no_image_of_the_sample_is_in_both_parts(sample):
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (sample.train, sample.test))
    assert not train & test
    assert len(train) > 4990  # CIFAR-10 itself holds a few images twice
    assert len(test) > 990


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_sample", data.SAMPLE.with_name("make_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def large_folder(tmp_path):
    """Ten classes; the files' content does not matter to the maker."""
    for split, count in (("train", 6), ("test", 4)):
        for label in range(10):
            below = tmp_path / "all" / split / f"class{label}"
            below.mkdir(parents=True)
            for i in range(count):
                (below / f"{i:04}.jpg").write_bytes(f"{split} {label} {i}".encode() * 50)
    return tmp_path / "all"


def test_make_sample_repeats_itself_byte_for_byte(maker, large_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(maker, "IMAGES_A_CLASS", {"train": 4, "test": 2})
    monkeypatch.setattr("sys.argv", ["make_sample.py", str(large_folder)])
    written = []
    for name in ("one.tar.gz", "two.tar.gz"):
        monkeypatch.setattr(maker, "SAMPLE", tmp_path / name)
        maker.main()
        written.append((tmp_path / name).read_bytes())
        for file in large_folder.rglob("*.jpg"):
            file.touch()  # dates must not reach the archive
    assert written[0] == written[1]
    assert "60 images" in capsys.readouterr().out
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        members = archive.getmembers()
        assert all(archive.extractfile(m).read() == (large_folder / m.name).read_bytes() for m in members)
    classes = [Path(m.name).parts[:2] for m in members]
    assert {c: classes.count(c) for c in classes} == {
        (split, f"class{i}"): count for split, count in (("train", 4), ("test", 2)) for i in range(10)
    }


def test_make_sample_draws_by_its_seed(maker, large_folder, monkeypatch):
    monkeypatch.setattr(maker, "IMAGES_A_CLASS", {"train": 3})
    assert maker.choose(large_folder) == maker.choose(large_folder)
    assert maker.choose(large_folder) != maker.choose(large_folder, seed=1)


def test_make_sample_refuses_a_folder_that_is_not_cifar10(maker, folder):
    with pytest.raises(SystemExit, match="must hold the ten class folders of CIFAR-10, found 3"):
        maker.choose(folder)


# ---- held-out images ------------------------------------------------------------------------------------------


def test_held_out_images_are_balanced_apart_and_complete(sample):
    held = data.hold_out(sample)
    assert held.test.labels.bincount().tolist() == [100] * 10
    assert held.train.labels.bincount().tolist() == [400] * 10
    assert held.classes == sample.classes
    assert held.name.endswith("20% of the training images held out")
    parts = [
        [(image.numpy().tobytes(), int(label)) for image, label in zip(*part, strict=True)]
        for part in (held.train, held.test, sample.train)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(parts[2])


@pytest.mark.parametrize(("share", "each"), [(0.5, 2), (0.25, 1), (0.01, 1)])
def test_any_share_holds_out_at_least_one_of_each_class(folder, share, each):
    held = data.hold_out(data.load(folder), share)
    assert held.test.labels.bincount().tolist() == [each] * 3
    assert held.train.labels.bincount().tolist() == [4 - each] * 3


# ---- what training and evaluation get -------------------------------------------------------------------------


def test_each_purpose_has_its_images_and_views(folder):
    images = data.load(folder)
    pairs, rows = [(3, 0), (0, 7), (3, 1)], [3, 0, 3]
    feeds = [images.pretraining(0.5, 0.2), images.training(0.2), images.evaluation("train")]
    for feed in feeds:
        batch, labels = feed.dataset.__getitems__(pairs)
        assert torch.equal(batch, images.train.images[rows])
        assert torch.equal(labels, images.train.labels[rows])
        assert feed.in_memory
        assert len(feed.dataset) == 12
    first, second = feeds[0].transform(batch, seed=1)
    assert first.shape == second.shape == (3, 3, 32, 32)
    assert not torch.equal(first, second)
    assert feeds[1].transform(batch, seed=1).shape == (3, 3, 32, 32)
    assert torch.equal(feeds[2].transform(batch, seed=1), Normalize()(batch))
    assert torch.equal(images.evaluation("test").dataset.__getitems__([(1, 0)])[0], images.test.images[1:2])
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'val\''):
        images.evaluation("val")


def test_views_have_the_settings_that_are_given(folder):
    images = data.load(folder)
    assert images.size == 32
    assert torch.equal(images.train_labels, images.train.labels)
    assert torch.equal(images.test_labels, images.test.labels)
    views = images.pretraining(0.4, 0.3).transform
    assert (views.size, views.strength, views.min_scale, views.blur) == (32, 0.4, 0.3, 0.0)
    views = images.pretraining(0.4, 0.3, 0.5, size=24).transform
    assert (views.size, views.blur) == (24, 0.5)
    view = images.training(0.3).transform
    assert (view.size, view.min_scale, view.strength, view.blur, view.grey) == (32, 0.3, 0, 0, 0)


# ---- what can be wrong ----------------------------------------------------------------------------------------


def missing(folder):
    return folder.with_name("nowhere")


def truncated_tar(folder):
    return _shortened(write_tar(folder, folder.with_name("short.tar")))


def truncated_gzip(folder):
    return _shortened(write_tar(folder, folder.with_name("short.tar.gz")))


def _shortened(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damaged_gzip(folder):
    """Half of it good, then what no zlib stream may hold: zlib's own error, which is no OSError."""
    whole = write_tar(folder, folder.with_name("bad.tar")).read_bytes()
    packer = zlib.compressobj(wbits=31)
    good = packer.compress(whole[: len(whole) // 2]) + packer.flush(zlib.Z_FULL_FLUSH)
    path = folder.with_name("bad.tar.gz")
    path.write_bytes(good + b"\xff" * 1000)
    return path


def damaged_header(folder):
    """What a tar reader takes for the end of the archive."""
    path = write_tar(folder, folder.with_name("odd.tar"))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmembers()[-1].offset  # of the last test image, so that no class becomes empty
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    return path


def cut_before_the_last_image(folder):
    path = write_tar(folder, folder.with_name("cut.tar"))
    with tarfile.open(path) as archive:
        place = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:place])
    return path


def not_a_tar(folder):
    path = folder.with_name("words.tar")
    path.write_text("not a tar at all\n" * 100)
    return path


def empty_file(folder):
    path = folder.with_name("empty.tar")
    path.touch()
    return path


def words_for_an_image(folder):
    (folder / "train" / "red" / "0002.png").write_text("not an image")
    return folder


def shortened_image(folder):
    return _shortened(folder / "train" / "red" / "0002.png").parents[2]


def broken_png(folder):
    """A chunk whose name is damaged: Pillow's SyntaxError, which is no OSError."""
    path = folder / "train" / "red" / "0002.png"
    content = path.read_bytes()
    path.write_bytes(
        content[: content.index(b"IDAT")] + b"\x7fA\xd0\x94" + content[content.index(b"IDAT") + 4 :]
    )
    return folder


def empty_test_class(folder):
    for file in (folder / "test" / "green").iterdir():
        file.unlink()
    return folder


def empty_class(folder):
    for split in ("train", "test"):
        (folder / split / "black").mkdir()
    return folder


def class_on_the_test_side(folder):
    below = folder / "test" / "yellow"
    below.mkdir()
    Image.fromarray(picture("red", 0)).save(below / "0000.png")
    return folder


def no_training_images(folder):
    (folder / "train").rename(folder / "training")
    return folder


def split_given_for_the_whole(folder):
    return folder / "train"


LAYOUT = r"train/<class>/\*\.jpg and test/<class>/\*\.jpg"
WRONG = {
    missing: rf"^no data at .*nowhere; give a folder or a tar that holds {LAYOUT}$",
    truncated_tar: r"short\.tar is damaged or not a tar \(.+\); fetch or unpack it again$",
    truncated_gzip: r"short\.tar\.gz is damaged or not a tar \(.+\); fetch or unpack it again$",
    cut_before_the_last_image: r"cut\.tar is damaged or not a tar \(.+\); fetch or unpack it again$",
    damaged_header: r"odd\.tar is damaged or not a tar \(.+\); fetch or unpack it again$",
    damaged_gzip: r"bad\.tar\.gz is damaged or not a tar \(.+\); fetch or unpack it again$",
    not_a_tar: r"words\.tar is damaged or not a tar \(.+\); fetch or unpack it again$",
    empty_file: r"empty\.tar is damaged or not a tar \(.+\); fetch or unpack it again$",
    words_for_an_image: r"^cannot read the image .*train.red.0002\.png \(.+\); replace or remove it$",
    shortened_image: r"^cannot read the image .*train.red.0002\.png \(.+\); replace or remove it$",
    broken_png: r"^cannot read the image .*train.red.0002\.png \(.+\); replace or remove it$",
    empty_test_class: r"colours has class folders without images: test/green; fill or remove them$",
    empty_class: r"colours has class folders without images: test/black, train/black; fill or remove them$",
    class_on_the_test_side: r"must be the same and none empty; these have images on one side only: yellow$",
    no_training_images: rf"colours holds no training images; the layout must be {LAYOUT}$",
    split_given_for_the_whole: rf"train holds no training images; the layout must be {LAYOUT}$",
}


@pytest.mark.parametrize("harm", WRONG, ids=lambda harm: harm.__name__)
def test_what_is_wrong_is_named_with_its_cure(harm, tmp_path):
    source = harm(write_folder(tmp_path / "colours"))
    with pytest.raises(data.DataError, match=f"(?s){WRONG[harm]}"):
        data.load(source)


def test_damage_anywhere_is_found_or_does_no_harm(folder, tmp_path):
    whole, path = write_tar(folder, tmp_path / "a.tar.gz"), tmp_path / "b.tar.gz"
    content = whole.read_bytes()
    good, found = data.load(folder), 0
    for place in range(12, len(content), len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert same(data.load(path), good), f"other images from damage at {place}"
        except data.DataError:
            found += 1
    assert found > 50


@pytest.mark.parametrize("harm", [words_for_an_image, shortened_image])
def test_an_unreadable_image_of_a_tar_is_named(harm, tmp_path):
    harmed = harm(write_folder(tmp_path / "colours"))
    with pytest.raises(data.DataError, match=r"cannot read the image train.red.0002\.png"):
        data.load(write_tar(harmed, tmp_path / "a.tar"))


# ---- torchvision's data set -----------------------------------------------------------------------------------


@pytest.fixture
def torchvision_root(tmp_path, monkeypatch):
    """CIFAR-10's own layout with six images a batch, which torchvision takes for the real one."""
    root = tmp_path / "root"
    labels = torch.arange(6) % 3
    names = write_torchvision(root, batch(6), labels)
    digests = {
        name: hashlib.md5((root / "cifar-10-batches-py" / name).read_bytes()).hexdigest() for name in names
    }
    monkeypatch.setattr(CIFAR10, "train_list", [[n, digests[n]] for n in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], digests[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    return root


def unreachable(*args, **kwargs):
    raise urllib.error.URLError("no route to host")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


@pytest.mark.parametrize("named", [True, False], ids=["folder", "default"])
def test_torchvisions_folder_is_read_without_a_network(torchvision_root, no_network, named):
    images = data.load(torchvision_root) if named else data.load(None, root=torchvision_root)
    assert images.name == "CIFAR-10"
    assert images.classes == CLASSES
    assert torch.equal(images.train.images, batch(6).repeat(5, 1, 1, 1))
    assert torch.equal(images.test.images, batch(6))
    assert images.train.labels.tolist() == [0, 1, 2] * 10
    assert images.train.images.is_contiguous()
    assert images.fingerprint != data.load(write_folder(torchvision_root / "other")).fingerprint


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("harm", ["shortened", "removed"])
def test_a_damaged_torchvision_folder_is_refused(torchvision_root, name, harm):
    path = torchvision_root / "cifar-10-batches-py" / name
    if harm == "removed":
        path.unlink()
    else:
        _shortened(path)
    with pytest.raises(
        data.DataError, match=rf"not complete below .*root \(.+\).* or give --data .*{LAYOUT}$"
    ):
        data.load(torchvision_root)


def test_without_a_network_the_way_round_is_named(tmp_path, no_network):
    message = rf"not complete below .*no route to host.*\); check the network .* --data a folder or a tar .*{LAYOUT}$"
    with pytest.raises(data.DataError, match=message):
        data.load(None, root=tmp_path / "data")


def test_a_cut_download_is_refused(tmp_path, monkeypatch):
    def cut(url, filename, **kwargs):
        Path(filename).write_bytes(b"half of it")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", cut)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **kwargs: url)
    with pytest.raises(
        data.DataError, match=r"not complete below .*data \(.+\); check the network and the disk"
    ):
        data.load(None, root=tmp_path / "data")
