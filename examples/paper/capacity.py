"""Use of the bits' capacity: The bottleneck uses all its capacity, with 50% zeros and 50% ones.

    python examples/paper/capacity.py runs/paper/base-* runs/paper/dim512-*

Needs runs of StochCon Bern; looks at the bits of the test images. Balanced bits can still repeat each other, so
`codes.effective_bits` are measured too. Result: holds (40 epochs of a small encoder).
"""

import numpy as np
from claim import Panel, Rows, Run, ahead, by, columns_of, curve, main, shown

from stochastic_bottleneck.codes import share_of_ones
from stochastic_bottleneck.evaluation import bit_statistics

FIGURE = [Panel("share of ones (%)", "bits, sorted (% of all)", curves="ones")]
ENTROPY, CORRELATION, EFFECTIVE = "entropy of a bit", "mean |correlation|", "effective bits"
FORMATS = {ENTROPY: ".3f", CORRELATION: ".3f", EFFECTIVE: ".1f"}


def describe(run):
    """Balance and redundancy of the bits."""
    bits = run.split(run.model("bern"), "z")[2]
    found = bit_statistics(bits)
    row = {"ones": found.share_of_ones, ENTROPY: found.entropy, CORRELATION: found.correlation}
    return row | {EFFECTIVE: found.effective, "shares": np.sort(share_of_ones(bits))}


def measure(runs: list[Run]):
    """The bits of each size."""
    rows, lines = [], {}
    for dim, group in by(runs, "dim").items():
        row = columns_of(group, describe)
        lines[f"{dim} bits"] = curve(100 * (np.arange(dim) + 0.5) / dim, row.pop("shares"))
        rows.append({"bits": dim, "ones": row["ones"], "paper, ones": 0.5} | row)
    return rows, {"ones": lines}


def conclude(rows: Rows):
    """Ask for balanced bits that do not repeat each other."""
    criteria, parts = {}, []
    for row in rows:
        dim, ones = row["bits"], row["ones"]
        criteria[f"of {dim} bits, 48% to 52% are ones"] = not ahead(ones, 0.52) and not ahead(0.48, ones)
        criteria[f"a bit of {dim} has an entropy of at least 0.95 bits"] = not ahead(0.95, row[ENTROPY])
        criteria[f"at least half of {dim} bits are effective"] = not ahead(dim / 2, row[EFFECTIVE])
        parts.append(f"{dim} bits: {shown(ones)} ones, {shown(row[EFFECTIVE], '.1f')} effective bits")
    return f"{'; '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, FORMATS)
