"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of StochCon Bern at several sizes, and of SimCLR and perhaps the control for the covariance penalty, whose
features faiss compresses to codes of the same sizes. Of product quantization, the features that are decoded from it are
evaluated. The paper's 588 is 224 x 224 x 3 x 8 bits over 2,048. Result: holds in part (5 epochs of a small encoder).
"""

from collections import defaultdict

from claim import LABELS, Panel, Rows, Run, ahead, by, main, mean, rises, shown, values
from other_codes import other_codes
from runs import scores

from stochastic_bottleneck.codes import compression_ratio

OURS, FITTED, PROBE = "StochCon Bern", "SimCLR frozen + Bern", "linear probe"
METRICS = {"probe": PROBE, "knn": "nearest neighbours", "map": "mAP@1000"}
METHODS = {"itq": "ITQ", "pca_sign": "PCA signs", "pq": "product quantization", "random_sign": "random signs"}
COLUMNS = (OURS, FITTED, *METHODS.values(), "SimCLR h")
NAMES = {label: name for name, label in METHODS.items()} | {"column": "method", "compression.csv": "codes.csv"}
NAMES |= {OURS: "bern", FITTED: "fitted", "SimCLR h": "float"} | {title: name for name, title in METRICS.items()}
FIGURE = [Panel(f"{name} (%)", "bits", COLUMNS, where=("metric", name), log="x") for name in (PROBE, "mAP@1000")]


def measure(runs: list[Run]):
    """Scores of each code at each number of bits."""
    found = [(name, run) for name in ("simclr", "penalized") for run in runs if name in run.results["models"]]
    rows, splits = [], {(name, run): run.split(run.model(name)) for name, run in found}
    simclr = [run for name, run in splits if name == "simclr"]
    for bits, group in by(runs, "dim").items():
        found = defaultdict(dict)
        for (name, run), (x, y, x_test, y_test) in sorted(splits.items(), key=lambda item: item[0][1].seed):
            for code, codes, distance in other_codes(x, x_test, bits, run.seed):
                label = METHODS[code] if name == "simclr" else f"{METHODS[code]}, {LABELS[name]}"
                for metric, value in scores(codes, (y, y_test), distance, run.given.probe).items():
                    found[metric, label][run.seed] = value
        for metric, title in METRICS.items():
            row = {"metric": title, "bits": bits, "compression": compression_ratio((3, 32, 32), bits)}
            row |= {OURS: values(group, "bern", "z", metric)}
            row |= {FITTED: values(group, "simclr", "codes", "fitted", "z", metric)}
            row |= {label: of for (measured, label), of in found.items() if measured == metric}
            rows.append(row | {"SimCLR h": values(simclr, "simclr", "h", metric)})
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows], {}


def conclude(rows: Rows):
    """Compare the bits with other codes of the same size."""
    others = [name for name in rows[0] if name.startswith(tuple(METHODS.values()))]
    criteria, parts = {}, []
    for metric in dict.fromkeys(row.get("metric", PROBE) for row in rows):
        of = [row for row in rows if row.get("metric", PROBE) == metric]
        level = [not any(ahead(row[name], row[OURS]) for name in others) for row in of]
        name = "" if metric == PROBE else f", by {metric}"
        criteria[f"more bits give a higher accuracy{name}"] = rises([row[OURS] for row in of])
        criteria[f"at every size, no other code of SimCLR's h is ahead of the bits{name}"] = all(level)
    probed = [row for row in rows if row.get("metric", PROBE) == PROBE]
    for row in (probed[0], probed[-1]):
        other = max((row[name] for name in others if row[name]), key=mean)
        parts.append(f"{row['bits']} bits reach {shown(row[OURS])}, other codes {shown(other)}")
    return f"{'; '.join(parts)}; SimCLR's h itself {shown(rows[0]['SimCLR h'])}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"}, NAMES)
