"""Pictures of a stochastic latent: what its bits carry, and what its uncertainty knows.

Colours are told apart by colour-blind readers; dashes and markers tell lines and classes apart in grey print.
Matplotlib draws, and is imported where it is used. What is one diagram goes into `axes` of yours, or into a new
figure of pyplot's; what shows images is a figure of its own.
"""

from stochastic_bottleneck.plots.curves import bit_usage, f1_against_bits, rejection_curves
from stochastic_bottleneck.plots.images import bit_images, certain_images
from stochastic_bottleneck.plots.maps import code_map

__all__ = ["bit_images", "bit_usage", "certain_images", "code_map", "f1_against_bits", "rejection_curves"]
