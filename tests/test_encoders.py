"""Encoders without torchvision or timm, and existing SimCLR models; test_zoo.py has the architectures."""

import re

import pytest
import torch
from lightning import Fabric
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from stochastic_bottleneck import Encoder, StochConWrapper, as_encoder
from stochastic_bottleneck.encoders import simclr_parts, small_image_stem


class Returns(nn.Module):
    """A backbone with a given output, and whatever attributes a test needs."""

    def __init__(self, output, **attributes):
        super().__init__()
        self.output = output
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.output


class Parts(nn.Module):
    """A SimCLR model whose parts have any names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def conv(width=16):
    return nn.Conv2d(3, width, 3)


def mlp(width=16):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 4))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
MAPS = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))


# -------------------------------------------------------------------------------------------------- Encoder


@pytest.mark.parametrize(
    ("output", "feature_dim", "expected"),
    [
        (MAPS, None, MAPS.mean((2, 3))),
        (MAPS, 5, MAPS.mean((2, 3))),
        (MAPS, 60, MAPS.flatten(1)),
        (MAPS, 4, MAPS.mean((1, 2))),
        (MAPS[..., :1, :1], 5, MAPS[..., 0, 0]),
        (MAPS[:, :, :, 0], 3, MAPS[:, :, :, 0].mean(1)),
        (MAPS[:, :, :, 0], None, MAPS[:, :, :, 0].mean(1)),
        (MAPS[:, :, :, 0], 15, MAPS[:, :, :, 0].flatten(1)),
        (MAPS[:, :, :, 0], 5, MAPS[:, :, :, 0].mean(2)),
        (MAPS[:, :, None], 5, MAPS.mean((2, 3))),
        (MAPS[:, :, 0, 0], None, MAPS[:, :, 0, 0]),
        (MAPS[:, :, 0, 0], 5, MAPS[:, :, 0, 0]),
    ],
    ids=["maps", "maps of known width", "flattened", "channels last", "one position", "tokens",
         "tokens of unknown width", "flattened tokens", "tokens last", "video", "rows of unknown width", "rows"],
)  # fmt: skip
def test_output_becomes_one_row_an_image(output, feature_dim, expected):
    features = Encoder(Returns(output), feature_dim)(IMAGES)
    torch.testing.assert_close(features, expected)


def test_stated_layout_decides_where_the_width_cannot():
    square = MAPS[:, :3, :, :3]
    assert torch.equal(Encoder(Returns(square, output_fmt="NHWC"), 3)(IMAGES), square.mean((1, 2)))
    assert torch.equal(Encoder(Returns(square), 3)(IMAGES), square.mean((2, 3)))
    assert torch.equal(Encoder(Returns(MAPS, output_fmt="NHWC"))(IMAGES), MAPS.mean((1, 2)))
    assert torch.equal(Encoder(Returns(MAPS, output_fmt="NHWC"), 5)(IMAGES), MAPS.mean((2, 3)))


def test_class_and_register_tokens_are_left_out():
    tokens = MAPS.flatten(2)
    encoder = Encoder(Returns(tokens, num_prefix_tokens=2), 12)
    torch.testing.assert_close(encoder(IMAGES), tokens[:, 2:].mean(1))
    maps = Encoder(Returns(MAPS, num_prefix_tokens=2, output_fmt="NHWC"))(IMAGES)
    torch.testing.assert_close(maps, MAPS.mean((1, 2)))


@pytest.mark.parametrize("output", [MAPS, MAPS[:, :, :, 0], MAPS[:, :, 0, 0]], ids=["maps", "tokens", "rows"])
def test_other_width_names_both(output):
    with pytest.raises(ValueError, match=r"feature_dim=7 features, got \d in an output of shape \(2, 5"):
        Encoder(Returns(output), 7)(IMAGES)


@pytest.mark.parametrize("output", [(MAPS, MAPS), [MAPS], {"last_hidden_state": MAPS}, None])
def test_output_that_is_no_tensor(output):
    with pytest.raises(TypeError, match=rf"must return one tensor, got {type(output).__name__}; wrap it"):
        Encoder(Returns(output))(IMAGES)


def test_output_without_features():
    with pytest.raises(ValueError, match=r"features or maps of each image of x, .*got an output shaped"):
        Encoder(Returns(MAPS[:, 0, 0, 0]))(IMAGES)


BACKBONES = {
    "pooled": (conv(), 16),
    "flattened": (conv(), 16 * 6 * 6),
    "unknown": (conv(), None),
    "channels last": (nn.Sequential(conv(), nn.Flatten(2), nn.Unflatten(2, (6, 6))), 16),
    "tokens": (nn.Sequential(conv(), nn.Flatten(2), nn.Linear(36, 10)), 10),
    "rows": (nn.Sequential(conv(), nn.Flatten()), 576),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_compiles_without_a_graph_break(name, fresh_compiler):
    encoder = Encoder(*BACKBONES[name])
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGES), encoder(IMAGES))


# ----------------------------------------------------------------------------------------------- as_encoder


class Residual(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.bn = nn.BatchNorm2d(width_out)
        self.downsample = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.downsample(x)


class Parallel(nn.Module):
    """Concatenates, so that its last layer does not tell its width."""

    def __init__(self, width):
        super().__init__()
        self.left = nn.Conv2d(width, 6, 1)
        self.right = nn.Conv2d(width, 7, 1)

    def forward(self, x):
        return torch.cat((self.left(x), self.right(x)), 1)


class Squaring(nn.Module):
    def forward(self, x):
        return x[..., None] * x[..., None, :] if x.ndim == 2 else x.repeat(1, 2, 1, 1)


class Backwards(nn.Sequential):
    def forward(self, x):
        return self[0](self[1](x))


POOL = nn.AdaptiveAvgPool2d(1)


@pytest.mark.parametrize(
    ("model", "width", "true_width"),
    [
        (conv(), 16, 16),
        (nn.Sequential(conv(), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)), 16, 16),
        (nn.Sequential(conv(), POOL), 16, 16),
        (nn.Sequential(conv(), POOL, nn.Flatten()), 16, 16),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d((2, 3)), nn.Dropout(), nn.Flatten()), 96, 96),
        (nn.Sequential(conv(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.ReLU()), 64, 64),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d(2)), 16, 16),
        (nn.Sequential(nn.Sequential(conv(), nn.GELU()), Residual(16, 24), POOL), 24, 24),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.ReLU(), nn.LayerNorm(10)), 10, 10),
        (nn.Sequential(conv(), nn.GroupNorm(4, 16)), 16, 16),
        (nn.Sequential(conv(), nn.LayerNorm([16, 6, 6]), nn.ReLU()), 16, 16),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 8, 1), nn.AdaptiveAvgPool3d(2), nn.Flatten()), 64, 64),
        (nn.Sequential(nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d()), 16, 16),
        (nn.Sequential(conv(), Parallel(16), nn.Conv2d(13, 5, 1)), 5, 5),
        # What the structure cannot tell for certain stays open.
        (nn.Sequential(conv(), nn.Flatten()), None, 576),
        (nn.Sequential(Backwards(nn.Conv2d(16, 5, 1), conv()), nn.LayerNorm([5, 6, 6])), None, 5),
        (nn.Sequential(conv(), Parallel(16)), None, 13),
        (nn.Sequential(conv(), Parallel(16), Residual(13, 13)), None, 13),
        (nn.Sequential(conv(), nn.PixelShuffle(2)), None, 4),
        (nn.Sequential(conv(), nn.GLU(1)), None, 8),
        (nn.Sequential(conv(), Squaring()), None, 32),
        (nn.Sequential(conv(), nn.AvgPool2d(2), nn.Flatten()), None, 144),
        (nn.Sequential(conv(), nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten()), None, 96),
        (Backwards(nn.Conv2d(16, 5, 1), conv()), None, 5),
        (Residual(3, 16), None, 16),
    ],
)
def test_width_of_a_plain_model_is_right_or_open(model, width, true_width):
    encoder = as_encoder(model)
    assert encoder.feature_dim == width
    assert encoder(IMAGES).shape == (2, true_width)


@pytest.mark.parametrize(
    "name", ["feature_dim", "output_dim", "out_features", "num_features", "embed_dim", "hidden_size"]
)
def test_width_is_read_from_an_attribute(name):
    model = Returns(MAPS, **{name: 5})
    assert as_encoder(model).feature_dim == 5
    assert as_encoder(model, 60).feature_dim == 60, "the argument goes first"
    assert as_encoder(Returns(MAPS, **{name: [5]})).feature_dim is None
    assert as_encoder(Returns(MAPS, **{name: True})).feature_dim is None


def head_of(kind):
    return {
        "linear": nn.Linear(16, 10),
        "dropout": nn.Sequential(nn.Dropout(), nn.Linear(16, 10)),
        "nested": nn.Sequential(nn.Dropout(), nn.Sequential(nn.ReLU(), nn.Linear(16, 10))),
        "softmax": nn.Sequential(nn.Linear(16, 10), nn.Softmax(1)),
    }[kind]


class Classifier(nn.Module):
    def __init__(self, name, head):
        super().__init__()
        self.features = nn.Sequential(conv(), nn.BatchNorm2d(16), POOL, nn.Flatten())
        setattr(self, name, head)
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(self.features(x))


@pytest.mark.parametrize("name", ["fc", "classifier", "head", "heads"])
@pytest.mark.parametrize("kind", ["linear", "dropout", "nested", "softmax"])
def test_plain_classifier_is_stripped_only_when_told(name, kind):
    model = Classifier(name, head_of(kind)).eval()
    scores, keys = model(IMAGES), model.state_dict().keys()
    kept = as_encoder(model)
    assert torch.equal(kept(IMAGES), scores)
    assert model.state_dict().keys() == keys
    with torch.no_grad():
        expected = model.features(IMAGES)
    expected = expected.relu() if kind == "nested" else expected
    encoder = as_encoder(model, strip=True)
    assert encoder.backbone is model
    assert encoder.feature_dim == 16
    assert torch.equal(encoder(IMAGES), expected)
    assert not any(module.training for module in encoder.modules())
    again = as_encoder(model, strip=True)
    assert torch.equal(again(IMAGES), expected), "the gap is recognised, nothing more goes"


def test_only_the_last_layer_of_a_sequential_goes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10))
    hidden, dropout = model[1], model[3]
    encoder = as_encoder(model, strip=True)
    assert encoder.feature_dim == 12
    assert model[1] is hidden
    assert model[3] is dropout
    assert isinstance(model[4], nn.Identity)
    assert as_encoder(model, strip=True).feature_dim == 12


def test_convolutional_scores_are_stripped_with_their_relu():
    model = nn.Sequential(conv(), nn.Dropout(), nn.Conv2d(16, 10, 1), nn.ReLU(), POOL, nn.Flatten())
    kept = nn.Sequential(model[0], POOL, nn.Flatten()).eval()
    encoder = as_encoder(model.eval(), strip=True)
    assert encoder.feature_dim == 16
    assert torch.equal(encoder(IMAGES), kept(IMAGES)), "features may be negative: no ReLU is left"
    assert isinstance(model[1], nn.Dropout)


@pytest.mark.parametrize(
    "model",
    [
        conv(),
        nn.Sequential(),
        nn.Sequential(conv(), nn.ReLU()),
        nn.Sequential(conv(), POOL),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()),
        Classifier("head", Residual(16, 16)),
        Classifier("scores", nn.Linear(16, 10)),
        Backwards(nn.Conv2d(16, 5, 1), nn.Linear(3, 3)),
    ],
)
def test_strip_insists_on_a_classifier(model):
    before = str(model)
    with pytest.raises(ValueError, match=r"strip=True needs .* children .*nn\.Identity\(\)"):
        as_encoder(model, strip=True)
    assert str(model) == before


def test_an_encoder_is_returned_itself():
    encoder = as_encoder(conv())
    assert as_encoder(encoder) is encoder
    assert as_encoder(encoder, 16) is encoder
    with pytest.raises(ValueError, match="must be the Encoder's own, 16, or None, got 8"):
        as_encoder(encoder, 8)
    assert encoder.feature_dim == 16
    lazy = Encoder(conv())
    assert as_encoder(lazy, 576).feature_dim == 576
    assert lazy(IMAGES).shape == (2, 576)


def test_an_encoder_can_be_stripped_later():
    encoder = as_encoder(Classifier("fc", nn.Linear(16, 10)))
    assert encoder(IMAGES).shape == (2, 10)
    assert as_encoder(encoder, strip=True) is encoder
    assert encoder.feature_dim == 16
    assert encoder(IMAGES).shape == (2, 16)
    assert as_encoder(encoder, 16, strip=True) is encoder


WRAPPERS = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "both": lambda module: torch.compile(nn.DataParallel(module)),
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
}


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", WRAPPERS)
@pytest.mark.usefixtures("process_group")
def test_wrapping_modules_are_taken_off(how):
    model, simclr = Classifier("fc", nn.Linear(16, 10)), Parts(backbone=conv(), projector=mlp())
    assert as_encoder(WRAPPERS[how](model), strip=True).backbone is model
    for average in (AveragedModel, ModelEmaV3):
        assert type(as_encoder(average(model), strip=True).backbone) is Classifier  # a copy
    assert as_encoder(Fabric(accelerator="cpu").setup(model), strip=True).backbone is model
    encoder, head = simclr_parts(WRAPPERS[how](simclr))
    assert (encoder.backbone, head) == (simclr.backbone, simclr.projector)


# --------------------------------------------------------------------------------------------- simclr_parts


def check_parts(model, encoder, head, features):
    """Encoder's output is what the model feeds its head, and from_simclr keeps both."""
    torch.testing.assert_close(encoder(IMAGES), features, rtol=1e-6, atol=1e-6)
    assert encoder.feature_dim == features.shape[1]
    wrapped = StochConWrapper.from_simclr(model, kind="bern", dim=16)
    torch.testing.assert_close(wrapped.encode(IMAGES), features, rtol=1e-6, atol=1e-6)
    assert wrapped.head(features).shape == head(features).shape


