"""A model as a scikit-learn transformer: the features of `encode`, and what scikit-learn does with estimators."""

import pickle
import sys

import joblib
import numpy as np
import pandas
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from test_evaluation import without_scikit_learn
from test_evaluation_encoding import small_model
from torch import nn

from stochastic_bottleneck import (
    Encoder,
    StochasticBottleneck,
    StochConLoss,
    StochConWrapper,
    evaluation,
    fit_bottleneck,
)
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import BottleneckTransformer, StochConTransformer

LABELS = np.arange(40) % 2
IMAGES = np.random.default_rng(0).random((40, 3, 8, 8), dtype=np.float32)
IMAGES[:, 0] += LABELS[:, None, None]


def pipeline(**options):
    return make_pipeline(StochConTransformer(small_model(), **options), LogisticRegression())


@pytest.mark.parametrize(
    ("kind", "representation"), [("bern", "z"), ("bern", "h"), ("bern", "upsampled"), ("gauss", "z")]
)
def test_features_are_those_of_the_model(kind, representation):
    model = small_model(kind)
    found = StochConTransformer(model, representation, batch_size=16).fit_transform(IMAGES)
    assert found == pytest.approx(model.encode(torch.from_numpy(IMAGES), representation).numpy(), abs=1e-5)


def test_bits_are_columns_of_0_and_1():
    model = small_model()
    found = StochConTransformer(model).fit_transform(IMAGES)
    assert found.dtype == np.uint8
    assert found.shape == (40, 20)
    assert np.array_equal(found, model.encode(torch.from_numpy(IMAGES), "z").numpy())
    assert 0 < found.mean() < 1


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.astype(np.float64),
        read_only,
        lambda x: x[:, :, ::-1][:, :, ::-1],
        lambda x: np.asfortranarray(x),
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: x.tolist(),
    ],
)
def test_images_of_every_kind_give_the_same(given):
    transformer = StochConTransformer(small_model(), "h")
    assert np.array_equal(transformer.transform(given(IMAGES)), transformer.transform(IMAGES))


def test_images_are_taken_in_the_models_precision():
    model = small_model().double()
    found = StochConTransformer(model, "h").transform(IMAGES)
    assert found == pytest.approx(model.encode(torch.from_numpy(IMAGES).double()).numpy(), rel=1e-5)


def names(count):
    return [f"stochcontransformer{i}" for i in range(count)]


@pytest.mark.parametrize(("representation", "width"), [("bits", 20), ("z", 20), ("h", 16), ("upsampled", 16)])
def test_columns_have_names(representation, width):
    transformer = StochConTransformer(small_model(), representation)
    assert transformer.get_feature_names_out().tolist() == names(width)
    assert transformer.fit_transform(IMAGES).shape == (40, width)
    assert transformer.get_feature_names_out().tolist() == names(width)


def test_columns_of_a_width_that_is_not_known_have_names_once_fitted():
    encoder = Encoder(nn.Sequential(nn.Conv2d(3, 16, 8), nn.Flatten()))
    bottleneck = StochasticBottleneck(dim=20, out_features=24)
    transformer = StochConTransformer(StochConWrapper(encoder, bottleneck=bottleneck, head=nn.Linear(24, 4)), "h")
    with pytest.raises(NotFittedError):
        transformer.get_feature_names_out()
    assert transformer.fit(IMAGES).get_feature_names_out().tolist() == names(16)
    transformer.set_params(representation="upsampled")
    assert transformer.get_feature_names_out().tolist() == names(24)
    assert transformer.transform(IMAGES).shape == (40, 24)


def test_a_compiled_model_gives_the_same():
    model = small_model()
    compiled = StochConTransformer(torch.compile(model, backend="eager"), "bits")
    assert np.array_equal(compiled.fit_transform(IMAGES), StochConTransformer(model, "bits").transform(IMAGES))
    assert compiled.get_feature_names_out().tolist() == names(20)


# ---- pandas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [np.asarray, torch.from_numpy])
def test_data_frames_have_the_values_and_names(given):
    transformer = StochConTransformer(small_model())
    plain = transformer.fit_transform(IMAGES)
    frame = transformer.set_output(transform="pandas").fit_transform(given(IMAGES))
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == names(20)
    assert frame.dtypes.eq("uint8").all()
    assert np.array_equal(frame.to_numpy(), plain)
    assert frame.index.tolist() == list(range(40))


