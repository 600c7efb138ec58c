"""The frozen evaluation: what an encoder's features and a bottleneck's latent are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipes.classifier import Representations
from recipes.feeds import Feed, LabelledImages, evaluation_loader
from recipes.screen import console, passing_bar
from recipes.training import Hardware
from stochastic_bottleneck import StochConWrapper, codes
from stochastic_bottleneck.evaluation import bit_statistics, forest_curve, knn_accuracy, linear_probe

FOREST_COUNTS = (1, 2, 5, 11, 25, 50)
BATCH = 512
MAX_BANK = 100_000  # training images that nearest neighbours are looked for in: about 100 a class of ImageNet
MAX_FOREST_CELLS = 600_000  # images x classes; 200 trees that split them all hold up to 3.2 kB a cell
Split = tuple[NDArray[np.float32], NDArray[np.float32]]


class Part(Dataset[tuple[Tensor, Tensor]]):
    """Some images of a feed's data set.

    Args:
        dataset: map style; gives a batch for a list of (index, epoch).
        indices: of the images to keep.
    """

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """One batch: images and labels."""
        batch: tuple[Tensor, Tensor] = self.dataset.__getitems__(
            [(self.indices[i], epoch) for i, epoch in places]
        )
        return batch


def evenly(labels: Tensor, count: int) -> list[int]:
    """At most `count` images that stand for all, the same share of each class: every so many in the order of classes.

    Args:
        labels: int64. Shape: (N,)
        count: how many.

    Returns:
        Their indices in rising order.
    """
    count = min(count, len(labels))
    by_class = labels.argsort(stable=True)
    return sorted(by_class[torch.arange(count) * len(labels) // count].tolist())


def extract(
    encode: Representations, feed: Feed, hardware: Hardware, name: str
) -> dict[str, NDArray[np.float32]]:
    """Representations of unaugmented images, in order, all of them in one pass.

    Args:
        encode: maps normalised images to rows; used as it is, in evaluation mode or not.
        feed: images of `data.evaluation`.
        hardware: to run on.
        name: shown beside the progress bar.

    Returns:
        Shape: (N, F) each
    """
    transform = feed.transform.to(hardware.device)
    loader = evaluation_loader(feed, BATCH, hardware.workers)
    rows: dict[str, list[Tensor]] = {key: [] for key in encode.parts}
    with torch.no_grad(), hardware.autocast():
        for images, _ in passing_bar(loader, f"encoding, {name}"):
            for key, found in encode(transform(images.to(hardware.device))).items():
                rows[key].append(found.float().cpu())
    return {key: torch.cat(found).numpy() for key, found in rows.items()}


def features(
    represent: Mapping[str, nn.Module],
    data: LabelledImages,
    hardware: Hardware,
    name: str,
    kept: list[int] | None = None,
) -> dict[str, Split]:
    """Representations of the training images, or of the kept ones, and of the test images.

    Args:
        represent: modules that each map images to one of them, the encoder first.
        data: labelled images.
        hardware: to run on.
        name: shown beside the progress bar.
        kept: numbers of the training images to take; None for all.

    Returns:
        Shape: (N, F) and (M, F) each
    """
    encode = Representations(represent).eval().to(hardware.device)
    train = data.evaluation("train")
    if kept is not None:
        train = train._replace(dataset=Part(train.dataset, kept))
    of_train = extract(encode, train, hardware, name)
    of_test = extract(encode, data.evaluation("test"), hardware, name)
    return {key: (of_train[key], of_test[key]) for key in of_train}


def pixels(data: LabelledImages, hardware: Hardware) -> Split:
    """Normalised pixels of the training and the test images, the first baseline. Shape: (N, 3 * H * W) each."""
    exact = hardware._replace(device="cpu", precision="32")
    return features({"pixels": nn.Flatten()}, data, exact, "pixels")["pixels"]


def probe_device(hardware: Hardware) -> str | None:
    """Where probes are fitted and neighbours looked for: None, for scikit-learn, without a GPU."""
    return None if hardware.device == "cpu" else hardware.device


def judge(
    split: Split,
    data: LabelledImages,
    *,
    metric: str = "cosine",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Linear probe by L-BFGS and nearest neighbours on frozen features.

    Args:
        split: features of the training and the test images.
        data: whose labels they have.
        metric: of the neighbours.
        seed: of the probe's split.
        device: to fit and to look for neighbours on; None for the CPU.

    Returns:
        Width of the features, test accuracies and F1 between 0 and 1, and the probe's chosen regularisation.
    """
    train, test = split
    probe = linear_probe(train, data.train_labels, test, data.test_labels, seed=seed, device=device)
    return {
        "dim": train.shape[1],
        "probe": probe.accuracy,
        "probe_f1": probe.f1,
        "probe_c": probe.regularisation,
        "knn": neighbours(split, data.train_labels, data.test_labels, metric, device),
    }


