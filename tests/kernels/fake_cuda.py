"""A fake CUDA device: its tensors have shape, dtype and device, but no content.

torch's fake tensors need no device for a forward pass. For a training step, `device()` replaces two more things:
autograd's C++ engine, which asks the driver about the device, and a check in autocast. The Python engine traverses the
same graph and calls the same nodes.

`SyncDetector` raises at operations that synchronize with the host or that a CUDA graph cannot capture.
`capture_graphs` returns the graphs of a compiled step, and `violations` lists such operations in one of them.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch._library.custom_ops import OPDEFS
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import Node, get_gradient_edge
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_steps import as_tuple

from stochastic_bottleneck.kernels import nt_xent_dispatch

DEVICE = torch.device("cuda", 0)


# ---- the device ------------------------------------------------------------------------------------------------


def _false(_: torch.device) -> bool:
    return False


@contextlib.contextmanager
def device() -> Iterator[None]:
    """New tensors are fake and on `DEVICE`, and support training."""
    with contextlib.ExitStack() as stack:
        for module in (torch.autograd, torch.autograd.graph):
            stack.enter_context(mock.patch.object(module, "_engine_run_backward", run_backward))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        # Triton would write to memory that does not exist.
        stack.enter_context(mock.patch.object(nt_xent_dispatch, "_supports_triton", new=_false))
        stack.enter_context(FakeTensorMode(shape_env=ShapeEnv()))
        stack.enter_context(torch.device(DEVICE))
        yield


def why_unusable() -> str:
    """Why a fake device does not work here; empty if it does."""
    try:
        with device():
            nn.Linear(2, 2)(torch.rand(2, 2)).sum().backward()
    except (AssertionError, AttributeError, RuntimeError) as error:
        return f"torch {torch.__version__} has no fake CUDA device here: {str(error).splitlines()[0]}"
    return ""


# ---- the engine ------------------------------------------------------------------------------------------------


def run_backward(
    outputs: Any,
    gradients: Any,
    keep_graph: bool,
    create_graph: bool,
    inputs: Any = (),
    allow_unreachable: bool = True,
    accumulate_grad: bool = True,
) -> tuple[Tensor | None, ...]:
    """Replacement of autograd's engine: gradients of `inputs`; without inputs, accumulate them in the leaves."""
    roots, wanted = ([_edge(x) for x in xs] for xs in (outputs, inputs))
    order = _topological([node for node, _ in roots])
    ends = {node for node, _ in wanted}
    needed: set[Node] = set() if wanted else set(order)
    for node in order:  # children first
        if any(child in needed or child in ends for child, _ in node.next_functions):
            needed.add(node)
    received: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    for (node, i), gradient in zip(roots, gradients, strict=True):
        _add(received[node], node, i, gradient)
    found: dict[tuple[Node, int], Tensor] = {}
    with torch.set_grad_enabled(create_graph):
        for node in reversed(order):
            own = received.pop(node, {})
            found.update({(node, i): own[i] for i in own if (node, i) in wanted})
            if not own or node not in needed:
                continue
            if hasattr(node, "variable"):
                leaf = node.variable
                leaf.grad = own[0] if leaf.grad is None else leaf.grad + own[0]
                continue
            for (child, i), gradient in _sent(node, own):
                if gradient is not None:
                    _add(received[child], child, i, gradient)
    return tuple(found.get(edge) for edge in wanted)


def _edge(x: Any) -> tuple[Node, int]:
    edge = get_gradient_edge(x) if isinstance(x, Tensor) else x
    return edge.node, edge.output_nr


