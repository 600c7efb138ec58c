"""What a search by bits costs and finds, beside the same search by features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.search import LABELS, Index, neighbours

FAISS = {"float": "IndexFlatIP", "flat": "IndexBinaryFlat", "hnsw": "IndexBinaryHNSW"}
MANY = 100_000_000  # images that the measured bytes are scaled to


def recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found. Shape: (Q, k) both."""
    return float((true[:, :, None] == found[:, None, :]).any(axis=2).mean())


def precision(found: NDArray[np.int64], labels: NDArray[np.int64], of_queries: NDArray[np.int64]) -> float:
    """Share of the neighbours that have the query's class. Shape: (Q, k), (N,), (Q,)."""
    return float(((labels[found] == of_queries[:, None]) & (found >= 0)).mean())


def searches_a_second(search: Callable[[], object], queries: int, rounds: int = 3) -> float:
    """Queries a second, of all of them at once: the median of some rounds, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - begin)
    return queries / statistics.median(seconds[1:])


def compare(
    index: Index,
    queries: dict[str, NDArray[Any]],
    labels: NDArray[np.int64],
    own: NDArray[np.int64] | None,
    counts: Sequence[int],
) -> list[dict[str, Any]]:
    """Each index's memory, speed, recall of the neighbours by h, and share of neighbours of the query's class.

    Args:
        index: all kinds of it.
        queries: "float": features at length one; "flat" and "hnsw": packed bits. Shape: (Q, F), (Q, B)
        labels: of the queries, as numbers of the index's classes; -1 for none. Shape: (Q,)
        own: as in `neighbours`.
        counts: numbers of neighbours to measure at.

    Returns:
        A row for each kind. Precision is over the queries whose class the index holds (beside the query itself), and
        None where there are none.
    """
    most, total = max(counts), len(index.names)
    sizes = np.bincount(index.labels[index.labels >= 0], minlength=1 + max(0, int(labels.max(initial=0))))
    possible = (labels >= 0) & (sizes[np.maximum(labels, 0)] > (own is not None))
    true = neighbours(index.by_kind["float"], queries["float"], most, own)[1]
    rows = []
    for kind in LABELS:
        searched = index.by_kind[kind]
        found = neighbours(searched, queries[kind], most, own)[1]
        saved = index.about["files"][f"{kind}.faiss"]["bytes"]
        an_image = index.about["bytes_an_image"]["h" if kind == "float" else "bits"]
        each = saved / total if kind == "hnsw" else an_image  # with the links of its graph
        rows.append(
            {
                "index": LABELS[kind],
                "faiss": FAISS[kind],
                "bytes_an_image": each,
                "index_bytes": saved,
                "bytes_of_100_million": round(MANY * each),
                "queries_per_second": searches_a_second(
                    lambda s=searched, q=queries[kind]: s.search(q, most), len(labels)
                ),
                "recall": {str(k): recall(found[:, :k], true[:, :k]) for k in counts},
                "precision": {
                    str(k): precision(found[possible, :k], index.labels, labels[possible])
                    if possible.any()
                    else None
                    for k in counts
                },
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Cells of a comparison, the header first; precision only where there are classes."""
    counts = list(rows[0]["recall"])
    classes = rows[0]["precision"][counts[0]] is not None
    header = ["index", "bytes an image", "index, bytes", "100 million, GB", "queries/s"]
    header += [f"recall@{k} %" for k in counts] + [f"precision@{k} %" for k in counts if classes]
    cells = [
        (
            row["index"],
            f"{row['bytes_an_image']:,.4g}"
            if row["bytes_an_image"] < 1000
            else f"{row['bytes_an_image']:,.0f}",
            f"{row['index_bytes']:,}",
            f"{row['bytes_of_100_million'] / 1e9:,.2f}",
            f"{row['queries_per_second']:,.0f}",
            *(f"{100 * row['recall'][k]:.1f}" for k in counts),
            *(f"{100 * row['precision'][k]:.1f}" for k in counts if classes),
        )
        for row in rows
    ]
    return [tuple(header), *cells]
