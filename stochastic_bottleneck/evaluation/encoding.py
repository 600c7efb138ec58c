"""From images, in a tensor or a loader, to arrays that the evaluations take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stochastic_bottleneck._arrays import array, as_array
from stochastic_bottleneck._checks import choice, device_of, flag, integer
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._layers import evaluation_mode
from stochastic_bottleneck.encoders import unwrap
from stochastic_bottleneck.evaluation._inputs import (
    check_finite_rows,
    check_images,
    explain_failure,
    features_of,
    home_of,
    images_and_labels,
)
from stochastic_bottleneck.wrapper import Representation, StochConWrapper

__all__ = ["Encoded", "encode"]


class Encoded(NamedTuple):
    """Representations of images, on the host.

    Args:
        features: the representation, an array of Shape: (N, F), or a dict of one array per name when several were
            asked for.
        labels: of the loader, None when it gives none. Shape: (N,)
        uncertainty: entropy of each image's posterior in nats, differential for a Gaussian; None for a model without
            a latent. Shape: (N,)
    """

    features: Any
    labels: NDArray[Any] | None
    uncertainty: NDArray[np.float64] | None


def encode(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    representation: Representation | Sequence[Representation] = "h",
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Encoded:
    """Encode any number of images in batches, in evaluation mode and without gradients.

    The model's training flags are restored afterwards. Features equal `model.encode` of the same batch.

    Args:
        model: a `StochConWrapper`, or any module that maps images to features (N, F), such as SimCLR's encoder, which
            has "h" only. A compiled, DataParallel or DistributedDataParallel module is unwrapped.
        images: a tensor of Shape: (N, C, H, W), or batches: a DataLoader or any iterable of images, or of tuples that
            begin with images and labels.
        representation: "h", "z", "upsampled" or "bits", as in `StochConWrapper.encode`; or several of them, all from
            one pass over the images.
        batch_size: images per batch, for a tensor.
        device: to encode on; None for the model's. The model itself is not moved.
        progress: show a progress bar (needs rich).

    Returns:
        Features, labels and uncertainty, in the order of the images.

    Raises:
        ValueError: for no images, images whose features are not finite (after all of them, with their number and the
            first), labels that are not one per image, batches of which only some have labels, no representation, one
            that the model does not have, or what `StochConWrapper.encode` refuses.
        TypeError: for a model that is not a module, a batch that does not begin with a tensor, or images of another
            dtype than the model's weights.
        ModuleNotFoundError: for a progress bar without rich.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = StochConWrapper(nn.Flatten(), dim=16, feature_dim=48)
        >>> loader = [(torch.rand(8, 3, 4, 4), torch.arange(8)), (torch.rand(5, 3, 4, 4), torch.arange(5))]
        >>> features, labels, uncertainty = encode(model, loader, ["h", "bits"])
        >>> features["h"].shape, features["bits"].shape, labels.shape, uncertainty.shape
        ((13, 48), (13, 2), (13,), (13,))
        >>> encode(model.encoder, loader).features.shape
        (13, 48)
    """
    several = not isinstance(representation, str) and isinstance(representation, Sequence)
    names: Any = tuple(representation) if several else (representation,)
    batch_size = integer("batch_size", batch_size)
    flag("progress", progress)
    batches: Any = images
    if isinstance(images, Tensor):
        check_images(images, "images")
        batches = torch.split(images, batch_size)
    if progress:
        batches = require("rich.progress", "encode(progress=True)", "evaluation").track(batches, "encoding")
    found = _encode_batches(model, batches, names, device, "images")
    return found if several else found._replace(features=found.features[representation])


def _encode_batches(
    model: nn.Module,
    batches: Iterable[Any],
    representations: Sequence[Representation],
    device: object,
    name: str,
) -> Encoded:
    """Encode batches; errors call them `name`."""
    model = _checked(model, representations)
    representations = tuple(dict.fromkeys(representations))
    target = device_of(device, home_of(model))
    columns: dict[str, list[NDArray[Any]]] = {which: [] for which in representations}
    entropies: list[NDArray[Any]] = []
    finite: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    with evaluation_mode(model), torch.no_grad():
        for x, y in images_and_labels(batches, name):
            x = x.to(target, non_blocking=True)
            if isinstance(model, StochConWrapper):
                try:
                    encoding: Any = model._encode(x, representations, posterior=True)
                except (RuntimeError, ValueError, TypeError) as error:
                    explain_failure(name, x, model.encoder, error)
                    raise
                entropy = encoding.posterior.entropy()
                entropies.append(array(entropy, "uncertainty"))
                rows = [encoding.representation(which) for which in representations]
                # The bits of a nan are zeros, so that the features themselves are checked.
                checked = [encoding.h, entropy[:, None], *rows]
            else:
                rows = checked = [features_of(model, x, name)]
            finite.append(array(torch.stack([r.isfinite().all(1) for r in checked]).all(0), "finite"))
            for which, r in zip(representations, rows, strict=True):
                columns[which].append(array(r, "features").copy())  # r may be a view of every token
            labels += [] if y is None else [as_array(y, "labels")]
            if len(labels) not in (0, len(finite)):
                raise ValueError(f"{name} must give labels with every batch or with none, got both")
    if not finite:
        raise ValueError(f"{name} is empty; give at least one image")
    check_finite_rows(np.concatenate(finite), f"features of {name}")
    return Encoded(
        {which: np.concatenate(parts) for which, parts in columns.items()},
        np.concatenate(labels) if labels else None,
        np.concatenate(entropies).astype(np.float64) if entropies else None,
    )


def _checked(model: nn.Module, representations: Sequence[Representation]) -> nn.Module:
    """The unwrapped model; raises an error for representations that it does not have."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a StochConWrapper or a module that maps images to features, got {type(model).__name__}"
        )
    if not representations:
        raise ValueError("representation must be a name or several, got none")
    for which in representations:
        choice("representation", which, get_args(Representation))
    model = unwrap(model)
    if isinstance(model, StochConWrapper):
        for which in representations:
            model.feature_extractor(which)  # raises an error for bits of a Gaussian
    elif set(representations) != {"h"}:
        raise ValueError(
            f'representation must be "h" for a model without a latent, got {list(representations)} for '
            f"{type(model).__name__}; wrap it with StochConWrapper"
        )
    return model
