"""
Is the uncertainty worth anything?
==================================

The posterior gives each image an entropy: high where the model would as well have drawn
another code. Whether that says which images are hard is a question to measure. Three
answers, each beside the plain alternative, the entropy of a classifier's softmax.
"""

# %%
# Each image's entropy
# --------------------
#
# :func:`~stochastic_bottleneck.evaluation.encode` returns it beside the features, in
# nats. With 128 bits it is at most 128 log 2.

import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.special import entr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2.functional import gaussian_blur

from shipped import load, pictures
from stochastic_bottleneck import plots
from stochastic_bottleneck.evaluation import (
    auroc,
    encode,
    expected_calibration_error,
    rejection_curve,
)

model, normalize, train, test, classes = load()
h, _, entropy = encode(model, normalize(test.images))
most = model.bottleneck.dim * math.log(2)
print(
    f"entropy from {entropy.min():.1f} to {entropy.max():.1f} nats; {most:.1f} would be pure chance"
)

figure = plots.certain_images(
    test.images, entropy, captions=[classes[label] for label in test.labels], count=10
)
figure.suptitle("Lowest and highest entropy of the posterior")
plt.show()

# %%
# Does it find the classifier's errors?
# -------------------------------------
#
# A linear classifier on the frozen features h of 5,000 labelled images. Its softmax has
# an entropy of its own.

classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
classifier.fit(encode(model, normalize(train.images)).features, train.labels)
softmax = classifier.predict_proba(h)
softmax_entropy = entr(softmax).sum(axis=1)
right = softmax.argmax(axis=1) == test.labels.numpy()
print(f"right on {100 * right.mean():.1f} % of {len(right)} test images")

# %%
# Rejecting the least certain images should leave those on which the classifier is
# right. A useless uncertainty gives a flat line at the accuracy of all images.

uncertainties = {"posterior, entropy": entropy, "softmax, entropy": softmax_entropy}
curves = {
    name: rejection_curve(values, right) for name, values in uncertainties.items()
}
axes = plots.rejection_curves(curves)
axes.axhline(100 * right.mean(), color="#666666", linestyle=":", linewidth=1)
axes.set_title("Accuracy when the least certain are rejected")
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# AUROC asks the same in one number: how often an error has the higher uncertainty of
# the two, an error and a hit drawn at random. 0.5 is a coin toss.

for name, values in uncertainties.items():
    print(f"{name:20} finds errors with AUROC {auroc(values, ~right):.2f}")

# %%
# The posterior's entropy does find errors: its curve lies above the line and its AUROC
# above one half. The softmax finds them better at every share of images kept but the
# last few, and comes for free with the classifier.

# %%
# Does it find corrupted images?
# ------------------------------
#
# The test images damaged in four ways, each beside the clean ones.

generator = torch.Generator().manual_seed(0)
images = test.images.float() / 255
noise = torch.randn(images.shape, generator=generator)
corrupted = {
    "noise": images + 0.15 * noise,
    "blur": gaussian_blur(images, [9, 9], [2.0, 2.0]),
    "low contrast": 0.5 + 0.3 * (images - 0.5),
    "pixels shuffled": images.flatten(2)[
        ..., torch.randperm(32 * 32, generator=generator)
    ].view_as(images),
}
corrupted = {
    name: (255 * x.clamp(0, 1)).round().byte() for name, x in corrupted.items()
}

taxi = entropy.argsort()[3]  # the most certain automobile, above
figure, grid = plt.subplots(1, 5, figsize=(6.5, 1.7), layout="constrained")
for axes, (name, x) in zip(
    grid, {"clean": test.images, **corrupted}.items(), strict=True
):
    axes.imshow(pictures(x)[taxi])
    axes.set_title(name, fontsize=9)
    axes.axis("off")
plt.show()

# %%
# The probability that the damaged one of two images has the higher uncertainty. Below
# one half, the measure takes damaged images for *more* certain than clean ones.

is_damaged = np.repeat([False, True], len(images))
found = {name: [] for name in uncertainties}
for x in corrupted.values():
    damaged_h, _, damaged_entropy = encode(model, normalize(x))
    damaged_softmax = entr(classifier.predict_proba(damaged_h)).sum(axis=1)
    found["posterior, entropy"].append(
        auroc(np.concatenate([entropy, damaged_entropy]), is_damaged)
    )
    found["softmax, entropy"].append(
        auroc(np.concatenate([softmax_entropy, damaged_softmax]), is_damaged)
    )

figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
rows = np.arange(len(corrupted))
for (name, values), colour, marker in zip(
    found.items(), ("#0072B2", "#D55E00"), "os", strict=True
):
    axes.plot(values, rows, marker, color=colour, markersize=8, label=name)
    print(
        f"{name:20}",
        *(
            f"{kind} {value:.2f} "
            for kind, value in zip(corrupted, values, strict=True)
        ),
    )
axes.axvline(0.5, color="#666666", linestyle=":")
axes.set(xlim=(-0.03, 1.03), ylim=(3.5, -0.5), xlabel="AUROC, corrupted against clean")
axes.set_yticks(rows, corrupted)
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("Finding corrupted images")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
# The posterior's entropy rises with blur and with low contrast, and finds both better
# than the softmax does. It falls with noise, and with shuffled pixels, which it takes
# for more certain than nearly any clean image. So it is no detector of strange images
# in general, and neither is the softmax here: ask it about the damage that you expect.

# %%
# Are the classifier's probabilities right?
# -----------------------------------------
#
# The expected calibration error is the gap between the confidence in the predicted
# class and how often it is right. The posterior's entropy is no probability of an
# error, so it has none.

error = expected_calibration_error(softmax, test.labels)
print(f"expected calibration error of the softmax: {100 * error:.1f} points")
