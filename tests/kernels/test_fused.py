"""The loss's kernels for GPUs, without one: Triton's interpreter, and machine code for an H100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import device, needs_fake_device
from tolerances import TOLERANCES

from stochastic_bottleneck._ops import pairs
from stochastic_bottleneck._ops.tiles import Pairs, Precision

pytest.importorskip("triton", reason="triton, which the kernels are written in, is not installed")
SCRIPT = Path(__file__).with_name("fused_kernels.py")
F32 = Precision(torch.float32, torch.float32, torch.float32)


def told_by(what, **environment):
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, SCRIPT, what], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_interpreted_kernels_equal_the_tiles():
    found = told_by("interpret")
    assert len(found) == 22
    # Logits of 1 / 0.03 that are off by a float32's rounding are off by that many of it as exponentials.
    assert max(found.values()) < TOLERANCES[torch.float32][0]


def test_kernels_are_machine_code_on_tensor_cores(tmp_path):
    found = told_by("compile", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 4
    for kernel in found.values():
        assert kernel["shared"] <= pairs.SHARED
        assert kernel["tensor cores"]
        assert kernel["machine code"]


def test_other_devices_keep_the_tiles():
    rows, kept = torch.randn(8, 4), torch.empty(0, dtype=torch.uint8)
    assert not pairs.fuses(rows)
    assert isinstance(pairs.pairs_of(rows, None, (0,), 0.2, F32, None, kept), Pairs)


@needs_fake_device
@pytest.mark.parametrize(
    ("width", "shared", "major", "fused"),
    [
        (128, 227, 9, True),
        (128, 227, 10, True),
        (129, 227, 9, False),
        (128, 99, 12, False),
        (128, 163, 8, False),
    ],
)
def test_only_what_fits_is_fused(width, shared, major, fused, monkeypatch):
    with device():
        rows = torch.randn(8, width)
    found = type("Properties", (), {"major": major, "shared_memory_per_block_optin": shared << 10})
    monkeypatch.setattr(pairs, "_finds_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert pairs.fuses(rows) is fused
