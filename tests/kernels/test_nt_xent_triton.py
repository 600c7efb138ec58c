"""The Triton kernels of the loss without a GPU: in Triton's interpreter, and compiled for every architecture."""

import contextlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest
import torch
from fake_cuda import SyncDetector, device, needs_fake_device
from tolerances import TOLERANCES

from stochastic_bottleneck.kernels import nt_xent_blocks, nt_xent_dispatch, nt_xent_op

pytest.importorskip("triton", reason="triton, which the kernels are written in, is not installed")
SCRIPT = Path(__file__).with_name("triton_without_gpu.py")
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton" / "compilation.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.mark.timeout(300)
def test_interpreted_kernels_equal_the_tiles():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 36
    # An error of one float32 rounding in a logit of 1 / 0.03 is multiplied by as much in its exponential.
    exact = TOLERANCES[torch.float32][0]
    for name, (error, gradient_error) in errors.items():
        tolerance = TOLERANCES[DTYPES.get(name.rpartition("torch.")[2], torch.float32)][0]
        assert error < (tolerance if "losses" in name else exact), name
        assert gradient_error < tolerance, name


# ---- compiled --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_the_compiled_kernels_fit_every_architecture(table):
    assert {row["arch"] for row in table["rows"]} == {80, 86, 89, 90, 100, 120}
    assert not [row for row in table["rows"] if row["spilled_bytes"]]
    for row in (row for row in table["rows"] if row["blocks"]):  # the others have no products
        capability, kernel, dtype = divmod(row["arch"], 10), row["kernel"].partition(",")[0], DTYPES[row["products"]]
        shared_memory = nt_xent_blocks.SHARED_MEMORY.get(capability, 99 << 10)
        chosen = nt_xent_blocks.choose(kernel, dtype, row["width"], capability, shared_memory)
        bound = nt_xent_blocks.shared_bytes(nt_xent_blocks.kind_of(kernel, dtype, row["width"]), chosen)
        assert row["blocks"] == list(chosen), "run python -m benchmarks.triton_compilation"
        assert row["shared_bytes"] <= bound <= shared_memory, row
        assert row["registers"] * 32 * chosen.warps <= 65536, row
        assert row["tensor_cores"], row


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiling_again_gives_the_table(arch, table):
    from benchmarks import triton_compilation

    if triton_compilation.versions() != table["versions"]:
        pytest.skip("the table is from other releases of Triton or ptxas")
    rows = [row for row in table["rows"] if row["arch"] == arch]
    for row in (rows[1], rows[-1]):
        again = triton_compilation.compile_kernel(arch, row["kernel"], DTYPES[row["products"]], row["width"])
        assert again == row


# ---- chosen ----------------------------------------------------------------------------------------------------


@needs_fake_device
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_with_tensor_cores_uses_triton(capability, monkeypatch):
    assert not nt_xent_dispatch.uses_triton(torch.randn(8, 4))  # on a CPU
    with device():
        narrow, wide = torch.randn(8, 1), torch.randn(8, 1536)
    monkeypatch.setattr(nt_xent_dispatch, "_is_triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    expected = capability >= (8, 0)
    assert nt_xent_dispatch.uses_triton(narrow) is nt_xent_dispatch.uses_triton(wide) is expected
    precision = nt_xent_dispatch.choose_precision(torch.float16, 1024, 0.5, narrow.device)
    assert precision.products == (torch.float16 if expected else torch.float32)


@needs_fake_device
@pytest.mark.parametrize(
    ("dtype", "width", "backward"),
    [
        (torch.bfloat16, 128, ["grad_rows_kernel"]),
        (torch.bfloat16, 500, ["weights_kernel"]),  # and cuBLAS's product
        (torch.float16, 20, ["weights_kernel", "add_product_kernel"]),
        (torch.float32, 128, ["weights_kernel", "add_product_kernel"]),
    ],
)
def test_launches_are_few_and_do_not_wait_for_the_device(dtype, width, backward, monkeypatch):
    from stochastic_bottleneck.kernels import nt_xent_triton_kernels

    launched = []
    for name in [name for name in vars(nt_xent_triton_kernels) if name.endswith("_kernel")]:
        launch = mock.MagicMock(side_effect=lambda *_, name=name, **options: launched.append(name))
        monkeypatch.setattr(nt_xent_triton_kernels, name, defaultdict(lambda launch=launch: launch))
    properties = type("Properties", (), {"major": 8, "minor": 9, "multi_processor_count": 58})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    nt_xent_blocks.limits.cache_clear()
    with device():
        monkeypatch.setattr(nt_xent_dispatch, "_supports_triton", lambda _: True)
        v, v_prime = torch.randn(2, 600, width, dtype=dtype)
        with SyncDetector():
            losses, *saved = nt_xent_op._nt_xent_forward(v, v_prime, 0.5, None, False)
            gradient = nt_xent_op._nt_xent_backward(losses.new_ones(()).expand_as(losses), *saved, 0.5, None, dtype)
    nt_xent_blocks.limits.cache_clear()
    assert launched == ["unit_rows_kernel", "row_sums_kernel", "losses_kernel", *backward, "grad_views_kernel"]
    assert (losses.shape, gradient.shape, gradient.dtype) == ((1200,), (1, 2, 600, width), dtype)
