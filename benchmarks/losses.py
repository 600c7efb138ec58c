"""NT-Xent of two libraries, as two formulas, and as a float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.5
BLOCK = 512  # rows that the oracle computes at a time, which bounds its memory

Loss = Callable[[Tensor, Tensor], Tensor]


def forward_backward(loss: Loss, leaves: list[Tensor]) -> Callable[[], Tensor]:
    """A step whose gradients stay in the leaves; it returns the value."""

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return step


def ours(**options: Any) -> Loss:
    from stochastic_bottleneck import InfoNCELoss

    return InfoNCELoss(TEMPERATURE, **options)


def lightly(**options: Any) -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(TEMPERATURE, **options)  # type: ignore[no-any-return]


def clip() -> Loss:
    from stochastic_bottleneck import ClipLoss

    return ClipLoss(TEMPERATURE)


def open_clip() -> Loss:
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return lambda v, w: loss(F.normalize(v, dim=1), F.normalize(w, dim=1), 1 / TEMPERATURE)  # type: ignore[no-any-return]


def plain(v: Tensor, v_prime: Tensor) -> Tensor:
    """The usual formula: all logits, the diagonal masked, cross-entropy with the other view as the class."""
    rows = F.normalize(torch.cat((v, v_prime)), dim=1)
    n = len(v)
    logits = rows @ rows.T / TEMPERATURE
    itself = torch.eye(2 * n, dtype=torch.bool, device=rows.device)
    positive = (torch.arange(2 * n, device=rows.device) + n) % (2 * n)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), positive)


def solo_learn(v: Tensor, v_prime: Tensor) -> Tensor:
    """Solo-learn's formula: exponentials of all similarities without a shift, summed under two masks."""
    rows = F.normalize(torch.cat((v, v_prime)), dim=-1)
    image = torch.arange(len(v), device=rows.device).repeat(2)
    same_image = (image[:, None] == image[None, :]).to(rows.dtype)
    is_positive = same_image - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    exponentials = torch.exp(rows @ rows.T / TEMPERATURE)
    positives = (exponentials * is_positive).sum(dim=1)
    negatives = (exponentials * (1 - same_image)).sum(dim=1)
    return -torch.log(positives / (positives + negatives)).mean()


def oracle(v: Tensor, v_prime: Tensor) -> dict[str, Tensor]:
    """Value and gradients of the mean loss in float64, a block of rows at a time."""
    v, v_prime = (x.detach().clone().double().requires_grad_() for x in (v, v_prime))
    rows = F.normalize(torch.cat((v, v_prime)), dim=1)
    leaf = rows.detach().requires_grad_()
    n, value = len(v), torch.zeros((), dtype=torch.float64)
    for start in range(0, 2 * n, BLOCK):
        index = torch.arange(start, min(start + BLOCK, 2 * n))
        logits = leaf[index] @ leaf.T / TEMPERATURE
        positive = logits.gather(1, ((index + n) % (2 * n))[:, None]).squeeze(1)
        others = logits.masked_fill(index[:, None] == torch.arange(2 * n), float("-inf"))
        loss = (others.logsumexp(dim=1) - positive).sum() / (2 * n)
        loss.backward()
        value += loss.detach()
    rows.backward(leaf.grad)
    return {"value": value, "gradient": v.grad, "gradient_prime": v_prime.grad}


def views(n: int, d: int, precision: str) -> tuple[Tensor, Tensor]:
    """Rows of both views, the same in every process; as in training, two views of an image are similar."""
    generator = torch.Generator().manual_seed(n)
    v = torch.randn(n, d, generator=generator)
    v_prime = v + torch.randn(n, d, generator=generator)
    dtype = getattr(torch, precision)
    return v.to(dtype), v_prime.to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected value."""
    expected = expected.double()
    return float((actual.detach().cpu().double() - expected).norm() / expected.norm())
