"""`fit_bottleneck`: a latent on the features of a frozen encoder."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stochastic_bottleneck import StochasticBottleneck, StochConLoss, StochConWrapper, fit_bottleneck
from stochastic_bottleneck._replay import seeded
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import knn_accuracy
from stochastic_bottleneck.functional import fast_precision

ITEMS, F, CLASSES = 240, 12, 6
LABELS = np.arange(ITEMS) % CLASSES
SMALL = {"dim": 8, "epochs": 2, "batch_size": 40, "hidden_dim": 16}


def features(count=4, seed=0):
    """Views of items around a few centers, with larger noise in some features. Shape: (count, ITEMS, F)."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, F, generator=torch.Generator().manual_seed(0))[LABELS]
    noise = torch.randn(count, ITEMS, F, generator=random) * torch.linspace(0.5, 4, F)
    return (20 * (centers + noise) + 100).half().float()


def equal(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize(("kind", "metric"), [("bern", "hamming"), ("gauss", "cosine")])
def test_the_latent_brings_items_of_a_class_together_without_labels(kind, metric):
    views, (database, queries) = features(), features(2, seed=1)
    bottleneck = fit_bottleneck(views, kind, dim=16, epochs=30, batch_size=40, hidden_dim=32)
    assert isinstance(bottleneck, StochasticBottleneck)
    assert not bottleneck.training
    raw = knn_accuracy(database, LABELS, queries, LABELS, k=5)
    z, z_queries = (bottleneck(x).z.detach() for x in (database, queries))
    assert knn_accuracy(z, LABELS, z_queries, LABELS, k=5, metric=metric) > raw + 0.1


def test_arrays_tensors_memory_maps_and_pairs_of_arrays_give_the_same(tmp_path):
    views = features(2)
    expected = fit_bottleneck(views, **SMALL)
    stored = np.lib.format.open_memmap(tmp_path / "views.npy", "w+", np.float16, tuple(views.shape))
    stored[:] = views.numpy()
    read_only = np.load(tmp_path / "views.npy", mmap_mode="r")
    big_endian, backwards = views.numpy().astype(">f4"), views.numpy()[:, ::-1].copy()[:, ::-1]
    for same in (read_only, views.half(), views.double(), tuple(views), [*views.numpy()], big_endian, backwards):
        assert equal(fit_bottleneck(same, **SMALL), expected)
    rounded = views[0].bfloat16()
    expected = fit_bottleneck((rounded.float(), views[1]), **SMALL)
    assert equal(fit_bottleneck((rounded, views[1].numpy()), **SMALL), expected)


class Loader:
    """Batches of pairs, without a length; fails at the start of an epoch."""

    def __init__(self, views, fails_at=None):
        self.pairs, self.epoch, self.fails_at = list(zip(*(x.split(40) for x in views), strict=True)), 0, fails_at

    def __iter__(self):
        self.epoch += 1
        if self.epoch == self.fails_at:
            raise KeyboardInterrupt
        return iter(self.pairs)


def test_pairs_may_come_from_a_loader():
    views = features(2)
    shuffled = DataLoader(TensorDataset(*views), 40, shuffle=True)
    assert equal(fit_bottleneck(shuffled, **SMALL), fit_bottleneck(shuffled, **SMALL))
    streamed = DataLoader(type("Stream", (IterableDataset,), {"__iter__": lambda _: zip(*views, strict=True)})(), 40)
    for without_length in (Loader(views), streamed):
        assert fit_bottleneck(without_length, **SMALL)(views[0]).z.shape == (ITEMS, 8)


def test_seeds_give_everything_and_generators_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU that is not used was seeded"))
    state = torch.random.get_rng_state()
    first, again, other = (fit_bottleneck(features(), seed=seed, **SMALL) for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_devices_are_seeded_and_restored_too(monkeypatch):
    calls = []
    for name in ("manual_seed", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.xpu, name, lambda *values, name=name: calls.append((name, *values)))
    device = torch.device("xpu")
    with seeded(3, device) as seed_again:
        seed_again(4)
    assert calls == [("get_rng_state", device), ("manual_seed", 3), ("manual_seed", 4), ("set_rng_state", None, device)]


@pytest.mark.parametrize(("kind", "projector"), [("bern", "mlp"), ("bern", "linear"), ("gauss", "mlp")])
def test_the_standardization_is_folded_in(kind, projector):
    views, scale, shift = features(), torch.rand(F) + 0.5, torch.randn(F)
    options = dict(SMALL, epochs=1, batch_size=ITEMS, neighbours=0, precision="32-true", projector=projector)
    options["lr"] = 1e-9  # AdamW would amplify rounding
    a, b = (fit_bottleneck(x, kind, **options)(x[0]) for x in (views, views * scale + shift))
    torch.testing.assert_close(a.posterior[0], b.posterior[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.features * scale + shift, b.features, atol=1e-3, rtol=1e-4)


def test_bfloat16_is_the_default_only_where_it_is_fast(monkeypatch):
    other, options = {"bf16-mixed": "32-true", "32-true": "bf16-mixed"}, dict(SMALL, epochs=1, neighbours=0)
    for found, precision in (({"amx_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true"), ({}, "32-true")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert fast_precision("cpu") == precision
        default = fit_bottleneck(features(2), **options, device="cpu")
        assert equal(default, fit_bottleneck(features(2), **options, device="cpu", precision=precision))
        assert not equal(default, fit_bottleneck(features(2), **options, device="cpu", precision=other[precision]))


def test_a_stopped_training_continues_to_the_same_bottleneck(tmp_path):
    views, options, path = features(2), SMALL | {"epochs": 4, "dim": np.int64(8)}, tmp_path / "fit.pt"
    expected = fit_bottleneck(Loader(views), **options)
    with pytest.raises(KeyboardInterrupt):  # the first pass is for the statistics
        fit_bottleneck(Loader(views, fails_at=4), checkpoint=path, **options)
    assert equal(fit_bottleneck(Loader(views), checkpoint=path, **options), expected)
    assert equal(fit_bottleneck(Loader(views), checkpoint=str(path), **options), expected)  # nothing is left to do
    for changed in ({"lr": 0.1}, {"loss": StochConLoss(codes=0)}, {"dim": 9}, {"seed": 1}):
        with pytest.raises(ValueError, match=rf"of another training \({next(iter(changed))}="):
            fit_bottleneck(Loader(views), checkpoint=path, **options | changed)
    with pytest.raises(ValueError, match="other features"):
        fit_bottleneck(Loader(views + 1), checkpoint=path, **options)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="checkpoint must be a file that fit_bottleneck saved"):
        fit_bottleneck(Loader(views), checkpoint=path, **options)


def test_what_is_not_finite_is_named():
    views = features()
    views[:, 7, 3] = float("nan")
    with pytest.raises(ValueError, match="views must be finite, got nan or inf in the features of items 7"):
        fit_bottleneck(views, **SMALL)
    with pytest.raises(ValueError, match=r"lr must be small enough .* in epoch 1 with lr=1e\+30"):
        fit_bottleneck(features(), lr=1e30, **SMALL)


@pytest.mark.parametrize("normalization", ["batch", "whiten"])
@pytest.mark.parametrize("views", [features() * 3 + 5, features(2)[:, :40]], ids=["many", "one batch"])
def test_statistics_are_those_of_the_features_however_short_the_training(views, normalization):
    fitted = fit_bottleneck(views, **SMALL | {"epochs": 1, "neighbours": 0}, normalization=normalization, shrinkage=0)
    items = torch.arange(views.shape[1])
    logits = fitted.posterior(views[items % len(views), items]).logits
    torch.testing.assert_close(logits.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    # 1e-5 is added to the variances.
    torch.testing.assert_close(logits.var(0).sqrt(), torch.full((8,), 4.0), atol=1e-3, rtol=3e-3)


def test_too_few_items_to_whiten_are_refused_before_the_training():
    options = SMALL | {"dim": 40, "epochs": 10**9}
    with pytest.raises(ValueError, match=r"shrinkage must be above 0 for at most dim=40 items, .* and 40 items"):
        fit_bottleneck(features(2)[:, :40], **options, normalization="whiten", shrinkage=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_callers_modes_change_nothing(precision):
    options, views, scale = SMALL | {"precision": precision}, features(), torch.ones(F, requires_grad=True)
    assert equal(fit_bottleneck(views * scale, **options), expected := fit_bottleneck(views, **options))
    assert scale.grad is None
    for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta")):
        with mode:
            assert equal(fit_bottleneck(views.clone(), **options, device="cpu"), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert fit_bottleneck(views, **options)(views[0]).features.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_several_samples_or_none_train_too(kind):
    views = features()
    fitted = [fit_bottleneck(views, kind, samples=samples, **SMALL) for samples in (0, 1, 3)]
    assert not equal(fitted[0], fitted[1])
    assert not equal(fitted[1], fitted[2])


def test_a_constant_feature_does_no_harm():
    views = features()
    views[..., 2] = 7.0
    assert fit_bottleneck(views, **SMALL)(views[0]).features.isfinite().all()


def test_the_bottleneck_stands_behind_its_encoder():
    images = torch.rand(8, 3, 2, 2)
    bottleneck = fit_bottleneck(features(), **SMALL)
    model = StochConWrapper(nn.Flatten(), bottleneck=bottleneck, feature_dim=F).freeze_encoder()
    codes = pack_bits(bottleneck(images.flatten(1)).z)
    assert torch.equal(model.encode(images, "bits"), codes)
