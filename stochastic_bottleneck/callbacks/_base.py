"""Base class of the callbacks, and the search for bottlenecks in a module."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from torch import nn

from stochastic_bottleneck._extras import require
from stochastic_bottleneck.bottleneck import StochasticBottleneck

__all__ = ["Callback", "find_bottlenecks"]

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names under which Lightning is installed, each with classes of its own."""


def _callback_classes() -> tuple[type, ...]:
    """`Callback` of every imported Lightning package, or of an installed one if none is imported."""
    imported = [module for name in LIGHTNING if (module := sys.modules.get(name)) is not None]
    if not imported:
        installed = [name for name in LIGHTNING if importlib.util.find_spec(name.partition(".")[0])]
        imported = [require((installed or LIGHTNING)[0], "stochastic_bottleneck.callbacks", "lightning")]
    return tuple(module.Callback for module in imported)


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:

    class Callback(*_callback_classes()):
        """Lightning's callback; of both packages if both are imported."""


def find_bottlenecks(module: nn.Module, needed_by: str) -> dict[str, StochasticBottleneck]:
    """The bottlenecks inside a module, by name.

    Raises:
        ValueError: if there is none.
    """
    found = {name: m for name, m in module.named_modules() if isinstance(m, StochasticBottleneck)}
    if not found:
        raise ValueError(
            f"{needed_by} needs a StochasticBottleneck inside {type(module).__name__}, which has none; wrap its "
            "model with StochConWrapper, or make the bottleneck an attribute of the module"
        )
    return found
