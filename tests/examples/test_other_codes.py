"""Codes by faiss: each against what defines it."""

import faiss
import numpy as np
import pytest
from other_codes import METHODS, other_codes

from stochastic_bottleneck.codes import unpack_bits

RANDOM = np.random.default_rng(0)
X = (RANDOM.standard_normal((400, 32)) @ RANDOM.standard_normal((32, 32)) + 3).astype(np.float32)
QUERIES = X[:20] + RANDOM.standard_normal((20, 32)).astype(np.float32)
CENTERED = X - X.mean(axis=0)


@pytest.mark.parametrize(("name", "bits"), [(name, 96 if name == "rabitq" else 16) for name in METHODS])
def test_codes_take_their_bytes_find_themselves_and_repeat_by_seed(name, bits):
    codec = METHODS[name](X, bits, 1)
    codes = codec.encode(X)
    assert (codes.dtype, codes.shape) == (np.uint8, (400, bits // 8))
    np.testing.assert_array_equal(codes, METHODS[name](X, bits, 1).encode(X))
    floats, queries = codec.decode(codes), codec.query(X)
    if codec.metric == "hamming":
        np.testing.assert_array_equal(floats, 2.0 * unpack_bits(codes, bits) - 1)
        np.testing.assert_array_equal(queries, codes)
        return
    squares = (floats**2).sum(1) if codec.metric == "euclidean" else 0
    own = (2 * queries @ floats.T - squares).argsort(axis=1)[:, ::-1] == np.arange(400)[:, None]
    assert own.argmax(axis=1).mean() < 20  # itself among the first of 400; 200 by chance


def test_signs_are_those_of_their_projections():
    _, _, directions = np.linalg.svd(CENTERED, full_matrices=False)
    ours = unpack_bits(METHODS["pca_sign"](X, 8).encode(X), 8)
    agreement = (ours == (CENTERED @ directions[:8].T > 0)).mean(axis=0)
    assert np.maximum(agreement, 1 - agreement).min() > 0.99  # components have no sign
    assert abs(unpack_bits(METHODS["random_sign"](X, 32).encode(X), 32).mean() - 0.5) < 0.1  # centered
    pca, itq = (2.0 * unpack_bits(METHODS[name](X, 16).encode(X), 16) - 1 for name in ("pca_sign", "itq"))
    losses = [np.linalg.lstsq(bits, CENTERED, rcond=None)[1].sum() for bits in (itq, pca)]
    assert losses[0] < losses[1]  # the learned rotation brings signs nearer to what they stand for


def test_product_quantization_takes_the_nearest_centroid():
    codec = METHODS["pq"](X, 16)
    codes = codec.encode(X)
    centroids = codec.decode(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 2, axis=1)).reshape(256, 2, 16)
    for group in range(2):
        distances = ((X[:, None, 16 * group : 16 * group + 16] - centroids[:, group]) ** 2).sum(-1)
        np.testing.assert_allclose(distances[np.arange(400), codes[:, group]], distances.min(axis=1), rtol=1e-4)


def test_rabitq_estimates_distances_as_faiss_does():
    codec = METHODS["rabitq"](X, 96)
    rotation, index = faiss.PCAMatrix(32, 32, 0, True), faiss.IndexRaBitQ(32)
    rotation.train(X)
    index.qb = 0  # float queries
    index.train(rotation.apply(X))
    index.add(rotation.apply(X))
    distances, rows = index.search(rotation.apply(QUERIES), 400)
    queries = codec.query(QUERIES)
    ours = (queries[:, :-1] ** 2).sum(1)[:, None] - queries @ codec.decode(codec.encode(X)).T
    estimated = np.take_along_axis(ours, rows, 1).clip(min=0)  # faiss reports no negative ones
    np.testing.assert_allclose(estimated, distances, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize(
    ("name", "bits", "words"),
    [("itq", 40, "at most the 32 features, got 40"), ("pq", 24, "24"), ("pq", 12, "12"), ("rabitq", 64, "RaBitQ's 64")],
)
def test_sizes_that_a_method_does_not_have_are_refused(name, bits, words):
    with pytest.raises(ValueError, match=words):
        METHODS[name](X, bits)


def test_methods_that_cannot_be_fitted_are_left_out(capsys):
    found = {name: (codes[1].shape, metric) for name, codes, metric in other_codes(X, QUERIES, 40)}
    assert found == {"random_sign": ((20, 40), "hamming"), "opq": ((20, 30), "cosine")}
    assert "itq is left out" in capsys.readouterr().out
