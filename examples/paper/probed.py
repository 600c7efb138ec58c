"""Which representation is probed: The bits know no less than the probabilities that they come from.

    python examples/paper/probed.py runs/paper/chosen-*

Our question: the paper does not say which representation its frozen percentages are of. Needs runs of both StochCon
models, evaluated on held-out training images. Result: does not hold (5 epochs of a small encoder).
"""

import torch
from claim import DEVICE, LABELS, Panel, Rows, Run, ahead, columns_of, main, shown
from torchvision.transforms.v2 import Lambda

from stochastic_bottleneck.evaluation import linear_probe

FIGURE = [Panel("linear probe, held out (%)", "probe on", ("StochCon Bern", "StochCon Gauss"))]
STEPS = {  # from the features to the bits, and on to the input of the loss
    "h": lambda model, h: h,
    "logits": lambda model, h: model.bottleneck.posterior(h).logits,
    "probabilities": lambda model, h: model.bottleneck.posterior(h).logits.sigmoid(),
    "one sample": lambda model, h: model.bottleneck.posterior(h).rsample(),
    "z": lambda model, h: model.bottleneck.posterior(h).mode(),
    "upsampled z": lambda model, h: model.bottleneck.upsampler(model.bottleneck.posterior(h).mode()),
    "v": lambda model, h: model.head(h),
}


def probe(run, name):
    """Accuracy on each step; a Gaussian has no logits."""
    model, found = run.model(name), {}
    torch.manual_seed(run.seed)
    for step, function in STEPS.items():
        if name == "bern" or step not in ("logits", "probabilities"):
            split = run.split(Lambda(lambda x, function=function: function(model, model.encode(x))))
            found[step] = linear_probe(*split, seed=run.seed, device=DEVICE).accuracy
    return found


def measure(runs: list[Run]):
    """Probes on each step of each model."""
    found = {LABELS[name]: columns_of([probe(run, name) for run in runs]) for name in ("bern", "gauss")}
    return [{"probe on": step} | {label: found[label].get(step) for label in found} for step in STEPS], {}


def conclude(rows: Rows):
    """Compare the bits with what they come from."""
    bern = {row["probe on"]: row["StochCon Bern"] for row in rows}
    before = ("h", "logits", "probabilities")
    criteria = {f"{step} is not ahead of the bits": not ahead(bern[step], bern["z"]) for step in before}
    listed = ", ".join(f"{step} {shown(bern[step])}" for step in (*before, "z"))
    return f"Probes of StochCon Bern on {listed}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, {})
