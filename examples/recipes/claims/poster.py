"""What the paper says beside each claim, never mixed with what was measured here."""

from __future__ import annotations

from recipes.paper import SOURCE, TOP_1

__all__ = ["BITS_ENOUGH", "COMPRESSION", "IMAGE_SHAPE", "LATENT_BITS", "SHARE_OF_ONES", "SOURCE", "TOP_1"]

IMAGE_SHAPE = (224, 224, 3)
LATENT_BITS = 2048
COMPRESSION = 588
"""224 x 224 x 3 x 8 bits over 2,048 bits, the poster's compression of ImageNet's images."""
BITS_ENOUGH = 11
"""Bits with a competitive F1 of a random forest on CIFAR-10."""
SHARE_OF_ONES = 0.5
"""Share of ones of the "soft top 512" bottleneck."""
