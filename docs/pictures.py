"""Draw the figures that show computed values into `docs/_generated`; the diagrams are in `docs/_static`."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from stochastic_bottleneck import (
    BernoulliPosterior,
    GaussianPosterior,
    StochasticBottleneck,
    TemperatureSchedule,
    functional,
)

matplotlib.use("svg")

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, GREY, ORANGE, GREEN = "#000000", "#666666", "#E69F00", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "stochastic_bottleneck",  # the same file from every build
    "figure.constrained_layout.use": True,
}
WIDTH = 6.0  # inches; narrow, so that the text stays readable on a phone


def concrete() -> Figure:
    """Relaxed bits at several temperatures: density, and sample against noise."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 6.4))
    logit = torch.tensor([1.0], dtype=torch.float64)
    z = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    perturbed = torch.linspace(-4, 4, 401, dtype=torch.float64)
    for tau, colour, style in ((2.0, ORANGE, "-."), (1.0, BLUE, "-"), (0.5, GREEN, "--"), (0.1, PURPLE, "-")):
        density = functional.relaxed_bernoulli_log_prob(logit.expand_as(z), tau, z).exp()
        top.plot(z, density, style, color=colour, label=rf"$\tau$ = {tau:g}")
        sample = functional.relaxed_bernoulli_rsample(torch.zeros_like(perturbed), tau, noise=perturbed)
        bottom.plot(perturbed, sample, style, color=colour)
    bits = functional.relaxed_bernoulli_rsample(torch.zeros_like(perturbed), 1.0, True, perturbed)
    bottom.plot(perturbed, bits, color=BLACK, linewidth=1, label="exact bit")
    p = torch.sigmoid(logit).item()
    top.set(ylim=(0, 4), xlabel="relaxed bit $z$", ylabel="density")
    top.set_title(f"one bit with logit {logit.item():g}, so a one with probability {p:.2f}", fontsize=12)
    top.legend(ncols=2, loc="upper center")
    bottom.set(xlabel="logit + logistic noise", ylabel="relaxed bit $z$")
    bottom.legend(loc="lower right")
    return figure


def annealing() -> Figure:
    """The three shapes of `TemperatureSchedule`."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    bottleneck = StochasticBottleneck("bern", dim=1, in_features=1)
    for shape, style in {"linear": "-.", "cosine": "--", "exponential": "-"}.items():
        schedule = TemperatureSchedule(bottleneck, 0.1, 100, start=1.0, shape=shape)
        axes.plot([schedule.temperature_at(step) for step in range(121)], style, color=BLUE, label=shape)
    axes.set(xlabel="step (% of total_steps)", ylabel=r"temperature $\tau$", ylim=(0, 1.05))
    axes.legend()
    return figure


def logit_scale() -> Figure:
    """Logits of a fresh projector against logistic noise, and how many sampled bits equal the mode."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 6.4))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4096, 256, generator=generator).relu()
    grid = torch.linspace(-8, 8, 321)
    noise = torch.sigmoid(grid) * torch.sigmoid(-grid)
    label = f"logistic noise, std {math.pi / math.sqrt(3):.1f}"
    top.fill_between(grid, noise, color=GREY, alpha=0.3, linewidth=0, label=label)
    stds = torch.linspace(0.01, 4, 200)
    normal = torch.randn(20_000, generator=generator)
    agreement = [100 * torch.sigmoid((std * normal).abs()).mean().item() for std in stds]
    bottom.plot(stds, agreement, color=BLACK)
    for std, name, colour, marker in ((None, "None", VERMILION, "s"), (2.0, "2 (default)", BLUE, "o")):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            bottleneck = StochasticBottleneck("bern", dim=64, in_features=256, location_std=std)
            logits = bottleneck.posterior(features).logits
        logits = logits - logits.mean(dim=0)  # an offset that all images share does not distinguish them
        density, edges = torch.histogram(logits.flatten(), bins=160, range=(-8, 8), density=True)
        top.plot((edges[1:] + edges[:-1]) / 2, density, color=colour, label=f"logits, location_std={name}")
        agree = 100 * torch.sigmoid(logits.abs()).mean().item()
        bottom.plot(logits.std().item(), agree, marker, color=colour, label=f"location_std={name}")
    top.set(xlabel="nats", ylabel="density", ylim=(0, 2.2))
    top.legend(loc="upper right")
    bottom.set(xlabel="standard deviation of the logits", ylabel="sampled bit = mode (%)", ylim=(50, 100))
    bottom.legend(loc="lower right")
    return figure


def opposing_variance() -> Figure:
    """Two latent dimensions of one image: the mean of its own view, the variance of the other."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.5))
    axes.set(xlim=(-3.9, 4.3), ylim=(-2.2, 2.6), aspect="equal")
    axes.axis("off")
    own = GaussianPosterior(torch.tensor([1.6, 0.6]), torch.tensor([0.25, 0.25]).log())
    other = GaussianPosterior(torch.tensor([-1.6, -0.5]), torch.tensor([0.95, 0.55]).log())
    used = GaussianPosterior(own.mean, other.log_std)
    many = GaussianPosterior(used.mean.expand(60, 2), used.log_std.expand(60, 2))
    samples = many.rsample(generator=torch.Generator().manual_seed(3))
    axes.scatter(*samples.T, s=14, color=BLUE, alpha=0.55, linewidth=0)
    for posterior, colour, style in ((own, BLUE, ":"), (other, VERMILION, "--"), (used, BLUE, "-")):
        centre, (width, height) = posterior.mean.tolist(), (4 * posterior.std).tolist()
        axes.add_patch(Ellipse(centre, width, height, fill=False, edgecolor=colour, linestyle=style, lw=2))
        axes.plot(*centre, "+", color=colour, markersize=10, markeredgewidth=2)
    line = {"arrowstyle": "-", "color": BLUE}
    text = "own variance\n(not used)"
    axes.annotate(text, (1.6, 0.08), (1.75, -2.0), color=BLUE, ha="center", arrowprops=line)
    axes.text(1.6, 2.05, r"$z' \sim N(\mu(x'),\ \sigma^2(x))$", color=BLUE, ha="center")
    axes.text(-1.6, 1.0, "opposing view $x$:\ngives $\\sigma(x)$", color=VERMILION, ha="center")
    return figure


def train_and_eval() -> Figure:
    """The same bits in training and in evaluation."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    generator = torch.Generator().manual_seed(1)
    posterior = BernoulliPosterior(torch.linspace(-4, 4, 12), 1.0)
    rows = {
        "probability of a one": posterior.probs,
        "train: a sample": posterior.rsample(generator=generator),
        "train: another": posterior.rsample(generator=generator),
        "train, hard=True": posterior.rsample(hard=True, generator=generator),
        "hard=True, another": posterior.rsample(hard=True, generator=generator),
        "eval: the mode": posterior.mode(),
    }
    table = torch.stack(list(rows.values()))
    axes.pcolormesh(table, cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=2)
    for y, row in enumerate(table.tolist()):
        for x, value in enumerate(row):
            text = f"{value:.0f}" if value in (0, 1) else f"{value:.1f}".removeprefix("0")
            colour = "white" if value > 0.6 else BLACK
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=colour, fontsize=11)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
    axes.set(xticks=[], xlabel="12 bits of one image")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return figure


def draw(app: Any) -> None:
    """Write every figure as an SVG file."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for picture in (concrete, annealing, logit_scale, opposing_variance, train_and_eval):
            figure = picture()
            figure.savefig(folder / f"{picture.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


def setup(app: Any) -> dict[str, bool]:
    """Draw before any page is read."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}
