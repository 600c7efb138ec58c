"""NT-Xent over 2N views: the plain formula and its row-blocked form.

With unit rows u_1..u_2N, positives p(i) = (i + N) mod 2N and temperature tau,

    loss_i = log sum_{k != i} exp(u_i . u_k / tau)  -  u_i . u_p(i) / tau

Source: SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) keeps it unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stochastic_bottleneck._ops.precision import at_least_float32


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` scaled to norm 1, in float32 or better; zero rows stay zero with a finite gradient.

    A row is divided by its largest magnitude first, so that squares neither overflow nor underflow. The
    scale is a constant to the gradient, which is exact because x / |x| does not depend on it. After that
    division a row's squared norm is at least 1 unless the row is (next to) zero, hence the clamp at 1.
    """
    x = at_least_float32(x)
    # The cube root of the smallest normal number: 1 / scale, times any upstream gradient, stays finite.
    floor = torch.finfo(x.dtype).tiny ** (1 / 3)
    scale = x.detach().abs().amax(dim=-1, keepdim=True).clamp_min(floor)
    x = x / scale
    return x * x.square().sum(dim=-1, keepdim=True).clamp_min(1.0).rsqrt()


def row_losses(
    rows: Tensor, columns: Tensor, self_index: Tensor, positive_index: Tensor, temperature: float
) -> Tensor:
    """Loss of each row against all columns but itself.

    Args:
        rows: unit rows. Shape: (..., R, D)
        columns: unit rows of every view. Shape: (..., C, D)
        self_index: each row's place among the columns. Shape: (R,)
        positive_index: the place of each row's other view. Shape: (R,)
        temperature: tau.

    Returns:
        Losses in nats. Shape: (..., R)
    """
    logits = rows @ columns.transpose(-1, -2) / temperature
    itself = self_index[:, None] == torch.arange(columns.shape[-2], device=rows.device)
    # The very number that the sum holds too: a loss is then never below 0, and exactly 0 for N = 1.
    positive = logits.gather(-1, positive_index[:, None].expand(*logits.shape[:-1], 1)).squeeze(-1)
    return logits.masked_fill(itself, float("-inf")).logsumexp(dim=-1) - positive


def info_nce(
    v: Tensor,
    v_prime: Tensor,
    columns: Tensor | None,
    columns_prime: Tensor | None,
    offset: int,
    temperature: float,
    block_size: int | None,
) -> Tensor:
    """Per-row losses of both views, first v's rows, then v_prime's.

    Args:
        v: first views. Shape: (..., N, D)
        v_prime: second views. Shape: (..., N, D)
        columns: all processes' first views, None for `v`. Shape: (..., M, D)
        columns_prime: all processes' second views, None for `v_prime`. Shape: (..., M, D)
        offset: place of `v`'s first row in `columns`.
        temperature: tau.
        block_size: rows handled at a time, recomputed in the backward pass; None for all at once.

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
    if block_size is None:
        return row_losses(rows, everything, self_index, positive_index, temperature)
    blocks = [
        checkpoint(
            row_losses, r, everything, i, p, temperature, use_reentrant=False, preserve_rng_state=False
        )
        for r, i, p in zip(
            torch.split(rows, block_size, dim=-2),
            torch.split(self_index, block_size),
            torch.split(positive_index, block_size),
            strict=True,
        )
    ]
    return torch.cat(blocks, dim=-1)
