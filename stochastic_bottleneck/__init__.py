"""Stochastic latents for contrastive learning (StochCon, arXiv 2110.00552)."""

from stochastic_bottleneck import codes, functional
from stochastic_bottleneck._version import __version__
from stochastic_bottleneck.bottleneck import BottleneckOutput, StochasticBottleneck
from stochastic_bottleneck.encoders import Encoder, as_encoder
from stochastic_bottleneck.fitting import fit_bottleneck
from stochastic_bottleneck.gradient_cache import cached_backward
from stochastic_bottleneck.losses import ClipLoss, InfoNCELoss, StochConLoss, SupConLoss
from stochastic_bottleneck.posteriors import BernoulliPosterior, GaussianPosterior
from stochastic_bottleneck.schedules import TemperatureSchedule
from stochastic_bottleneck.wrapper import StochConOutput, StochConWrapper

__all__ = [
    "BernoulliPosterior",
    "BottleneckOutput",
    "ClipLoss",
    "Encoder",
    "GaussianPosterior",
    "InfoNCELoss",
    "StochConLoss",
    "StochConOutput",
    "StochConWrapper",
    "StochasticBottleneck",
    "SupConLoss",
    "TemperatureSchedule",
    "__version__",
    "as_encoder",
    "cached_backward",
    "codes",
    "fit_bottleneck",
    "functional",
]
