"""Methods that timm's optimizers and training scripts call, forwarded to the encoder."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck.encoders import Encoder

BACKBONE = "encoder.backbone."
"""Prefix of the encoder's parameters in the model."""


class TimmMethods(nn.Module):
    """timm's methods, for a model whose `encoder.backbone` has them."""

    encoder: Encoder

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """Layers for timm's layer-wise learning rates: the encoder's, then the bottleneck and head as one.

        Only if the encoder, a timm model, has it: `timm.optim.create_optimizer_v2(model, layer_decay=0.75)`.
        """
        own: Any = self.encoder.backbone.group_matcher  # AttributeError makes hasattr False for this model too
        return lambda coarse=False: _inside(own(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Names of the encoder's parameters without weight decay in timm's optimizers, such as position embeddings."""
        own: Any = getattr(self.encoder.backbone, "no_weight_decay", set)
        return {BACKBONE + name for name in own()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of the encoder, a timm model, in the backward pass.

        Args:
            enable: False turns it off.

        Raises:
            TypeError: for an encoder without this method.
        """
        _checks.flag("enable", enable)
        own: Any = getattr(self.encoder.backbone, "set_grad_checkpointing", None)
        with suppress(AssertionError):  # timm asserts on models without it
            if own is not None:
                own(enable=enable)
                return
        raise TypeError(
            f"set_grad_checkpointing needs an encoder that recomputes its blocks, got "
            f"{type(self.encoder.backbone).__name__}; use StochConWrapper(..., checkpoint_encoder=True)"
        )


def _inside(matcher: Any) -> Any:
    """Translate the encoder's `group_matcher` to the longer parameter names of this model.

    Args:
        matcher: function from a name to the number of its group; or a dict of patterns, each a string, None, or a list
            of pairs of a string and further numbers. timm puts parameters that match nothing into a last group.
    """
    if callable(matcher):
        return lambda name: matcher(name[len(BACKBONE) :]) if name.startswith(BACKBONE) else math.inf
    return {group: _longer(patterns) for group, patterns in matcher.items()}


def _longer(patterns: Any) -> Any:
    if patterns is None:
        return None
    if isinstance(patterns, str):
        # timm matches from the start of a name, so "^" would not match after the prefix.
        pattern = re.sub(r"(?<![\\\[])\^", "", patterns)
        return f"{re.escape(BACKBONE)}(?:{pattern})"
    return [(_longer(pattern), further) for pattern, further in patterns]
