"""Shared by scripts about a frozen encoder: find images, load the encoder, cache features of random views.

Encoding takes most of the time, so it resumes at the block of images where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import kornia.augmentation as K
import numpy as np
import timm
import torch
import torchvision
from checkpointing import seed_for
from image_codes import Lite0
from image_files import ImageError, ImageFiles, check_images, find_images, read_image, split_folder, unpack
from PIL import Image, ImageOps
from provenance import DEVICE, PRECISION, write
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from stochastic_bottleneck.encoders import as_encoder

BLOCK, BATCH = 512, 128  # images between two saves of the cache, and in the encoder


@dataclass(kw_only=True)
class Encoding:
    """Images, an encoder, and how many views it sees."""

    data: Path  # Folder or tar: train/CLASS/* and test/CLASS/*, or images, a tenth of which become queries
    encoder: str = "lite0"  # lite0, timm:NAME or torchvision:NAME, pretrained
    weights: Path | None = None  # Weights of the encoder, a .safetensors file; the library's own if not given
    size: int | None = None  # Pixels of the encoder's input; its own, 112 of lite0, if not given
    precision: Literal["bf16-mixed", "32-true"] = PRECISION  # Of the encoder; bf16-mixed where it is fast
    views: int = 4  # Random views of each training image
    workers: int = 0  # Processes that read images
    out: Path = Path("runs/compress")  # Folder of the run


# ---- data -----------------------------------------------------------------------------------------------------------
def find_splits(s: Encoding) -> tuple[ImageFiles, ImageFiles]:
    """Images to train on, which are also searched, and queries; labels only where there are classes."""
    if not s.data.exists():
        raise ValueError(f"--data must be a folder or a tar of images, got {s.data}, which does not exist")
    root = unpack(s.data, s.out / "images") if s.data.is_file() else s.data
    train, test = split_folder(root, "train"), split_folder(root, "test", "val")
    if train and test:
        splits = find_images(train), find_images(test)
        if splits[0].classes != splits[1].classes:
            classes = " and ".join(str(split.classes) for split in splits)
            raise ImageError(f"{train} and {test} must have the same classes, got {classes}")
        return splits
    paths, labels, classes = find_images(train or root)
    order = np.random.default_rng(0).permutation(len(paths))
    parts = [sorted(part) for part in np.split(order, [len(order) - len(order) // 10])]
    return tuple(ImageFiles([paths[i] for i in part], labels and [labels[i] for i in part], classes) for part in parts)


def read_block(side: int, paths: Sequence[str]) -> Tensor:
    """Images, their middle square resized to a side. Shape: (N, 3, side, side) uint8."""
    images = (ImageOps.fit(read_image(x, min_side=2 * side), (side, side), Image.Resampling.BICUBIC) for x in paths)
    return torch.stack([pil_to_tensor(image) for image in images])


# ---- encoder --------------------------------------------------------------------------------------------------------
def load_encoder(s: Encoding) -> tuple[nn.Module, dict[str, Any]]:
    """A frozen encoder and its preprocessing by timm's keys."""
    library, _, name = s.encoder.partition(":")
    try:
        if s.encoder == "lite0":
            model, side = Lite0(), 112
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # of Google's EfficientNet-Lite
        elif library == "timm" and timm.is_model(name):
            model = timm.create_model(name, pretrained=not s.weights, num_classes=0)
            about = timm.data.resolve_model_data_config(model)
            mean, std, side = about["mean"], about["std"], about["input_size"][-1]
        elif library == "torchvision" and name in torchvision.models.list_models(module=torchvision.models):
            best = torchvision.models.get_model_weights(name).DEFAULT
            model, about = torchvision.models.get_model(name, weights=None if s.weights else best), best.transforms()
            mean, std, side = tuple(about.mean), tuple(about.std), about.crop_size[0]
        else:
            rule = "lite0, timm:NAME or torchvision:NAME of a classifier"
            raise ValueError(f"--encoder must be {rule}, got {s.encoder!r}")
        if s.weights and (missing := model.load_state_dict(load_file(s.weights), strict=False).missing_keys):
            raise ValueError(f"--weights {s.weights} lacks {len(missing)} tensors of {s.encoder}: {missing[:3]}")
        encoder, side = as_encoder(model).to(DEVICE, memory_format=torch.channels_last).eval(), s.size or side
        with torch.inference_mode():
            encoder.feature_dim = encoder(torch.zeros(1, 3, side, side, device=DEVICE)).shape[1]
    except ValueError:
        raise
    except Exception as error:  # of networks, files and constructors, of every kind
        fix = "give --weights FILE.safetensors, another --size, or --encoder lite0, which is a package"
        raise ValueError(f"the encoder {s.encoder} cannot be loaded: {error}; {fix}") from error
    about = {"input_size": (3, side, side), "crop_pct": 1.0, "interpolation": "bicubic"}
    return encoder, about | {"mean": mean, "std": std}


