"""Data sets of photographs as workers see them: bytes in, crops of one size out, a whole batch at a time."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from recipes.batches import Batch
from recipes.draws import seeded
from recipes.photographs import middle, random_crops
from recipes.stored import Stored


class RandomCrops(Dataset[Batch]):
    """Random resized crops, which seed, epoch and image decide alone, whoever makes them and when.

    Args:
        photographs: encoded.
        size: side of the crops in pixels.
        min_scale: smallest share of a photograph's area that a crop keeps.
        count: crops of each photograph.
        seed: of the crops.
    """

    def __init__(self, photographs: Stored, size: int, min_scale: float, count: int, seed: int = 0) -> None:
        self.photographs, self.size, self.min_scale, self.count = photographs, size, min_scale, count
        self.seed = seed

    def seeded(self, seed: int) -> RandomCrops:
        """The same with crops of another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """Crops and labels of pairs (index, epoch). Shape: (N, [count,] 3, size, size), (N,)."""
        crops = np.empty((len(pairs), self.count, self.size, self.size, 3), np.uint8)
        for row, (index, epoch) in enumerate(pairs):
            content, name = self.photographs.read(index), self.photographs.where(index)
            draws = seeded("crops", self.seed, epoch, index)
            crops[row] = random_crops(content, name, self.count, self.size, self.min_scale, draws)
        images = torch.from_numpy(crops).permute(0, 1, 4, 2, 3)
        return images[:, 0] if self.count == 1 else images, _labels(self.photographs, pairs)


class Middles(Dataset[Batch]):
    """The middles of photographs, to evaluate on.

    Args:
        photographs: encoded.
        size: side in pixels.
    """

    def __init__(self, photographs: Stored, size: int) -> None:
        self.photographs, self.size = photographs, size

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """Images and labels of pairs (index, epoch). Shape: (N, 3, size, size), (N,)."""
        images = np.empty((len(pairs), self.size, self.size, 3), np.uint8)
        for row, (index, _) in enumerate(pairs):
            images[row] = middle(self.photographs.read(index), self.photographs.where(index), self.size)
        return torch.from_numpy(images).permute(0, 3, 1, 2), _labels(self.photographs, pairs)


def _labels(photographs: Stored, pairs: list[tuple[int, int]]) -> Tensor:
    return photographs.labels[torch.tensor([index for index, _ in pairs])]
