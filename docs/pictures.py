"""Draws the pictures of the documentation, with values computed by the package itself.

An extension of the build: it writes them into `_generated/` before the pages are read.
"""

import math
from pathlib import Path
from typing import Any

import torch
from canvas import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION, WIDTH, arrow, box, canvas
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from stochastic_bottleneck import (
    BernoulliPosterior,
    GaussianPosterior,
    StochasticBottleneck,
    TemperatureSchedule,
    functional,
)
from stochastic_bottleneck.codes import compression_ratio, hamming_distance, pack_bits


def pipeline() -> Figure:
    """Algorithm 1, top to bottom: the plain branch and the stochastic one."""
    figure, axes = canvas(6.6, (0, 10), (0, 11))
    left, right = 2.5, 7.5
    heights = (10.2, 8.9, 7.6, 6.3, 5.0, 3.7)
    plain = {0: ("view $x$", "none"), 1: ("encoder $f$", "grey"), 5: ("head $g$", "grey")}
    stochastic = {
        **plain,
        0: ("view $x'$", "none"),
        2: (r"projector $\pi$", "latent"),
        3: (r"latent $z' \sim q\,(z \mid \phi')$", "noise"),
        4: (r"upsampler $\rho$", "latent"),
    }
    for x, boxes in ((left, plain), (right, stochastic)):
        for row, (text, style) in boxes.items():
            box(axes, x, heights[row], text, style)
    rows = (*heights, 2.4)
    for row, label in enumerate(("", "$h'$", r"$\phi'$", "$z'$", "$h''$", "$v'$")):
        end = 1.75 if row == 5 else rows[row + 1] + 0.42
        arrow(axes, (right, rows[row] - 0.42), (right, end), label)
    arrow(axes, (left, heights[0] - 0.42), (left, heights[1] + 0.42))
    arrow(axes, (left, heights[1] - 0.42), (left, heights[5] + 0.42), "$h$")
    arrow(axes, (left, heights[5] - 0.42), (left, 1.75), "$v$")
    for row in (1, 5):
        axes.plot((left + 1.75, right - 1.75), (heights[row],) * 2, ":", color=GREY)
        axes.text(5, heights[row] + 0.15, "shared", ha="center", color=GREY)
    box(axes, 5, 1.3, r"InfoNCE$\,(v, v')$", "grey", width=8.5)
    axes.text(5, 0.25, "coloured: what StochCon adds to SimCLR", ha="center", color=GREY)
    return figure


def concrete() -> Figure:
    """Relaxed bits at several temperatures: their density, and the map from noise to sample."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 6.4), layout="constrained")
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
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    bottleneck = StochasticBottleneck("bern", dim=1, in_features=1)
    for shape, colour, style in (
        ("linear", ORANGE, "-."),
        ("cosine", BLUE, "--"),
        ("exponential", GREEN, "-"),
    ):
        schedule = TemperatureSchedule(bottleneck, 0.1, 100, start=1.0, shape=shape)
        axes.plot([schedule.temperature_at(step) for step in range(121)], style, color=colour, label=shape)
    axes.set(xlabel="step (% of total_steps)", ylabel=r"temperature $\tau$", ylim=(0, 1.05))
    axes.legend()
    return figure


def logit_scale() -> Figure:
    """Logits of a fresh projector against logistic noise, and what of a bit survives the noise."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 6.4), layout="constrained")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(
        4096, 256, generator=generator
    ).relu()  # as after a ReLU, each entry of variance < 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"dim": 64, "in_features": features.shape[1]}
        modules = {
            "location_std=None": StochasticBottleneck("bern", **options, location_std=None),
            "location_std=2 (default)": StochasticBottleneck("bern", **options),
        }
    grid = torch.linspace(-8, 8, 321)
    noise = torch.sigmoid(grid) * torch.sigmoid(-grid)
    top.fill_between(
        grid,
        noise,
        color=GREY,
        alpha=0.3,
        linewidth=0,
        label=f"logistic noise, std {math.pi / math.sqrt(3):.1f}",
    )
    spread = torch.linspace(0.01, 4, 200)
    base = torch.randn(20_000, generator=generator)
    kept = [torch.sigmoid((scale * base).abs()).mean().item() for scale in spread]
    bottom.plot(spread, [100 * share for share in kept], color=BLACK)
    for (name, module), colour, marker in zip(modules.items(), (VERMILION, BLUE), "so", strict=True):
        with torch.no_grad():
            logits = module.posterior(features).logits
            logits = logits - logits.mean(dim=0)  # what tells images apart, not the offset that all share
        density, edges = torch.histogram(logits.flatten(), bins=160, range=(-8, 8), density=True)
        top.plot((edges[1:] + edges[:-1]) / 2, density, color=colour, label=f"logits, {name}")
        agree = 100 * torch.sigmoid(logits.abs()).mean().item()
        bottom.plot(logits.std().item(), agree, marker, color=colour, markersize=9, label=name)
    top.set(xlabel="nats", ylabel="density", ylim=(0, 2.2))
    top.legend(loc="upper right")
    bottom.set(xlabel="standard deviation of the logits", ylabel="sampled bit = mode (%)", ylim=(50, 100))
    bottom.axhline(50, color=GREY, linestyle=":")
    bottom.legend(loc="lower right")
    return figure


