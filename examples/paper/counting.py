"""Counting metrics: The bits of StochCon Bern make metrics countable.

    python examples/paper/counting.py runs/paper/base-*

Needs runs of StochCon Bern. Mutual information of bit and class is the plug-in estimate, a mean over the bits; shuffled
classes show its bias. Nearest codes are those of training images. Result: holds (40 epochs of a small encoder).
"""

import faiss
import numpy as np
from claim import Panel, Rows, Run, ahead, columns_of, curve, main, shown

from stochastic_bottleneck.codes import bit_class_information, distinct_codes, pack_bits

FIGURE = [Panel("information of bit and class (bits)", "bits, sorted", curves="information", factor=1)]
COUNTS = ("distinct codes, training", "distinct codes, test", "share a code, training")
FORMATS = dict.fromkeys(COUNTS, ",.0f") | dict.fromkeys(("information", "with shuffled classes"), ".4f")


def count(run):
    """Every count of one run."""
    x, y, x_test, y_test = run.split(run.model("bern"), "z")
    size = np.unique(pack_bits(x), axis=0, return_counts=True)[1]
    nearest = faiss.knn_hamming(pack_bits(x_test), pack_bits(x), 10)[1]
    same = y[nearest] == y_test[:, None]
    information = bit_class_information(x_test, y_test)
    shuffled = bit_class_information(x_test, np.random.default_rng(run.seed).permutation(y_test))
    return {
        "distinct codes, training": distinct_codes(x),
        "distinct codes, test": distinct_codes(x_test),
        "share a code, training": size[size > 1].sum(),
        "information": information.mean(),
        "with shuffled classes": shuffled.mean(),
        "nearest code of the class": same[:, 0].mean(),
        "10 nearest of the class": same.mean(),
        "chance": (np.bincount(y) / len(y))[y_test].mean(),
        "curve": np.sort(information)[::-1],
    }


def measure(runs: list[Run]):
    """Counts on the codes of training and test images."""
    row = columns_of(runs, count)
    line = curve(range(1, runs[0].settings["dim"] + 1), row.pop("curve"))
    return [{"bits": runs[0].settings["dim"], **row}], {"information": {"information": line}}


def conclude(rows: Rows):
    """Compare the counts with chance."""
    names = ("information", "with shuffled classes", "10 nearest of the class", "chance")
    information, shuffled, near, chance = (rows[0][name] for name in names)
    criteria = {
        "bits tell more of the class than of shuffled classes": ahead(information, shuffled),
        "the 10 nearest codes are of the image's class more often than by chance": ahead(near, chance),
    }
    nearest = f"{shown(near)} of the 10 nearest codes are of the image's class (chance: {shown(chance)})"
    return f"{nearest}; a bit has {shown(information, '.3f')} bits of information on the class.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, FORMATS)
