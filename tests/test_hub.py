"""Models in folders: what is saved is what is loaded, to the bit; nothing here may use a network."""

import copy
import json
import pickle
import re
import shutil
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins import TorchSyncBatchNorm
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_models import DIM, KINDS, WIDTH, X_PRIME, OpenEncoder, X, assert_equal, generator, outputs, used
from sklearn.base import clone
from torch import nn

from stochastic_bottleneck import Encoder, StochasticBottleneck, StochConWrapper
from stochastic_bottleneck.encoders import small_image_stem
from stochastic_bottleneck.hub import HubModel, _encoders, preprocessing


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def model(which="bern", **options):
    """A model whose statistics and temperature are no longer those it was built with."""
    return used(which, HubModel, pretrained_cfg=CFG, **options)


def assert_same(a, b):
    assert_equal(outputs(a), outputs(b))
    for name in ("variance_from", "symmetric", "samples", "detach_encoder", "checkpoint_encoder"):
        assert getattr(a, name) == getattr(b, name)
    assert a.encoder.feature_dim == b.encoder.feature_dim
    assert repr(a.bottleneck) == repr(b.bottleneck)
    assert repr(a.head) == repr(b.head)


# ---- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [*KINDS, "identity"])
@pytest.mark.parametrize("lazy", [False, True])
def test_round_trip(which, lazy, tmp_path):
    wiring = dict.fromkeys(("symmetric", "detach_encoder", "checkpoint_encoder"), True) if lazy else {}
    wiring |= {"samples": 3} if lazy else {}
    saved = model(which, lazy=lazy, **wiring)
    assert saved.save_pretrained(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    assert not any(m.training for m in loaded.modules())
    assert_same(loaded, saved)


def test_a_loaded_model_is_saved_again_the_same(tmp_path):
    model().save_pretrained(tmp_path / "a")
    HubModel.from_pretrained(tmp_path / "a", encoder=OpenEncoder()).save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_buffers_that_are_not_saved_follow_the_weights(dtype, tmp_path):
    options = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 0}
    saved = HubModel("timm:swin_tiny_patch4_window7_224", encoder_options=options, dim=DIM).to(dtype).eval()
    saved.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 56, 56, generator=generator()).to(dtype)
    assert torch.equal(HubModel.from_pretrained(tmp_path).encode(x, "bits"), saved.encode(x, "bits"))


@pytest.mark.parametrize("around", [partial(torch.compile, backend="eager"), nn.DataParallel])
def test_an_encoder_that_was_wrapped_is_saved_as_it_was(around, tmp_path):
    head = around(nn.Linear(256, 4))
    saved = HubModel("timm:resnet10t", encoder_options=SMALL, dim=DIM, head=head).eval()
    saved.encoder.backbone = wrapped = around(saved.encoder.backbone)
    saved.save_pretrained(tmp_path)
    assert saved.encoder.backbone is wrapped
    loaded, x = HubModel.from_pretrained(tmp_path, head=head), torch.randn(2, 3, 32, 32, generator=generator())
    assert torch.equal(loaded.encode(x), saved.encode(x))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_an_encoder_with_a_name_is_built_again(name, tmp_path):
    options = (
        {"norm_layer": None, "width_per_group": 64} if name.startswith("torchvision") else {"in_chans": np.int64(3)}
    )
    saved = HubModel(name, encoder_options=options, dim=DIM, projection_dim=4).eval()
    saved.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path)
    assert loaded.encoder_name == name
    assert loaded.encoder.feature_dim == 512
    x = torch.randn(2, 3, 32, 32, generator=generator())
    for representation in ("h", "bits"):
        assert torch.equal(loaded.encode(x, representation), saved.encode(x, representation))


def test_a_trained_wrapper_is_saved_with_its_parts(tmp_path):
    import torchvision

    resnet = torchvision.models.resnet18()
    wrapper = StochConWrapper(resnet, kind="gauss", dim=DIM, variance_from="own")
    hub = HubModel.from_wrapper(nn.DataParallel(wrapper), encoder_name="torchvision:resnet18")
    assert hub.encoder.backbone is resnet
    assert hub.bottleneck is wrapper.bottleneck
    assert hub.head is wrapper.head
    hub.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path)
    assert loaded.variance_from == "own"
    for key, value in wrapper.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_an_existing_simclr_model_is_wrapped_and_saved(tmp_path):
    simclr = nn.Module()
    simclr.backbone, simclr.projection_head = OpenEncoder(), nn.Linear(WIDTH, 4)
    saved = HubModel.from_simclr(simclr, dim=DIM)
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"head must be passed: .*torch\.nn\.modules\.linear\.Linear"):
        HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder(), head=nn.Linear(WIDTH, 4))
    assert_same(loaded, saved)


