"""What NT-Xent computes of each pair of positives, before and after the sums over all pairs.

With the names of `nt_xent_op`:

- before the sums, the unit rows u, the norms they were divided by, and the cosine of each row and its positive;
- after the sums n, losses, weights sigmoid(x) / (n tau), and pulls sigmoid(x) / tau;
- in backward, from the gradient of u by the sums, that of the views, with the positives' and through the norms.

`nt_xent_rows_triton` computes each of them in one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels import l2_normalize as normalization
from stochastic_bottleneck.kernels.elementwise import saturating_cast


def unit_rows(v: Tensor, v_prime: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, norms, and the cosine of each row and its positive.

    Args:
        v: first views. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        dtype: of the results, float64 for views in float64, else float32.

    Returns:
        Shape: (K, 2, N, D), (K, 2, N, 1) and (K, 2, N)
    """
    stacked = torch.stack((v, v_prime), dim=-3).view(-1, 2, *v.shape[-2:])
    u, norm = normalization.l2_normalize_(stacked.to(dtype))
    cosine = (u[:, 0] * u[:, 1]).sum(dim=-1)
    return u, norm, torch.stack((cosine, cosine), dim=1)


def losses_from_sums(row_sums: Tensor, positive: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, weights and pulls.

    Args:
        row_sums: n, over each row's negatives, in parts to be added. Shape: (S, K, 2, N)
        positive: cosine of each row and its positive. Shape: (K, 2, N)
        temperature: tau.
    """
    n = row_sums.sum(0) if len(row_sums) > 1 else row_sums[0]
    x = n.log() - positive / temperature  # -inf for a row without negatives
    pull = x.sigmoid() / temperature
    weight = pull / n.clamp_min(torch.finfo(n.dtype).tiny)
    # Above the threshold, log(1 + exp(x)) equals x to the last bit of float64.
    return F.softplus(x, threshold=40).to(positive.dtype), weight, pull.to(positive.dtype)


def grad_views(
    grad_u: Tensor, grad_losses: Tensor, pull: Tensor, u: Tensor, norm: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of the stacked views in their dtype, clamped to its range; `grad_u` may be overwritten.

    Args:
        grad_u: gradient of the unit rows by the sums, in parts to be added. Shape: (S, K, 2, N, D)
        grad_losses: Shape: (K, 2, N)
        pull: Shape: (K, 2, N)
        u: unit rows. Shape: (K, 2, N, D)
        norm: Shape: (K, 2, N, 1)
        dtype: of the views.
    """
    grad = grad_u.sum(0) if len(grad_u) > 1 else grad_u[0]
    q = (grad_losses * -pull).sum(dim=1).unsqueeze(-1)
    grad[:, 0].addcmul_(q, u[:, 1])
    grad[:, 1].addcmul_(q, u[:, 0])
    return saturating_cast(normalization.l2_normalize_backward_(grad, u, norm), dtype)