# ---- pipelines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_a_search_chooses_the_representation(output):
    grid = {"stochcontransformer__representation": ["bits", "h"], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline().set_output(transform=output), grid, cv=2).fit(IMAGES, LABELS)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(IMAGES).shape == (40,)


def test_a_clone_has_weights_of_its_own_that_are_equal():
    original = pipeline(representation="h").fit(IMAGES, LABELS)
    copied = clone(original)
    ours, theirs = original[0].model, copied[0].model
    assert ours is not theirs
    assert np.array_equal(copied[0].transform(IMAGES), original[0].transform(IMAGES))
    assert np.array_equal(copied.fit(IMAGES, LABELS).predict_proba(IMAGES), original.predict_proba(IMAGES))
    with torch.no_grad():
        next(theirs.encoder.parameters()).zero_()
    assert not np.array_equal(copied[0].transform(IMAGES), original[0].transform(IMAGES))


def test_a_pipeline_survives_being_written(tmp_path):
    original = pipeline().fit(IMAGES, LABELS)
    joblib.dump(original, tmp_path / "pipeline.joblib")
    for copied in (joblib.load(tmp_path / "pipeline.joblib"), pickle.loads(pickle.dumps(original))):
        assert np.array_equal(copied.predict_proba(IMAGES), original.predict_proba(IMAGES))
        assert copied[0].get_feature_names_out().tolist() == original[0].get_feature_names_out().tolist()


@pytest.mark.parametrize(
    "check", ["check_get_params_invariance", "check_set_params", "check_no_attributes_set_in_init"]
)
def test_scikit_learn_finds_an_estimator(check):
    getattr(estimator_checks, check)("StochConTransformer", StochConTransformer(small_model()))


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "stochastic_bottleneck.evaluation.transformer")
    without_scikit_learn(monkeypatch)
    message = r'needs sklearn; install it with pip install "stochastic-bottleneck\[evaluation\]"'
    with pytest.raises(ModuleNotFoundError, match=message):
        evaluation.StochConTransformer  # noqa: B018


# ---- BottleneckTransformer -------------------------------------------------------------------------------------

VIEWS = np.random.default_rng(0).normal(size=(3, 40, 6)).astype(np.float32)
FIT = {"dim": 12, "epochs": 1, "batch_size": 20}


def test_a_fitted_bottleneck_gives_bits_bytes_and_floats():
    bottleneck = fit_bottleneck(VIEWS, **FIT)
    x = torch.from_numpy(VIEWS[1])
    expected = {"bits": bottleneck(x).z, "packed": pack_bits(bottleneck(x).z), "floats": bottleneck.posterior(x).logits}
    for output, features in expected.items():
        coder = BottleneckTransformer(output=output, **FIT).fit(VIEWS)
        with torch.autocast("cpu", torch.bfloat16):  # the caller's
            found = coder.transform(VIEWS[1])
        assert np.array_equal(found, features.detach().numpy())
        assert found.dtype == (np.float32 if output == "floats" else np.uint8)
        assert np.array_equal(coder.transform(VIEWS[[1, 0]]), found)
        assert len(coder.get_feature_names_out()) == found.shape[1]
    means = BottleneckTransformer("gauss", output="floats", **FIT).fit_transform(VIEWS)
    mean = fit_bottleneck(VIEWS, "gauss", **FIT)(torch.from_numpy(VIEWS[0])).z
    assert np.array_equal(means, mean.detach().numpy())
    with pytest.raises(ValueError, match=r"X must be finite, got nan or inf in 1 of 2 rows \(1\)"):
        coder.transform([VIEWS[0][0], np.full(6, np.nan)])
    with pytest.raises(ValueError, match=r"X must have shape .* stack the features of several views"):
        coder.fit(VIEWS[0])


def test_a_bottleneck_stands_in_a_pipeline_and_can_be_cloned():
    pipeline = make_pipeline(BottleneckTransformer(loss=StochConLoss(codes=0), **FIT), LogisticRegression())
    labels = np.arange(40) % 2
    assert np.array_equal(
        clone(pipeline).fit(VIEWS, labels).predict(VIEWS[2]), pipeline.fit(VIEWS, labels).predict(VIEWS[2])
    )
    with pytest.raises(NotFittedError):
        clone(pipeline[0]).transform(VIEWS[0])
