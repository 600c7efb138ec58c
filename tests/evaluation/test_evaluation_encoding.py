"""`encode` of images in tensors and loaders, against the model's own `encode`; `bit_statistics`."""

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
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
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


@pytest.mark.parametrize("names", [("h", "z", "upsampled", "bits"), ["bits", "h", "bits"], ("z",)])
def test_several_representations_come_from_one_pass(names):
    model, passes = small_model(), []
    expected = {name: encode(model, IMAGES, name, batch_size=4) for name in names}
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    found = encode(model, IMAGES, names, batch_size=4)
    assert len(passes) == 3
    assert list(found.features) == list(dict.fromkeys(names))
    for name in names:
        assert np.array_equal(found.features[name], expected[name].features)
        assert np.array_equal(found.uncertainty, expected[name].uncertainty)


def test_any_module_that_gives_features_is_encoded():
    model = small_model()
    plain = model.encoder.backbone.train()
    found = encode(plain, [(IMAGES, LABELS)])
    assert np.array_equal(found.features, model.encode(IMAGES).numpy())
    assert np.array_equal(found.labels, LABELS)
    assert found.uncertainty is None
    assert all(module.training for module in plain.modules())
    assert np.array_equal(encode(plain, IMAGES, ["h"]).features["h"], found.features)


@pytest.mark.parametrize(
    ("batches", "labelled"),
    [
        (DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), True),
        (DataLoader(TensorDataset(IMAGES), batch_size=4), False),
        (IMAGES.split(4), False),
        ([(IMAGES[:4], LABELS[:4], "names"), (IMAGES[:0], LABELS[:0], ""), (IMAGES[4:], LABELS[4:], "")], True),
        (((x, y) for x, y in [(IMAGES, LABELS)]), True),
    ],
)
def test_all_kinds_of_batches_give_the_same(batches, labelled):
    model = small_model()
    found = encode(model, batches)
    assert found.features == pytest.approx(model.encode(IMAGES).numpy(), abs=1e-6)
    if labelled:
        assert np.array_equal(found.labels, LABELS)
    else:
        assert found.labels is None


@pytest.mark.parametrize("representation", ["bits", "z", "h", "upsampled"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_error_counts_images_whose_features_are_not_finite(representation, value):
    images = IMAGES.clone()
    images[[3, 9], 0, 2, 2] = value
    with pytest.raises(ValueError, match=r"features of images must be finite, .* in 2 of 11 rows \(3, 9\)"):
        encode(small_model(), images, representation, batch_size=4)


@pytest.mark.parametrize("around", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_compiled_and_parallel_models_are_unwrapped(around):
    model = small_model()
    found, expected = encode(around(model), IMAGES, "bits"), encode(model, IMAGES, "bits")
    assert np.array_equal(found.features, expected.features)


@pytest.mark.parametrize("labels", [LABELS.tolist(), LABELS.numpy(), LABELS, [f"class {y}" for y in LABELS]])
def test_labels_are_returned_as_an_array(labels):
    assert encode(small_model(), [(IMAGES, labels)]).labels.tolist() == [*map(type(labels[0]), labels)]


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (LABELS[:3], r"\(3,\)"),
        (torch.eye(3)[LABELS], r"\(11, 3\)"),
        ({"class": LABELS}, r"\(\)"),
        (IMAGES.flip(-1), r"\(11, 3, 8, 8\)"),
    ],
)
def test_labels_that_are_not_one_per_image_are_refused(labels, shape):
    message = f"images must give one label per image, got labels of shape {shape} for 11 images"
    with pytest.raises(ValueError, match=message):
        encode(small_model(), [(IMAGES, labels)])


def test_a_progress_bar_changes_no_number(capsys):
    model = small_model()
    shown = encode(model, IMAGES, "z", batch_size=4, progress=True)
    assert np.array_equal(shown.features, encode(model, IMAGES, "z", batch_size=4).features)
    assert "encoding" in capsys.readouterr().out


V, T = ValueError, TypeError
REFUSED = [  # more of them: tests/bad_calls.py
    (nn.Flatten(), IMAGES, ("h", "bits"), V, r"must be \"h\" for a model without a latent, got \['h', 'bits'\]"),
    (nn.Identity(), IMAGES, "h", V, r"to features of shape \(N, F\), got shape \(11, 3"),
    ("gauss", IMAGES, "bits", V, 'needs a bottleneck of kind "bern"'),
    ("bern", IMAGES[0], "h", V, r"usually of shape \(N, C, H, W\), got \(3, 8, 8\); the model's error"),
    ("bern", [{"image": IMAGES}], "h", T, "first in a tuple, got a batch of dict"),
    ("bern", [(IMAGES, LABELS), IMAGES], "h", V, "labels with every batch or with none, got both"),
]


@pytest.mark.parametrize(("model", "images", "representation", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(model, images, representation, error, message):
    model = small_model(model) if model in ("bern", "gauss") else model
    with pytest.raises(error, match=message):
        encode(model, images, representation)


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
    spectrum = np.linalg.eigvalsh(np.corrcoef(bits.T))
    assert found.effective == pytest.approx(spectrum.sum() ** 2 / np.square(spectrum).sum())
    assert found.distinct == len({tuple(row) for row in bits}) / 500


def test_copies_of_one_bit_are_balanced_and_redundant():
    bit = torch.arange(8) % 2
    found = bit_statistics(bit[:, None].expand(8, 4))
    assert (found.share_of_ones, found.entropy, found.correlation) == (0.5, 1.0, pytest.approx(1.0))
    assert found.distinct == 2 / 8
    assert found.class_information is None


def test_packed_codes_are_refused_as_bits():
    with pytest.raises(ValueError, match="unpack codes with unpack_bits"):
        bit_statistics(codes.pack_bits(np.ones((3, 16))))