def test_a_bottleneck_with_parts_of_ones_own_is_passed_again(tmp_path):
    def own(location_std=8.0):
        projector = nn.Sequential(nn.Linear(WIDTH, DIM))
        return StochasticBottleneck(dim=DIM, in_features=WIDTH, projector=projector, location_std=location_std)

    saved = HubModel(OpenEncoder(), bottleneck=own(), feature_dim=WIDTH)
    saved.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"bottleneck must be passed: .*bottleneck=\.\.\."):
        HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    with pytest.raises(ValueError, match=r"location_std is 2\.0 in the model and 8\.0 as saved; pass bottleneck= as"):
        HubModel.from_pretrained(tmp_path, encoder=OpenEncoder(), bottleneck=own(2.0))
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder(), bottleneck=own())
    assert_same(loaded, saved)


def test_a_width_that_was_left_open_stays_open(tmp_path):
    """A known width decides how feature maps are pooled, so what the structure tells is not filled in."""
    saved = HubModel(Encoder(nn.Conv2d(3, WIDTH, 3)), dim=DIM)
    saved(X, X_PRIME)
    saved.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path, encoder=nn.Conv2d(3, WIDTH, 3))
    assert loaded.encoder.feature_dim is None
    assert_same(loaded, saved)


def test_precision_is_kept(tmp_path):
    saved = model().double()
    saved.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    assert loaded.encoder.backbone.inner[0].weight.dtype == torch.float64
    assert_same(loaded, saved)


def test_weights_with_two_names_are_kept(tmp_path):
    def tied():
        encoder = OpenEncoder()
        encoder.again = encoder.inner
        return encoder

    saved = HubModel(tied(), dim=DIM, feature_dim=WIDTH)
    saved.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path, encoder=tied())
    assert loaded.encoder.backbone.again is loaded.encoder.backbone.inner
    assert_same(loaded, saved)


@pytest.mark.parametrize("left", [lambda m: m, TorchSyncBatchNorm().revert])
def test_batch_norms_shared_between_processes_come_back_as_plain_ones(left, tmp_path):
    """As DistributedDataParallel or Lightning's Trainer leaves them; their weights and statistics are the same."""
    plain = model()
    saved = left(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))).eval()
    assert type(saved.head[1]) is not nn.BatchNorm1d
    saved.save_pretrained(tmp_path)
    assert_same(HubModel.from_pretrained(tmp_path, encoder=OpenEncoder()), plain)


# ---- encoders of the examples, with their preprocessing and card ---------------------------------------------

CFG = {
    "input_size": (3, 32, 32),
    "crop_pct": 0.8,
    "crop_mode": "center",
    "interpolation": "bilinear",
    "mean": (0.49, 0.48, 0.45),
    "std": (0.25, 0.24, 0.26),
}
FOUR_BLOCKS = {"layers": (1, 1, 1, 1), "num_classes": 0}
SMALL = FOUR_BLOCKS | {"channels": (32, 64, 128, 256), "stem_type": "deep", "stem_width": 16, "avg_down": False}


def small_resnet():
    """The CIFAR encoder of the examples, built without a name."""
    from timm.models.resnet import BasicBlock, ResNet

    options = {key: value for key, value in SMALL.items() if key != "avg_down"}
    return small_image_stem(ResNet(BasicBlock, **options))


