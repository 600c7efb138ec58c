"""ImageNet, or any photographs in classes: read one by one from folders, a tar or shards, cropped by workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.augment import IMAGENET, IMAGENET_MEAN, IMAGENET_STD, Normalize, OneView, TwoViews
from recipes.crops import Middles, RandomCrops
from recipes.feeds import DataError, Feed
from recipes.sources import LAYOUT, SPLITS, Part, read_source
from recipes.stored import Stored, fingerprint

__all__ = ["DataError", "ImageNetData", "load"]

INDEXES = Path("runs") / "index"
"""Where indexes of tars are kept by default: beside the runs, for all of them."""


class ImageNetData(NamedTuple):
    """Photographs to train on and to evaluate on, encoded as they are stored.

    Args:
        train: to train on.
        test: to evaluate on.
        classes: names in the order of the labels; numbers where shards tell no names.
        name: what results are reported on.
        fingerprint: SHA-256 over names, sizes and labels of all photographs.
        size: side of the crops in pixels.
    """

    train: Stored
    test: Stored
    classes: tuple[str, ...]
    name: str
    fingerprint: str
    size: int

    @property
    def train_labels(self) -> Tensor:
        """Shape: (N,)."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """Shape: (M,)."""
        return self.test.labels

    def pretraining(self, strength: float = 1.0, min_scale: float = 0.08, blur: float | None = None) -> Feed:
        """Two crops of each training photograph, made by workers; flip, colours and blur are the device's.

        Args:
            strength: of the colour jitter; SimCLR uses 1 on ImageNet (arXiv 2002.05709, appendix A).
            min_scale: smallest share of the photograph's area that a crop keeps; SimCLR uses 0.08.
            blur: probability of a blur; None for SimCLR's on ImageNet, 0.5.
        """
        views = TwoViews(
            self.size,
            strength,
            min_scale,
            blur=IMAGENET["blur"] if blur is None else blur,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        return Feed(RandomCrops(self.train, self.size, min_scale, count=2), views, in_memory=False)

    def training(self, min_scale: float = 0.08) -> Feed:
        """One crop of each training photograph, flipped or not, to train a classifier on.

        Args:
            min_scale: smallest share of the photograph's area that a crop keeps.
        """
        view = OneView(self.size, None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return Feed(RandomCrops(self.train, self.size, min_scale, count=1), view, in_memory=False)

    def evaluation(self, split: str) -> Feed:
        """The middle of each photograph.

        Args:
            split: "train" or "test".
        """
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        photographs: Stored = getattr(self, split)
        normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        return Feed(Middles(photographs, self.size), normalize, in_memory=False)


def load(
    train: Path | str,
    test: Path | str | None = None,
    size: int = 224,
    *,
    hold_out: float = 0.0,
    cache: Path | None = INDEXES,
) -> ImageNetData:
    """Find photographs and their classes; none is decoded yet.

    Without photographs to evaluate on, those to train on are evaluated on as well, or with `hold_out` a part of them
    that is not trained on; `name` says so. Accuracy on training photographs tells whether a run works, and nothing of
    what a model has learnt.

    Args:
        train: as in `recipes.sources.read_source`: a folder or a tar with class folders, or a pattern of shards. It may
            hold both splits, in `train/` and in `val/` or `test/`.
        test: the same of the photographs to evaluate on, where they lie elsewhere.
        size: side of the crops in pixels.
        hold_out: share of each class's training photographs to evaluate on instead, at least one; 0 for none.
        cache: folder where indexes of tars are kept; None to make them anew each time.

    Raises:
        DataError: when photographs or classes are missing, do not pair up, or a tar is damaged.
        ValueError: for a size or a share out of its range.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if not 0 <= hold_out < 1:
        raise ValueError(f"hold_out must be from 0 to below 1, got {hold_out}")
    parts = read_source(train, cache)
    training = evaluation = _part_for("train", train, parts)
    remark = ", evaluated on its training images"
    if not hold_out and (test is not None or "test" in parts):
        others = parts if test is None else read_source(test, cache)
        evaluation, remark = _part_for("test", train if test is None else test, others), ""
    classes = _classes(training, evaluation, train, train if test is None else test)
    if hold_out:
        place = _held_out(training.images.labels, classes, hold_out)
        evaluation = training._replace(images=training.images.select(place))
        training = training._replace(images=training.images.select(~place))
        remark = f", {hold_out:.0%} of the training images held out"
    path = Path(os.fspath(train))
    name = (path.parent if path.name in SPLITS else path).name + remark
    found = {"train": training.images, "test": evaluation.images}
    return ImageNetData(training.images, evaluation.images, classes, name, fingerprint(found), size)


def _part_for(split: str, source: Path | str, parts: dict[str, Part]) -> Part:
    part = parts.get(split, parts.get(""))
    if part is None:
        raise DataError(f"{source} holds no {split} images; the layout must be {LAYOUT}")
    return part


def _held_out(labels: Tensor, classes: tuple[str, ...], share: float) -> Tensor:
    """Marks the first photographs of each class. Shape: (N,) -> (N,)."""
    place = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(labels.bincount().tolist()):
        held = max(1, round(share * count))
        if held >= count:
            raise DataError(
                f"class {classes[label]} has {count} training images, of which a share of {share} held out leaves "
                "none; give a smaller share, or none to evaluate on the training images"
            )
        place[(labels == label).nonzero()[:held, 0]] = True
    return place


def _classes(training: Part, evaluation: Part, train: Path | str, test: Path | str) -> tuple[str, ...]:
    if (training.classes is None) != (evaluation.classes is None):
        raise DataError(
            f"one of {train} and {test} tells classes by folders and the other by numbers; give both alike"
        )
    if training.classes is not None:
        if training.classes != evaluation.classes:
            only = sorted(set(training.classes) ^ set(evaluation.classes or ()))
            raise DataError(
                f"the classes of {train} and {test} must be the same and none empty; these have images on one side "
                f"only: {', '.join(only[:10])}{f' and {len(only) - 10} more' if len(only) > 10 else ''}"
            )
        return training.classes
    labels = training.images.labels.unique()
    gaps = (labels != torch.arange(len(labels))).nonzero()
    if len(gaps):
        raise DataError(
            f"labels of {train} must be 0, 1, 2 and so on, each with images; they go up to {labels[-1]} and none is "
            f"{gaps[0].item()}"
        )
    most = int(evaluation.images.labels.max())
    if most >= len(labels):
        raise DataError(
            f"label {most} of {test} is out of the range 0 to {len(labels) - 1} that the labels of {train} have"
        )
    return tuple(map(str, range(len(labels))))
