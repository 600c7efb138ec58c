"""Fine-tuning of an encoder with a linear layer, on labelled images."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stochastic_bottleneck._arrays import class_labels
from stochastic_bottleneck._checks import choice, device_of, flag, integer, real, seed_of
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import evaluation_mode
from stochastic_bottleneck._replay import seeded, without_autocast
from stochastic_bottleneck.encoders import Encoder, unwrap
from stochastic_bottleneck.evaluation._inputs import (
    features_of,
    home_of,
    images_and_labels,
    sklearn,
)
from stochastic_bottleneck.wrapper import StochConWrapper

__all__ = ["FineTuned", "fine_tune"]


class FineTuned(NamedTuple):
    """Result of fine-tuning.

    Args:
        accuracy: top-1 on the test set, between 0 and 1.
        f1: mean over classes of the F1 score on the test set, between 0 and 1.
        losses: mean cross entropy of each epoch's steps, in nats.
        classifier: images to logits of Shape: (N, classes), in evaluation mode, on the device it was trained on.
        top5: share of the test images whose class is among the five with the largest logits, between 0 and 1.
    """

    accuracy: float
    f1: float
    losses: tuple[float, ...]
    classifier: nn.Module
    top5: float


def fine_tune(
    model: nn.Module,
    train: Iterable[Any],
    test: Iterable[Any],
    classes: int,
    *,
    epochs: int = 30,
    lr: float = 0.05,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    weight_decay: float = 0.0,
    warmup_epochs: float = 0.0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> FineTuned:
    """Fine-tune a copy of an encoder with a new linear layer, and classify the test images once at the end.

    All weights are trained, frozen ones too, in training mode; the learning rate rises linearly to `lr` during the
    warm-up and then falls by a cosine to 0. With an untrained encoder this is supervised training. `model` itself
    is not changed. For few labels, pass a loader of some of the training images. A batch of one image, such as a
    loader's last, is joined to a larger one before it: batch normalization cannot take it alone.

    Args:
        model: a `StochConWrapper`, whose encoder is taken, or a module that maps images to features (N, F). A
            compiled, DataParallel or DistributedDataParallel module is unwrapped.
        train: batches that begin with images and labels and can be read once an epoch: a DataLoader or a list.
        test: the same; read after training.
        classes: number of classes.
        epochs: passes over `train`.
        lr: peak learning rate.
        optimizer: called with the parameters and `lr=`, such as `torch.optim.AdamW`; None for SGD with momentum 0.9.
        weight_decay: of SGD, on weights; biases and the parameters of norms have none.
        warmup_epochs: epochs in which the learning rate rises, fewer than `epochs`.
        precision: "bf16-mixed" runs the model under autocast to bfloat16, in training and in the test.
        seed: of the linear layer, and of whatever uses torch's global generator, such as a shuffling DataLoader.
            That generator is restored afterwards.
        device: to train on; None for the model's.
        progress: show a progress bar over the epochs (needs rich).

    Returns:
        Accuracy, F1, losses, classifier and top-5 accuracy.

    Raises:
        ValueError: for no images, labels that are missing or outside 0 to classes - 1, features that are not finite
            and of Shape (N, F), a single image to train batch normalization on, a number out of its range, a weight
            decay given together with an optimizer, or a loss that is no longer finite.
        TypeError: for a model that is not a module, batches without a length, a batch that does not begin with a
            tensor, images of another dtype than the weights, or labels that are not integers.
        ModuleNotFoundError: without scikit-learn, or for a progress bar without rich.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> images = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (images.mean(dim=(1, 2, 3)) > 0).long()
        >>> batches = list(zip(images.split(16), labels.split(16)))
        >>> result = fine_tune(nn.Flatten(), batches, batches, classes=2, epochs=30)
        >>> result.accuracy > 0.9, len(result.losses), result.classifier(images).shape
        (True, 30, torch.Size([64, 2]))

    Source:
        Learning rate and momentum are those of lightly's fine-tuning for a batch of 256; SimCLR (arXiv 2002.05709),
        appendix B.5, scales the same rate with the batch. Weight decay on weights alone: arXiv 1812.01187, section
        3.1.
    """
    metrics = sklearn("metrics")  # imported first, so that a missing package is reported before training
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}")
    classes, epochs, seed = integer("classes", classes, least=2), integer("epochs", epochs), seed_of(seed)
    lr, weight_decay = real("lr", lr, above=0), real("weight_decay", weight_decay, least=0)
    warmup_epochs = real("warmup_epochs", warmup_epochs, least=0, below=epochs)
    choice("precision", precision, ("32-true", "bf16-mixed"))
    if optimizer is not None and not callable(optimizer):
        raise TypeError(
            f"optimizer must be called with parameters and lr=, such as torch.optim.AdamW, got {optimizer!r}"
        )
    if optimizer is not None and weight_decay:
        raise ValueError(
            f"weight_decay must be 0 for an optimizer of your own, got {weight_decay}; set it there, as in "
            f"functools.partial(torch.optim.AdamW, weight_decay={weight_decay})"
        )
    flag("progress", progress)
    model = unwrap(model)
    source = model.encoder if isinstance(model, StochConWrapper) else model
    target = device_of(device, home_of(source))
    autocast = functools.partial(torch.autocast, target.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    steps_per_epoch = _count(train, "train")
    _count(test, "test")
    passes: Iterable[int] = range(epochs)
    if progress:
        passes = require("rich.progress", "fine_tune(progress=True)", "evaluation").track(passes, "fine-tuning")
    # The caller may be in Lightning's validation or test, where gradients are off.
    with torch.inference_mode(False), torch.enable_grad(), without_autocast([target]), seeded(seed, target):
        encoder: Any = copy.deepcopy(source).to(target)
        for module in encoder.modules():
            if isinstance(module, Encoder):
                module.freeze(False)
        encoder.requires_grad_()
        # Check images, labels and features before training.
        test_images = next(_labelled(test, "test", classes))[0]
        train_images = next(_labelled(train, "train", classes))[0]
        h, h_test = (
            _features(encoder, train_images.to(target), "train"),
            _features(encoder, test_images.to(target), "test"),
        )
        if h.dtype != h_test.dtype or h.shape[1] != h_test.shape[1]:
            raise ValueError(
                "test must give features of the width and dtype of train's, "
                f"{h.shape[1]} of {h.dtype}, got {h_test.shape[1]} of {h_test.dtype}"
            )
        head = nn.Linear(h.shape[1], classes, device=target, dtype=h.dtype)
        classifier = nn.Sequential(encoder, head).train()
        chosen = (optimizer or functools.partial(_sgd, weight_decay=weight_decay))(classifier.parameters(), lr=lr)
        if not isinstance(chosen, torch.optim.Optimizer):
            raise TypeError(f"optimizer must give an optimizer, got {type(chosen).__name__}")
        schedule = torch.optim.lr_scheduler.LambdaLR(
            chosen, functools.partial(_rate, epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch))
        )
        losses = []
        for epoch in passes:
            # Summed on the device, with one host sync per epoch; a sum with inf or nan is not finite either.
            total, batches = torch.zeros((), device=target), 0
            for x, y, count in _joined(_labelled(train, "train", classes)):
                with autocast():
                    logits = _logits(classifier, x.to(target, non_blocking=True))
                    loss = nn.functional.cross_entropy(logits, y.to(target, non_blocking=True))
                chosen.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                chosen.step()
                torch.clear_autocast_cache()  # torch does so on leaving the outermost autocast only
                for _ in range(count):
                    schedule.step()
                total, batches = total + loss.detach(), batches + 1
            losses.append(float(total) / batches)
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"lr must be small enough for the loss to stay finite, got {losses[-1]} in epoch {epoch + 1} with "
                    f"lr={lr}; lower it, and look for inf or nan in the images"
                )
        classifier.eval()
        truth, top = [], []
        with torch.inference_mode(), autocast():
            for x, y in _labelled(test, "test", classes):
                top.append(classifier(x.to(target, non_blocking=True)).topk(min(5, classes), dim=1).indices.cpu())
                truth.append(y.cpu())
    found, wanted = torch.cat(top).numpy(), torch.cat(truth).numpy()
    hits = found == wanted[:, None]
    f1 = metrics.f1_score(wanted, found[:, 0], average="macro")
    return FineTuned(float(hits[:, 0].mean()), float(f1), tuple(losses), classifier, float(hits.any(1).mean()))


def _sgd(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum, its weight decay on parameters of several dimensions."""
    held = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in held if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in held if p.ndim <= 1]},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=lr, momentum=0.9)