# ---- views and cache ------------------------------------------------------------------------------------------------
def cache_features(s: Encoding, train: ImageFiles, queries: ImageFiles, encoder: nn.Module, config: dict) -> None:
    """Encode plain images and random views into float16 files, or continue at the block where that was stopped."""
    folder, size, statistics = s.out / "features", config["input_size"][-1], (config["mean"], config["std"])
    folder.mkdir(exist_ok=True)
    sides = [min(read_image(path).size) for path in train.paths[:: len(train.paths) // 100 + 1]]
    state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in encoder.state_dict().items()}
    about = {
        "encoder": s.encoder, "encoder weights": sha256(save(state)).hexdigest(), "precision": s.precision,
        "views": s.views, "preprocessing": config, "block": BLOCK, "side": min(max(sides), round(1.15 * size)),
        "training images": check_images(train, workers=s.workers), "queries": check_images(queries, workers=s.workers),
    }  # fmt: skip
    about, progress = json.loads(json.dumps(about)), folder / "progress.json"
    done = json.loads(progress.read_text()) if progress.exists() else {"about": about, "queries": 0, "database": 0}
    refuse_changes(folder, done["about"], about)
    plain = [v2.Resize((size, size), v2.InterpolationMode.BICUBIC), v2.ToDtype(torch.float32, scale=True)]
    plain = v2.Compose([*plain, v2.Normalize(*statistics)])
    random_view = nn.Sequential(  # SimCLR's; colours before the crop, which enlarges small images
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomHorizontalFlip(),
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0), align_corners=False),  # crops as torchvision does
        K.Normalize(*(torch.tensor(x) for x in statistics)),
    )

    @torch.inference_mode()
    def encode(images: Tensor) -> np.ndarray:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=s.precision == "bf16-mixed"):
            parts = [encoder(x.contiguous(memory_format=torch.channels_last)) for x in images.split(BATCH)]
        return torch.cat(parts).cpu().to(torch.float16).numpy()

    count, width = len(train.paths), encoder.feature_dim
    shapes = {"queries": (len(queries.paths), width), "database": (count, width), "views": (s.views, count, width)}
    mode = "r+" if progress.exists() else "w+"
    files = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, np.float16, x) for name, x in shapes.items()}
    for name, paths, views in (("queries", queries.paths, 0), ("database", train.paths, s.views)):
        starts = range(done[name], len(paths), BLOCK)
        read = partial(read_block, about["side"])
        loader = DataLoader([paths[i : i + BLOCK] for i in starts], None, collate_fn=read, num_workers=s.workers)
        bar = tqdm(loader, f"encoding {name}", unit=f" times {BLOCK} images", disable=None)
        for first, pixels in zip(starts, bar, strict=True):
            rows, pixels = slice(first, first + len(pixels)), pixels.to(DEVICE)
            files[name][rows] = encode(plain(pixels))
            for view in range(views):
                torch.manual_seed(seed_for(view, first))  # a block's views do not depend on where a run began
                files["views"][view, rows] = encode(random_view(pixels.float() / 255))
            for file in files.values():
                file.flush()
            done[name] = rows.stop
            write(progress, json.dumps(done, indent=1))


def refuse_changes(folder: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix results of different settings in one folder."""
    if other := [key for key in now if now[key] != earlier.get(key)]:
        raise ValueError(f"{folder} is of another {', '.join(other)}; give another --out, or delete it")
