"""From images, in a tensor or a loader, to arrays that the evaluations take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array, as_array
from stochastic_bottleneck._checks import flag, integer
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import evaluation_mode
from stochastic_bottleneck._unwrap import as_wrapper
from stochastic_bottleneck.evaluation._inputs import (
    check_finite_rows,
    check_images,
    device_of,
    explain_failure,
    images_and_labels,
)
from stochastic_bottleneck.wrapper import Representation, StochConWrapper

__all__ = ["Encoded", "encode"]


class Encoded(NamedTuple):
    """Images as a model sees them, on the host.

    Args:
        features: the representation asked for. Shape: (N, F)
        labels: of the loader, None where it gives none. Shape: (N,)
        uncertainty: entropy of each image's posterior in nats, differential for a Gaussian. Shape: (N,)
    """

    features: NDArray[Any]
    labels: NDArray[Any] | None
    uncertainty: NDArray[np.float64]


def encode(
    model: StochConWrapper,
    images: Tensor | Iterable[Any],
    representation: Representation = "h",
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Encoded:
    """Encode any number of images in batches, in evaluation mode and without gradients.

    The model's training flag is as before afterwards. Features equal `model.encode` of the same batch.

    Args:
        model: the model; one inside a compiled, DataParallel or DistributedDataParallel module is taken out of it.
        images: a tensor of Shape: (N, C, H, W), or batches: a DataLoader or any iterable of images, or of tuples that
            begin with images and labels.
        representation: "h", "z", "upsampled" or "bits", as in `StochConWrapper.encode`.
        batch_size: images at a time, of a tensor.
        device: to encode on; None for the model's. The model itself is not moved.
        progress: show a bar (needs rich).

    Returns:
        Features, labels and uncertainty, in the order of the images.

    Raises:
        ValueError: for no images, images whose features are not finite (after all of them, with their number and the
            first), labels that are not one an image, batches of which some have labels and some not, or what
            `StochConWrapper.encode` refuses.
        TypeError: for a model that is not a `StochConWrapper`, a batch that does not begin with a tensor, or images of
            another dtype than the model's weights.
        ModuleNotFoundError: for a progress bar without rich.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = StochConWrapper(nn.Flatten(), dim=16, feature_dim=48)
        >>> loader = [(torch.rand(8, 3, 4, 4), torch.arange(8)), (torch.rand(5, 3, 4, 4), torch.arange(5))]
        >>> features, labels, uncertainty = encode(model, loader, "bits")
        >>> features.shape, labels.shape, uncertainty.shape
        ((13, 2), (13,), (13,))
    """
    model = as_wrapper(model)
    batch_size = integer("batch_size", batch_size)
    flag("progress", progress)
    # Refuses what cannot be had, before anything is loaded.
    model.feature_extractor(representation)
    place = device_of(device, model.bottleneck.temperature.device)
    batches: Any = images
    if isinstance(images, Tensor):
        check_images(images, "images")
        batches = torch.split(images, batch_size)
    if progress:
        batches = require("rich.progress", "encode(progress=True)", "evaluation").track(batches, "encoding")
    found: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]] = []
    labels: list[NDArray[Any]] = []
    with evaluation_mode(model), torch.no_grad():
        for x, y in images_and_labels(batches, "images"):
            x = x.to(place, non_blocking=True)
            try:
                encoding: Any = model._encode(x, representation, posterior=True)
            except (RuntimeError, ValueError) as error:
                explain_failure("images", x, model.encoder, error)
                raise
            features, h, uncertainty = encoding.features, encoding.h, encoding.posterior.entropy()
            # Bits of a feature that is nan are zeros, so that the features themselves are looked at.
            finite = h.isfinite().all(1) & features.isfinite().all(1) & uncertainty.isfinite()
            found.append(
                (array(features, "features"), array(uncertainty, "uncertainty"), array(finite, "finite"))
            )
            labels += [] if y is None else [as_array(y, "labels")]
            if len(labels) not in (0, len(found)):
                raise ValueError("images must give labels with every batch or with none, got both")
    if not found:
        raise ValueError("images is empty; give at least one image")
    features, uncertainty, finite = (np.concatenate(parts) for parts in zip(*found, strict=True))
    check_finite_rows(finite, "features of images")
    return Encoded(features, np.concatenate(labels) if labels else None, uncertainty.astype(np.float64))
