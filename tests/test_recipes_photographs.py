"""Photographs decoded and cropped beside torchvision's transforms, and those that are odd or damaged."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from recipes.batches import DataError
from recipes.draws import draw_crops
from recipes.photographs import middle, random_crops
from small_images import encoded, photograph
from torchvision import transforms as T
from torchvision.transforms import functional as V

BICUBIC = T.InterpolationMode.BICUBIC


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def crops(content, size=32, count=2, least=0.08, seed=1):
    return random_crops(content, "a.jpg", count, size, least, seeded(seed))


def torchvision_crops(image, size, count=2, least=0.08, seed=1):
    sides = torch.stack(draw_crops(count, image.height, image.width, least, seeded(seed)), dim=1).tolist()
    return [np.asarray(V.resized_crop(image, *crop, [size, size], BICUBIC)) for crop in sides]


def difference(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int))


# ---- beside torchvision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [(90, 60), (61, 200), (40, 40), (20, 31)])
@pytest.mark.parametrize("seed", range(4))
def test_crops_are_torchvisions_by_the_same_draws(side, seed):
    image = photograph(seed, *side)
    for mine, other in zip(
        crops(encoded(image, "PNG"), 32, 3, seed=seed),
        torchvision_crops(image, 32, 3, seed=seed),
        strict=True,
    ):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize("side", [(90, 60), (61, 200), (64, 64), (20, 31), (333, 500)])
@pytest.mark.parametrize("size", [28, 56])
def test_the_middle_is_torchvisions(side, size):
    image = photograph(1, *side)
    usual = T.Compose([T.Resize(size * 8 // 7, BICUBIC), T.CenterCrop(size)])
    assert np.array_equal(middle(encoded(image, "PNG"), "a.png", size), np.asarray(usual(image)))


def test_224_pixels_are_the_middle_of_256():
    image = photograph(2, 400, 300)
    usual = T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224)])
    assert np.array_equal(middle(encoded(image, "PNG"), "a.png", 224), np.asarray(usual(image)))


def test_draws_decide_and_crops_differ():
    content = encoded(photograph(1))
    first, second = crops(content)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, crops(content)[0])
    assert not np.array_equal(first, crops(content, seed=2)[0])
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8


# ---- decoding smaller ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [(640, 480), (641, 483), (1301, 977)])
def test_a_photograph_decoded_smaller_gives_nearly_the_same(side):
    image = photograph(3, *side)
    content = encoded(image)
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    for seed in range(5):
        mine = crops(content, 32, 2, 0.5, seed)
        for a, b in zip(mine, torchvision_crops(whole, 32, 2, 0.5, seed), strict=True):
            assert difference(a, b).mean() < 1
    usual = T.Compose([T.Resize(64, BICUBIC), T.CenterCrop(56)])
    assert difference(middle(content, "a.jpg", 56), usual(whole)).mean() < 1


def test_large_photographs_are_decoded_smaller_and_others_are_not(monkeypatch):
    loaded = []
    convert = Image.Image.convert

    def watched(file, *args, **kwargs):
        loaded.append(file.size)
        return convert(file, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", watched)
    content = encoded(photograph(3, 1301, 977))
    middle(content, "a.jpg", 56)  # 64 of 977 pixels: an eighth would leave less than twice as many
    middle(content, "a.jpg", 224)  # 256 of 977: half leaves 489
    middle(content, "a.jpg", 448)
    assert loaded == [(326, 245), (1301, 977), (1301, 977)]


# ---- odd files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = photograph(4, 64, 64)
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    made = middle(encoded(image.convert(mode), kind), "a", 56)
    assert made.shape == (56, 56, 3)
    if mode in ("RGBA", "CMYK"):
        usual = T.CenterCrop(56)(image.resize((64, 64)))
        assert difference(made, usual).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_every_mode_are_read_close_to_the_original(mode):
    image = photograph(4, 128, 128)
    made = middle(encoded(image.convert(mode)), "a.jpg", 112)
    expected = T.CenterCrop(112)(image.convert(mode).convert("RGB"))
    assert difference(made, expected).mean() < 4


@pytest.mark.parametrize(("side", "most"), [((96, 64), 0), ((1000, 640), 1)])  # the second is decoded smaller
@pytest.mark.parametrize("orientation", range(1, 10))
def test_photographs_are_turned_upright(side, most, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = encoded(photograph(5, *side), exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))), "PNG")
    pairs = [(middle(turned, "a.jpg", 56), middle(upright, "a.png", 56))]
    pairs += zip(crops(turned, least=0.5), crops(upright, least=0.5), strict=True)
    for made, expected in pairs:
        assert difference(made, expected).mean() <= most


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_damaged_tags_do_no_harm(exif):
    image = photograph(6, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = middle(encoded(image, exif=exif), "a.jpg", 56)
    assert np.array_equal(made, middle(encoded(image), "a.jpg", 56))


def test_a_png_named_jpeg_is_read():
    image = photograph(6, 64, 64)
    assert np.array_equal(crops(encoded(image, "PNG"))[0], torchvision_crops(image, 32)[0])


# ---- damaged files -------------------------------------------------------------------------------------------


def shortened(content):
    return content[: len(content) // 2]


def without_its_head(content):
    return content[20:]


def words(content):
    return b"not an image"


def nothing(content):
    return b""


@pytest.mark.parametrize("harm", [shortened, without_its_head, words, nothing])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_cannot_be_read_is_named(harm, kind):
    content = harm(encoded(photograph(7), kind))
    for read in (
        lambda: middle(content, "dir/a.jpg", 56),
        lambda: random_crops(content, "dir/a.jpg", 2, 32, 0.1, seeded()),
    ):
        with pytest.raises(
            DataError, match=r"^cannot read the image dir/a\.jpg \((?s:.+)\); replace or remove it$"
        ):
            read()


def test_a_picture_too_large_to_be_one_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        DataError, match=r"cannot read the image a\.jpg \(Image size \(76800 pixels\) exceeds"
    ):
        middle(encoded(photograph(7)), "a.jpg", 56)
