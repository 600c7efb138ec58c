"""The page on Lightning, and the directive that shows committed results."""

import contextlib
import io
import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sphinx.application import Sphinx
from torch import nn

PAGE = (Path(__file__).parents[2] / "docs" / "lightning.rst").read_text()
CODE = textwrap.dedent(re.search(r"\.\. testcode::\n\n((?:(?:   .*)?\n)+)", PAGE)[1])  # the first block
VIEWS = torch.rand(2, 64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EPOCHS, STEPS = 4, 4


def train(folder, stop_at=None):
    """Temperatures of the steps, and the weights."""
    names, temperatures = {}, []
    exec(compile(CODE, "lightning.rst", "exec"), names)

    class Recorded(names["StochConModule"]):
        def training_step(self, views, batch_idx):
            if self.global_step == stop_at:
                raise OSError("out of power")
            temperatures.append(self.model.bottleneck.temperature.item())
            return super().training_step(views, batch_idx)

    torch.manual_seed(0)
    module = Recorded(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()), dim=16)
    with contextlib.suppress(OSError):
        names["train"](module, torch.utils.data.TensorDataset(*VIEWS), folder, EPOCHS)
    return temperatures, module.state_dict()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path):
    temperatures, weights = train(tmp_path / "whole")
    assert temperatures == pytest.approx([0.25 ** min(i / 12, 1) for i in range(EPOCHS * STEPS)], rel=1e-6)
    stopped, _ = train(tmp_path / "stopped", stop_at=2 * STEPS + 2)
    torch.manual_seed(7)
    resumed, again = train(tmp_path / "stopped")
    assert stopped == temperatures[: 2 * STEPS + 2]
    assert resumed == temperatures[2 * STEPS :]
    assert all(torch.equal(value, weights[name]) for name, value in again.items())


# ---- the directive that shows committed results ------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PAGE = """Page
====

.. results:: a.json b.json
   :header: first, second

   Probe: {h[probe]:.1%}

.. results:: a.json

   Command: ``{command}``

.. results:: c.json
.. results:: missing.json
.. results:: a.json

   Neighbours: {h[knn]}
"""


def test_files_become_tables_and_missing_files_and_values_are_warnings(tmp_path, monkeypatch):
    (tmp_path / "index.rst").write_text(PAGE)
    (tmp_path / "a.json").write_text('{"command": "run a", "h": {"probe": 0.534}}')
    (tmp_path / "b.json").write_text('{"command": "run b"}')
    rows = [{"model": "SimCLR", "probe": 53.4}, {"model": "pixels", "probe": "-"}]
    (tmp_path / "c.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    monkeypatch.delitem(sys.modules, "results", raising=False)
    log, settings = io.StringIO(), {"extensions": ["results"]}
    Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "tree", "text", settings, None, log).build()
    text = (tmp_path / "out" / "index.txt").read_text()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    for row in (["first", "second"], ["Probe", "53.4%", "-"], ["SimCLR", "53.4"], ["pixels", "-"]):
        assert row in cells or ["", *row] in cells
    assert 'Command:\n   "run a"' in text
    assert "no results in missing.json" in log.getvalue()
    assert "no file has the values of '{h[knn]}'" in log.getvalue()
