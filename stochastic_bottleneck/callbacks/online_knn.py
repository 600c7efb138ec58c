"""A Lightning callback that follows the quality of the features by nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._arrays import class_labels
from stochastic_bottleneck._simclr import find_parts
from stochastic_bottleneck.callbacks._base import Callback
from stochastic_bottleneck.encoders import simclr_parts, unwrap
from stochastic_bottleneck.evaluation import knn_accuracy
from stochastic_bottleneck.evaluation.encoding import _encode_batches
from stochastic_bottleneck.wrapper import StochConWrapper

__all__ = ["OnlineKNN"]


class OnlineKNN(Callback):
    """Lightning callback that logs the nearest-neighbour accuracy of the encoder's features during training.

    A share of labelled training images is held out as queries, and each is classified by its `k` nearest neighbours
    among the rest (the bank). The accuracy, between 0 and 1, is logged as "knn" after every `every_n_epochs` epochs
    and after the last. It is meant for watching a run: the model has seen these images, though not their labels, so
    it tends to lie above the accuracy on a test set.

    The encoder runs in evaluation mode and without gradients in the Trainer's precision, and random numbers are
    restored: training computes the same with and without the callback. Of several processes the first computes, while
    the others wait for its number, and all log the same. Models under `fully_shard` are not supported.

    Args:
        batches: labelled training images, preprocessed as for evaluation: a DataLoader or a list of (images, labels),
            without shuffling, so that the same images are held out each time.
        query_share: share of the images that is held out as queries.
        every_n_epochs: epochs between measurements.
        k: neighbours per query, at most the images of the bank.
        encoder: module that maps images to features (N, F), or its name inside the LightningModule, such as
            "model.backbone". None for the encoder of the only `StochConWrapper` inside; without one, of the
            LightningModule or a direct child of it, found as `encoders.simclr_parts` finds it, if its head is outside.
        seed: of the choice of queries.

    Raises:
        ModuleNotFoundError: when imported without Lightning (extra "lightning").
        TypeError: for an argument of another type.
        ValueError: for a number out of its range; when training starts, for an encoder that is not found; when
            measuring, for batches without images or labels, fewer than two images or classes, or features that are
            not finite.

    Attributes:
        accuracy: the newest measurement, None before the first.

    Example:
        >>> import torch
        >>> batches = [(torch.rand(8, 3, 4, 4), torch.arange(8) % 2)]
        >>> OnlineKNN(batches, query_share=0.25, k=3).accuracy is None
        True
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        query_share: float = 0.2,
        every_n_epochs: int = 1,
        k: int = 20,
        encoder: str | nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, str):
            raise TypeError(f"batches must be a DataLoader or a list of (images, labels), got {batches!r}")
        if isinstance(batches, Iterator):
            raise TypeError(
                "batches must be a DataLoader or a list, which can be read again, got an iterator of type "
                f"{type(batches).__name__}"
            )
        if encoder is not None and not isinstance(encoder, (str, nn.Module)):
            raise TypeError(f'encoder must be a module, a name such as "model.backbone", or None, got {encoder!r}')
        self.batches, self.encoder = batches, encoder
        self.query_share = _checks.real("query_share", query_share, above=0, below=1)
        self.every_n_epochs = _checks.integer("every_n_epochs", every_n_epochs)
        self.k = _checks.integer("k", k)
        self.seed = _checks.integer("seed", seed, least=0)
        self.accuracy: float | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise an error now, rather than after an epoch, for an encoder that is not found."""
        self._find_encoder(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure and log."""
        epochs = trainer.current_epoch + 1
        is_last = epochs == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if epochs % self.every_n_epochs and not is_last:
            return
        measured: Any = None
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                measured = self._measure(trainer, pl_module)
            except Exception as error:  # the other processes would wait forever
                failure, measured = error, f"{type(error).__name__}: {error}"
        measured = trainer.strategy.broadcast(measured)
        if failure is not None:
            raise failure
        if isinstance(measured, str):
            raise RuntimeError(f"OnlineKNN failed on rank 0 ({measured})")
        self.accuracy = measured
        # All processes log the same number; without sync_dist Lightning warns.
        pl_module.log("knn", measured, on_step=False, on_epoch=True, sync_dist=True)

    def _measure(self, trainer: Any, pl_module: Any) -> float:
        """Accuracy of the encoder as it is now."""
        device = pl_module.device
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            trainer.precision_plugin.forward_context(),
        ):
            batches = map(trainer.precision_plugin.convert_input, self.batches)  # a loader draws a seed here
            found = _encode_batches(self._find_encoder(pl_module), batches, ("h",), device, "batches")
        if found.labels is None:
            raise ValueError("batches must give labels with every batch, as (images, labels), got images alone")
        x = found.features["h"]
        y = class_labels(found.labels, len(x), "labels in batches")
        order = torch.randperm(len(x), generator=torch.Generator("cpu").manual_seed(self.seed), device="cpu").numpy()
        count = min(max(round(self.query_share * len(x)), 1), len(x) - 1)
        queries, bank = order[:count], order[count:]
        if len(set(y[bank].tolist())) < 2:
            raise ValueError(
                f"batches must hold images of at least two classes, got {len(set(y[bank].tolist()))} in a bank of "
                f"{len(bank)} images"
            )
        return knn_accuracy(x[bank], y[bank], x[queries], y[queries], k=min(self.k, len(bank)))

    def _find_encoder(self, module: nn.Module) -> nn.Module:
        if isinstance(self.encoder, nn.Module):
            return self.encoder
        if self.encoder is not None:
            try:
                return module.get_submodule(self.encoder)
            except AttributeError as error:
                raise ValueError(
                    f"encoder must name a module inside {type(module).__name__}, got {self.encoder!r} ({error})"
                ) from error
        found = [m.encoder for m in module.modules() if isinstance(m, StochConWrapper)]
        for candidate in () if found else (module, *module.children()):
            with suppress(ValueError):  # its children are not an encoder and a head
                encoder, head = find_parts(unwrap(candidate), None, None)
                if head not in encoder.modules():  # simclr_parts would replace it there
                    found = found or [simclr_parts(candidate, encoder, head)[0]]
        if len(found) != 1:
            raise ValueError(
                f"encoder must be given for {type(module).__name__}, got None and {len(found)} models with an encoder "
                'and a head; pass the module or its name, such as encoder="model.backbone"'
            )
        return found[0]
