"""Other ways to a code of so many bits from features: what a latent's bits have to be compared with.

Everything is fitted on the training features alone.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
BITS_A_PART = 8  # of a product quantiser: 256 centroids, faiss's usual


def pca_signs(train: Features, test: Features, bits: int, seed: int = 0) -> tuple[Features, Features] | None:
    """Signs of the first principal components, as 0 and 1.

    Args:
        train: Shape: (N, F)
        test: Shape: (M, F)
        bits: of the code.
        seed: not used.

    Returns:
        Codes. Shape: (N, bits), (M, bits). None for more bits than features.
    """
    if bits > train.shape[1]:
        return None
    return _signs(faiss.PCAMatrix(train.shape[1], bits), train, test)


def itq(train: Features, test: Features, bits: int, seed: int = 0) -> tuple[Features, Features] | None:
    """Iterative quantisation: principal components, rotated so that their signs lose least.

    By Gong and Lazebnik, Iterative quantization, CVPR 2011; faiss centres the features and takes them at length one.
    Arguments and result are those of `pca_signs`.
    """
    if bits > train.shape[1]:
        return None
    return _signs(faiss.ITQTransform(train.shape[1], bits, True), train, test)


def random_signs(
    train: Features, test: Features, bits: int, seed: int = 0
) -> tuple[Features, Features] | None:
    """Signs of random projections of the centred features, as 0 and 1.

    Arguments and result are those of `pca_signs`; any number of bits can be had.
    """
    directions = np.random.default_rng(seed).standard_normal((train.shape[1], bits)).astype(np.float32)
    middle = train.mean(axis=0)
    return tuple(((x - middle) @ directions > 0).astype(np.float32) for x in (train, test))  # type: ignore[return-value]


def product_quantised(
    train: Features, test: Features, bits: int, seed: int = 0
) -> tuple[Features, Features] | None:
    """Features as a product quantiser gives them back from codes of so many bits.

    A linear probe sees the centroids, not the codes' numbers, which mean nothing to it.

    Args:
        train: Shape: (N, F)
        test: Shape: (M, F)
        bits: of the code, eight for each part of the features.
        seed: of the centroids.

    Returns:
        Features. Shape: (N, F), (M, F). None where the features cannot be cut into so many equal parts, or there are
        fewer training images than centroids.
    """
    width, parts = train.shape[1], bits // BITS_A_PART
    if bits % BITS_A_PART or width % max(1, parts) or len(train) < 2**BITS_A_PART:
        return None
    quantiser = faiss.ProductQuantizer(width, parts, BITS_A_PART)
    quantiser.cp.min_points_per_centroid = 1  # else faiss prints what a small training set is
    quantiser.cp.seed = seed
    train, test = np.ascontiguousarray(train), np.ascontiguousarray(test)
    quantiser.train(train)
    codes = [quantiser.compute_codes(x) for x in (train, test)]
    assert all(8 * code.shape[1] == bits for code in codes)  # bytes an image
    return tuple(quantiser.decode(code) for code in codes)  # type: ignore[return-value]


METHODS = {
    "itq": itq,
    "pca_signs": pca_signs,
    "product_quantised": product_quantised,
    "random_signs": random_signs,
}
NAMES = {
    "itq": "SimCLR h, ITQ",
    "pca_signs": "SimCLR h, PCA and sign",
    "product_quantised": "SimCLR h, product quantisation",
    "random_signs": "SimCLR h, random projections' signs",
}


def _signs(transform: Any, train: Features, test: Features) -> tuple[Features, Features]:
    train, test = np.ascontiguousarray(train), np.ascontiguousarray(test)
    transform.train(train)
    return tuple((transform.apply(x) > 0).astype(np.float32) for x in (train, test))  # type: ignore[return-value]
