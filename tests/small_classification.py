"""A classification of a second by the recipes themselves, for their tests; also a program of its own.

    python tests/small_classification.py FOLDER '{"kind": "probe", "kill_at": 7, ...}'
    torchrun --standalone --nproc-per-node=2 tests/small_classification.py FOLDER '{...}'

The words are those of `classify`. At the end each process leaves `end0.pt`, `end1.pt`: what was returned.
"""

import json
import sys
from pathlib import Path

import torch
from recipes import classify as recipe
from recipes.checkpoints import Checkpoints
from recipes.data import ImageData, Images
from recipes.training import Hardware, Schedule, leave, world
from small_images import CLASSES, batch
from small_training import WIDTH, at_step, environment, kill, make
from torch import nn

EPOCHS, STEPS, BATCH = 3, 4, 6  # steps an epoch
TOTAL = EPOCHS * STEPS
TEST = 11  # images
DIM = 6
SCHEDULE = Schedule(EPOCHS, BATCH, "sgd", 0.05, 1e-3, 1)
CPU = Hardware("cpu", "32", compile=False, workers=0)


def data(train=STEPS * BATCH + 2, test=TEST):
    """Images of three classes in turn, in memory; a last, smaller batch is dropped."""
    every, labels = batch(train + test), torch.arange(train + test) % len(CLASSES)
    parts = Images(every[:train], labels[:train]), Images(every[train:], labels[train:])
    return ImageData(*parts, CLASSES, "small", "0")


def pretrained(name="bern", norm="batch"):
    """A model as pretraining leaves it: batch norms that have seen images, in evaluation mode."""
    model = make(name, norm).train()
    with torch.no_grad():
        for seed in range(3):
            views = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            model(*views)
    return model.eval()


def classify(
    folder,
    kind="probe",
    *,
    model=None,
    norm="batch",
    only=None,
    images=None,
    hardware=CPU,
    precision="32",
    kill_at=None,
    callbacks=(),
    every_steps=None,
    seed=5,
    min_scale=0.5,
    options=None,
    **changes,
):
    """Train a classifier: "probe", "fine_tune" or "supervise"; changes are of the schedule."""
    model = model or pretrained(norm=norm)
    rules = [*callbacks, Checkpoints(folder, every_steps, None, epoch_ends=every_steps is None)]
    if kill_at is not None:
        rules.append(at_step(kill_at, kill))
    rest = (images or data(), SCHEDULE._replace(**changes), hardware._replace(precision=precision), folder)
    told = {"seed": seed, "min_scale": min_scale, "callbacks": rules, **(options or {})}
    if kind != "probe":
        return getattr(recipe, kind)(model.encoder, WIDTH, *rest, **told)
    parts = {"h": model.encoder}
    if hasattr(model, "bottleneck"):
        parts["z"] = model.feature_extractor("z")
    if only is not None:
        parts = {only: parts[only]}
    return recipe.probe(parts, {"h": WIDTH, "z": DIM}, *rest, **told)


class Pixels(nn.Module):
    """Mean of each colour: features that tell the classes apart."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


def main():
    torch.set_num_threads(1)
    folder, words = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = classify(folder, **words)
    torch.save(dict(found._asdict()), folder / f"end{world().rank}.pt")
    leave()
    return 0


__all__ = ["classify", "data", "environment", "pretrained"]

if __name__ == "__main__":
    sys.exit(main())
