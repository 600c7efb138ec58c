"""Settings: The preset cpu is ahead of Algorithm 1 to the letter.

    python examples/paper/settings.py runs/paper/chosen-* runs/paper/start-* runs/paper/try-*

Our search for the settings of the preset cpu: each alternative is trained on four fifths of the training images and
evaluated on the rest, not on the test images. The first run has the preset's settings, and the others are named by
what differs. *Fitted* bits are trained behind the frozen encoder. Result: holds (5 epochs of a small encoder).
"""

from claim import IGNORED, LABELS, Panel, Rows, Run, ahead, main, shown, values

NAMED = {"": "preset cpu", "symmetric=False, location_std=2.0, deterministic=0.0, covariance=0.0": "Algorithm 1"}
ON = ("probe on h", "probe on z")
FIGURE = [Panel(f"{name}, held out (%)", "setting", (name,), by=("model",)) for name in ON]
SCORES = {f"{key} on {part}": f"{part} {key.lower()}" for part in ("h", "z", "logits") for key in ("probe", "kNN")}
SCORES |= {f"{key} on fitted": f"codes fitted z {key.lower()}" for key in ("probe", "kNN", "mAP")}
SCORES |= {"mAP on z": "z map", "correlation": "z bits correlation"}


def measure(runs: list[Run]):
    """Scores of each alternative."""
    chosen, groups, rows = runs[0].settings, {}, []
    for run in runs:
        different = [f"{k}={v}" for k, v in run.settings.items() if k not in IGNORED and v != chosen[k]]
        setting = ", ".join(sorted(different, reverse=True))
        groups.setdefault(NAMED.get(setting, setting), []).append(run)
    for setting, group in groups.items():
        for name in ("simclr", "penalized", "bern", "gauss"):
            found = {column: values(group, name, *keys.split()) for column, keys in SCORES.items()}
            rows += [{"setting": setting, "model": LABELS[name]} | found] if found["probe on h"] else []
    return rows, {}


def conclude(rows: Rows):
    """Compare the preset with Algorithm 1 to the letter."""
    found, criteria, parts = {(row["setting"], row["model"]): row for row in rows}, {}, []
    for model in ("StochCon Bern", "StochCon Gauss"):
        chosen, letter = (found[name, model] for name in NAMED.values())
        criteria |= {f"{model}: ahead in the {on}": ahead(chosen[on], letter[on]) for on in ON}
        parts.append(f"{model} has {shown(chosen[ON[0]])} and {shown(letter[ON[0]])}")
    parts.append(f"SimCLR has {shown(found['Algorithm 1', 'SimCLR'][ON[0]])}")
    return f"By probe on h, with the preset and with Algorithm 1: {', '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {"correlation": ".3f"})
