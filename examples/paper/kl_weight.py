"""A weight on the KL: With a weight on the KL, the scale of logits and means should be learned.

    python examples/paper/kl_weight.py runs/paper/kl*

Our question. Needs runs of both StochCon models with several --kl and three scales: --location-std 2, the same
with --learnable-scale, and --location-std None. Describes the latent of the test images: kurtosis of logits or means, 3
for a normal distribution; a decided bit has a probability of at least 0.9. Result: holds (12 epochs on the sample).
"""

import numpy as np
import torch
from claim import LABELS, Panel, Rows, Run, ahead, by, columns_of, main, shown, values
from scipy.stats import kurtosis
from torchvision.transforms.v2 import Lambda

COLUMNS = {"KL": ".1f", "kurtosis": ".1f", "standard deviation": ".1f", "decided bits": ".1%"}
FIGURE = [Panel(name, "KL weight", (name,), by=("model", "scale"), log="y", factor=1) for name in ("KL", "kurtosis")]


def describe(run, name):
    """The latent of the test images."""
    model = run.model(name)

    def latent(x):
        posterior = model.bottleneck.posterior(model.encode(x))
        return torch.cat([posterior[0], posterior.kl()[:, None]], dim=1)  # logits or means, and the KL

    found = run.encode(Lambda(latent), run.images()[1].pixels).features.astype(np.float64)
    location, decided = found[:, :-1], np.abs(found[:, :-1]) > np.log(9)
    outliers, scale = kurtosis(location, fisher=False).mean(), np.sqrt(location.var(axis=0).mean())
    return dict(zip(COLUMNS, (found[:, -1].mean(), outliers, scale, decided.mean()), strict=True))


def measure(runs: list[Run]):
    """The latent by scale and weight."""
    rows = []
    for run in runs:
        scale = "learned" if run.settings["learnable_scale"] else "fixed"
        run.settings["scale"] = "none" if run.settings["location_std"] is None else scale
    for name in ("bern", "gauss"):
        for scale, of_scale in by(runs, "scale").items():
            for weight, group in by(of_scale, "kl").items():
                row = columns_of(group, lambda run, name=name: describe(run, name))
                row |= {f"kNN on {part}": values(group, name, part, "knn") for part in "zh"}
                rows.append({"model": LABELS[name], "scale": scale, "KL weight": weight} | row)
    return rows, {}


def conclude(rows: Rows):
    """Compare a fixed with a learned scale at the largest weight."""
    most = max(row["KL weight"] for row in rows)
    bits = {row["scale"]: row for row in rows if row["model"] == LABELS["bern"] and row["KL weight"] == most}
    fixed, learned = bits["fixed"], bits["learned"]
    criteria = {
        f"at weight {most}, the KL of bits is lower with a learned scale": ahead(fixed["KL"], learned["KL"]),
        "its logits have fewer outliers (kurtosis)": ahead(fixed["kurtosis"], learned["kurtosis"]),
        "its nearest neighbors in z are not worse": not ahead(fixed["kNN on z"], learned["kNN on z"]),
    }
    said = [f"{shown(row['KL'], '.1f')} nats and {shown(row['kurtosis'], '.1f')}" for row in (fixed, learned)]
    finding = f"KL of the bits and kurtosis of their logits at weight {most}"
    return f"{finding}: {said[0]} with a fixed scale, {said[1]} with a learned one.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, COLUMNS | {"KL weight": "g"})
