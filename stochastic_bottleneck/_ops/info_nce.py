"""NT-Xent over 2N views.

With unit rows u_1..u_2N, positives p(i) = (i + N) mod 2N, temperature tau and s_ik = u_i . u_k / tau,

    loss_i = log sum_{k != i} exp(s_ik)  -  s_ip(i)  =  log(1 + exp(x_i)),     x_i = log n_i - s_ip(i)

where n_i is the sum of exp(s_ik) over the negatives, k other than i and p(i). `plain` is the first form, and
differentiable as often as wanted. `info_nce_op` computes the second one in tiles: it needs no matrix of all pairs,
never gives a loss below 0, and keeps a small loss to full relative accuracy.

Source: SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) keeps it unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck._ops.unit_rows import unit_rows


def plain(
    v: Tensor,
    v_prime: Tensor,
    temperature: float,
    columns: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "none",
) -> Tensor:
    """Per-row losses of both views, first v's rows, then v_prime's, from the matrix of all pairs.

    Args:
        v: first views. Shape: (N, D) or (K, N, D)
        v_prime: second views. Shape: (N, D) or (K, N, D)
        temperature: tau.
        columns: both views of all processes, None for `v` and `v_prime`. Shape: (M, D) or (K, M, D)
        offset: index of `v`'s first row in `columns`.
        reduction: "none", or "mean" over all rows.

    Returns:
        Losses in nats, float32 or float64. Shape: (2N,) or (K, 2N), or () for "mean"
    """
    n, m = v.shape[-2], v.shape[-2] if columns is None else columns[0].shape[-2]
    rows = unit_rows(torch.cat((v, v_prime), dim=-2))
    everything = rows if columns is None else unit_rows(torch.cat(columns, dim=-2))
    if columns is None:
        left_out = rows.new_full((2 * n,), -math.inf).diag()
        positive = torch.arange(-n, n, device=v.device) % (2 * n)
    else:
        place = torch.arange(offset, offset + n, device=v.device)
        itself = torch.cat((place, place + m))[:, None] == torch.arange(2 * m, device=v.device)
        left_out = rows.new_zeros(itself.shape).masked_fill_(itself, -math.inf)
        positive = torch.cat((place + m, place))
    # Added by the product itself, the mask costs no pass of its own, here and in the backward pass.
    if rows.ndim == 2:
        logits = torch.addmm(left_out, rows, everything.mT, alpha=1 / temperature)
        return F.cross_entropy(logits, positive, reduction=reduction)
    logits = torch.baddbmm(left_out, rows, everything.mT, alpha=1 / temperature)
    losses = F.cross_entropy(logits.flatten(0, 1), positive.repeat(len(logits)), reduction=reduction)
    return losses if reduction == "mean" else losses.view(logits.shape[:-1])
