"""The frozen evaluation: what an encoder's features and a bottleneck's latent are worth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.augment import Normalize
from recipes.data import ImageData
from recipes.screen import passing_bar
from stochastic_bottleneck import StochConWrapper, codes
from stochastic_bottleneck.evaluation import forest_curve, knn_accuracy, linear_probe

FOREST_COUNTS = (1, 2, 5, 11, 25, 50)
Split = tuple[NDArray[np.float32], NDArray[np.float32]]


def pixels(data: ImageData) -> Split:
    """Normalised pixels of the training and the test images, the first baseline. Shape: (N, 3072) each."""
    normalize = Normalize()
    return normalize(data.train.images).flatten(1).numpy(), normalize(data.test.images).flatten(1).numpy()


def extract(
    encode: Callable[[Tensor], Tensor], data: ImageData, device: str, precision: str, name: str
) -> Split:
    """Features of the unaugmented training and test images. Shape: (N, F) each."""
    normalize = Normalize().to(device)
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
    autocast = torch.autocast(device, dtype) if dtype else contextlib.nullcontext()
    features = []
    for part in (data.train, data.test):
        batches = part.images.split(512)
        with torch.no_grad(), autocast:
            rows = [
                encode(normalize(batch.to(device))).float().cpu()
                for batch in passing_bar(batches, f"encoding, {name}")
            ]
        features.append(torch.cat(rows).numpy())
    return features[0], features[1]


def judge(features: Split, data: ImageData, *, metric: str = "cosine", seed: int = 0) -> dict[str, Any]:
    """Linear probe and nearest neighbours on frozen features.

    Returns:
        Width of the features, test accuracies and F1 between 0 and 1, and the probe's chosen regularisation.
    """
    train, test = features
    probe = linear_probe(train, data.train.labels, test, data.test.labels, seed=seed)
    k = min(20, len(train))
    return {
        "dim": train.shape[1],
        "probe": probe.accuracy,
        "probe_f1": probe.f1,
        "probe_c": probe.regularisation,
        "knn": knn_accuracy(train, data.train.labels, test, data.test.labels, k=k, metric=metric),
    }


def evaluate(model: nn.Module, data: ImageData, device: str, precision: str, seed: int) -> dict[str, Any]:
    """Everything the report says about one trained model.

    Args:
        model: SimCLR, or StochCon around the same encoder.
        data: labelled images.
        device: "cpu" or "cuda".
        precision: "32", "bf16" or "16".
        seed: of the probe's split and the forests.

    Returns:
        Plain numbers and lists: `h` for the features; for a latent also `z`, its `forest` curve and, for bits,
        how they are used.
    """
    model = model.eval().to(device)
    h = extract(model.encoder, data, device, precision, "features")
    report: dict[str, Any] = {"h": judge(h, data, seed=seed)}
    if not isinstance(model, StochConWrapper):
        return report
    kind = model.bottleneck.kind
    z = extract(model.feature_extractor("z"), data, device, precision, "latent")
    report["z"] = judge(z, data, metric="hamming" if kind == "bern" else "cosine", seed=seed)
    curve = forest_curve(z[0], data.train.labels, z[1], data.test.labels, counts=FOREST_COUNTS, seed=seed)
    report["forest"] = {"counts": curve.counts, "f1": curve.f1, "ranking": curve.ranking}
    if kind == "bern":
        report["bits"] = bit_usage(z[1], data)
    return report


def bit_usage(bits: NDArray[np.float32], data: ImageData) -> dict[str, Any]:
    """How the test images use their bits, and what the bits save.

    Args:
        bits: 0/1 values of the test images. Shape: (M, D)
        data: the images they stand for.
    """
    packed = codes.pack_bits(bits)
    share = codes.share_of_ones(bits)
    correlation = codes.bit_correlation(bits)  # nan, which JSON lacks, where fewer than two bits vary
    height, width = data.test.images.shape[-2:]
    return {
        "share_of_ones": float(share.mean()),
        "share_of_ones_by_bit": share.tolist(),
        "entropy": float(codes.bit_entropy(bits).mean()),
        "correlation": None if math.isnan(correlation) else correlation,
        "class_information": float(codes.bit_class_information(bits, data.test.labels).mean()),
        "distinct_codes": codes.distinct_codes(bits),
        "images": len(bits),
        "bytes_a_code": packed.shape[1],
        "compression_ratio": codes.compression_ratio((height, width, 3), bits.shape[1]),
    }
