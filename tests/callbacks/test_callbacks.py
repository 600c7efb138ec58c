"""The Lightning callbacks: logged statistics, annealing of the temperature, and both Lightning packages."""

import csv
import importlib
import math
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from saved_models import generator
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
CALLBACKS = ("LatentMonitor", "OnlineKNN", "TemperatureAnnealing")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
each_package = pytest.mark.parametrize("package", LIGHTNING)
BATCHES = [torch.randn(2, N, 3, 8, 8, generator=generator(i)) for i in range(STEPS)]


def wrapper(kind="bern", **options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return StochConWrapper(encoder, kind=kind, dim=DIM, projection_dim=4, **options)


class LaplacePosterior(NamedTuple):
    """A custom posterior, as in docs/extending.rst, with a 0-d field and one that is not a tensor."""

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
    """The minimal posterior that a bottleneck needs."""

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
    """A LightningModule of a package that trains the model, and records its posteriors and hooks."""

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
    """Train; returns the logged rows by step."""
    lightning = importlib.import_module(package)
    logger = importlib.import_module(f"{package}.loggers").CSVLogger(folder, name="", version="")
    options = {"max_steps": STEPS, "log_every_n_steps": EVERY, "enable_checkpointing": False}
    trainer = lightning.Trainer(**QUIET, **options, logger=logger, callbacks=list(callbacks))
    torch.manual_seed(1)
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES))
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return {int(row["step"]): row for row in rows}


# ---- statistics -----------------------------------------------------------------------------------------------


