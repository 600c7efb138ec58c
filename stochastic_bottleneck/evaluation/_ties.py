"""Retrieval scores in expectation over the order of items at equal distance from the query.

Items at equal distance from a query form a group of n items, r of them relevant; c items, m of them relevant, are
nearer. The group's items are ranked in random order. If T of them are among the first R ranks, h of these T relevant,
then the t-th is relevant with probability h / T, and another given one of the T is then relevant with probability
(h - 1) / (T - 1). The precision at rank c + t, if relevant, counts m + 1 items and those of the t - 1 before it in the
group, so that the group adds, in expectation,

    f(h) = sum over t <= T of h / T * (m + 1 + (t - 1) (h - 1) / (T - 1)) / (c + t)
         = h (m + 1) S / T + h (h - 1) (T - (c + 1) S) / (T (T - 1)),    S = sum over t <= T of 1 / (c + t)

to the sum of precisions. A group that ends within the first R ranks has T = n and h = r. One group at most is cut; its
h is hypergeometric, and with A the sum of f over the groups before it, the expected average precision is the mean over
h of (A + f(h)) / (m + h), or 0 where m + h = 0. McSherry and Najork (ECIR 2008) derive the case without a cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from stochastic_bottleneck.evaluation._pairs import Pairs

Blocks = Iterable[tuple[Tensor, Tensor]]


def groups_by_distance(pairs: Pairs, rows: Tensor, blocks: Blocks, _: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of items and of relevant items at each distance, and of all relevant items."""
    count, bins = len(rows), pairs.width + 1
    offset = torch.arange(count, device=rows.device)[:, None] * bins
    counts = torch.zeros(2 * count * bins, dtype=torch.int64, device=rows.device)
    for block, relevant in blocks:
        bin_of = pairs.distances(rows, block).add_(offset).int().add_(relevant, alpha=count * bins)
        counts += torch.bincount(bin_of.view(-1), minlength=len(counts))
    other, hits = counts.view(2, count, bins)
    return other + hits, hits, hits.sum(dim=1)


def groups_by_score(pairs: Pairs, rows: Tensor, blocks: Blocks, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of items and of relevant items for each of the highest scores, and of all relevant items."""
    best = torch.empty(len(rows), 0, device=rows.device)
    hit, total = best.long(), torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    at_last: list[Tensor] = []
    for block, relevant in blocks:
        scores = pairs.products(rows, block)
        total += relevant.sum(dim=1)
        top, index = scores.topk(min(depth, len(block)))
        # Items at the lowest score that is left, also those that are left out.
        merged, order = torch.cat((best, top), dim=1).topk(min(depth, best.shape[1] + top.shape[1]))
        last = merged[:, -1:]
        tied = scores == last
        counts = [tied.sum(dim=1, keepdim=True), (tied & relevant).sum(dim=1, keepdim=True)]
        if at_last:
            before = best == last
            kept = (before.sum(dim=1, keepdim=True), (before * hit).sum(dim=1, keepdim=True))
            same = best[:, -1:] == last
            counts = [c + torch.where(same, a, b) for c, a, b in zip(counts, at_last, kept, strict=True)]
        hit = torch.cat((hit, relevant.gather(1, index).long()), dim=1).gather(1, order)
        best, at_last = merged, counts
    group = pad((best[:, 1:] != best[:, :-1]).long().cumsum(dim=1), (1, 0))
    sizes, hits = (torch.zeros_like(group).scatter_add_(1, group, x) for x in (torch.ones_like(group), hit))
    sizes, hits = (x.scatter_(1, group[:, -1:], y) for x, y in zip((sizes, hits), at_last, strict=True))
    return sizes, hits, total


def expected_hits(sizes: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Expected number of relevant items among the first k of groups in ascending order of distance."""
    taken = (k - (sizes.cumsum(dim=1) - sizes)).clamp_min(0).minimum(sizes)
    return (relevant.double() * taken / sizes.clamp_min(1)).sum(dim=1)


def expected_average_precision(sizes: Tensor, relevant: Tensor, r: int) -> Tensor:
    """Expected average precision at r of groups in ascending order of distance, as derived at the top."""
    before = sizes.cumsum(dim=1) - sizes
    taken = (r - before).clamp_min(0).minimum(sizes)
    # Of each group: h f_1 + h (h - 1) f_2 is the sum of precisions for h relevant items among those taken.
    harmonic = pad(torch.arange(1, r + 1, device=sizes.device).double().reciprocal().cumsum(dim=0), (1, 0))
    sums = harmonic[(before + taken).clamp_max(r)] - harmonic[before.clamp_max(r)]
    f_1 = (relevant.cumsum(dim=1) - relevant + 1) * sums / taken.clamp_min(1)
    f_2 = (taken - (before + 1) * sums) / (taken * (taken - 1)).clamp_min(1)
    whole, cut = taken == sizes, (taken > 0) & (taken < sizes)
    a = torch.where(whole, relevant * f_1 + relevant * (relevant - 1) * f_2, 0).sum(dim=1, keepdim=True)
    m = torch.where(whole, relevant, 0).sum(dim=1, keepdim=True)
    n, hits, places, f_1, f_2 = (
        torch.where(cut, x, 0).sum(dim=1, keepdim=True) for x in (sizes, relevant, taken, f_1, f_2)
    )
    h = torch.arange(int(torch.minimum(hits, places).max()) + 1, device=sizes.device)
    average = (a + h * f_1 + h * (h - 1) * f_2) / (m + h).clamp_min(1)
    log_factorial = torch.lgamma(torch.arange(1, int(n.max()) + 2, device=sizes.device).double())

    def log_binomial(n: Tensor, k: Tensor) -> Tensor:
        inside = (k >= 0) & (k <= n)
        of_n, of_k, of_rest = (log_factorial[x.clamp(0, len(log_factorial) - 1)] for x in (n, k, n - k))
        return torch.where(inside, of_n - of_k - of_rest, -torch.inf)

    log_p = log_binomial(hits, h) + log_binomial(n - hits, places - h) - log_binomial(n, places)
    return (log_p.exp() * average).sum(dim=1)
