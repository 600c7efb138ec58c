"""F1 against the number of bits: As few as 11 bits are competitive on CIFAR-10.

    python examples/paper/bits.py runs/paper/base-* runs/paper/dim512-*

Needs runs of StochCon Bern. A random forest sees the most important bits, ranked on the training images; F1 is the mean
over classes on the test images. Result: does not hold (40 epochs of a small encoder).
"""

from claim import Panel, Rows, Run, ahead, by, columns_of, curve, main, shown

from stochastic_bottleneck.evaluation import forest_curve

COUNTS = (*range(1, 13), 14, 16, 20, 25, 32, 40, 50, 64, 96, 128, 192, 256)
FIGURE = [Panel("random forest, mean F1 (%)", "bits, the most important first", curves="f1", log="x")]


def bits_for(curve, share):
    """Fewest bits from which on F1 stays at this share of that with all bits."""
    below = [count for count, f1 in zip(curve.counts, curve.f1, strict=True) if f1 < share * curve.f1[-1]]
    return next(count for count in curve.counts if count > max(below, default=0))


def forest(run):
    """Forests on growing numbers of bits."""
    found = forest_curve(*run.split(run.model("bern"), "z"), counts=COUNTS, seed=run.seed)
    eleven = found.counts.index(min(11, found.counts[-1]))
    row = {"F1 with all": found.f1[-1], "bits for 95%": bits_for(found, 0.95)}
    return row | {"kept by 11": found.f1[eleven] / found.f1[-1], "counts": found.counts, "f1": found.f1}


def measure(runs: list[Run]):
    """F1 of the bits of each size."""
    rows, lines = [], {}
    for dim, group in by(runs, "dim").items():
        row = columns_of(group, forest)
        lines[f"of {dim} bits"] = curve(next(iter(row.pop("counts").values())), row.pop("f1"))
        rows.append({"bits": dim} | row)
    return rows, {"f1": lines | {"paper: 11 bits": [[11, 0], [11, rows[0]["F1 with all"]]]}}


def conclude(rows: Rows):
    """Look at 11 bits."""
    criteria, parts = {}, []
    for row in rows:
        criteria[f"11 of {row['bits']} bits keep 95% of the F1"] = not ahead(0.95, row["kept by 11"])
        kept, needed = shown(row["kept by 11"], ".0%"), shown(row["bits for 95%"], ".0f")
        parts.append(f"Of {row['bits']} bits, 11 keep {kept} of the F1 and {needed} keep 95%.")
    return " ".join(parts), criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"bits for 95%": ".0f"})