ENCODERS = "backbone encoder online_encoder base_encoder feature_extractor trunk convnet resnet model network net f"
HEADS = "projection_head projector projection projection_mlp proj_head contrastive_head proj head mlp g"


@pytest.mark.parametrize("name", ENCODERS.split())
def test_encoder_is_found_by_name(name):
    model = Parts(**{name: conv(), "classifier": nn.Linear(16, 10), "projection_head": mlp()})
    encoder, head = simclr_parts(model)
    assert encoder.backbone is getattr(model, name)
    assert head is model.projection_head
    check_parts(model, encoder, head, getattr(model, name)(IMAGES).mean((2, 3)))


@pytest.mark.parametrize("name", HEADS.split())
def test_head_is_found_by_name(name):
    model = Parts(**{"backbone": conv(), "classifier": nn.Linear(16, 10), name: mlp()})
    assert simclr_parts(model)[1] is getattr(model, name)


def test_nothing_is_stripped_from_the_encoder():
    torchvision = pytest.importorskip("torchvision")
    backbone = torchvision.models.resnet18(num_classes=24)
    model = Parts(backbone=backbone, head=mlp(24)).eval()
    encoder, _ = simclr_parts(model)
    assert encoder.feature_dim == 24
    assert isinstance(backbone.fc, nn.Linear)
    assert torch.equal(encoder(IMAGES), backbone(IMAGES))


