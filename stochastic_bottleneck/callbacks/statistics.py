"""Statistics of a batch's latent."""

from __future__ import annotations

from typing import Any

import torch

from stochastic_bottleneck import _checks, codes
from stochastic_bottleneck.posteriors import BernoulliPosterior, GaussianPosterior, Posterior

__all__ = ["latent_statistics"]


def latent_statistics(posterior: Posterior | tuple[Any, ...]) -> dict[str, float]:
    """Summary statistics of a batch's latent, as floats; reading them waits for the device.

    Args:
        posterior: of the batch, as the bottleneck or the wrapper returns it, or of your own kind.

    Returns:
        "kl" and "entropy", in nats, as means over the images, for every kind of posterior that has them. For bits
        also "ones_mean", "ones_min" and "ones_max", over the bits, of the share of images for which a bit is one;
        "bit_entropy", the mean entropy of those shares in bits (1 for balanced bits, 0 for constant ones);
        "effective_bits", of `codes.effective_bits`, which a small batch lowers; and "temperature". For Gaussians also
        "variance_mean", "variance_min" and "variance_max".

    Raises:
        TypeError: for anything but a posterior.
        ValueError: for a posterior without images, or not of shape (N, D).

    Example:
        >>> import torch
        >>> statistics = latent_statistics(BernoulliPosterior(torch.tensor([[9.0, 9.0], [-9.0, 9.0]])))
        >>> statistics["ones_mean"], statistics["ones_min"], statistics["bit_entropy"]
        (0.75, 0.5, 0.5)
    """
    if not hasattr(posterior, "rsample") or not hasattr(posterior, "mode"):
        raise TypeError(
            f"posterior must be a posterior, with rsample() and mode(), got {type(posterior).__name__}; pass "
            "output.posterior"
        )
    if isinstance(posterior, (BernoulliPosterior, GaussianPosterior)):
        name = posterior._fields[0]
        _checks.check_floating(posterior[0], f"posterior.{name}")
        if posterior[0].ndim < 2 or posterior[0].numel() == 0:
            raise ValueError(
                f"posterior.{name} must have shape (N, D) with at least one image, got {tuple(posterior[0].shape)}"
            )
    with torch.no_grad():
        measures = [name for name in ("kl", "entropy") if hasattr(posterior, name)]
        found = {name: getattr(posterior, name)().cpu().double().mean() for name in measures}
        if isinstance(posterior, BernoulliPosterior):
            bits = (posterior.logits > 0).flatten(0, -2)
            ones = codes.share_of_ones(bits)
            found |= {"ones_mean": ones.mean(), "ones_min": ones.min(), "ones_max": ones.max()}
            found |= {"bit_entropy": codes.bit_entropy(bits).mean(), "effective_bits": codes.effective_bits(bits)}
            found |= {"temperature": posterior.temperature}
        elif isinstance(posterior, GaussianPosterior):
            variance = (2 * posterior.log_std.cpu().double()).exp()
            found |= {"variance_mean": variance.mean(), "variance_min": variance.min()}
            found |= {"variance_max": variance.max()}
    return {name: float(value) for name, value in found.items()}
