"""Models in folders: what is saved is what is loaded, to the bit; nothing here may use a network."""

import copy
import json
import socket

import pytest
import torch
from torch import nn

from stochastic_bottleneck import Encoder, StochasticBottleneck, StochConWrapper
from stochastic_bottleneck.hub import HubModel

N, WIDTH, DIM = 6, 5, 11


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class OpenEncoder(nn.Module):
    """Its structure does not tell its width, so that everything behind it is built with the first batch."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def images(seed, n=N):
    return torch.randn(n, 3, 8, 8, generator=generator(seed))


X, X_PRIME = images(2), images(3)
OPTIONS = {
    "bern": {},
    "hard": {"hard": True},
    "as the paper": {"location_std": None},
    "mlp": {"projector": "mlp", "upsampler": "mlp"},
    "gauss": {"kind": "gauss"},
    "isotropic": {"kind": "gauss", "variance": "isotropic", "location_std": 3.0},
    "identity": {"projector": "identity", "dim": WIDTH, "upsampler": "identity"},
}


def model(which="bern", *, lazy=False, seed=0, **options):
    """A model whose statistics and temperature are no longer those it was built with."""
    torch.manual_seed(seed)
    known = {} if lazy else {"in_features": WIDTH}
    bottleneck = StochasticBottleneck(**{"dim": DIM, **OPTIONS[which], **known})
    options = {"projection_dim": 4, **({} if lazy else {"feature_dim": WIDTH}), **options}
    m = HubModel(OpenEncoder(), bottleneck=bottleneck, **options)
    m(X, X_PRIME)
    if m.bottleneck.kind == "bern":
        m.bottleneck.set_temperature(0.3)
    return m


def outputs(m):
    """All that a model gives: the training pass with known noise, then what it encodes, and its state."""
    m = copy.deepcopy(m).train()
    dtype = m.bottleneck.projector.weight.dtype if hasattr(m.bottleneck.projector, "weight") else X.dtype
    x, x_prime = X.to(dtype), X_PRIME.to(dtype)
    output = m(x, x_prime, generator=generator())
    encoded = [m.encode(x, name) for name in ("h", "z", "upsampled")]
    if m.bottleneck.kind == "bern":
        encoded.append(m.encode(x, "bits"))
    return [*output[:-1], *output.posterior, *encoded, *m.state_dict().values()]


def assert_same(a, b):
    for x, y in zip(outputs(a), outputs(b), strict=True):
        assert torch.equal(x, y)
    for name in ("variance_from", "symmetric", "checkpoint_encoder"):
        assert getattr(a, name) == getattr(b, name)
    assert a.encoder.feature_dim == b.encoder.feature_dim
    assert repr(a.bottleneck) == repr(b.bottleneck)
    assert repr(a.head) == repr(b.head)


# ---- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", OPTIONS)
@pytest.mark.parametrize("lazy", [False, True])
def test_round_trip(which, lazy, tmp_path):
    saved = model(which, lazy=lazy)
    assert saved.save_pretrained(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
    assert not any(m.training for m in loaded.modules())
    assert_same(loaded, saved)


@pytest.mark.parametrize(
    "options", [{"symmetric": True, "checkpoint_encoder": True}, {"variance_from": "own"}]
)
def test_options_of_the_wiring_are_kept(options, tmp_path):
    saved = model("gauss", **options)
    saved.save_pretrained(tmp_path)
    assert_same(HubModel.from_pretrained(str(tmp_path), encoder=OpenEncoder()), saved)


def test_a_loaded_model_is_saved_again_the_same(tmp_path):
    model().save_pretrained(tmp_path / "a")
    HubModel.from_pretrained(tmp_path / "a", encoder=OpenEncoder()).save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_an_encoder_with_a_name_is_built_again(name, tmp_path):
    options = (
        {"norm_layer": None, "width_per_group": 64} if name.startswith("torchvision") else {"in_chans": 3}
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
    hub = HubModel.from_wrapper(wrapper, encoder_name="torchvision:resnet18")
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
    def own():
        return StochasticBottleneck(
            dim=DIM, in_features=WIDTH, projector=nn.Sequential(nn.Linear(WIDTH, DIM))
        )

    saved = HubModel(OpenEncoder(), bottleneck=own(), feature_dim=WIDTH)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["bottleneck"] is None
    with pytest.raises(ValueError, match=r"bottleneck must be passed: .*bottleneck=\.\.\."):
        HubModel.from_pretrained(tmp_path, encoder=OpenEncoder())
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


def test_batch_norms_shared_between_processes_come_back_as_plain_ones(tmp_path):
    """As DistributedDataParallel training leaves them; their weights and statistics are the same."""
    plain = model()
    saved = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(saved.head[1], nn.SyncBatchNorm)
    saved.save_pretrained(tmp_path)
    assert_same(HubModel.from_pretrained(tmp_path, encoder=OpenEncoder()), plain)


def test_the_card_names_the_library_and_the_paper(tmp_path):
    model().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: stochastic-bottleneck" in card
    assert "2110.00552" in card


# ---- what cannot be saved ----------------------------------------------------------------------------------


def test_a_model_without_widths_is_not_saved(tmp_path):
    (tmp_path / "config.json").write_text("old")
    unused = HubModel(OpenEncoder(), dim=DIM)
    encoded_only = HubModel(OpenEncoder(), dim=DIM)
    encoded_only.encode(X, "z")  # the head has seen nothing
    for m in (unused, encoded_only):
        with pytest.raises(
            ValueError, match=r"layers of unknown width; run one batch, or build it with feature_dim"
        ):
            m.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "old"


def test_an_encoder_that_its_name_does_not_build_is_refused(tmp_path):
    import torchvision

    changed = torchvision.models.resnet18()
    changed.maxpool = nn.Identity()
    with pytest.raises(
        ValueError, match=r"encoder_name='torchvision:resnet18' .*: layers without weights differ"
    ):
        HubModel(changed, encoder_name="torchvision:resnet18")
    m = HubModel("torchvision:resnet18", dim=DIM)
    m.encoder.backbone.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    with pytest.raises(
        ValueError, match=r"conv1\.weight is \(64, 3, 7, 7\) in the model and \(64, 3, 3, 3\)"
    ):
        m.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": "resnet18"}, ValueError, "or \"timm:resnet18\", got 'resnet18'"),
        ({"encoder": "keras:resnet18"}, ValueError, "got 'keras:resnet18'"),
        ({"encoder": "timm:hf-hub:a/b"}, ValueError, "got 'timm:hf-hub:a/b'"),
        (
            {"encoder": "timm:resnet18", "encoder_options": {"pretrained": True}},
            ValueError,
            "must not hold 'pretrained'; pass the pretrained model as encoder",
        ),
        (
            {"encoder": "timm:resnet18", "encoder_options": {"norm_layer": nn.BatchNorm2d}},
            TypeError,
            "encoder_options must hold JSON values alone",
        ),
        (
            {"encoder": OpenEncoder(), "encoder_options": {"a": 1}},
            ValueError,
            "encoder_options with a name",
        ),
        (
            {"encoder": "timm:resnet18", "encoder_name": "b"},
            ValueError,
            "encoder_name goes with a module",
        ),
        ({"encoder": 3}, TypeError, "encoder must be a module, got int"),
    ],
)
def test_what_names_no_encoder_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        HubModel(**arguments)


def test_other_mistakes_of_saving_are_refused(tmp_path):
    with pytest.raises(ValueError, match="config is made from the model; leave it out"):
        model().save_pretrained(tmp_path, config={"dim": 3})
    with pytest.raises(TypeError, match="model must be a StochConWrapper, got Linear"):
        HubModel.from_wrapper(nn.Linear(2, 2))


# ---- what cannot be loaded ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    model().save_pretrained(tmp_path)
    return tmp_path


def test_a_missing_encoder_is_named(folder):
    with pytest.raises(
        ValueError, match=r"encoder must be passed: .*OpenEncoder; use from_pretrained\(\.\.\., encoder="
    ):
        HubModel.from_pretrained(folder)


def test_parts_that_do_not_fit_are_compared_key_by_key(folder):
    with pytest.raises(
        ValueError,
        match=r"(?s)encoder does not fit .*backbone\.inner\.0\.weight is \(7, 3, 3, 3\) in the model and \(5, 3, 3, 3\)"
        r" as saved.* \d more; pass encoder= .*OpenEncoder",
    ):
        HubModel.from_pretrained(folder, encoder=OpenEncoder(7))
    with pytest.raises(
        ValueError, match=r"head does not fit .*0\.weight is missing from the model, .* 5 more; pass head="
    ):
        HubModel.from_pretrained(folder, encoder=OpenEncoder(), head=nn.Linear(WIDTH, 4))
    with pytest.raises(TypeError, match="head must be a module, got int"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder(), head=4)


def test_an_unknown_option_is_refused(folder):
    with pytest.raises(TypeError, match=r"no option \['heads'\]; it passes on \['cache_dir'"):
        HubModel.from_pretrained(folder, heads=3)


@pytest.mark.parametrize("kind", [lambda p: p, str])
def test_a_missing_folder(kind, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*none; pass one that save_pretrained wrote"
    ):
        HubModel.from_pretrained(kind(tmp_path / "none"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; the model was not saved to the end"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.9])
def test_truncated_weights(share, folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(.*; save the model again"):
        HubModel.from_pretrained(folder, encoder=OpenEncoder())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", r"config\.json is damaged \("),
        (
            lambda c: "[]",
            "of model_type 'stochastic_bottleneck.HubModel' and .*got None and None",
        ),
        (
            lambda c: {**c, "model_type": "bert"},
            "got 'bert' and 1; load it with the version that wrote it, ",
        ),
        (
            lambda c: {**c, "format_version": 2, "library_version": "9.9"},
            "HubModel' and 2; load it with the version that wrote it, 9.9",
        ),
        (
            lambda c: {k: v for k, v in c.items() if k != "symmetric"},
            r"is damaged \(KeyError\('symmetric'\)\)",
        ),
        (
            lambda c: {**c, "bottleneck": {**c["bottleneck"], "odd": 1}},
            "is damaged .*unexpected keyword argument 'odd'",
        ),
    ],
)
def test_a_config_of_something_else(change, message, folder):
    path = folder / "config.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        HubModel.from_pretrained(folder, encoder=OpenEncoder())
