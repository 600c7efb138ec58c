"""`ClipLoss`, the loss of two towers."""

from __future__ import annotations

from typing import Literal

import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck import _checks, distributed
from stochastic_bottleneck.kernels.contrastive import two_tower_losses
from stochastic_bottleneck.kernels.elementwise import without_autocast
from stochastic_bottleneck.kernels.exp_sums import make_options
from stochastic_bottleneck.losses._base import ContrastiveLoss

__all__ = ["ClipLoss"]


class ClipLoss(ContrastiveLoss):
    r"""Cross-entropy of two towers: the rows of one are compared with those of the other, not with their own.

    For queries q and keys k, such as images and texts, of which :math:`q_i` and :math:`k_i` belong together,

    .. math::
        \ell_i = -\log \frac{\exp(\mathrm{sim}(q_i, k_i) / \tau)}{\sum_j \exp(\mathrm{sim}(q_i, k_j) / \tau)}

    where `sim` is the cosine similarity; with `symmetric`, the mean of these losses and of those with queries and keys
    exchanged. Rows need not be normalised. No N x N matrix is stored. Training and evaluation mode are the same.

    Args:
        temperature: tau, at least 0.01; with `learnable`, where it starts. CLIP starts at 0.07, MoCo uses 0.07 or 0.2.
        learnable: make the logarithm of the temperature a parameter, `log_temperature` of Shape: (1,). Give it to the
            optimizer without weight decay, which would pull the temperature to 1. With several processes, put the loss
            into the module that DistributedDataParallel wraps, so that all processes learn one temperature.
        min_temperature: lower bound of a learned temperature, at least 0.01, which is CLIP's. Below 0.025,
            exponentials are float64, which GPUs compute several times slower; bfloat16 rows are multiplied in bfloat16
            from 0.05 on. On a GPU, a learned temperature is never copied to the host.
        symmetric: also compare each key with all queries, as CLIP does. False for one direction.
        gather_distributed: compare with the rows of all processes, with the exact gradient, as in `InfoNCELoss`. Not
            inside `torch.compile`.
        group: process group to gather from, as in `InfoNCELoss`.
        reduction: "mean" over all rows, or "none".
        block_size: largest number of rows and of columns in a tile of pairs; None to fit the processor's cache.

    Raises:
        ValueError: for a value out of range, in the constructor or in the call; on every process, if their batches
            differ in shape, dtype, device or requires_grad, or their temperatures differ.
        TypeError: for rows that differ in dtype or are not floating point, or a group that is not a process group.

    Example:
        >>> import torch
        >>> images, texts = torch.eye(3), torch.eye(3)
        >>> round(ClipLoss(temperature=0.5)(images, texts).item(), 4)
        0.2395
        >>> queue = torch.eye(3)[:1]  # a momentum encoder's keys of earlier batches
        >>> round(ClipLoss(temperature=0.5, symmetric=False)(images, texts, queue).item(), 4)
        0.5005

    Source:
        CLIP (arXiv 2103.00020), figure 3; one direction with a queue: MoCo (arXiv 1911.05722), equation 1.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable: bool = False,
        min_temperature: float = _checks.MIN_TEMPERATURE,
        symmetric: bool = True,
        gather_distributed: bool = False,
        group: dist.ProcessGroup | None = None,
        reduction: Literal["mean", "none"] = "mean",
        block_size: int | None = None,
    ) -> None:
        super().__init__(
            temperature,
            learnable=learnable,
            min_temperature=min_temperature,
            gather_distributed=gather_distributed,
            group=group,
            reduction=reduction,
            block_size=block_size,
        )
        self.symmetric = _checks.flag("symmetric", symmetric)

    def forward(self, queries: Tensor, keys: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Loss of a batch of pairs.

        Args:
            queries: Shape: (N, D), or (K, N, D) for K independent losses
            keys: row i is the positive of query i, all other rows are its negatives. Shape: as `queries`
            negatives: more negatives for the queries, such as a queue, without `symmetric`. They get a gradient only
                if they require one. Shape: (M, D) or (K, M, D)

        Returns:
            Loss in nats, float32 or float64. Shape: () for "mean"; for "none" (N,) or (K, N), or with `symmetric`
            (2N,) or (K, 2N), the queries first
        """
        group = self._group if self.gather_distributed and self._gathers() else None
        try:
            self._check_options()
            _checks.check_towers(queries, keys, negatives, self.symmetric)
        except (TypeError, ValueError):
            if group is not None:  # the other processes would wait forever
                distributed.check_equal_on_all_processes(queries, keys, group=group, failed=True)
            raise
        with without_autocast(queries.device.type):
            options = make_options(self.temperature, self.min_temperature, queries, self.block_size)
            losses = two_tower_losses(queries, keys, negatives, options, self.symmetric, group)
        return losses.mean() if self.reduction == "mean" else losses
