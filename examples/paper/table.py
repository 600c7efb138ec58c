"""Fine-tuned and frozen accuracy: Fine-tuned StochCon beats SimCLR and supervised training.

    python examples/paper/table.py runs/paper/base-*

Reads the results.json of runs of all four models, and of the control for the covariance penalty if there is one.
Result: holds in part (40 epochs of a small encoder).
"""

from claim import LABELS, Panel, Rows, Run, ahead, main, shown, values

FROZEN = {"simclr": 0.9135, "bern": 0.9196, "gauss": 0.924}  # of the paper, as the next
FINE_TUNED = {"simclr": 0.9435, "bern": 0.9642, "gauss": 0.9608, "supervised": 0.95}
FIGURE = [Panel(f"{name} (%)", "model", (name,)) for name in ("probe on h", "fine-tuned")]
FORMATS = dict.fromkeys(("paper, frozen", "paper, fine-tuned"), ".2%")
NAMES = {label: name for name, label in LABELS.items()}
NAMES |= {"column": "protocol", "probe on h": "frozen", "probe on z": "frozen z", "fine-tuned": "finetuned"}


def measure(runs: list[Run]):
    """Accuracy of each model."""
    rows = [
        {"model": label}
        | {f"probe on {part}": values(runs, name, part, "probe") for part in "hz"}
        | {"fine-tuned": values(runs, name, "finetuned", "accuracy")}
        | {"paper, frozen": FROZEN.get(name), "paper, fine-tuned": FINE_TUNED.get(name)}
        for name, label in LABELS.items()
    ]
    return [row for row in rows if row["fine-tuned"]], {}


def conclude(rows: Rows):
    """Compare StochCon with SimCLR and supervised training."""
    found, criteria = {name: row for name, label in LABELS.items() for row in rows if row["model"] == label}, {}
    for own in [found[name] for name in ("bern", "gauss") if name in found]:
        for other in [found[name] for name in ("simclr", "supervised") if name in found]:
            said = f"fine-tuned, {own['model']} is ahead of {other['model']}"
            criteria[said] = ahead(own["fine-tuned"], other["fine-tuned"])
        criteria[f"on h, {own['model']} is ahead of SimCLR"] = ahead(own["probe on h"], found["simclr"]["probe on h"])
        if control := found.get("penalized"):
            behind = ahead(control["probe on h"], own["probe on h"])
            criteria[f"on h, {own['model']} is not behind {control['model']}"] = not behind
    listed = ", ".join(f"{row['model']} {shown(row['fine-tuned'])}" for row in rows)
    return f"Fine-tuned accuracy: {listed}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, FORMATS, NAMES)
