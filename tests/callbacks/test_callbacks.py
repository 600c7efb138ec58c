"""The Lightning callbacks: what is logged, how the temperature is annealed, and both of Lightning's packages."""

import copy
import csv
import importlib
import math
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper
from stochastic_bottleneck import callbacks as callbacks_package
from stochastic_bottleneck.callbacks import LatentMonitor, TemperatureAnnealing, latent_statistics
from stochastic_bottleneck.callbacks._base import LIGHTNING
from stochastic_bottleneck.callbacks.latent_monitor import _concatenated
from stochastic_bottleneck.posteriors import BernoulliPosterior, GaussianPosterior

N, DIM, STEPS, EVERY = 6, 11, 4, 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:.*does not have many workers", "ignore:.*smaller than the logging interval"
)
each_package = pytest.mark.parametrize("package", LIGHTNING)


def generator(seed):
    return torch.Generator().manual_seed(seed)


BATCHES = [torch.randn(2, N, 3, 8, 8, generator=generator(i)) for i in range(STEPS)]


def wrapper(kind="bern", **options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return StochConWrapper(encoder, kind=kind, dim=DIM, projection_dim=4, **options)


class LaplacePosterior(NamedTuple):
    """A kind of one's own, as in docs/extending.rst; a field that images share, and one that is no tensor."""

    mean: torch.Tensor
    log_scale: torch.Tensor
    temperature: torch.Tensor
    name: str = "laplace"

    def rsample(self, *, generator=None):
        u = torch.empty_like(self.mean).uniform_(-0.4, 0.4, generator=generator)
        return self.mean - self.log_scale.exp() * u.sign() * torch.log1p(-2 * u.abs())

    def mode(self):
        return self.mean

    def kl(self):
        scale, distance = self.log_scale.exp(), self.mean.abs()
        return (distance + scale * torch.exp(-distance / scale) - 1 - self.log_scale).sum(-1)

    def entropy(self):
        return (1 + math.log(2) + self.log_scale).sum(-1)


class SampledPosterior(NamedTuple):
    """The least that a bottleneck asks for."""

    mean: torch.Tensor

    def rsample(self, *, generator=None):
        return self.mean

    def mode(self):
        return self.mean


class LaplaceBottleneck(StochasticBottleneck):
    def posterior(self, features, opposing=None):
        return LaplacePosterior(*super().posterior(features, opposing), self.temperature.clone())


class SampledBottleneck(StochasticBottleneck):
    def posterior(self, features, opposing=None):
        return SampledPosterior(super().posterior(features, opposing).mean)


class PlainTemperatureBottleneck(StochasticBottleneck):
    def posterior(self, features, opposing=None):
        logits, temperature = super().posterior(features, opposing)
        return BernoulliPosterior(logits, temperature.item())


def make_module(package, model):
    """A LightningModule of that package which trains the model, and notes what it saw."""

    class Module(importlib.import_module(package).LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"model": model})
            self.posteriors, self.hooks = [], []

        def training_step(self, batch, _):
            self.hooks.append(len(model.bottleneck._forward_hooks))
            output = model(*batch[0])
            fields = (x.detach().clone() if torch.is_tensor(x) else x for x in output.posterior)
            self.posteriors.append(type(output.posterior)(*fields))
            return InfoNCELoss()(*output[:2])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def fit(package, module, folder, *callbacks):
    """Train, and give the rows that were logged, by step."""
    lightning = importlib.import_module(package)
    logger = importlib.import_module(f"{package}.loggers").CSVLogger(folder, name="", version="")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=logger,
        log_every_n_steps=EVERY,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(1)
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES))
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return {int(row["step"]): row for row in rows}


# ---- numbers -----------------------------------------------------------------------------------------------


