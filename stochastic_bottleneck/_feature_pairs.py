"""Pairs of views' features for `fit_bottleneck`, from arrays, memory-mapped arrays or loaders."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._checks import check_floating

SAMPLE = 8192
"""Rows from which the mean and the standard deviation of the features are estimated."""
CANDIDATES, COMPONENTS = 2**16, 256
"""Items among which neighbours are searched, and principal components in which they are."""


class FeaturePairs:
    """Pairs of views, batch by batch, in an order that follows from the seed and the epoch.

    Args:
        views: as in `fit_bottleneck`.
        batch_size: items in a batch from arrays.
        seed: of the order.
        epochs: number of passes.
    """

    near: NDArray[np.int64] | None = None  # rows of each item's neighbours

    def __init__(self, views: Any, batch_size: int, seed: int, epochs: int) -> None:
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self.arrays: list[Any] = []
        self.batches: Any = views
        if isinstance(views, (Tensor, np.ndarray)):
            _check_features(views, "views")
            if views.ndim != 3 or len(views) < 2 or 0 in views.shape:
                raise ValueError(
                    f"views must have shape (V, N, F) with V at least 2, got {tuple(views.shape)}; stack the features "
                    "of several views of each item"
                )
            self.arrays = list(views)
        elif isinstance(views, (tuple, list)) and all(isinstance(x, (Tensor, np.ndarray)) for x in views):
            for x in views:
                _check_features(x, "views")
            shapes = [tuple(x.shape) for x in views]
            if len(views) < 2 or len(shapes[0]) != 2 or len(set(shapes)) != 1 or 0 in shapes[0]:
                raise ValueError(f"views must be two or more arrays of one shape (N, F), got shapes {shapes}")
            self.arrays = list(views)
        elif not isinstance(views, Iterable) or isinstance(views, (str, bytes, dict)):
            raise TypeError(
                f"views must be an array of shape (V, N, F), two arrays of shape (N, F) or an iterable of pairs, got "
                f"{type(views).__name__}"
            )
        elif iter(views) is views:
            raise TypeError(
                f"views must be readable once an epoch, got an iterator, {type(views).__name__}; give a DataLoader or "
                "a list"
            )
        if self.arrays and len(self.arrays[0]) < batch_size:
            raise ValueError(
                f"batch_size must be at most the number of items, {len(self.arrays[0])}, got {batch_size}; lower it"
            )
        rows = [_as_tensor(x[[0]], "views") for x in self.arrays]  # copies, without negative strides
        if rows:  # a dtype that rounds no view
            self.row = rows[0].to(functools.reduce(torch.promote_types, (row.dtype for row in rows)))
        self.description = [list(x.shape) for x in self.arrays]

    def epoch_seed(self, epoch: int) -> int:
        """Seed of an epoch's order and noise."""
        return int(np.random.default_rng([self.seed, epoch]).integers(2**63))

    def epoch(self, epoch: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Share of the training that is done, and the two views of each batch."""
        random, size = np.random.default_rng(self.epoch_seed(epoch)), self.batch_size
        if self.arrays:
            items, count = len(self.arrays[0]), len(self.arrays)
            order, steps = random.permutation(items), items // size
            for step in range(steps):
                rows = order[step * size : (step + 1) * size]
                first = random.integers(count, size=size)
                second = (first + random.integers(1, count, size=size)) % count
                partners = rows.copy()
                if self.near is not None:
                    chosen = random.random(size) < 0.5
                    column = random.integers(self.near.shape[1], size=chosen.sum())
                    partners[chosen] = self.near[rows[chosen], column]
                progressed = (epoch + (step + 0.5) / steps) / self.epochs
                yield progressed, self.gather(first, rows), self.gather(second, partners)
            return
        try:
            steps = len(self.batches)
        except TypeError:  # a generator, or a DataLoader of an IterableDataset
            steps = 0
        step = -1
        for step, pair in enumerate(self.batches):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"views must give pairs of two batches, got {pair!r:.200}")
            x, x_prime = (_as_tensor(x, "views") for x in pair)
            if x.ndim != 2 or x.shape != x_prime.shape or 0 in x.shape:
                raise ValueError(
                    f"views must give two batches of one shape (N, F), got {tuple(x.shape)} and {tuple(x_prime.shape)}"
                )
            for each in (x, x_prime):
                if not each.isfinite().all():
                    raise ValueError(f"views must be finite, got nan or inf in batch {step}")
            yield (epoch + ((step + 0.5) / steps if steps else 0.5)) / self.epochs, x, x_prime
        if step < 0:
            raise ValueError(f"views gave no batches in epoch {epoch + 1}; give one or more, in each epoch")

    def gather(self, view: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
        """Row `rows[i]` of view `view[i]`, for each i. Shape: (len(rows), F)."""
        batch = self.row.new_empty(len(rows), self.row.shape[1])
        for i, features in enumerate(self.arrays):
            where = np.flatnonzero(view == i)
            batch[where] = _as_tensor(features[rows[where]], "views").to(batch)
        # One pass over the batch; a sum that is not finite may still be one of finite values.
        if not batch.sum(dtype=torch.float32).isfinite() and not batch.isfinite().all():
            bad = sorted(rows[(~batch.isfinite()).any(1).cpu().numpy()].tolist())
            raise ValueError(f"views must be finite, got nan or inf in the features of items {str(bad[:5])[1:-1]}")
        return batch

    def sample_rows(self) -> NDArray[np.int64]:
        """Rows of at most `SAMPLE` items, evenly spaced."""
        items = len(self.arrays[0])
        return np.unique(np.linspace(0, items - 1, min(items, SAMPLE)).astype(np.int64))

    def find_neighbours(self, count: int, mean: Tensor, device: torch.device) -> None:
        """Search each item's nearest neighbours, by the cosine of the means of its views in principal components.

        Half of the second views are then those of a neighbour. Among very many items, some are candidates.
        """
        items = len(self.arrays[0])
        candidates = np.arange(items)
        if items > CANDIDATES:
            candidates = np.sort(np.random.default_rng(self.seed).choice(items, CANDIDATES, replace=False))
        if not 0 < count < len(candidates):
            return

        def centered(rows: NDArray[np.int64]) -> Tensor:
            views = [
                self.gather(np.full(len(rows), i), rows).to(device, torch.float32) for i in range(len(self.arrays))
            ]
            return sum(views[1:], views[0]) / len(views) - mean

        sample = self.sample_rows()
        _, _, basis = torch.pca_lowrank(centered(sample), min(COMPONENTS, len(mean), len(sample)), center=False)

        def projected(rows: NDArray[np.int64]) -> Tensor:
            return torch.nn.functional.normalize(centered(rows) @ basis)

        database = torch.cat([projected(rows) for rows in np.array_split(candidates, -(-len(candidates) // 1024))])
        candidate_items, found = torch.from_numpy(candidates).to(device), []
        for rows in np.array_split(np.arange(items), -(-items // 1024)):
            similarity = projected(rows) @ database.T
            itself = torch.from_numpy(rows).to(device)[:, None] == candidate_items
            similarity[itself] = -2  # an item is not its own neighbour
            found.append(candidate_items[similarity.topk(count).indices].cpu())
        self.near = torch.cat(found).numpy()

    def sample(self) -> Tensor:
        """Features of at most about `SAMPLE` items, each of one view. (N, F)."""
        found: list[Tensor] = []
        if self.arrays:
            rows = self.sample_rows()
            found.append(self.gather(np.arange(len(rows)) % len(self.arrays), rows))
        else:
            for _, x, _ in self.epoch(0):
                found.append(x)
                if sum(map(len, found)) >= SAMPLE:
                    break
        return torch.cat(found)


def _check_features(x: Any, name: str) -> None:
    if isinstance(x, Tensor):
        check_floating(x, name)
        if x.is_meta:
            raise ValueError(f"{name} must hold features with values, got a meta tensor; compute them first")
    elif x.dtype.kind != "f":
        raise TypeError(
            f"{name} must be floating point features, got {x.dtype}; convert them, as in {name}.astype('f4')"
        )


def _as_tensor(x: Any, name: str) -> Tensor:
    """A tensor of floating point features, on its device."""
    if not isinstance(x, (Tensor, np.ndarray)):
        raise TypeError(f"{name} must hold arrays or tensors of features, got {type(x).__name__}")
    _check_features(x, name)
    if isinstance(x, Tensor):
        return x.detach()
    return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
