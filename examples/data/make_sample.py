"""Make `cifar10_sample.tar.gz`, the class-balanced sample that the quick preset trains on.

    python examples/data/make_sample.py FOLDER

FOLDER holds CIFAR-10 as `train/<class>/*.jpg` and `test/<class>/*.jpg`. The same folder always gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import tarfile
from pathlib import Path

SAMPLE = Path(__file__).with_name("cifar10_sample.tar.gz")
IMAGES_A_CLASS = {"train": 500, "test": 100}


def choose(folder: Path, seed: int = 0) -> list[Path]:
    """Choose the same number of images from each class."""
    rng = random.Random(seed)
    chosen: list[Path] = []
    for split, count in IMAGES_A_CLASS.items():
        classes = sorted(p for p in (folder / split).glob("*") if p.is_dir())
        if len(classes) != 10:
            raise SystemExit(
                f"{folder / split} must hold the ten class folders of CIFAR-10, found {len(classes)}"
            )
        for class_folder in classes:
            chosen += sorted(rng.sample(sorted(class_folder.glob("*.jpg")), count))
    return chosen


def pack(folder: Path, images: list[Path]) -> bytes:
    """Archive the images without owners or dates, so that the bytes depend on the images alone."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in images:
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            content = path.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def main() -> None:
    """Write the archive next to this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="CIFAR-10 with train/ and test/ inside")
    folder = parser.parse_args().folder
    images = choose(folder)
    SAMPLE.write_bytes(pack(folder, images))
    print(f"{SAMPLE}: {len(images)} images, {SAMPLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
