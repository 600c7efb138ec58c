"""The page about Lightning: its training, stopped in the middle of an epoch and resumed, ends as one that was not."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

PAGE = (Path(__file__).parents[2] / "docs" / "lightning.rst").read_text()
PAIRS = torch.utils.data.TensorDataset(
    *torch.rand(2, 64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
)
EPOCHS, STEPS = 4, 4


def page():
    """What the page's first block defines."""
    block = re.search(r"\.\. testcode::\n\n((?:(?:   .*)?\n)+)", PAGE)[1]
    names = {}
    exec(compile(re.sub("^   ", "", block, flags=re.MULTILINE), "lightning.rst", "exec"), names)
    return names


def train(folder, stop_at=None):
    """Temperatures of the steps, and the weights."""
    names, temperatures = page(), []

    class Recorded(names["StochConModule"]):
        def training_step(self, views, batch_idx):
            if self.global_step == stop_at:
                raise OSError("out of power")
            temperatures.append(self.model.bottleneck.temperature.item())
            return super().training_step(views, batch_idx)

    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
    module = Recorded(encoder, dim=16)
    with contextlib.suppress(OSError):
        names["train"](module, PAIRS, folder, EPOCHS)
    return temperatures, module.state_dict()


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*ckpt_path=.last.. is set, but there is no last checkpoint",
    "ignore:Checkpoint directory",
    "ignore:.*TensorBoard",
)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(tmp_path):
    temperatures, weights = train(tmp_path / "whole")
    expected = [0.25 ** (min(step / 12, 1)) for step in range(EPOCHS * STEPS)]
    assert temperatures == pytest.approx(expected, rel=1e-6)
    stopped, _ = train(tmp_path / "stopped", stop_at=2 * STEPS + 2)
    torch.manual_seed(7)
    resumed, again = train(tmp_path / "stopped")
    assert stopped == temperatures[: 2 * STEPS + 2]
    assert resumed == temperatures[2 * STEPS :]
    assert all(torch.equal(value, weights[name]) for name, value in again.items())
