"""`as_encoder` on torchvision's and timm's architectures: its width, its features, and what it leaves alone.

Models have random weights and see images as small as they take, so that the sweep fits the fast run.
"""

import logging
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from stochastic_bottleneck import StochConWrapper, as_encoder

timm = pytest.importorskip("timm")
zoo = pytest.importorskip("torchvision.models")

CLASSES = 7
AUXILIARY = ("aux1", "aux2", "AuxLogits")


def by_size(names):
    """Side of the images that each model sees, by its name."""
    return {name: size for size, several in names.items() for name in several.split()}


TORCHVISION = by_size(
    {
        32: """
            resnet18 resnet50 resnext50_32x4d wide_resnet50_2 vgg11 vgg11_bn densenet121 squeezenet1_0
            squeezenet1_1 googlenet mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0
            shufflenet_v2_x0_5 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s regnet_x_400mf
            regnet_y_400mf convnext_tiny vit_b_32 swin_t swin_v2_t
        """,
        64: "alexnet",
        75: "inception_v3",
        224: "maxvit_t",
    }
)
OPTIONS = {
    "googlenet": {"init_weights": False},  # its own initialisation warns that it is slow
    "inception_v3": {"init_weights": False},
    "vit_b_32": {"image_size": 32},
}
TIMM = by_size(
    {
        32: """
            resnet18 resnet26d seresnet18 skresnet18 resnest14d resnext26ts res2net50_26w_4s nf_resnet26
            vgg11 densenet121 dla34 dpn48b xception41p hrnet_w18_small cspresnet50 ese_vovnet19b_slim_dw
            selecsls42 hgnet_tiny repvgg_a0 mobileone_s0 efficientnet_b0 tf_efficientnetv2_b0 mnasnet_small
            mobilenetv3_small_050 mobilenetv4_conv_small lcnet_035 ghostnet_050 rexnet_100 regnetx_002
            regnety_002 dm_nfnet_f0 eca_nfnet_l0 convnext_atto convnextv2_atto convmixer_768_32
            inception_next_atto poolformer_s12 poolformerv2_s12 caformer_s18 repvit_m0_9 mambaout_femto
            starnet_s1
        """,
        64: """
            legacy_xception mobilenetv4_hybrid_medium focalnet_tiny_srf fastvit_t8 edgenext_xx_small
            mobilevit_xxs mobilevitv2_050 efficientvit_b0 swiftformer_xs pvt_v2_b0 davit_tiny
        """,
        75: "inception_v4",
        224: "tiny_vit_5m_224",
        240: "crossvit_9_240",
    }
)
SIZED = by_size(
    {
        64: """
            botnet26t_256 efficientvit_m0 efficientformerv2_s0 vit_tiny_r_s16_p8_224 maxvit_nano_rw_256
            coatnet_nano_rw_224 pit_ti_distilled_224 twins_pcpvt_small visformer_tiny volo_d1_224
            gcvit_xxtiny mvitv2_tiny sequencer2d_s
        """,
        32: """
            vit_tiny_patch16_224 vit_wee_patch16_reg1_gap_256 deit_tiny_patch16_224
            deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224
            xcit_nano_12_p16_224 convit_tiny mixer_s32_224 gmlp_ti16_224 resmlp_12_224
            swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 coat_lite_tiny levit_128s
        """,
        28: "vit_small_patch14_reg4_dinov2 eva02_tiny_patch14_224",
    }
)
"""Models of timm that are built for one size of image."""
SLOW = {("torchvision", "vgg11_bn"), ("timm", "vgg11"), ("timm", "dm_nfnet_f0")}
"""Heavy siblings of models that the fast run has."""
CASES = [
    pytest.param(library, name, marks=[pytest.mark.slow] if (library, name) in SLOW else [])
    for library, names in (("torchvision", TORCHVISION), ("timm", {**TIMM, **SIZED}))
    for name in names
]