def neighbours(
    split: Split, train_labels: Tensor, test_labels: Tensor, metric: str, device: str | None = None
) -> float:
    """Accuracy of the 20 nearest neighbours, of all where there are fewer."""
    train, test = split
    return knn_accuracy(
        train, train_labels, test, test_labels, k=min(20, len(train)), metric=metric, device=device
    )


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    hardware: Hardware,
    seed: int,
    *,
    probe: bool = True,
    forest: bool = True,
) -> dict[str, Any]:
    """Everything the report says about one trained model that is not trained any further.

    Args:
        model: SimCLR, or StochCon around the same encoder.
        data: labelled images.
        hardware: to run on.
        seed: of the probe's split and the forests.
        probe: fit the linear probes here; False where `classify.probe` trains them.
        forest: fit random forests on a latent, which take longer than all the rest.

    Returns:
        Plain numbers and lists: `h` for the features; for a latent also `z`, its `forest` curve where the data
        allow one, and, for bits, how they are used. `knn_images` where neighbours are not looked for in all.
    """
    model = model.eval()
    all_fit = probe or len(data.train_labels) <= MAX_BANK
    kept = None if all_fit else evenly(data.train_labels, MAX_BANK)
    labels = data.train_labels if kept is None else data.train_labels[kept]
    device = probe_device(hardware)

    def scores(split: Split, metric: str) -> dict[str, Any]:
        if probe:
            return judge(split, data, metric=metric, seed=seed, device=device)
        return {"dim": split[0].shape[1], "knn": neighbours(split, labels, data.test_labels, metric, device)}

    represent = {"h": model.encoder}
    if isinstance(model, StochConWrapper):
        represent["z"] = model.feature_extractor("z")
    splits = features(represent, data, hardware, "features", kept)
    found: dict[str, Any] = {"h": scores(splits["h"], "cosine")}
    if kept is not None:
        found["knn_images"] = len(kept)
    if not isinstance(model, StochConWrapper):
        return found
    kind, z = model.bottleneck.kind, splits["z"]
    found["z"] = scores(z, "hamming" if kind == "bern" else "cosine")
    cells, few = len(labels) * len(data.classes), len(labels) < 2 * len(data.classes)
    if not forest:
        pass
    elif cells > MAX_FOREST_CELLS or few:
        why = "too few of each to learn from" if few else "more than the memory is sure to hold"
        counts = f"{len(data.classes):,} classes and {len(labels):,} images"
        console.print(f"no random forest: {counts}, {why}", highlight=False)
    else:
        curve = forest_curve(z[0], labels, z[1], data.test_labels, counts=FOREST_COUNTS, seed=seed)
        found["forest"] = {"counts": curve.counts, "f1": curve.f1, "ranking": curve.ranking}
    if kind == "bern":
        found["bits"] = bit_usage(z[1], data)
    return found


def bit_usage(bits: NDArray[np.float32], data: LabelledImages) -> dict[str, Any]:
    """How the test images use their bits, and what the bits save.

    Args:
        bits: 0/1 values of the test images. Shape: (M, D)
        data: the images they stand for.
    """
    packed = codes.pack_bits(bits)
    image = data.evaluation("test").dataset.__getitems__([(0, 0)])[0][0]  # uint8, as the encoder gets it
    used = bit_statistics(bits, data.test_labels)
    channels, height, width = image.shape
    return {
        "share_of_ones": used.share_of_ones,
        "share_of_ones_by_bit": codes.share_of_ones(bits).tolist(),
        "entropy": used.entropy,
        # nan, which JSON lacks, where fewer than two bits vary
        "correlation": None if math.isnan(used.correlation) else used.correlation,
        "class_information": used.class_information,
        "distinct_codes": round(used.distinct * len(bits)),
        "images": len(bits),
        "code_bytes": packed[0].nbytes,
        "image_bytes": image.numel() * image.element_size(),
        "compression_ratio": codes.compression_ratio((height, width, channels), bits.shape[1]),
    }