def _rate(steps: int, warmup: int, step: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def _count(batches: Any, name: str) -> int:
    """Number of batches."""
    try:
        return len(batches)
    except TypeError as error:
        raise TypeError(
            f"{name} must be batches with a length that can be read repeatedly, a DataLoader or a list, "
            f"got {type(batches).__name__}"
        ) from error


def _labelled(batches: Iterable[Any], name: str, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and checked labels of each batch."""
    empty = True
    for x, labels in images_and_labels(batches, name):
        empty = False
        if labels is None:
            raise ValueError(f"{name} must give labels with every batch, as (images, labels), got images alone")
        y = class_labels(labels, len(x), f"labels in {name}")
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"{name} must give labels from 0 to {classes - 1} for classes={classes}, "
                f"got values from {y.min()} to {y.max()}; number the classes from 0"
            )
        yield x.clone() if x.is_inference() else x, torch.from_numpy(y)
    if empty:
        raise ValueError(f"{name} is empty; give at least one labelled image")


def _joined(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Join a batch of one image to a larger one before it; yields images, labels and the number of batches joined."""
    images, labels, count = torch.empty(0), torch.empty(0), 0
    for x, y in batches:
        if len(x) == 1 < len(images) and x.shape[1:] == images.shape[1:]:
            images, labels, count = torch.cat([images, x]), torch.cat([labels, y]), count + 1
            continue
        if len(images):
            yield images, labels, count
        images, labels, count = x, y, 1
    yield images, labels, count


def _logits(classifier: nn.Module, x: Tensor) -> Tensor:
    try:
        logits: Tensor = classifier(x)
    except ValueError as error:
        if len(x) > 1:
            raise
        raise ValueError(
            f"train must hold batches of more than one image for a model with batch normalization, got one ({error}); "
            "make the batches larger"
        ) from error
    return logits


def _features(encoder: nn.Module, images: Tensor, name: str) -> Tensor:
    """Check that the features are finite, before training."""
    with evaluation_mode(encoder), torch.no_grad():
        h = features_of(encoder, images, name)
    if not h.is_floating_point() or not h.isfinite().all():
        raise ValueError(
            f"model must give finite features in floating point, got nan or inf, or {h.dtype}, for {name}; it has "
            "diverged, or the images hold inf or nan"
        )
    return h
