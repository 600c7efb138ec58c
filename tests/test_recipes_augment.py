"""Views of the examples: shape and range, and the laws they are drawn by, read off the pictures themselves.

Beside torchvision, and by the same draws, they are tested in `test_recipes_views.py`.
"""

import random

import numpy as np
import pytest
import torch
from recipes import data
from recipes.augment import MEAN, STD, Normalize, TwoViews
from small_images import batch

COUNT = 1000
VIEWS = 2 * COUNT


def pixels(view):
    """Normalisation undone."""
    return view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def within(share, expected, count=VIEWS):
    """Five standard deviations of a binomial share: one false alarm in more than a million."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


@pytest.fixture(scope="module")
def maps():
    """Images whose red tells the column, green the row and blue nothing. Shape: (COUNT, 3, 32, 32)."""
    ramp = (torch.arange(32) * 8).to(torch.uint8)
    image = torch.stack((ramp.expand(32, 32), ramp.view(32, 1).expand(32, 32), torch.full((32, 32), 128)))
    return image.to(torch.uint8).expand(COUNT, 3, 32, 32)


def both(augment, images):
    """Both views of all images, normalisation undone. Shape: (2 N, 3, 32, 32)."""
    torch.manual_seed(0)
    return pixels(torch.cat(augment(images)))


def is_grey(views):
    return (views - views[:, :1]).abs().amax(dim=(1, 2, 3)) < 1e-4


def spans(views, axis):
    """Signed share of a side that each view shows: how fast the ramp rises along it."""
    ramp = views[:, 0].mean(dim=1) if axis == "columns" else views[:, 1].mean(dim=2)
    middle = ramp[:, 8:24]  # borders are flattened by interpolation
    rise = (middle[:, -1] - middle[:, 0]) / 15
    return rise * 255 / 8


@pytest.mark.parametrize("size", [32, 24])
def test_shape_type_memory_and_range(size):
    augment = TwoViews(size)
    images = batch(12)
    before = images.clone()
    for view in augment(images):
        assert view.shape == (12, 3, size, size)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert not view.requires_grad
        assert pixels(view).min() > -1e-5
        assert pixels(view).max() < 1 + 1e-5
    assert torch.equal(images, before)
    assert not augment.state_dict()  # nothing of it belongs in a checkpoint


def test_the_seed_decides_and_nothing_else():
    augment, images = TwoViews(), batch(12)
    torch.manual_seed(3)
    first = augment(images)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(3)
    again = TwoViews()(images)
    other = augment(images)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_views_of_an_image_differ_and_stay_paired():
    images = batch(48)
    torch.manual_seed(0)
    first, second = TwoViews(strength=0.0, min_scale=0.5)(images)
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 0.1).all()
    # Colours tell the classes apart; views of row i show the class of image i.
    for view in (first, second):
        colour = pixels(view)[:, :, 12:20, 12:20].mean(dim=(2, 3))
        grey = is_grey(pixels(view))
        assert torch.equal(colour.argmax(dim=1)[~grey], images.float().mean(dim=(2, 3)).argmax(dim=1)[~grey])


def test_copies_of_one_image_get_views_of_their_own():
    image = batch(1).expand(16, 3, 32, 32)
    views = both(TwoViews(), image)
    assert len({view.numpy().tobytes() for view in views}) == 32


@pytest.mark.parametrize("least", [0.08, 0.5])
def test_crops_keep_between_the_least_share_and_all(maps, least):
    views = both(TwoViews(strength=0.0, min_scale=least), maps)
    coloured = views[~is_grey(views)]
    width, height = spans(coloured, "columns").abs(), spans(coloured, "rows").abs()
    share = width * height
    # Sides are whole pixels, and a crop that does not fit is replaced by the middle of the image.
    assert share.min() > least - 0.05
    assert share.max() < 1.05
    assert share.min() < least + 0.05
    assert share.max() > 0.9
    assert share.mean().item() == pytest.approx((least + 1) / 2, abs=0.06)
    ratio = width / height
    assert ratio.min() > 0.75 - 0.15
    assert ratio.max() < 4 / 3 + 0.2
    assert ratio.log().mean().abs() < 0.05
    assert ratio.log().std() > 0.08


def test_half_of_the_views_are_flipped_each_for_itself(maps):
    flipped = (spans(both(TwoViews(strength=0.0), maps), "columns") < 0).float()
    assert within(flipped.mean().item(), 0.5)
    first, second = flipped.chunk(2)
    assert within((first == second).float().mean().item(), 0.5, COUNT)
    assert (spans(both(TwoViews(strength=0.0), maps), "rows") > 0).all()  # never upside down


def test_a_fifth_of_the_views_is_grey_with_equal_channels(maps):
    views = both(TwoViews(), maps)
    grey = is_grey(views)
    assert within(grey.float().mean().item(), 0.2)
    assert not torch.allclose(views[~grey][:, 0], views[~grey][:, 1], atol=1e-2)
    first, second = grey.chunk(2)
    assert within((first & second).float().mean().item(), 0.04, COUNT)


def test_four_fifths_of_the_views_are_jittered_and_strength_0_jitters_none(maps):
    def changed(strength):
        views = both(TwoViews(strength=strength), maps)
        blue = views[~is_grey(views)][:, 2]
        return (blue - 128 / 255).abs().amax(dim=(1, 2)) > 1e-3

    jittered = changed(0.5)
    assert within(jittered.float().mean().item(), 0.8, len(jittered))
    assert not changed(0.0).any()


def test_a_stronger_jitter_moves_colours_further(maps):
    def brightness(strength):
        return both(TwoViews(strength=strength, min_scale=0.99), maps).mean(dim=(1, 2, 3)).std()

    assert brightness(0.25) < 0.7 * brightness(0.5)
    assert brightness(0.5) < 0.9 * brightness(1.0)


def test_normalize_follows_its_formula():
    images = batch(5)
    normalised = Normalize()(images)
    expected = (images.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(
        STD
    ).double().view(3, 1, 1)
    torch.testing.assert_close(normalised.double(), expected, rtol=0, atol=1e-6)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_its_constants_are_those_of_the_images():
    # Three standard errors of a mean over 5,000 images, whose own means vary by 0.12; the constants of
    # ImageNet are 0.03 and more away.
    tolerance = 0.005
    images = data.load(data.SAMPLE).train.images.transpose(0, 1).flatten(1).double() / 255
    torch.testing.assert_close(images.mean(dim=1), torch.tensor(MEAN).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(images.std(dim=1), torch.tensor(STD).double(), rtol=0, atol=tolerance)
