"""NT-Xent written down three times: as a plain formula, without a maximum, and slowly in float64 to judge all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.5
BLOCK = 512  # rows of the oracle at a time; bounds its memory at any N


def plain(v: Tensor, v_prime: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The formula as most write it: all logits, the diagonal masked, cross-entropy with each row's other view."""
    rows = F.normalize(torch.cat((v, v_prime)), dim=1)
    n = len(v)
    logits = rows @ rows.T / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=rows.device)
    positive = (torch.arange(2 * n, device=rows.device) + n) % (2 * n)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), positive)


def unshifted(v: Tensor, v_prime: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The formula as solo-learn computes it: exponentials of all similarities, unshifted, and sums under two masks."""
    n = len(v)
    rows = F.normalize(torch.cat((v, v_prime)), dim=-1)
    image = torch.arange(n, device=rows.device).repeat(2)
    same_image = (image[:, None] == image[None, :]).to(rows.dtype)
    is_negative = 1 - same_image
    is_positive = same_image - torch.eye(2 * n, dtype=rows.dtype, device=rows.device)
    exponentials = torch.exp(rows @ rows.T / temperature)
    positives = (exponentials * is_positive).sum(dim=1)
    negatives = (exponentials * is_negative).sum(dim=1)
    return -torch.log(positives / (positives + negatives)).mean()


def oracle(v: Tensor, v_prime: Tensor, temperature: float = TEMPERATURE) -> dict[str, Tensor]:
    """Value and gradients of the mean loss in float64, a block of rows at a time."""
    v, v_prime = (x.detach().clone().double().requires_grad_() for x in (v, v_prime))
    rows = F.normalize(torch.cat((v, v_prime)), dim=1)
    leaf = rows.detach().requires_grad_()
    n, value = len(v), torch.zeros((), dtype=torch.float64)
    for start in range(0, 2 * n, BLOCK):
        place = torch.arange(start, min(start + BLOCK, 2 * n))
        logits = leaf[place] @ leaf.T / temperature
        positive = logits.gather(1, ((place + n) % (2 * n))[:, None]).squeeze(1)
        others = logits.masked_fill(place[:, None] == torch.arange(2 * n), float("-inf"))
        loss = (others.logsumexp(dim=1) - positive).sum() / (2 * n)
        loss.backward()
        value += loss.detach()
    rows.backward(leaf.grad)
    return {"value": value, "gradient": v.grad, "gradient_prime": v_prime.grad}


def views(n: int, d: int, precision: str) -> tuple[Tensor, Tensor]:
    """Both views' rows, the same in every process: neighbours in space as in training, not unrelated noise."""
    generator = torch.Generator().manual_seed(n)
    v = torch.randn(n, d, generator=generator)
    v_prime = v + torch.randn(n, d, generator=generator)
    dtype = getattr(torch, precision)
    return v.to(dtype), v_prime.to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    expected = expected.double()
    return float((actual.detach().cpu().double() - expected).norm() / expected.norm())
