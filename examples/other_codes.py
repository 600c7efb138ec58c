"""Codes by faiss, to compare with: random and PCA signs, ITQ, PQ, OPQ and RaBitQ.

`METHODS[name](train, bits, seed)` fits one to features, (N, F) float32; codes of as many bits take the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from stochastic_bottleneck.codes import pack_bits, unpack_bits

Floats, Codes = NDArray[np.float32], NDArray[np.uint8]
OPQ_WIDTH = 256  # of the rotated features, at most
RABITQ_FACTORS = 64  # bits of the two floats that RaBitQ stores with each code


class Codec(NamedTuple):
    """A fitted code. Search compares `query(x)` with `encode(x)` if `metric` is "hamming", otherwise with `decode`."""

    encode: Callable[[Floats], Codes]  # features (N, F) to codes (N, bits / 8)
    decode: Callable[[Codes], Floats]  # codes to the floats that they stand for: bits as -1 and 1, or centroids
    query: Callable[[Floats], NDArray[Any]]  # features to what searches: codes, or floats for an asymmetric search
    metric: Literal["hamming", "euclidean", "dot", "cosine", "asymmetric"]  # of `evaluation.retrieval_scores`
    index: faiss.IndexPQ | None = None  # without codes; for "euclidean", to search by tables of distances


def signs(kind: str, train: Floats, bits: int, seed: int = 0) -> Codec:
    """Signs of the centered features after a transform: random orthogonal, PCA, or PCA and a learned rotation (ITQ)."""
    width, mean = train.shape[1], train.mean(axis=0)
    if kind == "random":
        transform = faiss.RandomRotationMatrix(width, bits)
        transform.init(seed)
    else:
        if bits > width:
            raise ValueError(f"bits must be at most the {width} features, got {bits}")
        if bits > len(train):
            raise ValueError(f"train must have at least {bits} rows for as many bits, got {len(train)}")
        transform = faiss.PCAMatrix(width, bits) if kind == "pca" else faiss.ITQTransform(width, bits, True)
        if kind == "itq":
            transform.itq.seed = seed  # of the rotation that it starts from
        transform.train(train - mean)

    def encode(x: Floats) -> Codes:
        return pack_bits(transform.apply(x - mean) > 0)

    return Codec(encode, lambda codes: 2 * unpack_bits(codes, bits).astype(np.float32) - 1, encode, "hamming")


def pq(train: Floats, bits: int, seed: int = 0, *, rotation: faiss.LinearTransform | None = None) -> Codec:
    """Product quantization, a byte for each group of features; distances from float queries to the centroids."""
    width, groups = rotation.d_out if rotation else train.shape[1], bits // 8
    if bits % 8 or width % groups:
        raise ValueError(f"bits must be 8 for each of some groups of equal size of {width} features, got {bits}")
    if len(train) < 256:
        raise ValueError(f"train must have at least 256 rows for 256 centroids, got {len(train)}")
    index = faiss.IndexPQ(width, groups, 8)
    index.pq.cp.seed, index.pq.cp.min_points_per_centroid = seed, 1  # no warning for small training sets
    if rotation:
        rotation.pq = index.pq
        rotation.train(train)
    rotate = rotation.apply if rotation else np.ascontiguousarray
    index.train(rotate(train))
    return Codec(lambda x: index.sa_encode(rotate(x)), index.sa_decode, rotate, "euclidean", index)


def opq(train: Floats, bits: int, seed: int = 0) -> Codec:
    """Product quantization after a learned rotation."""
    groups, width = max(bits // 8, 1), min(train.shape[1], OPQ_WIDTH)
    rotation = faiss.OPQMatrix(train.shape[1], groups, width // groups * groups)
    rotation.max_train_points = 2**14  # of the rotation; the quantizer has all
    return pq(train, bits, seed, rotation=rotation)


def rabitq(train: Floats, bits: int, seed: int = 0) -> Codec:
    """RaBitQ: signs of randomly rotated principal components, and two floats that correct the distances."""
    width = bits - RABITQ_FACTORS
    if not 0 < width <= train.shape[1]:
        rule = f"1 to {train.shape[1]} more than RaBitQ's {RABITQ_FACTORS} of floats"
        raise ValueError(f"bits must be {rule}, got {bits}")
    rotation, index = faiss.PCAMatrix(train.shape[1], width, 0, True), faiss.IndexRaBitQ(width)
    rotation.train(train)
    index.train(rotation.apply(train))
    center = faiss.vector_to_array(index.center)

    def decode(codes: Codes) -> Floats:  # its product with a query is the negative distance by faiss, but for |q|^2
        squared_norms = codes[:, -8:-4].copy().view(np.float32)
        return np.hstack([2 * (index.sa_decode(codes) - center), -squared_norms])

    def query(x: Floats) -> Floats:
        return np.hstack([rotation.apply(x) - center, np.ones((len(x), 1), np.float32)])

    return Codec(lambda x: index.sa_encode(rotation.apply(x)), decode, query, "dot")


SIGNS = {"random_sign": partial(signs, "random"), "pca_sign": partial(signs, "pca"), "itq": partial(signs, "itq")}
METHODS = {**SIGNS, "pq": pq, "opq": opq, "rabitq": rabitq}


def other_codes(train: Floats, test: Floats, bits: int, seed: int = 0) -> Iterator[tuple[str, list[Floats], str]]:
    """Fit those methods that can be, but for RaBitQ, and give the codes of both sets, as 0/1 bits or centroids."""
    for name in (*SIGNS, "pq", "opq"):
        try:
            codec = METHODS[name](train, bits, seed)
        except ValueError as error:
            print(f"{name} is left out: {error}")
            continue
        floats = [codec.decode(codec.encode(x)) for x in (train, test)]
        yield (name, [(x + 1) / 2 for x in floats], "hamming") if name in SIGNS else (name, floats, "cosine")
