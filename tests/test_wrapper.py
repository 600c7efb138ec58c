"""`StochConWrapper`: Algorithm 1, representations, construction, frozen encoders, precision and compilation."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
import torchvision
from saved_models import OpenEncoder, generator
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

from stochastic_bottleneck import (
    Encoder,
    InfoNCELoss,
    StochasticBottleneck,
    StochConLoss,
    StochConOutput,
    StochConWrapper,
    as_encoder,
    codes,
)

N, WIDTH, DIM = 6, 5, 11


def encoder(width=WIDTH, stride=1):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def model(kind="bern", **options):
    options = {"kind": kind, "dim": DIM, "projection_dim": 4, "feature_dim": WIDTH, **options}
    return StochConWrapper(options.pop("encoder", encoder()), **options)


def images(seed=0, n=N):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


X, X_PRIME = images(0), images(1)
KINDS = {
    "bern": {"kind": "bern"},
    "gauss": {"kind": "gauss"},
    "gauss own": {"kind": "gauss", "variance_from": "own"},
    "gauss isotropic": {
        "bottleneck": lambda: StochasticBottleneck("gauss", DIM, in_features=WIDTH, variance="isotropic")
    },
    "hard": {"bottleneck": lambda: StochasticBottleneck("bern", DIM, in_features=WIDTH, hard=True)},
}


def build(kind, **options):
    return model(**{k: v() if callable(v) else v for k, v in {**KINDS[kind], **options}.items()})


each_kind = pytest.mark.parametrize("kind", KINDS)


# ---- Algorithm 1 -------------------------------------------------------------------------------------------


def algorithm_1(m, x, x_prime, g, *, hard=False, isotropic=False, variance_from="opposing"):
    """Steps 2 to 7 of StochCon (arXiv 2110.00552), Algorithm 1, on the weights of `m`, in training mode."""
    f, head = m.encoder.backbone, m.head
    pi, rho = m.bottleneck.projector, m.bottleneck.upsampler
    h, h_prime = f(x), f(x_prime)  # 2
    phi = F.linear(h_prime, pi.weight, pi.bias)  # 3
    location = phi[:, :DIM]
    # Our normalisation.
    location = 2 * (location - location.mean(0)) / (location.var(0, correction=0) + 1e-5).sqrt()
    if m.bottleneck.kind == "bern":  # 4
        u = torch.rand(location.shape, generator=g, dtype=location.dtype)
        e = u.log() - (1 - u).log()
        z = torch.sigmoid((location + e) / m.bottleneck.temperature)
        if hard:
            z = (z > 0.5).to(z.dtype) + z - z.detach()
    else:
        of_variance = h if variance_from == "opposing" else h_prime
        raw = F.linear(of_variance, pi.weight, pi.bias)[:, DIM:]
        assert raw.shape[1] == (1 if isotropic else DIM)
        noise = torch.randn(location.shape, generator=g, dtype=location.dtype)
        z = location + (10 * torch.tanh(raw / 10)).exp() * noise
    upsampled = F.linear(z, rho.weight, rho.bias)  # 5
    v, v_prime = head(h), head(upsampled)  # 6
    both = F.normalize(torch.cat((v, v_prime)))  # 7, as cross entropy
    logits = (both @ both.T / 0.5).fill_diagonal_(-math.inf)
    target = torch.arange(2 * len(v)).roll(len(v))
    return F.cross_entropy(logits, target), v, v_prime, z


@each_kind
def test_it_is_algorithm_1(kind):
    m = build(kind).double()
    twin = copy.deepcopy(m)
    x, x_prime = X.double(), X_PRIME.double()
    output = m(x, x_prime, generator=generator())
    loss = InfoNCELoss(0.5)(*output[:2])
    loss.backward()
    own = {"variance_from": "own"} if kind == "gauss own" else {}
    expected, v, v_prime, z = algorithm_1(
        twin, x, x_prime, generator(), hard=kind == "hard", isotropic=kind == "gauss isotropic", **own
    )
    expected.backward()
    assert isinstance(output, StochConOutput)
    assert output.posterior.kl().shape == (N,)
    found = (output.v, output.v_prime, output.z, output.h, output.h_prime, loss)
    for a, b in zip(found, (v, v_prime, z, twin.encoder(x), twin.encoder(x_prime), expected), strict=True):
        assert_close(a, b)
    for (name, a), b in zip(m.named_parameters(), twin.parameters(), strict=True):
        assert b.grad.any(), name
        assert_close(a.grad, b.grad)


# ---- symmetric --------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("training", [True, False])
def test_symmetric_is_the_mean_of_both_directions(kind, training):
    m = build(kind, symmetric=True).double().train(training)
    twin = copy.deepcopy(m)
    twin.symmetric = False
    g, loss = generator(), InfoNCELoss()
    x, x_prime = X.double(), X_PRIME.double()
    output = m(x, x_prime, sample=True, generator=generator())
    forth = twin(x, x_prime, sample=True, generator=g)
    back = twin(x_prime, x, sample=True, generator=g)
    for i, directed in enumerate((forth, back)):
        assert_close(output.v[i], directed.v)
        assert_close(output.v_prime[i], directed.v_prime)
        assert_close(output.z[i], directed.z)
        assert_close(output.posterior.kl()[i], directed.posterior.kl())
    both = loss(*output[:2])
    directed = (loss(*forth[:2]) + loss(*back[:2])) / 2
    assert_close(both, directed)
    both.backward()
    directed.backward()
    for a, b in zip(m.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad)


# ---- several samples and no noise --------------------------------------------------------------------------


def fixed_noise(m, monkeypatch, calls):
    """Make `rsample` use these noises in turn."""
    kind = type(m.bottleneck.posterior(torch.randn(N, WIDTH, dtype=torch.float64)))
    rsample, noises = kind.rsample, iter(calls)

    def replaced(self, *, noise=None, generator=None, **options):
        return rsample(self, noise=next(noises), **options)

    monkeypatch.setattr(kind, "rsample", replaced)


@each_kind
@pytest.mark.parametrize("symmetric", [False, True])
def test_several_samples_are_the_mean_over_single_ones(kind, symmetric, monkeypatch):
    m = build(kind, symmetric=symmetric, samples=3).double()
    passes = []
    m.encoder.register_forward_hook(lambda *_: passes.append(1))
    twin, x, x_prime, loss = copy.deepcopy(m), X.double(), X_PRIME.double(), InfoNCELoss()
    twin.samples = 1
    noises = torch.randn(1 + symmetric, 3, N, DIM, dtype=torch.float64)
    fixed_noise(m, monkeypatch, noises.flatten(0, 1))
    output = m(x, x_prime)
    assert len(passes) == 2
    assert output.v.shape == output.v_prime.shape == (3 * (1 + symmetric), N, 4)
    assert output.posterior.kl().shape == ((2, N) if symmetric else (N,))
    monkeypatch.undo()
    total = 0
    for k in range(3):
        fixed_noise(m, monkeypatch, noises[:, k])
        single = twin(x, x_prime)
        monkeypatch.undo()
        rows = range(k, len(output.z), 3) if symmetric else k
        for name in ("v", "v_prime", "z"):
            assert_close(getattr(output, name)[rows], getattr(single, name))
        total = total + loss(*single[:2]) / 3
    several = loss(*output[:2])
    assert_close(several, total)
    several.backward()
    total.backward()
    for (name, a), b in zip(m.named_parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, 10)
        assert a.grad.any(), name


@each_kind
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_samples_are_the_mode_with_a_gradient(kind, symmetric):
    m = build(kind, symmetric=symmetric, samples=0)
    random = torch.get_rng_state()
    output, again = m(X, X_PRIME), m(X, X_PRIME, sample=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(output.z, again.z)
    assert torch.equal(output.v_prime, again.v_prime)
    InfoNCELoss()(*output[:2]).backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad.any(), name


# ---- encode and feature_extractor --------------------------------------------------------------------------

REPRESENTATIONS = ("h", "z", "upsampled", "bits")


def expected_representation(m, x, which):
    m = copy.deepcopy(m).eval()
    with torch.no_grad():
        h = m.encoder(x)
        z = m.bottleneck.posterior(h).mode()
        return {
            "h": h,
            "z": z,
            "upsampled": m.bottleneck.upsampler(z),
            "bits": torch.from_numpy(np.packbits(z.numpy() > 0.5, axis=1)),
        }[which]


BY_KIND = [*(("bern", which) for which in REPRESENTATIONS), *(("gauss", which) for which in REPRESENTATIONS[:3])]


@pytest.mark.parametrize(("kind", "which"), BY_KIND)
@pytest.mark.parametrize("training", [True, False])
def test_encode(kind, which, training):
    m = model(kind).train(training)
    m(X, X_PRIME)
    shape = {"h": WIDTH, "z": DIM, "upsampled": WIDTH, "bits": math.ceil(DIM / 8)}[which]
    encoded = m.encode(X, which)
    assert encoded.shape == (N, shape)
    assert not encoded.requires_grad
    assert torch.equal(encoded, expected_representation(m, X, which))
    assert torch.equal(m.encode(X), m.encode(X, "h"))
    if which == "bits":
        assert encoded.dtype == torch.uint8
        assert torch.equal(codes.unpack_bits(encoded, DIM), m.encode(X, "z").to(torch.uint8))


@pytest.mark.parametrize("which", REPRESENTATIONS)
def test_encode_changes_nothing(which):
    m = model()
    m.encoder.backbone[1].eval()  # a frozen batch norm in a model in training
    flags = {name: module.training for name, module in m.named_modules()}
    state, random = copy.deepcopy(m.state_dict()), torch.get_rng_state()
    m.encode(X, which)
    assert {name: module.training for name, module in m.named_modules()} == flags
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in m.state_dict().items():
        assert torch.equal(value, state[key]), key
    with pytest.raises(RuntimeError, match="channels"):
        m.encode(torch.ones(2, 4, 8, 8), which)
    assert {name: module.training for name, module in m.named_modules()} == flags


@pytest.mark.parametrize("which", REPRESENTATIONS)
def test_encode_refuses_images_whose_features_are_not_finite(which):
    m = model().eval()
    x = X.clone()
    x[1, 0, 0, 0], x[4] = math.nan, math.inf
    message = r"^2 of 6 images gave features that are not finite; look for inf or nan"
    with pytest.raises(ValueError, match=message):
        m.encode(x, which)
    good = [0, 2, 3, 5]
    assert torch.equal(m.encode(x, which, validate=False)[good], m.encode(X, which)[good])
    m.feature_extractor(which)(x)  # does not read values, so that it can be compiled
    with torch.no_grad():
        m.bottleneck.projector.bias[0] = math.nan  # as after diverged training
    if which == "h":
        assert m.encode(X).isfinite().all()
    else:
        with pytest.raises(ValueError, match="6 of 6 images gave a latent that is not finite"):
            m.encode(X, which)


@pytest.mark.parametrize("which", REPRESENTATIONS)
def test_feature_extractor_shares_weights(which):
    m = model()
    m(X, X_PRIME)
    m.eval()
    extractor = m.feature_extractor(which)
    assert not extractor.training
    assert {id(p) for p in extractor.parameters()} <= {id(p) for p in m.parameters()}
    assert torch.equal(extractor(X), m.encode(X, which))


def test_the_feature_extractor_can_be_trained():
    extractor = model().feature_extractor("h")
    assert extractor.training
    assert not list(extractor.children())[1:]  # only the encoder
    extractor(X).sum().backward()
    assert all(p.grad is not None for p in extractor.parameters())


# ---- construction ----------------------------------------------------------------------------------------------


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = encoder()
        self.projection_head = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x):
        return self.projection_head(self.backbone(x))


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_from_simclr_keeps_the_weights(kind):
    simclr = SimCLR().eval()
    weights, features, projections = copy.deepcopy(simclr.state_dict()), simclr.backbone(X), simclr(X)
    m = StochConWrapper.from_simclr(simclr, kind=kind, dim=DIM, symmetric=True).eval()
    assert m.head is simclr.projection_head
    assert m.symmetric
    assert (m.bottleneck.kind, m.bottleneck.dim, m.bottleneck.in_features) == (kind, DIM, WIDTH)
    assert torch.equal(m.encode(X), features)
    assert torch.equal(m(X, X_PRIME).v[0], projections)
    for key, value in simclr.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert {id(p) for p in simclr.parameters()} < {id(p) for p in m.parameters()}


def test_the_default_head_is_that_of_simclr():
    head = model(projection_dim=9).head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head[0].weight.shape == (WIDTH, WIDTH)
    assert head[3].weight.shape == (9, WIDTH)
    own = nn.Linear(WIDTH, 2)
    assert model(head=own).head is own


@pytest.mark.parametrize("convert", [lambda m: m, nn.SyncBatchNorm.convert_sync_batchnorm])
@pytest.mark.parametrize("first", [None, torch.inference_mode])
def test_an_unknown_width_is_inferred_from_the_first_batch(convert, first):
    m = convert(StochConWrapper(OpenEncoder(), dim=DIM, projection_dim=4))
    assert m.encoder.feature_dim is None
    assert not any(p.is_meta for p in copy.deepcopy(m).parameters())
    optimizer, held = torch.optim.SGD(m.parameters(), lr=0.1), list(m.parameters())
    with first() if first else torch.no_grad():
        m.eval()(X, X_PRIME)
    assert not any(module.training for module in m.modules())
    before = copy.deepcopy(m.state_dict())
    InfoNCELoss()(*m.train()(X, X_PRIME)[:2]).backward()
    optimizer.step()
    assert all(a is b for a, b in zip(held, m.parameters(), strict=True))
    assert not any(torch.equal(p, before[name]) for name, p in m.named_parameters() if "bias" not in name)
    fresh = copy.deepcopy(convert(StochConWrapper(OpenEncoder(), dim=DIM, projection_dim=4)))
    fresh.load_state_dict(m.state_dict())
    assert torch.equal(fresh.eval()(X, X_PRIME).v_prime, m.eval()(X, X_PRIME).v_prime)
    assert m.head[1].num_features == fresh.head[1].num_features == WIDTH


def test_an_encoder_object_is_used_unchanged():
    given = as_encoder(encoder(), WIDTH)
    assert StochConWrapper(given, dim=DIM).encoder is given
    assert StochConWrapper(Encoder(OpenEncoder()), feature_dim=WIDTH).encoder.feature_dim == WIDTH


@pytest.mark.parametrize("maps", ["linear", "mlp", nn.LazyLinear(DIM)], ids=str)
def test_a_bottleneck_of_unknown_width_takes_the_encoders(maps):
    bottleneck = StochasticBottleneck("bern", DIM, projector=copy.deepcopy(maps), temperature=0.3)
    m = model(bottleneck=bottleneck)
    assert (bottleneck.in_features, bottleneck.out_features) == (WIDTH, WIDTH)
    assert sum(p.numel() for p in m.parameters()) > 0


def test_the_head_takes_the_width_of_the_bottleneck():
    m = StochConWrapper(OpenEncoder(), bottleneck=StochasticBottleneck(in_features=WIDTH))
    assert m.head[0].weight.shape == (WIDTH, WIDTH)
    assert m(X, X_PRIME).v.shape == (N, 128)
    with pytest.raises(ValueError, match=r"bottleneck gives 7 features .*, but the head takes .* 5"):
        StochConWrapper(OpenEncoder(), bottleneck=StochasticBottleneck(in_features=WIDTH, out_features=7))


def test_options_of_the_bottleneck_are_passed_on():
    options = {"temperature": 0.25, "hard": True, "location_std": None}
    for m in (model(**options), StochConWrapper.from_simclr(SimCLR(), dim=DIM, **options)):
        assert m.bottleneck.temperature == 0.25
        assert m.bottleneck.hard
        assert m.bottleneck.location_std is None
    own, ours = (inspect.signature(c).parameters for c in (StochasticBottleneck, StochConWrapper))
    assert all(own[name].default == ours[name].default for name in ("kind", "dim", *options))


@pytest.mark.parametrize(
    ("option", "value"), [("kind", "gauss"), ("dim", 3), ("temperature", 0.5), ("hard", True), ("location_std", None)]
)
def test_options_that_contradict_a_bottleneck_are_refused_before_the_encoder_is_changed(option, value):
    resnet = torchvision.models.resnet18(num_classes=3)
    bottleneck = StochasticBottleneck("bern", 128, temperature=0.3)
    message = f"{option} must be left out when bottleneck is given, or equal the bottleneck's"
    with pytest.raises(ValueError, match=message):
        StochConWrapper(resnet, bottleneck=bottleneck, **{option: value})
    assert bottleneck.in_features is None
    with pytest.raises(ValueError, match="dim must be a positive int"):
        StochConWrapper(resnet, dim=0)
    assert isinstance(resnet.fc, nn.Linear)
    own = StochasticBottleneck(**{option: value})
    assert StochConWrapper(encoder(), bottleneck=own, **{option: value}).bottleneck is own


def test_a_bottleneck_for_other_features_is_refused():
    for widths, message in (
        ({"in_features": 6}, r"bottleneck takes 6 features \(in_features\), but the encoder gives 5"),
        (
            {"in_features": 5, "out_features": 7},
            r"bottleneck gives 7 features \(out_features\), but the head takes .* 5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            StochConWrapper(encoder(), feature_dim=WIDTH, bottleneck=StochasticBottleneck("bern", 4, **widths))


IMAGES = [
    (X.byte(), TypeError, r"{} must hold images in floating point, got torch.uint8; scale .* {}.float\(\) / 255"),
    (X.to_sparse(), TypeError, r"{} must be a dense tensor, got a sparse_coo one; convert it with {}.to_dense\(\)"),
    (X[:0], ValueError, r"{} is empty, shape \(0, 3, 8, 8\); skip empty batches"),
]


@pytest.mark.parametrize(("images", "error", "message"), IMAGES)
def test_bad_images_are_refused(images, error, message):
    m = model()
    for call in (m.encode, m.encoder, m.feature_extractor("bits"), lambda x: m(x, X)):
        with pytest.raises(error, match=message.replace("{}", "x")):
            call(images)
    with pytest.raises(error, match=message.replace("{}", "x_prime")):
        m(X, images)


def test_images_of_another_dtype_or_device_are_refused():
    m = model()
    for call in (m.encode, lambda x: m(x, x)):
        message = r"x must have the dtype .* weights, torch.float32, got torch.float64; convert it with x.to\(torch.f"
        with pytest.raises(TypeError, match=message):
            call(X.double())
        with pytest.raises(ValueError, match="x must be on the module's device, cpu, got meta"):
            call(X.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        m(X.bfloat16(), X_PRIME.bfloat16())
        with pytest.raises(TypeError, match="x must have the dtype of the module's weights"):
            m.encode(X.double())

    class Casting(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype))

    assert model(encoder=Casting(3, WIDTH, 3)).encode(X.double()).dtype == torch.float32
    m(X, images(1)[..., :6])  # views may differ in size


# ---- frozen encoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_a_detached_encoder_learns_from_the_deterministic_branch_alone(kind):
    m = model(kind=kind, detach_encoder=True, symmetric=True)
    output = m(X, X_PRIME)
    InfoNCELoss()(output.v[0], output.v[1]).backward(retain_graph=True)
    expected = [p.grad.clone() for p in m.encoder.parameters()]
    m.zero_grad()
    StochConLoss(temperature=0.5, stochastic=0, deterministic=1, codes=1, covariance=1, kl=1)(output).backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(m.encoder.parameters(), expected, strict=True))
    assert all(p.grad.any() for p in m.bottleneck.projector.parameters())


def frozen_model(**options):
    """With dropout, batch norms, and a parameter that does not require a gradient."""
    backbone = nn.Sequential(*encoder(), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH))
    backbone[0].bias.requires_grad_(False)
    return model(encoder=backbone, **options).freeze_encoder()


def train_steps(m, steps=3):
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(steps):
        m.train()
        optimizer.zero_grad()
        InfoNCELoss()(*m(images(step), images(step + 9))[:2]).backward()
        optimizer.step()


@pytest.mark.parametrize("copier", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("checkpoint_encoder", [False, True])
def test_a_frozen_encoder_does_not_change(copier, checkpoint_encoder):
    m = frozen_model(checkpoint_encoder=checkpoint_encoder)
    before = copy.deepcopy(m.state_dict())
    m.load_state_dict(copy.deepcopy(before))
    m = copier(m)
    features = m.encode(X)
    train_steps(m)
    m.feature_extractor("z").train()
    assert m.training
    assert torch.equal(m.train()(X, X_PRIME).h, features)  # without dropout and batch statistics
    for name, value in m.state_dict().items():
        moves = not name.startswith("encoder.") and "temperature" not in name
        assert torch.equal(value, before[name]) != moves, name
    assert all(p.grad is None for p in m.encoder.parameters())
    assert all(p.grad is not None for p in (*m.bottleneck.parameters(), *m.head.parameters()))


def test_a_frozen_encoder_stores_no_activations_and_runs_once():
    m = model(encoder=OpenEncoder(), checkpoint_encoder=True).freeze_encoder()
    sizes, passes = [], []
    m.encoder.register_forward_hook(lambda *_: passes.append(1))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.ndim) or t, lambda t: t):
        output = m(X, X_PRIME)
    assert not output.h.requires_grad
    assert 4 not in sizes
    InfoNCELoss()(*output[:2]).backward()
    assert len(passes) == 2


def test_unfreezing():
    m = frozen_model().freeze_encoder()  # freezing twice has no further effect
    assert not any(p.requires_grad for p in m.encoder.parameters())
    assert m.freeze_encoder(False) is m
    assert m.encoder.backbone[1].training
    assert {name for name, p in m.encoder.named_parameters() if not p.requires_grad} == {"backbone.0.bias"}
    before = copy.deepcopy(m.encoder.state_dict())
    train_steps(m)
    moved = {name for name, value in m.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"backbone.0.bias"}


def test_a_part_that_is_unfrozen_afterwards_is_trained_in_evaluation_mode():
    m = frozen_model()
    last = m.encoder.backbone[-1].requires_grad_()
    before = copy.deepcopy(m.encoder.state_dict())
    train_steps(m)
    moved = {name for name, value in m.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"backbone.6.weight", "backbone.6.bias"}
    assert not last.training


def test_a_frozen_encoder_compiles():
    m = frozen_model()
    torch.compile(m, fullgraph=True, backend="eager")(X, X_PRIME).v_prime.sum().backward()
    assert all(p.grad is None for p in m.encoder.parameters())
    assert m.bottleneck.projector.weight.grad.any()


# ---- copies, checkpointing, precision -----------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(kind, copier):
    m = build(kind)
    m(X, X_PRIME)
    other = copier(m)
    a, b = (x(X, X_PRIME, generator=generator()) for x in (m, other))
    assert torch.equal(a.v_prime, b.v_prime)
    assert not {id(p) for p in m.parameters()} & {id(p) for p in other.parameters()}


def test_checkpointing_allows_a_second_backward_pass():
    m = model(checkpoint_encoder=True)
    loss = InfoNCELoss()(*m(X, X_PRIME)[:2])
    weights = list(m.encoder.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, weights), strict=True):
        assert torch.equal(a, b)


def spectral_norm(width):
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(width, width, 1))  # whose vectors each pass changes


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, spectral_norm])
@pytest.mark.parametrize("symmetric", [False, True])
def test_checkpointing_changes_neither_gradients_nor_statistics(symmetric, norm):
    m = model(symmetric=symmetric)
    m.encoder.backbone[1] = norm(WIDTH)
    twin = copy.deepcopy(m)
    twin.checkpoint_encoder = True
    saved = []
    for x in (m, twin):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.shape) or t, lambda t: t):
            output = x(X, X_PRIME, generator=generator())
        saved.append(sum(len(s) == 4 and s[1] == WIDTH for s in sizes))
        InfoNCELoss()(*output[:2]).backward()
    assert saved[0] > 0
    assert saved[1] == 0  # no activation of the encoder is stored
    for a, b in zip(m.parameters(), twin.parameters(), strict=True):
        assert a.grad.any()
        assert torch.equal(a.grad, b.grad)
    for (name, a), b in zip(m.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert norm is spectral_norm or twin.encoder.backbone[1].momentum == 0.1


def test_channels_last():
    m = model(encoder=OpenEncoder())
    twin = copy.deepcopy(m).to(memory_format=torch.channels_last)
    assert twin.encoder.backbone.inner[0].weight.is_contiguous(memory_format=torch.channels_last)
    losses = []
    for x, layout in ((m, torch.contiguous_format), (twin, torch.channels_last)):
        output = x(*(i.to(memory_format=layout) for i in (X, X_PRIME)), generator=generator())
        losses.append(InfoNCELoss()(*output[:2]))
        losses[-1].backward()
    assert_close(losses[1], losses[0])
    for a, b in zip(m.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains(kind, dtype):
    m = build(kind)
    with torch.autocast("cpu", dtype=dtype):
        output = m(X, X_PRIME)
        loss = InfoNCELoss(0.1)(*output[:2])
    assert output.v.dtype == output.v_prime.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


OLD = pytest.mark.xfail(torch.__version__ < "2.13", reason="compiled, older torch counts statistics twice")
CHECKPOINTED = pytest.param({"checkpoint_encoder": True}, marks=OLD)
ISOTROPIC = StochasticBottleneck("gauss", DIM, in_features=WIDTH, variance="isotropic", learnable_scale=True)
OPTIONS = [{"symmetric": True, "samples": 2, "hard": True}, {"kind": "gauss", "samples": 0}, CHECKPOINTED]
OPTIONS += [{"bottleneck": ISOTROPIC}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_code_agrees(options, fresh_compiler):
    m = model(**options).double()  # in float32 the gradient of a bias before a batch norm is only rounding
    twin = copy.deepcopy(m)
    outputs = []
    for call in (m, torch.compile(twin, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        output = call(X.double(), X_PRIME.double())
        (output.v * output.v_prime.sin()).sum().backward()
        outputs.append(output)
    assert [type(x) for x in outputs[1]] == [type(x) for x in outputs[0]]
    assert type(outputs[1]) is StochConOutput
    assert_close(outputs[1].z, outputs[0].z)
    assert_close(outputs[1].v_prime, outputs[0].v_prime)
    for (name, a), b in zip(m.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(m.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda text, name=name: f"{name}: {text}")
