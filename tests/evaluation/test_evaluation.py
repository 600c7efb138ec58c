"""Linear probe, nearest neighbours and forest curve, against scikit-learn and slow code."""

import sys
from collections import Counter

import numpy as np
import pandas
import pytest
import torch
from sklearn import ensemble, linear_model, model_selection, neighbors, pipeline, preprocessing

from stochastic_bottleneck.evaluation import ForestCurve, ProbeResult, forest_curve, knn_accuracy, linear_probe
from stochastic_bottleneck.evaluation._logistic import DeviceLogisticRegression

CLASSES = 3


def dataset(seed=0, n=90, m=60, width=8, noise=2.0):
    """Overlapping blobs, so that scores lie between chance and 1: train and test features and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, width))
    labels = rng.integers(0, CLASSES, n + m)
    features = (centres[labels] + noise * rng.normal(size=(n + m, width))).astype(np.float32)
    return features[:n], labels[:n], features[n:], labels[n:]


def bits(seed=0, n=90, m=60, width=64):
    """Bits that each carry a little, and different, information about the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n + m)
    odds = 0.5 + 0.4 * rng.uniform(-1, 1, (CLASSES, width))
    values = (rng.random((n + m, width)) < odds[labels]).astype(np.float32)
    return values[:n], labels[:n], values[n:], labels[n:]


def macro_f1(truth, predicted):
    """Mean over classes of 2 TP / (2 TP + FP + FN)."""
    pairs, scores = Counter(zip(truth.tolist(), predicted.tolist(), strict=True)), []
    for c in {*truth.tolist(), *predicted.tolist()}:
        wrong = sum(n for (t, p), n in pairs.items() if (t == c) != (p == c))
        scores.append(2 * pairs[c, c] / (2 * pairs[c, c] + wrong))
    return sum(scores) / len(scores)


EVALUATIONS = {  # with options that make them fast
    "linear_probe": (linear_probe, {"regularisations": (0.1,)}),
    "knn_accuracy": (knn_accuracy, {"k": 5}),
    "forest_curve": (forest_curve, {"counts": (2,), "trees": 5, "jobs": 1}),
}
each_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


def evaluate(name, *data, **options):
    function, fast = EVALUATIONS[name]
    return function(*data, **{**fast, **options})


# ---- linear probe ------------------------------------------------------------------------------------------


def logistic_regression(c):
    return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(C=c, max_iter=200))


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_a_probe_of_one_strength_is_logistic_regression(c):
    x, y, x_test, y_test = dataset()
    predicted = logistic_regression(c).fit(x, y).predict(x_test)
    result = linear_probe(x, y, x_test, y_test, regularisations=(c,))
    assert isinstance(result, ProbeResult)
    assert result.accuracy == pytest.approx((predicted == y_test).mean())
    assert result.f1 == pytest.approx(macro_f1(y_test, predicted))
    assert result.regularisation == c
    assert 1 / CLASSES < result.accuracy < 1


def choose(x, y, strengths, share, seed):
    """The rule of the docstring: from strong to weak until the validation accuracy falls."""
    x = preprocessing.StandardScaler().fit_transform(x)
    x_fit, x_held, y_fit, y_held = model_selection.train_test_split(
        x, y, test_size=share, random_state=seed, stratify=y
    )
    scores = [
        linear_model.LogisticRegression(C=c, max_iter=200).fit(x_fit, y_fit).score(x_held, y_held)
        for c in sorted(strengths)
    ]
    falls = [i for i in range(1, len(scores)) if scores[i] < scores[i - 1]]
    return sorted(strengths)[falls[0] - 1 if falls else -1]


def test_the_strength_is_chosen_on_the_validation_split():
    strengths, chosen = (1.0, 1e-4, 1e-2, 1e-1, 1e-3), set()
    for seed in range(4):
        data = dataset(seed, n=60, noise=4.0)
        for share in (0.2, 0.5):
            result = linear_probe(*data, regularisations=strengths, validation_share=share, seed=seed)
            expected = choose(*data[:2], strengths, share, seed)
            assert result.regularisation == expected
            refitted = linear_probe(*data, regularisations=(expected,))  # on the whole training set
            assert result == refitted
            chosen.add(expected)
    assert len(chosen) > 2


