"""Settings: Symmetric training with a location_std of 4 is ahead of one stochastic view with 2.

    python examples/paper/settings.py runs/paper/start-* runs/paper/chosen-* runs/paper/try-*

Our search for the settings of the preset cpu: each alternative is trained on four fifths of the training images and
evaluated on the rest, not on the test images. The first run is the start. Result: holds (5 epochs of a small encoder).
"""

from claim import IGNORED, LABELS, Panel, Rows, Run, ahead, main, shown, values

START, ON = "start", ("probe on h", "probe on z")
FIGURE = [Panel(f"{name}, held out (%)", "setting", (name,), by=("model",)) for name in ON]
SCORES = {"probe on h": "h probe", "kNN on h": "h knn", "probe on z": "z probe", "kNN on z": "z knn"}
SCORES |= {"probe on logits": "logits probe", "kNN on logits": "logits knn", "mAP of z": "z map"}
SCORES |= {"ones": "z bits share_of_ones", "correlation": "z bits correlation"}


def measure(runs: list[Run]):
    """Scores of each alternative."""
    start, groups, rows = runs[0].settings, {}, []
    for run in runs:
        different = [f"{k}={v}" for k, v in run.settings.items() if k not in IGNORED and v != start[k]]
        groups.setdefault(", ".join(sorted(different, reverse=True)) or START, []).append(run)
    for setting, group in groups.items():
        for name in ("simclr", "penalized", "bern", "gauss"):
            found = {column: values(group, name, *keys.split()) for column, keys in SCORES.items()}
            rows += [{"setting": setting, "model": LABELS[name]} | found] if found["probe on h"] else []
    return rows, {}


def conclude(rows: Rows):
    """Compare the setting that was chosen, which has several seeds, with the one that the search began with."""
    found = {(row["setting"], row["model"]): row for row in rows}
    tried = [row for row in rows if row["setting"] != START]
    choice = max(tried, key=lambda row: len(row[ON[0]]))["setting"]
    criteria, parts = {}, []
    for model in ("StochCon Bern", "StochCon Gauss"):
        start, chosen = found[START, model], found[choice, model]
        criteria |= {f"{model}: {choice} is ahead in the {on}": ahead(chosen[on], start[on]) for on in ON}
        parts.append(f"from {shown(start[ON[0]])} to {shown(chosen[ON[0]])} ({model})")
    return f"With {choice}, the probe on h goes {' and '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"correlation": ".3f"})
