"""Standard noise, drawn from torch's generators for whoever samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck._ops import bernoulli, philox


def logistic_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard logistic noise in `like`'s shape and device, float32 (float64 for a float64 `like`).

    Args:
        like: gives shape, device and dtype. Shape: (...)
        generator: source of randomness; None for the global one.

    Returns:
        Noise of mean 0 and standard deviation pi / sqrt(3). Shape: (...)

    Example:
        >>> import torch
        >>> noise = logistic_noise(torch.empty(2, 3), torch.Generator().manual_seed(0))
        >>> noise.shape
        torch.Size([2, 3])
    """
    options = _options(like, generator)
    if _compiled_for_cpu(options):
        return bernoulli.logistic_noise(philox.uniform(like.shape, _seed()))
    return bernoulli.logistic_noise(torch.rand(like.shape, **options))


def normal_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise in `like`'s shape and device, float32 (float64 for a float64 `like`).

    Args:
        like: gives shape, device and dtype. Shape: (...)
        generator: source of randomness; None for the global one.

    Returns:
        Noise of mean 0 and standard deviation 1. Shape: (...)
    """
    options = _options(like, generator)
    if _compiled_for_cpu(options):
        return philox.normal(like.shape, _seed())
    return torch.randn(like.shape, **options)


def relaxed_noise(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor | None) -> Tensor:
    """The noise of a relaxed sample, drawn where None was given; refuses arguments that cannot make a sample."""
    _checks.check_floating(logits, "logits")
    _checks.check_concrete(temperature, logits)
    _checks.flag("hard", hard)
    noise = logistic_noise(logits) if noise is None else noise
    _checks.check_noise(logits, noise, "logits")
    return noise


def gaussian_noise(mean: Tensor, log_std: Tensor, noise: Tensor | None) -> Tensor:
    """The noise of a Gaussian sample, likewise."""
    _checks.check_gaussian(mean, log_std)
    noise = normal_noise(mean) if noise is None else noise
    _checks.check_noise(mean, noise, "mean")
    return noise


def _options(like: Tensor, generator: torch.Generator | None) -> dict[str, Any]:
    _checks.check_floating(like, "like")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "device": like.device}
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "generator must be None in compiled code, where torch draws from the global generator only; "
                "seed that with torch.manual_seed, or pass noise"
            )
        options["generator"] = generator
    return options


def _compiled_for_cpu(options: dict[str, Any]) -> bool:
    # Compiled for a CPU, torch.rand and torch.randn draw one element after another.
    compiled = torch.compiler.is_compiling()
    return compiled and options["device"].type == "cpu" and options["dtype"] == torch.float32


def _seed() -> Tensor:
    return torch.randint(2**32, (2,))
