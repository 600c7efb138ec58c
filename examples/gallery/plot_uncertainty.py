"""
Is the uncertainty worth anything?
==================================

The posterior gives each image an entropy: high if other codes are nearly as probable.
Does it say which images are hard? Three measurements, each compared with the plain
alternative, the entropy of a classifier's softmax.
"""

# %%
# Each image's entropy
# --------------------
#
# :func:`~stochastic_bottleneck.evaluation.encode` returns it with the features, in nats. With 128 bits it
# is at most 128 log 2.

import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.special import entr
from shipped import load
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2.functional import gaussian_blur

from stochastic_bottleneck import plots
from stochastic_bottleneck.evaluation import auroc, encode, expected_calibration_error, rejection_curve

model, normalize, train, test, classes = load()
h, _, entropy = encode(model, normalize(test.pixels))
print(f"entropy from {entropy.min():.1f} to {entropy.max():.1f} of at most {128 * math.log(2):.1f} nats")

figure = plots.certain_images(test.pixels, entropy, captions=[classes[y] for y in test.labels], count=10)
figure.suptitle("Lowest and highest entropy of the posterior")
plt.show()

# %%
# Does it find the classifier's errors?
# -------------------------------------
#
# A linear classifier on the frozen features h of 5,000 labelled images. Its softmax has an entropy of its
# own.

classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
classifier.fit(encode(model, normalize(train.pixels)).features, train.labels)
softmax = classifier.predict_proba(h)
softmax_entropy = entr(softmax).sum(axis=1)
right = softmax.argmax(axis=1) == test.labels.numpy()
print(f"right on {100 * right.mean():.1f} % of {len(right)} test images")
print(f"expected calibration error: {100 * expected_calibration_error(softmax, test.labels):.1f} points")

# %%
# Rejecting the least certain images should leave those on which the classifier is right. A useless
# uncertainty gives a flat line at the accuracy of all images.

uncertainties = {"posterior, entropy": entropy, "softmax, entropy": softmax_entropy}
curves = {name: rejection_curve(values, right) for name, values in uncertainties.items()}
axes = plots.rejection_curves(curves)
axes.axhline(100 * right.mean(), color="#666666", linestyle=":", linewidth=1)
axes.set_title("Accuracy when the least certain are rejected")
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# AUROC is the probability that an error has a higher uncertainty than a correct prediction; 0.5 is chance.
# The posterior's entropy does find errors: its curve is above the line and its AUROC above one half. The
# softmax finds them better at every coverage but the last few percent, and comes for free.

for name, values in uncertainties.items():
    print(f"{name:20} finds errors with AUROC {auroc(values, ~right):.2f}")

# %%
# Does it find corrupted images?
# ------------------------------
#
# The test images with four corruptions, each compared with the clean ones.

generator = torch.Generator().manual_seed(0)
images = test.pixels.float() / 255
noise = torch.randn(images.shape, generator=generator)
shuffled = torch.randperm(32 * 32, generator=generator)
corrupted = {
    "noise": images + 0.15 * noise,
    "blur": gaussian_blur(images, [9, 9], [2.0, 2.0]),
    "low contrast": 0.5 + 0.3 * (images - 0.5),
    "pixels shuffled": images.flatten(2)[..., shuffled].view_as(images),
}
corrupted = {name: (255 * x.clamp(0, 1)).round().byte() for name, x in corrupted.items()}

taxi = entropy.argsort()[3]  # the most certain automobile, above
figure, grid = plt.subplots(1, 5, figsize=(6.5, 1.7), layout="constrained")
for axes, (name, x) in zip(grid, {"clean": test.pixels, **corrupted}.items(), strict=True):
    axes.imshow(x[taxi].permute(1, 2, 0).numpy())
    axes.set_title(name, fontsize=9)
    axes.axis("off")
plt.show()

# %%
# The probability that the corrupted one of two images has the higher uncertainty. Below one half, corrupted
# images are *more* certain than clean ones.

is_corrupted = np.repeat([False, True], len(images))
found = {name: [] for name in uncertainties}
for x in corrupted.values():
    new_h, _, new_entropy = encode(model, normalize(x))
    new_softmax_entropy = entr(classifier.predict_proba(new_h)).sum(axis=1)
    for (name, clean), new in zip(uncertainties.items(), (new_entropy, new_softmax_entropy), strict=True):
        found[name].append(auroc(np.concatenate([clean, new]), is_corrupted))

figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
for (name, values), style in zip(found.items(), ("o", "s"), strict=True):
    colour = "#0072B2" if style == "o" else "#D55E00"
    axes.plot(values, range(4), style, color=colour, markersize=8, label=name)
    print(f"{name:20}", *(f"{kind} {x:.2f} " for kind, x in zip(corrupted, values, strict=True)))
axes.axvline(0.5, color="#666666", linestyle=":")
axes.set(xlim=(-0.03, 1.03), ylim=(3.5, -0.5), xlabel="AUROC, corrupted against clean")
axes.set_yticks(range(4), corrupted)
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("Finding corrupted images")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %%
# The posterior's entropy rises with blur and with low contrast, and finds both better than the softmax
# does. It falls with noise, and with shuffled pixels, which are more certain than nearly any clean image.
# So it is no general detector of out-of-distribution images, and neither is the softmax here: test it on
# the corruptions that you expect.