def test_the_probe_does_not_use_the_test_set():
    x, y, x_test, y_test = dataset(noise=4.0)
    order = np.random.default_rng(1).permutation(len(y_test))
    result = linear_probe(x, y, x_test, y_test)
    assert linear_probe(x, y, x_test[order], y_test[order]) == result
    shuffled = linear_probe(x, y, x_test, y_test[order])
    other = linear_probe(x, y, 100 + 10 * x_test, y_test)  # would move the scaler
    assert shuffled.regularisation == other.regularisation == result.regularisation
    assert shuffled.accuracy != result.accuracy
    # The prediction for an image does not depend on the other test images.
    alone = [linear_probe(x, y, x_test[i : i + 1], y_test[i : i + 1]).accuracy for i in range(10)]
    assert np.mean(alone) == linear_probe(x, y, x_test[:10], y_test[:10]).accuracy


def test_a_probe_stopped_early_does_not_warn():
    assert linear_probe(*dataset(), regularisations=(100.0,), max_iter=1).accuracy > 0


# ---- nearest neighbours ------------------------------------------------------------------------------------


def assert_predicts(data, predicted, **options):
    """Accuracy is 1 for the expected labels, and 0 for others."""
    x, y, x_test, _ = data
    assert knn_accuracy(x, y, x_test, predicted, **options) == 1.0
    assert knn_accuracy(x, y, x_test, (predicted + 1) % CLASSES, **options) == 0.0


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("k", [1, 7, 20, 90])
def test_cosine_neighbours_are_scikit_learns(k, temperature):
    data = dataset()

    def weights(distance):  # proportional to exp(similarity / temperature)
        return np.exp(-distance.astype(np.float64) / temperature)

    model = neighbors.KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    predicted = model.fit(*data[:2]).predict(data[2])
    assert len(set(predicted)) > 1
    assert_predicts(data, predicted, k=k, temperature=temperature)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_hamming_neighbours_are_scikit_learns(k):
    x, y, x_test, y_test = bits()
    distances = np.sort((x_test[:, None] != x[None]).sum(-1), axis=1)
    clear = distances[:, k - 1] < distances[:, k]  # ties may be broken either way
    assert clear.sum() >= 10
    model = neighbors.KNeighborsClassifier(k, metric="hamming", algorithm="brute").fit(x.astype(bool), y)
    predicted = model.predict(x_test[clear].astype(bool))
    assert_predicts((x, y, x_test[clear], y_test[clear]), predicted, k=k, metric="hamming")


def test_neighbours_of_more_images_than_one_chunk():
    x, y, x_test, y_test = dataset(m=2100)
    whole = knn_accuracy(x, y, x_test, y_test, k=5)
    chunks = [knn_accuracy(x, y, x_test[i : i + 300], y_test[i : i + 300], k=5) for i in range(0, 2100, 300)]
    assert whole == pytest.approx(np.mean(chunks))


def test_labels_need_not_be_consecutive():
    x, y, x_test, y_test = dataset()
    names = np.array([40, -3, 7])
    assert knn_accuracy(x, names[y], x_test, names[y_test]) == knn_accuracy(x, y, x_test, y_test)


