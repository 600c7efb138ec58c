"""The picture of augmented views: the right images in the right places, and written whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import grid, imagenet
from recipes.augment import TwoViews
from recipes.feeds import Feed, InMemory
from recipes.grid import save_grid
from small_images import CLASSES, batch, write_folder


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn last: columns by their titles, and the rows' names."""
    calls = []
    draw = grid._draw
    monkeypatch.setattr(
        grid, "_draw", lambda columns, names: calls.append((columns, names)) or draw(columns, names)
    )
    return calls


def feed(count=12, transform=None):
    labels = torch.arange(count) % len(CLASSES)
    return Feed(InMemory(batch(count), labels), transform or TwoViews(32, 0.5, 0.2), in_memory=True)


def photographs(tmp_path, size=24):
    return imagenet.load(
        write_folder(tmp_path / "photographs", train=4, test=1, size=(40, 30)), size=size, cache=None
    )


def test_each_row_is_an_image_beside_its_views(tmp_path, drawn):
    save_grid(feed(), tmp_path / "grid.png", images=5, views=4, classes=CLASSES)
    columns, names = drawn[0]
    index = [0, 2, 4, 7, 9]  # at equal distances
    assert list(columns) == ["original", "pair 1: x", "pair 1: x'", "pair 2: x", "pair 2: x'"]
    assert names == [CLASSES[i % 3] for i in index]
    assert torch.equal(columns["original"], batch(12)[index].float() / 255)
    for view in columns.values():
        assert view.shape == (5, 3, 32, 32)
        assert view.min() > -1e-5
        assert view.max() < 1 + 1e-5
    views = list(columns.values())[1:]
    assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_normalisation_is_undone(tmp_path, drawn):
    """Views that are the whole image, flipped or not, look as the image does."""
    save_grid(feed(transform=TwoViews(32, 0.0, 1.0)), tmp_path / "grid.png", images=6, views=2)
    columns, names = drawn[0]
    assert names == ["0", "2", "1", "0", "2", "1"]
    for view in (columns["pair 1: x"], columns["pair 1: x'"]):
        for image, original in zip(view, columns["original"], strict=True):
            grey = image.std(dim=0).max() < 1e-4  # a fifth of the views have no colours
            target = original if not grey else _luminance(original)
            assert min((image - x).abs().max() for x in (target, target.flip(-1))) < 0.02


def _luminance(image):
    return (
        (image * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1))
        .sum(dim=0, keepdim=True)
        .expand(3, -1, -1)
    )


def test_the_picture_shows_the_pixels(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    plain = InMemory(colours[:, :, None, None].expand(3, 3, 32, 32).contiguous(), torch.arange(3))
    save_grid(Feed(plain, TwoViews(), in_memory=True), tmp_path / "grid.png", images=3, views=1)
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert 350 < picture.shape[0] < 500
    assert 250 < picture.shape[1] < 400
    for colour in colours.numpy():
        rows, columns = np.nonzero((picture == colour).all(axis=2))
        assert len(rows) > 100 * 100  # drawn large enough to be looked at
        assert columns.max() < picture.shape[1] * 0.6  # the original stands to the left of its view
    order = [np.nonzero((picture == colour).all(axis=2))[0].mean() for colour in colours.numpy()]
    assert order == sorted(order)


def test_one_view_of_a_classifier(tmp_path, drawn):
    data = photographs(tmp_path)
    save_grid(
        data.training(0.2), tmp_path / "grid.png", images=3, views=3, originals=data.evaluation("train")
    )
    columns, _ = drawn[0]
    assert list(columns) == ["original", "view 1", "view 2", "view 3"]
    assert not torch.equal(columns["view 1"], columns["view 2"])


def test_views_of_crops_that_workers_make(tmp_path, drawn):
    data = photographs(tmp_path)
    save_grid(
        data.pretraining(1.0, 0.2),
        tmp_path / "grid.png",
        images=3,
        views=6,
        originals=data.evaluation("train"),
        classes=data.classes,
    )
    columns, names = drawn[0]
    assert names == list(data.classes)
    assert len(columns) == 7
    assert {view.shape for view in columns.values()} == {(3, 3, 24, 24)}
    expected, _ = data.evaluation("train").dataset.__getitems__([(0, 0), (4, 0), (8, 0)])
    assert torch.equal(columns["original"], expected.float() / 255)
    views = list(columns.values())[1:]
    assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_crops_of_workers_need_the_originals(tmp_path):
    data = photographs(tmp_path)
    for crops in (data.pretraining(1.0, 0.2), data.training(0.2)):
        with pytest.raises(
            ValueError, match=r'originals must be given, .*give originals=data.evaluation\("train"\)'
        ):
            save_grid(crops, tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("crops", [False, True], ids=["whole images", "crops"])
def test_the_seed_alone_decides(tmp_path, crops):
    data = photographs(tmp_path)
    source = data.pretraining(1.0, 0.2) if crops else feed()
    originals = data.evaluation("train") if crops else None
    before = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        save_grid(source, tmp_path / f"{name}.png", images=2, views=2, seed=seed, originals=originals)
        torch.rand(1)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    torch.set_rng_state(before)
    save_grid(source, tmp_path / "a.png", images=2, views=2, originals=originals)
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_images_than_rows_and_half_a_pair(tmp_path, drawn):
    save_grid(feed(3), tmp_path / "new" / "grid.png", images=8, views=3)
    columns, names = drawn[0]
    assert names == ["0", "1", "2"]
    assert list(columns) == ["original", "pair 1: x", "pair 1: x'", "pair 2: x"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "grid.png").write_bytes(b"before")
    monkeypatch.setattr("recipes.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_grid(feed(), tmp_path / "grid.png", images=1, views=1)
    assert (tmp_path / "grid.png").read_bytes() == b"before"


@pytest.mark.parametrize("name", ["images", "views"])
def test_a_picture_of_nothing_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        save_grid(feed(), tmp_path / "grid.png", **{name: 0})
