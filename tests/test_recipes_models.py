"""Encoders and models of the examples: their stems and norms, and the weights they start from."""

import functools
import re

import pytest
import timm
import torch
from recipes import models
from recipes.classifier import Classifier, Representations
from recipes.models import (
    ENCODERS,
    SMALL_IMAGES,
    WeightsError,
    load_encoder,
    load_model,
    make_encoder,
    make_model,
    save_model,
)
from safetensors.torch import save_file
from torch import nn

from stochastic_bottleneck.hub import HubModel

WIDTHS = {"small": 256, "medium": 256, "resnet18": 512, "resnet50": 2048, "resnet200": 2048}
LIGHT = ("small", "resnet18")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)]


# ---- encoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_rows_of_features(name, size):
    with torch.device("meta"):  # their arithmetic is timm's; only shapes are looked at
        encoder = make_encoder(name, size).eval()
        features = encoder(torch.empty(2, 3, size, size))
    assert features.shape == (2, WIDTHS[name])
    assert encoder.num_features == WIDTHS[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_stems_keep_small_images_large(name):
    with torch.device("meta"):
        images = {size: torch.empty(1, 3, size, size) for size in (32, SMALL_IMAGES, 224)}
        sides = {}
        for size, image in images.items():
            encoder = make_encoder(name, size)
            first = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(image))))
            sides[size] = first.shape[-1]
    ours = name in models.OURS
    assert sides == ({32: 16, 64: 32, 224: 56} if ours else {32: 32, 64: 64, 224: 56})


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in models.OURS])
def test_large_images_get_the_encoder_of_timm_as_it_is(name):
    with torch.device("meta"):
        ours, theirs = make_encoder(name, 224), timm.create_model(name, num_classes=0)
    assert str(ours) == str(theirs)


def test_two_encoders_of_one_seed_are_equal_at_any_size():
    made = []
    for size in (32, 32, 224):
        torch.manual_seed(3)
        made.append(make_encoder("small", size).state_dict())
    assert same(made[0], made[1])
    assert same(made[0], made[2])  # pooling has no weights


def test_residual_blocks_start_as_the_identity():
    block = make_encoder("small").layer1[0]
    assert not block.bn2.weight.any()
    assert block.bn1.weight.all()


