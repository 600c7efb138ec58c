"""The Triton kernels that Inductor writes for a CUDA device, and their machine code, on a machine without one.

    python tests/inductor_codegen.py 90 "sample and KL, bern" "wrapped bern"

prints what becomes of each named step for compute capability 9.0, as JSON. It is a process of its own because torch
and triton remember for good what they learn about the device.

Inductor is given the properties of a device that is not there, and fake tensors on it (`fake_cuda`). It then does all
that it does for a real one, up to what its own compile workers do, which have no device either: ptxas makes machine
code of every kernel, in every configuration that would be timed on the device. Nothing is run, so two of Inductor's
passes that run something are off: folding of constants, and timing of padded matrix products.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import fake_cuda
import torch
import torch._functorch.config
import torch._inductor.config
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._subclasses import FakeTensorMode
from training_steps import STEPS, Step, as_tuple

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior

UNUSABLE = 77
"""Exit status where torch or triton is not of the kind that this works with; the reason is printed."""
# Names, multiprocessors and largest shared memory of a block; the other properties are those of both.
DEVICES = {80: ("NVIDIA A100", 108, 166912), 90: ("NVIDIA H100", 132, 232448)}
OPTIONS = {
    "compile_threads": 1,
    "fx_graph_cache": False,
    "graph_partition": False,  # one CUDA graph for all or none, and the reason
    "joint_graph_constant_folding": False,
    "shape_padding": False,
    "triton.cudagraphs": True,
    "use_static_triton_launcher": False,  # it keeps machine code alone
}


# ---- steps ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A step, and the batch size it is compiled for: any, or one alone."""

    make: Callable[[], Step]
    n: int = 64
    any_size: bool = True


def sampler(posterior: type, parameters: int, dtype: torch.dtype = torch.float32) -> Step:
    def loss(*x: Tensor) -> tuple[Tensor, Tensor]:
        q = posterior(*(y.to(dtype) for y in x))
        return q.rsample(), q.kl()

    return Step(None, loss, *[(2048,)] * parameters)


SAMPLERS = {
    "sample and KL, bern": partial(sampler, BernoulliPosterior, 1),
    "sample and KL, gauss": partial(sampler, GaussianPosterior, 2),
    "sample and KL, bern, bfloat16": partial(sampler, BernoulliPosterior, 1, torch.bfloat16),
    "sample and KL, gauss, bfloat16": partial(sampler, GaussianPosterior, 2, torch.bfloat16),
}
CASES = {name: Case(make) for name, make in STEPS.items()}
CASES |= {name: Case(make, 4096, False) for name, make in SAMPLERS.items()}
CASES |= {
    "wrapped bern, 1024 images": Case(STEPS["wrapped bern"], 1024, False),
    "on the device": Case(lambda: Step(None, torch.sin, (16,))),
    "leaves the device": Case(lambda: Step(None, lambda x: x.cpu().sin().to(x.device), (16,))),
}


# ---- the device ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pretended(capability: int) -> Iterator[None]:
    """Inside, Inductor and triton find a device of this compute capability; nothing can be run on it."""
    import triton
    from torch._dynamo import device_interface
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget

    name, processors, shared_memory = DEVICES[capability]
    properties = SimpleNamespace(
        name=name,
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=processors,
        shared_memory_per_block_optin=shared_memory,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
    )
    answers = {
        "current_device": 0,
        "device_count": 1,
        "get_device_properties": properties,
        "is_bf16_supported": True,
    }
    of_cuda = answers | {
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_capability": divmod(capability, 10),
        "get_rng_state": torch.get_rng_state(),
        "is_available": True,
        "set_rng_state": None,
        "synchronize": None,
    }
    driver = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", capability, 32))
    triton.runtime.driver.set_active(driver)
    for function in vars(_triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    with contextlib.ExitStack() as stack:
        for owner, values in ((torch.cuda, of_cuda), (device_interface.CudaInterface, answers)):
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, mock.Mock(return_value=value)))
        for worker, value in (
            (device_interface.caching_worker_device_properties, [properties]),
            (device_interface.caching_worker_current_devices, 0),
        ):
            stack.enter_context(mock.patch.dict(worker, cuda=value))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu"))
        yield


# ---- Inductor ------------------------------------------------------------------------------------------------------


def compiled(case: Case, capability: int) -> dict[str, Any]:
    """What becomes of the forward and the backward pass of a step."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    passes: list[dict[str, Any]] = []

    def kernel(_: Any, name: str, source: str, device_str: str = "cuda") -> Any:
        """In place of a compiled kernel on its way to the device: its machine code, checked."""
        tuner = getattr(PyCodeCache.load(source), name)
        tuner.precompile(warm_cache_only=True)
        binaries = [result.kernel.asm for result in tuner.compile_results]
        assert binaries
        assert all(binary["cubin"].startswith(b"\x7fELF") for binary in binaries)
        targets = {re.search(r"\.target (\w+)", binary["ptx"])[1] for binary in binaries}
        passes[-1]["kernels"].append(
            {"name": name, "configurations": len(binaries), "targets": sorted(targets)}
        )
        return SimpleNamespace(run=None)

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        passes.append({"kernels": []})
        with pretended(capability), mock.patch.object(AsyncCompile, "triton", kernel):
            output = compile_fx_inner(graph, inputs, **options)
        code = re.sub(r"#.*", "", output.source_code)
        calls = re.findall(
            r"\b(?:extern_kernels|aten|torch\.ops\.(?:aten|stochastic_bottleneck))\.(\w+)[\w.]*\(", code
        )
        passes[-1] |= {
            "calls": sorted(set(calls)),
            "no_cuda_graph": output.disabled_cudagraphs_reason,
            "host_buffers": len(re.findall(r"empty_strided_cpu\w*\(", code)),
            "any_batch_size": bool(re.search(r"\bs\d+\b", code)),
        }
        return make_boxed_func(graph.forward)

    def backend(graph: Any, inputs: Any) -> Any:
        with pretended(capability):
            return compile_fx(graph, inputs, inner_compile=inner, config_patches=OPTIONS)

    torch.compiler.reset()
    with fake_cuda.device():
        step = case.make()
        inputs = step.inputs(case.n)
        for x in inputs if case.any_size else ():
            torch._dynamo.mark_dynamic(x, 0)
        outputs = as_tuple(torch.compile(step, fullgraph=True, backend=backend)(*inputs))
        torch.autograd.backward([x.sum() for x in outputs])
    return dict(zip(("forward", "backward"), passes, strict=True))


def main(capability: int, names: list[str]) -> None:
    """Print what becomes of each case."""
    torch.set_num_threads(1)
    reason = fake_cuda.why_unusable()
    with torch._functorch.config.patch(donated_buffer=False, enable_autograd_cache=False):
        try:
            compiled(CASES["on the device"], capability)
        except Exception as error:  # whatever has moved inside torch or triton
            what = f"{type(error).__name__}: {str(error)[:200]}"
            reason = reason or f"torch {torch.__version__} writes no kernels without a device: {what}"
        if reason:
            print(reason)
            sys.exit(UNUSABLE)
        print(json.dumps({name: compiled(CASES[name], capability) for name in names}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