@pytest.mark.parametrize(
    ("backbone", "features"),
    [
        (nn.Sequential(conv(), POOL), lambda y: y.flatten(1)),
        (conv(), lambda y: y.flatten(1)),
        (conv(), lambda y: y.mean((2, 3))),
        (nn.Sequential(conv(), nn.Flatten(2), nn.Linear(36, 10)), lambda y: y.mean(1)),
        (nn.Sequential(conv(), nn.Flatten(2), nn.Linear(36, 10)), lambda y: y.flatten(1)),
    ],
    ids=["one position", "flattened maps", "pooled maps", "mean token", "flattened tokens"],
)
def test_features_are_what_the_head_was_fed(backbone, features):
    expected = features(backbone(IMAGES)).detach()
    model = Parts(encoder=backbone, projector=mlp(expected.shape[1]))
    check_parts(model, *simclr_parts(model), expected)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_pooling_that_begins_the_head_moves_to_the_encoder(pool):
    layers = [pool(1), nn.Flatten(), nn.Linear(16, 4)]
    model = Parts(backbone=conv(), head=nn.Sequential(*layers)).eval()
    expected = model.head(model.backbone(IMAGES))
    features = layers[0](model.backbone(IMAGES)).flatten(1).detach()
    encoder, head = simclr_parts(model)
    check_parts(model, encoder, head, features)
    torch.testing.assert_close(head(encoder(IMAGES)), expected)
    assert not encoder.training
    assert not head.training


