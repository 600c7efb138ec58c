"""Triton kernels of the CUDA path, written by Inductor and made into machine code by ptxas, without a device."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import needs_fake_device
from inductor_codegen import SAMPLERS, UNUSABLE
from training_steps import BOTTLENECKS, LOSSES, WRAPPERS

pytestmark = needs_fake_device
pytest.importorskip("triton", reason="triton, which writes and compiles the kernels, is not installed")
SCRIPT = Path(__file__).with_name("inductor_codegen.py")
QUICK = ["sample and KL, bern", "sample and KL, gauss"]
PRODUCTS = ("addmm", "mm", "bmm", "convolution", "convolution_backward")
OPERATORS = ("nt_xent", "nt_xent_backward")


@pytest.fixture
def kernels(tmp_path):
    """What Inductor makes of some steps for a compute capability, with nothing left by earlier runs."""

    def kernels(capability, names):
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/inductor", "TRITON_CACHE_DIR": f"{tmp_path}/triton"}
        paths = os.pathsep.join(path for path in sys.path if path)
        result = subprocess.run(
            [sys.executable, SCRIPT, str(capability), *names],
            env={**os.environ, **caches, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        if result.returncode == UNUSABLE:
            pytest.skip(result.stdout.strip())
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        for step in found.values():
            for graph in step.values():
                for kernel in graph["kernels"]:
                    assert all(re.fullmatch(rf"sm_{capability}a?", target) for target in kernel["targets"])
        return found

    return kernels


def assert_on_the_device_alone(graph):
    assert graph["no_cuda_graph"] is None
    assert graph["host_buffers"] == 0


def assert_fused(step):
    """Noise, sample and divergence are one pass over memory, and so is their gradient."""
    assert [len(graph["kernels"]) for graph in step.values()] == [1, 1]
    assert step["forward"]["calls"] == ["randint"]  # the seed
    assert step["backward"]["calls"] == []
    for graph in step.values():
        assert_on_the_device_alone(graph)


def test_sample_and_divergence_are_one_kernel(kernels):
    found = kernels(90, [*QUICK, "leaves the device"])
    for name in QUICK:
        assert_fused(found[name])
    assert "cpu device" in found["leaves the device"]["forward"]["no_cuda_graph"]
    assert found["leaves the device"]["forward"]["host_buffers"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_so_they_are_in_half_precision_and_on_other_devices(kernels, capability):
    for step in kernels(capability, SAMPLERS).values():
        assert_fused(step)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("capability", "names"),
    [
        pytest.param(80, ["bern", "gauss", "wrapped bern", "loss"], id="sm_80"),
        pytest.param(90, BOTTLENECKS, id="sm_90, bottlenecks"),
        pytest.param(90, WRAPPERS, id="sm_90, wrappers"),
        pytest.param(90, LOSSES, id="sm_90, losses"),
    ],
)
def test_training_steps_are_kernels_for_any_batch_size(kernels, capability, names):
    for step in kernels(capability, names).values():
        for graph in step.values():
            assert_on_the_device_alone(graph)
            assert graph["kernels"]
            assert graph["any_batch_size"]
            assert set(graph["calls"]) <= {*PRODUCTS, *OPERATORS, "randint"}


@pytest.mark.slow
def test_the_loss_of_a_large_batch_is_called_from_the_step(kernels):
    step = kernels(90, ["wrapped bern, 1024 images"])["wrapped bern, 1024 images"]
    for graph, operator in zip(step.values(), OPERATORS, strict=True):
        assert_on_the_device_alone(graph)
        assert operator in graph["calls"]
