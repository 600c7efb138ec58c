"""
A map of the codes
==================

The codes of a thousand test images, 128 bits each, drawn in two dimensions and compared
class by class.
"""

# %%
# Two directions of largest variance
# ----------------------------------
#
# :func:`~stochastic_bottleneck.plots.code_map` marks each class by a colour and a shape. The axes show how
# much of the variance the plane explains.

import numpy as np
import torch
from matplotlib import pyplot as plt

from shipped import load
from stochastic_bottleneck.codes import hamming_distance, unpack_bits
from stochastic_bottleneck.evaluation import encode
from stochastic_bottleneck.plots import code_map

model, normalize, _, test, classes = load()
codes = torch.from_numpy(encode(model, normalize(test.pixels), "bits").features)
bits = unpack_bits(codes, model.bottleneck.dim)

code_map(bits, test.labels, names=classes).set_title("Codes of ten classes, by PCA")
plt.show()

# %%
# Neighbourhoods
# --------------
#
# t-SNE keeps near codes near; distances between groups and their sizes mean nothing.

code_map(bits, test.labels, names=classes, method="tsne").set_title("Codes of ten classes, by t-SNE")
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# In both maps animals are on one side, and vehicles, ships and airplanes on the other. Within each side
# classes overlap: the model was trained without labels.

# %%
# Class against class
# -------------------
#
# The mean number of bits that differ between images of two classes.

of_class = torch.nn.functional.one_hot(test.labels).double()
count = of_class.sum(dim=0)
pairs = count[:, None] * count - count.diag()  # without an image and itself
distance = hamming_distance(codes[:, None], codes[None]).double()
mean = (of_class.T @ distance @ of_class / pairs).numpy()

figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
image = axes.imshow(mean, cmap="cividis")
for (a, b), bits_apart in np.ndenumerate(mean):
    colour = "white" if image.norm(bits_apart) < 0.45 else "black"
    axes.text(b, a, f"{bits_apart:.0f}", color=colour, ha="center", va="center", size=8)
axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
axes.set_yticks(range(len(classes)), classes)
axes.set_title("Bits that differ, on average")
figure.colorbar(image, label="of 128 bits", shrink=0.8)
plt.show()

# %%
# In every row the smallest number is on the diagonal: two images of a class differ in fewer bits, on
# average, than two of different classes. By how much depends on the class. Frogs are most alike, birds
# least; ships and airplanes, automobiles and trucks, and cats and frogs are the nearest pairs.
