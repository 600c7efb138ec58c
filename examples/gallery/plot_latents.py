"""
Temperature, hard bits and location_std
=======================================

What the options of a Bernoulli latent do to its samples and to its gradient, on numbers
alone: no images, no training.
"""

# %%
# Samples
# -------
#
# A relaxed bit lies between 0 and 1. Here its logit is 1. The lower the temperature,
# the closer samples come to 0 and 1; how many lie above a half does not depend on it.
# ``hard=True`` rounds them, whatever the temperature.

import math

import torch
from matplotlib import pyplot as plt

from stochastic_bottleneck import StochasticBottleneck, TemperatureSchedule, functional

temperatures = (2.0, 1.0, 0.5, 0.1)
logits = torch.full((20_000,), 1.0)
noise = torch.logit(
    torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
)  # logistic

figure, grid = plt.subplots(1, 4, figsize=(7.2, 2.2), sharey=True, layout="constrained")
for axes, temperature in zip(grid, temperatures, strict=True):
    z = functional.relaxed_bernoulli_rsample(logits, temperature, noise=noise)
    axes.hist(
        z,
        bins=25,
        range=(0, 1),
        weights=torch.full_like(z, 100 / len(z)),
        color="#0072B2",
    )
    axes.axvline(0.5, color="#666666", linestyle=":")
    axes.set_title(
        f"temperature {temperature:g}\n{100 * (z > 0.5).float().mean():.0f} % above ½",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
grid[0].set_ylabel("samples (%)")
figure.supxlabel("relaxed bit z", fontsize=10)
plt.show()

# %%
# Gradients
# ---------
#
# Training needs the gradient of what exact bits would cost on average. For one bit and
# a cost f it is known: p (1 - p) (f(1) - f(0)). A relaxed sample gives an estimate of
# it, which is off on average (bias) and scatters (standard deviation). Here for the
# cost (z - 0.45)², with a logit of 1, over 200,000 draws. The cost is one on which the
# two exact values hardly differ, so the true gradient is small, which is the hard case.

target, count = 0.45, 200_000
p = 1 / (1 + math.exp(-1))
exact = p * (1 - p) * ((1 - target) ** 2 - target**2)
sweep = torch.logspace(math.log10(0.05), math.log10(4), 15).tolist()
noise = torch.logit(torch.rand(count, generator=torch.Generator().manual_seed(1)))

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
for hard, colour, dashes, marker in (
    (False, "#0072B2", "-", "o"),
    (True, "#D55E00", "--", "s"),
):
    means, spreads = [], []
    for temperature in sweep:
        logits = torch.full((count,), 1.0, requires_grad=True)
        z = functional.relaxed_bernoulli_rsample(logits, temperature, hard, noise)
        (gradient,) = torch.autograd.grad(((z - target) ** 2).sum(), logits)
        means.append(gradient.mean())
        spreads.append(gradient.std())
    style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
    left.plot(sweep, means, label=f"hard={hard}", **style)
    right.plot(sweep, spreads, **style)
left.axhline(exact, color="black", linewidth=1, linestyle=":", label="exact bits")
left.set(xscale="log", xlabel="temperature", ylabel="mean of the gradient")
right.set(
    xscale="log", xlabel="temperature", ylabel="standard deviation", ylim=(0, None)
)
left.set_title("How far off on average", fontsize=10)
right.set_title("How much it scatters", fontsize=10)
right.legend(*left.get_legend_handles_labels(), frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# Towards low temperatures the mean comes to the exact one, and single draws scatter
# more and more. ``hard=True`` scatters about twice as much here, and is farther off
# except near the ends. This is one cost and one logit; others have other curves.
#
# A schedule that lowers the temperature walks these curves from right to left:

bottleneck = StochasticBottleneck("bern", dim=64, in_features=256)
schedule = TemperatureSchedule(
    bottleneck, end=0.1, total_steps=100, start=1.0, shape="exponential"
)
print([round(schedule.temperature_at(step), 2) for step in (0, 25, 50, 75, 100)])

# %%
# location_std
# ------------
#
# A fresh projector gives logits that are small beside the noise. ``location_std`` sets
# how far they spread over the batch. On random features, how often a sampled bit is the
# image's most probable bit: at 50 % the sample says nothing about the image, at 100 %
# nothing is random about it.

features = torch.randn(4096, 256, generator=torch.Generator().manual_seed(2)).relu()
choices = (None, 0.5, 1.0, 2.0, 4.0, 8.0)
agreement, entropy = [], []
for location_std in choices:
    torch.manual_seed(0)
    bottleneck = StochasticBottleneck(
        "bern", dim=64, in_features=256, location_std=location_std
    )
    posterior = bottleneck(features).posterior
    agreement.append(100 * torch.sigmoid(posterior.logits.abs()).mean().item())
    entropy.append(posterior.entropy().mean().item() / (64 * math.log(2)))

figure, axes = plt.subplots(figsize=(6.0, 3.0), layout="constrained")
axes.plot(range(len(choices)), agreement, "o-", color="#0072B2")
for place, (high, share) in enumerate(zip(agreement, entropy, strict=True)):
    axes.annotate(
        f"entropy {100 * share:.0f} %",
        (place, high),
        (6, -12),
        textcoords="offset points",
        fontsize=8,
    )
axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
axes.set(
    xlabel="location_std",
    ylabel="sampled bit = mode (%)",
    ylim=(45, 100),
    xlim=(-0.4, 5.8),
)
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("What of a bit survives the noise")
plt.show()

# %%
# Under each point, the entropy of the code in percent of what fair coins have. The
# default is 2. What these options do to accuracy is another question, and
# :doc:`/choosing` has what was measured of it.
