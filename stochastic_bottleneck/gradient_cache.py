"""The gradient of a loss over a batch whose activations fit on the device one chunk at a time.

InfoNCE contrasts each image with the whole batch, so gradient accumulation, which adds up losses of small batches,
takes negatives away. But the loss L reaches the parameters theta through the model's outputs alone,

    dL / dtheta = sum over chunks c of (d outputs_c / dtheta)^T dL / d outputs_c,

and outputs are small. A first pass keeps them and nothing else, the loss of the whole batch gives dL / d outputs,
and a second pass repeats each chunk and takes its term of the sum.
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
"""Most that an output may lie from the first pass's, as a share of its largest entry.

bfloat16 rounds to 1/256, which a deep network may raise to a few hundredths; other noise changes an output by its
own size.
"""


def cached_backward(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    *inputs: Tensor,
    chunk_size: int,
    check_replay: bool = True,
    backward: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Do what `loss(model(*inputs)).backward()` does, with the activations of one chunk in memory at a time.

    Every image keeps its negatives, and gradients are added to `.grad`. The model runs twice on each chunk: the cost
    is one more forward pass. Noise from torch's global generators (latents, dropout, augmentation inside the model)
    is the same both times; generators and buffers, such as BatchNorm's running statistics, end as one pass leaves
    them. What the model computes over its batch, it computes over a chunk: BatchNorm normalises with the chunk's
    statistics, and the gradient is exact for that.

    Under DistributedDataParallel the gradients are exchanged once, with the last chunk; all processes need the same
    number of rows and of chunks, and `static_graph` has to be off. Under autocast the forward passes are cast as usual
    and the backward passes are not.

    Args:
        model: is called with a chunk of each input. Returns a tensor, or tuples, lists or dicts of tensors. Shape:
            (N,) or (..., N, D); a floating point scalar counts as a mean over the images.
        loss: maps the model's output for the whole batch to a scalar, for instance
            `lambda output: criterion(output.v, output.v_prime)`; called once. Its own parameters get their gradient
            too. Scale in here: `GradScaler.scale`, or a division.
        *inputs: what the model takes, row i of each for image i. Shape: (N, ...)
        chunk_size: largest number of images in a chunk. Chunks are of equal size where that can be, and differ by
            one otherwise; a batch that is one chunk runs once. With BatchNorm, 3 or more: 1, and 2 for an odd number
            of images, leave a chunk of one image, which cannot be normalised.
        check_replay: compare the two passes' outputs, as far as the loss depends on them. Waits for the device once,
            at the end.
        backward: runs the backward pass of each chunk, given a scalar; for Lightning's `manual_backward`, or
            `backward` of Accelerate or Fabric. None for torch's own.

    Returns:
        The loss, detached. Shape: ()

    Raises:
        ValueError: for a value outside its range, outputs that are not one row an image, or a second pass that
            differs from the first: a `torch.Generator`, numpy or `random` in the model is not repeated.
        TypeError: for inputs and outputs of another type, or a loss that takes more than the output.
        RuntimeError: where gradients are switched off.

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
        Gradient cache of Gao et al. (arXiv 2101.06983); the care for buffers and the check are ours.
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
    if count == 1:
        value = _checked_loss(loss(model(*inputs)))
        with _replay.without_autocast(devices):
            run(value)
        return value.detach()

    before = _replay.buffers(model)
    states, outputs = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_replay.random_states(devices))
            outputs.append(_flatten(_first_output(model, chunk, chunk_size), chunk[0].shape[0]))
        cache = _Cache(outputs)
    del outputs  # the cache holds their rows

    value = _checked_loss(loss(cache.output()))
    with _replay.without_autocast(devices):
        value.backward()  # type: ignore[no-untyped-call]

    torch.clear_autocast_cache()  # of weights cast without a gradient, which torch 2.4 would use again
    at_home = getattr(model, "no_sync", nullcontext)  # DistributedDataParallel's, compiled or not
    drifts: list[Tensor] = []
    with _replay.kept_state(model, devices):
        _replay.set_buffers(before)
        for k, chunk in enumerate(chunks):
            _replay.set_random_states(devices, states[k])
            with at_home() if k < count - 1 else nullcontext():
                output = _flatten(model(*chunk), chunk[0].shape[0])
                if check_replay:
                    drifts += cache.drifts(k, output)
                with _replay.without_autocast(devices):
                    run(cache.surrogate(k, output))
    _check_drifts(drifts)
    return value.detach()


def _first_output(model: nn.Module, chunk: Sequence[Tensor], chunk_size: int) -> Any:
    """The model's output in the first pass, in which BatchNorm may meet a chunk of one image."""
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
    """A chunk's output taken apart. `form` says what the chunks of a batch share: all but the number of rows."""

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
        raise TypeError(
            f"model must return a tensor, or tuples, lists or dicts of tensors, got {type(leaf).__name__}"
        )
    if leaf.ndim == 0 and leaf.is_floating_point():
        return leaf.dtype
    if leaf.ndim == 0 or leaf.shape[_row_dim(leaf)] != rows:
        raise ValueError(
            f"model must return tensors of one row an image, (N,) or (..., N, D), got {tuple(leaf.shape)} of "
            f"{leaf.dtype} for {rows} images; return what the loss needs alone, in that shape"
        )
    shape = list(leaf.shape)
    del shape[_row_dim(leaf)]
    return leaf.dtype, shape