def test_statistics_of_bits():
    logits = torch.randn(20, DIM, generator=generator(3))
    found = latent_statistics(BernoulliPosterior(logits, torch.tensor(0.25)))
    shares = (logits.numpy() > 0).mean(axis=0)
    entropy = -sum(np.where(p > 0, p * np.log2(np.maximum(p, 1e-9)), 0) for p in (shares, 1 - shares))
    p = torch.distributions.Bernoulli(logits=logits)
    fair = torch.distributions.Bernoulli(probs=torch.full_like(logits, 0.5))
    assert found == pytest.approx(
        {
            "kl": torch.distributions.kl_divergence(p, fair).sum(1).mean().item(),
            "entropy": p.entropy().sum(1).mean().item(),
            "ones_mean": shares.mean(),
            "ones_min": shares.min(),
            "ones_max": shares.max(),
            "bit_entropy": entropy.mean(),
            "temperature": 0.25,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("width", [DIM, 1])
def test_statistics_of_gaussians(width):
    mean, log_std = (torch.randn(20, n, generator=generator(n)) for n in (DIM, width))
    found = latent_statistics(GaussianPosterior(mean, log_std))
    q = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    variance = np.exp(2 * log_std.double().numpy())
    assert found == pytest.approx(
        {
            "kl": torch.distributions.kl_divergence(q, standard).sum(1).mean().item(),
            "entropy": q.entropy().sum(1).mean().item(),
            "variance_mean": variance.mean(),
            "variance_min": variance.min(),
            "variance_max": variance.max(),
        },
        rel=1e-5,
    )


def test_statistics_of_a_kind_of_ones_own_are_what_all_kinds_offer():
    mean, log_scale = torch.randn(2, 20, DIM, generator=generator(3))
    found = latent_statistics(LaplacePosterior(mean, log_scale, torch.tensor(1.0)))
    q = torch.distributions.Laplace(mean, log_scale.exp())
    standard = torch.distributions.Laplace(torch.zeros(()), torch.ones(()))
    assert found == pytest.approx(
        {
            "kl": torch.distributions.kl_divergence(q, standard).sum(1).mean().item(),
            "entropy": q.entropy().sum(1).mean().item(),
        },
        rel=1e-5,
    )
    assert latent_statistics(SampledPosterior(mean)) == {}


def test_posteriors_of_a_step_are_concatenated_along_the_images():
    """Fields that images share, tensors or not, are the last one's."""
    parts = [
        LaplacePosterior(*torch.randn(2, n, DIM, generator=generator(n)), torch.tensor(float(n)), f"of {n}")
        for n in (2, 5)
    ]
    joined = _concatenated(parts)
    assert isinstance(joined, LaplacePosterior)
    for field in ("mean", "log_scale"):
        a, b = (getattr(part, field) for part in parts)
        assert torch.equal(getattr(joined, field)[:2], a)
        assert torch.equal(getattr(joined, field)[2:], b)
    assert (joined.temperature.item(), joined.name) == (5.0, "of 5")
    weighted = sum(len(part.mean) * latent_statistics(part)["kl"] for part in parts) / 7
    assert latent_statistics(joined)["kl"] == pytest.approx(weighted, rel=1e-5)


def test_both_directions_at_once_are_more_images():
    logits = torch.randn(2, 20, DIM, generator=generator(3))
    both, flat = (latent_statistics(BernoulliPosterior(x)) for x in (logits, logits.flatten(0, 1)))
    assert both == pytest.approx(flat)


# ---- training ----------------------------------------------------------------------------------------------


@each_package
@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_logs_the_batch_on_logging_steps_alone(package, kind, tmp_path):
    module = make_module(package, wrapper(kind))
    rows = fit(package, module, tmp_path, LatentMonitor())
    assert module.hooks == [0, 1, 0, 1]
    assert not module.inner["model"].bottleneck._forward_hooks
    assert set(rows) == {1, 3}
    for step, row in rows.items():
        expected = {f"latent/{k}": v for k, v in latent_statistics(module.posteriors[step]).items()}
        assert {k for k in row if k.startswith("latent/")} == expected.keys()
        assert {k: float(row[k]) for k in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"kind": "gauss", "symmetric": True}])
