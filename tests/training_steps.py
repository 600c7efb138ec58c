"""Every part of the package that runs in a training step, as a module that maps a batch to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stochastic_bottleneck import (
    BernoulliPosterior,
    GaussianPosterior,
    InfoNCELoss,
    StochasticBottleneck,
    StochConWrapper,
    functional,
)

F, D = 12, 8  # widths of features and latents
IMAGE = (3, 8, 8)


class Step(nn.Module):
    """A module of the package, or None, and a loss computed with it.

    Args:
        loss: maps the module and the inputs to a scalar.
        shapes: shapes of the inputs without the batch dimension.
    """

    def __init__(self, module: nn.Module | None, loss: Callable[..., Tensor], *shapes: tuple[int, ...]):
        super().__init__()
        self.module, self.loss, self.shapes = module, loss, shapes

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs) if self.module is None else self.loss(self.module, *inputs)

    def inputs(self, n: int) -> list[Tensor]:
        """A batch, on the default device."""
        return [torch.randn(n, *shape, requires_grad=True) for shape in self.shapes]


def bottleneck(kind: str, *, training: bool = True, width: int = F, **options: object) -> Step:
    def loss(module: nn.Module, *features: Tensor) -> Tensor:
        features, z, posterior = module(*features)
        return features.square().mean() + z.square().mean() + posterior.kl().mean()

    module = StochasticBottleneck(kind, D, in_features=width, **options)
    views = 2 if kind == "gauss" else 1  # the variance of a Gaussian comes from the other view
    return Step(module.train(training), loss, *[(width,)] * views)


def wrapper(kind: str, *, training: bool = True, **options: object) -> Step:
    def loss(module: nn.Module, x: Tensor, x_prime: Tensor) -> Tensor:
        output = module(x, x_prime)
        return InfoNCELoss()(output.v, output.v_prime) + 1e-3 * output.posterior.kl().mean()

    # With a stride: without, torch's choice of a convolution algorithm on one CPU thread depends on the batch size.
    encoder = nn.Sequential(
        nn.Conv2d(3, F, 3, stride=2), nn.BatchNorm2d(F), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    module = StochConWrapper(encoder, kind=kind, dim=D, feature_dim=F, projection_dim=D, **options)
    return Step(module.train(training), loss, IMAGE, IMAGE)


def info_nce(*leading: int, **options: object) -> Step:
    def loss(module: nn.Module, v: Tensor, v_prime: Tensor) -> Tensor:
        # The batch is the second to last dimension.
        return module(*(x.movedim(0, -2) for x in (v, v_prime))).square().mean()

    return Step(InfoNCELoss(0.2, **options), loss, (*leading, D), (*leading, D))


def bernoulli_posterior(temperature: float, hard: bool = False) -> Step:
    def loss(logits: Tensor) -> Tensor:
        posterior = BernoulliPosterior(logits, temperature)
        z = posterior.rsample(hard=hard)
        measures = posterior.kl() + posterior.entropy() + posterior.log_prob(z) + posterior.log_prob(posterior.mode())
        return measures.mean() + z.mean()

    return Step(None, loss, (D,))


def gaussian_posterior(width: int) -> Step:
    def loss(mean: Tensor, log_std: Tensor) -> Tensor:
        posterior = GaussianPosterior(mean, log_std)
        z = posterior.rsample()
        return (posterior.kl() + posterior.entropy() + posterior.log_prob(z)).mean() + posterior.mode().mean()

    return Step(None, loss, (D,), (width,))


def function(call: Callable[..., Any], inputs: int = 1) -> Step:
    def loss(*x: Tensor) -> Tensor:
        return sum(result.square().mean() for result in as_tuple(call(*x)))

    return Step(None, loss, *[(D,)] * inputs)


def as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


BOTTLENECKS: dict[str, Callable[[], Step]] = {
    "bern": partial(bottleneck, "bern"),
    "bern, eval": partial(bottleneck, "bern", training=False),
    "bern, hard": partial(bottleneck, "bern", hard=True),
    "bern, mlp": partial(bottleneck, "bern", projector="mlp", upsampler="mlp"),
    "bern, identity": partial(bottleneck, "bern", width=D, projector="identity", upsampler="identity"),
    "bern, location not normalized": partial(bottleneck, "bern", location_std=None),
    "bern, whitened": partial(bottleneck, "bern", normalization="whiten"),
    "bern, whitened, eval": partial(bottleneck, "bern", normalization="whiten", training=False),
    "gauss": partial(bottleneck, "gauss"),
    "gauss, eval": partial(bottleneck, "gauss", training=False),
    "gauss, isotropic": partial(bottleneck, "gauss", variance="isotropic"),
    "gauss, mlp": partial(bottleneck, "gauss", projector="mlp", upsampler="mlp"),
}
WRAPPERS: dict[str, Callable[[], Step]] = {
    "wrapped bern": partial(wrapper, "bern"),
    "wrapped bern, eval": partial(wrapper, "bern", training=False),
    "wrapped bern, symmetric": partial(wrapper, "bern", symmetric=True),
    "wrapped gauss": partial(wrapper, "gauss"),
    "wrapped gauss, symmetric": partial(wrapper, "gauss", symmetric=True),
    "wrapped gauss, own variance": partial(wrapper, "gauss", variance_from="own"),
    "wrapped bern, checkpointed encoder": partial(wrapper, "bern", checkpoint_encoder=True),
}
LOSSES: dict[str, Callable[[], Step]] = {
    "loss": info_nce,
    "loss per row": partial(info_nce, reduction="none"),
    "loss in tiles": partial(info_nce, block_size=24),
    "two losses": partial(info_nce, 2),
}
POSTERIORS: dict[str, Callable[[], Step]] = {
    "Bernoulli": partial(bernoulli_posterior, 0.5),
    "Bernoulli, hard": partial(bernoulli_posterior, 0.5, hard=True),
    "Gaussian": partial(gaussian_posterior, D),
    "Gaussian, isotropic": partial(gaussian_posterior, 1),
}
FUNCTIONS: dict[str, Callable[[], Step]] = {
    "bernoulli_entropy": partial(function, functional.bernoulli_entropy),
    "bernoulli_kl": partial(function, functional.bernoulli_kl),
    "bernoulli_log_prob": partial(function, functional.bernoulli_log_prob, 2),
    "gaussian_entropy": partial(function, lambda x: functional.gaussian_entropy(x, x)),
    "gaussian_kl": partial(function, functional.gaussian_kl, 2),
    "gaussian_log_prob": partial(function, functional.gaussian_log_prob, 3),
    "gaussian_rsample": partial(function, functional.gaussian_rsample, 2),
    "gaussian_rsample_kl": partial(function, functional.gaussian_rsample_kl, 2),
    "info_nce": partial(function, functional.info_nce, 2),
    "logistic_noise": partial(function, lambda x: x + functional.logistic_noise(x)),
    "normal_noise": partial(function, lambda x: x + functional.normal_noise(x)),
    "relaxed_bernoulli_log_prob": partial(
        function, lambda x, z: functional.relaxed_bernoulli_log_prob(x, 0.5, z.sigmoid()), 2
    ),
    "relaxed_bernoulli_rsample": partial(function, lambda x: functional.relaxed_bernoulli_rsample(x, 0.5)),
    "relaxed_bernoulli_rsample_kl": partial(function, lambda x: functional.relaxed_bernoulli_rsample_kl(x, 0.5)),
}
"""One for each name in `functional.__all__`."""
STEPS = {**BOTTLENECKS, **WRAPPERS, **LOSSES, **POSTERIORS, **FUNCTIONS}
