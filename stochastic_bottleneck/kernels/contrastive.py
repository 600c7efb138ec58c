"""Losses per row of the forms of InfoNCE besides `nt_xent_op`, from the sums of `exp_sums`.

With unit rows u_i and logits s_ik = u_i . u_k / tau,

- one positive p(i) among negatives: log(1 + exp(log n_i - s_ip(i))) with n_i the sum of exp(s_ik) over negatives alone,
  which never falls below 0 and keeps full relative accuracy for small losses, as in `nt_xent`;
- several positives P(i), all other rows with the label of i: log sum_{k != i} exp(s_ik) - 1 / |P(i)| sum_p s_ip. With
  s_c the sum of the unit rows of label c, the last sum is u_i . (s_c(i) - u_i) / tau: it needs no matrix of pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stochastic_bottleneck.kernels.all_gather import gather_checked
from stochastic_bottleneck.kernels.exp_sums import Options, exp_sums
from stochastic_bottleneck.kernels.l2_normalize import l2_normalize


def two_view_losses(v: Tensor, v_prime: Tensor, options: Options) -> Tensor:
    """`plain_nt_xent` for a temperature that may be a tensor. Shape: (2N,) or (K, 2N)."""
    n = v.shape[-2]
    u = l2_normalize(torch.cat((v, v_prime), dim=-2))
    positive = (u[..., :n, :] * u[..., n:, :]).sum(dim=-1) / options.temperature
    negative_sums, _ = exp_sums(u, None, (0, n, -n), options)
    return _one_positive(negative_sums, torch.cat((positive, positive), dim=-1))


def two_tower_losses(
    queries: Tensor, keys: Tensor, negatives: Tensor | None, options: Options, symmetric: bool, group: str | None
) -> Tensor:
    """Cross-entropy of each query among all keys and negatives and, if symmetric, of each key among all queries.

    Args:
        queries: Shape: (N, D) or (K, N, D)
        keys: row i is the positive of query i. Shape: as `queries`
        negatives: more columns for the queries, or None. Shape: (M, D) or (K, M, D)
        options: see `Options`.
        symmetric: whether to return the losses of the keys too.
        group: name of a process group whose processes' rows are negatives too; None for none.

    Returns:
        Losses in nats, float32 or float64, those of the queries first. Shape: (N,) or (2N,), or (K, N) or (K, 2N)
    """
    u, w = l2_normalize(queries), l2_normalize(keys)
    positive = (u * w).sum(dim=-1) / options.temperature
    all_u, all_w, offset = u, w, 0
    if group is not None:
        shared = None if isinstance(options.temperature, Tensor) else options.temperature
        rows, offset = gather_checked(queries, keys, group=group, caller="gather_distributed", temperature=shared)
        all_u, all_w = map(l2_normalize, rows)
    columns = all_w if negatives is None else torch.cat((all_w, l2_normalize(negatives)), dim=-2)
    if symmetric and group is None:
        sums: tuple[Tensor, ...] = exp_sums(u, columns, (0,), options, both=True)
    else:
        directions = [(u, columns), (w, all_u)][: 1 + symmetric]
        sums = tuple(exp_sums(rows, others, (offset,), options)[0] for rows, others in directions)
    return torch.cat([_one_positive(negative_sums, positive) for negative_sums in sums], dim=-1)


def several_positives_losses(x: Tensor, labels: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Mean over positives of the cross-entropy of each row among all other rows.

    Args:
        x: Shape: (R, D) or (K, R, D)
        labels: integers; rows with equal ones are positives of each other. Shape: (R,)
        options: see `Options`.

    Returns:
        Losses in nats, float32 or float64, 0 for rows without positives. Shape: (R,) or (K, R). And whether a row has
        positives. Shape: (R,)
    """
    u = l2_normalize(x)
    # Numbers the labels below R by their first index in sorted order: unlike torch.unique, without a host sync.
    index = torch.searchsorted(labels.sort().values, labels)
    n_positives = torch.zeros_like(index).index_add(0, index, torch.ones_like(index))[index] - 1
    class_sums = torch.zeros_like(u).index_add(-2, index, u)
    positives = (u * (class_sums.index_select(-2, index) - u)).sum(dim=-1) / options.temperature
    row_sums, _ = exp_sums(u, None, (0,), options)
    has_positives = n_positives > 0
    log_sums = row_sums.masked_fill(~has_positives, 1).log()
    losses = (log_sums - positives / n_positives.clamp_min(1)).masked_fill(~has_positives, 0)
    return losses.to(u.dtype), has_positives


def _one_positive(negative_sums: Tensor, positive: Tensor) -> Tensor:
    """Losses from the sums over negatives and the logits of the positives; 0 for a row without negatives."""
    alone = negative_sums == 0
    x = (negative_sums.masked_fill(alone, 1).log() - positive).masked_fill(alone, -math.inf)
    return F.softplus(x, threshold=40).to(positive.dtype)