def kl_and_entropy(q):
    """Means over images, by torch.distributions."""
    bits = isinstance(q, torch.distributions.Bernoulli)
    prior = type(q)(torch.tensor(0.5)) if bits else type(q)(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence(q, prior.expand(q.batch_shape))
    return {"kl": divergence.sum(1).mean().item(), "entropy": q.entropy().sum(1).mean().item()}


def test_statistics_of_bits():
    logits = torch.randn(20, DIM, generator=generator(3))
    found = latent_statistics(BernoulliPosterior(logits, torch.tensor(0.25)))
    shares = (logits.numpy() > 0).mean(axis=0)
    entropy = -sum(np.where(p > 0, p * np.log2(np.maximum(p, 1e-9)), 0) for p in (shares, 1 - shares))
    ones = {"ones_mean": shares.mean(), "ones_min": shares.min(), "ones_max": shares.max()}
    expected = kl_and_entropy(torch.distributions.Bernoulli(logits=logits)) | ones
    spectrum = np.linalg.eigvalsh(np.corrcoef(logits.numpy() > 0, rowvar=False))
    effective = spectrum.sum() ** 2 / np.square(spectrum).sum()
    expected |= {"bit_entropy": entropy.mean(), "effective_bits": effective, "temperature": 0.25}
    assert found == pytest.approx(expected, rel=1e-5)
    halves = latent_statistics(BernoulliPosterior(logits.view(2, 10, DIM), torch.tensor(0.25)))
    assert halves == pytest.approx(found)  # a leading dimension, as of symmetric outputs, means more images


@pytest.mark.parametrize("width", [DIM, 1])
def test_statistics_of_gaussians(width):
    mean, log_std = (torch.randn(20, n, generator=generator(n)) for n in (DIM, width))
    variance = np.exp(2 * log_std.double().numpy())
    expected = kl_and_entropy(torch.distributions.Normal(mean, log_std.exp().expand_as(mean)))
    for name in ("mean", "min", "max"):
        expected[f"variance_{name}"] = getattr(variance, name)()
    assert latent_statistics(GaussianPosterior(mean, log_std)) == pytest.approx(expected, rel=1e-5)


def test_statistics_of_a_custom_posterior_are_kl_and_entropy_if_it_has_them():
    mean, log_scale = torch.randn(2, 20, DIM, generator=generator(3))
    expected = kl_and_entropy(torch.distributions.Laplace(mean, log_scale.exp()))
    found = latent_statistics(LaplacePosterior(mean, log_scale, torch.tensor(1.0)))
    assert found == pytest.approx(expected, rel=1e-5)
    assert latent_statistics(SampledPosterior(mean)) == {}


def test_posteriors_of_a_step_are_concatenated_along_the_images():
    parts = [
        LaplacePosterior(*torch.randn(2, n, DIM, generator=generator(n)), torch.tensor(float(n)), f"of {n}")
        for n in (2, 5)
    ]
    joined = _concatenated(parts)
    assert isinstance(joined, LaplacePosterior)
    for field in ("mean", "log_scale"):
        assert torch.equal(getattr(joined, field), torch.cat([getattr(part, field) for part in parts]))
    assert (joined.temperature.item(), joined.name) == (5.0, "of 5")  # shared fields are the last's


# ---- training ----------------------------------------------------------------------------------------------


WRAPPERS = {
    "bern": dict,
    "gauss": lambda: {"kind": "gauss"},
    "two directions and two samples": lambda: {"symmetric": True, "samples": 2},
    "custom posterior": lambda: {"bottleneck": LaplaceBottleneck("gauss", DIM)},
    "temperature as a number": lambda: {"bottleneck": PlainTemperatureBottleneck("bern", DIM)},
}


@each_package
@pytest.mark.parametrize("name", WRAPPERS)
def test_logs_the_batch_on_logging_steps_only(package, name, tmp_path):
    module = make_module(package, wrapper(**WRAPPERS[name]()))
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


def test_a_posterior_without_statistics_warns_once(tmp_path):
    module = make_module(LIGHTNING[0], wrapper(bottleneck=SampledBottleneck("gauss", DIM)))
    message = r"nothing for inner\.model\.bottleneck, whose posterior has neither kl\(\) nor entropy\(\)"
    with pytest.warns(UserWarning, match=message) as warned:
        rows = fit(LIGHTNING[0], module, tmp_path, LatentMonitor())
    assert sum("LatentMonitor" in str(warning.message) for warning in warned) == 1
    assert not any("latent" in key for row in rows.values() for key in row)


def test_several_bottlenecks_are_logged_by_name(tmp_path):
    module = make_module(LIGHTNING[0], wrapper())
    module.inner["other"] = StochasticBottleneck("gauss", 3, in_features=4)
    with pytest.warns(UserWarning, match=r"nothing for inner\.other, whose forward was not called") as warned:
        rows = fit(LIGHTNING[0], module, tmp_path / "all", LatentMonitor())
    assert sum("LatentMonitor" in str(warning.message) for warning in warned) == 1
    assert "latent/inner.model.bottleneck/kl" in rows[3]
    assert not any("other" in key for key in rows[3])
    rows = fit(LIGHTNING[0], module, tmp_path / "one", LatentMonitor("inner.model.bottleneck"))
    assert "latent/kl" in rows[3]


def test_the_first_of_several_processes_logs():
    model, monitor = wrapper(), LatentMonitor()
    monitor.on_fit_start(None, model)
    for rank in (1, 0):
        connector = SimpleNamespace(should_update_logs=True)
        trainer = SimpleNamespace(is_global_zero=rank == 0, _logger_connector=connector)
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
    """The callbacks are imported again, with the Lightning packages that are imported then."""
    for name in [name for name in sys.modules if name.startswith("stochastic_bottleneck.callbacks.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("not_yet_imported")
@pytest.mark.parametrize("imported", [LIGHTNING[:1], LIGHTNING[1:], LIGHTNING])
def test_callbacks_inherit_from_every_imported_package(imported, monkeypatch):
    bases = [importlib.import_module(name).Callback for name in LIGHTNING]
    assert bases[0] is not bases[1]
    for name in set(LIGHTNING) - set(imported):
        monkeypatch.delitem(sys.modules, name)
    for callback in map(partial(getattr, callbacks_package), CALLBACKS):
        for name, base in zip(LIGHTNING, bases, strict=True):
            assert issubclass(callback, base) is (name in imported)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse, of Lightning
@pytest.mark.usefixtures("not_yet_imported")
@each_package
def test_lightning_cli_reads_them_from_the_file_in_the_docs(package, tmp_path, monkeypatch):
    cli = importlib.import_module(f"{package}.cli")
    page = (Path(__file__).parents[2] / "docs" / "lightning.rst").read_text()
    block = re.search(r"\.\. code-block:: yaml\n\n((?:   .*\n)+)", page)[1]
    (tmp_path / "config.yaml").write_text(block)

    module = type(make_module(package, wrapper()))
    module.train_dataloader = lambda self: torch.utils.data.DataLoader(BATCHES)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = [*(f"{name}=false" for name in off), "accelerator=cpu", "max_steps=4"]
    args = ["fit", f"--config={tmp_path / 'config.yaml'}", "--seed_everything=0"]
    args += [f"--trainer.{option}" for option in options]
    run = cli.LightningCLI(module, args=args, save_config_callback=None)
    names = [type(callback).__name__ for callback in run.trainer.callbacks]
    assert {"LatentMonitor", "TemperatureAnnealing"} <= set(names)
    assert run.model.inner["model"].bottleneck.temperature.item() == pytest.approx(0.25 ** (4 / 10_000))


@pytest.mark.usefixtures("not_yet_imported")
def test_without_lightning_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lightning", "pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "lightning", None)
    message = r"stochastic_bottleneck\.callbacks needs lightning; .*stochastic-bottleneck\[lightning\]"
    for name in CALLBACKS:
        with pytest.raises(ModuleNotFoundError, match=message):
            getattr(callbacks_package, name)
    assert callbacks_package.latent_statistics is latent_statistics


def test_bottlenecks_that_are_not_found_are_refused():
    with pytest.raises(ValueError, match="needs a StochasticBottleneck inside Linear, which has none; wrap its model"):
        LatentMonitor("a").on_fit_start(None, nn.Linear(2, 2))
    message = r"bottlenecks must name those of StochConWrapper, 'bottleneck', got 'encoder', 'x'"
    with pytest.raises(ValueError, match=message):
        LatentMonitor(["bottleneck", "encoder", "x"]).on_fit_start(None, wrapper())
    for names, error in (((n for n in "ab"), TypeError), ("", ValueError), ([], ValueError)):
        with pytest.raises(error, match=r"bottlenecks must be a name, .*, a list of names, or None for all, got"):
            LatentMonitor(names)


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "posterior must be a posterior, .* got Tensor; pass output.posterior"),
        ((torch.zeros(2, 3),) * 3, TypeError, "posterior must be a posterior, .* got tuple"),
        (BernoulliPosterior(torch.zeros(3)), ValueError, r"posterior.logits must have .* \(N, D\) .* got \(3,\)"),
        (BernoulliPosterior(torch.zeros(0, 3)), ValueError, r"posterior.logits .* one image, got \(0, 3\)"),
        (GaussianPosterior([0.0], [0.0]), TypeError, "posterior.mean must be a tensor, got list"),
        (BernoulliPosterior(torch.ones(2, 3).int()), TypeError, "posterior.logits must be a floating point tensor"),
    ],
)
def test_statistics_of_anything_else_are_refused(posterior, error, message):
    with pytest.raises(error, match=message):
        latent_statistics(posterior)


