"""A pretrained model or a fitted bottleneck in a scikit-learn pipeline. Importing this file imports scikit-learn."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array
from stochastic_bottleneck._checks import choice, integer
from stochastic_bottleneck._replay import without_autocast
from stochastic_bottleneck._saved import as_trained
from stochastic_bottleneck.codes import pack_bits, unpack_bits
from stochastic_bottleneck.evaluation._inputs import check_finite_rows, sklearn
from stochastic_bottleneck.evaluation.encoding import encode
from stochastic_bottleneck.fitting import fit_bottleneck
from stochastic_bottleneck.losses import StochConLoss
from stochastic_bottleneck.wrapper import Representation, StochConWrapper

__all__ = ["BottleneckTransformer", "StochConTransformer"]

_base = sklearn("base")


# scikit-learn has no types for mypy.
class _Transformer(
    _base.ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc, name-defined]
    _base.TransformerMixin,  # type: ignore[misc, name-defined]
    _base.BaseEstimator,  # type: ignore[misc, name-defined]
):
    """Base of both: input of more than two dimensions, names for the columns of the output."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags


class StochConTransformer(_Transformer):
    """Images to the features of a pretrained model, for a scikit-learn `Pipeline`.

    The model is not trained: `fit` encodes one image, to refuse early what does not fit, and `transform` works without
    it. Columns have names, as `set_output(transform="pandas")` shows them; those of a model whose encoder's width is
    learned from a first batch are known after that batch. It runs on the device that the model is on.
    scikit-learn's `clone`, and with it every search and cross-validation, copies the model with its weights (or the
    path alone), so that a copy gives equal features.

    Args:
        model: the pretrained model, also inside a compiled, DataParallel or DistributedDataParallel module; or the
            folder that `hub.HubModel.save_pretrained` wrote, which is loaded with the first images.
        representation: "bits" for columns of 0 and 1 (bern only), or "h", "z" or "upsampled", as in
            `StochConWrapper.encode`.
        batch_size: images at a time.

    Raises:
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from torch import nn
        >>> model = StochConWrapper(nn.Flatten(), dim=16, feature_dim=48)
        >>> images, labels = np.random.default_rng(0).random((20, 3, 4, 4)), np.arange(20) % 2
        >>> pipeline = make_pipeline(StochConTransformer(model), LogisticRegression()).fit(images, labels)
        >>> pipeline[:-1].transform(images).shape, pipeline.predict(images).shape
        ((20, 16), (20,))
    """

    def __init__(
        self,
        model: StochConWrapper | str | os.PathLike[str],
        representation: Representation = "bits",
        *,
        batch_size: int = 256,
    ) -> None:
        self.model = model
        self.representation = representation
        self.batch_size = batch_size

    def fit(self, X: NDArray[Any] | Tensor, y: object = None) -> StochConTransformer:  # noqa: N803
        """Encode the first image, to refuse early what does not fit.

        Args:
            X: as in `transform`.
            y: ignored.

        Returns:
            The transformer itself.
        """
        self._encode(_images(X)[:1])
        return self

    def transform(self, X: NDArray[Any] | Tensor) -> NDArray[Any]:  # noqa: N803
        """Encode images.

        Args:
            X: images, scaled and normalised as those that the model was trained on. Shape: (N, C, H, W)

        Returns:
            uint8 of 0 and 1 for "bits", else floating point. Shape: (N, D) for "bits" and "z", (N, F) for the others

        Raises:
            ValueError: for images of another shape, or that are not floating point, or what `evaluation.encode`
                refuses.
            TypeError: for a model that is not a `StochConWrapper`, or images that are not numbers.
            FileNotFoundError: for a folder that does not exist.
        """
        return self._encode(_images(X))

    @property
    def _wrapper(self) -> StochConWrapper:
        """The model; one from a folder is loaded once."""
        if not isinstance(self.model, (str, os.PathLike)):
            return as_trained(self.model)
        path, model = getattr(self, "_loaded", (None, None))
        if model is None or path != self.model:
            model = as_trained(self.model)
            self._loaded = self.model, model
        return model

    @property
    def _n_features_out(self) -> int:
        """Number of columns, for their names, of the representation as it is set now."""
        bottleneck = self._wrapper.bottleneck
        widths = {"h": bottleneck.in_features, "upsampled": bottleneck.out_features}
        width = widths.get(self.representation, bottleneck.dim)
        if width is None:  # as scikit-learn's own transformers before fit
            raise AttributeError(f"the width of {self.representation} is not known before a first image")
        return int(width)

    def _encode(self, images: NDArray[Any]) -> NDArray[Any]:
        model, size = self._wrapper, integer("batch_size", self.batch_size)
        dtype = model.bottleneck.temperature.dtype  # the model's precision
        # Copied batch by batch, since torch takes no read-only arrays.
        batches = (torch.from_numpy(np.array(images[i : i + size])).to(dtype) for i in range(0, len(images), size))
        features = encode(model, batches, self.representation).features
        return unpack_bits(features, model.bottleneck.dim) if self.representation == "bits" else features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def _images(x: object) -> NDArray[Any]:
    images = array(x, "X")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"X must be images of shape (N, C, H, W) with N at least 1, got {images.shape}; reshape flattened ones"
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"X must be floating point, scaled and normalised as the training images were, got {images.dtype}"
        )
    return images


