"""Images to arrays: the same as the model's own `encode`, whatever they come in; and bits in numbers."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stochastic_bottleneck import StochConWrapper, codes
from stochastic_bottleneck.evaluation import bit_statistics, encode

IMAGES = torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(11) % 3


def small_model(kind="bern"):
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = StochConWrapper(encoder, kind=kind, dim=20, feature_dim=16)
    model(IMAGES, IMAGES.flip(-1))  # moves the running statistics
    return model


@pytest.mark.parametrize(
    ("kind", "representation"),
    [("bern", "h"), ("bern", "z"), ("bern", "bits"), ("bern", "upsampled"), ("gauss", "z"), ("gauss", "h")],
)
def test_features_are_those_of_the_model(kind, representation):
    model = small_model(kind)
    found = encode(model, IMAGES, representation, batch_size=4)
    expected = torch.cat([model.encode(part, representation) for part in IMAGES.split(4)])
    assert np.array_equal(found.features, expected.numpy())
    assert found.labels is None
    with torch.no_grad():
        posterior = model.eval().bottleneck.posterior(model.encoder(IMAGES))
    assert found.uncertainty == pytest.approx(posterior.entropy().numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("batches", "labelled"),
    [
        (DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), True),
        (DataLoader(TensorDataset(IMAGES), batch_size=4), False),
        (IMAGES.split(4), False),
        (
            [(IMAGES[:4], LABELS[:4], "names"), (IMAGES[:0], LABELS[:0], ""), (IMAGES[4:], LABELS[4:], "")],
            True,
        ),
        (((x, y) for x, y in [(IMAGES, LABELS)]), True),
    ],
)
def test_batches_of_every_kind_give_the_same(batches, labelled):
    model = small_model()
    found = encode(model, batches)
    assert found.features == pytest.approx(model.encode(IMAGES).numpy(), abs=1e-6)
    if labelled:
        assert np.array_equal(found.labels, LABELS)
    else:
        assert found.labels is None


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = small_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encode(model, IMAGES, "bits")
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_bar_changes_no_number(capsys):
    model = small_model()
    shown = encode(model, IMAGES, "z", batch_size=4, progress=True)
    assert np.array_equal(shown.features, encode(model, IMAGES, "z", batch_size=4).features)
    assert "encoding" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda: encode(nn.Flatten(), IMAGES), TypeError, "model must be a StochConWrapper, got Flatten"),
        (
            lambda: encode(small_model(), IMAGES, batch_size=0),
            ValueError,
            "batch_size must be at least 1, got 0",
        ),
        (lambda: encode(small_model(), []), ValueError, "images is empty"),
        (lambda: encode(small_model(), IMAGES[:0]), ValueError, "images is empty"),
        (
            lambda: encode(small_model("gauss"), IMAGES, "bits"),
            ValueError,
            'needs a bottleneck of kind "bern"',
        ),
        (
            lambda: encode(small_model(), [{"image": IMAGES}]),
            TypeError,
            "first in a tuple, got a batch of dict",
        ),
        (
            lambda: encode(small_model(), [(IMAGES, LABELS), IMAGES]),
            ValueError,
            "labels with every batch or with none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(work, error, message):
    with pytest.raises(error, match=message):
        work()


# ---- bits -----------------------------------------------------------------------------------------------------


def test_bit_statistics_are_those_of_codes_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    bits = (rng.random((500, 3)) < np.array([[0.1, 0.5, 0.9, 0.3]]).T[labels]).astype(int)
    found = bit_statistics(bits, labels)
    information = [mutual_info_score(bits[:, i], labels) / math.log(2) for i in range(3)]
    assert found.class_information == pytest.approx(np.mean(information))
    assert found.share_of_ones == pytest.approx(bits.mean())
    assert found.entropy == pytest.approx(np.mean([mutual_info_score(b, b) for b in bits.T]) / math.log(2))
    assert found.correlation == pytest.approx(np.abs(np.corrcoef(bits.T)[np.triu_indices(3, 1)]).mean())
    assert found.distinct == len({tuple(row) for row in bits}) / 500


def test_copies_of_one_bit_are_balanced_and_redundant():
    bit = torch.arange(8) % 2
    found = bit_statistics(bit[:, None].expand(8, 4))
    assert (found.share_of_ones, found.entropy, found.correlation) == (0.5, 1.0, pytest.approx(1.0))
    assert found.distinct == 2 / 8
    assert found.class_information is None


def test_packed_codes_are_no_bits():
    with pytest.raises(ValueError, match="unpack codes with unpack_bits"):
        bit_statistics(codes.pack_bits(np.ones((3, 16))))
