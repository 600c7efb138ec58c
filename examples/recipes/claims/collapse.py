"""Claim 5: the Gaussian's variance over training, from the own and from the opposing view."""

from __future__ import annotations

import statistics
from typing import Any

from recipes.claims import figures
from recipes.claims.evidence import Answer, Evidence, Grid, Need, Setting
from recipes.claims.poster import SOURCE
from recipes.claims.series import Criterion, Series, ahead, no
from recipes.figures import Picture

TITLE = "Variance collapse"
CLAIM = "The Gaussian's variance collapses without the opposing view's variance; with it, it does not."
PAPER = {"source": SOURCE}
VIEWS = {"own": Setting("gauss", ("--variance-from", "own")), "opposing": Setting("gauss")}
NAMES = {"own": "own view's variance", "opposing": "opposing view's variance"}
COLLAPSED = 0.1
POINTS = 60  # of a curve in the results


def needs(grid: Grid) -> list[Need]:
    """The Gaussian both ways."""
    return [Need(setting, ("pretrain", "frozen")) for setting in VIEWS.values()]


def ends(metrics: dict[str, Any], column: str) -> tuple[float, float]:
    """Means of a column over the first and the last epoch."""
    rows = [
        (epoch, value)
        for epoch, value in zip(metrics["epoch"], metrics[column], strict=True)
        if value is not None
    ]
    first, last = rows[0][0], rows[-1][0]
    return (
        statistics.fmean(value for epoch, value in rows if epoch == first),
        statistics.fmean(value for epoch, value in rows if epoch == last),
    )


def start(metrics: dict[str, Any]) -> float:
    """Posterior's variance in the first row there is, after the first steps of training."""
    return float(next(value for value in metrics["posterior_variance"] if value is not None))


def share_left(metrics: dict[str, Any]) -> float:
    """Posterior's variance in the last epoch over that after the first steps."""
    return ends(metrics, "posterior_variance")[1] / start(metrics)


def answer(evidence: Evidence) -> Answer:
    """Variance over the steps, what is left of it, and accuracy."""
    left = {view: evidence.series_of(setting, "metrics", share_left) for view, setting in VIEWS.items()}
    final = {
        column: {
            view: evidence.series_of(setting, "metrics", lambda m, c=column: ends(m, c)[1])  # type: ignore[misc]
            for view, setting in VIEWS.items()
        }
        for column in ("posterior_variance", "latent_variance")
    }
    values: dict[str, Any] = {
        view: {
            "share_left": left[view].json(),
            "posterior_variance": final["posterior_variance"][view].json(),
            "latent_variance": final["latent_variance"][view].json(),
            "h_probe": evidence.series(setting, "frozen", "h", "probe").json(),
            "z_probe": evidence.series(setting, "frozen", "z", "probe").json(),
            "curve": curve(evidence, setting),
        }
        for view, setting in VIEWS.items()
    }
    said = f"falls below {COLLAPSED:.0%} of what it was after the first steps, by more than the seeds' spread"
    criteria = [
        Criterion(f"with the own view's, the variance {said}", ahead(COLLAPSED, left["own"])),
        Criterion(
            f"with the opposing view's, no such fall: it {said.replace('falls', 'does not fall')}",
            no(ahead(COLLAPSED, left["opposing"])),
        ),
        Criterion(
            "the opposing view's leaves more variance than the own view's, by more than the seeds' spread",
            ahead(final["posterior_variance"]["opposing"], final["posterior_variance"]["own"]),
        ),
    ]
    notes = (
        "The variance is the mean over dimensions of the posterior's variances, on training batches. Means are "
        "normalised over the batch before the noise, so that a network cannot make them larger to drown it; the "
        "variance alone can shrink.",
    )
    return Answer(values, criteria, notes)


def curve(evidence: Evidence, setting: Setting) -> dict[str, Any]:
    """Posterior's variance over the steps that every seed has, thinned."""
    columns = {
        seed: {
            int(step): value
            for step, value in zip(metrics["step"], metrics["posterior_variance"], strict=True)
            if value is not None
        }
        for seed, metrics in evidence.results(setting, "metrics").items()
    }
    shared = sorted(set.intersection(*(set(column) for column in columns.values()))) if columns else []
    steps = shared[:: max(1, -(-len(shared) // POINTS))]
    if shared and steps[-1] != shared[-1]:
        steps.append(shared[-1])
    points = [
        Series({seed: column[step] for seed, column in columns.items()}, evidence.seeds).json()
        for step in steps
    ]
    return {"step": steps, "posterior_variance": points}


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Variance at the end and what came of it, header first."""
    header = [
        "variance from",
        "at the end",
        "left of the start %",
        "probe on h %",
        "probe on the mean of z %",
    ]
    cells = [
        [
            f"the {view} view",
            figures.number(of_view["posterior_variance"], 1, ".3g"),
            *(figures.number(of_view[name], 100) for name in ("share_left", "h_probe", "z_probe")),
        ]
        for view, of_view in content["values"].items()
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Variance over training, both ways."""
    figure, (axes,) = figures.panels(("posterior's variance",), x="step of pretraining")
    for (view, of_view), style in zip(content["values"].items(), figures.LINES, strict=False):
        found = of_view["curve"]
        figures.band(axes, found["step"], found["posterior_variance"], *style, NAMES[view])
    means = [
        s["mean"] for of_view in content["values"].values() for s in of_view["curve"]["posterior_variance"]
    ]
    if means and max(means) > 10 * min(means) > 0:  # a collapse goes over orders of magnitude
        axes.set_yscale("log")
    elif means:
        axes.set_ylim(0, None)
    figures.legend(axes)
    said = (
        figures.told(f"{NAMES[view]}, left at the end", of_view["share_left"], 100, " %")
        for view, of_view in content["values"].items()
    )
    return Picture(
        "collapse",
        figure,
        "The Gaussian's variance over training; bands are one standard deviation over the seeds.",
        f"Variance over the steps of training. {'; '.join(said)}",
    )
