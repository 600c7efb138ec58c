"""Search by binary codes, and how good the search is."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array, class_labels
from stochastic_bottleneck._checks import choice, integer
from stochastic_bottleneck.evaluation._pairs import MAX_VALUES, Pairs
from stochastic_bottleneck.evaluation._ties import (
    expected_average_precision,
    expected_hits,
    groups_by_distance,
    groups_by_score,
)

__all__ = [
    "RetrievalScores",
    "asymmetric_topk",
    "hamming_topk",
    "neighbour_recall",
    "rescore",
    "retrieval_scores",
]

Matrix = Tensor | NDArray[Any]
MatrixT = TypeVar("MatrixT", Tensor, NDArray[Any])

METRICS = ("hamming", "cosine", "euclidean", "dot", "asymmetric")


class RetrievalScores(NamedTuple):
    """Means over the queries.

    Args:
        map: mean average precision at r, between 0 and 1.
        precision: share of relevant items among the first k.
        recall: share of all relevant items that are among the first k.
    """

    map: float
    precision: float
    recall: float


def hamming_topk(
    queries: MatrixT, database: Matrix, k: int, *, device: torch.device | str | None = None
) -> tuple[MatrixT, MatrixT]:
    """Nearest codes by Hamming distance, nearest first; at equal distance the lower row is first.

    Memory is bounded: beside inputs and result it takes about 256 MB, whatever Q and N.

    Args:
        queries: packed codes, uint8. Shape: (Q, B)
        database: packed codes, uint8. Shape: (N, B)
        k: codes per query.
        device: to compute on; None for the database's, which is the CPU for an array.

    Returns:
        Distances in bits and rows of the database, int64, arrays or tensors as `queries`. Shape: (Q, k) each

    Raises:
        ValueError: for codes of different widths, k above N, or a device that is not available.
        TypeError: for codes that are not uint8.

    Example:
        >>> import numpy as np
        >>> distances, rows = hamming_topk(np.array([[7]], np.uint8), np.array([[0], [3], [6]], np.uint8), k=2)
        >>> distances, rows
        (array([[1, 1]]), array([[1, 2]]))
    """
    pairs = Pairs(queries, database, "hamming", device)
    k, count = _at_most(k, pairs.x), len(pairs.x)
    found = []
    for _, rows in pairs.queries(k):
        best = torch.empty(len(rows), 0, dtype=torch.int64, device=pairs.device)
        for first, block in pairs.database():
            # Distance and row as one number are without ties. Both fit: MAX_VALUES bounds distance times row.
            n = len(block)
            row = torch.arange(n, dtype=torch.int32, device=pairs.device)
            keys = pairs.distances(rows, block).int().mul_(n).add_(row)
            nearest = keys.topk(min(k, n), largest=False).values.long()
            best = torch.cat((best, nearest // n * count + nearest % n + first), dim=1)
            best = best.topk(min(k, best.shape[1]), largest=False).values
        found.append((best // count, best % count))
    return _like(queries, found)


def asymmetric_topk(
    queries: MatrixT, database: Matrix, k: int, *, dim: int | None = None, device: torch.device | str | None = None
) -> tuple[MatrixT, MatrixT]:
    """Codes with the highest inner product of float queries with their bits, read as -1 and 1.

    The query keeps how certain each of its bits is; the codes stay as small as they are. Memory is bounded as for
    `hamming_topk`.

    Args:
        queries: floats, such as the posterior's logits. Shape: (Q, D)
        database: packed codes, uint8. Shape: (N, ceil(D / 8))
        k: codes per query.
        dim: the leading bits to compare; None for all.
        device: to compute on; None for the database's, which is the CPU for an array.

    Returns:
        Inner products, float32, highest first, and rows of the database, int64, arrays or tensors as `queries`.
        Shape: (Q, k) each

    Raises:
        ValueError: for codes whose width does not fit the queries, queries that are not finite, k above N, dim above
            D, or a device that is not available.
        TypeError: for codes that are not uint8, or queries that are not numbers.

    Example:
        >>> import numpy as np
        >>> codes = np.packbits([[1, 1, 0], [1, 0, 1], [0, 0, 1]], axis=1)
        >>> scores, rows = asymmetric_topk(np.array([[3.0, -0.5, 1.0]]), codes, k=2)
        >>> scores, rows
        (array([[4.5, 1.5]], dtype=float32), array([[1, 0]]))

    Source:
        Gordo et al., Asymmetric distances for binary embeddings (TPAMI 2014), with the sign as the quantizer.
    """
    pairs = Pairs(queries, database, "asymmetric", device, dim)
    k = _at_most(k, pairs.x)
    found = []
    for _, rows in pairs.queries(k):
        best = torch.empty(len(rows), 0, dtype=torch.float32, device=pairs.device)
        row = best.long()
        for first, block in pairs.database():
            scores, index = pairs.products(rows, block).topk(min(k, len(block)))
            best, row = torch.cat((best, scores), dim=1), torch.cat((row, index + first), dim=1)
            best, index = best.topk(min(k, best.shape[1]))
            row = row.gather(1, index)
        found.append((best, row))
    return _like(queries, found)


def rescore(
    queries: MatrixT, candidates: Matrix, database: Matrix, k: int, *, device: torch.device | str | None = None
) -> tuple[MatrixT, MatrixT]:
    """Rank each query's candidates by their exact inner product with it.

    `hamming_topk` finds candidates fast; their float features, or the float query against their bits, rank them better.
    Memory is bounded as for `hamming_topk`.

    Args:
        queries: floats; normalise them, and the features of the database, for the cosine. Shape: (Q, D)
        candidates: rows of the database, int. Shape: (Q, C)
        database: float features, or packed codes as uint8, whose bits are read as -1 and 1. Shape: (N, D), or
            (N, ceil(D / 8))
        k: candidates to return.
        device: to compute on; None for the database's, which is the CPU for an array.

    Returns:
        Inner products, float32, highest first, and rows of the database, int64, arrays or tensors as `queries`; equal
        ones in the order of the candidates. Shape: (Q, k) each

    Raises:
        ValueError: for shapes that do not fit together, values that are not finite, candidates that are no rows of
            the database, k above C, or a device that is not available.
        TypeError: for candidates that are not integers, or others that are not numbers.

    Example:
        >>> import numpy as np
        >>> scores, rows = rescore(np.array([[3.0, 1.0]]), np.array([[0, 2]]), np.array([[1, 0], [5, 5], [1, 1]]), k=1)
        >>> scores, rows
        (array([[4.]], dtype=float32), array([[2]]))
    """
    packed = getattr(database, "dtype", None) in (torch.uint8, np.dtype(np.uint8))
    pairs = Pairs(queries, database, "asymmetric" if packed else "dot", device)
    rows = _rows(candidates, "candidates")
    if len(rows) != len(pairs.q):
        raise ValueError(f"candidates must hold one row per query, {len(pairs.q)}, got {len(rows)}")
    outside = rows[(rows < 0) | (rows >= len(pairs.x))]
    if len(outside):
        raise ValueError(
            f"candidates must be rows of database, 0 to {len(pairs.x) - 1}, got {outside[0]}; leave out places that a "
            "search has not filled"
        )
    k = integer("k", k, most=rows.shape[1], hint=f"candidates has {rows.shape[1]} per query")
    size, found = max(1, MAX_VALUES // (rows.shape[1] * pairs.width)), []
    for first in range(0, len(rows), size):
        chosen = torch.from_numpy(rows[first : first + size])
        index = chosen.flatten() if isinstance(pairs.x, Tensor) else chosen.flatten().numpy()
        features = pairs.database_rows(pairs.x[index]).view(*chosen.shape, -1)
        query = pairs.query_rows(pairs.q[first : first + size])
        scores = pairs.products(query[:, None], features)[:, 0]
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        found.append((scores[:, :k], chosen.to(pairs.device).gather(1, order[:, :k])))
    return _like(queries, found)


def neighbour_recall(found: Matrix, true: Matrix) -> float:
    """Share of the true neighbours that were found, such as recall@10 of the neighbours by float features.

    Args:
        found: rows of the database; -1, a place that a search has not filled, is no neighbour. Shape: (Q, C)
        true: rows of the true neighbours. Shape: (Q, k)

    Returns:
        Mean over queries, between 0 and 1.

    Raises:
        ValueError: for other shapes, or different numbers of queries.
        TypeError: for rows that are not integers.

    Example:
        >>> import numpy as np
        >>> neighbour_recall(np.array([[3, 1], [2, 0]]), np.array([[1, 3], [0, 1]]))
        0.75
    """
    wanted, rows = _rows(true, "true"), _rows(found, "found")
    if len(wanted) != len(rows):
        raise ValueError(f"found and true must hold one row per query, got {len(rows)} and {len(wanted)} rows")
    if wanted.min() < 0:
        raise ValueError(f"true must hold rows of the database, 0 or above, got {wanted.min()}; leave it out")
    # Rows of different queries differ.
    offset = np.arange(len(rows))[:, None] * (max(rows.max(), wanted.max()) + 2)
    return float(np.isin(wanted + offset, rows + offset).mean())


def retrieval_scores(
    queries: Matrix,
    query_labels: Matrix,
    database: Matrix,
    database_labels: Matrix,
    *,
    r: int = 1000,
    k: int = 10,
    metric: str = "hamming",
    device: torch.device | str | None = None,
) -> RetrievalScores:
    """Mean average precision, precision and recall of a search for items of the query's class.

    Average precision at r is the sum, over the relevant items among the first r, of the precision at their ranks,
    divided by the number of relevant items among the first r: the protocol of CIFAR-10 in the literature on hashing. It
    is 0 for a query that has none there.

    Hamming distances tie often, and another order of the database would give another score. So each score is the
    expected value over all orders of the items at equal distance, exactly, also where the cut at r or k parts them.
    Similarities of floats count as equal if they are in float32. Memory is bounded as for `hamming_topk`.

    Args:
        queries: packed codes for "hamming", floats for the other metrics. Shape: (Q, B) or (Q, D)
        query_labels: integer classes. Shape: (Q,)
        database: packed codes for "hamming" and "asymmetric", floats for the other metrics. Shape: (N, B) or (N, D)
        database_labels: integer classes. Shape: (N,)
        r: ranks that count for the mean average precision; all if above N.
        k: ranks that count for precision and recall.
        metric: "hamming"; "cosine", "euclidean" or "dot" of features, in float32; "asymmetric" for the inner product
            of float queries with bits, as in `asymmetric_topk`.
        device: to compute on; None for the database's, which is the CPU for an array.

    Returns:
        Mean average precision, precision and recall.

    Raises:
        ValueError: for arguments that do not fit together, values that are not finite, missing labels, k above N, an
            unknown metric, or a device that is not available.
        TypeError: for codes that are not uint8, labels that are not integers, or features that are not numbers.

    Example:
        >>> import numpy as np
        >>> codes = np.array([[0], [1], [3], [255]], np.uint8)
        >>> retrieval_scores(codes[:1], [0], codes[1:], [0, 1, 0], k=2)
        RetrievalScores(map=0.8333333333333333, precision=0.5, recall=0.5)

    Source:
        The protocol: HashNet (arXiv 1702.00758), section 4.1. `evaluation/_ties.py` derives the expectation over ties.
    """
    choice("metric", metric, METRICS)
    pairs = Pairs(queries, database, metric, device)
    q_labels = torch.from_numpy(class_labels(query_labels, len(pairs.q), "query_labels"))
    labels = torch.from_numpy(class_labels(database_labels, len(pairs.x), "database_labels"))
    r, k = min(integer("r", r), len(pairs.x)), _at_most(k, pairs.x)
    group, totals = groups_by_distance if metric == "hamming" else groups_by_score, np.zeros(3)
    for first, rows in pairs.queries(max(r, k)):
        wanted = q_labels[first : first + len(rows)].to(pairs.device)[:, None]
        blocks = ((x, labels[i : i + len(x)].to(pairs.device) == wanted) for i, x in pairs.database())
        sizes, relevant, total = (x.cpu() for x in group(pairs, rows, blocks, max(r, k)))
        hits = expected_hits(sizes, relevant, k)
        scores = (expected_average_precision(sizes, relevant, r), hits / k, hits / total.clamp_min(1))
        totals += [score.sum().item() for score in scores]
    return RetrievalScores(*(totals / len(pairs.q)).tolist())


def _rows(x: object, name: str) -> NDArray[np.int64]:
    """Rows of a database, some for each query."""
    y = array(x, name)
    if y.ndim != 2 or 0 in y.shape:
        raise ValueError(f"{name} must have shape (Q, k) with Q and k at least 1, got {y.shape}")
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, rows of the database, got {y.flat[0]} of dtype {y.dtype}")
    return y.astype(np.int64)


def _at_most(k: object, database: Any) -> int:
    return integer("k", k, most=len(database), hint=f"database has {len(database)} rows")


def _like(queries: MatrixT, found: list[tuple[Tensor, Tensor]]) -> tuple[MatrixT, MatrixT]:
    """Results of all blocks, as an array, or as a tensor on the device of the queries."""
    first, second = (torch.cat(parts) for parts in zip(*found, strict=True))
    if isinstance(queries, Tensor):
        return first.to(queries.device), second.to(queries.device)
    return first.cpu().numpy(), second.cpu().numpy()
