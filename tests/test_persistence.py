"""Saving and loading: weights through torch and safetensors, before a first batch too, and a resumed run."""

import copy

import pytest
import torch
from torch import nn

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper, TemperatureSchedule

N, WIDTH, DIM = 6, 5, 11


class OpenEncoder(nn.Module):
    """Its structure does not tell its width, so that everything behind it is built with the first batch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


BOTTLENECKS = {
    "bern": {},
    "hard": {"hard": True},
    "as the paper": {"location_std": None},
    "learnable scale": {"learnable_scale": True},
    "mlp": {"projector": "mlp", "upsampler": "mlp"},
    "gauss": {"kind": "gauss"},
    "gauss isotropic": {"kind": "gauss", "variance": "isotropic"},
}
each_kind = pytest.mark.parametrize("kind", BOTTLENECKS)


def model(kind="bern", *, seed=0, lazy=False, dim=DIM, **options):
    torch.manual_seed(seed)
    bottleneck = StochasticBottleneck(dim=dim, **BOTTLENECKS[kind])
    if not lazy:
        bottleneck = StochasticBottleneck(dim=dim, in_features=WIDTH, **BOTTLENECKS[kind])
        options = {"feature_dim": WIDTH, **options}
    return StochConWrapper(OpenEncoder(), bottleneck=bottleneck, projection_dim=4, **options)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


X, X_PRIME = (torch.randn(N, 3, 8, 8, generator=generator(seed)) for seed in (2, 3))


def used(kind="bern", **options):
    """A model whose statistics and temperature are no longer those it was built with."""
    m = model(kind, **options)
    m(X, X_PRIME)
    if m.bottleneck.kind == "bern":
        m.bottleneck.set_temperature(0.3)
    return m


def outputs(m):
    """All that a model gives: the training pass with known noise, then what it encodes."""
    m = copy.deepcopy(m)
    output = m(X, X_PRIME, generator=generator())
    encoded = [m.encode(X, which) for which in ("h", "z", "upsampled")]
    if m.bottleneck.kind == "bern":
        encoded.append(m.encode(X, "bits"))
    return [*output[:-1], *output.posterior, *encoded, *m.state_dict().values()]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def through_torch(state, folder):
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def through_safetensors(state, folder):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, folder / "state.safetensors")
    return safetensors.load_file(folder / "state.safetensors")


each_format = pytest.mark.parametrize("through", [through_torch, through_safetensors])


# ---- weights -----------------------------------------------------------------------------------------------


@each_kind
@each_format
@pytest.mark.parametrize("symmetric", [False, True])
def test_state_dict_round_trip(kind, through, symmetric, tmp_path):
    saved = used(kind, symmetric=symmetric)
    loaded = model(kind, seed=9, symmetric=symmetric)
    assert not torch.equal(loaded.encode(X), saved.encode(X))
    loaded.load_state_dict(through(saved.state_dict(), tmp_path))
    assert_equal(outputs(loaded), outputs(saved))
    assert loaded.bottleneck.temperature.item() == saved.bottleneck.temperature.item()


@each_kind
@each_format
def test_loading_before_the_first_batch(kind, through, tmp_path):
    saved = used(kind)
    loaded = model(kind, seed=9, lazy=True)
    assert loaded.bottleneck.in_features is None
    parameters = list(loaded.parameters())
    loaded.load_state_dict(through(saved.state_dict(), tmp_path))
    assert_equal(outputs(loaded), outputs(saved))
    loaded(X, X_PRIME)
    assert all(a is b for a, b in zip(loaded.parameters(), parameters, strict=True))


@each_kind
def test_layers_loaded_before_the_first_batch_state_their_widths(kind):
    saved, loaded = used(kind), model(kind, lazy=True)
    loaded.load_state_dict(saved.state_dict())
    loaded(X, X_PRIME)
    for ours, theirs in ((loaded.bottleneck, saved.bottleneck), (loaded.head, saved.head)):
        assert repr(ours) == repr(theirs)


@each_kind
def test_a_lazily_built_model_saves_what_any_other_does(kind, tmp_path):
    saved = used(kind, lazy=True)
    loaded = model(kind, seed=9)
    loaded.load_state_dict(through_torch(saved.state_dict(), tmp_path))
    assert_equal(outputs(loaded), outputs(saved))


@each_format
def test_a_wrapped_simclr_model_round_trips(through, tmp_path):
    """Its parts are held once: safetensors refuses tensors that share memory."""

    def wrapped(seed):
        torch.manual_seed(seed)
        simclr = nn.Module()
        simclr.backbone, simclr.projection_head = OpenEncoder(), nn.Linear(WIDTH, 4)
        return StochConWrapper.from_simclr(simclr, dim=DIM)

    saved, loaded = wrapped(0), wrapped(9)
    saved(X, X_PRIME)
    loaded.load_state_dict(through(saved.state_dict(), tmp_path))
    assert_equal(outputs(loaded), outputs(saved))


def test_temperature_is_part_of_the_state():
    saved = model()
    saved.bottleneck.set_temperature(0.25)
    loaded = model()
    loaded.load_state_dict(saved.state_dict())
    assert loaded.bottleneck.temperature.item() == 0.25
    assert not torch.equal(outputs(loaded)[1], outputs(model())[1])  # v_prime


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("as the paper", r"Missing key\(s\) in state_dict: .*bottleneck\.location_norm\.running_mean"),
        ("mlp", r"Missing key\(s\) in state_dict: .*Unexpected key\(s\) .*bottleneck\.projector\.0"),
    ],
)
def test_a_state_of_other_layers_is_refused(kind, message, lazy):
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        model("bern", lazy=lazy).load_state_dict(used(kind).state_dict())


@pytest.mark.parametrize("saved", [{"dim": DIM + 1}, {"kind": "gauss"}], ids=str)
def test_a_state_of_other_widths_is_refused(saved):
    with pytest.raises(RuntimeError, match=r"size mismatch for bottleneck\.projector\.weight"):
        model().load_state_dict(used(**saved).state_dict())


def test_a_state_for_another_encoder_is_refused_at_the_first_batch():
    m, state = model(lazy=True), used().state_dict()
    weight = state["bottleneck.projector.weight"]
    m.load_state_dict({**state, "bottleneck.projector.weight": torch.ones(len(weight), WIDTH + 1)})
    with pytest.raises(ValueError, match=r"features must be 6 wide \(in_features\), got 5"):
        m(X, X_PRIME)


def test_a_state_of_another_latent_is_refused_at_the_first_batch():
    m = model("as the paper", lazy=True)
    m.load_state_dict(used("as the paper", dim=DIM + 1).state_dict())
    with pytest.raises(ValueError, match=r"projector must give 11 parameters per image .*got 12"):
        m(X, X_PRIME)


# ---- a run -------------------------------------------------------------------------------------------------


class Run:
    """A training run with all that a checkpoint has to hold."""

    def __init__(self, kind, seed, lazy):
        self.model = model(kind, seed=seed, lazy=lazy)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.loss, self.noise = InfoNCELoss(), generator(seed)
        self.schedule = None
        if self.model.bottleneck.kind == "bern":
            self.schedule = TemperatureSchedule(
                self.model.bottleneck, start=1.0, end=0.2, total_steps=5, shape="cosine"
            )

    def train(self, steps):
        for step in steps:
            x, x_prime = (torch.randn(N, 3, 8, 8, generator=generator(10 * step + i)) for i in range(2))
            self.optimizer.zero_grad()
            self.loss(*self.model(x, x_prime, generator=self.noise)[:2]).backward()
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()

    def state_dict(self):
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
        }
        return state if self.schedule is None else {**state, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


@each_kind
@pytest.mark.parametrize("lazy", [False, True])
def test_a_resumed_run_ends_at_the_same_weights(kind, lazy, tmp_path):
    run = Run(kind, seed=0, lazy=lazy)
    run.train(range(3))
    saved = through_torch(run.state_dict(), tmp_path)
    run.train(range(3, 6))
    resumed = Run(kind, seed=9, lazy=lazy)
    resumed.load_state_dict(saved)
    resumed.train(range(3, 6))
    assert_equal(resumed.model.state_dict().values(), run.model.state_dict().values())
    before = saved["model"]
    assert all(not torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    for ours, theirs in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert_equal(run.optimizer.state[ours].values(), resumed.optimizer.state[theirs].values())
    if run.schedule is not None:
        assert resumed.schedule.state_dict() == run.schedule.state_dict()
        assert run.model.bottleneck.temperature.item() == pytest.approx(0.2)


def test_a_schedule_loads_with_weights_only(tmp_path):
    run = Run("bern", seed=0, lazy=False)
    run.schedule.step()
    state = through_torch(run.schedule.state_dict(), tmp_path)
    other = Run("bern", seed=0, lazy=False)
    other.schedule.load_state_dict(state)
    assert other.schedule.last_step == 1
    assert other.model.bottleneck.temperature.item() == run.model.bottleneck.temperature.item() < 1.0
