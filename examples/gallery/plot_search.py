"""
Search by bits
==============

The 5,000 images of the sample as an index of 16 bytes each, searched by the number of
bits that differ, beside the same search by the cosine of the encoder's features.
``examples/image_search.py`` does this for a folder of any size (:doc:`/image_search`).
"""

# %%
# Two indexes of the same images
# ------------------------------
#
# faiss takes packed bits as :func:`~stochastic_bottleneck.evaluation.encode` gives
# them. Its inner product is the cosine once the features have length one.

import faiss
import numpy as np
from matplotlib import pyplot as plt

from shipped import load, pictures
from stochastic_bottleneck.evaluation import encode

model, normalize, train, test, classes = load()


def encoded(images):
    """Packed bits, and features at length one."""
    x = normalize(images)
    h = encode(model, x, "h").features
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    return encode(model, x, "bits").features, h


codes, h = encoded(train.images)
by_bits = faiss.IndexBinaryFlat(8 * codes.shape[1])
by_bits.add(codes)
by_features = faiss.IndexFlatIP(h.shape[1])
by_features.add(h)
print(f"bytes an image: {codes[0].nbytes} as bits, {h[0].nbytes} as features")

# %%
# The ten nearest of each test image
# ----------------------------------

k = 10
query_codes, query_h = encoded(test.images)
distances, near_bits = by_bits.search(query_codes, k)
_, near_features = by_features.search(query_h, k)

same_class = {
    name: (train.labels[found] == test.labels[:, None]).float().mean().item()
    for name, found in (("bits", near_bits), ("features", near_features))
}
shared = np.mean(
    [len(set(a) & set(b)) for a, b in zip(near_bits, near_features, strict=True)]
)
for name, share in same_class.items():
    print(f"by {name}: {100 * share:.1f} % of the {k} nearest have the query's class")
print(f"{shared:.1f} of the {k} nearest are the same by both")

# %%
# In a sixty-fourth of the bytes, bits find nearly as many images of the query's class.
# They are not the same images: of ten, both searches agree on a bit more than half.

# %%
# Neighbours of four images
# -------------------------
#
# One image of each of four classes, the first of the test set. Above its nearest by
# bits, with the number of bits that differ; below by features. A whole blue frame is
# the query's class, a broken orange frame another.

figure, grid = plt.subplots(8, 9, figsize=(7.2, 7.4), layout="constrained")
shown = pictures(train.images)
for axes in grid.flat:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
for pair, name in enumerate(("automobile", "bird", "horse", "ship")):
    query = int((test.labels == classes.index(name)).nonzero()[0])
    for line, found, way in (
        (grid[2 * pair], near_bits[query], "bits"),
        (grid[2 * pair + 1], near_features[query], "features"),
    ):
        line[0].set_ylabel(
            f"{name}\n{way}", rotation=0, ha="right", va="center", fontsize=8
        )
        for place, (axes, number) in enumerate(zip(line[1:], found, strict=False)):
            right = bool(train.labels[number] == test.labels[query])
            colour, dashes = ("#0072B2", "-") if right else ("#D55E00", "--")
            axes.imshow(shown[number])
            axes.spines[:].set(
                visible=True, color=colour, linestyle=dashes, linewidth=2
            )
            if way == "bits":
                axes.set_title(distances[query, place], fontsize=7, pad=2)
    grid[2 * pair, 0].imshow(pictures(test.images)[query])
figure.suptitle(
    "Queries at the left, their nearest by bits and by features", fontsize=10
)
plt.show()

# %%
# How far is near?
# ----------------
#
# The distances to the nearest image, against those to an image drawn at random.

random = np.random.default_rng(0).permutation(len(codes))[: len(query_codes)]
apart = np.unpackbits(query_codes ^ codes[random], axis=1).sum(axis=1)
edges = np.arange(0, 129, 3)
figure, axes = plt.subplots(figsize=(6.0, 3.0), layout="constrained")
axes.hist(
    distances[:, 0],
    edges,
    histtype="stepfilled",
    alpha=0.7,
    color="#0072B2",
    label="nearest",
)
axes.hist(
    apart,
    edges,
    histtype="step",
    linewidth=2,
    linestyle="--",
    color="#D55E00",
    label="at random",
)
axes.axvline(model.bottleneck.dim / 2, color="#666666", linestyle=":")
axes.set(xlabel="bits that differ", ylabel="test images")
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("Distance to the nearest image, and to any")
axes.legend(frameon=False)
plt.show()

# %%
# Hardly any image drawn at random is as near as the nearest. The dotted line is half of
# the bits, where two codes of independent fair bits would lie, give or take 6. These
# are spread far wider around it: when bits are correlated, many differ at once, or few.

print(f"at random: mean {apart.mean():.0f}, standard deviation {apart.std():.0f}")