@pytest.mark.parametrize(
    ("make", "name", "options", "small_images"),
    [
        (small_resnet, "resnet10t", SMALL, True),
        (lambda: small_image_stem(timm.create_model("resnet50", **FOUR_BLOCKS)), "resnet50", FOUR_BLOCKS, True),
        (lambda: timm.create_model("resnet50", **FOUR_BLOCKS), "resnet50", FOUR_BLOCKS, False),
    ],
    ids=["small", "resnet50", "large images"],
)
def test_resnets_with_either_stem_are_built_again_by_name(make, name, options, small_images, tmp_path):
    wrapper = StochConWrapper(make(), dim=DIM, projection_dim=4)
    named = {"encoder_name": f"timm:{name}", "encoder_options": options, "small_images": small_images}
    saved = HubModel.from_wrapper(wrapper, **named, pretrained_cfg=CFG)
    saved.save_pretrained(tmp_path)
    loaded = HubModel.from_pretrained(tmp_path)
    assert (loaded.small_images, loaded.pretrained_cfg) == (small_images, CFG)
    x = torch.randn(2, 3, 32, 32, generator=generator())
    for representation in ("h", "z", "bits"):
        assert torch.equal(loaded.encode(x, representation), wrapper.encode(x, representation))
    again = HubModel.from_wrapper(nn.DataParallel(loaded))
    for kept in ("encoder_name", "encoder_options", "small_images", "pretrained_cfg"):
        assert getattr(again, kept) == getattr(saved, kept)
    named["small_images"] = not small_images
    built = HubModel(f"timm:{name}", encoder_options=options, small_images=small_images).encoder.backbone
    assert isinstance(built.maxpool, nn.Identity) is small_images
    with pytest.raises(ValueError, match=r"encoder_name='timm:resnet\w+' with .* does not build this"):
        HubModel.from_wrapper(wrapper, **named)


def test_a_folder_of_the_first_format_is_loaded(tmp_path):
    saved = model()
    saved.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"format_version": 1}
    for added in ("pretrained_cfg", "weights_sha256", "samples", "detach_encoder"):
        del config[added]
    for added in ("normalization", "shrinkage"):
        del config["bottleneck"][added]
    del config["encoder"]["small_images"]
    path.write_text(json.dumps(config))
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    assert_same(loaded, saved)
    assert loaded.pretrained_cfg is None


def picture(mode="RGB", size=(90, 60)):
    pixels = torch.randint(256, (size[1], size[0], 3), generator=generator(), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


def test_preprocessing_is_resize_crop_and_normalize():
    transform = pickle.loads(pickle.dumps(preprocessing(HubModel(OpenEncoder(), pretrained_cfg=CFG))))
    image = picture()
    resized = image.resize((60, 40), Image.Resampling.BILINEAR).crop((14, 4, 46, 36))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(CFG[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(transform(image), (expected - mean) / std)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        assert torch.equal(transform(picture(mode)), transform(picture(mode).convert("RGB")))
    short = {key: value for key, value in CFG.items() if key not in ("crop_mode", "interpolation")}
    assert torch.equal(preprocessing(short)(image), preprocessing(CFG | {"interpolation": "bicubic"})(image))
    grey = preprocessing(CFG | {"input_size": [1, 8, 24], "mean": [0.5], "std": [0.5], "crop_mode": "squash"})
    assert grey(image).shape == (1, 8, 24)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": "https://example.org"}, "must hold exactly .*, got input_size, .*, url"),
        ({"crop_pct": 0.001}, r"\['crop_pct'\] must be .* at least 0.1"),
        ({"crop_mode": "random"}, r"\['crop_mode'\] must be .*got 'random'"),
        ({"interpolation": 2}, r"\['interpolation'\] must be .*got 2"),
        ({"input_size": (3, 10**6, 8)}, r"\['input_size'\]\[1\] must be .*at most 4096"),
        ({"input_size": 32}, r"\['input_size'\] must be a list of 3 numbers, got 32"),
        ({"mean": (0.5,)}, r"\['mean'\] must have 3 entries, got \(0.5,\)"),
        ({"std": (0.5, 0, 1)}, r"\['std'\]\[1\] must be a finite number above 0, got 0"),
    ],
)
def test_a_preprocessing_config_with_other_values_is_refused(changed, message):
    with pytest.raises((TypeError, ValueError), match=f"pretrained_cfg.*{message}"):
        HubModel(OpenEncoder(), pretrained_cfg=CFG | changed)


def test_preprocessing_that_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="model_or_cfg must have a pretrained_cfg"):
        preprocessing(HubModel(OpenEncoder()))
    with pytest.raises(ValueError, match="input_size of 1 or 3 channels, got 4"):
        preprocessing(CFG | {"input_size": (4, 8, 8), "mean": [0] * 4, "std": [1] * 4})
    with pytest.raises(ValueError, match="image must have 8 bits per channel, got mode 'I'"):
        preprocessing(CFG)(picture("I"))
    with pytest.raises(TypeError, match="image must be a PIL image, got Tensor"):
        preprocessing(CFG)(X[0])


