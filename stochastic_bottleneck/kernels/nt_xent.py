"""NT-Xent over 2N views from the matrix of all pairs, differentiable to any order.

With unit rows u_1..u_2N, positives p(i) = (i + N) mod 2N, temperature tau and s_ik = u_i . u_k / tau,

    loss_i = log sum_{k != i} exp(s_ik)  -  s_ip(i)  =  log(1 + exp(x_i)),     x_i = log n_i - s_ip(i)

where n_i is the sum of exp(s_ik) over the negatives, all k except i and p(i). `plain_nt_xent` computes the first form.
`nt_xent_op` computes the second block by block: it stores no matrix of all pairs, never returns a loss below 0, and
keeps full relative accuracy for small losses. Its steps before and after the sums are here too; `nt_xent_triton` has
them for GPUs, one launch each.

Source: SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) uses it unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels import l2_normalize as normalization
from stochastic_bottleneck.kernels.elementwise import saturating_cast


def plain_nt_xent(v: Tensor, v_prime: Tensor, temperature: float, reduction: str = "none") -> Tensor:
    """Loss of each row of both views, the rows of `v` first.

    Args:
        v: first views. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: as `v`
        temperature: tau.
        reduction: "none", or "mean" over all rows.

    Returns:
        Losses in nats, float32 or float64. Shape: (2N,) or (K, 2N), or () for "mean"
    """
    n = v.shape[-2]
    u = normalization.l2_normalize(torch.cat((v, v_prime), dim=-2))
    self_mask = u.new_full((2 * n,), -math.inf).diag()
    positive = torch.arange(-n, n, device=v.device) % (2 * n)
    # The product adds the mask, which saves a pass over the matrix forward and backward.
    if u.ndim == 2:
        logits = torch.addmm(self_mask, u, u.mT, alpha=1 / temperature)
        return F.cross_entropy(logits, positive, reduction=reduction)
    logits = torch.baddbmm(self_mask, u, u.mT, alpha=1 / temperature)
    losses = F.cross_entropy(logits.flatten(0, 1), positive.repeat(len(logits)), reduction=reduction)
    return losses if reduction == "mean" else losses.view(logits.shape[:-1])


# ---- of each pair of positives, before and after the sums over all pairs --------------------------------------------


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
    """Losses, and with x of each row sigmoid(x) / (n tau) ("weight") and sigmoid(x) / tau ("pull"), for the gradient.

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
        pull: as from `losses_from_sums`. Shape: (K, 2, N)
        u: unit rows. Shape: (K, 2, N, D)
        norm: Shape: (K, 2, N, 1)
        dtype: of the views.
    """
    grad = grad_u.sum(0) if len(grad_u) > 1 else grad_u[0]
    q = (grad_losses * -pull).sum(dim=1).unsqueeze(-1)
    grad[:, 0].addcmul_(q, u[:, 1])
    grad[:, 1].addcmul_(q, u[:, 0])
    return saturating_cast(normalization.l2_normalize_backward_(grad, u, norm), dtype)
