"""`OnlineKNN` under a real Trainer: the logged accuracy, unchanged training, and how it finds the encoder."""

import copy
import csv
import math

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stochastic_bottleneck import InfoNCELoss, StochConWrapper
from stochastic_bottleneck.callbacks import OnlineKNN
from stochastic_bottleneck.evaluation import knn_accuracy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:.*does not have many workers", "ignore:The number of training batches"
)
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(40) % 4
IMAGES = torch.randn(40, 3, 8, 8, generator=GENERATOR) + LABELS.view(-1, 1, 1, 1)
BATCHES = [(IMAGES[:25], LABELS[:25]), (IMAGES[25:], LABELS[25:])]
VIEWS = TensorDataset(IMAGES, IMAGES.flip(-1))


def backbone():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.projection_head = backbone(), nn.Linear(5, 4)

    def forward(self, x, x_prime):
        return tuple(self.projection_head(self.backbone(view)) for view in (x, x_prime))


class Module(lightning.LightningModule):
    def __init__(self, kind="stochcon"):
        super().__init__()
        torch.manual_seed(0)
        wrapped = {"stochcon": lambda: StochConWrapper(backbone(), dim=11, feature_dim=5), "simclr": SimCLR}
        self.model = wrapped[kind]()

    def training_step(self, batch, _):
        return InfoNCELoss()(*self.model(*batch)[:2])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Features(lightning.Callback):
    """The encoder's features of all images after each epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, module):
        encoder = module.model.encoder if isinstance(module.model, StochConWrapper) else module.model.backbone
        with torch.no_grad():
            self.epochs.append(copy.deepcopy(encoder).eval()(IMAGES))


def fit(module, *callbacks, epochs=3, **options):
    torch.manual_seed(1)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys(off, False) | options
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), **options)
    trainer.fit(module, DataLoader(VIEWS, batch_size=20, shuffle=True))
    return trainer


def expected(features, seed=0):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    queries, bank = order[:10], order[10:]
    return knn_accuracy(features[bank], LABELS[bank], features[queries], LABELS[queries], k=3)


@pytest.mark.parametrize("kind", ["stochcon", "simclr"])
def test_it_logs_the_accuracy_of_held_out_images(kind, tmp_path):
    knn, features = OnlineKNN(BATCHES, query_share=0.25, every_n_epochs=2, k=3), Features()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = fit(Module(kind), knn, features, epochs=5, logger=logger)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    logged = {int(row["epoch"]): float(row["knn"]) for row in rows}
    assert logged == pytest.approx({i: expected(features.epochs[i]) for i in (1, 3, 4)})  # and after the last
    assert knn.accuracy == pytest.approx(trainer.callback_metrics["knn"].item())
    assert 0.25 < knn.accuracy <= 1


def test_training_computes_the_same_with_and_without():
    shuffled = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16, shuffle=True)
    trained = [Module() for _ in range(2)]
    fit(trained[0], OnlineKNN(shuffled))
    fit(trained[1])
    for (name, a), b in zip(trained[0].state_dict().items(), trained[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(module.training for module in trained[0].modules())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_runs_in_the_trainers_precision(precision):
    dtypes = []
    module, knn = Module(), OnlineKNN(BATCHES, k=3)
    module.model.encoder.register_forward_hook(lambda m, _, h: dtypes.append((m.training, h.dtype)))
    fit(module, knn, epochs=1, precision=precision)
    assert {dtype for training, dtype in dtypes if not training} == {
        torch.float64 if precision == "64-true" else torch.bfloat16
    }
    assert 0 <= knn.accuracy <= 1


def test_the_encoder_is_the_one_that_was_named():
    module, other = Module("simclr"), backbone()
    module.other = other
    by_name, by_module = OnlineKNN(BATCHES, encoder="other"), OnlineKNN(BATCHES, encoder=other)
    assert by_name._find_encoder(module) is by_module._find_encoder(module) is other
    compiled = Module()
    compiled.model = torch.compile(compiled.model, backend="eager")
    assert OnlineKNN(BATCHES)._find_encoder(compiled) is compiled.model._orig_mod.encoder


def test_a_head_inside_the_encoder_stays_there():
    module = Module("simclr")
    module.model.backbone.append(module.model.projection_head)
    with pytest.raises(ValueError, match="encoder must be given for Module, got None and 0 models"):
        OnlineKNN(BATCHES)._find_encoder(module)
    assert module.model.backbone[-1] is module.model.projection_head


class Plain(Module):
    def __init__(self):
        super().__init__()
        self.model = backbone()


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Plain, {}, "encoder must be given for Plain, got None and 0 models with an encoder and a head"),
        (Module, {"batches": [(IMAGES, LABELS * 0)]}, "batches must hold images of at least two classes, got 1"),
        (Module, {"batches": [(IMAGES[:1], LABELS[:1])]}, "batches must hold images of at least two classes"),
        (Module, {"batches": [(IMAGES * math.nan, LABELS)]}, "features of batches must be finite, .* 40 of 40 rows"),
    ],
)
def test_what_does_not_fit_ends_the_run(module, options, message):
    with pytest.raises(ValueError, match=message):
        fit(module(), OnlineKNN(**{"batches": BATCHES, **options}))


class Rank(nn.Module):
    """What a trainer of two processes gives to the second."""

    is_global_zero, current_epoch, max_epochs = False, 0, 1

    def __init__(self, received):
        super().__init__()
        self.received, self.logged, self.strategy = received, {}, self

    def broadcast(self, _):
        return self.received

    def log(self, name, value, **_):
        self.logged[name] = value


def test_other_processes_get_the_number_or_the_failure_of_the_first():
    knn, rank = OnlineKNN(BATCHES), Rank(0.75)
    knn.on_train_epoch_end(rank, rank)
    assert rank.logged == {"knn": 0.75}
    failed = Rank("ValueError: batches is empty")
    with pytest.raises(RuntimeError, match=r"failed on rank 0 \(ValueError: batches is empty\)"):
        knn.on_train_epoch_end(failed, failed)
