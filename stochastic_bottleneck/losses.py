"""The contrastive objective as a module."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from stochastic_bottleneck import _checks, distributed, functional

__all__ = ["InfoNCELoss"]


class InfoNCELoss(nn.Module):
    """NT-Xent (InfoNCE with 2N - 2 negatives), the loss of SimCLR and StochCon.

    See `functional.info_nce` for the formula. Training and evaluation mode do not differ.

    Args:
        temperature: tau, at least 0.01. SimCLR uses 0.5 for CIFAR10 and 0.1 for ImageNet.
        gather_distributed: contrast with the rows of all processes, with the exact gradient: under
            DistributedDataParallel loss and gradients equal one process on the whole batch. Needs the same
            batch size on every process, which is checked on the host before the rows travel, so CUDA graphs
            cannot hold this loss. No effect without a process group.
        reduction: "mean", or "none" for one loss a row.
        block_size: most rows and columns of the tiles in which pairs are handled; None chooses by size. See
            `functional.info_nce`.

    Raises:
        ValueError: for a value outside its range, when built or when called; on every process, when their
            batches differ in shape.
        TypeError: for views that differ in dtype or are not floating point.

    Example:
        >>> import torch
        >>> v, v_prime = torch.eye(3), torch.eye(3)
        >>> round(InfoNCELoss(temperature=0.5)(v, v_prime).item(), 4)
        0.4327

    Source:
        SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552), Algorithm 1, step 7.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        gather_distributed: bool = False,
        reduction: Literal["mean", "none"] = "mean",
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        _checks.check_info_nce_options(temperature, reduction, block_size)
        _checks.flag("gather_distributed", gather_distributed)
        self.temperature = float(temperature)
        self.gather_distributed = gather_distributed
        self.reduction = reduction
        self.block_size = None if block_size is None else int(block_size)

    def forward(self, v: Tensor, v_prime: Tensor) -> Tensor:
        """Loss of a batch of view pairs.

        Args:
            v: first views. Shape: (N, D), or (K, N, D) for K independent losses over the same images
            v_prime: second views, row i from the same image as `v`'s row i. Shape: as `v`

        Returns:
            Loss in nats. Shape: () for "mean"; (2N,) or (K, 2N) for "none"
        """
        if not (self.gather_distributed and distributed.several_processes()):
            return functional.info_nce(
                v, v_prime, self.temperature, reduction=self.reduction, block_size=self.block_size
            )
        try:
            _checks.check_views(v, v_prime)
        except (TypeError, ValueError):
            # The others are asking the same: a process that stops alone leaves them waiting.
            distributed.check_alike(v, v_prime)
            raise
        losses = distributed.info_nce(v, v_prime, self.temperature, self.block_size)
        return losses.mean() if self.reduction == "mean" else losses

    def extra_repr(self) -> str:
        """Options that differ between losses."""
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