# ---- norms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_group_norm_takes_the_place_of_every_batch_norm(name):
    with torch.device("meta"):
        batch, group = norms(make_encoder(name)), norms(make_encoder(name, norm="group"))
    assert len(batch) == len(group) > 5
    assert all(isinstance(m, nn.BatchNorm2d) for m in batch)
    assert all(isinstance(m, nn.GroupNorm) for m in group)
    assert all(m.num_channels // m.num_groups >= 2 for m in group)
    assert max(m.num_groups for m in group) == 32


def test_under_group_norm_images_do_not_see_each_other():
    images = torch.randn(6, 3, 32, 32)
    for norm, equal in (("group", True), ("batch", False)):
        model = make_model("simclr", "small", 16, 8, norm=norm).train()
        whole, part = model(images, images).v, model(images[:3], images[:3]).v
        assert torch.allclose(whole[:3], part, atol=1e-4) is equal
        assert any(isinstance(m, nn.GroupNorm) for m in model.head.modules()) is equal


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_group_norm_reaches_the_model_with_a_latent(kind):
    model = make_model(kind, "small", 16, 8, norm="group", location_std=None)
    assert norms(model)
    assert all(isinstance(m, nn.GroupNorm) for m in norms(model))


# ---- weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timms():
    """Weights of a classifier of timm, as a user may have them."""
    torch.manual_seed(11)
    return timm.create_model("resnet18", num_classes=10).state_dict()


def without_classifier(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


WRAPPINGS = {
    "plain": lambda state: state,
    "of a trainer": lambda state: {"epoch": 3, "state_dict": state},
    "of a script": lambda state: {"model": state, "optimizer": {}},
    "of several processes": lambda state: {f"module.{name}": value for name, value in state.items()},
    "without a classifier": without_classifier,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_of_timm_is_loaded_whole(tmp_path, timms, wrapping):
    path = tmp_path / "weights.pt"
    torch.save(WRAPPINGS[wrapping](timms), path)
    assert same(make_encoder("resnet18", 224, weights=path).state_dict(), without_classifier(timms))


def test_safetensors_are_loaded_too(tmp_path, timms):
    path = tmp_path / "model.safetensors"
    save_file(timms, path)
    assert same(make_encoder("resnet18", 224, weights=path).state_dict(), without_classifier(timms))


@pytest.mark.parametrize("kind", ["simclr", "bern", "gauss"])
def test_an_encoder_starts_from_the_weights_of_a_run(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    run = make_model(kind, "small", 16, 8)
    save_file(run.state_dict(), path)
    expected = {
        name.removeprefix("encoder.").removeprefix("backbone."): value
        for name, value in run.state_dict().items()
        if name.startswith("encoder.")
    }
    other = make_model("bern", "small", 24, 8, weights=path)
    assert same(other.encoder.backbone.state_dict(), expected)


@pytest.mark.parametrize("kind", ["simclr", "bern"])
def test_an_encoder_starts_from_the_weights_of_a_classifier(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    encoder = make_model(kind, "small", 16, 8).encoder
    classifier = Classifier(Representations({"h": encoder}), {"h": 256}, 10, frozen=False)
    save_file(classifier.state_dict(), path)
    expected = {name.removeprefix("backbone."): value for name, value in encoder.state_dict().items()}
    assert same(make_encoder("small", weights=path).state_dict(), expected)


def test_a_whole_model_is_loaded_strictly(tmp_path):
    path = tmp_path / "weights.safetensors"
    first, second = make_model("bern", "small", 16, 8), make_model("bern", "small", 16, 8)
    assert not same(first.state_dict(), second.state_dict())
    save_file(first.state_dict(), path)
    load_model(second, path)
    assert same(first.state_dict(), second.state_dict())
    with pytest.raises(WeightsError, match=r"(?s)weights\.safetensors is of another model.*bottleneck"):
        load_model(make_model("simclr", "small", 16, 8), path)


def spoiled(state, how):
    state = dict(state)
    if how == "a tensor is missing":
        del state["layer1.0.conv1.weight"]
    if how == "a tensor too many":
        state["layer9.weight"] = torch.zeros(1)
    if how == "another shape":
        state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    return state


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("a tensor is missing", r"Missing key.*layer1\.0\.conv1\.weight"),
        ("a tensor too many", r"Unexpected key.*layer9\.weight"),
        ("another shape", r"size mismatch for conv1\.weight"),
    ],
)
def test_a_checkpoint_of_another_encoder_is_refused_by_tensor(tmp_path, timms, how, named):
    path = tmp_path / "other.pt"
    torch.save(spoiled(timms, how), path)
    told = rf"(?s)other\.pt is of another encoder; give the --encoder and --norm it was made with.*{named}"
    with pytest.raises(WeightsError, match=told):
        make_encoder("resnet18", 224, weights=path)


def test_weights_of_the_other_stem_or_norm_are_refused(tmp_path, timms):
    path = tmp_path / "timm.pt"
    torch.save(timms, path)
    with pytest.raises(WeightsError, match=r"conv1\.weight"):
        make_encoder("resnet18", 32, weights=path)
    with pytest.raises(WeightsError, match="running_mean"):
        make_encoder("resnet18", 224, norm="group", weights=path)


CONTENT = {
    "words.pt": (b"not a checkpoint", "cannot read weights"),
    "words.safetensors": (b"not a checkpoint", "cannot read weights"),
    "missing.pt": (None, "cannot read weights"),
    "numbers.pt": ({"epoch": 3}, "holds no state dict"),
    "empty.pt": ({}, "holds no state dict"),
    "list.pt": ([1, 2], "holds no state dict"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_no_checkpoint_is_named(tmp_path, name):
    content, said = CONTENT[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"(?s){said}|{name} {said}") as error:
        load_encoder(make_encoder("small"), path)
    assert name in str(error.value)


def test_pretrained_weights_come_through_timm(tmp_path, timms, monkeypatch):
    """Timm's own loading, from a local file in the place of its download."""
    path = tmp_path / "timm.pt"
    torch.save(timms | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    local = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": str(path)})
    monkeypatch.setattr(models.timm, "create_model", local)
    large, small = (make_encoder("resnet18", size, pretrained=True).state_dict() for size in (224, 32))
    assert same(large, without_classifier(timms))
    assert small["conv1.weight"].shape == (64, 3, 3, 3)  # the stem starts anew
    small["conv1.weight"] = large["conv1.weight"]
    assert same(small, large)


def test_pretrained_weights_that_cannot_be_fetched_are_told(monkeypatch):
    def no_network(name, pretrained, **options):
        assert pretrained
        raise RuntimeError("no route to host")

    monkeypatch.setattr(models.timm, "create_model", no_network)
    with pytest.raises(WeightsError, match=r"weights for resnet50 \(no route to host\).*--encoder-weights"):
        make_encoder("resnet50", 224, pretrained=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [("small", {}), ("resnet18", {"norm": "group"}), ("resnet18", {"weights": "x.pt"})],
)
def test_pretrained_weights_that_do_not_exist_are_refused(name, options):
    with pytest.raises(WeightsError, match=f"no weights for encoder {name}.*leave out --pretrained"):
        make_encoder(name, 224, pretrained=True, **options)


@pytest.mark.parametrize(
    ("encoder", "size", "norm", "by_name"),
    [
        ("resnet18", 224, "batch", True),
        ("resnet18", 224, "group", False),
        ("resnet18", 32, "batch", False),
        ("small", 224, "batch", False),
    ],
)
def test_a_saved_model_loads_with_the_encoder_that_is_named(encoder, size, norm, by_name, tmp_path):
    saved = make_model("bern", encoder, 16, 8, size=size, norm=norm)
    save_model(saved, encoder, size, norm, tmp_path)
    parts = {} if norm == "batch" else {"head": saved.head}
    if not by_name:
        with pytest.raises(
            ValueError, match=r"cannot tell how to build .recipes\.models\.make_encoder\("
        ) as raised:
            HubModel.from_pretrained(tmp_path, **parts)
        made = re.search(r"recipes\.models\.(make_encoder\(.*?\)).;", str(raised.value))[1]
        parts["encoder"] = eval(made, {"make_encoder": make_encoder})
    loaded = HubModel.from_pretrained(tmp_path, **parts)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vgg",), r"encoder must be one of small, .*got 'vgg'"),
        (("small", 0), "size must be at least 1 pixel, got 0"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        make_encoder(*arguments)


def test_unknown_norms_and_models_are_refused():
    with pytest.raises(ValueError, match="norm must be one of batch, group, got 'layer'"):
        make_encoder("small", norm="layer")
    with pytest.raises(ValueError, match="name must be one of simclr, bern, gauss, got 'supervised'"):
        make_model("supervised", "small", 16, 8)
