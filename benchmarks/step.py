"""Whole training steps: what the latent adds to SimCLR's, and our CIFAR step beside lightly's example.

The first comparison shares everything but the latent: torchvision's ResNet-18, SimCLR's head, images in memory, loss
and optimizer; `StochConWrapper.from_simclr` wraps the very model that stands beside it.

The second takes each library as it comes. Lightly's `examples/pytorch/simclr.py` (1.6): PIL images through
`SimCLRTransform(input_size=32, gaussian_blur=0.0)` in a `DataLoader` with 8 workers, ResNet-18 without its last layer,
`SimCLRProjectionHead(512, 512, 128)`, `NTXentLoss()`, SGD of rate 0.06, float32. Ours: bytes in memory through the
recipes' `TwoViews`, the same encoder in a `StochConWrapper` of kind "bern", `InfoNCELoss()`, the same optimizer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.contract import Benchmark, Case, Contender, View, Work
from benchmarks.images import SIDE, PILImages, RestingLoader, pixels, recipes_path
from benchmarks.targets import PartShare, Ratio, Target

RATE = 0.06  # of lightly's example
WORKERS = 8  # likewise
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PROJECTION = 128
AUGMENTATION = "augmentation"


class SimCLR(nn.Module):
    """What a user has before wrapping: torchvision's ResNet-18 and SimCLR's head."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.backbone = resnet18()
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.projection_head = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, PROJECTION),
        )

    def forward(self, x: Tensor, x_prime: Tensor) -> tuple[Tensor, Tensor]:
        return self.projection_head(self.backbone(x)), self.projection_head(self.backbone(x_prime))


def latent_step(kind: str | None) -> Callable[[Case, str], Work]:
    """A step on views in memory: SimCLR as it is, or wrapped."""

    def build(case: Case, device: str) -> Work:
        from stochastic_bottleneck import InfoNCELoss, StochConWrapper

        torch.manual_seed(0)
        model: nn.Module = SimCLR()
        if kind is not None:
            model = StochConWrapper.from_simclr(model, kind=kind, dim=128)
        model.to(device).train()
        loss, optimizer = InfoNCELoss(), torch.optim.SGD(model.parameters(), RATE)
        views = torch.randn(2, case.size["batch"], 3, SIDE, SIDE, device=device)

        def run() -> None:
            v, v_prime = model(*views)[:2]
            loss(v, v_prime).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run)

    return build


def our_step(precision: str) -> Callable[[Case, str], Work]:
    """Augmentation, model, loss and optimizer, from bytes in memory."""

    def build(case: Case, device: str) -> Work:
        recipes_path()
        from recipes.augment import TwoViews
        from torchvision.models import resnet18

        from stochastic_bottleneck import InfoNCELoss, StochConWrapper

        torch.manual_seed(0)
        model = StochConWrapper(resnet18(), kind="bern", dim=128, projection_dim=PROJECTION)
        model.to(device, memory_format=torch.channels_last).train()
        loss, optimizer = InfoNCELoss(), torch.optim.SGD(model.parameters(), RATE)
        augment, images = TwoViews(SIDE).to(device), pixels().to(device)
        parts: dict[str, float] = {}
        low = precision == "bfloat16"

        def run() -> None:
            start = time.perf_counter()
            views = augment(images[torch.randint(len(images), (case.size["batch"],), device=device)])
            if device == "cuda":
                torch.cuda.synchronize()
            parts[AUGMENTATION] = parts.get(AUGMENTATION, 0.0) + time.perf_counter() - start
            with torch.autocast(device, torch.bfloat16, enabled=low):
                v, v_prime = model(*views)[:2]
                value = loss(v, v_prime)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run, parts=parts)

    return build


def lightly_step(workers: int | None = None) -> Callable[[Case, str], Work]:
    """Lightly's example, its loop's body as one call; with the case's workers, or as many as given."""

    def build(case: Case, device: str) -> Work:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms.simclr_transform import SimCLRTransform
        from torchvision.models import resnet18

        torch.manual_seed(0)
        backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())
        model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, PROJECTION)).to(device).train()
        criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), RATE)
        data = PILImages(SimCLRTransform(input_size=SIDE, gaussian_blur=0.0))
        loader = RestingLoader(data, case.size["batch"], workers or case.size["workers"])

        def run() -> None:
            (x, x_prime), _labels = loader.take()
            z, z_prime = model(x.to(device)), model(x_prime.to(device))
            criterion(z, z_prime).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run, turn=loader.turn, close=loader.close)

    return build


def latent_case(batch: int) -> Case:
    return Case(f"the latent's cost, batch {batch}", {"kind": "latent", "batch": batch})


def whole_case(batch: int, workers: int = WORKERS) -> Case:
    return Case(f"the whole step, batch {batch}", {"kind": "whole", "batch": batch, "workers": workers})


def only(kind: str) -> Callable[[Case], bool]:
    return lambda case: bool(case.size["kind"] == kind)


LATENT, WHOLE = latent_case(256), whole_case(256)
LATENT_NAMES = ("simclr", "ours_bern", "ours_gauss")
WHOLE_NAMES = ("ours_bf16", "ours", "lightly", "lightly_few_workers")

TARGETS: tuple[Target, ...] = (
    Ratio("StochCon Bern's step over SimCLR's", "ours_bern", 1.03, LATENT.name, "simclr"),
    Ratio("our step over lightly's", "ours_bf16", 1 / 1.5, WHOLE.name, "lightly"),
    PartShare("augmentation's share of our step", "ours_bf16", 0.15, WHOLE.name, AUGMENTATION),
)

BENCHMARK = Benchmark(
    module=__name__,
    title="Whole training steps",
    note="ResNet-18 of torchvision on images of 32 x 32. The latent's cost: SimCLR and the same model wrapped, views "
    "in memory, float32. The whole step: with augmentation, ours from memory, lightly's example through its loader.",
    contenders=(
        Contender("simclr", "SimCLR", latent_step(None), only("latent")),
        Contender("ours_bern", "StochCon Bern", latent_step("bern"), only("latent")),
        Contender("ours_gauss", "StochCon Gauss", latent_step("gauss"), only("latent")),
        Contender("ours_bf16", "ours, bf16", our_step("bfloat16"), only("whole"), precision="bfloat16"),
        Contender("ours", "ours, float32", our_step("float32"), only("whole")),
        Contender("lightly", "lightly's example", lightly_step(), only("whole")),
        Contender(
            "lightly_few_workers",
            "lightly's example, a worker a core",
            lightly_step(CORES),
            only("whole"),
        ),
    ),
    cases=(LATENT, WHOLE),
    quick_cases=(latent_case(4), whole_case(4, workers=1)),
    views=(
        View("The latent's cost", "time", LATENT_NAMES),
        View("The whole step", "time", WHOLE_NAMES),
    ),
    targets=TARGETS,
    rounds=15,
)