def test_parts_named_by_attribute():
    model = Parts(student=Parts(trunk=conv(), layers=nn.ModuleList([nn.Identity(), mlp()])), proj=mlp())
    encoder, head = simclr_parts(model, "student.trunk", "student.layers.1")
    assert encoder.backbone is model.student.trunk
    assert head is model.student.layers[1]
    assert simclr_parts(model, encoder="student.trunk")[1] is model.proj


def test_parts_given_as_modules():
    backbone, head = conv(), mlp()
    encoder, found = simclr_parts(Parts(backbone=conv(), projector=mlp()), backbone, head)
    assert encoder.backbone is backbone
    assert found is head
    ready = Encoder(backbone)
    encoder, _ = simclr_parts(Parts(projector=mlp()), ready)
    assert encoder is ready
    assert ready.feature_dim == 16


def test_head_inside_the_encoder_is_moved_out():
    """As in sthalles/SimCLR, where the head takes the place of the ResNet's classifier."""
    model = Parts(backbone=Classifier("fc", mlp())).eval()
    head, expected = model.backbone.fc, model.backbone(IMAGES)
    features = model.backbone.features(IMAGES).detach()
    encoder, found = simclr_parts(model, head="backbone.fc")
    assert found is head
    assert isinstance(model.backbone.fc, nn.Identity)
    torch.testing.assert_close(encoder(IMAGES), features)
    torch.testing.assert_close(found(encoder(IMAGES)), expected)
    with pytest.raises(ValueError, match=r"got the Identity at 'fc' of the encoder.*pass the head that was there"):
        simclr_parts(model, head="backbone.fc")
    assert not any(m.training for m in model.modules() if m is not model)


