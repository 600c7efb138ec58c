"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of StochCon Bern at several sizes, and of SimCLR, whose features faiss compresses to codes of the same sizes.
Of product quantization, the features that are decoded from it are evaluated. The paper's 588 is 224 x 224 x 3 x 8 bits
over 2,048. Result: holds in part (5 epochs of a small encoder).
"""

from claim import Panel, Rows, Run, ahead, by, columns_of, main, mean, rises, shown, values
from other_codes import other_codes

from stochastic_bottleneck.codes import compression_ratio
from stochastic_bottleneck.evaluation import linear_probe

METHODS = {"itq": "ITQ", "pca_sign": "PCA signs", "pq": "product quantization", "random_sign": "random signs"}
LINES = ("StochCon Bern", *METHODS.values(), "SimCLR h")
FIGURE = [Panel("linear probe (%)", "bits", LINES, log="x")]
NAMES = {"column": "method"}


def probe(run, sizes):
    """Accuracy on codes of SimCLR's h, by number of bits and code."""
    (x, y, x_test, y_test), found = run.split(run.model("simclr")), {}
    for bits in sizes:
        for code, (codes, codes_test), _ in other_codes(x, x_test, bits, run.seed):
            scored = linear_probe(codes, y, codes_test, y_test, regularisations=run.given.probe)
            found[bits, METHODS[code]] = scored.accuracy
    return found


def measure(runs: list[Run]):
    """Accuracy on each code at each number of bits."""
    sizes, simclr = by(runs, "dim"), [run for run in runs if "simclr" in run.results["models"]]
    found, rows = columns_of(simclr, lambda run: probe(run, sizes)), []
    for bits, group in sizes.items():
        row = {"bits": bits, "StochCon Bern": values(group, "bern", "z", "probe")}
        row |= {method: found.get((bits, method)) for method in METHODS.values()}
        row["SimCLR h"] = values(simclr, "simclr", "h", "probe")
        rows.append(row | {"compression": compression_ratio((3, 32, 32), bits)})
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with other codes of the same size."""
    ours, parts = [row["StochCon Bern"] for row in rows], []
    behind = any(ahead(row[method], row["StochCon Bern"]) for row in rows for method in METHODS.values())
    criteria = {
        "more bits give a higher accuracy": rises(ours),
        "at every size, no other code of SimCLR's h is ahead of the bits": not behind,
    }
    for row in (rows[0], rows[-1]):
        other = max((row[method] for method in METHODS.values() if row[method]), key=mean)
        parts.append(f"{row['bits']} bits reach {shown(row['StochCon Bern'])}, other codes {shown(other)}")
    return f"{'; '.join(parts)}; SimCLR's h itself {shown(rows[0]['SimCLR h'])}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"}, NAMES)
