"""Statistics of a batch's latent, and Lightning callbacks that log, evaluate and anneal during training.

Lightning is imported when a callback is first accessed. It is installed under two names, `lightning` and
`pytorch_lightning`, each with classes of its own; the callbacks inherit from those that are imported by then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stochastic_bottleneck.callbacks.statistics import latent_statistics

if TYPE_CHECKING:
    from stochastic_bottleneck.callbacks.latent_monitor import LatentMonitor
    from stochastic_bottleneck.callbacks.online_knn import OnlineKNN
    from stochastic_bottleneck.callbacks.temperature_annealing import TemperatureAnnealing

__all__ = ["LatentMonitor", "OnlineKNN", "TemperatureAnnealing", "latent_statistics"]
_FILES = {
    "LatentMonitor": "latent_monitor",
    "OnlineKNN": "online_knn",
    "TemperatureAnnealing": "temperature_annealing",
}


def __getattr__(name: str) -> Any:
    """Import a callback, whose base class is Lightning's, when it is first accessed."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
