"""A Lightning callback that logs how latents are used."""

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
    """Lightning callback that logs how the latents of a module in training are used.

    On every step that the Trainer logs (`log_every_n_steps`), a forward hook reads the posteriors of each
    `StochasticBottleneck`, and `latent_statistics` of them are logged as "latent/kl", "latent/ones_mean" and
    so on; with several bottlenecks as "latent/NAME/kl". On all other steps there is no hook, and nothing waits
    for the device. Training itself computes the same numbers with and without it. Of several processes the
    first one logs its own images.

    A posterior of your own kind has to be a named tuple, as the library's are: those of one step are joined field
    by field along the images. A field without dimensions, or one that is no tensor, is taken from the last.

    It is a callback of `lightning` and of `pytorch_lightning`, of whichever are imported when it is first asked for.
    Code compiled by torch.compile does not run hooks; a warning says so once, and nothing is logged.

    Args:
        bottlenecks: names of the bottlenecks inside the LightningModule, such as "model.bottleneck"; None for
            all there are.

    Raises:
        ModuleNotFoundError: when imported without Lightning (extra "lightning").
        TypeError: for anything but names.
        ValueError: for no name, and when training starts, for a module without a bottleneck, or a name that is not
            one's.
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
        self._seen: dict[str, list[Posterior]] = {}
        self._has_warned = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the bottlenecks."""
        self._watched = self._find(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Listen, if this step is one that the Trainer logs."""
        self._release()
        # Lightning's own monitors ask the connector too; there is no public name for it.
        if trainer.is_global_zero and trainer._logger_connector.should_update_logs:
            for name, bottleneck in self._watched.items():
                self._handles.append(bottleneck.register_forward_hook(self._keep(name)))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was heard."""
        watching, seen = bool(self._handles), self._release()
        if watching:
            self._warn(
                self._watched.keys() - seen.keys(),
                "whose forward was not called in this step; hooks do not run in compiled code, nor when only "
                "posterior() is called",
            )
        values: dict[str, float] = {}
        mute = set()
        for name, posteriors in seen.items():
            prefix = "latent" if len(self._watched) == 1 else f"latent/{name}"
            statistics = latent_statistics(_joined(posteriors))
            values |= {f"{prefix}/{key}": value for key, value in statistics.items()}
            if not statistics:
                mute.add(name)
        self._warn(mute, "whose posterior has neither kl() nor entropy(); give it one of them")
        if values:
            pl_module.log_dict(values, on_step=True, on_epoch=False, rank_zero_only=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the module."""
        self._release()
        self._watched = {}

    def _warn(self, names: Set[str], why: str) -> None:
        """Say, once, of which bottlenecks nothing is logged."""
        if names and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"LatentMonitor logs nothing of {', '.join(sorted(names))}, {why}", stacklevel=3)

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

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: BottleneckOutput) -> None:
            fields: Any = output.posterior
            kept = type(output.posterior)(*(x.detach() if isinstance(x, Tensor) else x for x in fields))
            self._seen.setdefault(name, []).append(kept)

        return hook

    def _release(self) -> dict[str, list[Posterior]]:
        for handle in self._handles:
            handle.remove()
        seen, self._handles, self._seen = self._seen, [], {}
        return seen


def _joined(posteriors: list[Posterior]) -> Posterior:
    """The posteriors of one step (both directions, or parts of a batch) as one; what images share is the last's."""
    fields: Any = zip(*posteriors, strict=True)
    return type(posteriors[0])(*(torch.cat(x) if _is_of_images(x[-1]) else x[-1] for x in fields))


def _is_of_images(field: Any) -> bool:
    """Whether a posterior's field has a row for each image, as a temperature has not."""
    return isinstance(field, Tensor) and field.ndim > 0
