"""The contrastive objectives as modules."""

from stochastic_bottleneck.losses.clip import ClipLoss
from stochastic_bottleneck.losses.info_nce import InfoNCELoss
from stochastic_bottleneck.losses.stochcon import StochConLoss
from stochastic_bottleneck.losses.supcon import SupConLoss

__all__ = ["ClipLoss", "InfoNCELoss", "StochConLoss", "SupConLoss"]
