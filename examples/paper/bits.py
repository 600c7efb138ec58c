"""F1 against the number of bits: As few as 11 bits are competitive on CIFAR-10.

    python examples/paper/bits.py runs/paper/base-* runs/paper/dim512-*

Needs runs of StochCon Bern. A random forest sees the most important bits, ranked on the training images; F1 is the mean
over classes on the test images. Bits are trained with the encoder, or fitted behind it with nested prefixes.
Result: does not hold (40 epochs of a small encoder).
"""

from claim import Panel, Rows, Run, ahead, by, columns_of, curve, main, shown

# isort: split
from cifar10_full import encode_views, fitted_logits  # in the folder that claim adds to the path

from stochastic_bottleneck import StochConLoss
from stochastic_bottleneck.evaluation import forest_curve

CODES = {"trained": (), "fitted with prefixes": (11, 24)}
COUNTS = (*range(1, 13), 14, 16, 20, 25, 32, 40, 50, 64, 96, 128, 192, 256)
FIGURE = [Panel("random forest, mean F1 (%)", "bits, the most important first", curves="f1", log="x")]


def bits_for(curve, share):
    """Fewest bits from which on F1 stays at this share of that with all bits."""
    below = [count for count, f1 in zip(curve.counts, curve.f1, strict=True) if f1 < share * curve.f1[-1]]
    return next(count for count in curve.counts if count > max(below, default=0))


def forest(run, prefixes):
    """Forests on growing numbers of bits, trained with the encoder or, with prefixes, fitted behind it."""
    x, y, x_test, y_test = run.split(model := run.model("bern"), "h" if prefixes else "z")
    if prefixes:
        views, loss = encode_views(model, run.given, run.images()[0]), StochConLoss(prefixes=prefixes)
        logits = fitted_logits(views, [{"h": x}, {"h": x_test}], run.given, loss=loss)
        x, x_test = (1.0 * (z > 0) for z in logits)
    found = forest_curve(x, y, x_test, y_test, counts=COUNTS, seed=run.seed)
    eleven = found.counts.index(min(11, found.counts[-1]))
    row = {"F1 with all": found.f1[-1], "bits for 95%": bits_for(found, 0.95)}
    return row | {"kept by 11": found.f1[eleven] / found.f1[-1], "counts": found.counts, "f1": found.f1}


def measure(runs: list[Run]):
    """F1 of the bits of each size."""
    rows, lines = [], {}
    for dim, group in by(runs, "dim").items():
        for name, prefixes in [(name, sizes) for name, sizes in CODES.items() if dim > max(sizes, default=0)]:
            row = columns_of(group, lambda run, prefixes=prefixes: forest(run, prefixes))
            lines[f"{dim} bits, {name}"] = curve(next(iter(row.pop("counts").values())), row.pop("f1"))
            rows.append({"bits": dim, "code": name} | row)
    return rows, {"f1": lines | {"paper: 11 bits": [[11, 0], [11, rows[0]["F1 with all"]]]}}


def conclude(rows: Rows):
    """Look at 11 bits."""
    criteria, parts = {}, []
    for row in rows:
        bits = f"{row['bits']} bits ({row['code']})"
        criteria[f"11 of {bits} keep 95% of the F1"] = not ahead(0.95, row["kept by 11"])
        kept, needed = shown(row["kept by 11"], ".0%"), shown(row["bits for 95%"], ".0f")
        parts.append(f"Of {bits}, 11 keep {kept} of the F1 and {needed} keep 95%.")
    return " ".join(parts), criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"bits for 95%": ".0f"})
