"""Nearest neighbours on the encoder's features during pretraining, to look at and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from recipes.evaluate import Part, evenly
from recipes.feeds import Feed, LabelledImages, evaluation_loader
from recipes.track import tell
from stochastic_bottleneck.evaluation import knn_accuracy

K = 20  # neighbours, as in the frozen evaluation
BATCH = 256  # images encoded at once, without a gradient


class Chosen(NamedTuple):
    """Images that neighbours are looked for among, and images whose class they tell.

    Args:
        bank: indices of training images.
        queries: indices into the queries' split.
    """

    bank: list[int]
    queries: list[int]


class OnlineKNN(L.Callback):
    """Top-1 accuracy of 20 nearest neighbours on features h, every few epochs and after the last.

    It is there to be looked at: no weight, setting or checkpoint is chosen by it, and it is no result; the frozen
    evaluation looks for neighbours among all training images. By default it leaves the test set alone: its queries
    are training images that are not in the bank. The model has seen these, though never their labels, so the number
    tends to lie above that of the test set. With `split="test"` whoever watches the run sees a part of the test set,
    and must not decide anything by it.

    A run takes the same steps with it as without: the encoder is in evaluation mode meanwhile, no statistic and no
    random number is touched. Rank 0 measures, while the others wait for its number or for word that it failed; keep
    bank and queries so small that this is well below the process group's timeout, 10 minutes with NCCL.

    The module holds the pretrained model as `model`, its encoder as `model.encoder`. The weights are those being
    trained, not their moving average.

    Args:
        data: labelled images.
        every_epochs: epochs between measurements.
        bank: training images to look for neighbours among, evenly from all classes; at most all there are.
        queries: images to classify, evenly from all classes; at 2,000 the accuracy's standard error is about 1 point.
        split: where the queries come from: "train", those not in the bank, or "test".
        workers: processes that read; none for images in memory.

    Raises:
        ValueError: when an argument is out of its range, or the bank would hold one class only.

    Attributes:
        accuracy: the newest, between 0 and 1; nan when the features were not finite.
    """

    def __init__(
        self,
        data: LabelledImages,
        every_epochs: int = 1,
        *,
        bank: int = 5000,
        queries: int = 2000,
        split: Literal["train", "test"] = "train",
        workers: int = 0,
    ) -> None:
        for name, value in {"every_epochs": every_epochs, "bank": bank, "queries": queries}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        self.data, self.every_epochs, self.split, self.workers = data, every_epochs, split, workers
        train, test = data.train_labels, data.test_labels if split == "test" else None
        self.chosen = choose(train, test, bank, queries)
        of_bank = train[self.chosen.bank]
        if bool((of_bank == of_bank[0]).all()):
            raise ValueError(
                f"the bank of {len(self.chosen.bank)} images holds one class; give a larger bank"
            )
        self.accuracy: float | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure; `Checkpoints` writes the last step of an epoch after this."""
        epochs, within = divmod(trainer.global_step, int(trainer.num_training_batches))
        if within or (epochs % self.every_epochs and epochs != trainer.max_epochs):
            return
        failure: Exception | None = None
        measured: float | str = 0.0
        if trainer.is_global_zero:
            try:
                measured = self.measure(trainer, module)
            except Exception as error:  # told to the other ranks, which would wait for ever
                failure, measured = error, f"{type(error).__name__}: {error}"
        measured = trainer.strategy.broadcast(measured)
        if failure is not None:
            raise failure
        if isinstance(measured, str):
            raise RuntimeError(f"nearest neighbours failed on rank 0 ({measured})")
        self.accuracy = measured
        tell(trainer, {"knn": measured})

    def measure(self, trainer: L.Trainer, module: L.LightningModule) -> float:
        """Accuracy of the encoder as it is now."""
        encoder: nn.Module = module.model.encoder  # type: ignore[assignment, union-attr]
        bank, queries = self.chosen
        parts = (self.data.evaluation("train"), bank), (self.data.evaluation(self.split), queries)
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _evaluating(encoder), trainer.precision_plugin.forward_context():
            (x, y), (x_test, y_test) = (self._encode(encoder, *part, module.device) for part in parts)
        if not (x.isfinite().all() and x_test.isfinite().all()):
            return float("nan")  # of a diverged model; to stop it is the module's part
        return knn_accuracy(x, y, x_test, y_test, k=min(K, len(x)))

    def _encode(
        self, encoder: nn.Module, feed: Feed, indices: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Features and labels of some images. Shape: (M, F) and (M,)."""
        part = feed._replace(dataset=Part(feed.dataset, indices), transform=feed.transform.to(device))
        features, labels = [], []
        for images, told in evaluation_loader(part, BATCH, self.workers):
            features.append(encoder(part.transform(images.to(device))).float().cpu())
            labels.append(told)
        return torch.cat(features), torch.cat(labels)


def choose(train_labels: Tensor, test_labels: Tensor | None, bank: int, queries: int) -> Chosen:
    """Images for bank and queries, evenly from all classes and the same at every call.

    Args:
        train_labels: int64. Shape: (N,)
        test_labels: of the split that queries come from, or None to take training images that are not in the bank.
            Shape: (M,)
        bank: how many for the bank, at most.
        queries: how many queries, at most.

    Returns:
        Indices in rising order. Where there are too few training images for both, they are shared in proportion.
    """
    if test_labels is not None:
        return Chosen(evenly(train_labels, bank), evenly(test_labels, queries))
    chosen = torch.tensor(evenly(train_labels, bank + queries))
    asked = max(1, len(chosen) * queries // (bank + queries))
    held = torch.zeros(len(chosen), dtype=torch.bool)
    held[evenly(train_labels[chosen], asked)] = True
    return Chosen(chosen[~held].tolist(), chosen[held].tolist())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every submodule's own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes.items():
            m.training = training