def opposing_variance() -> Figure:
    """Two latent dimensions of one image: the mean of its own view, the variance of the other."""
    figure, axes = canvas(3.5, (-3.9, 4.3), (-2.2, 2.58))
    axes.set_aspect("equal")
    generator = torch.Generator().manual_seed(3)
    own = GaussianPosterior(torch.tensor([1.6, 0.6]), torch.tensor([0.25, 0.25]).log())
    other = GaussianPosterior(torch.tensor([-1.6, -0.5]), torch.tensor([0.95, 0.55]).log())
    used = GaussianPosterior(own.mean, other.log_std)
    samples = GaussianPosterior(used.mean.expand(60, 2), used.log_std.expand(60, 2)).rsample(
        generator=generator
    )
    axes.scatter(*samples.T, s=14, color=BLUE, alpha=0.55, linewidth=0)
    for posterior, colour, style in ((own, BLUE, ":"), (other, VERMILION, "--"), (used, BLUE, "-")):
        width, height = (4 * posterior.std).tolist()  # two standard deviations either side
        x, y = posterior.mean.tolist()
        axes.add_patch(
            Ellipse((x, y), width, height, fill=False, edgecolor=colour, linestyle=style, linewidth=2)
        )
    for posterior, colour in ((own, BLUE), (other, VERMILION)):
        axes.plot(*posterior.mean.tolist(), "+", color=colour, markersize=10, markeredgewidth=2)
    axes.annotate(
        "own variance\n(not used)",
        (1.6, 0.08),
        (1.75, -2.0),
        color=BLUE,
        ha="center",
        arrowprops={"arrowstyle": "-", "color": BLUE},
    )
    axes.text(1.6, 2.05, r"$z' \sim N(\mu(x'),\ \sigma^2(x))$", color=BLUE, ha="center")
    axes.text(-1.6, 1.0, r"opposing view $x$:" "\n" r"gives $\sigma(x)$", color=VERMILION, ha="center")
    return figure


def train_and_eval() -> Figure:
    """The same bits in training and in evaluation."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    generator = torch.Generator().manual_seed(1)
    logits = torch.linspace(-4, 4, 12)
    posterior = BernoulliPosterior(logits, 1.0)
    rows = {
        "probability of a one": posterior.probs,
        "train: a sample": posterior.rsample(generator=generator),
        "train: another": posterior.rsample(generator=generator),
        "train, hard=True": posterior.rsample(hard=True, generator=generator),
        "hard=True, another": posterior.rsample(hard=True, generator=generator),
        "eval: the mode": posterior.mode(),
    }
    axes.pcolormesh(
        torch.stack(list(rows.values())), cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=2
    )
    for y, row in enumerate(rows.values()):
        for x, value in enumerate(row.tolist()):
            text = f"{value:.0f}" if value in (0, 1) else f"{value:.1f}".removeprefix("0")
            axes.text(
                x + 0.5,
                y + 0.5,
                text,
                ha="center",
                va="center",
                color="white" if value > 0.6 else BLACK,
                fontsize=11,
            )
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.set_xlabel("12 bits of one image")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return figure


def bits_to_bytes() -> Figure:
    """Two codes packed, and their distance counted."""
    figure, axes = canvas(2.4, (-2.9, 17.0), (-0.4, 6.2))
    generator = torch.Generator().manual_seed(4)
    a = torch.randint(0, 2, (16,), generator=generator)
    b = a.clone()
    b[torch.tensor([1, 6, 11])] ^= 1
    codes = {"a": pack_bits(a), "b": pack_bits(b)}
    differing = a != b
    for y, (name, bits) in zip((4.6, 2.6), (("a", a), ("b", b)), strict=True):
        axes.text(-0.6, y + 0.5, f"code {name}", ha="right", va="center")
        for x, bit in enumerate(bits.tolist()):
            place = x + (0.6 if x > 7 else 0)
            edge = VERMILION if differing[x] else "white"
            fill = BLUE if bit else "#DCE9F3"
            axes.add_patch(
                Rectangle((place + 0.06, y + 0.06), 0.88, 0.88, facecolor=fill, edgecolor=edge, linewidth=2)
            )
            axes.text(
                place + 0.5, y + 0.47, str(bit), ha="center", va="center", color="white" if bit else BLACK
            )
        for x, byte in zip((4, 12.6), codes[name].tolist(), strict=True):
            axes.text(x, y - 0.15, f"byte {byte}", ha="center", va="top", color=GREY)
    distance = hamming_distance(codes["a"], codes["b"]).item()
    text = f"Hamming distance: {distance} bits differ"
    axes.text(8.3, 0.5, text, ha="center", va="center", color=VERMILION)
    return figure


def compression() -> Figure:
    """An image and its code, areas in proportion to their bits."""
    figure, axes = canvas(3.2, (-0.3, 6.2), (-0.3, 3.3))
    axes.set_aspect("equal")
    shape, bits = (224, 224, 3), 2048
    ratio = compression_ratio(shape, bits)
    side = 3.0
    axes.add_patch(Rectangle((0, 0), side, side, facecolor=SKY))
    height, width, channels = shape
    axes.text(
        side / 2,
        side / 2,
        f"image\n{height} x {width} x {channels} x 8\n= {ratio * bits:,.0f} bits",
        ha="center",
        va="center",
    )
    small = side / math.sqrt(ratio)
    axes.add_patch(Rectangle((4.6, side / 2), small, small, facecolor=VERMILION))
    axes.text(
        4.6 + small / 2, side / 2 - 0.2, f"code\n{bits:,} bits\n{ratio:g}x smaller", ha="center", va="top"
    )
    return figure


PICTURES = (
    pipeline,
    concrete,
    annealing,
    logit_scale,
    opposing_variance,
    train_and_eval,
    bits_to_bytes,
    compression,
)


def draw(folder: Path) -> None:
    """Write every picture into a folder as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for picture in PICTURES:
            figure = picture()
            figure.savefig(folder / f"{picture.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


def setup(app: Any) -> dict[str, bool]:
    """Draw before any page is read."""
    app.connect("builder-inited", lambda app: draw(Path(app.srcdir) / "_generated"))
    return {"parallel_read_safe": True}
