"""Training on labels: from scratch, all weights of a pretrained encoder, or linear probes on a frozen one.

Test images are classified once, after the last epoch. Weights of the epoch that does best on them would be weights
chosen by their labels, and their accuracy that of the luckiest of many tries, not of the method.

Images are cropped and flipped, and nothing else; label smoothing and mixup are there, and off. So trained SimCLR its
classifiers (arXiv 2002.05709, appendices B.5 to B.8), He et al. their ResNets (arXiv 1512.03385, section 3.4) and Goyal
et al. theirs (arXiv 1706.02677, section 5.1), which are what others compare with. Rates fall by a cosine; only those of
Goyal et al. fell in steps, before cosines were usual (arXiv 1608.03983).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.classifier import Classifier, Representations
from recipes.feeds import DataError, LabelledImages, TrainingData
from recipes.finished import keep, kept
from recipes.scores import score
from recipes.training import Hardware, Schedule, SteppedModule, TrainingError, fit

MIN_SCALE = 0.08
"""Smallest share of an image that a crop keeps, in SimCLR's and lightly's evaluation and in Goyal et al.'s training."""


class Classified(NamedTuple):
    """What a training on labels leaves; scores are by representation, and of the test images.

    Args:
        accuracy: share of images whose class comes first, between 0 and 1.
        top5: share of images whose class is among the first five, or among all where there are fewer.
        f1: mean over classes of the F1 score.
        losses: cross entropy of every step, in nats; of several classifiers, the sum.
        seconds: from the first step of training to the last, over all resumptions.
    """

    accuracy: dict[str, float]
    top5: dict[str, float]
    f1: dict[str, float]
    losses: list[float]
    seconds: float


class Classification(SteppedModule):
    """Cross entropy of a classifier; of one on several representations, the sum.

    The gradient of a sum is that of each part: linear layers on frozen representations end as if each was trained
    alone.

    Args:
        model: what is trained, or the linear layers of which.
        schedule: how long and how.
        label_smoothing: share of each label that is spread over all classes.
        mixup: alpha of mixup (arXiv 1710.09412): images and labels of a batch are mixed with those of the same
            batch turned round, by a share from Beta(alpha, alpha). Each process mixes its own images. 0 for none.

    Raises:
        ValueError: for an option out of its range.
    """

    def __init__(
        self, model: Classifier, schedule: Schedule, *, label_smoothing: float = 0.0, mixup: float = 0.0
    ) -> None:
        super().__init__(model, schedule)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if not 0 <= mixup < float("inf"):
            raise ValueError(f"mixup must be finite and at least 0, got {mixup}; 0.2 is usual, 0 for none")
        self.label_smoothing, self.mixup = label_smoothing, mixup

    def step(self, views: Tensor, labels: Tensor) -> dict[str, Any]:
        """Loss of one batch, and the first classifier's accuracy on it."""
        partners, share = labels, 1.0
        if self.mixup:  # drawn from the generator that this step has seeded
            share = torch.distributions.Beta(self.mixup, self.mixup).sample().item()
            partners, views = labels.flip(0), share * views + (1 - share) * views.flip(0)
        logits = self.model(views)
        losses = [share * self._loss(rows, labels) for rows in logits.values()]
        if self.mixup:
            losses += [(1 - share) * self._loss(rows, partners) for rows in logits.values()]
        first = next(iter(logits.values())).detach()
        accuracy = (first.argmax(dim=1) == labels).float().mean()
        return {"loss": torch.stack(losses).sum(), "accuracy": accuracy}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def supervise(
    encoder: nn.Module,
    width: int,
    data: LabelledImages,
    schedule: Schedule,
    hardware: Hardware,
    folder: Path,
    *,
    seed: int = 0,
    min_scale: float = MIN_SCALE,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    callbacks: Sequence[L.Callback] = (),
) -> Classified:
    """Train an encoder and a linear layer on it from where they are, or finish or load what is in `folder`.

    Args:
        encoder: maps images to features h. A copy is trained; batch norms take the statistics of each batch.
        width: of the features.
        data: labelled images.
        schedule: how long and how.
        hardware: to train on.
        folder: gets checkpoints and, at the end, `weights.safetensors` and `loss.csv`. With several processes, one
            that they share.
        seed: of the order, crops and flips.
        min_scale: smallest share of an image that a crop keeps.
        label_smoothing: share of each label that is spread over all classes.
        mixup: alpha of mixup; see `Classification`.
        callbacks: see `recipes.training.fit`.

    Returns:
        Scores under "h".

    Raises:
        TrainingError: when the loss diverges, features are not finite, or what is in the folder does not fit.
        CheckpointError: when a checkpoint cannot be written, or none can be read.
        DataError: for images that cannot be read, a batch that the processes cannot share, fewer than two classes, or
            classes without training or test images.
        Stopped: when a signal asked for the end, after a checkpoint.
        ValueError: for an option out of its range, or a width that is not that of the features.
    """
    model = Classifier(Representations({"h": encoder}), {"h": width}, len(data.classes), frozen=False)
    options = {"label_smoothing": label_smoothing, "mixup": mixup}
    return _classify(model, data, schedule, hardware, folder, seed, min_scale, callbacks, **options)


