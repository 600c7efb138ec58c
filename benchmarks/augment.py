"""Two random views of a batch of 32-pixel images: the recipes' augmentation beside kornia, torchvision and lightly.

All draw anew for every view of every image: crop, flip, colour jitter at SimCLR's strength for CIFAR-10, grey; none
blurs. The recipe and kornia take a whole batch of bytes; torchvision's and lightly's transforms take one image at a
time, in one process or in a data loader's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.images import SIDE, PILImages, RestingLoader, pixels, recipes_path
from benchmarks.targets import Ratio

STRENGTH = 0.5
JITTER = (0.8 * STRENGTH, 0.8 * STRENGTH, 0.8 * STRENGTH, 0.2 * STRENGTH)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batched(make: Callable[[], Callable[[Tensor], Any]]) -> Callable[[Case, str], Work]:
    """A random batch of bytes, both views at once, on the device."""

    def build(case: Case, device: str) -> Work:
        n, augment, images = case.size["batch"], make(), pixels().to(device)
        if isinstance(augment, nn.Module):
            augment = augment.to(device)

        def run() -> Any:
            with torch.no_grad():
                return augment(images[torch.randint(len(images), (n,), device=device)])

        return Work(run, amount=(n, "images"))

    return build


def recipe() -> Callable[[Tensor], Any]:
    recipes_path()
    from recipes.augment import TwoViews

    return TwoViews(SIDE, STRENGTH, SCALE[0])


def kornia() -> Callable[[Tensor], Any]:
    from kornia import augmentation as K

    views = nn.Sequential(
        K.RandomResizedCrop((SIDE, SIDE), scale=SCALE, ratio=RATIO),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(mean=torch.tensor(MEAN), std=torch.tensor(STD)),
    )

    def augment(images: Tensor) -> tuple[Tensor, ...]:
        return views((images.float() / 255).repeat(2, 1, 1, 1)).chunk(2)

    return augment


def torchvision_views() -> Callable[[Any], list[Any]]:
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIDE, scale=SCALE, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(p=0.5),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda image: [view(image), view(image)]


def lightly_views() -> Callable[[Any], list[Any]]:
    from lightly.transforms.simclr_transform import SimCLRTransform

    views: Callable[[Any], list[Any]] = SimCLRTransform(
        input_size=SIDE, cj_strength=STRENGTH, gaussian_blur=0.0
    )
    return views


def one_by_one(make: Callable[[], Callable[[Any], list[Any]]]) -> Callable[[Case, str], Work]:
    """Each PIL image by itself, in this process alone, and the batch stacked."""

    def build(case: Case, device: str) -> Work:
        n, transform = case.size["batch"], make()
        images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in pixels()[:n]]

        def run() -> tuple[Tensor, ...]:
            views = zip(*(transform(image) for image in images), strict=True)
            return tuple(torch.stack(view).to(device) for view in views)

        return Work(run, amount=(n, "images"))

    return build


def in_workers(make: Callable[[], Callable[[Any], list[Any]]]) -> Callable[[Case, str], Work]:
    """A data loader with as many processes as cores; a call takes a batch from each of them."""

    def build(case: Case, device: str) -> Work:
        n, loader = case.size["batch"], RestingLoader(PILImages(make()), case.size["batch"], CORES)

        def run() -> None:
            for _ in range(CORES):
                (view, view_prime), _labels = loader.take()
                view.to(device), view_prime.to(device)

        return Work(run, turn=loader.turn, close=loader.close, amount=(n * CORES, "images"))

    return build


def case(batch: int) -> Case:
    return Case(f"batch {batch}", {"batch": batch})


CONTENDERS = (
    Contender("ours", "the recipes' TwoViews", batched(recipe)),
    Contender("kornia", "kornia", batched(kornia)),
    Contender("torchvision", "torchvision v2, one process", one_by_one(torchvision_views)),
    Contender("torchvision_workers", "torchvision v2, loader", in_workers(torchvision_views)),
    Contender("lightly", "lightly, one process", one_by_one(lightly_views)),
    Contender("lightly_workers", "lightly, loader", in_workers(lightly_views)),
)
NAMES = tuple(c.name for c in CONTENDERS)
FULL = case(256)

BENCHMARK = Benchmark(
    module=__name__,
    title="Two-view augmentation",
    note="Two views of each image of 32 x 32, images a second. A loader has one process for each core.",
    contenders=CONTENDERS,
    cases=(FULL,),
    quick_cases=(case(8),),
    views=(View("Images a second", "rate", NAMES), View("Time of a batch", "time", ("ours", "kornia"))),
    targets=tuple(
        Ratio(f"time over {label}, {FULL.name}", "ours", 1.0, FULL.name, peer)
        for peer, label in (("kornia", "kornia's"), ("torchvision", "torchvision's"))
    ),
)
