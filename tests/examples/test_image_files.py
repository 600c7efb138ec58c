"""Image files as people have them: links, odd formats, damaged and missing files, and collections without labels."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import ImageError, check_images, find_images, read_image, read_pixels, unpack
from PIL import Image
from small_images import photograph


def save(path, seed=0, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed, *size).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images."""
    for seed, name in enumerate(("cat/a.png", "cat/b.jpg", "dog/c.png", "dog/d.jpg")):
        save(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def names(files, folder):
    return [os.path.relpath(path, folder) for path in files.paths]


def problems(folder):
    with pytest.raises(ImageError) as caught:
        check_images(find_images(folder))
    return str(caught.value)


def test_class_folders_give_labels(folder):
    files = find_images(folder)
    assert names(files, folder) == ["cat/a.png", "cat/b.jpg", "dog/c.png", "dog/d.jpg"]
    assert files.labels == [0, 0, 1, 1]
    assert files.classes == ["cat", "dog"]


@pytest.mark.parametrize("layout", ["flat", "one folder", "nested", "unlabelled on request"])
def test_images_without_classes_have_no_labels(folder, layout):
    prefix = {"flat": "", "one folder": "all/", "nested": "all/x/"}.get(layout)
    if prefix is not None:
        for number, path in enumerate([*folder.rglob("*.*")]):
            (folder / prefix).mkdir(parents=True, exist_ok=True)
            path.rename(folder / f"{prefix}{number}{path.suffix}")
    files = find_images(folder, labelled=prefix is not None)
    assert len(files.paths) == 4
    assert files.labels is None
    assert files.classes == []
    assert check_images(files)


def test_images_next_to_class_folders_are_left_out_and_named(folder):
    save(folder / "cover.png")
    with pytest.warns(UserWarning, match=r"left out 1 files of .*cover\.png"):
        files = find_images(folder)
    assert files.labels == [0, 0, 1, 1]
    assert len(find_images(folder, labelled=False).paths) == 5


def test_small_images_are_read_as_pixels(folder):
    save(folder / "dog" / "wide.png", size=(90, 30))
    pixels, labels, classes = read_pixels(folder, 20)
    assert classes == ["cat", "dog"]
    assert pixels.shape == (5, 3, 20, 20)
    assert pixels.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert read_pixels(folder / "dog", 20)[1] is None


# ---- E1 and E2: modes and orientation ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images_are_scaled(tmp_path, suffix):
    values = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    pixels = np.asarray(read_image(tmp_path / f"a{suffix}"))
    assert pixels.shape == (6, 8, 3)
    np.testing.assert_array_equal(pixels[..., 0], values // 256)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_without_a_fixed_range_are_refused_by_name(folder, dtype):
    Image.fromarray(np.ones((30, 40), dtype)).save(folder / "cat" / "depth.tif")
    assert "depth.tif: mode" in problems(folder)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    photograph(0, 40, 30).convert(mode).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_images_are_upright(tmp_path, orientation, kind):
    """The upper left quarter is white, wherever the file stores it."""
    upright = Image.new("RGB", (64, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # to Image.Transpose
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", kind, exif=exif)
    image = read_image(tmp_path / "a")
    assert image.size == upright.size
    assert np.abs(np.asarray(image, np.int16) - np.asarray(upright, np.int16)).max() < 20


def test_damaged_metadata_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff damaged")
    assert read_image(path).size == (40, 30)


def test_large_jpegs_can_be_decoded_smaller(tmp_path):
    path = save(tmp_path / "a.jpg", size=(800, 600))
    assert read_image(path).size == (800, 600)
    assert read_image(path, min_side=150).size == (200, 150)
    assert read_image(path, min_side=151).size == (400, 300)
    assert read_image(path, min_side=900).size == (800, 600)


# ---- E3 and E4: links --------------------------------------------------------------------------------------


def test_linked_class_folders_and_files_are_followed(folder, tmp_path):
    (tmp_path / "images" / "cat").rename(tmp_path / "elsewhere")
    (folder / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "dog" / "e.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    files = find_images(folder)
    assert files.labels == [0, 0, 1, 1, 1]
    assert check_images(files)


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python's tarfile does not check links")
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_unpacking_resolves_links(folder, tmp_path, suffix):
    (folder / "dog" / "hard.png").hardlink_to(folder / "cat" / "a.png")
    (folder / "dog" / "soft.png").symlink_to("../cat/a.png")
    archive = tmp_path / f"images{suffix}"
    with tarfile.open(archive, "w:gz" if suffix == ".tar.gz" else "w") as tar:
        tar.add(folder, ".")
    unpacked = unpack(archive, tmp_path / "new" / "unpacked")
    assert check_images(find_images(unpacked)) == check_images(find_images(folder))
    before = (unpacked / "cat" / "a.png").stat()
    assert unpack(archive, tmp_path / "new" / "unpacked") == unpacked  # used as it is
    assert (unpacked / "cat" / "a.png").stat().st_ino == before.st_ino
    os.utime(archive, (1, 1))  # another archive may have replaced it
    assert unpack(archive, tmp_path / "new" / "unpacked") != unpacked


@pytest.mark.parametrize("damage", ["missing", "truncated", "header", "outside", "outside, old", "not a tar"])
def test_archives_that_cannot_be_unpacked_are_named(folder, tmp_path, damage, monkeypatch):
    archive, target = tmp_path / "images.tar", tmp_path / "unpacked"
    if damage.endswith("old"):
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, ".")
        if "outside" in damage:
            tar.add(folder / "cat" / "a.png", "../a.png")
        offset = tar.getmembers()[-1].offset
    content = bytearray(archive.read_bytes())
    if damage == "header":
        content[offset : offset + 512] = b"\1" * 512
    archive.write_bytes({"truncated": content[: len(content) // 2], "not a tar": b"text"}.get(damage, content))
    if damage == "missing":
        archive.unlink()
    with pytest.raises(ImageError, match=r"cannot unpack .*images\.tar"):
        unpack(archive, target)
    assert not target.exists() or not any(target.iterdir())


# ---- E6, E7, E8 and E10: files that cannot be used, and changed ones ---------------------------------------


def test_unusable_images_are_named_before_anything_starts(folder):
    for name in ("truncated.jpg", "truncated.png"):
        path = save(folder / "cat" / name)
        path.write_bytes(path.read_bytes()[:-300])
    (folder / "cat" / "text.png").write_text("not an image")
    (folder / "cat" / "empty.png").touch()
    Image.new("L", (1, 30_000)).save(folder / "dog" / "line.png")
    Image.new("1", (13_100, 13_000)).save(folder / "dog" / "bomb.png")
    said = problems(folder)
    assert said.startswith("cannot use 6 of 10 images: ")
    assert all(name in said for name in ("truncated.jpg", "text.png: not an image", "empty.png"))
    for name in ("text.png", "empty.png", "truncated.jpg"):
        (folder / "cat" / name).unlink()
    said = problems(folder)
    assert all(name in said for name in ("truncated.png", "line.png: (1, 30000)", "bomb.png: (13100, 13000)"))


def test_fingerprint_follows_names_and_contents(folder, tmp_path):
    first = check_images(find_images(folder))
    assert check_images(find_images(shutil.copytree(folder, tmp_path / "copy"))) == first
    assert check_images(find_images(folder), workers=2) == first
    content = (folder / "cat" / "a.png").read_bytes()
    save(folder / "cat" / "a.png", seed=9)
    second = check_images(find_images(folder))
    (folder / "cat" / "a.png").write_bytes(content)
    (folder / "cat" / "a.png").rename(folder / "cat" / "aa.png")
    assert len({first, second, check_images(find_images(folder))}) == 3


def test_checking_leaves_the_global_seed_alone(folder):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check_images(find_images(folder))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".jfif", ".avif", ".webp", ".JPEG"])
def test_formats_are_read(folder, suffix):
    kind = {".jfif": "JPEG"}.get(suffix)
    save(folder / "cat" / f"other{suffix}", format=kind)
    files = find_images(folder)
    assert len(files.paths) == 5
    assert check_images(files)


def test_files_that_are_no_usable_images_are_left_out_and_named(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    for name in ("cat/e.heic", "cat/._a.png", ".trash/f.png", "notes.txt"):
        save(folder / name, format="PNG")
    with pytest.warns(UserWarning, match=r"left out 6 files of .*e\.heic"):
        files = find_images(folder)
    assert len(files.paths) == 4
    assert files.classes == ["cat", "dog"]


def test_a_missing_file_and_a_pipe_are_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


# ---- E9: names ---------------------------------------------------------------------------------------------


def test_any_file_name_is_read(folder):
    odd = [folder / "cat" / "a$_$b.jpg", Path(os.fsdecode(os.fsencode(folder) + b"/dog/\xff\xe9.png"))]
    for path in odd:
        with path.open("wb") as file:
            photograph(3, 40, 30).save(file, "PNG")
    assert check_images(find_images(folder))
    odd[1].write_bytes(b"damaged")
    assert "\\udcff\\udce9.png: not an image" in problems(folder)
