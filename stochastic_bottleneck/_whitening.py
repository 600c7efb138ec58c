"""Whitening over the batch, the alternative to batch normalization of a latent's logits or means."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stochastic_bottleneck.kernels.all_gather import all_reduce, has_several_processes
from stochastic_bottleneck.kernels.elementwise import without_autocast


def location_norm(normalization: str | None, dim: int, shrinkage: float) -> nn.Module:
    """Layer that normalizes logits or means: "batch", "whiten" or None."""
    if normalization is None:
        return nn.Identity()
    return BatchWhitening(dim, shrinkage) if normalization == "whiten" else nn.BatchNorm1d(dim, affine=False)


class BatchWhitening(nn.Module):
    r"""Mean 0 and fewer correlations over the batch; in evaluation mode, one affine map.

    With standardized rows x and their correlation matrix C,

    .. math::
        (1 - s) C + s I = L L^T, \qquad y = L^{-1} x

    A shrinkage s of 0 whitens (variance 1, no correlations), and 1 is batch normalization; in between, a dimension
    that others predict has a variance below 1. The eigenvalues of the shrunk matrix are at least s, so batches smaller
    than the dimension amplify nothing by more than 1 / sqrt(s). Statistics are those of all processes, with the exact
    gradient; evaluation mode uses running averages, as BatchNorm does. Computed in float32 or better.

    Args:
        dim: number of columns D.
        shrinkage: s, from 0 to 1.
        momentum: weight of a batch in the running statistics.

    Source:
        W-MSE (arXiv 2007.06346), section 3; shrinkage towards the identity: Ledoit and Wolf (2004).
    """

    running_mean: Tensor
    running_cov: Tensor
    running_map: Tensor

    def __init__(self, dim: int, shrinkage: float, momentum: float = 0.1) -> None:
        super().__init__()
        self.shrinkage, self.momentum = shrinkage, momentum
        self.synchronized = True  # statistics are those of all processes
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_cov", torch.eye(dim))
        self.register_buffer("running_map", torch.eye(dim))  # y = running_map (x - running_mean)

    def forward(self, x: Tensor) -> Tensor:
        """Whitened rows, in the dtype of `x`. Shape: (N, D) to (N, D)."""
        with without_autocast(x.device.type):
            dtype = torch.promote_types(x.dtype, torch.float32)
            rows = x.to(dtype) - self.running_mean
            if not self.training:
                return (rows @ self.running_map.mT.to(dtype)).to(x.dtype)
            if not self.shrinkage:
                self._check_rank(len(rows))
            mean, cov, count = self._statistics(rows)
            whitened = (rows - mean) @ self._map(cov).mT
            with torch.no_grad():
                running_mean = self.running_mean + self.momentum * mean
                running_cov = self.running_cov.to(cov).lerp(cov * (count / (count - 1)), self.momentum)
                finite = running_cov.isfinite().all()  # skip batches that are not
                self.running_mean.copy_(torch.where(finite, running_mean, self.running_mean))
                self.running_cov.copy_(torch.where(finite, running_cov, self.running_cov))
                self.running_map.copy_(self._map(self.running_cov.to(dtype)))
            return whitened.to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> BatchWhitening:
        """Keep the statistics in float32: rounded to half precision, a covariance is no longer positive definite."""
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers():
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, exact[name].to(buffer.device, torch.float32))
        return self

    def _statistics(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, covariance and number of the rows of all processes. Shapes: (D,), (D, D), ()."""
        total = all_reduce if self.synchronized and has_several_processes() else nn.Identity()
        sums, count = total(torch.stack([rows.sum(dim=0), torch.full_like(rows[0], len(rows))]))
        mean = sums / count
        centered = rows - mean  # first: the squares of a large mean would swallow a small variance
        return mean, total(centered.mT @ centered) / count[0], count[0]

    def _map(self, cov: Tensor) -> Tensor:
        """Inverse Cholesky factor of the shrunk correlation matrix, for rows that are not standardized. (D, D)."""
        identity = torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
        cov = cov + 1e-5 * identity  # as BatchNorm
        std = cov.diagonal().sqrt()
        shrunk = torch.lerp(cov / (std[:, None] * std), identity, self.shrinkage)
        factor, _ = torch.linalg.cholesky_ex(shrunk)  # no host sync, unlike cholesky
        inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return inverse / std

    def _check_rank(self, n_rows: int) -> None:
        n_rows *= dist.get_world_size() if self.synchronized and has_several_processes() else 1
        if n_rows <= len(self.running_mean):
            raise ValueError(
                f"shrinkage must be above 0 for batches of at most dim={len(self.running_mean)} images, got "
                f"shrinkage=0 and {n_rows} images; use a larger batch, or shrinkage=0.1"
            )

    def extra_repr(self) -> str:
        """The options that `repr` shows."""
        return f"{len(self.running_mean)}, shrinkage={self.shrinkage}"
