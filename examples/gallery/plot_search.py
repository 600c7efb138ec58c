"""
Search by bits
==============

An index of 5,000 images with 16 bytes each, searched by the number of bits that differ,
compared with a search by the cosine of the encoder's features.
``examples/image_search.py`` does this for a folder of any size (:doc:`/image_search`).
"""

# %%
# Two indexes of the same images
# ------------------------------
#
# faiss takes packed bits as :func:`~stochastic_bottleneck.evaluation.encode` returns them. Its inner
# product is the cosine for features of length one.

import faiss
import numpy as np
from matplotlib import pyplot as plt

from shipped import load
from stochastic_bottleneck.evaluation import encode

model, normalize, train, test, classes = load()


def encoded(images):
    """Packed bits, and features of length one."""
    features = encode(model, normalize(images), ("bits", "h")).features
    h = features["h"]
    return features["bits"], h / np.linalg.norm(h, axis=1, keepdims=True)


codes, h = encoded(train.images)
by_bits, by_features = faiss.IndexBinaryFlat(model.bottleneck.dim), faiss.IndexFlatIP(h.shape[1])
by_bits.add(codes)
by_features.add(h)
print(f"bytes an image: {codes[0].nbytes} as bits, {h[0].nbytes} as features")

# %%
# The ten nearest of each test image
# ----------------------------------

k = 10
query_codes, query_h = encoded(test.images)
distances, near_bits = by_bits.search(query_codes, k)
_, near_features = by_features.search(query_h, k)

same_class = {}
for name, found in (("bits", near_bits), ("features", near_features)):
    same_class[name] = (train.labels[found] == test.labels[:, None]).float().mean().item()
    print(f"by {name}: {100 * same_class[name]:.1f} % of the {k} nearest have the query's class")
shared = (near_bits[:, :, None] == near_features[:, None]).any(2).sum(1).mean()
print(f"{shared:.1f} of the {k} nearest are the same for both")

# %%
# With a sixty-fourth of the bytes, bits find nearly as many images of the query's class. They are not the
# same images: of ten, both find a bit more than half.

# %%
# Neighbours of four images
# -------------------------
#
# The first test image of each of four classes. Above its nearest by bits, with the number of bits that
# differ; below by features. A solid blue frame is the query's class, a dashed orange frame another.

names = ("automobile", "bird", "horse", "ship")
queries = [test.labels.tolist().index(classes.index(name)) for name in names]
figure, grid = plt.subplots(8, 9, figsize=(7.2, 7.4), layout="constrained")
for line, (first, *others) in enumerate(grid):
    by, near, query = (("bits", near_bits), ("features", near_features))[line % 2] + (queries[line // 2],)
    first.imshow(test.images[query].permute(1, 2, 0).numpy())
    first.set_ylabel(f"{names[line // 2]}\n{by}", rotation=0, ha="right", va="center", fontsize=8)
    first.spines[:].set_visible(False)
    for axes, found, distance in zip(others, near[query], distances[query], strict=False):
        axes.imshow(train.images[found].permute(1, 2, 0).numpy())
        right = train.labels[found] == test.labels[query]
        axes.spines[:].set(color="#0072B2" if right else "#D55E00", ls="-" if right else "--", linewidth=2)
        axes.set_title(distance if by == "bits" else "", fontsize=7, pad=2)
plt.setp(grid, xticks=[], yticks=[])
figure.suptitle("Queries at the left, their nearest by bits and by features", fontsize=10)
plt.show()

# %%
# Distances
# ---------
#
# The distances to the nearest image, and those to a random image.

random = np.random.default_rng(0).permutation(len(codes))[: len(query_codes)]
apart = np.unpackbits(query_codes ^ codes[random], axis=1).sum(axis=1)
edges = np.arange(0, 129, 3)
figure, axes = plt.subplots(figsize=(6.0, 3.0), layout="constrained")
axes.hist(distances[:, 0], edges, histtype="stepfilled", alpha=0.7, color="#0072B2", label="nearest")
axes.hist(apart, edges, histtype="step", linewidth=2, linestyle="--", color="#D55E00", label="random")
axes.axvline(model.bottleneck.dim / 2, color="#666666", linestyle=":")
axes.set(xlabel="bits that differ", ylabel="test images")
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("Distance to the nearest and to a random image")
axes.legend(frameon=False)
plt.show()

# %%
# Hardly any random image is as near as the nearest. The dotted line is half of the bits, where two codes of
# independent fair bits would be, give or take 6. These spread far wider: when bits are correlated, many
# differ at once, or few.

print(f"random: mean {apart.mean():.0f}, standard deviation {apart.std():.0f}")
