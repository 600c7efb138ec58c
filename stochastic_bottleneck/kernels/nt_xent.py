"""NT-Xent over 2N views from the matrix of all pairs, differentiable to any order.

With unit rows u_1..u_2N, positives p(i) = (i + N) mod 2N, temperature tau and s_ik = u_i . u_k / tau,

    loss_i = log sum_{k != i} exp(s_ik)  -  s_ip(i)  =  log(1 + exp(x_i)),     x_i = log n_i - s_ip(i)

where n_i is the sum of exp(s_ik) over the negatives, all k except i and p(i). This file computes the first form.
`nt_xent_op` computes the second block by block: it stores no matrix of all pairs, never returns a loss below 0, and
keeps full relative accuracy for small losses.

Source: SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) uses it unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels.l2_normalize import l2_normalize


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
    u = l2_normalize(torch.cat((v, v_prime), dim=-2))
    self_mask = u.new_full((2 * n,), -math.inf).diag()
    positive = torch.arange(-n, n, device=v.device) % (2 * n)
    # The product adds the mask, which saves a pass over the matrix forward and backward.
    if u.ndim == 2:
        logits = torch.addmm(self_mask, u, u.mT, alpha=1 / temperature)
        return F.cross_entropy(logits, positive, reduction=reduction)
    logits = torch.baddbmm(self_mask, u, u.mT, alpha=1 / temperature)
    losses = F.cross_entropy(logits.flatten(0, 1), positive.repeat(len(logits)), reduction=reduction)
    return losses if reduction == "mean" else losses.view(logits.shape[:-1])
