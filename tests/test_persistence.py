"""Saving and loading: weights through torch and safetensors, before a first batch too, and a resumed run."""

import pytest
import torch
from saved_models import DIM, KINDS, X_PRIME, N, X, assert_equal, generator, model, outputs, used

from stochastic_bottleneck import InfoNCELoss, TemperatureSchedule

each_kind = pytest.mark.parametrize("kind", KINDS)


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
@pytest.mark.parametrize(("saved_lazy", "lazy"), [(False, False), (True, False), (False, True)])
def test_state_dict_round_trip(kind, through, saved_lazy, lazy, tmp_path):
    saved = used(kind, lazy=saved_lazy, symmetric=saved_lazy)
    loaded = model(kind, seed=9, lazy=lazy, symmetric=saved_lazy)  # lazy: before its first batch
    assert lazy or not torch.equal(loaded.encode(X), saved.encode(X))
    parameters = list(loaded.parameters())
    loaded.load_state_dict(through(saved.state_dict(), tmp_path))
    assert_equal(outputs(loaded), outputs(saved))
    loaded(X, X_PRIME)
    assert all(a is b for a, b in zip(loaded.parameters(), parameters, strict=True))
    assert (repr(loaded.bottleneck), repr(loaded.head)) == (repr(saved.bottleneck), repr(saved.head))


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


def test_a_state_of_another_latent_is_refused_at_the_first_batch():
    m = model("as the paper", lazy=True)
    m.load_state_dict(used("as the paper", dim=DIM + 1).state_dict())
    with pytest.raises(ValueError, match=r"projector must give 11 parameters .*got 12"):
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