def test_neighbours_are_found_on_the_given_device():
    assert knn_accuracy(*dataset(), device="cpu") == knn_accuracy(*dataset())
    with pytest.raises(RuntimeError, match=r"meta tensor|unsupported"):  # it computes nothing
        knn_accuracy(*dataset(), device="meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["cosine", "hamming"])
def test_neighbours_on_a_gpu_are_those_on_the_cpu(metric):
    data = bits(width=257)
    k = 1 if metric == "cosine" else 90  # so that ties do not matter
    assert knn_accuracy(*data, k=k, metric=metric, device="cuda") == knn_accuracy(*data, k=k, metric=metric)


def test_neighbours_need_no_scikit_learn(monkeypatch):
    without_scikit_learn(monkeypatch)
    assert knn_accuracy(*dataset()) > 1 / CLASSES


# ---- forest against the number of bits ---------------------------------------------------------------------


def test_the_curve_is_scikit_learns_forest_on_the_best_bits():
    x, y, x_test, y_test = bits()
    curve = forest_curve(x, y, x_test, y_test, counts=(1, 4, 16), trees=20, seed=3, jobs=1)
    assert isinstance(curve, ForestCurve)
    forest = ensemble.RandomForestClassifier(20, random_state=3)
    importances = forest.fit(x, y).feature_importances_
    assert sorted(curve.ranking) == list(range(64))
    assert (np.diff(importances[list(curve.ranking)]) <= 0).all()
    assert curve.counts == (1, 4, 16, 64)
    for count, f1 in zip(curve.counts[:-1], curve.f1, strict=False):
        best = list(curve.ranking[:count])
        predicted = forest.fit(x[:, best], y).predict(x_test[:, best])
        assert f1 == pytest.approx(macro_f1(y_test, predicted))
    assert curve.f1[-1] == pytest.approx(macro_f1(y_test, forest.fit(x, y).predict(x_test)))
    assert len(set(curve.f1)) > 1


def test_the_ranking_does_not_use_the_test_set():
    x, y, x_test, y_test = bits()
    curve = evaluate("forest_curve", x, y, x_test, y_test)
    other = evaluate("forest_curve", x, y, 1 - x_test, (y_test + 1) % CLASSES)
    assert other.ranking == curve.ranking
    assert other.f1 != curve.f1
    assert evaluate("forest_curve", 1 - x, y[::-1], x_test, y_test).ranking != curve.ranking


@pytest.mark.parametrize(("counts", "expected"), [((2, 1, 2), (1, 2, 8)), ((3, 8, 9, 1000), (3, 8)), ((), (8,))])
def test_counts_are_sorted_unique_and_end_with_all(counts, expected):
    curve = evaluate("forest_curve", *bits(width=8), counts=counts)
    assert curve.counts == expected
    assert len(curve.f1) == len(expected)


def test_forests_depend_on_the_seed():
    first, again, other = (evaluate("forest_curve", *bits(), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.ranking != other.ranking


# ---- inputs ------------------------------------------------------------------------------------------------

AS_TENSORS = {
    "tensors": torch.from_numpy,
    "tensors with a gradient": lambda x: (
        torch.from_numpy(x).requires_grad_() if x.dtype == np.float32 else torch.from_numpy(x)
    ),
    "float64": lambda x: torch.from_numpy(x).double() if x.dtype == np.float32 else x,
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16() if x.dtype == np.float32 else x,
    "integers": lambda x: torch.from_numpy(x).byte() if x.dtype == np.float32 else x.astype(np.uint8),
    "booleans": lambda x: x.astype(bool) if x.dtype == np.float32 else x,
    "lists": lambda x: x.tolist(),
    "pandas": lambda x: pandas.DataFrame(x) if x.ndim == 2 else pandas.Series(x, dtype="Int64"),
}


@each_evaluation
@pytest.mark.parametrize("kind", AS_TENSORS)
def test_tensors_arrays_lists_and_frames_give_the_same(name, kind):
    data = bits()  # 0 and 1, exact in every dtype
    assert evaluate(name, *map(AS_TENSORS[kind], data)) == evaluate(name, *data)


@each_evaluation
def test_inputs_are_not_changed(name):
    data = bits()
    copies = [x.copy() for x in data]
    evaluate(name, *data)
    assert all(np.array_equal(a, b) for a, b in zip(data, copies, strict=True))


def with_missing(labels, value, kind=np.array):
    labels = labels.tolist()
    labels[4::40] = [value] * len(labels[4::40])
    return kind(labels)


V, T = ValueError, TypeError
LABELS = [
    (lambda y: torch.tensor(with_missing(y, np.nan)), V, "got 3 of 90 missing"),
    (lambda y: with_missing(y, None), V, "got 3 of 90 missing"),
    (lambda y: with_missing(y, pandas.NA, pandas.Series), V, "got 3 of 90 missing"),
    (lambda y: pandas.Series(with_missing(y, None, list), dtype="Int64"), V, "3 of 90 missing"),
    (lambda y: np.ma.masked_equal(y, y[0]), V, "must have no masked values, got [0-9]+ of them"),
    (lambda y: y.astype(float), T, "must be integers, .* got [012].0 in ndarray of dtype float64"),
    (lambda y: with_missing(y, "cat", lambda x: np.array(x, object)), T, "got .cat. in .* of dtype object"),
    (lambda y: np.eye(CLASSES)[y], V, r"got \(90, 3\); for one-hot rows take argmax"),
]


@each_evaluation
@pytest.mark.parametrize(("kind", "error", "message"), LABELS)
def test_labels_that_are_missing_or_not_integers_are_refused(name, kind, error, message):
    x, y, x_test, y_test = bits()
    with pytest.raises(error, match=f"train_labels {message}" if "must" in message else message):
        evaluate(name, x, kind(y), x_test, y_test)
    with pytest.raises(error, match="test_labels"):
        evaluate(name, x, y, x, kind(y))


X, Y = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
DATA = [
    ((X, Y[:3], X, Y), r"train_labels must have shape \(4,\), one per image, got \(3,\)"),
    ((X, Y, X * np.float32(np.nan), Y), r"test_features must be .* nan or inf in 4 of 4 rows \(0, 1, 2, 3\)"),
    ((np.float64(1e300) * X, Y, X, Y), "train_features must be finite"),
    ((X, Y, np.full((4, 3), 2, np.uint8), Y), r"test_features must .* up to 2, .* packed codes; unpack them with"),
]


@each_evaluation
@pytest.mark.parametrize(("data", "message"), DATA)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_data_that_does_not_fit_is_refused(name, data, message, kind):
    with pytest.raises(ValueError, match=message):
        evaluate(name, *map(kind, data))


OPTIONS = [  # more of them: tests/bad_calls.py
    ("knn_accuracy", {"k": 1, "metric": "hamming"}, V, 'metric="hamming" needs features that are 0 or 1'),
    ("knn_accuracy", {"k": 1, "device": "cuda:99"}, V, "device must be available, .* got 'cuda:99'"),
    ("linear_probe", {"regularisations": (0.1, 1.0)}, V, "the 2 classes, .*got 4 images, 2 in the smallest"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), OPTIONS)
def test_bad_options_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(name, X / 2, Y, X / 2, Y, **options)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, pandas.Series])
def test_options_may_be_numbers_of_any_type(kind):
    data = dataset()
    probe = linear_probe(*data, regularisations=kind([0.5, 0.25]), seed=np.int64(1))
    assert probe == linear_probe(*data, regularisations=(0.5, 0.25), seed=1)
    curve = evaluate("forest_curve", *bits(), counts=kind([2, 1]))
    assert curve == evaluate("forest_curve", *bits(), counts=(1, 2))
    assert knn_accuracy(*data, k=np.int32(3), temperature=np.float32(0.5)) == knn_accuracy(*data, k=3, temperature=0.5)


def without_scikit_learn(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)


@pytest.mark.parametrize("name", ["linear_probe", "forest_curve"])
def test_without_scikit_learn_the_error_names_the_extra(name, monkeypatch):
    without_scikit_learn(monkeypatch)
    message = r'needs sklearn; install it with pip install "stochastic-bottleneck\[evaluation\]"'
    with pytest.raises(ModuleNotFoundError, match=message):
        evaluate(name, *dataset())


# ---- logistic regression on a device -----------------------------------------------------------------------

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def clusters(classes, n=400, width=24, noise=2.0, seed=0):
    """Standardised features around one centre per class, and labels that do not start at 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, 2 * n)
    features = (centres[labels] + noise * rng.normal(size=(2 * n, width))).astype(np.float32)
    features = preprocessing.StandardScaler().fit_transform(features)
    return features[:n], 5 + labels[:n], features[n:], 5 + labels[n:]


def objective(weights, features, labels, c):
    """scikit-learn's objective in float64: penalty plus C times the sum of cross-entropies."""
    logits = features.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return (weights[:, :-1] ** 2).sum() / 2 - c * log_p[np.arange(len(labels)), labels - 5].sum()


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_it_finds_scikit_learns_minimum(device, c):
    x, y, x_test, _ = clusters(4)
    theirs = linear_model.LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(x.astype(np.float64), y)
    ours = DeviceLogisticRegression(1000, device).set_params(C=c).fit(x, y)
    best = objective(np.c_[theirs.coef_, theirs.intercept_], x, y, c)
    assert objective(ours.weights.double().cpu().numpy(), x, y, c) == pytest.approx(best, rel=1e-4)
    agree = np.mean(ours.predict(x_test) == theirs.predict(x_test))
    assert agree >= 0.99
    assert set(ours.predict(x_test)) <= set(y)


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_two_classes_have_scikit_learns_penalty(device, c):
    x, y, _, _ = clusters(2)
    theirs = linear_model.LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(x.astype(np.float64), y)
    weights = DeviceLogisticRegression(1000, device).set_params(C=c).fit(x, y).weights.double().cpu().numpy()
    difference = weights[1] - weights[0]
    np.testing.assert_allclose(difference[:-1], theirs.coef_[0], atol=0.02 * np.abs(theirs.coef_).max())


def test_max_iter_limits_the_iterations(device):
    x, y, _, _ = clusters(4)
    few, many = (DeviceLogisticRegression(n, device).set_params(C=10.0).fit(x, y).weights for n in (1, 200))
    few, many = (objective(w.double().cpu().numpy(), x, y, 10.0) for w in (few, many))
    assert few > 1.05 * many


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_on_a_device_scores_as_scikit_learns(device, classes):
    data = clusters(classes, n=1000)
    ours, theirs = linear_probe(*data, device=device), linear_probe(*data)
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.01)
    assert ours.f1 == pytest.approx(theirs.f1, abs=0.01)
    assert theirs.accuracy > 1.5 / classes
    again = linear_probe(*data, device=device)
    assert again == ours