@pytest.mark.parametrize("which", ["bern", "gauss"])
def test_the_card_says_what_the_model_is_and_its_code_runs(which, tmp_path, monkeypatch):
    options = {"encoder_options": SMALL, "small_images": True, "pretrained_cfg": CFG}
    saved = HubModel("timm:resnet10t", kind=which, dim=16, **options).eval()
    saved.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    size = {"bern": "2 bytes per image, 512x less", "gauss": "64 bytes per image, 16x less"}[which]
    size += f" than the features in float32 and {'1,536x' if which == 'bern' else '48x'} less than the image"
    latent = {"bern": "16 stochastic bits", "gauss": "a Gaussian latent of 16 dimensions"}[which]
    texts = ["library_name: stochastic-bottleneck", "2110.00552", "timm:resnet10t", "stem_type='deep'", size, latent]
    texts += ["1,232,944 parameters, 256 features", "center crop of 32 x 32", "mean (0.49, 0.48, 0.45)"]
    assert all(text in card for text in texts)
    assert "None" not in card
    monkeypatch.chdir(tmp_path)
    picture().save("image.jpg")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    found = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), found)
    assert torch.equal(found["features"], saved.encode(found["images"]))
    assert found["codes" if which == "bern" else "latents"].shape == (1, 2 if which == "bern" else 16)


def test_the_card_says_which_parts_to_pass_and_is_not_overwritten(tmp_path):
    saved = HubModel(OpenEncoder(), head=nn.Sequential(nn.Linear(WIDTH, 4)), dim=DIM, feature_dim=WIDTH)
    saved.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert 'from_pretrained("path/to/this/folder", encoder=encoder, head=head)' in card.read_text()
    assert "| Preprocessing | not saved with the model |" in card.read_text()
    card.write_text("my own")
    saved.save_pretrained(tmp_path)
    assert card.read_text() == "my own"


def test_functions_that_use_a_trained_model_take_its_folder(tmp_path):
    from stochastic_bottleneck.evaluation import StochConTransformer
    from stochastic_bottleneck.export import export_onnx, export_program, verify_onnx

    saved = HubModel("timm:resnet10t", encoder_options=SMALL, small_images=True, dim=DIM).eval()
    saved.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32, generator=generator())
    transformer = StochConTransformer(str(tmp_path), "z")
    np.testing.assert_array_equal(transformer.transform(x), saved.encode(x, "z").numpy())
    assert transformer._wrapper is transformer._wrapper  # loaded once
    assert clone(transformer).model == str(tmp_path)
    assert torch.equal(export_program(tmp_path, x).module()(x), saved.encode(x, "bits"))
    export_onnx(str(tmp_path), tmp_path / "bits.onnx", x)
    assert verify_onnx(tmp_path / "bits.onnx", tmp_path, x).images == 2
    for use in (StochConTransformer("resnet18").transform, lambda x: export_program("resnet18", x)):
        with pytest.raises(FileNotFoundError, match=r"model must be .*, got 'resnet18', which is not"):
            use(x)


# ---- what cannot be saved ----------------------------------------------------------------------------------


def test_a_model_without_widths_is_not_saved(tmp_path):
    (tmp_path / "config.json").write_text("old")
    unused = HubModel(OpenEncoder(), dim=DIM)
    encoded_only = HubModel(OpenEncoder(), dim=DIM)
    encoded_only.encode(X, "z")  # the head has seen nothing
    for m in (unused, encoded_only):
        with pytest.raises(ValueError, match=r"layers of unknown width; run one batch, or build it with"):
            m.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config must be left out: it is made from the model"):
        model().save_pretrained(tmp_path, config={"dim": 3})
    assert (tmp_path / "config.json").read_text() == "old"


