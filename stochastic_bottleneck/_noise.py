"""Standard logistic and normal noise from torch's generators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck.kernels import bernoulli, philox


def logistic_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard logistic noise of the shape and on the device of `like`, float32 (float64 for a float64 `like`).

    Args:
        like: sets shape, device and dtype. Shape: (...)
        generator: None for the global one.

    Returns:
        Noise of mean 0 and standard deviation pi / sqrt(3). Shape: (...)

    Example:
        >>> import torch
        >>> noise = logistic_noise(torch.empty(2, 3), torch.Generator().manual_seed(0))
        >>> noise.shape
        torch.Size([2, 3])
    """
    options = _options(like, generator)
    if _uses_philox(options):
        return bernoulli.uniform_to_logistic_(philox.uniform(like.shape, _seed()))
    return bernoulli.uniform_to_logistic_(torch.rand(like.shape, **options))


def normal_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of the shape and on the device of `like`, float32 (float64 for a float64 `like`).

    Args:
        like: sets shape, device and dtype. Shape: (...)
        generator: None for the global one.

    Returns:
        Noise of mean 0 and standard deviation 1. Shape: (...)
    """
    options = _options(like, generator)
    if _uses_philox(options):
        return philox.normal(like.shape, _seed())
    return torch.randn(like.shape, **options)


def relaxed_noise(logits: Tensor, temperature: Tensor | float, hard: bool, noise: Tensor | None) -> Tensor:
    """Check the arguments of a relaxed sample; return `noise`, or new noise if it is None."""
    _checks.check_floating(logits, "logits")
    _checks.check_concrete(temperature, logits)
    _checks.flag("hard", hard)
    noise = logistic_noise(logits) if noise is None else noise
    _checks.check_noise(logits, noise, "logits")
    return noise


def gaussian_noise(mean: Tensor, log_std: Tensor, noise: Tensor | None) -> Tensor:
    """Check the arguments of a Gaussian sample; return `noise`, or new noise if it is None."""
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


def _uses_philox(options: dict[str, Any]) -> bool:
    # Compiled for a CPU, torch.rand and torch.randn generate one element after another.
    compiled = torch.compiler.is_compiling()
    return compiled and options["device"].type == "cpu" and options["dtype"] == torch.float32


def _seed() -> Tensor:
    return torch.randint(2**32, (2,), device="cpu")
