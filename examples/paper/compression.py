"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of SimCLR, if possible with the covariance penalty, whose features are compressed to codes of 8 to 512 bits
by faiss and by a latent fitted behind the encoder; and runs of StochCon Bern at several sizes, whose bits were trained
with it. Of PQ and OPQ, decoded features are evaluated. The paper's 588 is 224 x 224 x 3 x 8 bits over 2,048.
Result: holds in part (40 epochs of a small encoder).
"""

import itertools

from claim import LABELS, Panel, Rows, Run, ahead, by, columns_of, main, mean, rises, shown, values

# isort: split
from cifar10_full import encode_views, fitted_logits  # in the folder that claim adds to the path
from codes import METRICS, OTHERS
from other_codes import other_codes
from runs import scores

from stochastic_bottleneck.codes import compression_ratio

SIZES = (8, 16, 32, 64, 128, 256, 512)
TRAINED, FITTED, FLOATS = "StochCon Bern, trained", "StochCon Bern, fitted", "h itself"
FIGURE = [Panel(f"{metric} (%)", "bits", (metric,), by=("method",), log="x") for metric in METRICS]


def compressed(run, name):
    """Scores of codes of a SimCLR's h, by number of bits, code and metric."""
    model, (train, test), found = run.model(name), run.images(), {}
    sets, labels = [{"h": run.encode(model, x.pixels).features} for x in (train, test)], (train.labels, test.labels)
    pairs = encode_views(getattr(model, "encoder", model), run.given, train)

    def add(bits, method, features, metric):
        scored = scores(features, labels, metric, run.given.probe)
        found.update({(bits, method, title): scored[key] for title, key in METRICS.items()})

    for bits in SIZES:
        logits = fitted_logits(pairs, sets, run.given, dim=bits)
        add(bits, FITTED, [1.0 * (x > 0) for x in logits], "hamming")
        for code, codes, metric in other_codes(*(x["h"] for x in sets), bits, run.seed):
            add(bits, LABELS[code], codes, metric)
    return found


def measure(runs: list[Run]):
    """Scores of each code at each number of bits."""
    having = {name: [run for run in runs if name in run.results["models"]] for name in ("penalized", "simclr")}
    name = "penalized" if having["penalized"] else "simclr"  # of all runs, since one column is about one model
    rows, sizes, found = [], by(runs, "dim"), columns_of(having[name], lambda run: compressed(run, name))
    for bits in SIZES:
        cells = {TRAINED: {title: values(sizes.get(bits, ()), "bern", "z", key) for title, key in METRICS.items()}}
        for method in (FITTED, *map(LABELS.get, OTHERS)):
            cells[method] = {title: found.get((bits, method, title)) for title in METRICS}
        cells[FLOATS] = {title: values(having[name], name, "h", key) for title, key in METRICS.items()}
        for method, row in cells.items():
            ratio = None if method == FLOATS else compression_ratio((3, 32, 32), bits)
            rows += [{"bits": bits, "method": method, "compression": ratio} | row] if any(row.values()) else []
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with the best other code of the same size."""
    criteria, parts, cells = {}, [], {(row["bits"], row["method"]): row for row in rows}
    for own, metric in itertools.product((TRAINED, FITTED), METRICS):
        found = []  # number of bits, their score, that of the best other code
        for bits in SIZES:
            ours, *others = (cells.get((bits, name), {}).get(metric) for name in (own, *map(LABELS.get, OTHERS)))
            if ours and any(others):
                found.append((bits, ours, max(filter(None, others), key=mean)))
        if len(found) < 2:
            continue
        if metric == "probe":
            criteria[f"{own}: more bits give a higher accuracy"] = rises([ours for _, ours, _ in found])
        said = f"{own}: by {metric}, no other code of h is ahead at any size"
        criteria[said] = not any(ahead(best, ours) for _, ours, best in found)
        ends = (f"{bits} bits {shown(ours)} (others {shown(best)})" for bits, ours, best in (found[0], found[-1]))
        parts.append(f"{own}, by {metric}: {', '.join(ends)}")
    return f"{'; '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"})
