"""What the uncertainty is worth: Latent variables attribute uncertainty to the representation.

    python examples/paper/uncertainty.py runs/paper/base-*

Needs runs of SimCLR and both StochCon models. A logistic regression on h classifies; the entropy of its softmax is the
uncertainty to compare with. Corruptions have strengths of CIFAR-10-C, at severities 1, 3 and 5; the digits are those of
scikit-learn. Result: holds in part (40 epochs of a small encoder).
"""

import numpy as np
import torch
from claim import LABELS, Panel, Rows, Run, ahead, columns_of, curve, main, shown
from kornia.enhance import jpeg_codec_differentiable
from scipy.stats import entropy
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from stochastic_bottleneck.evaluation import auroc, rejection_curve

IMAGES, SHARES = 2000, np.linspace(0.02, 1, 50)  # images of each kind to detect; points of a rejection curve
CORRUPTIONS = ("noise", "blur", "contrast", "pixelate", "jpeg")
SHOWN = ("errors", "corrupted", "digits")
FIGURE = [Panel("accuracy on those (%)", "images kept (%)", curves="rejection")]
FIGURE += [Panel("AUROC", "", curves="auroc", factor=1)]


def shifted(images, seed):
    """Corrupted copies of uint8 images in three strengths, and digits in the same size."""
    x, size, generator = images / 255, images.shape[2:], torch.Generator().manual_seed(seed)
    noise, middle = torch.randn(x.shape, generator=generator), x.mean((2, 3), keepdim=True)
    digits = torch.from_numpy(load_digits().images[:IMAGES]).float() / 16
    found = {
        "noise": [x + std * noise for std in (0.04, 0.08, 0.10)],
        "blur": [F.gaussian_blur(x, [9, 9], [sigma, sigma]) for sigma in (0.4, 0.7, 1.0)],
        "contrast": [middle + share * (x - middle) for share in (0.75, 0.4, 0.15)],
        "pixelate": [interpolate(F.resize(x, [round(s * size[0])]), size) for s in (0.95, 0.85, 0.65)],
        "jpeg": [jpeg_codec_differentiable(x, torch.tensor([q])) for q in (80.0, 58.0, 40.0)],
        "digits": [interpolate(digits[:, None], size, mode="bilinear").expand(-1, 3, -1, -1)],
    }
    return {what: [(255 * x.clamp(0, 1)).round().byte() for x in several] for what, several in found.items()}


def scores(run, name):
    """What each uncertainty of a model is worth: AUROCs, and 50 points of the rejection curve."""
    model, pixels = run.model(name), run.images()[1].pixels
    x, y, x_test, y_test = run.split(model)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(x, y)
    correct = classifier.predict(x_test) == y_test

    def uncertainties(pixels):
        encoded = run.encode(model, pixels)
        posterior = {} if encoded.uncertainty is None else {"posterior entropy": encoded.uncertainty}
        return posterior | {"softmax entropy": entropy(classifier.predict_proba(encoded.features), axis=1)}

    chosen = np.random.default_rng(run.seed).permutation(len(y_test))[:IMAGES]
    images = shifted(pixels[chosen], run.seed)
    others = {what: [uncertainties(copy) for copy in several] for what, several in images.items()}
    found = {}
    for kind, values in uncertainties(pixels).items():
        rejection = rejection_curve(values, correct)
        found[kind, "accuracy"], found[kind, "area"] = correct.mean(), rejection.area
        found[kind, "errors"] = auroc(values, ~correct)
        for what, several in others.items():
            pairs = [np.concatenate([values[chosen], other[kind]]) for other in several]
            found[kind, what] = np.mean([auroc(pair, np.arange(len(pair)) >= len(chosen)) for pair in pairs])
        found[kind, "corrupted"] = np.mean([found[kind, what] for what in CORRUPTIONS])
        found[kind, "curve"] = np.interp(SHARES, rejection.coverage, rejection.accuracy)
    return found


def measure(runs: list[Run]):
    """Each uncertainty of each model."""
    rows, lines = [], {"rejection": {}, "auroc": {}}
    for name in [name for name in ("simclr", "bern", "gauss") if name in runs[0].results["models"]]:
        found = columns_of(runs, lambda run, name=name: scores(run, name))
        for kind in dict.fromkeys(kind for kind, _ in found):
            row, label = {what: cell for (of, what), cell in found.items() if of == kind}, f"{LABELS[name]}, {kind}"
            lines["rejection"][label] = curve(range(2, 102, 2), row.pop("curve"))
            lines["auroc"][label] = [[what, row[what]] for what in SHOWN]
            rows.append({"model": LABELS[name], "uncertainty": kind} | row)
    return rows, lines


def conclude(rows: Rows):
    """Compare the posterior's uncertainty with the softmax of SimCLR's classifier and with chance."""
    criteria, parts = {}, []
    for row in rows:
        name = f"{row['model']}'s {row['uncertainty']}"
        if "posterior" in name or row is rows[0]:
            parts.append(f"{name} {shown(row['errors'], '.2f')} and {shown(row['digits'], '.2f')}")
        if "posterior" in name:
            criteria[f"{name} ranks hard images"] = ahead(row["area"], row["accuracy"])
            criteria[f"{name} finds errors as SimCLR's softmax does"] = not ahead(rows[0]["errors"], row["errors"])
            criteria |= {f"{name} detects {what}": ahead(row[what], 0.5) for what in SHOWN[1:]}
    return f"AUROC for errors and for digits: {', '.join(parts)}.", criteria


if __name__ == "__main__":
    main(__doc__, measure, conclude, FIGURE, dict.fromkeys((*CORRUPTIONS, *SHOWN), ".3f"))
