"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of SimCLR, StochCon Bern, and perhaps of the control for the covariance penalty. faiss compresses h of SimCLR
and of the control; latents are fitted to h of SimCLR and of Bern. Features decoded from PQ's codes are evaluated. The
paper's 588 is 224 x 224 x 3 x 8 bits over 2,048. Result: holds in part (5 epochs of a small encoder).
"""

from cifar10_full import fitted_logits
from claim import LABELS, Panel, Rows, Run, ahead, columns_of, main, mean, rises, shown, values
from other_codes import other_codes
from runs import scores

from stochastic_bottleneck.codes import compression_ratio

SIZES = (8, 16, 32, 64, 128, 256, 512)
METRICS = {"probe": "linear probe", "knn": "nearest neighbours", "map": "mAP@1000"}
METHODS = {"itq": "ITQ", "pca_sign": "PCA signs", "pq": "PQ", "random_sign": "random signs"}
OURS, TRAINED, FLOATS = (f"{LABELS['bern']}, fitted bits", f"{LABELS['bern']}, trained bits", "SimCLR, floats")
LINES = (OURS, TRAINED, "SimCLR, fitted bits", *(f"SimCLR, {method}" for method in METHODS.values()), FLOATS)
NAMES = {title: name for name, title in METRICS.items()} | {"column": "method", "compression.csv": "codes.csv"}
FIGURE = [Panel(f"{name} (%)", "bits", LINES, where=("metric", name), log="x") for name in ("linear probe", "mAP@1000")]


def codes_of(run, name):
    """Bits, code, features and distance of each code of an encoder."""
    x, _, x_test, _ = run.split(model := run.model(name))
    if name != "penalized":
        latents = fitted_logits(model, [{"h": x}, {"h": x_test}], run.given, run.images()[0], SIZES)
        for bits, logits in zip(SIZES, latents, strict=True):
            yield bits, "fitted bits", [1.0 * (z > 0) for z in logits], "hamming"
    for bits in SIZES if name != "bern" else ():
        for code, features, distance in other_codes(x, x_test, bits, run.seed):
            yield bits, METHODS[code], features, distance


def compress(run):
    """Scores of codes of one run's encoders, by metric, bits and code."""
    labels, found = [images.labels.numpy() for images in run.images()], {}
    for name in [name for name in ("simclr", "penalized", "bern") if name in run.results["models"]]:
        for bits, code, features, distance in codes_of(run, name):
            for metric, value in scores(features, labels, distance, run.given.probe).items():
                found[metric, bits, f"{LABELS[name]}, {code}"] = value
    return found


def measure(runs: list[Run]):
    """Scores of each code at each number of bits."""
    whole = [run for run in runs if "simclr" in run.results["models"]]
    found, rows = columns_of(whole, compress), []
    for metric, title in METRICS.items():
        for bits in SIZES:
            trained = values([run for run in runs if run.settings["dim"] == bits], "bern", "z", metric)
            row = {"metric": title, "bits": bits, TRAINED: trained, "compression": compression_ratio((3, 32, 32), bits)}
            row |= {code: cell for (*of, code), cell in found.items() if of == [metric, bits]}
            rows.append(row | {FLOATS: values(whole, "simclr", "h", metric)})
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with other codes of the same size."""
    others = [code for code in rows[0] if code.endswith(tuple(METHODS.values()))]
    criteria, parts = {}, []
    for metric in METRICS.values():
        of = [row for row in rows if row["metric"] == metric]
        behind = any(ahead(row[code], row[OURS]) for row in of for code in others)
        criteria[f"more bits give more, by {metric}"] = rises([row[OURS] for row in of])
        criteria[f"at every size, no other code is ahead of the fitted bits, by {metric}"] = not behind
        [row] = [row for row in of if row["bits"] == 128]
        other = max((row[code] for code in others if row[code]), key=mean)
        parts.append(f"{shown(row[OURS])} and {shown(other)} by {metric}")
    return f"128 bits fitted behind StochCon Bern, and the best other code: {', '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"}, NAMES)
