"""What a latent does during training: numbers of a batch, and Lightning callbacks that log and anneal.

Lightning is imported when a callback is asked for. It is installed under two names, `lightning` and
`pytorch_lightning`, each with classes of its own; the callbacks belong to whichever of them are imported by then.
"""

from typing import TYPE_CHECKING, Any

from stochastic_bottleneck.callbacks.statistics import latent_statistics

if TYPE_CHECKING:
    from stochastic_bottleneck.callbacks.latent_monitor import LatentMonitor
    from stochastic_bottleneck.callbacks.temperature_annealing import TemperatureAnnealing

__all__ = ["LatentMonitor", "TemperatureAnnealing", "latent_statistics"]


def __getattr__(name: str) -> Any:
    """A callback, whose base class is Lightning's, imported when it is asked for."""
    if name == "LatentMonitor":
        from stochastic_bottleneck.callbacks.latent_monitor import LatentMonitor

        return LatentMonitor
    if name == "TemperatureAnnealing":
        from stochastic_bottleneck.callbacks.temperature_annealing import TemperatureAnnealing

        return TemperatureAnnealing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
