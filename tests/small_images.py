"""Tiny labelled images for the tests of the examples: noisy coloured squares, told apart by their colour."""

import pickle
import tarfile

import numpy as np
import torch
from PIL import Image

CLASSES = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}


def picture(class_name, index, size=(32, 32)):
    """Image of a class, the same for the same index. Shape: (height, width, 3), uint8."""
    draw = np.random.default_rng([CHANNEL[class_name], index])
    pixels = draw.integers(0, 120, (*size, 3))
    pixels[8:24, 8:24, CHANNEL[class_name]] += 110
    return pixels.astype(np.uint8)


def batch(count):
    """Images of all classes in turn. Shape: (count, 3, 32, 32), uint8."""
    images = np.stack([picture(CLASSES[i % len(CLASSES)], i) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def write_folder(folder, train=4, test=2, *, suffix=".png", test_name="test", size=(32, 32), first=0):
    """Write `train/<class>/` and `test/<class>/`, so many images a class, and return the folder."""
    for split, count, start in (("train", train, first), (test_name, test, first + train)):
        for class_name in CLASSES:
            below = folder / split / class_name
            below.mkdir(parents=True)
            for i in range(start, start + count):
                Image.fromarray(picture(class_name, i, size)).save(below / f"{i:04}{suffix}")
    return folder


def write_tar(folder, path, *, reverse=False):
    """Pack a folder's images, by name or the other way round, and return the tar's path."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for file in sorted((p for p in folder.rglob("*") if p.is_file()), reverse=reverse):
            archive.add(file, file.relative_to(folder))
    return path


def write_torchvision(root, images, labels):
    """Write CIFAR-10's pickles below `root`; every batch holds the same images. Returns the files' names."""
    below = root / "cifar-10-batches-py"
    below.mkdir(parents=True)
    part = {"data": images.flatten(1).numpy(), "labels": labels.tolist()}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        (below / name).write_bytes(pickle.dumps(part))
    (below / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    return [*names, "batches.meta"]