def test_an_encoder_that_its_name_does_not_build_is_refused(tmp_path):
    import torchvision

    changed = torchvision.models.resnet18()
    changed.maxpool = nn.Identity()
    with pytest.raises(ValueError, match=r"encoder_name='torchvision:resnet18' .*: layers without weights"):
        HubModel(changed, encoder_name="torchvision:resnet18")
    m = HubModel("torchvision:resnet18", dim=DIM)
    m.encoder.backbone.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    with pytest.raises(ValueError, match=r"conv1\.weight is \(64, 3, 7, 7\) in the model and \(64, 3, 3"):
        m.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "keras:resnet18"}, "or a module as encoder, got 'keras:resnet18'"),
        ({"encoder": "timm:hf-hub:a/b"}, "got 'timm:hf-hub:a/b'"),
        ({"encoder": "timm:resnet18", "encoder_options": {"pretrained": True}}, "must not hold 'pretrained': "),
        ({"encoder": "timm:resnet18", "encoder_options": {"norm_layer": nn.BatchNorm2d}}, "must be None, got <class"),
        ({"encoder": "torchvision:fasterrcnn_resnet50_fpn"}, "name a classification model of torchvision"),
        ({"encoder": "timm:vit_tiny_patch16_224", "small_images": True}, "must be a ResNet of torchvision or timm"),
        ({"encoder": "timm:resnet18", "encoder_name": "b"}, "encoder_name must be None where encoder is a name"),
    ],
)  # fmt: skip
def test_what_names_no_encoder_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        HubModel(**arguments)


# ---- what cannot be loaded ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    model().save_pretrained(tmp_path)
    return tmp_path


def test_a_missing_encoder_is_named(folder):
    with pytest.raises(TypeError, match=r"no option \['heads'\]; it passes on \['cache_dir'"):
        HubModel.from_pretrained(folder, heads=3)
    with pytest.raises(ValueError, match=r"encoder must be passed: .*OpenEncoder'; use from_pretrained"):
        HubModel.from_pretrained(folder)


def test_parts_that_do_not_fit_are_compared_key_by_key(folder):
    with pytest.raises(
        ValueError,
        match=r"(?s)encoder does not fit .*backbone\.inner\.0\.weight is \(7, 3, 3, 3\) in the model and \(5, 3, 3, 3\)"
        r" as saved.* \d more; pass encoder= .*OpenEncoder",
    ):
        HubModel.from_pretrained(folder, encoder=OpenEncoder(7))
    with pytest.raises(ValueError, match=r"head does not fit .*0\.weight is missing from the model, .* 5"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder(), head=nn.Linear(WIDTH, 4))


def test_missing_folders_and_files_are_named(folder):
    """The message follows from what is there: an interrupted save, an incomplete copy, or no saved model at all."""

    def refused(message, path=folder):
        with pytest.raises(FileNotFoundError, match=message):
            HubModel.from_pretrained(path, encoder=OpenEncoder())

    for path in (folder / "none", str(folder / "none")):
        refused("there is no folder .*none; pass one that save_pretrained wrote", path)
    (folder / "config.json").rename(folder / "other.json")
    refused(r"config\.json is missing next to model\.safetensors: saving was interrupted .*, or ")
    (folder / "model.safetensors").unlink()
    refused(r"no folder that HubModel\.save_pretrained wrote \(it holds README\.md, other\.json\)")
    (folder / "other.json").rename(folder / "config.json")
    refused(r"model\.safetensors is missing next to config\.json.*copy the whole folder")


