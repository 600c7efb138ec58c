"""What a latent does during training: numbers of a batch, and a Lightning callback that logs them."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from stochastic_bottleneck import codes
from stochastic_bottleneck._extras import require
from stochastic_bottleneck.bottleneck import BottleneckOutput, StochasticBottleneck
from stochastic_bottleneck.posteriors import BernoulliPosterior, GaussianPosterior, Posterior

__all__ = ["LatentMonitor", "latent_statistics"]

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names under which Lightning is installed, each with classes of its own."""


def latent_statistics(posterior: Posterior | tuple[Any, ...]) -> dict[str, float]:
    """How a batch uses its latent, in a few numbers; reading them waits for the device.

    Args:
        posterior: of the batch, as the bottleneck or the wrapper returns it; one of your own kind too.

    Returns:
        "kl" and "entropy", in nats, as means over the images, whatever the kind; the one that a posterior of
        your own does not have is left out. For bits also "ones_mean", "ones_min" and "ones_max", the shares of
        the batch's images on which a bit is one, over the bits; "bit_entropy", the entropy of those shares in
        bits (1 for balanced bits, 0 for constant ones); and "temperature". For Gaussians also "variance_mean",
        "variance_min" and "variance_max".

    Example:
        >>> import torch
        >>> statistics = latent_statistics(BernoulliPosterior(torch.tensor([[9.0, 9.0], [-9.0, 9.0]])))
        >>> statistics["ones_mean"], statistics["ones_min"], statistics["bit_entropy"]
        (0.75, 0.5, 0.5)
    """
    with torch.no_grad():
        offered = [name for name in ("kl", "entropy") if hasattr(posterior, name)]
        found = {name: getattr(posterior, name)().double().mean() for name in offered}
        if isinstance(posterior, BernoulliPosterior):
            bits = (posterior.logits > 0).flatten(0, -2)
            ones = codes.share_of_ones(bits)
            found |= {"ones_mean": ones.mean(), "ones_min": ones.min(), "ones_max": ones.max()}
            found |= {"bit_entropy": codes.bit_entropy(bits).mean(), "temperature": posterior.temperature}
        elif isinstance(posterior, GaussianPosterior):
            variance = (2 * posterior.log_std.double()).exp()
            found |= {"variance_mean": variance.mean(), "variance_min": variance.min()}
            found |= {"variance_max": variance.max()}
    return {name: float(value) for name, value in found.items()}


class LatentMonitor:
    """Lightning callback that logs how the latents of a module in training are used.

    On every step that the Trainer logs (`log_every_n_steps`), a forward hook reads the posteriors of each
    `StochasticBottleneck`, and `latent_statistics` of them are logged as "latent/kl", "latent/ones_mean" and
    so on; with several bottlenecks as "latent/NAME/kl". On all other steps there is no hook, and nothing waits
    for the device. Training itself computes the same numbers with and without it. Of several processes the
    first one logs its own images.

    A posterior of your own kind has to be a named tuple, as the library's are: those of one step are joined field
    by field along the images. A field without dimensions, or one that is no tensor, is taken from the last.

    It is a callback of `lightning` and of `pytorch_lightning`, of whichever are imported when it is built.
    Code compiled by torch.compile does not run hooks; a warning says so once, and nothing is logged.

    Args:
        bottlenecks: names of the bottlenecks inside the LightningModule, such as "model.bottleneck"; None for
            all there are.

    Raises:
        ModuleNotFoundError: when built without Lightning (extra "lightning").
        ValueError: when training starts, for a module without a bottleneck, or a name that is not one's.
    """

    def __init__(self, bottlenecks: str | Sequence[str] | None = None) -> None:
        self.bottlenecks = (bottlenecks,) if isinstance(bottlenecks, str) else bottlenecks
        self._watched: dict[str, StochasticBottleneck] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[str, list[Posterior]] = {}
        self._has_warned = False
        own: Any = type(self)
        self.__class__ = _as_callback(own, _callback_classes())

    def __reduce__(self) -> tuple[Any, ...]:
        # The class that was put together here has no name under which a pickle could find it.
        return _rebuild, (getattr(self, "_plain", type(self)), self.__dict__)

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
        found = {name: m for name, m in module.named_modules() if isinstance(m, StochasticBottleneck)}
        if not found:
            raise ValueError(
                f"LatentMonitor needs a StochasticBottleneck inside {type(module).__name__}, which has none; wrap "
                "its model with StochConWrapper, or make the bottleneck an attribute of the module"
            )
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


def _callback_classes() -> tuple[type, ...]:
    """`Callback` of every Lightning that is imported; of an installed one where none is."""
    imported = [module for name in LIGHTNING if (module := sys.modules.get(name)) is not None]
    if not imported:
        installed = [name for name in LIGHTNING if importlib.util.find_spec(name.partition(".")[0])]
        imported = [require((installed or LIGHTNING)[0], "LatentMonitor", "lightning")]
    return tuple(module.Callback for module in imported)


@functools.cache
def _as_callback(cls: Any, bases: tuple[type, ...]) -> Any:
    """The class with those bases that it lacks: Lightning asks its callbacks for its own class."""
    lacking = tuple(base for base in bases if not issubclass(cls, base))
    if not lacking:
        return cls
    return types.new_class(
        cls.__name__,
        (cls, *lacking),
        exec_body=lambda body: body.update(__module__=cls.__module__, _plain=cls),
    )


def _rebuild(cls: Any, state: dict[str, Any]) -> Any:
    monitor = cls.__new__(cls)
    monitor.__dict__.update(state)
    monitor.__class__ = _as_callback(cls, _callback_classes())
    return monitor