def test_training_computes_the_same_with_and_without(options, tmp_path):
    trained = []
    for name, callbacks in (("with", (LatentMonitor(),)), ("without", ())):
        trained.append(make_module(LIGHTNING[0], wrapper(**options)))
        rows = fit(LIGHTNING[0], trained[-1], tmp_path / name, *callbacks)
        assert bool(rows) is (name == "with")
    states = [module.state_dict() for module in trained]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_both_directions_of_a_step_are_logged_together(tmp_path):
    module = make_module(LIGHTNING[0], wrapper(symmetric=True))
    rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    expected = latent_statistics(module.posteriors[1])
    assert float(rows[1]["latent/ones_mean"]) == pytest.approx(expected["ones_mean"])
    assert float(rows[1]["latent/kl"]) == pytest.approx(expected["kl"], rel=1e-5)


@pytest.mark.parametrize(
    ("bottleneck", "kind", "keys"),
    [
        (LaplaceBottleneck, "gauss", {"kl", "entropy"}),
        (
            PlainTemperatureBottleneck,
            "bern",
            {"kl", "entropy", "ones_mean", "ones_min", "ones_max", "bit_entropy", "temperature"},
        ),
    ],
)
def test_a_posterior_of_ones_own_is_logged(bottleneck, kind, keys, tmp_path):
    module = make_module(LIGHTNING[0], wrapper(bottleneck=bottleneck(kind, DIM)))
    rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    assert {key for key in rows[3] if key.startswith("latent/")} == {f"latent/{key}" for key in keys}
    for step, row in rows.items():
        expected = latent_statistics(module.posteriors[step])
        assert {key: float(row[f"latent/{key}"]) for key in keys} == pytest.approx(expected, rel=1e-5)


def test_a_posterior_with_nothing_to_log_is_told_once(tmp_path):
    module = make_module(LIGHTNING[0], wrapper(bottleneck=SampledBottleneck("gauss", DIM)))
    message = r"nothing for inner\.model\.bottleneck, whose posterior has neither kl\(\) nor entropy\(\)"
    with pytest.warns(UserWarning, match=message) as told:
        rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    assert sum("LatentMonitor" in str(warning.message) for warning in told) == 1
    assert not any("latent" in key for row in rows.values() for key in row)


def test_several_bottlenecks_are_logged_by_name(tmp_path):
    module = make_module(LIGHTNING[0], wrapper())
    module.inner["other"] = StochasticBottleneck("gauss", 3, in_features=4)
    with pytest.warns(UserWarning, match=r"nothing for inner\.other, whose forward was not called") as told:
        rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    assert sum("LatentMonitor" in str(warning.message) for warning in told) == 1
    assert "latent/inner.model.bottleneck/kl" in rows[3]
    assert not any("other" in key for key in rows[3])


def test_one_can_be_named(tmp_path):
    module = make_module(LIGHTNING[0], wrapper())
    module.inner["other"] = StochasticBottleneck("gauss", 3, in_features=4)
    rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor("inner.model.bottleneck"))
    assert "latent/kl" in rows[3]


def test_the_first_of_several_processes_logs():
    model, monitor = wrapper(), LatentMonitor()
    monitor.on_fit_start(None, model)
    for rank in (1, 0):
        trainer = SimpleNamespace(
            is_global_zero=rank == 0, _logger_connector=SimpleNamespace(should_update_logs=True)
        )
        monitor.on_train_batch_start(trainer, model, None, 0)
        assert len(model.bottleneck._forward_hooks) == (rank == 0)
    monitor.teardown(None, model, "fit")
    assert not model.bottleneck._forward_hooks


