"""Whole training steps: the cost of the latent compared with SimCLR's step, and our CIFAR step with lightly's example.

The first comparison changes nothing but the latent: the same encoder (timm's ResNet-18), lightly's SimCLR head, views
in memory, loss and optimizer; `StochConWrapper.from_simclr` wraps the very model that it is compared with.

The second takes each library as it comes. Lightly's `examples/pytorch/simclr.py` (1.6): PIL images through
`SimCLRTransform(input_size=32, gaussian_blur=0.0)` in a `DataLoader` with 8 workers, torchvision's ResNet-18 without
its last layer, `SimCLRProjectionHead(512, 512, 128)`, `NTXentLoss()`, SGD with learning rate 0.06, float32. Ours:
uint8 images in memory, kornia's views as in `examples/cifar10_full.py`, timm's ResNet-18, which is the same network,
in `channels_last` in a `StochConWrapper` of kind "bern", `InfoNCELoss()`, the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.benchmark import Benchmark, Case, Contender, View, Work
from benchmarks.environment import CORES
from benchmarks.loader import SIDE, PausedLoader, PILImages, random_images
from benchmarks.targets import Ratio

LEARNING_RATE, WORKERS = 0.06, 8  # of lightly's example
PROJECTION_DIM = 128
STRENGTH = 0.5  # of the colour jitter; SimCLR (arXiv 2002.05709), appendix B.9
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class SimCLR(nn.Module):
    """The model without a latent."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone, self.projection_head = encoder(), SimCLRProjectionHead(512, 512, PROJECTION_DIM)

    def forward(self, x: Tensor, x_prime: Tensor) -> tuple[Tensor, Tensor]:
        return self.projection_head(self.backbone(x)), self.projection_head(self.backbone(x_prime))


def encoder() -> nn.Module:
    import timm

    return timm.create_model("resnet18", num_classes=0)  # type: ignore[no-any-return]


def augmentation(device: str) -> nn.Module:
    """SimCLR's views for CIFAR-10."""
    from kornia import augmentation as K

    mode = "slice" if device == "cpu" else "resample"  # image by image, or all in a few launches
    return nn.Sequential(
        K.RandomResizedCrop((SIDE, SIDE), scale=(0.08, 1.0), align_corners=False, cropping_mode=mode),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * STRENGTH, 0.8 * STRENGTH, 0.8 * STRENGTH, 0.2 * STRENGTH, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


def latent_step(kind: str | None) -> Callable[[Case, str], Work]:
    """A step on views in memory: SimCLR, or the same model wrapped."""

    def build(case: Case, device: str) -> Work:
        from stochastic_bottleneck import InfoNCELoss, StochConWrapper

        model: nn.Module = SimCLR()
        if kind is not None:
            model = StochConWrapper.from_simclr(model, kind=kind, dim=128)
        model.to(device).train()
        loss, optimizer = InfoNCELoss(), torch.optim.SGD(model.parameters(), LEARNING_RATE)
        views = torch.randn(2, case.size["batch"], 3, SIDE, SIDE, device=device)

        def run() -> None:
            v, v_prime = model(*views)[:2]
            loss(v, v_prime).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run)

    return build


def our_step(dtype: torch.dtype) -> Callable[[Case, str], Work]:
    """Augmentation, model, loss and optimizer, from uint8 images in memory."""

    def build(case: Case, device: str) -> Work:
        from stochastic_bottleneck import InfoNCELoss, StochConWrapper

        model = StochConWrapper(encoder(), kind="bern", dim=128, projection_dim=PROJECTION_DIM)
        model.to(device, memory_format=torch.channels_last).train()
        loss, optimizer = InfoNCELoss(), torch.optim.SGD(model.parameters(), LEARNING_RATE)
        augment, images = augmentation(device).to(device), random_images().to(device)

        def run() -> None:
            with torch.no_grad():
                batch = images[torch.randint(len(images), (case.size["batch"],), device=device)].float() / 255
                views = [augment(batch).contiguous(memory_format=torch.channels_last) for _ in range(2)]
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                v, v_prime = model(*views)[:2]
                value = loss(v, v_prime)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run)

    return build


def lightly_step(workers: int) -> Callable[[Case, str], Work]:
    """The loop body of lightly's example."""

    def build(case: Case, device: str) -> Work:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms.simclr_transform import SimCLRTransform
        from torchvision.models import resnet18

        backbone = nn.Sequential(*list(resnet18().children())[:-1], nn.Flatten())
        model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, PROJECTION_DIM)).to(device).train()
        criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), LEARNING_RATE)
        data = PILImages(SimCLRTransform(input_size=SIDE, gaussian_blur=0.0))
        loader = PausedLoader(data, case.size["batch"], min(workers, case.size["batch"]))

        def run() -> None:
            (x, x_prime), _labels = loader.next()
            z, z_prime = model(x.to(device)), model(x_prime.to(device))
            criterion(z, z_prime).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Work(run, turn=loader.turn, close=loader.close)

    return build


def case(name: str, batch: int) -> Case:
    return Case(f"{name}, batch {batch}", {"batch": batch})


def in_cases(name: str) -> Callable[[Case], bool]:
    return lambda case: case.name.startswith(name)


LATENT, WHOLE = "the latent's cost", "the whole step"
latent, whole = in_cases(LATENT), in_cases(WHOLE)
CASES = (case(LATENT, 256), case(WHOLE, 256))
CONTENDERS = (
    Contender("simclr", "SimCLR", latent_step(None), latent),
    Contender("ours_bern", "StochCon Bern", latent_step("bern"), latent),
    Contender("ours_gauss", "StochCon Gauss", latent_step("gauss"), latent),
    Contender("ours_bf16", "ours, bf16", our_step(torch.bfloat16), whole, precision="bfloat16"),
    Contender("ours", "ours, float32", our_step(torch.float32), whole),
    Contender("lightly", "lightly's example", lightly_step(WORKERS), whole),
    Contender("lightly_few_workers", "lightly's example, a worker a core", lightly_step(CORES), whole),
)
NAMES = tuple(contender.name for contender in CONTENDERS)

BENCHMARK = Benchmark(
    module=__name__,
    title="Whole training steps",
    note="ResNet-18 on images of 32 x 32. The latent's cost: SimCLR and the same model wrapped, views in memory, "
    "float32. The whole step: with augmentation, ours from memory, lightly's example through its loader.",
    contenders=CONTENDERS,
    cases=CASES,
    quick_cases=(case(LATENT, 2), case(WHOLE, 2)),
    views=(View("The latent's cost", "time", NAMES[:3]), View("The whole step", "time", NAMES[3:])),
    targets=(
        Ratio("StochCon Bern's step over SimCLR's", "ours_bern", 1.03, CASES[0].name, "simclr"),
        Ratio("our step over lightly's, both in float32", "ours", 0.70, CASES[1].name, "lightly"),
    ),
    rounds=15,
)
