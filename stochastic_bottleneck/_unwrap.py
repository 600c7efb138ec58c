"""Unwrap compiled and data-parallel modules around a `StochConWrapper`."""

from __future__ import annotations

from torch import nn

from stochastic_bottleneck.encoders import unwrap
from stochastic_bottleneck.wrapper import StochConWrapper


def as_wrapper(model: nn.Module) -> StochConWrapper:
    """The `StochConWrapper` inside any module that `unwrap` takes off, or `model` itself.

    Args:
        model: a wrapper, or a module around one.

    Raises:
        TypeError: for any other model.
    """
    inner = unwrap(model) if isinstance(model, nn.Module) else model
    if not isinstance(inner, StochConWrapper):
        raise TypeError(
            f"model must be a StochConWrapper, got {type(inner).__name__}; wrap the encoder, or an existing model "
            "with StochConWrapper.from_simclr"
        )
    return inner
