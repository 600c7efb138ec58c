"""Claim 6: accuracy and variance of the Gaussian latent against its dimension."""

from __future__ import annotations

from typing import Any

from recipes.claims import figures
from recipes.claims.collapse import ends
from recipes.claims.evidence import Answer, Evidence, Grid, Need
from recipes.claims.poster import SOURCE
from recipes.claims.series import Criterion, rises
from recipes.figures import STYLES, Picture

TITLE = "The Gaussian's dimension"
CLAIM = "A smaller bottleneck dimension relies on variance to increase representation capacity."
PAPER = {"source": SOURCE}


def needs(grid: Grid) -> list[Need]:
    """The Gaussian at every size."""
    return [Need(grid.of_dim("gauss", dim), ("pretrain", "frozen")) for dim in grid.dims]


def answer(evidence: Evidence) -> Answer:
    """Accuracy and variance by dimension."""
    dims = evidence.grid.dims
    settings = [evidence.grid.of_dim("gauss", dim) for dim in dims]
    accuracy = {
        key: [evidence.series(setting, "frozen", key, "probe") for setting in settings] for key in ("z", "h")
    }
    variance = {
        column: [
            evidence.series_of(setting, "metrics", lambda m, c=column: ends(m, c)[1])  # type: ignore[misc]
            for setting in settings
        ]
        for column in ("posterior_variance", "latent_variance")
    }
    values = {
        "dims": list(dims),
        "z_probe": [s.json() for s in accuracy["z"]],
        "h_probe": [s.json() for s in accuracy["h"]],
        **{column: [s.json() for s in of_column] for column, of_column in variance.items()},
    }
    rule = "from the smallest dimension to the largest by more than the seeds' spread, and no step goes back by more"
    criteria = [
        Criterion(f"top-1 on the latent's mean rises {rule}", rises(accuracy["z"])),
        Criterion(
            f"the posterior's variance falls {rule}", rises(variance["posterior_variance"], falls=True)
        ),
    ]
    notes = ("Variances are those of the last epoch's training batches, as a mean over dimensions.",)
    return Answer(values, criteria, notes)


def rows(content: dict[str, Any]) -> list[list[str]]:
    """Accuracy and variance at each size, header first."""
    values = content["values"]
    header = [
        "dimensions",
        "probe on the mean of z %",
        "probe on h %",
        "posterior's variance",
        "variance of z",
    ]
    cells = [
        [
            str(dim),
            *(figures.number(values[name][i], 100) for name in ("z_probe", "h_probe")),
            *(
                figures.number(values[name][i], 1, ".3g")
                for name in ("posterior_variance", "latent_variance")
            ),
        ]
        for i, dim in enumerate(values["dims"])
    ]
    return [header, *cells]


def draw(content: dict[str, Any]) -> Picture:
    """Accuracy beside variance, against the dimension."""
    values = content["values"]
    figure, (left, right) = figures.panels(
        ("linear probe (%)", "variance, last epoch"), x="latent dimensions"
    )
    figures.band(left, values["dims"], values["z_probe"], *STYLES["gauss"], "mean of z", 100)
    figures.band(left, values["dims"], values["h_probe"], *figures.LINES[0], "h", 100)
    figures.band(right, values["dims"], values["posterior_variance"], *STYLES["gauss"], "posterior's")
    figures.band(right, values["dims"], values["latent_variance"], *figures.LINES[0], "of z over the batch")
    right.set_yscale("log")  # the variances lie orders of magnitude apart
    for axes in (left, right):
        figures.log_axis(axes, values["dims"])
        figures.legend(axes)
        axes.tick_params(axis="x", labelsize=8)
    return Picture(
        "dims",
        figure,
        "Test accuracy of linear probes, and variances, against the Gaussian latent's dimension; bands are one "
        "standard deviation over the seeds.",
        "Accuracy and variance against dimension. On the mean of z: "
        + figures.listed(values["dims"], values["z_probe"], "dimensions", 100, " %"),
    )
