"""Algorithm 1: an encoder, a stochastic bottleneck, and one head for both branches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stochastic_bottleneck import _checks
from stochastic_bottleneck._extractor import Encoding, FeatureExtractor, Representation
from stochastic_bottleneck._layers import evaluation_mode, is_sharded, mlp
from stochastic_bottleneck._replay import RecomputedState
from stochastic_bottleneck._timm import TimmMethods
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.encoders import as_encoder, simclr_parts
from stochastic_bottleneck.posteriors import Posterior

__all__ = ["Representation", "StochConOutput", "StochConWrapper"]


class StochConOutput(NamedTuple):
    """What the wrapper returns in training; the first two go to `InfoNCELoss`.

    With several samples, `v`, `v_prime` and `z` have a leading dimension of `samples`. With `symmetric=True` it is
    2 * samples, first those in which the second view is stochastic, and `posterior` has a leading dimension of 2.

    Args:
        v: head's output for the deterministic branch. Shape: (N, P), or (K, N, P)
        v_prime: head's output for the stochastic branch. Shape: (N, P), or (K, N, P)
        h: encoder's features of the first view. Shape: (N, F)
        h_prime: encoder's features of the second view. Shape: (N, F)
        z: latent of the stochastic branch. Shape: (N, D), or (K, N, D)
        posterior: distribution of `z`. Shape: (N, D), or (2, N, D)
    """

    v: Tensor
    v_prime: Tensor
    h: Tensor
    h_prime: Tensor
    z: Tensor
    posterior: Posterior


class StochConWrapper(TimmMethods):
    r"""Stochastic contrastive learning around any image encoder.

    .. math::
        h = f(x), \quad h' = f(x'), \quad z' \sim q(z \mid \pi(h')), \quad
        v = g(h), \quad v' = g(\rho(z'))

    Both branches share the head g; only the second is stochastic. The encoder is used in place: a recognised
    classifier is removed from it, and its weights are shared, not copied.

    Args:
        encoder: torchvision classification model, timm model, or any module that maps images to features.
        kind: "bern" or "gauss".
        dim: latent dimensions.
        bottleneck: a `StochasticBottleneck` instead of `kind`, `dim` and the options from `temperature` on. One built
            without a width takes the encoder's.
        head: head g, mapping features to (N, P); None for SimCLR's MLP.
        projection_dim: output width P of the default head.
        variance_from: gauss: view that gives the variance: "opposing", which prevents its collapse, or "own".
        symmetric: run the algorithm in both directions on one encoder pass, each view stochastic once.
        samples: latents drawn per image in training, on one encoder pass; the loss is then the mean over them. 0
            trains without noise: the latent is its mode, for "bern" with the gradient of the relaxed bits.
        feature_dim: width F of the encoder's features; None to read it from the encoder's structure, or from
            the first batch.
        detach_encoder: stop the gradient between encoder and bottleneck: the encoder learns from the deterministic
            branch alone, with the deterministic term of `StochConLoss` as in SimCLR.
        checkpoint_encoder: recompute the encoder's activations in the backward pass to save memory. Compiled
            by torch 2.7 or older, BatchNorm's running statistics then count each batch twice.
        temperature: as for `StochasticBottleneck`.
        hard: as for `StochasticBottleneck`.
        location_std: as for `StochasticBottleneck`.
        learnable_scale: as for `StochasticBottleneck`.
        normalization: as for `StochasticBottleneck`.
        shrinkage: as for `StochasticBottleneck`.

    Raises:
        ValueError: for a value outside its range, an option that contradicts `bottleneck`, or views that are empty or
            differ in number or device.
        TypeError: for an encoder, bottleneck or head that is not a module, and for views that are not in floating
            point, or differ in dtype.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> model = StochConWrapper(encoder, kind="bern", dim=16)
        >>> view, view_prime = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
        >>> output = model(view, view_prime)
        >>> output.v.shape, output.z.shape
        (torch.Size([4, 128]), torch.Size([4, 16]))
        >>> model.encode(view, "bits").shape
        torch.Size([4, 2])

    Source:
        StochCon (arXiv 2110.00552), Algorithm 1. The default head is SimCLR's (arXiv 2002.05709).
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        kind: Literal["bern", "gauss"] = "bern",
        dim: int = 128,
        bottleneck: StochasticBottleneck | None = None,
        head: nn.Module | None = None,
        projection_dim: int = 128,
        variance_from: Literal["opposing", "own"] = "opposing",
        symmetric: bool = False,
        samples: int = 1,
        feature_dim: int | None = None,
        detach_encoder: bool = False,
        checkpoint_encoder: bool = False,
        temperature: float = 1.0,
        hard: bool = False,
        location_std: float | None = 2.0,
        learnable_scale: bool = False,
        normalization: Literal["batch", "whiten"] | None = "batch",
        shrinkage: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a module, got {type(encoder).__name__}")
        if bottleneck is not None and not isinstance(bottleneck, StochasticBottleneck):
            raise TypeError(f"bottleneck must be a StochasticBottleneck, got {type(bottleneck).__name__}")
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(f"head must be a module, got {type(head).__name__}")
        _checks.choice("variance_from", variance_from, ("opposing", "own"))
        _checks.flag("symmetric", symmetric)
        _checks.flag("detach_encoder", detach_encoder)
        _checks.flag("checkpoint_encoder", checkpoint_encoder)
        projection_dim = _checks.integer("projection_dim", projection_dim)
        self.samples = _checks.integer("samples", samples, least=0)
        options: dict[str, Any] = {
            "kind": kind,
            "dim": dim,
            "temperature": temperature,
            "hard": hard,
            "location_std": location_std,
            "learnable_scale": learnable_scale,
            "normalization": normalization,
            "shrinkage": shrinkage,
        }
        if bottleneck is None:
            # Checks the options before the encoder is changed. Identity maps have no weights to initialize.
            StochasticBottleneck(projector="identity", upsampler="identity", **options)
        else:
            _refuse_contradictions(bottleneck, options)
        self.encoder = as_encoder(encoder, feature_dim)
        width = self.encoder.feature_dim
        if bottleneck is None:
            bottleneck = StochasticBottleneck(in_features=width, **options)
        elif width := width or bottleneck.in_features:
            if bottleneck.out_features not in (None, width) and bottleneck.in_features in (None, width):
                raise ValueError(
                    f"bottleneck gives {bottleneck.out_features} features (out_features), "
                    f"but the head takes the encoder's {width}"
                )
            bottleneck.materialize(width)
        self.bottleneck = bottleneck
        self.head = mlp(width, width, projection_dim) if head is None else head
        self.variance_from = variance_from
        self.symmetric = symmetric
        self.detach_encoder = detach_encoder
        self.checkpoint_encoder = checkpoint_encoder

    @classmethod
    def from_simclr(
        cls,
        model: nn.Module,
        *,
        kind: Literal["bern", "gauss"] = "bern",
        dim: int = 128,
        encoder: str | nn.Module | None = None,
        head: str | nn.Module | None = None,
        **options: Any,
    ) -> StochConWrapper:
        """Wrap an existing SimCLR model; its encoder and head are used as they are, with their weights.

        Args:
            model: model with an encoder and a projection head, such as lightly's (`backbone`,
                `projection_head`), solo-learn's (`backbone`, `projector`) or your own (`encoder`, `head`).
            kind: "bern" or "gauss".
            dim: latent dimensions.
            encoder: the encoder, as a module or an attribute's name; None to find it by the usual names.
            head: the projection head, likewise.
            **options: further options of `StochConWrapper`.

        Returns:
            The wrapped model, whose `encode(x)` equals the model's own features.

        Raises:
            ValueError: when the encoder or the head is not found; the message lists the model's children.
        """
        found, projection = simclr_parts(model, encoder, head)
        return cls(found, kind=kind, dim=dim, head=projection, **options)

    def forward(
        self,
        x: Tensor,
        x_prime: Tensor,
        *,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> StochConOutput:
        """Run both views through Algorithm 1.

        Args:
            x: first views. Shape: (N, C, H, W)
            x_prime: second views, row i from the same image as `x`'s row i. Shape: (N, C, H, W)
            sample: draw the latent (True) or take its mode (False); None follows `training`.
            generator: source of the noise; None for the global one, which compiled code needs.

        Returns:
            Outputs of both branches, features, latent and posterior.
        """
        _checks.check_image_pair(x, x_prime)
        h, h_prime = self._features(x), self._features(x_prime)
        v_prime, z, posterior = self._stochastic_branch(h_prime, h, sample, generator)
        v = self.head(h).expand_as(v_prime)
        if self.symmetric:
            v_first, z_first, posterior_first = self._stochastic_branch(h, h_prime, sample, generator)
            join = torch.stack if z.ndim == 2 else torch.cat
            v = join((v, self.head(h_prime).expand_as(v_first)))
            v_prime, z = join((v_prime, v_first)), join((z, z_first))
            posterior = _stack(posterior, posterior_first)
        return StochConOutput(v, v_prime, h, h_prime, z, posterior)

    def encode(self, x: Tensor, representation: Representation = "h", *, validate: bool = True) -> Tensor:
        """Representation of images, always in evaluation mode and without gradients.

        `feature_extractor` gives a module that can be trained, compiled or exported.

        Args:
            x: images. Shape: (N, C, H, W)
            representation: "h" for the encoder's features, "z" for the latent's mode, "upsampled" for rho(z),
                "bits" for z packed eight to a byte (bern only).
            validate: raise an error for images whose features or latent are not finite; False skips the check (no
                host sync on an accelerator).

        Returns:
            Shape: (N, F) for "h" and "upsampled"; (N, D) for "z"; (N, ceil(D / 8)) uint8 for "bits"

        Raises:
            ValueError: for an unknown representation, bits of a Gaussian, or features that are not finite.
            TypeError: for images that are not in floating point.
        """
        _checks.flag("validate", validate)
        with evaluation_mode(self), torch.no_grad():
            encoding = self._encode(x, (representation,))
        if validate:
            encoding.check_finite()
        return encoding.representation(representation)

    def feature_extractor(self, representation: Representation = "h") -> nn.Module:
        """The path from images to a representation as a module that shares this model's weights.

        Args:
            representation: as in `encode`.

        Returns:
            Module that maps images to the representation; the latent is always its mode. In evaluation mode
            `torch.export` can export it. It does not gather the parameters of a model under `fully_shard`; `encode`
            does.
        """
        extractor = FeatureExtractor(self.encoder, self.bottleneck, (representation,))
        extractor.training = self.training
        return extractor

    def freeze_encoder(self, frozen: bool = True) -> StochConWrapper:
        """Freeze the encoder's weights and statistics, to train the bottleneck and the head only.

        The encoder runs in evaluation mode, also after `train()`, without gradients and stored activations. Call this
        before wrapping the model in `DistributedDataParallel`.

        Args:
            frozen: False to unfreeze; parameters that did not require gradients before still do not.

        Returns:
            The model itself.
        """
        self.encoder.freeze(frozen)
        self.encoder.train(self.training)
        return self

    def _encode(self, x: Tensor, representations: Sequence[Representation], *, posterior: bool = False) -> Encoding:
        """All that the representations need from one pass; training flags and gradients as they are set."""
        _checks.check_images(x, "x")
        extractor = FeatureExtractor(self.encoder, self.bottleneck, representations, posterior=posterior)
        if is_sharded(self) and "_read" not in vars(self):
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self, "_read")  # gathers the parameters, as forward does
        return self._read(extractor, x)

    def _read(self, extractor: FeatureExtractor, x: Tensor) -> Encoding:
        return extractor.read(x)

    def _features(self, x: Tensor) -> Tensor:
        if self.checkpoint_encoder and not self.encoder.frozen and self.training and torch.is_grad_enabled():
            # Compiled code updates each statistic once by itself, and supports no context_fn.
            contexts: dict[str, Any] = {}
            if not torch.compiler.is_compiling():
                contexts["context_fn"] = lambda: (nullcontext(), RecomputedState(self.encoder))
            features: Tensor = checkpoint(self.encoder, x, use_reentrant=False, **contexts)
        else:
            features = self.encoder(x)
        return features

    def _stochastic_branch(
        self, own: Tensor, opposing: Tensor, sample: bool | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Posterior]:
        if self.detach_encoder:
            own, opposing = own.detach(), opposing.detach()
        other = opposing if self.variance_from == "opposing" else None
        upsampled, z, posterior = self.bottleneck(own, other, sample=sample, samples=self.samples, generator=generator)
        # One sample at a time: batch normalization takes the statistics of one.
        v = self.head(upsampled) if z.ndim == 2 else torch.stack([self.head(u) for u in upsampled])
        return v, z, posterior

    def extra_repr(self) -> str:
        """The options that `repr` shows."""
        return f"variance_from={self.variance_from!r}, symmetric={self.symmetric}, samples={self.samples}"


def _refuse_contradictions(bottleneck: StochasticBottleneck, options: dict[str, Any]) -> None:
    """Raise an error for options given together with a bottleneck, unless they are defaults or its own."""
    defaults = inspect.signature(StochasticBottleneck).parameters
    for name, value in options.items():
        if value != defaults[name].default and value != getattr(bottleneck, name):
            raise ValueError(
                f"{name} must be left out when bottleneck is given, or equal the bottleneck's, got {value!r}; build it "
                f"with StochasticBottleneck(..., {name}={value!r})"
            )


def _stack(a: Posterior, b: Posterior) -> Posterior:
    """Two posteriors as one with a leading dimension of 2; a 0-d temperature is shared."""
    fields: Any = zip(a, b, strict=True)
    return type(a)(*(x if x.ndim == 0 else torch.stack((x, y)) for x, y in fields))