class BottleneckTransformer(_Transformer):
    """Features of a frozen encoder to codes: `fit_bottleneck` as a scikit-learn estimator, for a `Pipeline`.

    `fit` takes features of several views of each item and no labels; `transform` takes features of one view, or
    several, of which it takes the first. `bottleneck_` is the fitted bottleneck. Cross-validation splits the first
    axis, which is that of the views: fit on all items, outside of it.

    Args:
        kind: "bern" for bits, "gauss" for Gaussians.
        dim: latent dimensions D.
        output: "bits" for columns of 0 and 1, "packed" for bytes of eight bits, "floats" for logits or means, of a
            "gauss" the only one.
        loss: as in `fit_bottleneck`, like all that follow.
        epochs: passes over the items.
        batch_size: items in a step.
        seed: of weights, order, views and noise.
        device: to train on.

    Raises:
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> views, labels = np.random.default_rng(0).normal(size=(2, 64, 8)), np.arange(64) % 2
        >>> coder = BottleneckTransformer(dim=16, epochs=1, batch_size=32)
        >>> pipeline = make_pipeline(coder, LogisticRegression()).fit(views, labels)
        >>> pipeline[:-1].transform(views[0]).shape, pipeline.predict(views[1]).shape
        ((64, 16), (64,))
    """

    def __init__(
        self,
        kind: Literal["bern", "gauss"] = "bern",
        dim: int = 64,
        *,
        output: Literal["bits", "packed", "floats"] = "bits",
        loss: StochConLoss | None = None,
        epochs: int = 10,
        batch_size: int = 512,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.kind = kind
        self.dim = dim
        self.output = output
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    def fit(self, X: NDArray[Any] | Tensor, y: object = None) -> BottleneckTransformer:  # noqa: N803
        """Fit the bottleneck.

        Args:
            X: views, as in `fit_bottleneck`. Shape: (V, N, F)
            y: ignored.

        Returns:
            The transformer itself.

        Raises:
            ValueError: for what `fit_bottleneck` refuses, or bits of a Gaussian.
            TypeError: likewise.
        """
        self._check_output()
        options = {k: v for k, v in self.get_params(deep=False).items() if k != "output"}
        try:
            self.bottleneck_ = fit_bottleneck(X, **options)
        except (TypeError, ValueError) as error:  # scikit-learn's name of the views
            raise type(error)(re.sub(r"^views\b|\bviews(?=\.astype)", "X", str(error))) from error
        self.n_features_in_ = self.bottleneck_.in_features
        return self

    def transform(self, X: NDArray[Any] | Tensor) -> NDArray[Any]:  # noqa: N803
        """Encode features.

        Args:
            X: features of one view, or of several, the first of which is encoded. Shape: (N, F), or (V, N, F)

        Returns:
            uint8 for "bits", Shape: (N, D), and "packed", Shape: (N, ceil(D / 8)); float32 for "floats", Shape: (N, D)

        Raises:
            ValueError: for features of another shape, nan or inf.
            TypeError: for features that are not numbers.
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        sklearn("utils.validation").check_is_fitted(self)
        self._check_output()
        x = array(X, "X")
        x = x[0] if x.ndim == 3 and len(x) else x
        if x.ndim != 2 or x.shape[1] != self.n_features_in_ or not len(x):
            raise ValueError(f"X must be features of shape (N, {self.n_features_in_}), got {x.shape}")
        found, finite, device = [], [], self.bottleneck_.temperature.device
        with torch.inference_mode(), without_autocast([device]):
            for first in range(0, len(x), 4096):
                with np.errstate(over="ignore", under="ignore"):  # infinities are reported below
                    rows = torch.from_numpy(np.array(x[first : first + 4096], np.float32))
                finite.append(rows.isfinite().all(1).numpy())
                posterior = self.bottleneck_.posterior(rows.to(device))
                z = posterior[0] if self.output == "floats" else posterior.mode().to(torch.uint8)
                found.append((pack_bits(z) if self.output == "packed" else z).cpu().numpy())
        check_finite_rows(np.concatenate(finite), "X")  # the bits of a nan are zeros
        return np.concatenate(found)

    def _check_output(self) -> None:
        choice("output", self.output, ("bits", "packed", "floats"))
        if self.kind == "gauss" and self.output != "floats":
            raise ValueError(f'output must be "floats" for kind="gauss", got "{self.output}"')

    @property
    def _n_features_out(self) -> int:
        return -(-self.dim // 8) if self.output == "packed" else self.dim