def _topological(roots: list[Node]) -> list[Node]:
    """All nodes reachable from the roots, each after the nodes it sends gradients to."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return order


def _add(gradients: dict[int, Tensor], node: Node, i: int, gradient: Tensor) -> None:
    """Add a gradient of one output of a node, after the reductions and casts that the engine does."""
    like = node._input_metadata[i]
    if gradient.shape != like.shape:
        gradient = gradient.sum_to_size(like.shape)
    gradient = gradient.to(like.dtype)
    gradients[i] = gradients[i] + gradient if i in gradients else gradient


def _sent(node: Node, gradients: dict[int, Tensor]) -> list[tuple[tuple[Node, int], Tensor | None]]:
    """Edges of a node, each with the gradient sent along it."""
    arguments = [gradients.get(i) for i in range(len(node._input_metadata))]
    edges = node.next_functions
    if hasattr(node, "apply"):  # an autograd.Function: missing gradients are zeros; not all inputs are tensors
        given = next(iter(gradients.values()))
        arguments = [
            given.new_zeros(like.shape, dtype=like.dtype) if x is None else x
            for x, like in zip(arguments, node._input_metadata, strict=True)
        ]
        results = as_tuple(node.apply(*arguments))
        results = tuple(x for x, needed in zip(results, node.needs_input_grad, strict=False) if needed)
        edges = tuple(edge for edge in edges if edge[0] is not None)
    else:
        results = as_tuple(node(*arguments))
    return [pair for pair in zip(edges, results, strict=True) if pair[0][0] is not None]


# ---- synchronization -------------------------------------------------------------------------------------------------


class HostAccessError(AssertionError):
    """An operation synchronizes with the host, or cannot be captured by a CUDA graph."""


class SyncDetector(TorchDispatchMode):
    """Raise at the first operation that involves the host, and count operations.

    The package's operators run their implementation, and their fake must return tensors of the same layout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "stochastic_bottleneck":
            expected = func(*args, **(kwargs or {}))
            with self:
                result = OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
            if _described(result) != _described(expected):
                message = f"{func} gives {_described(result)}, in traces {_described(expected)}"
                raise AssertionError(message)
            return result
        self._check(func, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._check(func, result)
        self.n_operations += 1
        return result

    def _check(self, func: Any, values: Any) -> None:
        if violation := _violation(func, values):
            raise HostAccessError(violation)


def _described(values: Any) -> list[tuple[Any, ...]]:
    return [(tuple(x.shape), x.stride(), x.dtype, x.device) for x in tree_leaves(values)]


def _violation(func: Any, values: Any) -> str | None:
    """Why a step with this operation involves the host; None if it does not."""
    tags = getattr(func, "tags", ())
    if torch.Tag.data_dependent_output in tags:
        return f"{func} reads a value, which synchronizes"
    if torch.Tag.dynamic_output_shape in tags and _depends_on_values(func, values):
        return f"{func} has a shape that depends on values, which synchronizes"
    leaves = tree_leaves(values)
    for x in leaves:
        if isinstance(x, Tensor) and x.device.type != DEVICE.type:
            return f"{func} has a tensor on the {x.device}; copies from and to the host cannot be captured"
        if isinstance(x, torch.Generator):
            return f"{func} uses a generator of its own, which a CUDA graph does not advance"
    return None


def _depends_on_values(func: Any, values: Any) -> bool:
    """All indexing has the tag, but its shape depends on values only if the index is a mask."""
    if func.overloadpacket is not torch.ops.aten.index:
        return True
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(values))


# ---- compiled graphs -------------------------------------------------------------------------------------------


class CapturedGraph(NamedTuple):
    """The forward or the backward graph of a compiled step."""

    graph: fx.GraphModule
    mutated: list[str]
    """Names of the inputs that the graph changes."""


def capture_graphs(step: Callable[..., Tensor], inputs: list[Tensor]) -> list[CapturedGraph]:
    """Forward and backward graph of a compiled step, partitioned as by Inductor."""
    graphs: list[CapturedGraph] = []
    names: list[str] = []

    def forward(graph: fx.GraphModule, _: Any) -> Any:
        information = TracingContext.get().fw_metadata.input_info
        mutated = [name for name, i in zip(names, information, strict=True) if i.mutates_data]
        graphs.append(CapturedGraph(graph, mutated))
        return make_boxed_func(graph.forward)

    def backward(graph: fx.GraphModule, _: Any) -> Any:
        graphs.append(CapturedGraph(graph, []))
        return make_boxed_func(graph.forward)

    def backend(graph: fx.GraphModule, arguments: list[Tensor]) -> Any:
        names.extend(node.name for node in graph.graph.nodes if node.op == "placeholder")
        compiler = aot_autograd(
            fw_compiler=forward,
            bw_compiler=backward,
            partition_fn=min_cut_rematerialization_partition,
            keep_inference_input_mutations=True,
        )
        return compiler(graph, arguments)

    # Donated buffers depend on autograd's engine, which is replaced.
    with torch._functorch.config.patch(donated_buffer=False):
        torch.compile(step, fullgraph=True, backend=backend)(*inputs).backward()
    return graphs


def violations(graph: fx.GraphModule) -> list[str]:
    """Why a CUDA graph cannot capture this graph."""
    found = []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            found.append(f"{node.target} is a constant, which is copied from the host")
        elif node.op == "call_function":
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda x: x.meta.get("val"))
            found.append(_violation(node.target, (arguments, node.meta.get("val"))))
    return [violation for violation in found if violation]


needs_fake_device = pytest.mark.skipif(bool(why_unusable()), reason=why_unusable())