def test_an_error_in_training_leaves_no_hook(tmp_path):
    module = make_module(LIGHTNING[0], wrapper())

    bottleneck = module.inner["model"].bottleneck
    forward = bottleneck.upsampler.forward

    def fail(z):
        if bottleneck._forward_hooks:
            raise RuntimeError("broken step")
        return forward(z)

    bottleneck.upsampler.forward = fail
    with pytest.raises(RuntimeError, match="broken step"):
        fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    assert module.hooks == [0, 1]
    assert not bottleneck._forward_hooks


# ---- the class ---------------------------------------------------------------------------------------------


@pytest.fixture
def not_yet_imported(monkeypatch):
    """The callbacks are made anew, of the Lightning that is imported then."""
    for name in [name for name in sys.modules if name.startswith("stochastic_bottleneck.callbacks.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("not_yet_imported")
@pytest.mark.parametrize("imported", [LIGHTNING[:1], LIGHTNING[1:], LIGHTNING])
def test_are_classes_of_every_package_that_is_imported(imported, monkeypatch):
    bases = [importlib.import_module(name).Callback for name in LIGHTNING]
    assert bases[0] is not bases[1]
    for name in set(LIGHTNING) - set(imported):
        monkeypatch.delitem(sys.modules, name)
    for callback in (callbacks_package.LatentMonitor, callbacks_package.TemperatureAnnealing):
        for name, base in zip(LIGHTNING, bases, strict=True):
            assert issubclass(callback, base) is (name in imported)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse, of Lightning
@pytest.mark.usefixtures("not_yet_imported")
@each_package
def test_lightning_cli_takes_them_from_a_file(package, tmp_path, monkeypatch):
    """The file is the one that the page shows."""
    lightning, cli = importlib.import_module(package), importlib.import_module(f"{package}.cli")
    page = (Path(__file__).parents[2] / "docs" / "lightning.rst").read_text()
    block = re.search(r"\.\. code-block:: yaml\n\n((?:   .*\n)+)", page)[1]
    (tmp_path / "config.yaml").write_text(block)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = wrapper()

        def training_step(self, batch, _):
            return InfoNCELoss()(*self.model(*batch[0])[:2])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(BATCHES)

    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = [f"--trainer.{name}=false" for name in silent]
    run = cli.LightningCLI(
        Module,
        args=[
            "fit",
            f"--config={tmp_path / 'config.yaml'}",
            "--seed_everything=0",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=4",
            *options,
        ],
        save_config_callback=None,
    )
    names = [type(callback).__name__ for callback in run.trainer.callbacks]
    assert {"LatentMonitor", "TemperatureAnnealing"} <= set(names)
    assert run.model.model.bottleneck.temperature.item() == pytest.approx(0.25 ** (4 / 10_000))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_can_be_copied(copier):
    other = copier(LatentMonitor(["a", "b"]))
    assert type(other) is LatentMonitor
    assert other.bottlenecks == ("a", "b")
    assert copier(TemperatureAnnealing(0.5, 3, bottleneck="a")).state_key == "TemperatureAnnealing[a]"


@pytest.mark.usefixtures("not_yet_imported")
def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("lightning", "pytorch_lightning")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "lightning", None)
    message = r"stochastic_bottleneck\.callbacks needs lightning; .*stochastic-bottleneck\[lightning\]"
    for name in ("LatentMonitor", "TemperatureAnnealing"):
        with pytest.raises(ModuleNotFoundError, match=message):
            getattr(callbacks_package, name)
    assert callbacks_package.latent_statistics is latent_statistics


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "needs a StochasticBottleneck inside Linear, which has none; wrap its model"),
        ("a", "needs a StochasticBottleneck inside Linear"),
    ],
)
def test_a_module_without_a_bottleneck_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        LatentMonitor(names).on_fit_start(None, nn.Linear(2, 2))


