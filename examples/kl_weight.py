"""What a weight on the KL does while the scale of logits and means is fixed, learned, or left to the projector.

    python examples/kl_weight.py                             # 72 trainings of half a minute to a minute each
    python examples/kl_weight.py --kinds bern --seeds 0

Trains a small encoder on the 5,000 CIFAR-10 images that ship with the examples (JPEG copy), and describes its latent on
the 1,000 test images in evaluation mode. What the table already holds is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper
from stochastic_bottleneck.evaluation import knn_accuracy

HERE = Path(__file__).parent
DIM, VIEWS = 64, 8
SCALES: dict[str, dict[str, Any]] = {
    "fixed": {"location_std": 2.0},
    "none": {"location_std": None},
    "learned": {"location_std": 2.0, "learnable_scale": True},
    "learned, one a dimension": {"location_std": 2.0, "learnable_scale": True},
}
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
)


def load(split: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 of Shape: (N, 3, 32, 32), and their classes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(HERE / "data" / "cifar10_sample.tar.gz") as tar,
    ):
        tar.extractall(folder, filter="data")
        images = ImageFolder(f"{folder}/{split}", transform=v2.PILToTensor())
        return torch.stack([image for image, _ in images]), torch.tensor(images.targets)


def as_input(images: Tensor) -> Tensor:
    """Pixels between about -2 and 2."""
    return (images.float() / 255 - 0.47) / 0.25


def train(kind: str, scale: str, kl_weight: float, seed: int, views: Tensor, epochs: int) -> StochConWrapper:
    """StochCon with a KL in the loss."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 48, 4, stride=4, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 128, 2, stride=2, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    bottleneck = StochasticBottleneck(kind, DIM, in_features=128, **SCALES[scale])  # type: ignore[arg-type]
    if scale == "learned, one a dimension":
        bottleneck.log_scale = nn.Parameter(bottleneck.log_scale.detach().repeat(DIM))
    model = StochConWrapper(encoder, bottleneck=bottleneck, feature_dim=128).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    criterion = InfoNCELoss(temperature=0.2)
    for _ in range(epochs):
        for rows in torch.randperm(len(views)).split(64):
            first, second = torch.rand(len(rows), VIEWS).argsort(dim=1)[:, :2].unbind(dim=1)
            output = model(as_input(views[rows, first]), as_input(views[rows, second]))
            loss = criterion(output.v, output.v_prime) + kl_weight * output.posterior.kl().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def measure(
    model: StochConWrapper, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """The latent of the test images, and the accuracy of nearest neighbours in it and in the features."""
    bits = model.bottleneck.kind == "bern"
    with torch.no_grad():
        posterior = model.eval().bottleneck.posterior(model.encode(as_input(test_set[0])))
    centred = posterior[0] - posterior[0].mean(dim=0)  # logits or means
    variance, fourth = centred.square().mean(dim=0), centred.pow(4).mean(dim=0)
    found = {
        "kl": posterior.kl().mean().item(),
        "kurtosis": (fourth.mean() / variance.mean().square()).item(),
        "kurtosis_in_a_dimension": (fourth / variance.square()).mean().item(),
        "std": variance.mean().sqrt().item(),
        "decided": ((posterior.probs - 0.5).abs() > 0.4).float().mean().item() if bits else float("nan"),
    }
    for name in ("z", "h"):
        x, x_test = (model.encode(as_input(images), name) for images, _ in (train_set, test_set))
        metric = "hamming" if bits and name == "z" else "cosine"
        found[f"knn_{name}"] = knn_accuracy(x, train_set[1], x_test, test_set[1], metric=metric)
    return {name: "" if value != value else round(value, 4) for name, value in found.items()}


def write(path: Path, text: str) -> None:
    """Write a file whole."""
    path.with_suffix(".partial").write_text(text)
    path.with_suffix(".partial").replace(path)


def main() -> None:
    """Measure what the table lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kl_weight", metavar="FOLDER")
    parser.add_argument("--kinds", nargs="+", choices=("bern", "gauss"), default=["bern", "gauss"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scales", nargs="+", choices=SCALES, default=[*SCALES])
    parser.add_argument("--kl-weights", nargs="+", type=float, default=[0.0, 0.01, 0.1])
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "kl_weight.csv"
    rows: list[dict[str, Any]] = [*csv.DictReader(table.read_text().splitlines())] if table.exists() else []
    commands = json.loads(table.with_suffix(".json").read_text())["commands"] if rows else []
    done = {(r["kind"], r["scale"], float(r["kl_weight"]), int(r["seed"]), int(r["epochs"])) for r in rows}
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    cpu = subprocess.run(
        "grep -m1 'model name' /proc/cpuinfo", shell=True, capture_output=True, text=True
    ).stdout
    about = {
        "commands": [
            *commands,
            {" ".join(["python examples/kl_weight.py", *sys.argv[1:]]): git.stdout.strip()},
        ],
        "data": "CIFAR-10 sample (JPEG copy), 5,000 training and 1,000 test images",
        "machine": f"{cpu.partition(': ')[2].strip()}, {os.cpu_count()} cores, one thread used",
        "versions": {
            name: metadata.version(name) for name in ("stochastic-bottleneck", "torch", "torchvision")
        },
    }
    train_set, test_set = load("train"), load("test")
    torch.manual_seed(0)
    views = torch.stack([torch.stack([AUGMENT(image) for _ in range(VIEWS)]) for image in train_set[0]])
    for kind, seed, scale, kl_weight in product(args.kinds, args.seeds, args.scales, args.kl_weights):
        if (kind, scale, kl_weight, seed, args.epochs) in done:
            continue
        found = measure(train(kind, scale, kl_weight, seed, views, args.epochs), train_set, test_set)
        setting = {"kind": kind, "scale": scale, "kl_weight": kl_weight, "seed": seed, "epochs": args.epochs}
        rows.append({**setting, **found})
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(table, text.getvalue())
        write(table.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
