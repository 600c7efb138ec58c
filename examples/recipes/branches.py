"""StochCon's stochastic branch beside the library's own: drawn again for the same features, or without its noise."""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck import StochConOutput, StochConWrapper
from stochastic_bottleneck.posteriors import Posterior


def drawn_again(model: StochConWrapper, output: StochConOutput) -> Tensor:
    """Head's output for another sample of the latents whose features are known; neither encoder runs again.

    Args:
        model: that gave the output, in training.
        output: of both views.

    Returns:
        In the shape of `output.v_prime`.
    """
    pairs = [(output.h_prime, output.h), (output.h, output.h_prime)][: 1 + model.symmetric]
    drawn = [model.head(model.bottleneck(own, _other(model, opposing)).features) for own, opposing in pairs]
    return torch.stack(drawn) if model.symmetric else drawn[0]


def without_noise(model: StochConWrapper, x: Tensor, x_prime: Tensor) -> StochConOutput:
    """Both branches with the noise of the latent set to zero: relaxed bits that are no sample, or the mean.

    Unlike the mode of a Bernoulli latent these have a gradient, so that a model can be trained on them.

    Args:
        model: in training.
        x: first views. Shape: (N, C, H, W)
        x_prime: second views. Shape: (N, C, H, W)

    Returns:
        As of `model(x, x_prime)`.
    """
    h, h_prime = model.encoder(x), model.encoder(x_prime)
    bottleneck = model.bottleneck

    def branch(own: Tensor, opposing: Tensor) -> tuple[Tensor, Tensor, Posterior]:
        posterior = bottleneck.posterior(own, _other(model, opposing))
        z = posterior.rsample(noise=torch.zeros_like(posterior[0]))
        return model.head(bottleneck.upsampler(z)), z, posterior

    v_prime, z, posterior = branch(h_prime, h)
    if not model.symmetric:
        return StochConOutput(model.head(h), v_prime, h, h_prime, z, posterior)
    first = branch(h, h_prime)
    fields = [a if a.ndim == 0 else torch.stack((a, b)) for a, b in zip(posterior, first[2], strict=True)]
    return StochConOutput(
        torch.stack((model.head(h), model.head(h_prime))),
        torch.stack((v_prime, first[0])),
        h,
        h_prime,
        torch.stack((z, first[1])),
        type(posterior)(*fields),
    )


def _other(model: StochConWrapper, opposing: Tensor) -> Tensor | None:
    """The view that gives a Gaussian's variance."""
    return opposing if model.variance_from == "opposing" else None
