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
# :func:`~stochastic_bottleneck.evaluation.encode` takes any number of images, in batches. Bits are packed,
# eight to a byte.

from matplotlib import pyplot as plt
from shipped import load

from stochastic_bottleneck import plots
from stochastic_bottleneck.codes import bit_class_information, bit_correlation, unpack_bits
from stochastic_bottleneck.evaluation import bit_statistics, encode, forest_curve

model, normalize, train, test, classes = load()
dim = model.bottleneck.dim

codes = encode(model, normalize(test.pixels), "bits").features
bits = unpack_bits(codes, dim)
print(f"{len(codes)} images, {codes.shape[1]} bytes each")

# %%
# Are all bits used?
# ------------------
#
# A bit that is one for half of the images can carry most information. Balance alone proves little, since
# copies of one bit are balanced too; so the title gives the correlation between bits.

plots.bit_usage(bits)
plt.show()

# %%
# The same in numbers, with the mutual information of bit and class, averaged over the bits. The labels are
# only used to measure; the model was trained without them.

for name, value in bit_statistics(bits, test.labels)._asdict().items():
    print(f"{name:20} {value:.3f}")

# %%
# What does a bit stand for?
# --------------------------
#
# For the four bits with the most information about the class: the images with the highest and with the
# lowest probability of a one under the posterior.

information = bit_class_information(bits, test.labels)
telling = information.argsort()[::-1][:4].tolist()
probs = model.bottleneck.posterior(model.encode(normalize(test.pixels))).probs.detach()

figure = plots.bit_images(test.pixels, probs, telling)
figure.suptitle("Images that turn a bit on, and off")
# sphinx_gallery_thumbnail_number = 2
plt.show()

# %%
# All four separate most animals from vehicles, ships and airplanes, as ones or as zeros. So they largely
# say the same: the correlation among them is far above that of all bits.

print("% of ones", *(f"{name:>10}" for name in classes))
for bit in telling:
    shares = [bits[test.labels == label, bit].mean() for label in range(len(classes))]
    print(f"bit {bit:5}", *(f"{100 * share:10.0f}" for share in shares))

among, of_all = bit_correlation(bits[:, telling]), bit_correlation(bits)
print(f"mean |correlation|: {among:.2f} among the four, {of_all:.2f} among all")

# %%
# How few bits are enough for the classes?
# ----------------------------------------
#
# A random forest on the most important bits, ranked on the training images and evaluated on the test
# images.

train_bits = unpack_bits(encode(model, normalize(train.pixels), "bits").features, dim)
curve = forest_curve(train_bits, train.labels, bits, test.labels, trees=100, jobs=1)

plots.f1_against_bits({"StochCon Bern": curve}, chance=0.1).set_title("Classes from few bits")
plt.show()

# %%
# One bit can name only two classes of ten, so the first point is below chance. The more bits there are, the
# less another one adds.

for count, f1 in zip(curve.counts, curve.f1, strict=True):
    print(f"{count:3} bits: mean F1 {100 * f1:.1f} %")
