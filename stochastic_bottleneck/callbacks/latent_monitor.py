"""A Lightning callback that logs statistics of the latents."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from stochastic_bottleneck.bottleneck import BottleneckOutput, StochasticBottleneck
from stochastic_bottleneck.callbacks._base import Callback, find_bottlenecks
from stochastic_bottleneck.callbacks.statistics import latent_statistics
from stochastic_bottleneck.posteriors import Posterior

__all__ = ["LatentMonitor"]


class LatentMonitor(Callback):
    """Lightning callback that logs statistics of the latents of a module in training.

    On every step that the Trainer logs (`log_every_n_steps`), a forward hook reads the posteriors of each
    `StochasticBottleneck`, and their `latent_statistics` are logged as "latent/kl", "latent/ones_mean" and
    so on; with several bottlenecks as "latent/NAME/kl". On all other steps there is no hook, and nothing waits
    for the device. Training computes the same with and without it. Of several processes the first logs, for its
    own images.

    A posterior of your own kind has to be a named tuple, as the library's are: those of one step are concatenated
    field by field along the images. A field without dimensions, or that is not a tensor, is taken from the last.

    It inherits from `Callback` of `lightning` and of `pytorch_lightning`, whichever are imported when it is first
    accessed. Code compiled by torch.compile does not run hooks; then a warning is issued once, and nothing is logged.

    Args:
        bottlenecks: names of the bottlenecks inside the LightningModule, such as "model.bottleneck"; None for all.

    Raises:
        ModuleNotFoundError: when imported without Lightning (extra "lightning").
        TypeError: for anything but names.
        ValueError: for no name; when training starts, for a module without a bottleneck, or a name that is not a
            bottleneck's.
    """

    def __init__(self, bottlenecks: str | Sequence[str] | None = None) -> None:
        names = (bottlenecks,) if isinstance(bottlenecks, str) else bottlenecks
        if names is not None:
            message = (
                f'bottlenecks must be a name, such as "model.bottleneck", a list of names, or None for all, got '
                f"{bottlenecks!r}"
            )
            if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise TypeError(message)
            if not all(names) or not names:
                raise ValueError(message)
        self.bottlenecks = None if names is None else tuple(names)
        self._watched: dict[str, StochasticBottleneck] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._posteriors: dict[str, list[Posterior]] = {}
        self._has_warned = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the bottlenecks."""
        self._watched = self._find(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Register the hooks if the Trainer logs this step."""
        self._remove_hooks()
        # Lightning's own monitors ask the connector too; there is no public name for it.
        if trainer.is_global_zero and trainer._logger_connector.should_update_logs:
            for name, bottleneck in self._watched.items():
                self._handles.append(bottleneck.register_forward_hook(self._hook(name)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the statistics of this step."""
        hooked, recorded = bool(self._handles), self._remove_hooks()
        if hooked:
            self._warn(
                self._watched.keys() - recorded.keys(),
                "whose forward was not called in this step; hooks do not run in compiled code, or when only "
                "posterior() is called",
            )
        values: dict[str, float] = {}
        without = set()
        for name, posteriors in recorded.items():
            prefix = "latent" if len(self._watched) == 1 else f"latent/{name}"
            statistics = latent_statistics(_concatenated(posteriors))
            values |= {f"{prefix}/{key}": value for key, value in statistics.items()}
            if not statistics:
                without.add(name)
        self._warn(without, "whose posterior has neither kl() nor entropy(); give it one of them")
        if values:
            pl_module.log_dict(values, on_step=True, on_epoch=False, rank_zero_only=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks."""
        self._remove_hooks()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove the hooks, and the references to the module."""
        self._remove_hooks()
        self._watched = {}

    def _warn(self, names: Set[str], why: str) -> None:
        """Warn once about bottlenecks that are not logged."""
        if names and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"LatentMonitor logs nothing for {', '.join(sorted(names))}, {why}", stacklevel=3)

    def _find(self, module: nn.Module) -> dict[str, StochasticBottleneck]:
        found = find_bottlenecks(module, "LatentMonitor")
        if self.bottlenecks is None:
            return found
        if missing := [name for name in self.bottlenecks if name not in found]:
            raise ValueError(
                f"bottlenecks must name those of {type(module).__name__}, {', '.join(map(repr, found))}, got "
                f"{', '.join(map(repr, missing))}"
            )
        return {name: found[name] for name in self.bottlenecks}

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: BottleneckOutput) -> None:
            fields: Any = output.posterior
            detached = type(output.posterior)(*(x.detach() if isinstance(x, Tensor) else x for x in fields))
            self._posteriors.setdefault(name, []).append(detached)

        return hook

    def _remove_hooks(self) -> dict[str, list[Posterior]]:
        """Remove the hooks and return the posteriors that they recorded."""
        for handle in self._handles:
            handle.remove()
        recorded, self._handles, self._posteriors = self._posteriors, [], {}
        return recorded


def _concatenated(posteriors: list[Posterior]) -> Posterior:
    """The posteriors of one step (both directions, or chunks of a batch) as one; shared fields are the last's."""
    fields: Any = zip(*posteriors, strict=True)
    return type(posteriors[0])(*(torch.cat(x) if isinstance(x[-1], Tensor) and x[-1].ndim else x[-1] for x in fields))
