"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of StochCon Bern at several sizes, and of SimCLR, whose features faiss compresses to codes of the same sizes.
A linear probe evaluates each code; of product quantization, the features that are decoded from it. The paper's 588 is
224 x 224 x 3 x 8 bits over 2,048 bits. Result: holds in part (5 epochs of a small encoder).
"""

from claim import DEVICE, Panel, Rows, Run, ahead, by, main, mean, rises, shown, values
from other_codes import other_codes

from stochastic_bottleneck.codes import compression_ratio
from stochastic_bottleneck.evaluation import linear_probe

METHODS = {"itq": "ITQ", "pca_sign": "PCA signs", "pq": "product quantization", "random_sign": "random signs"}
FIGURE = [Panel("linear probe on the code (%)", "bits", ("StochCon Bern", *METHODS.values(), "SimCLR h"), log="x")]


def measure(runs: list[Run]):
    """Accuracy of linear probes at each number of bits."""
    rows, simclr = [], [run for run in runs if "simclr" in run.results["models"]]
    splits = [run.split(run.model("simclr")) for run in simclr]
    for bits, group in by(runs, "dim").items():
        row = {"bits": bits, "compression": compression_ratio(simclr[0].images()[0].pixels.shape[1:], bits)}
        rows.append(row | {"StochCon Bern": values(group, "bern", "z", "probe")})
        found = {name: [] for name in METHODS}
        for run, (x, y, x_test, y_test) in zip(simclr, splits, strict=True):
            for name, codes, _ in other_codes(x, x_test, bits, run.seed):
                probe = linear_probe(codes[0], y, codes[1], y_test, seed=run.seed, device=DEVICE)
                found[name].append(probe.accuracy)
        rows[-1] |= {label: found[name] or None for name, label in METHODS.items()}
        rows[-1]["SimCLR h"] = values(simclr, "simclr", "h", "probe")
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with other codes of the same size."""
    bern = [row["StochCon Bern"] for row in rows]
    level = [not any(ahead(row[name], row["StochCon Bern"]) for name in METHODS.values()) for row in rows]
    criteria = {
        "more bits give a higher accuracy": rises(bern),
        "at every size, no other code of SimCLR's h is ahead of the bits": all(level),
    }
    parts = []
    for row in (rows[0], rows[-1]):
        other = max((row[name] for name in METHODS.values() if row[name]), key=mean)
        parts.append(f"{row['bits']} bits reach {shown(row['StochCon Bern'])}, other codes {shown(other)}")
    return f"{'; '.join(parts)}; SimCLR's h itself {shown(rows[0]['SimCLR h'])}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"})
