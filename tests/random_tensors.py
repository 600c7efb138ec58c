"""Seeded random inputs; sampled in float64, so that every dtype gets the same values up to rounding."""

import torch


def normal(*shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def views(*shape, dtype=torch.float64, seed=0):
    """Two views, as leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return tuple(view.clone().requires_grad_() for view in x)


def leaves(*tensors):
    """Copies that require a gradient."""
    return [t.detach().clone().requires_grad_() for t in tensors]