def test_a_name_that_is_not_ones_is_refused():
    message = r"bottlenecks must name those of StochConWrapper, 'bottleneck', got 'encoder', 'x'"
    with pytest.raises(ValueError, match=message):
        LatentMonitor(["bottleneck", "encoder", "x"]).on_fit_start(None, wrapper())


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (3, TypeError),
        (True, TypeError),
        ([3], TypeError),
        ((n for n in "ab"), TypeError),
        ("", ValueError),
        ([], ValueError),
    ],
)
def test_names_of_another_type_are_refused(names, error):
    with pytest.raises(
        error, match=r"bottlenecks must be a name, such as .*, a list of names, or None for all, got"
    ):
        LatentMonitor(names)


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (None, TypeError, "posterior must be a posterior, .* got NoneType; pass output.posterior"),
        (torch.zeros(2, 3), TypeError, "posterior must be a posterior, .* got Tensor"),
        ((torch.zeros(2, 3),) * 3, TypeError, "posterior must be a posterior, .* got tuple"),
        (
            BernoulliPosterior(torch.zeros(3)),
            ValueError,
            r"posterior.logits must have shape \(N, D\) .* got \(3,\)",
        ),
        (
            BernoulliPosterior(torch.zeros(0, 3)),
            ValueError,
            r"posterior.logits .* at least one image, got \(0, 3\)",
        ),
        (GaussianPosterior([0.0], [0.0]), TypeError, "posterior.mean must be a tensor, got list"),
        (
            BernoulliPosterior(torch.ones(2, 3).int()),
            TypeError,
            "posterior.logits must be a floating point tensor",
        ),
    ],
)
def test_statistics_of_something_else_are_refused(posterior, error, message):
    with pytest.raises(error, match=message):
        latent_statistics(posterior)


# ---- annealing ---------------------------------------------------------------------------------------------


