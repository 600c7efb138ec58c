"""Gradients of a batch-wide loss with the activations of one chunk in memory at a time (gradient cache).

InfoNCE contrasts each image with the whole batch, so gradient accumulation over small batches would lose negatives.
But the loss L depends on the parameters theta only through the model's outputs,

    dL / dtheta = sum over chunks c of (d outputs_c / dtheta)^T dL / d outputs_c,

and outputs are small. A first pass without gradients stores the outputs, the loss of the whole batch gives
dL / d outputs, and a second pass recomputes each chunk and adds its term of the sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from stochastic_bottleneck import _checks, _replay

__all__ = ["cached_backward"]

MAX_DRIFT = 0.1
"""Largest difference between the outputs of the two passes, relative to the largest entry.

bfloat16 rounds to 1/256, which a deep network may amplify to a few hundredths; different noise changes an output by
as much as its own magnitude.
"""


def cached_backward(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    *inputs: Tensor,
    chunk_size: int,
    check_replay: bool = True,
    backward: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Equivalent of `loss(model(*inputs)).backward()` with the activations of one chunk in memory at a time.

    Every image is contrasted with the whole batch, and gradients are added to `.grad`. The model runs twice on each
    chunk, so the cost is one more forward pass. Noise from torch's global generators (latents, dropout, augmentation
    inside the model) is the same in both passes; generators and buffers, such as BatchNorm's running statistics, are
    updated as by one pass. Batch statistics are those of a chunk: BatchNorm normalizes each chunk by itself, and the
    gradient is exact for that.

    Under DistributedDataParallel, gradients are all-reduced once, with the last chunk; all processes need the same
    number of rows and of chunks, and `static_graph` must be off. Autocast applies to the forward passes only.

    Args:
        model: called with a chunk of each input. Returns a tensor, or tuples, lists or dicts of tensors. Shape:
            (N,) or (..., N, D); a floating point scalar counts as a mean over the images.
        loss: maps the model's output for the whole batch, with float32 in place of float16, to a scalar: for instance
            `lambda output: criterion(output.v, output.v_prime)`; called once. Its own parameters get their gradient
            too. Scale the loss in here, with `GradScaler.scale` or a division.
        *inputs: inputs of the model, row i of each for image i. Shape: (N, ...)
        chunk_size: largest number of images in a chunk. Sizes of chunks differ by one at most; a batch of one chunk
            runs once. With BatchNorm, 3 or more: smaller ones can leave a chunk of one image, which BatchNorm cannot
            normalize.
        check_replay: compare the outputs of the two passes that the loss depends on. Synchronizes with the device
            once, at the end.
        backward: runs the backward pass of each chunk, and that of the loss if it has parameters, given a scalar,
            such as Lightning's `manual_backward` or the `backward` of Accelerate or Fabric. None for
            `Tensor.backward`.

    Returns:
        The loss, detached. Shape: ()

    Raises:
        ValueError: for a value out of range, outputs that are not one row per image, or a second pass that differs
            from the first: noise from a `torch.Generator`, numpy or `random` in the model is not reproduced.
        TypeError: for inputs or outputs of another type, or a loss that takes more than the output.
        RuntimeError: if gradients are disabled.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from stochastic_bottleneck import InfoNCELoss, StochConWrapper
        >>> model = StochConWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), dim=16)
        >>> criterion = InfoNCELoss()
        >>> def objective(output):
        ...     return criterion(output.v, output.v_prime) + 0.01 * output.posterior.kl().mean()
        >>> x, x_prime = torch.randn(2, 64, 3, 8, 8)
        >>> loss = cached_backward(model, objective, x, x_prime, chunk_size=16)
        >>> loss.shape, model.encoder.backbone[0].weight.grad.shape
        (torch.Size([]), torch.Size([8, 3, 3, 3]))

    Source:
        Gradient cache of Gao et al. (arXiv 2101.06983); restoring buffers and the replay check are additions.
    """
    _check_arguments(model, loss, inputs, chunk_size, check_replay, backward)
    count = -(-inputs[0].shape[0] // chunk_size)
    if count > 1 and any(m.static_graph for m in model.modules() if isinstance(m, DistributedDataParallel)):
        raise ValueError(
            "model must be a DistributedDataParallel module without static_graph=True, which allows one backward pass "
            f"a step, got {count} chunks; build it without, or pass chunk_size={inputs[0].shape[0]} or more"
        )
    chunks = list(zip(*(x.tensor_split(count) for x in inputs), strict=True))
    devices = _replay.devices_of(model, inputs)
    run = Tensor.backward if backward is None else backward
    torch.clear_autocast_cache()  # of an earlier step inside the same autocast
    if count == 1:
        value = _checked_loss(loss(model(*inputs)))
        with _replay.without_autocast(devices):
            run(value)
        return value.detach()

    before, states, outputs = _replay.buffers(model), [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_replay.random_states(devices))
            outputs.append(_flatten(_first_output(model, chunk, chunk_size), chunk[0].shape[0]))
        cache = _Cache(outputs)
    del outputs  # the cache holds their rows

    no_sync = getattr(model, "no_sync", nullcontext)  # of DistributedDataParallel, compiled or not
    value = _checked_loss(loss(cache.output()))
    own = _parameters(value, cache.leaves)
    with _replay.without_autocast(devices):
        if backward is None or not own:
            value.backward()  # type: ignore[no-untyped-call]
        else:  # the loss's own parameters get their gradient by `backward`, which may scale it
            leaves = [x for x in cache.leaves if isinstance(x, Tensor) and x.requires_grad]
            gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            with no_sync():
                backward(value)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient

    torch.clear_autocast_cache()  # weights cast without a gradient, which torch 2.4 would reuse
    drifts: list[Tensor] = []
    with _replay.preserve_state(model, devices):
        _replay.set_buffers(before)
        for k, chunk in enumerate(chunks):
            _replay.set_random_states(devices, states[k])
            with no_sync() if k < count - 1 else nullcontext():
                output = _flatten(model(*chunk), chunk[0].shape[0])
                if check_replay:
                    drifts += cache.drifts(k, output)
                extra = [0 * p.sum() for p in own] if k == count - 1 else []  # DDP reduces their gradients then
                with _replay.without_autocast(devices):
                    run(sum(extra, cache.surrogate(k, output)))
    _check_drifts(drifts)
    return value.detach()


def _first_output(model: nn.Module, chunk: Sequence[Tensor], chunk_size: int) -> Any:
    """Run the first pass on a chunk; explain the error if BatchNorm gets a single image."""
    try:
        return model(*chunk)
    except ValueError as error:
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
        if chunk[0].shape[0] > 1 or not norms:
            raise
        raise ValueError(
            f"chunk_size must leave no chunk of one image to BatchNorm in training, got {chunk_size}, and the model "
            "refuses one; pass chunk_size=3 or more, which always does"
        ) from error


# ---- outputs -----------------------------------------------------------------------------------------------


class _Output(NamedTuple):
    """The flattened output of a chunk. `form` is what all chunks must have in common: all but the number of rows."""

    leaves: list[Any]
    rows: int
    form: tuple[TreeSpec, list[object]]


def _flatten(output: Any, rows: int) -> _Output:
    leaves, tree = tree_flatten(output)
    return _Output(leaves, rows, (tree, [_form(leaf, rows) for leaf in leaves]))


def _form(leaf: Any, rows: int) -> object:
    if not isinstance(leaf, Tensor):
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return leaf
        raise TypeError(f"model must return a tensor, or tuples, lists or dicts of tensors, got {type(leaf).__name__}")
    if leaf.ndim == 0 and leaf.is_floating_point():
        return leaf.dtype
    if leaf.ndim == 0 or leaf.shape[_row_dim(leaf)] != rows:
        raise ValueError(
            f"model must return tensors of one row per image, (N,) or (..., N, D), got {tuple(leaf.shape)} of "
            f"{leaf.dtype} for {rows} images; return only what the loss needs, in that shape"
        )
    shape = list(leaf.shape)
    del shape[_row_dim(leaf)]
    return leaf.dtype, shape


def _row_dim(x: Tensor) -> int:
    return max(-2, -x.ndim)


class _Cache:
    """Outputs of the whole batch and, after the backward pass of the loss, their gradients."""

    def __init__(self, chunks: Sequence[_Output]) -> None:
        self.form = chunks[0].form
        for chunk in chunks:
            self._check_form(chunk)
        self.sizes = [chunk.rows for chunk in chunks]
        self.leaves = [self._merge(leaves) for leaves in zip(*(chunk.leaves for chunk in chunks), strict=True)]

    def output(self) -> Any:
        """The model's output for the whole batch."""
        return tree_unflatten(self.leaves, self.form[0])

    def surrogate(self, k: int, chunk: _Output) -> Tensor:
        """Scalar whose gradient in the parameters is chunk k's term of the gradient of the loss."""
        terms = [
            (second * self._rows(leaf.grad, k)).sum() for leaf, second in self._used(chunk) if second.requires_grad
        ]
        if not terms:
            raise ValueError(
                "loss must depend on the model's output, and that on a parameter that requires a gradient; "
                "found no such path"
            )
        return sum(terms[1:], terms[0])

    def drifts(self, k: int, chunk: _Output) -> list[Tensor]:
        """Difference of each output between the two passes, relative to its largest entry."""
        pairs = [(self._rows(leaf.detach(), k), x.detach()) for leaf, x in self._used(chunk) if x.ndim]
        return [(second - first).abs().max() / first.abs().max() for first, second in pairs]

    def _used(self, chunk: _Output) -> list[tuple[Any, Tensor]]:
        """The outputs that the loss depends on, for the whole batch and for the chunk."""
        self._check_form(chunk)
        pairs = zip(self.leaves, chunk.leaves, strict=True)
        return [(leaf, x) for leaf, x in pairs if isinstance(leaf, Tensor) and leaf.grad is not None]

    def _check_form(self, chunk: _Output) -> None:
        if chunk.form != self.form:
            raise ValueError(
                "model must return the same structure, dtypes and widths for each chunk and in both passes, "
                f"got {self.form} and {chunk.form}"
            )

    def _merge(self, chunks: tuple[Any, ...]) -> Any:
        first = chunks[0]
        if not isinstance(first, Tensor):
            return first
        if first.ndim:
            whole = torch.cat(chunks, dim=_row_dim(first))
        else:  # exact if all chunks return the same scalar
            whole = first + sum((x - first) * self._weight(k) for k, x in enumerate(chunks))
        whole = whole.float() if whole.dtype == torch.float16 else whole  # gradients that are scaled later
        return whole.requires_grad_(whole.is_floating_point())

    def _rows(self, x: Tensor, k: int) -> Tensor:
        """Rows of chunk k, or its weighted contribution to the gradient of a scalar."""
        if x.ndim == 0:
            return x * self._weight(k)
        return x.narrow(_row_dim(x), sum(self.sizes[:k]), self.sizes[k])

    def _weight(self, k: int) -> float:
        return self.sizes[k] / sum(self.sizes)


# ---- checks ----------------------------------------------------------------------------------------------


def _check_arguments(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    inputs: Sequence[Tensor],
    chunk_size: int,
    check_replay: bool,
    backward: Callable[[Tensor], object] | None,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a module, got {type(model).__name__}; put several in an nn.Module that calls them"
        )
    if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
        raise ValueError("model has parameters of unknown shape; run it once on a few images under torch.no_grad()")
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(None)
    except TypeError:
        raise TypeError(
            f"loss must take one argument, the model's output, got {loss!r}; "
            "wrap a loss of two views as lambda output: loss(*output[:2])"
        ) from None
    except ValueError:  # functions written in C may have no signature
        pass
    _checks.integer("chunk_size", chunk_size)
    _checks.flag("check_replay", check_replay)
    if backward is not None and not callable(backward):
        raise TypeError(f"backward must be a function of a scalar, or None, got {backward!r}")
    if not inputs:
        raise TypeError("inputs must hold at least one tensor, got none; pass what the model takes")
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs must be tensors, got {type(x).__name__}; pass its tensors one by one")
        if x.layout != torch.strided or x.is_nested:
            raise TypeError("inputs must be dense tensors, got a sparse or nested one; convert it with .to_dense()")
        if x.requires_grad and not x.is_leaf:
            raise ValueError(
                "inputs must not be the result of a differentiable computation, whose graph would be traversed "
                "once per chunk; make it part of the model, or pass x.detach()"
            )
    shapes = [tuple(x.shape) for x in inputs]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"inputs must have one row for each image, the same number in all, got {shapes}")
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_backward needs gradients, but they are disabled; call it outside torch.no_grad()")


def _checked_loss(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must return a tensor of shape (), got {got}; reduce it with .mean()")
    if not value.requires_grad:
        raise ValueError("loss must depend on the model's output and be differentiable, got a constant")
    return value


def _parameters(value: Any, leaves: Sequence[Any]) -> list[Tensor]:
    """What a loss depends on besides these leaves of its graph."""
    nodes, seen, found = [value.grad_fn], {None}, []
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            variable = getattr(node, "variable", None)  # of the nodes that accumulate a leaf's gradient
            if variable is not None and all(variable is not leaf for leaf in leaves):
                found.append(variable)
            nodes += [following for following, _ in node.next_functions]
    return found


def _check_drifts(drifts: Sequence[Tensor]) -> None:
    values = [drift.item() for drift in drifts]  # synchronizes with the device
    too_far = [value for value in values if value > MAX_DRIFT]  # NaN passes: GradScaler skips such a step
    if too_far:
        raise ValueError(
            "model must give the same outputs in both passes, up to rounding, got a difference of "
            f"{max(too_far):.2g} of the largest entry; draw noise from torch's global generators or pass it as "
            "an input, and clear .grad, which is wrong now"
        )
