"""Figures of a stochastic latent: its bits and its uncertainty.

The colours are safe for colour-blind readers; dashes and markers distinguish lines in greyscale print.
Matplotlib is imported where it is used. Functions that draw one diagram take `axes`, or make a new figure; functions
that show images return a figure.
"""

from stochastic_bottleneck.plots.curves import bit_usage, f1_against_bits, rejection_curves
from stochastic_bottleneck.plots.images import bit_images, certain_images

__all__ = ["bit_images", "bit_usage", "certain_images", "f1_against_bits", "rejection_curves"]