def _row_dim(x: Tensor) -> int:
    return max(-2, -x.ndim)


class _Cache:
    """Outputs of the whole batch and, once the loss has run backward, its gradient in them."""

    def __init__(self, chunks: Sequence[_Output]) -> None:
        self.form = chunks[0].form
        for chunk in chunks:
            self._check_form(chunk)
        self.sizes = [chunk.rows for chunk in chunks]
        self.leaves = [self._merge(parts) for parts in zip(*(chunk.leaves for chunk in chunks), strict=True)]

    def output(self) -> Any:
        """What the model would return for the whole batch."""
        return tree_unflatten(self.leaves, self.form[0])

    def surrogate(self, k: int, chunk: _Output) -> Tensor:
        """Scalar whose gradient in the parameters is chunk k's term of the loss's."""
        terms = [
            (now * self._part(leaf.grad, k)).sum() for leaf, now in self._used(chunk) if now.requires_grad
        ]
        if not terms:
            raise ValueError(
                "loss must depend on the model's output, and that on a parameter that requires a gradient; "
                "found no such path"
            )
        return sum(terms[1:], terms[0])

    def drifts(self, k: int, chunk: _Output) -> list[Tensor]:
        """How far each output of the second pass lies from the first's, as a share of the largest entry."""
        pairs = [(self._part(leaf.detach(), k), now.detach()) for leaf, now in self._used(chunk) if now.ndim]
        return [(now - then).abs().max() / then.abs().max() for then, now in pairs]

    def _used(self, chunk: _Output) -> list[tuple[Any, Tensor]]:
        """The outputs that the loss depends on, of the whole batch and of the chunk."""
        self._check_form(chunk)
        pairs = zip(self.leaves, chunk.leaves, strict=True)
        return [(leaf, now) for leaf, now in pairs if isinstance(leaf, Tensor) and leaf.grad is not None]

    def _check_form(self, chunk: _Output) -> None:
        if chunk.form != self.form:
            raise ValueError(
                "model must return the same structure, dtypes and widths for each chunk and in both passes, "
                f"got {self.form} and {chunk.form}"
            )

    def _merge(self, parts: tuple[Any, ...]) -> Any:
        first = parts[0]
        if not isinstance(first, Tensor):
            return first
        if first.ndim:
            whole = torch.cat(parts, dim=_row_dim(first))
        else:  # written so that a scalar all chunks have in common stays what it is
            whole = first + sum((x - first) * self._share(k) for k, x in enumerate(parts))
        return whole.requires_grad_(whole.is_floating_point())

    def _part(self, x: Tensor, k: int) -> Tensor:
        """Chunk k's part of the whole batch's rows, or its share of a scalar's gradient."""
        if x.ndim == 0:
            return x * self._share(k)
        return x.narrow(_row_dim(x), sum(self.sizes[:k]), self.sizes[k])

    def _share(self, k: int) -> float:
        return self.sizes[k] / sum(self.sizes)


# ---- refusals ----------------------------------------------------------------------------------------------


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
        raise ValueError(
            "model has parameters of unknown shape; run it once on a few images, without a gradient"
        )
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(None)
    except TypeError:
        raise TypeError(
            f"loss must take one argument, the model's output, got {loss!r}; "
            "wrap a loss of two views as lambda output: loss(*output[:2])"
        ) from None
    except ValueError:  # written in C, without a signature
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
            raise TypeError(
                "inputs must be dense tensors, got a sparse or nested one; convert it with .to_dense()"
            )
        if x.requires_grad and not x.is_leaf:
            raise ValueError(
                "inputs must not be the result of a differentiable computation, whose graph would be walked "
                "once a chunk; make it part of the model, or pass x.detach()"
            )
    shapes = [tuple(x.shape) for x in inputs]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"inputs must have one row for each image, the same number in all, got {shapes}")
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_backward needs gradients, but they are off; leave torch.no_grad()")


def _checked_loss(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must return a tensor of shape (), got {got}; reduce it with .mean()")
    if not value.requires_grad:
        raise ValueError("loss must depend on the model's output and be differentiable, got a constant")
    return value


def _check_drifts(drifts: Sequence[Tensor]) -> None:
    values = [drift.item() for drift in drifts]  # waits for the device
    if too_far := [
        value for value in values if value > MAX_DRIFT
    ]:  # NaN is not: GradScaler skips such a step
        raise ValueError(
            "model must give the same outputs in both passes, up to rounding, got a difference of "
            f"{max(too_far):.2g} of the largest entry; draw noise from torch's global generators or pass it as "
            "an input, and clear .grad, which is wrong"
        )
