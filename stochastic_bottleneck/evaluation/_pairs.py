"""Similarities of all pairs of a query and an item of a database, in blocks so that temporaries stay small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stochastic_bottleneck._arrays import array
from stochastic_bottleneck._checks import device_of, integer
from stochastic_bottleneck.codes import _check_codes, unpack_bits
from stochastic_bottleneck.evaluation._inputs import check_finite_rows

MAX_PAIRS = 2**22
"""Query-item pairs per block; their temporaries take about 100 MB."""
MAX_VALUES = 2**24
"""Numbers of the database per block, in float32."""


class Pairs:
    """Checked queries and database, in blocks of rows whose inner products are the similarities.

    With "hamming" these are half the number of bits minus the distance.
    """

    def __init__(self, queries: Any, database: Any, metric: str, device: Any, dim: int | None = None) -> None:
        packed = metric in ("hamming", "asymmetric")
        self.metric = metric
        self.q = _matrix(queries, "queries", packed=metric == "hamming")
        self.x = _matrix(database, "database", packed=packed)
        home = self.x.device if isinstance(self.x, Tensor) else torch.device("cpu")
        self.device = device_of(device, home)
        width, wide = self.q.shape[1], self.x.shape[1]
        if metric == "asymmetric" and wide != math.ceil(width / 8):
            raise ValueError(
                f"database must hold codes {math.ceil(width / 8)} bytes wide for queries of {width} numbers, got "
                f"queries of shape {tuple(self.q.shape)} and a database of shape {tuple(self.x.shape)}"
            )
        if metric != "asymmetric" and width != wide:
            raise ValueError(f"queries and database must be equally wide, got {width} and {wide}")
        for x, name, codes in ((self.q, "queries", metric == "hamming"), (self.x, "database", packed)):
            if not codes:
                size = max(1, MAX_VALUES // x.shape[1])
                finite = [torch.isfinite(_floats(x[i : i + size])).all(dim=1) for i in range(0, len(x), size)]
                check_finite_rows(torch.cat(finite).cpu().numpy(), name)
        self.width = 8 * width if metric == "hamming" else width
        if dim is not None:
            self.width = integer("dim", dim, most=width, hint=f"queries has {width} numbers per row")
        self.block = max(1, MAX_VALUES // self.width)
        if metric == "euclidean":  # far from the origin float32 would round the squares
            rows = _floats(self.x[: self.block], self.device)
            self.centre = rows[(rows - rows.mean(dim=0)).square().sum(dim=1).argmin()]  # integers stay integers
        self._whole: Tensor | None = None

    def queries(self, depth: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks of queries, each with the number of its first row; about `depth` results are computed for each."""
        # Results take four numbers of eight bytes where pairs take two of four.
        size = max(1, MAX_PAIRS // max(min(len(self.x), self.block), 4 * max(self.width, depth)))
        return ((i, self.query_rows(self.q[i : i + size])) for i in range(0, len(self.q), size))

    def database(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of the database, each with the number of its first row."""
        if len(self.x) <= self.block:  # converted once for all queries
            self._whole = self.database_rows(self.x) if self._whole is None else self._whole
            return iter([(0, self._whole)])
        starts = range(0, len(self.x), self.block)
        return ((i, self.database_rows(self.x[i : i + self.block])) for i in starts)

    def query_rows(self, q: Any) -> Tensor:
        """Left side of the product."""
        if self.metric == "hamming":
            return self._signs(q).div_(2)
        rows = self._features(q)[:, : self.width]
        return torch.cat((rows, torch.ones_like(rows[:, :1])), dim=1) if self.metric == "euclidean" else rows

    def database_rows(self, x: Any) -> Tensor:
        """Right side of the product."""
        if self.metric in ("hamming", "asymmetric"):
            return self._signs(x)
        rows = self._features(x)
        if self.metric != "euclidean":
            return rows
        # -|q - x|^2 / 2 without -|q|^2 / 2, which changes no order
        return torch.cat((rows, rows.square().sum(dim=1, keepdim=True).div_(-2)), dim=1)

    def products(self, q: Tensor, x: Tensor) -> Tensor:
        """Inner products, in float32 also under autocast."""
        with torch.autocast(q.device.type, enabled=False):
            return q @ x.mT

    def distances(self, q: Tensor, x: Tensor) -> Tensor:
        """Hamming distances. Products of -1 and 1 are exact in every precision, their sums in float32."""
        return self.products(q, x).neg_().add_(self.width / 2)

    def _features(self, x: Any) -> Tensor:
        rows = _floats(x, self.device)
        if self.metric == "cosine":
            rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        return rows - self.centre if self.metric == "euclidean" else rows

    def _signs(self, codes: Any) -> Tensor:
        x: Tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(np.array(codes))
        x = x[:, : math.ceil(self.width / 8)].to(self.device)  # so that a block is as large as planned
        bits = unpack_bits(x, 8 * x.shape[1])[:, : self.width]
        return bits.float().mul_(2).sub_(1)


def _matrix(x: Any, name: str, *, packed: bool) -> Any:
    """A dense matrix of numbers, or of packed codes, as a tensor or an array."""
    if packed:
        _check_codes(x, name)
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not (x.is_nested or x.is_meta or x.is_complex())
    y = x.detach() if dense else array(x, name)
    if y.ndim != 2 or 0 in y.shape:
        rows, columns = "N" if name == "database" else "Q", "B" if packed else "D"
        raise ValueError(
            f"{name} must have shape ({rows}, {columns}) with {rows} and {columns} at least 1, got {tuple(y.shape)}"
        )
    return y


def _floats(x: Any, device: torch.device | None = None) -> Tensor:
    """A block of rows in float32."""
    if isinstance(x, Tensor):
        return x.to(device, torch.float32)
    with np.errstate(over="ignore", under="ignore"):  # infinities are reported
        return torch.from_numpy(np.array(x, np.float32)).to(device)