# ---- annealing ---------------------------------------------------------------------------------------------


class Batches:
    """A loader that saves its position, so that Lightning can resume within an epoch."""

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


def anneal(package, mode, folder, resumed=None):
    """Train for three epochs and one more; returns the temperature of each batch and the final weights."""
    lightning = importlib.import_module(package)
    checkpoints = importlib.import_module(f"{package}.callbacks").ModelCheckpoint
    temperatures = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = wrapper()
            self.automatic_optimization = mode != "two optimizers"

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
            return [torch.optim.AdamW(part.parameters(), lr=0.1) for part in (self.model.encoder, self.model.head)]

    annealing = TemperatureAnnealing(end=0.25, total_steps=9)
    saving = checkpoints(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"max_epochs": 3, "accumulate_grad_batches": 2 if mode == "accumulated" else 1, "logger": False}
    trainer = lightning.Trainer(**QUIET, **options, callbacks=[annealing, saving])
    module = Module()
    trainer.fit(module, Batches(), ckpt_path=resumed)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, Batches())  # goes on
    return temperatures, module.state_dict()


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual", "ignore:Checkpoint directory")
@each_package
@pytest.mark.parametrize("mode", ["each batch", "accumulated", "two optimizers"])
def test_a_resumed_run_anneals_as_an_uninterrupted_one(package, mode, tmp_path):
    """From any checkpoint, also within an epoch."""
    temperatures, weights = anneal(package, mode, tmp_path)
    steps_per_batch = {"each batch": 1, "accumulated": 0.5, "two optimizers": 2}[mode]
    expected = [0.25 ** (min(math.floor(i * steps_per_batch), 9) / 9) for i in range(4 * STEPS)]
    assert temperatures == pytest.approx(expected, rel=1e-6)
    for batches in (2, 4, 6):
        path = tmp_path / f"step={int(batches * steps_per_batch)}.ckpt"
        again, resumed = anneal(package, mode, tmp_path, path)
        assert again == temperatures[batches:]
        assert all(torch.equal(value, weights[name]) for name, value in resumed.items())


def modules(**bottlenecks):
    return nn.ModuleDict(bottlenecks)


def bits(**options):
    return StochasticBottleneck("bern", 3, in_features=4, **options)


def test_an_annealing_finds_its_bottleneck():
    gauss = StochasticBottleneck("gauss", 3, in_features=4)
    trainer = SimpleNamespace(global_step=1)
    for module, name in (
        (modules(a=bits(), b=gauss), None),
        (modules(a=bits(), b=bits()), "a"),
        (modules(a=torch.compile(bits())), None),
    ):
        other = dict(module.named_children()).get("b")
        TemperatureAnnealing(0.25, 2, start=1.0, bottleneck=name).on_train_start(trainer, module)
        assert module["a"].temperature == 0.5
        assert other is None or other.temperature == 1
    for module, name, message in (
        (modules(a=nn.Linear(2, 2)), None, "TemperatureAnnealing needs a StochasticBottleneck inside ModuleDict"),
        (modules(a=bits(), b=bits()), None, "must name the one of ModuleDict to anneal, 'a' or 'b', got None"),
        (modules(a=bits()), "b", "must name the one of ModuleDict to anneal, 'a', got 'b'"),
        (modules(a=gauss), None, 'must be of kind "bern", got "gauss", which has no temperature'),
    ):
        with pytest.raises(ValueError, match=message):
            TemperatureAnnealing(0.25, 2, start=1.0, bottleneck=name).on_train_start(trainer, module)
