"""Views beside torchvision's by the same draws, in every type and layout, and without waiting for a GPU."""

import pytest
import torch
from fake_cuda import device, needs_fake_device, watch
from gpu import needs_gpu, no_waiting
from recipes import views as recipe
from recipes.augment import IMAGENET, Normalize, OneView, TwoViews
from recipes.draws import Draws, draw, seeded
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
    monkeypatch.setitem(recipe.AT_ONCE, "cpu", at_once)
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


# ---- crops that were made before, and one view ----------------------------------------------------------------


def already_cropped(draws, count, side):
    """The same draws with crops that are the whole image."""
    nothing, all_of_it = torch.zeros(count, dtype=torch.int64), torch.full((count,), side)
    return draws._replace(top=nothing, left=nothing, height=all_of_it, width=all_of_it)


@pytest.mark.parametrize("at_once", [1, 2**15, 2**21])
def test_crops_made_before_get_everything_but_a_crop(monkeypatch, at_once):
    monkeypatch.setitem(recipe.AT_ONCE, "cpu", at_once)
    module = TwoViews(**{**IMAGENET, "size": 57})
    crops = noise(20, 57, 57).view(10, 2, 3, 57, 57)
    views = torch.cat(module(crops, seed=5))
    draws = draw(20, 57, 57, min_scale=0.08, strength=1.0, blur=0.5, generator=seeded("views", 5))
    draws = already_cropped(draws, 20, 57)
    flat = torch.cat((crops[:, 0], crops[:, 1]))
    expected = torch.stack([torchvision_view(flat[i], draws, i, module) for i in range(20)])
    assert_close(views, expected, factor=10)
    assert draws.flip.any()
    assert draws.grey.any()
    assert (draws.sigma > 0).any()


def test_one_view_is_cropped_and_flipped_and_nothing_else():
    module, images = OneView(24, 0.3), noise(20, 40, 30)
    view = module(images, seed=5)
    draws = draw(20, 40, 30, min_scale=0.3, strength=0, blur=0, grey=0, generator=seeded("views", 5))
    assert_close(
        view, torch.stack([torchvision_view(images[i], draws, i, module) for i in range(20)]), factor=10
    )
    assert (draws.height < 40).any()
    assert draws.flip.any()
    assert not any(len(group) for group in draws.groups())
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_one_view_of_crops_is_flipped_and_nothing_else():
    images = noise(40, 24, 24)
    view, plain = OneView(24, None)(images, seed=5), Normalize()(images)
    flipped = torch.tensor([torch.equal(v, p.flip(-1)) for v, p in zip(view, plain, strict=True)])
    kept = torch.tensor([torch.equal(v, p) for v, p in zip(view, plain, strict=True)])
    assert torch.equal(flipped, ~kept)
    assert 8 < flipped.sum() < 32


@pytest.mark.parametrize("make", [TwoViews, lambda size: OneView(size, None)])
def test_crops_of_another_side_are_refused(make):
    crops = noise(4, 24, 30).view(2, 2, 3, 24, 30) if make is TwoViews else noise(4, 24, 30)
    with pytest.raises(ValueError, match=r"crops must have the views' side of 24 pixels, got \(24, 30\)"):
        make(24)(crops)


# ---- seeds and processes -------------------------------------------------------------------------------------

TRANSFORMS = {
    "two": (TwoViews(24, blur=0.5), lambda: noise(12, 40, 30)),
    "two of crops": (TwoViews(24, blur=0.5), lambda: noise(24, 24, 24).view(12, 2, 3, 24, 24)),
    "one": (OneView(24), lambda: noise(12, 40, 30)),
    "one of crops": (OneView(24, None), lambda: noise(12, 24, 24)),
    "none": (Normalize(), lambda: noise(12, 24, 24)),
}
each_transform = pytest.mark.parametrize(("transform", "make"), TRANSFORMS.values(), ids=TRANSFORMS)


def views_of(made):
    return made if isinstance(made, tuple) else (made,)


@each_transform
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_together_make_the_views_of_one(transform, make, world):
    images = make()
    alone = views_of(transform(images, 7))
    parts = [views_of(transform(part, 7, rank, world)) for rank, part in enumerate(images.chunk(world))]
    for view, pieces in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), view)


@pytest.mark.parametrize("transform", [TwoViews(24), OneView(24)])
def test_a_seed_decides_in_all_its_bits_and_leaves_the_global_numbers_alone(transform):
    images, before = noise(6, 40, 30), torch.get_rng_state()
    made = {
        torch.cat(views_of(transform(images, seed))).numpy().tobytes() for seed in (0, 1, 2**32, 2**60, 0)
    }
    assert len(made) == 4
    assert torch.equal(torch.get_rng_state(), before)
    transform(images)
    assert not torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_each_process_draws_for_itself():
    images, module = noise(6, 40, 30), TwoViews(24)
    torch.manual_seed(1)
    expected = module(images)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(module(images, None, 2, 3), expected, strict=True))


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_processes_that_there_are_not_are_refused(rank, world):
    with pytest.raises(ValueError, match=f"rank must be between 0 and world - 1 = {world - 1}, got {rank}"):
        TwoViews()(noise(2, 8, 8), 1, rank, world)


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


@needs_fake_device
def test_a_gpu_is_not_waited_for_with_crops_made_before():
    on_host = drawn(TwoViews(**IMAGENET), 40, 24, 24)
    shapes = [(x.shape, x.dtype) for x in (*on_host, *on_host.groups())]
    with device():
        module, planes = TwoViews(**{**IMAGENET, "size": 24}), torch.rand(3, 40, 24, 24)
        sent = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
        with watch() as seen:
            made = module.paint(planes, None, Draws(*sent[:9]), sent[9:])
    assert seen.operations > 100
    assert made.device.type == "cuda"
    assert made.shape == (3, 40, 24, 24)


@pytest.mark.gpu
@needs_gpu
@each_law
def test_a_gpu_makes_the_same_views_without_waiting(height, width, options):
    images, module = noise(20, height, width), TwoViews(**options)
    torch.manual_seed(1)
    expected = module(images)
    images, module = images.cuda(), module.cuda()
    torch.manual_seed(1)
    with no_waiting():
        views = module(images)
    for view, other in zip(views, expected, strict=True):
        assert_close(view.cpu(), other, factor=10)
