"""The stochastic bottleneck: projector pi, latent, upsampler rho."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stochastic_bottleneck import _checks
from stochastic_bottleneck._layers import LazyLinear, evaluation_mode, named_map
from stochastic_bottleneck._whitening import location_norm
from stochastic_bottleneck.posteriors import BernoulliPosterior, GaussianPosterior, Posterior

__all__ = ["BottleneckOutput", "StochasticBottleneck"]

Map = Literal["linear", "mlp", "identity"] | nn.Module
MAX_LOG_STD = 10.0
"""Bound of a Gaussian's log standard deviation: within e^-10..e^10 a KL stays finite in float32."""


class BottleneckOutput(NamedTuple):
    """What the bottleneck returns, whatever its kind.

    Args:
        features: features after the upsampler rho. Shape: (N, out_features), or (K, N, out_features) for K samples
        z: latent, sampled or the mode. Shape: (N, D), or (K, N, D)
        posterior: distribution of `z`.
    """

    features: Tensor
    z: Tensor
    posterior: Posterior


class StochasticBottleneck(nn.Module):
    r"""Stochastic latent between an encoder's features and a head.

    .. math::
        \phi = \pi(h), \qquad z \sim q(z \mid \phi), \qquad h'' = \rho(z)

    `train()` draws a sample, differentiable in the parameters; `eval()` takes the mode (exact 0/1 for "bern",
    the mean for "gauss"). `sample=` overrides either.

    Args:
        kind: "bern" for bits, "gauss" for Gaussians.
        dim: number of latent dimensions D; for "bern", of bits.
        in_features: width F of the features; None infers it from the first batch (run one before compiling).
        out_features: width of the upsampler's output; None for `in_features`.
        temperature: bern: Concrete temperature of the relaxed samples. Change it with `set_temperature`, or
            anneal it with `TemperatureSchedule`; it is part of the `state_dict`.
        hard: bern: exact bits in training too, with the relaxed gradient (straight-through).
        variance: gauss: "diagonal" for one variance per dimension (what the paper calls Iso-Gauss has a
            diagonal covariance in the author's public code), "isotropic" for one per sample.
        projector: pi: "linear", "mlp" (linear, BatchNorm, ReLU, linear), "identity" (the features are the
            latent's parameters), or a module that maps (N, F) to (N, parameters): D logits for "bern", D means
            and then D ("diagonal") or 1 ("isotropic") log standard deviations for "gauss".
        upsampler: rho: the same choices; a module maps (N, D) to (N, out_features).
        location_std: standard deviation over the batch to which logits or means are normalised, so that they are
            not small next to the noise, whose standard deviation is 1.8 for a bit and 1 for a Gaussian. None leaves
            the projector's output as it is, as in the paper's formula. To weight the KL, use None or
            `learnable_scale`: under a fixed scale the KL cannot make logits smaller, and makes some of them outliers.
        learnable_scale: learn that standard deviation, one for all dimensions, for a loss with a weight on the KL;
            InfoNCE alone makes it grow.
        normalization: "batch" (BatchNorm without affine parameters), "whiten" to take out correlations too, over all
            processes (one that others predict has a standard deviation below `location_std`), or None: no scale either.
        shrinkage: of "whiten": weight of the identity in the correlation matrix, 0 to 1. 0 needs batches larger than D.

    Raises:
        ValueError: for a value outside its range, or features of another width.
        TypeError: for a projector or upsampler that is neither a name nor a module.
        RuntimeError: in compiled code, for a generator, or a first batch that sets `in_features`.

    Example:
        >>> import torch
        >>> bottleneck = StochasticBottleneck("bern", dim=16, in_features=32)
        >>> features, z, posterior = bottleneck(torch.randn(8, 32))
        >>> features.shape, z.shape, posterior.kl().shape
        (torch.Size([8, 32]), torch.Size([8, 16]), torch.Size([8]))
        >>> bottleneck.eval()(torch.randn(8, 32)).z.unique()
        tensor([0., 1.])

    Source:
        StochCon (arXiv 2110.00552), Algorithm 1, steps 3 to 5. Widths, depths and the normalisation of the
        location are not in the poster; they are our choices.
    """

    temperature: Tensor
    log_scale: nn.Parameter | None

    def __init__(
        self,
        kind: Literal["bern", "gauss"] = "bern",
        dim: int = 128,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        temperature: float = 1.0,
        hard: bool = False,
        variance: Literal["diagonal", "isotropic"] = "diagonal",
        projector: Map = "linear",
        upsampler: Map = "linear",
        location_std: float | None = 2.0,
        learnable_scale: bool = False,
        normalization: Literal["batch", "whiten"] | None = "batch",
        shrinkage: float = 0.1,
    ) -> None:
        super().__init__()
        _checks.choice("kind", kind, ("bern", "gauss"))
        _checks.choice("variance", variance, ("diagonal", "isotropic"))
        _checks.flag("hard", hard)
        _checks.flag("learnable_scale", learnable_scale)
        dim = _checks.integer("dim", dim)
        if in_features is not None:
            in_features = _checks.integer("in_features", in_features)
        if out_features is not None:
            out_features = _checks.integer("out_features", out_features)
        shrinkage = _checks.real("shrinkage", shrinkage, least=0, most=1)
        if location_std is not None:
            location_std = _checks.real("location_std", location_std, above=0, hint="None leaves logits as they are")
        if normalization is not None:
            _checks.choice("normalization", normalization, ("batch", "whiten"))
        if location_std is None or normalization is None:
            if learnable_scale or normalization == "whiten":
                raise ValueError(
                    f"{'learnable_scale=True' if learnable_scale else 'whitening'} needs a scale, got location_std="
                    f'{location_std} and normalization={normalization!r}; give location_std=2.0 and "batch" or "whiten"'
                )
            location_std = normalization = None
        if hard and kind != "bern":
            raise ValueError('hard=True needs bits, got kind="gauss"; leave hard=False')
        self.kind, self.dim, self.hard, self.variance = kind, dim, hard, variance
        self.in_features, self.out_features = in_features, out_features or in_features
        self.location_std, self.learnable_scale = location_std, learnable_scale
        self.projector = named_map("projector", projector, in_features, in_features, self.parameter_width)
        self.normalization, self.shrinkage = normalization, shrinkage
        self.location_norm = location_norm(normalization, dim, shrinkage)
        self.log_scale = None
        if location_std is not None and learnable_scale:
            # The logarithm keeps the scale positive. One element, since fully_shard takes no scalars.
            self.log_scale = nn.Parameter(torch.tensor([math.log(location_std)]))
        self.upsampler = named_map("upsampler", upsampler, dim, self.out_features, self.out_features)
        # A buffer follows the module's device, is saved with it, and can change without recompiling.
        self.register_buffer("temperature", torch.tensor(_temperature(temperature)))
        self._check_identity_widths(self.in_features, self.out_features)

    @property
    def parameter_width(self) -> int:
        """Number of latent parameters per image, the projector's output width."""
        if self.kind == "bern":
            return self.dim
        return 2 * self.dim if self.variance == "diagonal" else self.dim + 1

    def set_temperature(self, temperature: float) -> None:
        """Change the Concrete temperature, in place.

        Args:
            temperature: new temperature, at least 1e-6.

        Raises:
            ValueError: for a temperature below that, or that is not finite.
            TypeError: for anything but a number.
        """
        self.temperature.fill_(_temperature(temperature))

    def materialize(self, in_features: int) -> None:
        """Set the width of a bottleneck that was built with in_features=None, as its first batch would.

        Args:
            in_features: width F of the features.

        Raises:
            ValueError: for a width that differs from its own, or does not fit its projector and upsampler.
        """
        in_features = _checks.integer("in_features", in_features)
        if self.in_features is None:
            self._adopt_width(self.temperature.new_zeros(1, in_features))
        if self.in_features != in_features:
            raise ValueError(
                f"bottleneck takes {self.in_features} features (in_features), but the encoder gives {in_features}"
            )

    def posterior(self, features: Tensor, opposing: Tensor | None = None) -> Posterior:
        """Latent distribution of each image.

        Args:
            features: Shape: (N, F)
            opposing: the other view's features, whose variance is used with this view's mean (gauss only; bern
                has no variance parameter). Shape: (N, F)

        Returns:
            `BernoulliPosterior` or `GaussianPosterior`, the parameters in the features' precision.
        """
        if torch.compiler.is_compiling():
            return self._posterior(features, opposing)
        try:
            return self._posterior(features, opposing)
        except RuntimeError as error:
            _checks.explain_mismatch("features", features, self, error)
            raise

    def _posterior(self, features: Tensor, opposing: Tensor | None) -> Posterior:
        self._check_features(features, "features")
        parameters = self._project(features)
        location = self.location_norm(parameters[:, : self.dim])
        if self.log_scale is not None:
            location = location * self.log_scale.exp().to(location.dtype)
        elif self.location_std is not None:
            location = location * self.location_std
        if self.kind == "bern":
            # A copy, since the buffer may change before the backward pass (annealing, DDP's broadcast).
            return BernoulliPosterior(location, self.temperature.clone())
        if opposing is not None:
            self._check_features(opposing, "opposing")
            if opposing.shape != features.shape or opposing.dtype != features.dtype:
                raise ValueError(
                    f"opposing must have the shape and dtype of features, {tuple(features.shape)} and "
                    f"{features.dtype}, got {tuple(opposing.shape)} and {opposing.dtype}"
                )
            parameters = self._project(opposing)
        raw = parameters[:, self.dim :]
        return GaussianPosterior(location, MAX_LOG_STD * torch.tanh(raw / MAX_LOG_STD))

    def forward(
        self,
        features: Tensor,
        opposing: Tensor | None = None,
        *,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        samples: int = 1,
    ) -> BottleneckOutput:
        """Pass features through the latent.

        Args:
            features: Shape: (N, F)
            opposing: the other view's features (gauss: gives the variance). Shape: (N, F)
            sample: draw (True) or take the mode (False); None follows `training`.
            generator: source of the noise; None for the global one, which compiled code needs.
            samples: latents to draw per image; when sampling, more than 1 give latent and features a leading
                dimension. 0 takes the mode, for "bern" with the gradient of the relaxed bits (straight-through).

        Returns:
            Upsampled features, latent and posterior.
        """
        if sample is not None:
            _checks.flag("sample", sample)
        samples = _checks.integer("samples", samples, least=0)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        posterior = self.posterior(features, opposing)
        draw = self.training if sample is None else sample
        latents = self._draw(posterior, samples, generator) if draw else [posterior.mode()]
        # One sample at a time: batch normalization takes the statistics of one.
        several = [self.upsampler(z) for z in latents]
        upsampled, z = (x[0] if len(x) == 1 else torch.stack(x) for x in (several, latents))
        if upsampled.shape[-1] != self.out_features:
            raise ValueError(
                f"upsampler must give {self.out_features} features per image (out_features), "
                f"got {upsampled.shape[-1]}; set out_features to that"
            )
        return BottleneckOutput(upsampled, z, posterior)

    def _draw(self, posterior: Posterior, samples: int, generator: torch.Generator | None) -> list[Tensor]:
        """Latents of a batch: `samples` of them, or for 0 the mode, with a gradient."""
        if isinstance(posterior, BernoulliPosterior):
            if samples == 0:
                return [posterior.rsample(hard=True, noise=torch.zeros_like(posterior.logits))]
            return [posterior.rsample(hard=self.hard, generator=generator) for _ in range(samples)]
        return [posterior.rsample(generator=generator) for _ in range(samples)] or [posterior.mode()]

    def _project(self, features: Tensor) -> Tensor:
        parameters: Tensor = self.projector(features)
        if parameters.shape[-1] != self.parameter_width:
            raise ValueError(
                f'projector must give {self.parameter_width} parameters per image for kind="{self.kind}" and '
                f"dim={self.dim}, got {parameters.shape[-1]}"
            )
        return parameters

    def _check_features(self, features: Tensor, name: str) -> None:
        _checks.check_floating(features, name)
        if features.ndim != 2:
            raise ValueError(
                f"{name} must have shape (N, F), got {tuple(features.shape)}; pool or flatten to one row per image"
            )
        if features.device != self.temperature.device:
            raise ValueError(
                f"{name} must be on the module's device, {self.temperature.device}, got {features.device}; "
                "move one with .to()"
            )
        if 0 in features.shape:
            raise ValueError(f"{name} is empty, shape {tuple(features.shape)}; skip empty batches")
        if self.in_features is None:
            self._adopt_width(features)
        if features.shape[1] != self.in_features:
            raise ValueError(f"{name} must be {self.in_features} wide (in_features), got {features.shape[1]}")
        if self.training and self.location_std is not None and features.shape[0] == 1:
            raise ValueError(
                "a training batch of one image cannot be normalised; use a larger batch (drop_last=True in the data "
                "loader), or location_std=None and maps without BatchNorm"
            )

    def _adopt_width(self, features: Tensor) -> None:
        """Take the feature width from the first batch and materialize the lazy layers."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "in_features=None is set by the first batch, which compiled code cannot do; run one batch before "
                "compiling, or give in_features"
            )
        lazy = [m for m in self.projector.modules() if isinstance(m, LazyLinear)]
        loaded = bool(lazy) and not is_lazy(lazy[0].weight)  # a state_dict was loaded before the first batch
        width = lazy[0].weight.shape[1] if loaded else features.shape[1]
        self._check_identity_widths(width, self.out_features or width)
        self.in_features, self.out_features = width, self.out_features or width
        for layer in self.upsampler.modules():
            if isinstance(layer, LazyLinear) and not layer.out_features:
                layer.out_features = self.out_features
        # A row of zeros in evaluation mode materializes them without changing statistics or random numbers.
        for module, width in ((self.projector, self.in_features), (self.upsampler, self.dim)):
            if any(is_lazy(p) for p in module.parameters()):
                # A parameter created in inference mode cannot be trained.
                with evaluation_mode(module), torch.inference_mode(False), torch.no_grad():
                    module(features.new_zeros(1, width))

    def _check_identity_widths(self, width: int | None, out: int | None) -> None:
        if type(self.projector) is nn.Identity and width not in (None, self.parameter_width):
            raise ValueError(
                f'projector="identity" needs in_features={self.parameter_width} (the latent\'s parameters), '
                f'got {width}; use projector="linear"'
            )
        if type(self.upsampler) is nn.Identity and out not in (None, self.dim):
            raise ValueError(
                f'upsampler="identity" gives dim={self.dim} features, but out_features is {out}; '
                f'set out_features={self.dim} or use upsampler="linear"'
            )

    def extra_repr(self) -> str:
        """The options that `repr` shows."""
        options = f"kind={self.kind!r}, dim={self.dim}, in_features={self.in_features}"
        return options + (f", hard={self.hard}" if self.kind == "bern" else f", variance={self.variance!r}")


def _temperature(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()  # the checks do not read tensors
    return _checks.concrete_temperature(value)
