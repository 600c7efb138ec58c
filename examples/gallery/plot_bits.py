"""
What the bits say
=================

A trained StochCon Bern gives each image 128 bits. How evenly are they used, what do
single bits stand for, and how many of them does a classifier need?
"""

# %%
# The images as codes
# -------------------
#
# :func:`~stochastic_bottleneck.evaluation.encode` goes through any number of images in
# batches. Bits come packed, eight to a byte.

from matplotlib import pyplot as plt

from shipped import load
from stochastic_bottleneck import plots
from stochastic_bottleneck.codes import (
    bit_class_information,
    bit_correlation,
    unpack_bits,
)
from stochastic_bottleneck.evaluation import bit_statistics, encode, forest_curve

model, normalize, train, test, classes = load()
dim = model.bottleneck.dim

codes = encode(model, normalize(test.images), "bits").features
bits = unpack_bits(codes, dim)
print(f"{len(codes)} images, {codes.shape[1]} bytes each")

# %%
# Are all bits used?
# ------------------
#
# A bit that is a one for half of the images can carry most. Balance alone proves
# little, since copies of one bit are balanced too; so the correlation between bits
# stands in the title.

plots.bit_usage(bits)
plt.show()

# %%
# The same in numbers, with the mutual information of bit and class, averaged over the
# bits. The labels serve to measure here; the model was trained without them.

for name, value in bit_statistics(bits, test.labels)._asdict().items():
    print(f"{name:20} {value:.3f}")

# %%
# What does a bit stand for?
# --------------------------
#
# Of the four bits that tell most about the class, the images that turn each on most
# surely, and those that turn it off. How sure the model is, is the bit's probability
# under the posterior.

information = bit_class_information(bits, test.labels)
telling = information.argsort()[::-1][:4].tolist()
probs = model.bottleneck.posterior(model.encode(normalize(test.images))).probs.detach()

figure = plots.bit_images(test.images, probs, telling)
figure.suptitle("Images that turn a bit on, and off")
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# All four part most animals from vehicles, ships and airplanes, one way round or the
# other. So they largely say the same thing: the correlation among them is far above
# that of all bits.

print("% of ones", *(f"{name:>10}" for name in classes))
for bit in telling:
    shares = [bits[test.labels == label, bit].mean() for label in range(len(classes))]
    print(f"bit {bit:5}", *(f"{100 * share:10.0f}" for share in shares))

among, of_all = bit_correlation(bits[:, telling]), bit_correlation(bits)
print(f"mean |correlation|: {among:.2f} among the four, {of_all:.2f} among all")

# %%
# How few bits carry the classes?
# -------------------------------
#
# A random forest on the most important bits. They are ranked on the training images,
# and the score is of the test images.

train_bits = unpack_bits(encode(model, normalize(train.images), "bits").features, dim)
curve = forest_curve(train_bits, train.labels, bits, test.labels, trees=100, jobs=1)

axes = plots.f1_against_bits({"StochCon Bern": curve}, chance=1 / len(classes))
axes.set_title("Classes from few bits")
plt.show()

# %%
# One bit can name only two classes of ten, so the first point lies below chance. The
# more bits there are, the less a further one adds.

for count, f1 in zip(curve.counts, curve.f1, strict=True):
    print(f"{count:3} bits: mean F1 {100 * f1:.1f} %")
