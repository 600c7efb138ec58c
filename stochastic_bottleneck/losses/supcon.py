"""`SupConLoss`, InfoNCE with all images of a class as positives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck.kernels.contrastive import several_positives_losses
from stochastic_bottleneck.kernels.elementwise import without_autocast
from stochastic_bottleneck.kernels.exp_sums import make_options
from stochastic_bottleneck.losses._base import ContrastiveLoss

__all__ = ["SupConLoss"]


class SupConLoss(ContrastiveLoss):
    r"""Supervised contrastive loss: all other views with the label of a view are its positives.

    .. math::
        \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(\mathrm{sim}(v_i, v_p) / \tau)}
        {\sum_{k \neq i} \exp(\mathrm{sim}(v_i, v_k) / \tau)}

    where `sim` is the cosine similarity, over the rows of both views. A row without positives has loss 0 and is left
    out of the mean. If all labels differ, this is `InfoNCELoss`. No matrix of pairs is stored: the sum over positives
    is a product with the sum of a label's rows. Training and evaluation mode are the same.

    Args:
        temperature: tau, at least 0.01; with `learnable`, where it starts.
        learnable: make the temperature a parameter, as in `ClipLoss`.
        min_temperature: lower bound of a learned temperature, as in `ClipLoss`.
        reduction: "mean" over all rows with positives, or "none".
        block_size: largest number of rows and of columns in a tile of pairs; None to fit the processor's cache.

    Raises:
        ValueError: for a value out of range, in the constructor or in the call.
        TypeError: for views that differ in dtype or are not floating point, or labels that are not integers.

    Example:
        >>> import torch
        >>> v, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> criterion = SupConLoss()
        >>> round(criterion(v, v, labels).item(), 4)  # or criterion(output, labels=labels)
        6.6669

    Source:
        Khosla et al. (arXiv 2004.11362), equation 2, without the factor of temperatures of their code.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learnable: bool = False,
        min_temperature: float = _checks.MIN_TEMPERATURE,
        reduction: Literal["mean", "none"] = "mean",
        block_size: int | None = None,
    ) -> None:
        super().__init__(
            temperature,
            learnable=learnable,
            min_temperature=min_temperature,
            reduction=reduction,
            block_size=block_size,
        )

    def forward(self, v: Any, v_prime: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Loss of a batch of view pairs, or of one view of each image.

        Args:
            v: first views, Shape: (N, D), or (K, N, D) for K independent losses over the same images; or a
                `StochConOutput`, whose `v` and `v_prime` are used.
            v_prime: second views, row i from the same image as `v`'s row i; None for one view. Shape: as `v`
            labels: integers, of any value. Shape: (N,)

        Returns:
            Loss in nats, float32 or float64. Shape: () for "mean"; for "none" (2N,) or (K, 2N), the rows of `v` first,
            or for one view (N,) or (K, N)
        """
        self._check_options()
        v, v_prime = self._views(v, v_prime)
        if labels is None:  # first, since they may have been passed as the second views
            raise TypeError("labels must be a tensor of one integer per image, got None; pass labels=labels")
        _checks.check_views(v, v if v_prime is None else v_prime)
        _checks.check_labels(labels, v)
        with without_autocast(v.device.type):
            options = make_options(self.temperature, self.min_temperature, v, self.block_size)
            if v_prime is not None:
                v, labels = torch.cat((v, v_prime), dim=-2), labels.repeat(2)
            losses, has_positives = several_positives_losses(v, labels, options)
            if self.reduction == "none":
                return losses
            return losses.sum(dim=-1).mean() / has_positives.sum().clamp_min(1)