def build(library, name):
    """The model and two images for it."""
    if library == "torchvision":
        size = TORCHVISION[name]
        model = getattr(zoo, name)(weights=None, num_classes=CLASSES, **OPTIONS.get(name, {}))
    else:
        if not timm.is_model(name):
            pytest.skip(f"this timm has no {name}")
        size = TIMM.get(name) or SIZED[name]
        options = {"img_size": size} if name in SIZED else {}
        model = timm.create_model(name, num_classes=CLASSES, drop_rate=0.1, **options)
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features_before_the_classifier(library, model, x):
    """What the model itself feeds to its last layer."""
    if library == "timm":
        return model.forward_head(model.forward_features(x), pre_logits=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    classifier = layers[-1] if layers else model.classifier[1]  # SqueezeNet's is a convolution
    fed = []
    hook = classifier.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    model(x)
    hook.remove()
    return fed[0].mean((2, 3)) if fed[0].ndim == 4 else fed[0]


def classifier_parts(library, model):
    """Modules of the classifier as its library bounds it, and of auxiliary ones."""
    heads = [model.get_classifier()] if library == "timm" else [getattr(model, n, None) for n in AUXILIARY]
    # LeViT and EfficientViT (MSRA) classify by norm, dropout and Linear in one.
    heads += [m for m in model.modules() if type(m).__name__ == "NormLinear"]
    return {m for head in heads if isinstance(head, nn.Module) for m in head.modules()}


def dropouts(model, leaving_out):
    """Number of dropout layers of each probability; a library may rebuild them, or add some."""
    return Counter(m.p for m in set(model.modules()) - leaving_out if isinstance(m, nn.Dropout))


@contextmanager
def nothing_runs():
    def refuse(module, args):
        raise AssertionError(f"{type(module).__name__} was run")

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(("library", "name"), CASES)
def test_architecture(library, name):
    model, x = build(library, name)
    expected = features_before_the_classifier(library, model.eval(), x)
    next(model.children()).train()  # flags that differ
    flags = {name: module.training for name, module in model.named_modules()}
    weights = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    classifier = classifier_parts(library, model)
    kept, random = dropouts(model, classifier), torch.get_rng_state()

    with nothing_runs():
        encoder = as_encoder(model)

    assert encoder.backbone is model
    assert encoder.feature_dim == expected.shape[-1]
    assert kept <= dropouts(model, classifier)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training == flags.get(name, False) for name, module in model.named_modules())
    assert all(parameter is weights[name] for name, parameter in model.named_parameters())
    assert len(list(model.parameters())) < len(weights)

    wrapper = StochConWrapper(encoder, dim=4, head=nn.Identity())
    assert wrapper.bottleneck.in_features == encoder.feature_dim
    torch.testing.assert_close(wrapper.encode(x), expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("name", ["alexnet", "efficientnet_b0"])
def test_dropout_before_the_classifier_acts_in_training(name):
    """Batch norm apart, two passes in training differ by dropout alone."""
    model, x = build("torchvision", name)
    encoder = as_encoder(model).eval()
    torch.testing.assert_close(encoder(x), encoder(x))
    for layer in model.classifier.modules():
        layer.training = True
    assert (encoder(x) != encoder(x)).any()


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features

    def forward(self, x):
        return self.base(x)


def test_a_classifier_with_an_adapter_is_stripped_too():
    model = zoo.resnet18()
    model.fc = LoRA(model.fc)
    encoder = as_encoder(model).eval()
    assert encoder.feature_dim == encoder(torch.rand(2, 3, 32, 32)).shape[1] == 512


# ---- timm's optimizers and scripts ---------------------------------------------------------------------------


def vit(**options):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=7, **options)


GROUPED = {
    "vit": vit,
    "average": lambda: vit(global_pool="avg"),
    "resnet": lambda: timm.create_model("resnet10t", num_classes=7),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 4), embed_dim=16, num_classes=7
    ),
    "a function": lambda: timm.create_model("cait_xxs24_224", img_size=32, depth=3, num_classes=7),
}


def timm_options(m, **options):
    """Learning rate scale and weight decay of each parameter."""
    create_optimizer_v2 = pytest.importorskip("timm.optim").create_optimizer_v2
    groups = create_optimizer_v2(m, "adamw", lr=1.0, weight_decay=0.05, **options).param_groups
    found = {id(p): (group.get("lr_scale"), group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in m.named_parameters()}


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("layer_decay", [0.75, None])
def test_timm_groups_the_encoder_as_it_does_the_bare_model(name, layer_decay):
    bare = timm_options(GROUPED[name](), layer_decay=layer_decay)
    wrapped = timm_options(StochConWrapper(GROUPED[name](), dim=8), layer_decay=layer_decay)
    prefix = "encoder.backbone."
    ours = {key.removeprefix(prefix): value for key, value in wrapped.items() if key.startswith(prefix)}
    assert ours == {key: bare[key] for key in ours}
    assert bare.keys() - ours.keys() <= {key for key in bare if key.startswith(("head", "fc"))}
    rest = {key: value for key, value in wrapped.items() if not key.startswith(prefix)}
    assert {scale for scale, _ in rest.values()} == {layer_decay and 1.0}
    assert {decay for key, (_, decay) in rest.items() if key.endswith("bias") or ".1." in key} == {0.0}
    if layer_decay:
        assert min(ours.values())[0] < 1
    if name == "vit":
        assert ours["pos_embed"][1] == 0


def test_timms_coarse_groups():
    m = StochConWrapper(timm.create_model("resnet10t"), dim=8)
    for coarse in (False, True):
        theirs = timm.models.group_parameters(m.encoder.backbone, m.encoder.backbone.group_matcher(coarse))
        ours = timm.models.group_parameters(m, m.group_matcher(coarse=coarse))
        assert len(ours) == len(theirs) + 1
        assert all("encoder" not in name for name in ours[len(theirs)])


def test_an_encoder_without_timms_methods_is_treated_as_a_plain_model(caplog):
    transformer = zoo.VisionTransformer(32, 16, 2, 2, 32, 64)
    m = StochConWrapper(transformer, dim=8)
    assert not hasattr(m, "group_matcher")
    with caplog.at_level(logging.WARNING):
        options = timm_options(m, layer_decay=0.75)
    assert "no effect" in caplog.text
    assert {scale for scale, _ in options.values()} == {1.0}
    assert m.no_weight_decay() == set()
    with pytest.raises(TypeError, match=r"got VisionTransformer; use StochConWrapper\(..., checkpoint"):
        m.set_grad_checkpointing()


def test_timms_checkpointing_is_the_backbones():
    m = StochConWrapper(vit(), dim=8)
    m.set_grad_checkpointing()
    assert m.encoder.backbone.grad_checkpointing
    m.set_grad_checkpointing(False)
    assert not m.encoder.backbone.grad_checkpointing
    with pytest.raises(TypeError, match="enable must be True or False, got 'no'"):
        m.set_grad_checkpointing("no")
    without = StochConWrapper(timm.create_model("vgg11", num_classes=7), dim=8)  # has the method, which asserts
    with pytest.raises(TypeError, match="checkpoint_encoder=True"):
        without.set_grad_checkpointing()
