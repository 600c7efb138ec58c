"""Variance collapse: The Gaussian's variance collapses unless it comes from the opposing view.

    python examples/paper/collapse.py runs/paper/base-* runs/paper/own-*

Needs runs of StochCon Gauss with --variance-from opposing and own; reads results.json and metrics.csv. The variance is
the mean over dimensions and the images of a training batch. Result: holds in part (40 epochs of a small encoder).
"""

import csv
import statistics

from claim import Panel, Rows, Run, ahead, by, columns_of, curve, main, shown, values

FIGURE = [Panel("posterior variance", "step of pretraining", curves="variance", log="y", factor=1)]


def describe(run):
    """The variance of one run by step, where it was logged; at the end, its mean over the last epoch."""
    found = {}
    for path in (run.folder / "gauss" / "logs").glob("*/metrics.csv"):  # a resumed run has several
        for row in csv.DictReader(path.read_text().splitlines()):
            if row.get("latent/variance_mean"):
                found[int(row["step"])] = int(row["epoch"]), float(row["latent/variance_mean"])
    logged = {step: variance for step, (_, variance) in sorted(found.items())}
    last = max(epoch for epoch, _ in found.values())
    final = statistics.fmean(variance for epoch, variance in found.values() if epoch == last)
    return {"at the end": final, "left of the start": final / next(iter(logged.values())), "curve": logged}


def measure(runs: list[Run]):
    """Variance over training."""
    rows, lines = [], {}
    for view, group in by(runs, "variance_from").items():
        row = columns_of(group, describe)
        steps = sorted(set.intersection(*map(set, row["curve"].values())))  # a run that was killed may lack some
        steps = steps[:: 1 + len(steps) // 50]  # up to 50 points
        logged = {seed: [found[step] for step in steps] for seed, found in row.pop("curve").items()}
        lines[f"from the {view} view"] = curve(steps, logged)
        probes = {f"probe on {part}": values(group, "gauss", part, "probe") for part in "hz"}
        rows.append({"variance from": f"{view} view"} | row | probes)
    return rows, {"variance": lines}


def conclude(rows: Rows):
    """Compare what is left of the variance."""
    opposing, own = rows
    criteria = {
        "with the own view's, less than 10% of the variance is left": ahead(0.1, own["left of the start"]),
        "with the opposing view's, 10% or more is left": not ahead(0.1, opposing["left of the start"]),
        "the opposing view's leaves more variance": ahead(opposing["at the end"], own["at the end"]),
    }
    left = " and ".join(f"{shown(row['left of the start'])} from the {row['variance from']}" for row in rows)
    return f"Variance left after training: {left}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"at the end": ".3g"})
