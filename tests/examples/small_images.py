"""Small labelled images for the tests of the examples: squares whose colour is the class, and photographs."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image

from stochastic_bottleneck.hub import HubModel

CLASSES = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}


def picture(class_name, index, size=(32, 32)):
    """Image of a class, the same for the same index. Shape: (height, width, 3), uint8."""
    rng = np.random.default_rng([CHANNEL[class_name], index])
    pixels = rng.integers(0, 120, (*size, 3))
    pixels[8:24, 8:24, CHANNEL[class_name]] += 110
    return pixels.astype(np.uint8)


def batch(count):
    """Images of alternating classes. Shape: (count, 3, 32, 32), uint8."""
    images = np.stack([picture(CLASSES[i % len(CLASSES)], i) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def write_folder(folder, train=4, test=2, *, first=0):
    """Write `train/<class>/` and `test/<class>/` with that many images per class, and return the folder."""
    for split, count, start in (("train", train, first), ("test", test, first + train)):
        for class_name in CLASSES:
            below = folder / split / class_name
            below.mkdir(parents=True)
            for i in range(start, start + count):
                Image.fromarray(picture(class_name, i)).save(below / f"{i:04}.png")
    return folder


# ---- photographs ---------------------------------------------------------------------------------------------


def photograph(seed, width=320, height=240):
    """A smooth RGB image with edges: photographs are neither noise nor flat."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(6):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        smooth[y : y + height // 4, x : x + width // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(smooth)


def encoded(image, kind="JPEG", **options):
    """Bytes of an image file."""
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return content.getvalue()


WNIDS = ("n01", "n02", "n03")


def photographs(split, each):
    """Names and contents of that many different photographs per class of a split."""
    first = {"train": 0, "val": 1000, "test": 1000}[split]
    for label, wnid in enumerate(WNIDS):
        for i in range(each):
            size = (64 + 8 * i, 48 + 16 * label)
            yield f"{wnid}/{wnid}_{i}.JPEG", encoded(photograph([first + i, label], *size))


def write_photographs(folder, train=4, val=2):
    """Write `train/<wnid>/` and, unless `val` is 0, `val/<wnid>/`; returns the folder."""
    for split, each in (("train", train), ("val", val)):
        for name, content in photographs(split, each):
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def write_files(path, files):
    """Write a tar of files by name, and return its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write_shards(folder, split, each, shards):
    """Write WebDataset shards of the photographs, images next to .cls files; returns the pattern of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [*photographs(split, each)]
    for number in range(shards):
        files = {}
        for i, (name, content) in enumerate(images[number::shards]):
            label = str(WNIDS.index(name.partition("/")[0])).encode()
            files |= {f"{number}_{i:03}.jpg": content, f"{number}_{i:03}.cls": label}
        write_files(folder / f"{split}-{number}.tar", files)
    return folder / f"{split}-{{0..{shards - 1}}}.tar"


# ---- a model -----------------------------------------------------------------------------------------------

CFG = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
ENCODER = {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 48), "stem_width": 8}


def write_model(folder, *, seed=0, **options):
    """Save a model with 20 bits, so that the last byte is padded, whose norms have seen some images."""
    torch.manual_seed(seed)
    model = HubModel(
        "timm:resnet10t",
        **{"encoder_options": ENCODER, "small_images": True, "pretrained_cfg": CFG, "dim": 20} | options,
    )
    images = (batch(48).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        for _ in range(20):
            model(images, images)
    model.save_pretrained(folder)
    return folder
