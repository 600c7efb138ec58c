"""Colour jitter and grey beside torchvision's functions, on the same numbers."""

import itertools

import pytest
import torch
from recipes.colour import grey_, jitter_, luminance, shift_hue_
from recipes.draws import BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION
from tolerances import assert_close
from torchvision.transforms.v2 import functional as V

ADJUST = {
    BRIGHTNESS: V.adjust_brightness,
    CONTRAST: V.adjust_contrast,
    SATURATION: V.adjust_saturation,
    HUE: V.adjust_hue,
}
ORDERS = list(itertools.permutations(ADJUST))
SHIFTS = [-0.5, -0.4, -0.1, -1 / 6, 0.0, 1e-6, 0.05, 1 / 3, 0.49, 0.5]
FACTORS = [0.0, 0.2, 0.99, 1.0, 1.4, 1.8, 3.0]


def cube():
    """All colours of ten levels a channel: every order, every tie, greys, black and white. Shape: (3, 10, 100)."""
    level = torch.linspace(0, 1, 10)
    return torch.cartesian_prod(level, level, level).T.reshape(3, 10, 100).clone()


def images(count):
    """The cube, darker and paler from image to image. Shape: (3, count, 1000)."""
    shades = torch.linspace(0.3, 1, count)[:, None]
    return cube().reshape(3, 1, 1000) * shades + 0.5 * (1 - shades) * torch.arange(count)[:, None].remainder(
        2
    )


def as_pictures(planes):
    """Shape: (3, B, 1000) -> (B, 3, 10, 100)."""
    return planes.transpose(0, 1).unflatten(2, (10, 100))


def hues(steps):
    return [(steps[:, turn] == HUE).nonzero()[:, 0] for turn in range(4)]


def one_step(step, factor):
    """The step, then the three others as they change nothing; the hue's turn is the first or the last."""
    rest = [other for other in ADJUST if other != step]
    neutral = {HUE: 0.0}
    return [step, *rest], [factor, *(neutral.get(other, 1.0) for other in rest)]


def jittered(planes, steps, factors):
    planes = planes.clone()
    jitter_(planes, steps, factors, hues(steps))
    return planes


@pytest.mark.parametrize(
    ("step", "factors"),
    [(BRIGHTNESS, FACTORS), (CONTRAST, FACTORS), (SATURATION, FACTORS), (HUE, SHIFTS)],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_step_is_torchvisions(step, factors):
    rows = [one_step(step, factor) for factor in factors]
    steps, values = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    planes = images(len(factors))
    got = as_pictures(jittered(planes, steps, values))
    for i, picture in enumerate(as_pictures(planes)):
        assert_close(got[i], ADJUST[step](picture, factors[i]))


def test_all_orders_together_are_torchvisions():
    steps = torch.tensor(ORDERS)
    factors = torch.empty(24, 4).uniform_(0.4, 1.6, generator=torch.Generator().manual_seed(2))
    factors[steps == HUE] = torch.linspace(-0.2, 0.2, 24)
    planes = images(24)
    got = as_pictures(jittered(planes, steps, factors))
    for i, picture in enumerate(as_pictures(planes)):
        for step, factor in zip(ORDERS[i], factors[i].tolist(), strict=True):
            picture = ADJUST[step](picture, factor)
        assert_close(got[i], picture, factor=3)  # one rounding feeds the next


def test_the_order_matters():
    """Or the test above could not tell the orders apart."""
    steps = torch.tensor(ORDERS)
    factors = torch.tensor([1.5, 1.6, 1.7, 0.1])[steps]  # unclamped, some steps could be swapped
    made = jittered(cube().reshape(3, 1, 1000).expand(3, 24, 1000), steps, factors)
    distance = (made[:, :, None] - made[:, None]).abs().amax(dim=(0, 3))
    assert (distance + torch.eye(24) > 0.01).all()


def test_images_without_steps_are_left_alone():
    planes = images(6)
    steps = torch.tensor(ORDERS[:6])
    steps[::2] = NOTHING
    got = jittered(planes, steps, torch.full((6, 4), 0.3))
    assert torch.equal(got[:, ::2], planes[:, ::2])
    assert (got[:, 1::2] != planes[:, 1::2]).any(dim=2).all()


def test_a_hue_stays_in_range_and_greys_have_none():
    planes = cube()
    for shift in SHIFTS:
        shifted = planes.clone()
        shift_hue_(shifted, torch.full((10,), shift))
        assert shifted.min() >= -1e-6
        assert shifted.max() <= 1 + 1e-6
        assert_close(shifted.amax(dim=0), planes.amax(dim=0))
        assert_close(shifted.amin(dim=0), planes.amin(dim=0))
        grey = (planes == planes[:1]).all(dim=0)
        assert torch.equal(shifted[:, grey], planes[:, grey])


def test_the_slightest_chroma_does_no_harm():
    faint = torch.tensor([0.5, 0.5 + 2**-24, 0.5])[:, None, None].expand(3, 1, 4).clone()
    black = torch.tensor([1e-38, 0.0, 1e-45])[:, None, None].expand(3, 1, 4).clone()
    for planes in (faint, black):
        before = planes.clone()
        shift_hue_(planes, torch.tensor([0.3]))
        assert_close(planes, before.double().mean(dim=0, keepdim=True).expand(3, 1, 4))


def test_grey_is_torchvisions_and_only_where_asked():
    planes = images(5)
    got = planes.clone()
    grey_(got, torch.tensor([3, 0]))
    assert torch.equal(got[:, [1, 2, 4]], planes[:, [1, 2, 4]])
    expected = V.rgb_to_grayscale(as_pictures(planes)[[0, 3]], num_output_channels=3)
    assert_close(as_pictures(got)[[0, 3]], expected)
    assert_close(luminance(planes)[0], as_pictures(got)[0, 0].flatten())