def without_sha256(folder):
    """The folder, with a config that does not have the weights' SHA-256."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_sha256": None}))
    return folder


def test_a_flipped_bit_in_the_weights_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(its sha256 is \w{64}, and"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder())
    HubModel.from_pretrained(without_sha256(folder), encoder=OpenEncoder())  # nothing else notices


@pytest.mark.parametrize("share", [0.0, 0.02, 0.9])
def test_truncated_weights(share, folder):
    path = without_sha256(folder) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(.*save the model again"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", r"config\.json is damaged \("),
        (lambda c: "[" * 100_000, r"config\.json is damaged \(.*recursion"),
        (lambda c: json.dumps(c).replace("2.0", "NaN"), r"is damaged \(NaN is no number of JSON"),
        (lambda c: "[]", "of model_type 'stochastic_bottleneck.HubModel', got None; pass a folder that"),
        (lambda c: {**c, "model_type": "bert"}, "got 'bert'; pass a folder that HubModel.save_pretrained wrote"),
        (lambda c: {**c, "format_version": 4, "library_version": "9.9"},
         "of format_version 1 to 3, got 4; load it with the version of stochastic-bottleneck that wrote it, '9.9'"),
        (lambda c: {k: v for k, v in c.items() if k != "symmetric"}, r"is damaged \(symmetric is missing\)"),
        (lambda c: {**c, "library_version": "9.9", "bottleneck": {**c["bottleneck"], "scale": 1}},
         "option bottleneck.scale, which stochastic-bottleneck .* does not know; version '9.9' wrote .*--upgrade"),
        (lambda c: {**c, "library_version": "9.9", "sharing": None},
         "the option sharing, which .* does not know; version '9.9' wrote"),
    ],
)  # fmt: skip
def test_a_config_of_something_else(change, message, folder):
    path = folder / "config.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match=message) as raised:
        HubModel.from_pretrained(folder, encoder=OpenEncoder())
    assert str(path) in str(raised.value)


# ---- a folder from somebody else ---------------------------------------------------------------------------


class Mark:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A saved model whose encoder is built by its name."""
    path = tmp_path_factory.mktemp("named")
    saved = HubModel("timm:resnet18", encoder_options={"in_chans": 3}, dim=DIM, projection_dim=4)
    saved.save_pretrained(path)
    return path


def altered(source, folder, change):
    """A copy of a saved model with another config."""
    config = json.loads((source / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "model.safetensors", folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        lambda path: {"checkpoint_path": path},
        lambda path: {"pretrained": True, "pretrained_cfg": {"file": path}},
        lambda path: {"pretrained_cfg_overlay": {"file": path, "state_dict": path}, "pretrained": 1},
        lambda path: {"in_chans": {"checkpoint_path": path}},
        lambda path: {"global_pool": path},
        lambda path: {"act_layer": f"exec({path!r})"},
        lambda path: {"img_size": [32, path]},
        lambda path: {"cache_dir": path, "pretrained": True},
        lambda path: {"model_name": f"local-dir:{path}"},
    ],
)
def test_nothing_that_a_config_names_is_opened(options, named, tmp_path):
    """timm 1.0.12 unpickles what `checkpoint_path` names (L1); the network is refused in every test here."""
    mark, payload = tmp_path / "mark", tmp_path / "extra.bin"
    torch.save({"state_dict": Mark(mark)}, payload)
    torch.load(payload, weights_only=False)
    assert mark.exists()  # so that a file that was run would be seen
    mark.unlink()
    asked = options(str(payload))
    folder = altered(named, tmp_path, lambda config: config["encoder"].update(options=asked))
    with pytest.raises(ValueError, match=re.escape(f"'{next(iter(asked))}'")) as raised:
        HubModel.from_pretrained(folder)
    assert str(folder / "config.json") in str(raised.value)
    assert not mark.exists()


