"""Crop, resize, flip and blur beside torchvision's functions, in float64, on the same numbers."""

import pytest
import torch
from recipes.resample import blur_taps, crop_taps, resample
from tolerances import assert_close
from torchvision.transforms.v2 import functional as V

N = 3


def noise(height, width, count=N):
    """Planes of noise, whose every pixel counts. Shape: (3, count, height, width)."""
    return torch.rand(3, count, height, width, generator=torch.Generator().manual_seed(1))


def resized_crops(planes, source, crops, flip, size):
    top, left, height, width = crops.T
    rows = crop_taps(top, height, None, size, planes.shape[2])
    columns = crop_taps(left, width, flip, size, planes.shape[3])
    return resample(resample(planes, source, rows), None, columns)


def expected_crop(image, crop, flip, size):
    resized = V.resized_crop(image.double(), *crop.tolist(), [size, size], antialias=True)
    return V.horizontal_flip(resized) if flip else resized


def all_crops(height, width):
    """Every length at two places a side, the first and the last. Shape: (crops, 4): top, left, height, width."""
    rows = [(top, length) for length in range(1, height + 1) for top in {0, height - length}]
    columns = [(left, length) for length in range(1, width + 1) for left in {0, width - length}]
    return torch.tensor([(top, left, h, w) for top, h in rows for left, w in columns])


@pytest.mark.parametrize("size", [1, 5, 8, 13])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 5), (1, 12)])
def test_every_crop_is_resized_as_by_torchvision(height, width, size):
    crops = all_crops(height, width)
    views = torch.arange(len(crops))
    source, flip = views % N, views // 2 % 2 == 1
    planes = noise(height, width)
    got = resized_crops(planes, source, crops, flip, size)
    assert got.shape == (3, len(crops), size, size)
    expected = [expected_crop(planes[:, source[i]], crops[i], flip[i], size) for i in views]
    assert_close(got, torch.stack(expected, dim=1))


@pytest.mark.parametrize(("full", "size"), [(32, 32), (256, 224), (224, 32), (40, 224)])
def test_sizes_of_real_images(full, size):
    crops = torch.tensor(
        [(0, 0, full, full), (3, full // 2, full // 3, full // 2), (full - 9, 1, 9, full - 2)]
    )
    planes, flip = noise(full, full), torch.tensor([False, True, True])
    got = resized_crops(planes, torch.arange(N), crops, flip, size)
    expected = [expected_crop(planes[:, i], crops[i], flip[i], size) for i in range(N)]
    assert_close(got, torch.stack(expected, dim=1), factor=2)  # both place pixels in float32


def test_a_whole_image_of_the_same_size_is_left_alone():
    planes = noise(16, 16)
    crops, flip = torch.tensor([[0, 0, 16, 16]] * N), torch.tensor([False, True, False])
    got = resized_crops(planes, torch.tensor([2, 1, 2]), crops, flip, 16)
    assert torch.equal(got, torch.stack((planes[:, 2], planes[:, 1].flip(-1), planes[:, 2]), dim=1))


def test_weights_sum_to_one_and_stay_in_the_crop():
    for full, size in ((32, 32), (32, 20), (20, 32)):
        lengths = torch.arange(1, full + 1)
        starts = (full - lengths) // 2
        place, weights = crop_taps(starts, lengths, None, size, full)
        assert_close(weights.sum(dim=2), torch.ones(full, size))
        assert (weights >= 0).all()
        assert (place >= starts[:, None, None]).all()
        assert (place < (starts + lengths)[:, None, None]).all()


@pytest.mark.parametrize(("size", "radius"), [(12, 0), (12, 1), (12, 11), (96, 4), (224, 11)])
def test_the_blur_is_torchvisions(size, radius):
    sigma = torch.tensor([0.1, 0.7, 2.0])
    planes, taps = noise(size, size), blur_taps(sigma, radius, size)
    got = resample(resample(planes, None, taps), None, taps)
    kernel = [2 * radius + 1] * 2
    expected = [V.gaussian_blur(planes[:, i].double(), kernel, [sigma[i].item()] * 2) for i in range(N)]
    assert_close(got, torch.stack(expected, dim=1))