def fine_tune(
    encoder: nn.Module,
    width: int,
    data: LabelledImages,
    schedule: Schedule,
    hardware: Hardware,
    folder: Path,
    *,
    seed: int = 0,
    min_scale: float = MIN_SCALE,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    callbacks: Sequence[L.Callback] = (),
) -> Classified:
    """Train all weights of a pretrained encoder on, with a new linear layer, or finish or load what is in `folder`.

    It is `supervise` from other weights: the encoder that is handed in stays as it was, whatever was frozen is
    trained, and batch norms are in training mode, as in SimCLR's code and lightly's, even if the pretrained model was
    left in evaluation mode: they take the statistics of each batch of crops, and their running ones follow.

    Arguments, result and errors are those of `supervise`.
    """
    return supervise(
        encoder,
        width,
        data,
        schedule,
        hardware,
        folder,
        seed=seed,
        min_scale=min_scale,
        label_smoothing=label_smoothing,
        mixup=mixup,
        callbacks=callbacks,
    )


def probe(
    represent: Mapping[str, nn.Module],
    widths: Mapping[str, int],
    data: LabelledImages,
    schedule: Schedule,
    hardware: Hardware,
    folder: Path,
    *,
    seed: int = 0,
    min_scale: float = MIN_SCALE,
    callbacks: Sequence[L.Callback] = (),
) -> Classified:
    """Train a linear layer on each frozen representation by SGD, or finish or load what is in `folder`.

    For data whose features do not fit into memory; `evaluate.judge` fits smaller ones. All layers are trained in one
    pass, each as if it was alone, and representations that share an encoder share its pass: of a model with a latent,
    `{"h": model.encoder, "z": model.feature_extractor("z")}`.

    Args:
        represent: modules that each map images to one representation; see `Representations`. They stay as they are.
        widths: of each representation.
        data: labelled images.
        schedule: how long and how; the rate is the same for all layers.
        hardware: to train on.
        folder: gets checkpoints and, at the end, the layers' `weights.safetensors`, and `loss.csv`. With several
            processes, one that they share.
        seed: of the order, crops and flips.
        min_scale: smallest share of an image that a crop keeps.
        callbacks: see `recipes.training.fit`.

    Returns:
        Scores of each representation.

    Raises:
        TrainingError: when the loss diverges, features are not finite, or what is in the folder does not fit.
        CheckpointError: when a checkpoint cannot be written, or none can be read.
        DataError: for images that cannot be read, a batch that the processes cannot share, fewer than two classes, or
            classes without training or test images.
        Stopped: when a signal asked for the end, after a checkpoint.
        ValueError: for an option out of its range, or a width that is not that of the representation.
    """
    model = Classifier(Representations(represent), widths, len(data.classes), frozen=True)
    return _classify(model, data, schedule, hardware, folder, seed, min_scale, callbacks)


def _classify(
    model: Classifier,
    data: LabelledImages,
    schedule: Schedule,
    hardware: Hardware,
    folder: Path,
    seed: int,
    min_scale: float,
    callbacks: Sequence[L.Callback],
    **options: float,
) -> Classified:
    _check_classes(data)
    module = Classification(model, schedule, **options)
    account = kept(folder, model.trained)
    if account is None:
        _check_features(model, data)
        images = TrainingData(data.training(min_scale), schedule.batch_size, seed, hardware.workers)
        with warnings.catch_warnings():
            if model.frozen:  # on purpose
                warnings.filterwarnings("ignore", message=r"Found .* module\(s\) in eval mode")
            fit(module, images, folder, hardware, callbacks)
        account = keep(folder, model.trained.cpu(), module)
    scores = score(model, data, hardware)
    accuracy, top5, f1 = ({name: s[i] for name, s in scores.items()} for i in range(3))
    return Classified(accuracy, top5, f1, account.losses, account.seconds)


def _check_classes(data: LabelledImages) -> None:
    """Refuse what cannot be learnt, or whose accuracy would be that of some classes alone."""
    classes = len(data.classes)
    if classes < 2:
        raise DataError(
            f"{data.name} must have at least two classes to tell apart, got {classes}: {', '.join(data.classes)}"
        )
    for split, labels in (("training", data.train_labels), ("test", data.test_labels)):
        counts = labels.bincount(minlength=classes)
        if len(counts) > classes:
            raise DataError(
                f"{data.name} has {split} images of class number {len(counts) - 1}, and only {classes} classes; give "
                "labels from 0 on"
            )
        lacking = [data.classes[i] for i in (counts == 0).nonzero().flatten().tolist()]
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            raise DataError(
                f"the {split} images of {data.name} lack {len(lacking)} of its {classes} classes: "
                f"{', '.join(lacking[:5])}{more}; add images of them, or leave these classes out on both sides"
            )


@torch.no_grad()
def _check_features(model: Classifier, data: LabelledImages) -> None:
    """Look at the features of a few images before anything is spent on training."""
    feed = data.evaluation("train")
    images, _ = feed.dataset.__getitems__([(0, 0), (len(data.train_labels) - 1, 0)])  # type: ignore[attr-defined]
    found = model.eval().represent(feed.transform(images))
    model.train()
    for name, rows in found.items():
        width = model.heads[name].in_features
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(
                f"the width of {name} must be that of its rows, got {width} for rows of shape {tuple(rows.shape)}"
            )
        if not rows.isfinite().all():
            raise TrainingError(
                f"representation {name} of the training images holds inf or nan: its model has diverged, or its "
                "weights are damaged; pretrain it anew"
            )
