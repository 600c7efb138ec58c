"""Compression against accuracy: The bottleneck compresses images 588 times and trades top-1 for compression.

    python examples/paper/compression.py runs/paper/base-* runs/paper/dim*

Needs runs of StochCon Bern at several sizes, and of SimCLR, whose features faiss compresses to codes of the same sizes.
A linear probe evaluates each code; of product quantization, the features that are decoded from it. The paper's 588 is
224 x 224 x 3 x 8 bits over 2,048 bits. Result: holds in part (5 epochs of a small encoder).
"""

import faiss
import numpy as np
from claim import DEVICE, Panel, Rows, Run, ahead, by, main, mean, rises, shown, values

from stochastic_bottleneck.codes import compression_ratio
from stochastic_bottleneck.evaluation import linear_probe


def signs(make, train, test, bits, seed):
    """Signs of transformed features, as 0 and 1; None for more bits than features."""
    if bits > train.shape[1]:
        return None
    transform = make(train.shape[1], bits)
    transform.train(train)
    return [(transform.apply(x) > 0).astype(np.float32) for x in (train, test)]


def random_signs(train, test, bits, seed):
    """Signs of random projections."""
    directions = np.random.default_rng(seed).standard_normal((train.shape[1], bits)).astype(np.float32)
    return [((x - train.mean(axis=0)) @ directions > 0).astype(np.float32) for x in (train, test)]


def product_quantization(train, test, bits, seed):
    """Features decoded from the codes of a product quantizer, 8 bits for each group of features."""
    if bits % 8 or train.shape[1] % (bits // 8) or len(train) < 256:
        return None
    quantizer = faiss.ProductQuantizer(train.shape[1], bits // 8, 8)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    quantizer.train(train)
    return [quantizer.decode(quantizer.compute_codes(x)) for x in (train, test)]


METHODS = {
    "ITQ": lambda *inputs: signs(lambda width, bits: faiss.ITQTransform(width, bits, True), *inputs),
    "PCA signs": lambda *inputs: signs(faiss.PCAMatrix, *inputs),
    "product quantization": product_quantization,
    "random signs": random_signs,
}
FIGURE = [Panel("linear probe on the code (%)", "bits", ("StochCon Bern", *METHODS, "SimCLR h"), log="x")]


def measure(runs: list[Run]):
    """Accuracy of linear probes at each number of bits."""
    rows, simclr = [], [run for run in runs if "simclr" in run.results["models"]]
    splits = [run.split(run.model("simclr")) for run in simclr]
    for bits, group in by(runs, "dim").items():
        row = {"bits": bits, "compression": compression_ratio(simclr[0].images()[0].pixels.shape[1:], bits)}
        rows.append(row | {"StochCon Bern": values(group, "bern", "z", "probe")})
        for name, method in METHODS.items():
            rows[-1][name] = []
            for run, (x, y, x_test, y_test) in zip(simclr, splits, strict=True):
                if codes := method(x, x_test, bits, run.seed):
                    probe = linear_probe(codes[0], y, codes[1], y_test, seed=run.seed, device=DEVICE)
                    rows[-1][name].append(probe.accuracy)
            rows[-1][name] = rows[-1][name] or None
        rows[-1]["SimCLR h"] = values(simclr, "simclr", "h", "probe")
    return rows, {}


def conclude(rows: Rows):
    """Compare the bits with other codes of the same size."""
    bern = [row["StochCon Bern"] for row in rows]
    level = [not any(ahead(row[name], row["StochCon Bern"]) for name in METHODS) for row in rows]
    criteria = {
        "more bits give a higher accuracy": rises(bern),
        "at every size, no other code of SimCLR's h is ahead of the bits": all(level),
    }
    parts = []
    for row in (rows[0], rows[-1]):
        other = max((row[name] for name in METHODS if row[name]), key=mean)
        parts.append(f"{row['bits']} bits reach {shown(row['StochCon Bern'])}, other codes {shown(other)}")
    return f"{'; '.join(parts)}; SimCLR's h itself {shown(rows[0]['SimCLR h'])}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"compression": "g"})