def update(part, **values):
    return lambda config: (config[part] if part else config).update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (update("encoder", options={"weights_backbone": "DEFAULT"}), "must not hold 'weights_backbone'"),
        (update("encoder", options={"num_classes": 30000, "head_hidden_size": 60000}, name="timm:convnext_atto"),
         "must not ask for more memory than the weights account for"),
        (update("encoder", options={"img_size": 256, "window_size": 64}, name="timm:swin_tiny_patch4_window7_224"),
         "must not ask for more memory than the weights account for"),
        (update("encoder", options={"num_classes": 10**12}), r"\['num_classes'\] must be .* at most 32768"),
        (update("encoder", options={"in_chans": True}), r"\['in_chans'\] must be a positive int"),
        (update("encoder", options={"layers": [256] * 17}), r"\['layers'\] must have 1 to 16 entries"),
        (update("encoder", options={"drop_rate": 1e999}), r"damaged \(Infinity is no number"),
        (update("encoder", options={"zero_init_last": "no"}), r"\['zero_init_last'\] must be True or False"),
        (update("encoder", options={"depth": 3}), "cannot be built with encoder_options={'depth': 3}"),
        (update("encoder", name="timm:hf-hub:a/b"), "got 'timm:hf-hub:a/b'"),
        (update("encoder", name="timm:resnet18.local-dir:/tmp"), "got 'timm:resnet18.local-dir:/tmp'"),
        (update("encoder", name="timm:resnet18.no_tag"), "cannot be built"),
        (update("encoder", name="torchvision:quantized_resnet18"), "classification model of torchvision"),
        (update("encoder", name=None), "encoder must be passed"),
        (update("encoder", feature_dim=-1), "encoder.feature_dim must be a positive int"),
        (update("encoder", feature_dim=7), "but the encoder gives 7"),
        (update("bottleneck", dim=10**12), "bottleneck.dim must be a positive int and at most 16777216"),
        (update("bottleneck", dim=2**24, in_features=2**24), "bottleneck does not fit the weights"),
        (update("bottleneck", kind="gauss"), "bottleneck does not fit the weights"),
        (update("bottleneck", projector={"a": 1}), "projector must be"),
        (update("encoder", name="timm:vit_tiny_patch16_224", small_images=True), "must be a ResNet of torchvision or"),
        (update("", pretrained_cfg={"mean": 1}), "pretrained_cfg must hold exactly"),
        (update("", pretrained_cfg=CFG | {"crop_pct": 1e-6}), r"pretrained_cfg\['crop_pct'\] must be .* at least 0.1"),
        (update("", weights_sha256="0"), r"is damaged \(its sha256 is \w{64}, and config.json has '0'\)"),
        (update("", format_version=True), "format_version 1 to 3, got True"),
    ],
)  # fmt: skip
def test_what_a_config_must_not_ask_for(change, message, named, tmp_path):
    folder = altered(named, tmp_path, change)
    with pytest.raises(ValueError, match=message) as raised:
        HubModel.from_pretrained(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(extra=torch.ones(1)), r"holds weights that belong to no part of the model: \['extra'\]"),
        (lambda s: s.update({"head.0.weight": s["head.0.weight"].to(torch.int8)}),
         r"0\.weight is torch\.float32 in the model and torch\.int8 as saved"),
        (lambda s: s.update({"bottleneck.temperature": torch.tensor(float("nan"))}),
         r"bottleneck\.temperature must be a finite number of at least 1e-06, got nan"),
    ],
)  # fmt: skip
def test_weights_of_another_kind(change, message, folder):
    path = without_sha256(folder) / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(ValueError, match=message) as raised:
        HubModel.from_pretrained(folder, encoder=OpenEncoder())
    assert str(folder) in str(raised.value)


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_a_config_loads_or_is_refused_in_words(data, tmp_path_factory, folder):
    """One value of the config is replaced by anything; never another error, and the folder is named in each."""
    source, copied = folder, tmp_path_factory.mktemp("copy")
    config = json.loads((source / "config.json").read_text())
    place = data.draw(st.sampled_from([(), *((k,) for k in config if isinstance(config[k], dict))]))
    section = config[place[0]] if place else config
    section[data.draw(st.sampled_from(sorted(section)) | st.text(max_size=5))] = data.draw(VALUES)
    altered(source, copied, lambda c: (c.clear(), c.update(config)))
    try:
        HubModel.from_pretrained(copied, encoder=OpenEncoder())
    except (ValueError, TypeError, FileNotFoundError) as error:
        if str(copied) not in str(error):
            raise


def test_models_that_cannot_be_built_without_values_are_loaded_too(tmp_path):
    """torchvision's RegNets read numbers from tensors while they are built."""
    HubModel("torchvision:regnet_y_400mf", dim=DIM, projection_dim=4).save_pretrained(tmp_path)
    assert HubModel.from_pretrained(tmp_path).encoder.feature_dim == 440


def test_the_page_lists_the_options():
    page = (Path(__file__).parents[1] / "docs" / "api" / "interchange.rst").read_text()
    assert set(_encoders.OPTIONS) <= set(re.findall(r"``(\w+)``", page))


def test_an_encoder_says_how_it_is_built(tmp_path):
    encoder = OpenEncoder()
    encoder.built_by = "mine.make_encoder(width=5)"
    HubModel(encoder, dim=DIM, feature_dim=WIDTH).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not say how to build 'mine\.make_encoder\(width=5\)'; use"):
        HubModel.from_pretrained(tmp_path)