@pytest.mark.parametrize(
    ("parts", "role", "names"),
    [
        ({"backbone": conv(), "net": conv(), "head": mlp()}, "encoder", "backbone, net"),
        ({"backbone": conv(), "projector": mlp(), "head": mlp()}, "head", "projector, head"),
    ],
)
def test_more_than_one_candidate(parts, role, names):
    model = Parts(**parts)
    first = names.split(",")[0]
    message = f'more than one part that may be its {role}: {names}; name the right one ({role}="{first}")'
    with pytest.raises(ValueError, match=re.escape(message)):
        simclr_parts(model)
    named = simclr_parts(model, **{role: first})
    assert model.get_submodule(first) in (named[0].backbone, named[1])


@pytest.mark.parametrize(
    ("parts", "named", "message"),
    [
        ({"f1": conv(), "f2": mlp()}, {}, "encoder and head not found in Parts, whose children are f1, f2; name"),
        ({"backbone": conv(), "f2": mlp()}, {}, "head not found in Parts, whose children are backbone, f2; name"),
        ({"projector": mlp()}, {}, "encoder not found in Parts, whose children are projector; name"),
        ({}, {}, "encoder and head not found in Parts, whose children are none; name"),
        ({"backbone": conv(), "head": mlp()}, {"head": "hed"}, 'head="hed" not found in Parts, whose children'),
        ({"backbone": conv(), "head": mlp()}, {"encoder": "backbone.x"}, 'encoder="backbone.x" not found'),
        ({"backbone": conv(), "head": mlp()}, {"encoder": ""}, 'encoder="" not found'),
        ({"backbone": conv(), "head": 3}, {}, "head not found"),
    ],
)  # fmt: skip
def test_part_not_found(parts, named, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        simclr_parts(Parts(**parts), **named)
    assert 'encoder="net.trunk"' in str(error.value)


def test_encoder_inside_the_head():
    model = Parts(head=nn.Sequential(conv(), nn.Flatten(), nn.Linear(576, 4)))
    with pytest.raises(ValueError, match="encoder must be outside the head"):
        simclr_parts(model, "head.0")
    with pytest.raises(ValueError, match="encoder must be outside the head"):
        simclr_parts(model, "head", "head")


def test_head_of_convolutions():
    with pytest.raises(ValueError, match=r"rows of features .* begins with Conv2d"):
        simclr_parts(Parts(backbone=conv(), head=nn.Sequential(nn.Conv2d(16, 4, 1), POOL)))


def test_width_of_an_open_head_comes_from_the_encoder():
    assert simclr_parts(Parts(backbone=conv(), head=nn.LazyLinear(8)))[0].feature_dim == 16
    assert simclr_parts(Parts(backbone=conv(), head=nn.Identity()))[0].feature_dim == 16
    normed = nn.Sequential(nn.BatchNorm1d(576), nn.Linear(576, 4))
    assert simclr_parts(Parts(backbone=conv(), head=normed))[0].feature_dim == 576


def test_wrapped_model_can_be_taken_apart_again():
    wrapper = StochConWrapper(conv(), dim=8)
    encoder, head = simclr_parts(wrapper)
    assert encoder is wrapper.encoder
    assert head is wrapper.head


# ------------------------------------------------------------------------------------------ small_image_stem


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_resnet_gets_the_stem_for_small_images(library):
    create = pytest.importorskip(f"{library}.models").__dict__
    model = create["resnet18"]().double()
    stage = model.layer1[0].conv1.weight.clone()
    assert small_image_stem(Encoder(model)).backbone is model
    conv = model.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert conv.weight.dtype == torch.float64
    assert isinstance(model.maxpool, nn.Identity)
    assert torch.equal(model.layer1[0].conv1.weight, stage)
    maps = []
    model.layer4.register_forward_hook(lambda module, args, output: maps.append(output.shape))
    model.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert maps == [(1, 512, 4, 4)]  # a stride of 8 in place of 32
    assert small_image_stem(model).conv1 is conv  # which it has already


def test_a_deep_stem_keeps_its_convolutions():
    model = pytest.importorskip("timm").create_model("resnet10t")
    conv = model.conv1
    assert small_image_stem(model).conv1 is conv
    assert isinstance(model.maxpool, nn.Identity)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnetv2_50", "replace_stem_pool"])
def test_other_stems_are_refused_and_left_as_they_are(name):
    timm = pytest.importorskip("timm")
    plain = name != "replace_stem_pool"
    model = timm.create_model(name) if plain else timm.create_model("resnet18", replace_stem_pool=True)
    before = str(model)
    with pytest.raises(ValueError, match=f"model must be a ResNet .*got {type(model).__name__}"):
        small_image_stem(model)
    assert str(model) == before
    with pytest.raises(TypeError, match="model must be a module, got str"):
        small_image_stem(name)
