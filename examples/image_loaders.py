"""Load batches of images from files or WebDataset shards: in order, or at random with exact resume within an epoch."""

import hashlib
import io
import itertools
import json
import os
import random
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from glob import glob
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import webdataset as wds
from checkpointing import ResumableSampler, seed_for
from image_files import EXTENSIONS, ImageError, check_end, check_images, find_images, read_image, split_folder, unpack
from PIL.Image import Image
from runs import MAIN_PROCESS, WORLD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info
from tqdm import tqdm
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from stochastic_bottleneck.hub import preprocessing

MAX_CLASSES = 1_000_000  # a larger label is taken for a mistake
MIN_SIDE = 896  # a crop of 8 % of an image decoded to this size has 224 pixels a side


@dataclass(frozen=True)
class Split:
    """Images to train or to evaluate on: (path, label) of each file, or the paths of shards."""

    items: list[Any]
    count: int
    classes: list[str]  # empty if there are no labels
    sharded: bool
    fingerprint: str  # of all images

    def every(self, n: int, rest: bool = False) -> "Split":
        """Every n-th file or shard, or the rest."""
        items = [item for i, item in enumerate(self.items) if (i % n > 0) is rest]
        return replace(self, items=items, count=self.count * len(items) // len(self.items))


def find_split(source: str, *names: str, workers: int = 0) -> Split:
    """Find images, and decode each one once, so that damaged ones are reported before training.

    With several processes the first does so, and the others wait for it.

    Args:
        source: folder or tar, WebDataset shards such as `train-{000..146}.tar` or `train-*.tar`, or one shard.
        *names: subfolders with the images, by preference; the folder itself if it has none of them.
        workers: processes that decode.
    """
    if WORLD == 1:
        return _find_split(source, names, workers)
    if not dist.is_initialized():  # Lightning takes it over; while the first evaluates, the others wait too
        dist.init_process_group(timeout=timedelta(days=7))
    found = [_find_split(source, names, workers) if MAIN_PROCESS else None]
    dist.broadcast_object_list(found, device=torch.device("cpu"))
    return found[0]


def _find_split(source: str, names: tuple[str, ...], workers: int) -> Split:
    if shards := find_shards(source):
        return _check_shards(*shards, workers=workers)
    root = Path(source)
    if root.is_file():
        root = unpack(root, "runs/unpacked")
    return _check_files(split_folder(root, *names) or root, workers)


@cache  # for images that are both trained and evaluated on
def _check_files(folder: Path, workers: int) -> Split:
    files = find_images(folder)
    items = [*zip(files.paths, files.labels or [-1] * len(files.paths), strict=True)]
    return Split(items, len(items), files.classes, False, check_images(files, workers=workers))


def find_shards(source: str) -> list[str]:
    """Paths of the shards that a pattern stands for; none for a folder, or a tar without labels next to its images."""
    paths = [path for pattern in expand_urls(source) for path in sorted(glob(pattern)) or [pattern]]
    if paths == [source]:
        if not os.path.isfile(source):
            return []
        with suppress(tarfile.ReadError), tarfile.open(source) as tar:  # unpacking reports the error
            if any(member.name.endswith((".cls", ".json")) for member in itertools.islice(tar, 100)):
                return paths
        return []
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise ImageError(f"{len(missing)} of {len(paths)} shards of {source} are missing: {', '.join(missing[:5])}")
    return paths


@cache
def _check_shards(*paths: str, workers: int) -> Split:
    own = torch.Generator()  # leaves the global one alone
    loader = DataLoader(paths, None, collate_fn=_check_shard, num_workers=workers, generator=own)
    checked = zip(*tqdm(loader, "checking shards", disable=None), strict=True)
    labels, digests, problems = ([*itertools.chain.from_iterable(x)] for x in checked)
    if problems:
        raise ImageError(f"cannot use {len(problems)} images in {len(paths)} shards: {'; '.join(problems[:5])}")
    if min(labels) < 0 <= max(labels):
        raise ImageError(f"{labels.count(-1)} of {len(labels)} images in {paths[0]} and other shards have no label")
    if max(labels) >= MAX_CLASSES:
        raise ImageError(f"labels must be below {MAX_CLASSES:,}, got {max(labels)} in {paths[0]} or other shards")
    classes, total = [str(label) for label in range(max(labels) + 1)], hashlib.sha256("".join(digests).encode())
    return Split([*paths], len(labels), classes, True, total.hexdigest())


def _check_shard(path: str) -> tuple[list[int], list[str], list[str]]:
    """Labels of a shard's images, their SHA-256, and what is wrong with them."""
    labels, digests, problems = [], [], []
    try:
        for file, name, label in read_shards([path]):
            labels.append(label)
            digests.append(hashlib.sha256(file.getvalue() + repr((os.path.basename(name), label)).encode()).hexdigest())
            try:
                read_image(file, name, min_side=1)
            except ImageError as error:
                problems.append(str(error))
        with tarfile.open(path) as tar:
            links = [member.name for member in tar.getmembers() if not (member.isreg() or member.isdir())]
            problems += [f"{path}/{name}: a link, which would be left out; store the file" for name in links]
            check_end(tar)
    except Exception as error:  # damaged archives raise many types
        problems.append(f"{path}: {error}")
    return labels, digests, problems or ([] if labels else [f"{path}: no images"])


def read_shards(paths: list[str]) -> Iterator[tuple[io.BytesIO, str, int]]:
    """File, name and label of each image; the label is -1 without a .cls, or a .json with "label" or "cls"."""
    for path in paths:
        with open(path, "rb") as stream:  # which webdataset would leave open
            for sample in group_by_keys(tar_file_expander([{"url": path, "stream": stream}])):
                kind = next((key for key in sample if f".{key}" in EXTENSIONS), None)
                name, fields = f"{path}/{sample['__key__']}.{kind}", json.loads(sample.get("json", "{}"))
                if kind is None:
                    raise ImageError(f"{name.removesuffix('.None')} has no image")
                label = sample.get("cls", fields.get("label", fields.get("cls", -1)))
                yield io.BytesIO(sample[kind]), name, int(label if isinstance(label, bytes) else str(label))


class Files(Dataset[Any]):
    """Images as ((path, name, label), seed of random crops)."""

    def __init__(self, items: list[tuple[str, int]], seed: int = 0) -> None:
        self.items, self.seed, self.epoch = items, seed, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        path, label = self.items[index]
        return (path, path, label), (self.seed, self.epoch, index)


class Shards(IterableDataset[Any]):
    """Images as ((file, name, label), seed of random crops); processes and their workers share the shards.

    Without `batches`, each image once, in order. With it, as many batches of the epoch, in random order, from number
    `batch` on; a process or worker with too few images for its batches reads them again.
    """

    def __init__(self, paths: list[str], rank: int, world: int, seed: int = 0, batch_size: int = 1, batches: int = 0):
        self.paths, self.rank, self.world, self.seed = paths, rank, world, seed
        self.batch_size, self.batches, self.epoch, self.batch = batch_size, batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        info, paths, start, stop = get_worker_info(), [*self.paths], 0, None
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if self.batches:
            worker = (worker + self.batch) % workers  # workers make batches in turn, the first one makes the first
            random.Random(seed_for(self.seed, self.epoch)).shuffle(paths)
            start, stop = (self.batch_size * len(range(worker, n, workers)) for n in (self.batch, self.batches))
        paths = paths[self.rank :: self.world][worker::workers]
        images = read_shards(paths)
        if self.batches:
            order = wds.shuffle(1000, rng=random.Random(seed_for(self.seed, self.epoch, self.rank, worker)))
            images = itertools.chain.from_iterable(order(read_shards(paths)) for _ in itertools.count())
        for number, image in enumerate(itertools.islice(images, start, stop), start):
            yield image, (self.seed, self.epoch, self.rank, worker, number)


def _crop_batch(crop: Callable[[Image], Tensor], crops: int, batch: list[Any]) -> list[Tensor]:
    """Decode and crop a batch in a worker: one tensor per crop, and labels. Shape: (N, ...) and (N,)."""
    rows = []
    with torch.random.fork_rng([]):
        for (file, name, label), seed in batch:
            torch.manual_seed(seed_for(*seed))
            image = read_image(file, name, MIN_SIDE)
            rows.append((*(crop(image) for _ in range(crops)), label))
    return default_collate(rows)


class TrainingLoader(DataLoader[Any]):
    """Shuffled batches of random crops and labels, starting at the epoch and batch that the trainer has reached.

    `batch_size` is that of all processes together. Torch's random numbers in `crop`, from an image to a tensor, follow
    from seed, epoch and image.
    """

    def __init__(
        self, split: Split, crop: Callable[[Image], Tensor], crops: int, batch_size: int, trainer: L.Trainer, seed: int,
        workers: int,
    ) -> None:  # fmt: skip
        rank, world = trainer.global_rank, trainer.world_size
        self.trainer, self.batches, size = trainer, split.count // batch_size, batch_size // world
        if split.sharded:
            data, sampler = Shards(split.items, rank, world, seed, size, self.batches), None
            workers = min(workers, len(split.items) // world)  # each needs a shard
        else:
            data, sampler = Files(split.items, seed), ResumableSampler(split.count, size, seed, trainer)
        for expected in ("not resumable", "has `__len__` defined"):  # Lightning's warnings, which do not hold for this
            warnings.filterwarnings("ignore", f".*{expected}")
        collate = partial(_crop_batch, crop, crops)
        super().__init__(data, size, sampler=sampler, num_workers=workers, collate_fn=collate, drop_last=True)

    def __iter__(self) -> Any:
        self.dataset.epoch, self.dataset.batch = divmod(self.trainer.global_step, self.batches)
        return super().__iter__()

    def __len__(self) -> int:
        return self.batches


def evaluation_loader(split: Split, config: dict[str, Any], workers: int, rank: int = 0, world: int = 1) -> Any:
    """One process's share of the images, preprocessed by a config with timm's keys, and labels, in order."""
    data = Shards(split.items, rank, world) if split.sharded else Files(split.items[rank::world])
    return DataLoader(data, 256, num_workers=workers, collate_fn=partial(_crop_batch, preprocessing(config), 1))
