"""Give an existing SimCLR model a stochastic latent in two lines, and continue to train it.

It takes about a minute on a CPU, with images from the repository: python examples/wrap_simclr.py --kind gauss
"""

from typing import Literal

import torch
import torchvision
import tyro
from image_files import SAMPLE, read_splits
from torch import Tensor, nn
from torchvision.transforms import v2

from stochastic_bottleneck import InfoNCELoss, StochConWrapper, codes

SCALE = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
CROP, JITTER = v2.RandomResizedCrop(32, (0.2, 1)), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
AUGMENT = v2.Compose([CROP, v2.RandomHorizontalFlip(), JITTER])


class SimCLR(nn.Module):
    """The model to start from, as lightly's documentation builds one; it does not use this library."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])  # no classifier
        self.projection_head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))

    def forward(self, x: Tensor, x_prime: Tensor) -> list[Tensor]:
        """Projections of both views. Shape: (N, 3, H, W) each -> (N, 128) each."""
        return [self.projection_head(self.backbone(view).flatten(1)) for view in (x, x_prime)]


def train(model: nn.Module, images: Tensor, steps: int, batch_size: int, name: str) -> None:
    """A plain training loop, the same for both models."""
    loss_function, optimizer = InfoNCELoss(temperature=0.2), torch.optim.SGD(model.parameters(), 0.05, 0.9)
    model.train()
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (batch_size,))]
        view, view_prime = (SCALE(torch.stack([AUGMENT(image) for image in batch])) for _ in range(2))
        loss = loss_function(*model(view, view_prime)[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, steps) or step % 10 == 0:
            print(f"{name}  step {step:>3}  loss {loss.item():.3f} nats")


def main(kind: Literal["bern", "gauss"] = "bern", dim: int = 128, steps: int = 20, batch_size: int = 64) -> None:
    """Train a SimCLR model, give it a latent, and continue to train it."""
    torch.manual_seed(0)
    images, test_images = (split.pixels for split in read_splits(SAMPLE, 32))
    simclr, x = SimCLR(), SCALE(test_images)
    train(simclr, images, steps, batch_size, "before")
    with torch.no_grad():
        before = simclr.eval().backbone(x).flatten(1)

    model = StochConWrapper.from_simclr(simclr, kind=kind, dim=dim)

    print(f"wrapped: features of {len(x):,} test images differ by {(model.encode(x) - before).abs().max():g}")
    train(model, images, steps, batch_size, "after ")
    entropy = model.bottleneck.eval().posterior(model.encode(x)).entropy()
    print(f"uncertainty: entropy of {entropy.min():.1f} to {entropy.max():.1f} nats over the images")
    if kind == "bern":
        ratio, bits = codes.compression_ratio(x.shape[1:], dim), model.encode(x, "bits")
        print(f"codes: {bits.shape[1]} bytes an image, {ratio:g}x smaller than its pixels")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
