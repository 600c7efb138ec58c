"""A trained model, given itself or as the folder that it was saved to."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from stochastic_bottleneck._unwrap import as_wrapper
from stochastic_bottleneck.wrapper import StochConWrapper


def as_trained(model: nn.Module | str | os.PathLike[str]) -> StochConWrapper:
    """Load the `StochConWrapper` from a saved folder, or take it out of a module around it.

    Raises:
        FileNotFoundError: for a path that is not a folder; nothing is downloaded.
        ValueError: for a folder that `HubModel.from_pretrained` refuses.
        TypeError: for any other model.
    """
    if not isinstance(model, (str, os.PathLike)):
        return as_wrapper(model)
    if not Path(model).is_dir():
        raise FileNotFoundError(
            f"model must be a StochConWrapper or the folder of a saved one, got {os.fspath(model)!r}, which is not a "
            "folder; save a trained model with hub.HubModel.from_wrapper(model).save_pretrained(folder)"
        )
    from stochastic_bottleneck.hub import HubModel  # needs an extra, and most models come as modules

    return HubModel.from_pretrained(Path(model))
