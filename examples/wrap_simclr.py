"""Give an existing SimCLR model a stochastic latent in two lines, and train it on.

    python examples/wrap_simclr.py                # a minute at most on a CPU, on the images that ship here
    python examples/wrap_simclr.py --kind gauss --steps 100

The model is built as lightly's documentation builds one: a `backbone` and a `projection_head`. It is trained for a
few steps as it is, wrapped, and trained for as many steps again.
"""

from __future__ import annotations

import argparse

import torch
import torchvision
from recipes import data
from recipes.augment import Normalize, TwoViews
from recipes.screen import console
from torch import Tensor, nn

from stochastic_bottleneck import InfoNCELoss, StochConOutput, StochConWrapper, codes


class SimCLR(nn.Module):
    """The model to start from; it knows nothing of this library."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])  # all but the classifier
        self.projection_head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Projections. Shape: (N, 3, H, W) -> (N, 128)."""
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def train(model: nn.Module, images: Tensor, steps: int, batch_size: int, name: str) -> None:
    """A few steps of the plain training loop, the same for both models."""
    augment, loss_function = TwoViews(), InfoNCELoss(temperature=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for step in range(1, steps + 1):
        view, view_prime = augment(images[torch.randint(len(images), (batch_size,))])
        if isinstance(model, StochConWrapper):
            output: StochConOutput = model(view, view_prime)
            loss = loss_function(output.v, output.v_prime)
        else:
            loss = loss_function(model(view), model(view_prime))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, steps) or step % 10 == 0:
            console.print(f"{name}  step {step:>3}  loss {loss.item():.3f} nats", highlight=False)


def main() -> None:
    """Train, wrap, train on, and say what there is now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("bern", "gauss"), default="bern", help="latent (default: bern)")
    parser.add_argument("--dim", type=int, default=128, help="latent dimensions (default: 128)")
    parser.add_argument("--steps", type=int, default=20, help="steps before and after (default: 20)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, least in (("dim", 1), ("steps", 1), ("batch_size", 2)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least {least}, got {getattr(args, name)}")
    torch.manual_seed(args.seed)
    sample = data.load(data.SAMPLE)

    simclr = SimCLR()
    train(simclr, sample.train.images, args.steps, args.batch_size, "before")
    test_images = Normalize()(sample.test.images)
    with torch.no_grad():
        before = simclr.eval().backbone(test_images).flatten(start_dim=1)

    model = StochConWrapper.from_simclr(simclr, kind=args.kind, dim=args.dim)

    after = model.encode(test_images)
    console.print(
        f"wrapped: features of {len(after):,} test images differ by {(after - before).abs().max().item():g}",
        highlight=False,
    )
    console.print("the layers around the latent start untrained, so the loss starts higher")
    train(model, sample.train.images, args.steps, args.batch_size, "after ")
    describe(model, test_images)


def describe(model: StochConWrapper, images: Tensor) -> None:
    """What the latent gives that the model did not have."""
    with torch.no_grad():
        posterior = model.bottleneck.eval().posterior(model.encode(images))
    entropy = posterior.entropy()
    console.print(
        f"uncertainty: entropy of {entropy.min().item():.1f} to {entropy.max().item():.1f} nats over the images",
        highlight=False,
    )
    if model.bottleneck.kind == "bern":
        packed = model.encode(images, "bits")
        ratio = codes.compression_ratio((*images.shape[-2:], images.shape[1]), model.bottleneck.dim)
        ones = codes.share_of_ones(codes.unpack_bits(packed, model.bottleneck.dim)).mean()
        console.print(
            f"codes: {packed.shape[1]} bytes an image, {ratio:g}x smaller than its pixels, {100 * ones:.0f} % ones",
            highlight=False,
        )


if __name__ == "__main__":
    main()
