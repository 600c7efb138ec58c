"""Retrieval, against all orders of ties, torchmetrics, faiss and numpy."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import retrieval_over_orders
from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision, RetrievalRecall

from stochastic_bottleneck import evaluation
from stochastic_bottleneck.codes import hamming_distance, unpack_bits
from stochastic_bottleneck.evaluation import asymmetric_topk, hamming_topk, neighbour_recall, rescore, retrieval_scores

RNG = np.random.default_rng(0)
QUERIES, CODES = (RNG.integers(0, 256, (n, 3), np.uint8) for n in (40, 300))
LOGITS, FEATURES = RNG.normal(size=(40, 21)), RNG.normal(size=(300, 21))
Y, LABELS = RNG.integers(0, 6, 40), RNG.integers(0, 5, 300)  # nothing is relevant for label 5


def signs(codes, dim=None):
    return 2.0 * unpack_bits(codes, 8 * codes.shape[-1])[:, :dim] - 1


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


SEARCHES = {  # queries, database, similarities
    "hamming": (QUERIES, CODES, -hamming_distance(QUERIES[:, None], CODES)),
    "asymmetric": (LOGITS, CODES, LOGITS @ signs(CODES, 21).T),
    "cosine": (LOGITS + 1, FEATURES + 1, unit(LOGITS + 1) @ unit(FEATURES + 1).T),
    "euclidean": (LOGITS + 9, FEATURES + 9, -((LOGITS[:, None] - FEATURES) ** 2).sum(-1)),
    "dot": (LOGITS, FEATURES, LOGITS @ FEATURES.T),
}
each_search = pytest.mark.parametrize("metric", SEARCHES)


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(evaluation._pairs, "MAX_PAIRS", 100)
        monkeypatch.setattr(evaluation._pairs, "MAX_VALUES", 170)
        monkeypatch.setattr(evaluation.retrieval, "MAX_VALUES", 3000)


# ---- scores ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([0, 1, 3, 8]), st.booleans()), min_size=1, max_size=6), st.data())
def test_scores_are_the_mean_over_all_orders_of_ties(items, data):
    codes, relevant = np.array([[code] for code, _ in items], np.uint8), [label for _, label in items]
    r, k = data.draw(st.integers(1, 7)), data.draw(st.integers(1, len(items)))
    expected = pytest.approx(retrieval_over_orders([code.bit_count() for code, _ in items], relevant, r, k), abs=1e-12)
    zero = np.zeros((1, 1), np.uint8)
    assert retrieval_scores(zero, [1], codes, relevant, r=r, k=k) == expected
    for metric in ("dot", "euclidean"):
        assert retrieval_scores(signs(zero), [1], signs(codes), relevant, r=r, k=k, metric=metric) == expected


def by_torchmetrics(scores, r, k):
    """It drops what scores 0 or less, and rounds to float32, so it is given ranks."""
    ranks = 1 + scores.argsort(axis=1).argsort(axis=1)
    query = np.arange(len(Y))[:, None].repeat(len(LABELS), 1)
    ranks, target, query = (torch.from_numpy(x).flatten() for x in (ranks, Y[:, None] == LABELS, query))
    metrics = RetrievalMAP(top_k=r), RetrievalPrecision(top_k=k), RetrievalRecall(top_k=k)
    return [metric(ranks.float(), target, indexes=query).item() for metric in metrics]


@pytest.mark.parametrize("r", [20, 1000])
@pytest.mark.parametrize("metric", list(SEARCHES)[1:])
@pytest.mark.usefixtures("blocks")
def test_scores_without_ties_are_torchmetrics(metric, r):
    queries, database, similarities = SEARCHES[metric]
    with torch.device("meta"):  # another default device than that of the data
        scores = retrieval_scores(queries, Y, database, LABELS, r=r, metric=metric)
    assert scores == pytest.approx(by_torchmetrics(similarities, r, 10), abs=1e-6)


@pytest.mark.parametrize("r", [7, 60])
@pytest.mark.usefixtures("blocks")
def test_scores_with_ties_are_the_mean_of_torchmetrics_over_random_orders(r):
    similarities, noise = SEARCHES["hamming"][2], np.random.default_rng(1)
    runs = [by_torchmetrics(similarities + noise.random(similarities.shape), r, 10) for _ in range(50)]
    error = np.std(runs, axis=0).max() / np.sqrt(len(runs))
    assert error < 0.003
    scores = retrieval_scores(QUERIES, Y, CODES, LABELS, r=r)
    assert scores == pytest.approx(np.mean(runs, axis=0), abs=4 * error)


def test_a_neighbour_counts_for_its_own_query_only():
    found = np.array([[0, 9, -1], [1, 2, -1]])
    assert neighbour_recall(found, np.array([[9, 0], [1, 5]])) == 0.75
    assert neighbour_recall(found, np.array([[1, 2], [0, 9]])) == 0


# ---- search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.usefixtures("blocks")
def test_codes_are_found_by_distance_and_then_by_row(k):
    distances, rows = hamming_topk(QUERIES, CODES, k)
    index = faiss.IndexBinaryFlat(24)
    index.add(CODES)
    np.testing.assert_array_equal(distances, index.search(QUERIES, k)[0])
    np.testing.assert_array_equal(rows, (-SEARCHES["hamming"][2]).argsort(axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize("dim", [None, 8])
@pytest.mark.usefixtures("blocks")
def test_asymmetric_search_is_the_product_with_signs(dim):
    similarities = LOGITS[:, :dim] @ signs(CODES, dim or 21).T
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        scores, rows = asymmetric_topk(LOGITS, CODES, 10, dim=dim)
    np.testing.assert_allclose(scores, -np.sort(-similarities, axis=1)[:, :10], rtol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(similarities, rows, axis=1), rtol=1e-5)
    assert all(len(set(row)) == 10 for row in rows)


@pytest.mark.parametrize("metric", ["dot", "asymmetric"])
@pytest.mark.usefixtures("blocks")
def test_rescored_candidates_are_the_best_of_them(metric):
    queries, database, similarities = SEARCHES[metric]
    candidates = hamming_topk(QUERIES, CODES, 50)[1]
    scores, rows = rescore(queries, candidates, database, 5)
    exact = np.take_along_axis(similarities, candidates, axis=1)
    np.testing.assert_array_equal(rows, np.take_along_axis(candidates, (-exact).argsort(axis=1)[:, :5], axis=1))
    np.testing.assert_allclose(scores, np.take_along_axis(similarities, rows, axis=1), rtol=1e-5)
    tied = rescore(0 * queries, candidates, database, 5)[1]  # equal ones stay in their order
    np.testing.assert_array_equal(tied, candidates[:, :5])


# ---- inputs ------------------------------------------------------------------------------------------------


@each_search
def test_files_and_tensors_give_the_same_in_their_own_kind(metric, tmp_path):
    for name, x in zip(("queries", "database"), SEARCHES[metric][:2], strict=True):
        np.save(tmp_path / f"{name}.npy", x.astype(np.float16) if x.dtype.kind == "f" else x)
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("queries", "database")]
    tensors = [torch.from_numpy(np.array(x)) for x in files]
    scores = retrieval_scores(tensors[0], torch.from_numpy(Y), tensors[1], LABELS.tolist(), metric=metric)
    assert retrieval_scores(files[0], Y, files[1], LABELS, metric=metric) == scores
    if search := {"asymmetric": asymmetric_topk, "hamming": hamming_topk}.get(metric):
        for x, y in zip(search(*files, 3), search(*tensors, 3), strict=True):
            assert isinstance(x, np.ndarray)
            assert torch.equal(torch.from_numpy(x), y)


def test_impossible_searches_are_refused():
    bad = FEATURES.copy()
    bad[[3, 200], 5] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"database must be finite, got nan or inf in 2 of 300 rows \(3, 200\)"):
        retrieval_scores(LOGITS, Y, bad, LABELS, metric="cosine")
    with pytest.raises(ValueError, match=r"k must be .* at most 300, got 301; database has 300 rows"):
        hamming_topk(QUERIES, CODES, 301)
    with pytest.raises(ValueError, match="candidates must be rows of database, 0 to 299, got 300"):
        rescore(LOGITS, np.full((40, 3), 300), FEATURES, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_search
def test_a_gpu_finds_what_the_cpu_finds(metric):
    data = SEARCHES[metric][0], Y, SEARCHES[metric][1], LABELS
    expected = retrieval_scores(*data, r=50, metric=metric)
    assert retrieval_scores(*data, r=50, metric=metric, device="cuda") == pytest.approx(expected, abs=1e-5)
    found = hamming_topk(torch.from_numpy(QUERIES), torch.from_numpy(CODES).cuda(), 20)
    for x, y in zip(found, hamming_topk(QUERIES, CODES, 20), strict=True):
        np.testing.assert_array_equal(x, y)
