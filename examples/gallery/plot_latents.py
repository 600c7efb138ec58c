"""
Temperature and hard bits
=========================

What the options of a Bernoulli latent do to its samples and to its gradient, on numbers
alone: no images, no training.
"""

# %%
# Samples
# -------
#
# A relaxed bit is between 0 and 1. Here its logit is 1. The lower the temperature, the closer samples are
# to 0 and 1; how many are above a half does not depend on it. ``hard=True`` rounds them, whatever the
# temperature.

import math

import torch
from matplotlib import pyplot as plt

from stochastic_bottleneck import functional


def logistic_noise(count, seed):
    """Noise as the latent adds it to logits."""
    return torch.logit(torch.rand(count, generator=torch.Generator().manual_seed(seed)))


logits, noise = torch.full((20_000,), 1.0), logistic_noise(20_000, 0)
figure, grid = plt.subplots(1, 4, figsize=(7.2, 2.2), sharey=True, layout="constrained")
for axes, temperature in zip(grid, (2.0, 1.0, 0.5, 0.1), strict=True):
    z = functional.relaxed_bernoulli_rsample(logits, temperature, noise=noise)
    percent = torch.full_like(z, 100 / len(z))
    axes.hist(z, bins=25, range=(0, 1), weights=percent, color="#0072B2")
    axes.axvline(0.5, color="#666666", linestyle=":")
    above = f"{100 * (z > 0.5).float().mean():.0f} % above ½"
    axes.set_title(f"temperature {temperature:g}\n{above}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
grid[0].set_ylabel("samples (%)")
figure.supxlabel("relaxed bit z", fontsize=10)
plt.show()

# %%
# Gradients
# ---------
#
# Training needs the gradient of the expected cost of exact bits. For one bit and a cost f it is known: p (1
# - p) (f(1) - f(0)). A relaxed sample gives an estimate with a bias and a standard deviation. Here for the
# cost (z - 0.45)², with a logit of 1 and 200,000 samples. The true gradient is small, since the costs of 0
# and 1 hardly differ, which is the hard case.

target, count = 0.45, 200_000
p = 1 / (1 + math.exp(-1))
exact = p * (1 - p) * ((1 - target) ** 2 - target**2)
sweep = torch.logspace(math.log10(0.05), math.log10(4), 15).tolist()
noise = logistic_noise(count, 1)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
for hard, style in ((False, "o-"), (True, "s--")):
    means, spreads = [], []
    for temperature in sweep:
        logits = torch.full((count,), 1.0, requires_grad=True)
        z = functional.relaxed_bernoulli_rsample(logits, temperature, hard, noise)
        (gradient,) = torch.autograd.grad(((z - target) ** 2).sum(), logits)
        means.append(gradient.mean())
        spreads.append(gradient.std())
    colour = "#D55E00" if hard else "#0072B2"
    left.plot(sweep, means, style, color=colour, markersize=4, label=f"hard={hard}")
    right.plot(sweep, spreads, style, color=colour, markersize=4)
left.axhline(exact, color="black", linewidth=1, linestyle=":", label="exact bits")
right.legend(*left.get_legend_handles_labels(), frameon=False)
for axes, title in ((left, "Mean of the gradient"), (right, "Standard deviation of the gradient")):
    axes.set(xscale="log", xlabel="temperature")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
right.set_ylim(0, None)
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# At low temperatures the mean approaches the exact one, and the standard deviation grows. ``hard=True`` has
# about twice the standard deviation here, and a larger bias except near the ends. This is one cost and one
# logit; others have other curves.