class Batches:
    """A loader that says which batch is next, so that Lightning resumes an epoch in its middle."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return STEPS

    def __iter__(self):
        self.next %= STEPS
        while self.next < STEPS:
            self.next += 1
            yield BATCHES[self.next - 1]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def anneal(package, way, folder, resumed=None):
    """Train for three epochs; gives the temperature of each batch and the weights at the end."""
    lightning = importlib.import_module(package)
    checkpoints = importlib.import_module(f"{package}.callbacks").ModelCheckpoint
    temperatures = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = wrapper()
            self.automatic_optimization = way != "two optimizers by hand"

        def training_step(self, views, batch_idx):
            temperatures.append(self.model.bottleneck.temperature.item())
            noise = generator(10 * self.current_epoch + batch_idx)
            loss = InfoNCELoss()(*self.model(*views, generator=noise)[:2])
            if not self.automatic_optimization:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def configure_optimizers(self):
            if self.automatic_optimization:
                return torch.optim.AdamW(self.parameters(), lr=0.1)
            return [
                torch.optim.AdamW(part.parameters(), lr=0.1) for part in (self.model.encoder, self.model.head)
            ]

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=2 if way == "accumulated" else 1,
        logger=False,
        callbacks=[
            TemperatureAnnealing(end=0.25, total_steps=9),
            checkpoints(folder, "{step}", every_n_train_steps=1, save_top_k=-1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    trainer.fit(module, Batches(), ckpt_path=resumed)
    return temperatures, module.state_dict()


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual", "ignore:Checkpoint directory")
@each_package
@pytest.mark.parametrize("way", ["each batch", "accumulated", "two optimizers by hand"])
def test_annealing_resumes_where_it_was(package, way, tmp_path):
    """From any checkpoint, in the middle of an epoch too."""
    temperatures, weights = anneal(package, way, tmp_path)
    a_batch = {"each batch": 1, "accumulated": 0.5, "two optimizers by hand": 2}[way]  # steps
    expected = [0.25 ** (min(math.floor(i * a_batch), 9) / 9) for i in range(3 * STEPS)]
    assert temperatures == pytest.approx(expected, rel=1e-6)
    for batches in (2, 4, 6):
        path = tmp_path / f"step={int(batches * a_batch)}.ckpt"
        again, resumed = anneal(package, way, tmp_path, path)
        assert again == temperatures[batches:]
        assert all(torch.equal(value, weights[name]) for name, value in resumed.items())


def module_of(**bottlenecks):
    return nn.ModuleDict(bottlenecks)


def bits(**options):
    return StochasticBottleneck("bern", 3, in_features=4, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"end": "0.5"}, TypeError, "end must be a finite number of at least 1e-06, got '0.5'"),
        ({"end": -1}, ValueError, "end must be a finite number of at least 1e-06, got -1"),
        ({"start": 0}, ValueError, "start must be a finite number of at least 1e-06, got 0"),
        ({"total_steps": 2.5}, ValueError, "total_steps must be a positive int, got 2.5"),
        ({"shape": "step"}, ValueError, 'shape must be "exponential", "cosine" or "linear", got .step.'),
        (
            {"bottleneck": 3},
            TypeError,
            'bottleneck must be a name, such as "model.bottleneck", or None, got 3',
        ),
    ],
)
def test_an_annealing_is_checked_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        TemperatureAnnealing(**{"end": 0.5, "total_steps": 4, **options})


def test_an_annealing_finds_its_bottleneck():
    gauss = StochasticBottleneck("gauss", 3, in_features=4)
    trainer = SimpleNamespace(global_step=1)
    for module, name in (
        (module_of(a=bits(), b=gauss), None),
        (module_of(a=bits(), b=bits()), "a"),
        (module_of(a=torch.compile(bits())), None),
    ):
        other = dict(module.named_children()).get("b")
        TemperatureAnnealing(0.25, 2, start=1.0, bottleneck=name).on_train_start(trainer, module)
        assert module["a"].temperature == 0.5
        assert other is None or other.temperature == 1
    for module, name, message in (
        (
            module_of(a=nn.Linear(2, 2)),
            None,
            "TemperatureAnnealing needs a StochasticBottleneck inside ModuleDict",
        ),
        (
            module_of(a=bits(), b=bits()),
            None,
            "must name the one of ModuleDict to anneal, 'a' or 'b', got None",
        ),
        (module_of(a=bits()), "b", "must name the one of ModuleDict to anneal, 'a', got 'b'"),
        (module_of(a=gauss), None, 'must be of kind "bern", got "gauss", which has no temperature'),
    ):
        with pytest.raises(ValueError, match=message):
            TemperatureAnnealing(0.25, 2, start=1.0, bottleneck=name).on_train_start(trainer, module)


def test_the_state_of_an_annealing_is_where_it_began():
    annealing, trainer = TemperatureAnnealing(0.25, 2), SimpleNamespace(global_step=0)
    assert annealing.state_dict() == {"start": None}
    annealing.on_train_start(trainer, module_of(a=bits(temperature=4.0)))
    state = annealing.state_dict()
    assert state == {"start": 4.0}
    for start, expected in ((None, 4.0), (2.0, 2.0)):  # a start that was given stays
        other = TemperatureAnnealing(0.25, 2, start=start)
        other.load_state_dict(state)
        assert other.state_dict() == {"start": expected}
    annealing.setup(trainer, None, "fit")  # of another training, which starts where its own bottleneck is
    annealing.on_train_start(trainer, module_of(a=bits(temperature=2.0)))
    assert annealing.state_dict() == {"start": 2.0}
    with pytest.raises(
        ValueError, match="start must be given: the run resumes at step 3, got a checkpoint without"
    ):
        TemperatureAnnealing(0.25, 2).on_train_start(SimpleNamespace(global_step=3), module_of(a=bits()))
    for bad, error in (
        ({}, TypeError),
        (None, TypeError),
        ({"start": math.nan}, ValueError),
        ({"start": "1"}, TypeError),
    ):
        with pytest.raises(error, match="state_dict"):
            TemperatureAnnealing(0.25, 2).load_state_dict(bad)
