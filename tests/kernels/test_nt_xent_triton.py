"""The Triton kernels of the loss without a GPU: in Triton's interpreter, and compiled for an H100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import device, needs_fake_device
from tolerances import TOLERANCES

from stochastic_bottleneck.kernels import nt_xent_dispatch

pytest.importorskip("triton", reason="triton, which the kernels are written in, is not installed")
SCRIPT = Path(__file__).with_name("triton_without_gpu.py")


def run_script(command, **environment):
    paths = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, SCRIPT, command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_interpreted_kernels_equal_the_tiles():
    errors = run_script("interpret")
    assert len(errors) == 14
    # An error of one float32 rounding in a logit of 1 / 0.03 is multiplied by as much in its exponential.
    assert max(errors.values()) < TOLERANCES[torch.float32][0]


@pytest.mark.slow
def test_kernels_compile_to_tensor_cores(tmp_path):
    kernels = run_script("compile", TRITON_CACHE_DIR=str(tmp_path))
    assert len(kernels) == 4
    for kernel in kernels.values():
        assert kernel["shared"] <= nt_xent_dispatch.MIN_SHARED_MEMORY
        assert kernel["tensor cores"]
        assert kernel["machine code"]


def test_a_cpu_uses_tiles():
    assert not nt_xent_dispatch.uses_triton(torch.randn(8, 4))


@needs_fake_device
@pytest.mark.parametrize(
    ("width", "shared", "major", "expected"),
    [(128, 227, 9, True), (128, 227, 10, True), (129, 227, 9, False), (128, 99, 12, False), (128, 163, 8, False)],
)
def test_a_gpu_uses_triton_if_the_kernels_fit(width, shared, major, expected, monkeypatch):
    with device():
        rows = torch.randn(8, width)
    properties = type("Properties", (), {"major": major, "shared_memory_per_block_optin": shared << 10})
    monkeypatch.setattr(nt_xent_dispatch, "_is_triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert nt_xent_dispatch.uses_triton(rows) is expected
