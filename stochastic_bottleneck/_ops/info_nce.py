"""NT-Xent over 2N views.

With unit rows u_1..u_2N, positives p(i) = (i + N) mod 2N, temperature tau and s_ik = u_i . u_k / tau,

    loss_i = log sum_{k != i} exp(s_ik)  -  s_ip(i)  =  log(1 + exp(x_i)),     x_i = log n_i - s_ip(i)

where n_i is the sum of exp(s_ik) over the negatives, k other than i and p(i). `plain` is the first form, and
differentiable as often as wanted. `info_nce_op` computes the second one in tiles: it needs no matrix of all pairs,
never gives a loss below 0, and keeps a small loss to full relative accuracy.

Source: SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) keeps it unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochastic_bottleneck._ops.unit_rows import unit_rows


def plain(
    v: Tensor,
    v_prime: Tensor,
    columns: Tensor | None,
    columns_prime: Tensor | None,
    offset: int,
    temperature: float,
) -> Tensor:
    """Per-row losses of both views, first v's rows, then v_prime's, from the matrix of all pairs.

    Args:
        v: first views. Shape: (..., N, D)
        v_prime: second views. Shape: (..., N, D)
        columns: all processes' first views, None for `v`. Shape: (..., M, D)
        columns_prime: all processes' second views, None for `v_prime`. Shape: (..., M, D)
        offset: place of `v`'s first row in `columns`.
        temperature: tau.

    Returns:
        Losses in nats, float32 or float64. Shape: (..., 2N)
    """
    u, u_prime = unit_rows(v), unit_rows(v_prime)
    c = u if columns is None else unit_rows(columns)
    c_prime = u_prime if columns_prime is None else unit_rows(columns_prime)
    rows, everything = torch.cat((u, u_prime), dim=-2), torch.cat((c, c_prime), dim=-2)
    place = torch.arange(offset, offset + u.shape[-2], device=u.device)
    self_index = torch.cat((place, place + c.shape[-2]))
    positive_index = torch.cat((place + c.shape[-2], place))
    logits = rows @ everything.transpose(-1, -2) / temperature
    itself = self_index[:, None] == torch.arange(everything.shape[-2], device=rows.device)
    # The very number that the sum holds too: a loss is then never below 0, and exactly 0 for N = 1.
    positive = logits.gather(-1, positive_index[:, None].expand(*logits.shape[:-1], 1)).squeeze(-1)
    return logits.masked_fill(itself, float("-inf")).logsumexp(dim=-1) - positive
