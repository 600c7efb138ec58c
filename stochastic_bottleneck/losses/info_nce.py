"""`InfoNCELoss`, the loss of SimCLR and StochCon."""

from __future__ import annotations

from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from stochastic_bottleneck import _checks, distributed, functional
from stochastic_bottleneck.losses._base import ContrastiveLoss

__all__ = ["InfoNCELoss"]


class InfoNCELoss(ContrastiveLoss):
    """NT-Xent (InfoNCE with 2N - 2 negatives), the loss of SimCLR and StochCon.

    See `functional.info_nce` for the formula. Training and evaluation mode are the same.

    Args:
        temperature: tau, at least 0.01; with `learnable`, where it starts. SimCLR uses 0.5 for CIFAR10 and 0.1 for
            ImageNet.
        gather_distributed: use the rows of all processes as negatives, with the exact gradient: under
            DistributedDataParallel, loss and gradients equal those of one process on the whole batch. All processes
            need the same batch size, which is checked on the host before rows are sent, so CUDA graphs cannot
            capture this loss. No effect without a process group.
        group: process group to gather from, such as the data-parallel group of a job that is also model-parallel.
            Pass the same group to DistributedDataParallel. None for all processes.
        reduction: "mean", or "none" for one loss per row.
        block_size: largest number of rows and of columns in a tile of pairs; None chooses by batch size. See
            `functional.info_nce`.
        learnable: make the temperature a parameter, as in `ClipLoss`; not with `gather_distributed`.
        min_temperature: lower bound of a learned temperature, as in `ClipLoss`.
        ring: with `gather_distributed`, pass rows from process to process in both passes instead of keeping all of
            them: memory does not grow with the number of processes, but twice as many rows are sent.

    Raises:
        ValueError: for a value out of range, in the constructor or in the call; on every process, if their batches
            differ in shape, dtype, device or requires_grad, or their temperatures differ.
        TypeError: for views that differ in dtype or are not floating point, or a group that is not a process group.

    Example:
        >>> import torch
        >>> v, v_prime = torch.eye(3), torch.eye(3)
        >>> criterion = InfoNCELoss(temperature=0.5)
        >>> round(criterion(v, v_prime).item(), 4)  # or criterion(output), for the output of a StochConWrapper
        0.4327

    Source:
        SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552), Algorithm 1, step 7.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        gather_distributed: bool = False,
        group: dist.ProcessGroup | None = None,
        reduction: Literal["mean", "none"] = "mean",
        block_size: int | None = None,
        learnable: bool = False,
        min_temperature: float = _checks.MIN_TEMPERATURE,
        ring: bool = False,
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
        self.ring = _checks.flag("ring", ring)
        if ring and not gather_distributed:
            raise ValueError("ring must be False without gather_distributed=True, got True; pass both")
        if learnable and gather_distributed:
            raise ValueError(
                "learnable must be False with gather_distributed=True, got True; learn the temperature with ClipLoss, "
                "or on the rows of each process"
            )

    def forward(self, v: Any, v_prime: Tensor | None = None) -> Tensor:
        """Loss of a batch of view pairs.

        Args:
            v: first views, Shape: (N, D), or (K, N, D) for K independent losses over the same images; or a
                `StochConOutput`, whose `v` and `v_prime` are used.
            v_prime: second views, row i from the same image as `v`'s row i. Shape: as `v`

        Returns:
            Loss in nats. Shape: () for "mean"; (2N,) or (K, 2N) for "none"
        """
        v, v_prime = self._views(v, v_prime)
        if not (self.gather_distributed and self._gathers()):
            return functional.info_nce(
                v,
                v_prime,
                self.temperature,
                reduction=self.reduction,
                block_size=self.block_size,
                min_temperature=self.min_temperature,
            )
        try:
            self._check_options()
            _checks.check_views(v, v_prime)
            if v.is_meta:
                raise ValueError("v must hold values to be gathered, got a meta tensor; move the model with .to()")
        except (TypeError, ValueError):
            # The other processes compare inputs now: without this one they would wait forever.
            distributed.check_equal_on_all_processes(v, v_prime, group=self._group, failed=True)
            raise
        options = self.temperature, self.block_size, self._group, self.ring
        losses = distributed.distributed_nt_xent(v, v_prime, *options)
        return losses.mean() if self.reduction == "mean" else losses
