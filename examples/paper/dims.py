"""The Gaussian's dimension: A smaller bottleneck relies on variance to increase its capacity.

    python examples/paper/dims.py runs/paper/base-* runs/paper/dim*

Needs runs of StochCon Gauss at several sizes. Result: holds in part (5 epochs of a small encoder).
"""

from claim import Panel, Rows, Run, by, columns_of, main, rises, shown, values
from collapse import describe

FIGURE = [Panel("linear probe (%)", "dim", ("probe on z", "probe on h"), log="x")]
FIGURE += [Panel("posterior variance, last epoch", "dim", ("posterior variance",), log="xy", factor=1)]


def measure(runs: list[Run]):
    """Accuracy and variance at each size."""
    rows = [
        {"dim": dim}
        | {f"probe on {part}": values(group, "gauss", part, "probe") for part in "zh"}
        | {"posterior variance": columns_of(group, describe)["at the end"]}
        for dim, group in by(runs, "dim").items()
    ]
    return rows, {}


def conclude(rows: Rows):
    """Look at the direction of accuracy and variance."""
    accuracy, variance = ([row[name] for row in rows] for name in ("probe on z", "posterior variance"))
    criteria = {"accuracy on z rises with the dimension": rises(accuracy)}
    criteria["the posterior variance falls with the dimension"] = rises(variance[::-1])
    gain = f"accuracy on z goes from {shown(accuracy[0])} to {shown(accuracy[-1])}"
    ends = f"{shown(variance[0], '.3f')} to {shown(variance[-1], '.3f')}"
    return f"From {rows[0]['dim']} to {rows[-1]['dim']} dimensions, {gain} and the variance from {ends}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"posterior variance": ".3g"})
