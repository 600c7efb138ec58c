"""How well a classifier does on the test images: counted once, over all of them, by all processes together."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recipes.classifier import Classifier
from recipes.evaluate import BATCH, Part
from recipes.feeds import LabelledImages, evaluation_loader
from recipes.screen import passing_bar
from recipes.stepped import TrainingError
from recipes.training import Hardware, world

TOP = 5


class Scores(NamedTuple):
    """Of one classifier on the test images, each between 0 and 1.

    Args:
        accuracy: share of images whose class comes first.
        top5: share of images whose class is among the first five, or among all where there are fewer.
        f1: mean over classes of the F1 score, which does not hide the small classes.
    """

    accuracy: float
    top5: float
    f1: float


def score(model: Classifier, data: LabelledImages, hardware: Hardware) -> dict[str, Scores]:
    """Classify every test image once.

    Where processes have trained together, each takes some of the images, none of them twice, and the counts are added
    up. They are whole numbers: the scores are those that one process would find, and every process gets them.

    Args:
        model: run in evaluation mode, and as it is written even if it was compiled for training: loaded again from
            its folder, it gets the same scores. It ends on the CPU.
        data: whose test images are classified.
        hardware: to run on.

    Returns:
        Scores on each representation.

    Raises:
        TrainingError: for logits that are not finite.
    """
    here, together = world(), dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    device = torch.device("cpu")
    if hardware.device == "cuda":  # Lightning's choice too: processes of a machine follow one another
        device = torch.device("cuda", here.rank % here.local_size)
    feed = data.evaluation("test")
    share = feed._replace(dataset=Part(feed.dataset, list(range(rank, len(data.test_labels), size))))
    transform = feed.transform.to(device)
    model = model.to(memory_format=torch.channels_last).to(device).eval()  # in memory as in training
    counts = {name: Counts(len(data.classes)) for name in model.heads}
    with torch.no_grad(), hardware.autocast():
        for images, labels in passing_bar(evaluation_loader(share, BATCH, hardware.workers), "testing"):
            # Not model(...), which may be compiled.
            for name, logits in model.forward(transform(images.to(device))).items():
                counts[name].add(_finite(name, logits.cpu()), labels)
    if together:
        for count in counts.values():
            count.add_up(device)
    model.cpu()
    return {name: count.scores() for name, count in counts.items()}


class Counts:
    """Test images by class and by the class found, and those whose class is among the first five.

    Args:
        classes: number of classes C.
    """

    def __init__(self, classes: int) -> None:
        self.found = torch.zeros(classes, classes, dtype=torch.int64)
        self.near = torch.zeros((), dtype=torch.int64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count some images. Shape: (N, C), (N,)."""
        classes = len(self.found)
        cell = labels * classes + logits.argmax(dim=1)
        self.found += cell.bincount(minlength=classes * classes).view(classes, classes)
        self.near += (logits.topk(min(TOP, classes)).indices == labels[:, None]).sum()

    def add_up(self, device: torch.device) -> None:
        """Sum over all processes, each of which calls this."""
        packed = torch.cat([self.found.flatten(), self.near.view(1)]).to(device)
        dist.all_reduce(packed)
        self.found, self.near = packed[:-1].view_as(self.found).cpu(), packed[-1].cpu()

    def scores(self) -> Scores:
        """Of all images counted; every class must have been among them."""
        right, images = self.found.diagonal().double(), self.found.sum().item()
        f1 = 2 * right / (self.found.sum(dim=0) + self.found.sum(dim=1))
        return Scores(right.sum().item() / images, self.near.item() / images, f1.mean().item())


def _finite(name: str, logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise TrainingError(
            f"the classifier on {name} gives inf or nan for some test images; their features are not finite, or the "
            "training diverged: train anew with a lower learning rate, or --precision 32"
        )
    return logits
