"""Views beside torchvision's by the same draws, in every type and layout, and without waiting for a GPU."""

import pytest
import torch
from fake_cuda import device, needs_fake_device, watch
from recipes import augment
from recipes.augment import IMAGENET, TwoViews
from recipes.draws import Draws, draw
from small_images import batch
from tolerances import assert_close
from torchvision.transforms.v2 import functional as V

STEPS = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
LAWS = {
    "cifar": (32, 32, {}),
    "imagenet": (60, 47, {**IMAGENET, "size": 57}),
    "strong": (20, 90, {"size": 50, "strength": 2.5, "min_scale": 0.02, "blur": 0.5}),
}
each_law = pytest.mark.parametrize(("height", "width", "options"), LAWS.values(), ids=LAWS)


def noise(count, height, width):
    draws = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draws)


def drawn(module, count, height, width):
    law = {"min_scale": module.min_scale, "strength": module.strength, "blur": module.blur}
    return draw(count, height, width, **law, generator=torch.Generator().manual_seed(8))


def torchvision_view(image, draws, i, module):
    """One view, a function at a time."""
    size, kernel = module.size, module.size // 10 // 2 * 2 + 1
    crop = [x[i].item() for x in (draws.top, draws.left, draws.height, draws.width)]
    view = V.resized_crop(image.float() / 255, *crop, [size, size], antialias=True)
    if draws.flip[i]:
        view = V.horizontal_flip(view)
    for step, factor in zip(draws.steps[i].tolist(), draws.factors[i].tolist(), strict=True):
        if step < len(STEPS):
            view = STEPS[step](view, factor)
    if draws.grey[i]:
        view = V.rgb_to_grayscale(view, num_output_channels=3)
    if draws.sigma[i]:
        view = V.gaussian_blur(view, [kernel, kernel], [draws.sigma[i].item()] * 2)
    return V.normalize(view, module.mean.flatten().tolist(), module.std.flatten().tolist())


@each_law
@pytest.mark.parametrize("at_once", [1, 2**15, 2**21])
def test_views_are_torchvisions_by_the_same_draws(monkeypatch, height, width, options, at_once):
    monkeypatch.setitem(augment.AT_ONCE, "cpu", at_once)
    module, images = TwoViews(**options), noise(20, height, width)
    draws = drawn(module, 40, height, width)
    got = module.render(images, draws)
    expected = [torchvision_view(images[i % 20], draws, i, module) for i in range(40)]
    assert_close(got, torch.stack(expected), factor=10)  # six roundings, divided by a deviation of a quarter


def test_kinds_of_draws_that_are_missing_are_no_trouble():
    module, images = TwoViews(blur=0.5), noise(8, 32, 32)
    draws = drawn(module, 64, 32, 32)
    for keep in (draws.grey, ~draws.grey, draws.sigma > 0, draws.steps[:, 0] == 3, draws.steps[:, 0] == 4):
        some = Draws(*(field[keep][:8] for field in draws))
        got = module.render(images, some)
        expected = [torchvision_view(images[i], some, i, module) for i in range(len(some.grey))]
        assert_close(got, torch.stack(expected), factor=10)


def test_one_view_of_one_image():
    module, images = TwoViews(), noise(1, 1, 1)
    view, view_prime = module(images)
    assert view.shape == view_prime.shape == (1, 3, 32, 32)
    assert (view.amax(dim=(2, 3)) - view.amin(dim=(2, 3)) < 1e-5).all()


def test_imagenet_has_its_published_settings():
    module = TwoViews(**IMAGENET)
    assert (module.size, module.strength, module.min_scale, module.blur) == (224, 1.0, 0.08, 0.5)
    assert_close(module.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert_close(module.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


# ---- what comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_layouts_hold_the_same_values(dtype, memory_format):
    images = batch(12)
    torch.manual_seed(1)
    plain = TwoViews(blur=0.5)(images)
    torch.manual_seed(1)
    views = TwoViews(blur=0.5, dtype=dtype, memory_format=memory_format)(images)
    for view, expected in zip(views, plain, strict=True):
        assert view.is_contiguous(memory_format=memory_format)
        assert view.dtype == dtype
        assert torch.equal(view, expected.to(dtype))


def test_autocast_and_gradients_change_nothing():
    images, module = batch(12), TwoViews(blur=0.5)
    torch.manual_seed(1)
    plain = module(images)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        views = module(images)
    assert all(torch.equal(a, b) for a, b in zip(plain, views, strict=True))


def test_images_may_lie_in_memory_as_they_like():
    images = noise(6, 20, 30)
    torch.manual_seed(1)
    plain = TwoViews()(images)
    torch.manual_seed(1)
    views = TwoViews()(images.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0))
    assert all(torch.equal(a, b) for a, b in zip(plain, views, strict=True))


def test_a_generator_leaves_the_global_one_alone():
    images, module = batch(12), TwoViews()
    torch.manual_seed(5)
    expected = module(images)
    before = torch.get_rng_state()
    views = module(images, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"strength": 2.6}, "strength must be between 0 and 2.5, got 2.6"),
        ({"strength": float("nan")}, "strength must be between 0 and 2.5, got nan"),
        ({"min_scale": -0.1}, "min_scale must be between 0 and 1.0, got -0.1"),
        ({"blur": 1.5}, "blur must be between 0 and 1.0, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        TwoViews(**options)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (0, 3, 32, 32)])
def test_images_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="images must have the shape"):
        TwoViews()(torch.zeros(shape, dtype=torch.uint8))


def test_images_of_other_types_are_refused():
    with pytest.raises(TypeError, match=r"images must be uint8, got torch\.float32"):
        TwoViews()(torch.rand(2, 3, 32, 32))


# ---- GPUs ----------------------------------------------------------------------------------------------------


@needs_fake_device
@each_law
def test_a_gpu_is_never_waited_for(height, width, options):
    on_host = drawn(TwoViews(**options), 40, height, width)
    shapes = [(x.shape, x.dtype) for x in (*on_host, *on_host.groups())]
    with device():
        module, planes = TwoViews(**options), torch.rand(3, 20, height, width)
        sent = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
        source = torch.empty(40, dtype=torch.int64)
        with watch() as seen:
            made = module.paint(planes, source, Draws(*sent[:9]), sent[9:])
    assert seen.operations > 100
    assert made.device.type == "cuda"
    assert made.shape == (3, 40, module.size, module.size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_law
def test_a_gpu_makes_the_same_views_without_waiting(height, width, options):
    images, module = noise(20, height, width), TwoViews(**options)
    torch.manual_seed(1)
    expected = module(images)
    images, module = images.cuda(), module.cuda()
    torch.manual_seed(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = module(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for view, other in zip(views, expected, strict=True):
        assert_close(view.cpu(), other, factor=10)
