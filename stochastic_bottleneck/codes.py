"""Binary codes, as numpy arrays or torch tensors: packing, Hamming distance and counting metrics.

Packed codes hold eight bits per byte, the first bit highest (as `numpy.packbits`), padded with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck import _hamming
from stochastic_bottleneck._arrays import array, class_labels, sequence
from stochastic_bottleneck._checks import flag, integer

__all__ = [
    "bit_class_information",
    "bit_correlation",
    "bit_entropy",
    "compression_ratio",
    "distinct_codes",
    "effective_bits",
    "hamming_distance",
    "pack_bits",
    "share_of_ones",
    "unpack_bits",
]

Array = NDArray[Any]
ArrayT = TypeVar("ArrayT", Tensor, NDArray[Any])


def pack_bits(z: ArrayT, *, validate: bool = True) -> ArrayT:
    """Pack bits into bytes.

    Args:
        z: bits, as booleans or numbers that are exactly 0 or 1. Shape: (..., D)
        validate: raise an error for other values; False skips the check (no host sync on an accelerator).

    Returns:
        Codes, uint8, an array or a tensor as `z`, on its device. Shape: (..., ceil(D / 8))

    Raises:
        ValueError: for values other than 0 and 1, or no bits.
        TypeError: for anything but an array or a dense tensor of real numbers or booleans.

    Example:
        >>> import numpy as np
        >>> pack_bits(np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1]]))
        array([[129, 128]], dtype=uint8)
    """
    _check_array(z, "z")
    flag("validate", validate)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"z must have at least one bit in its last dimension, got shape {tuple(z.shape)}")
    if validate and isinstance(z, Tensor) and z.is_meta:
        raise ValueError("z must hold values to be read, got a meta tensor; pass validate=False")
    if validate and bool((other := (z != 0) & (z != 1)).any()):
        raise ValueError(
            f"z must hold only 0 and 1, got {z[other][0].item()}; take the mode, or threshold it first, as in z > 0.5"
        )
    if isinstance(z, np.ndarray):
        return np.packbits(z.astype(bool), axis=-1)
    padding = -z.shape[-1] % 8
    padded = torch.nn.functional.pad(z.bool().to(torch.uint8), (0, padding))
    bits = torch.unflatten(padded, -1, (-1, 8))
    # ONNX runtimes cannot sum bytes.
    return (bits * _weights(z.device)).sum(dim=-1, dtype=torch.int32).to(torch.uint8)


def unpack_bits(codes: ArrayT, dim: int) -> ArrayT:
    """Undo `pack_bits`.

    Args:
        codes: packed codes, uint8. Shape: (..., ceil(dim / 8))
        dim: number of bits.

    Returns:
        Bits, uint8. Shape: (..., dim)

    Raises:
        ValueError: for codes whose width does not fit `dim`.
        TypeError: for codes that are not uint8.

    Example:
        >>> import torch
        >>> unpack_bits(torch.tensor([129, 128], dtype=torch.uint8), dim=9)
        tensor([1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.uint8)
    """
    _check_codes(codes, "codes")
    dim = integer("dim", dim)
    if codes.shape[-1] != math.ceil(dim / 8):
        raise ValueError(f"dim={dim} needs codes {math.ceil(dim / 8)} bytes wide, got shape {tuple(codes.shape)}")
    if isinstance(codes, np.ndarray):
        return np.unpackbits(codes, axis=-1, count=dim)
    bits = codes.unsqueeze(-1).bitwise_and(_weights(codes.device)).ne(0)
    return bits.flatten(-2)[..., :dim].to(torch.uint8)


def hamming_distance(a: ArrayT, b: ArrayT) -> ArrayT:
    """Number of differing bits between packed codes, broadcast over leading dimensions.

    `hamming_distance(a[:, None], b[None])` gives all pairs, in little more memory than the result takes.

    Args:
        a: packed codes, uint8. Shape: (..., B)
        b: packed codes, uint8. Shape: (..., B)

    Returns:
        Distances in bits, int64. Shape: (...)

    Raises:
        ValueError: for codes of different widths, or leading dimensions that do not broadcast.
        TypeError: for codes that are not uint8, or an array and a tensor.

    Example:
        >>> import numpy as np
        >>> hamming_distance(np.array([3], dtype=np.uint8), np.array([5], dtype=np.uint8)).item()
        2
    """
    _check_codes(a, "a")
    _check_codes(b, "b")
    if isinstance(a, np.ndarray) is not isinstance(b, np.ndarray):
        raise TypeError(f"a and b must both be numpy arrays or both tensors, got {_kind(a)} and {_kind(b)}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must be equally wide, got {a.shape[-1]} and {b.shape[-1]} bytes")
    if any(1 != m != n != 1 for m, n in zip(a.shape[-2::-1], b.shape[-2::-1], strict=False)):
        raise ValueError(
            f"a and b must broadcast in their leading dimensions, got shapes {tuple(a.shape)} and {tuple(b.shape)}; "
            "a[:, None] and b[None] give all pairs"
        )
    if isinstance(a, np.ndarray):
        return np.asarray(_hamming.distances(a, b))
    if a.device != b.device:
        raise ValueError(f"a and b must be on one device, got {a.device} and {b.device}; move one with .to()")
    if a.device.type == "cpu" and not torch.compiler.is_compiling():
        with suppress(RuntimeError):  # tensors under torch.vmap cannot be converted
            return torch.from_numpy(_hamming.distances(a.numpy(), b.numpy()))
    found: ArrayT = _hamming.distances(a, b)
    return found


def compression_ratio(image_shape: Sequence[int], bits: int, bits_per_channel: int = 8) -> float:
    """Number of bits of a raw image divided by the number of bits of its code.

    Args:
        image_shape: such as (height, width, channels).
        bits: bits of the code.
        bits_per_channel: bits per raw value.

    Returns:
        The ratio.

    Raises:
        ValueError: for a shape or counts that are not positive.
        TypeError: for a shape or counts that are not integers.

    Example:
        >>> compression_ratio((224, 224, 3), 2048)
        588.0

    Source:
        StochCon (arXiv 2110.00552), claim of 588x.
    """
    shape = sequence(image_shape, "image_shape", "one or more positive ints", integer)
    return math.prod(shape) * integer("bits_per_channel", bits_per_channel) / integer("bits", bits)


def share_of_ones(bits: Tensor | Array) -> Array:
    """Share of ones of each bit over the images; 0.5 everywhere is a balanced code.

    Args:
        bits: 0/1 values. Shape: (N, D)

    Returns:
        Shares, float64. Shape: (D,)
    """
    shares: Array = _bit_matrix(bits).mean(axis=0)
    return shares


def bit_entropy(bits: Tensor | Array) -> Array:
    """Entropy of each bit over the images, in bits: 1 for a balanced bit, 0 for a constant one.

    Args:
        bits: 0/1 values. Shape: (N, D)

    Returns:
        Entropies, float64. Shape: (D,)
    """
    p = _bit_matrix(bits).mean(axis=0)
    return -_xlog2(p) - _xlog2(1 - p)


def bit_correlation(bits: Tensor | Array) -> float:
    """Mean absolute correlation between pairs of bits: 0 for independent bits, 1 for copies of one bit.

    Balanced bits alone do not show that capacity is used: copies of one bit are balanced too. Constant bits are
    left out.

    Args:
        bits: 0/1 values. Shape: (N, D)

    Returns:
        Mean over pairs; nan with fewer than two bits that vary.
    """
    x = _varying_bits(bits)
    if x.shape[1] < 2:
        return float("nan")
    correlation = np.abs(np.corrcoef(x, rowvar=False))
    return float(correlation[np.triu_indices_from(correlation, k=1)].mean())


def effective_bits(bits: Tensor | Array) -> float:
    """Number of uncorrelated bits that a code is worth: D if its bits are uncorrelated, 1 if all copy one of them.

    The participation ratio of the eigenvalues of the bits' correlation matrix. Constant bits do not count. A small
    sample lowers it: for N images and D independent bits it is about D / (1 + D / N).

    Args:
        bits: 0/1 values. Shape: (N, D)

    Returns:
        Number between 1 and D; 0 if no bit varies.

    Example:
        >>> import numpy as np
        >>> bits = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]])  # the last copies the first
        >>> round(effective_bits(bits), 3)
        1.8
    """
    x = _varying_bits(bits)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    images, dim = x.shape
    products = x.T @ x if dim < images else x @ x.T  # images times the correlations, or of the same norm
    return float((images * dim / np.linalg.norm(products)) ** 2) if dim else 0.0


def distinct_codes(bits: Tensor | Array) -> int:
    """Number of different codes among the images.

    Args:
        bits: 0/1 values. Shape: (N, D)

    Returns:
        Count, at most N.
    """
    packed = np.packbits(_bit_matrix(bits).astype(bool), axis=-1)
    return int(np.unique(packed, axis=0).shape[0])


def bit_class_information(bits: Tensor | Array, labels: Tensor | Array) -> Array:
    """Mutual information between each bit and the class, in bits.

    The plug-in estimate from counts, biased upward by about (classes - 1) / (2 N ln 2).

    Args:
        bits: 0/1 values. Shape: (N, D)
        labels: integer classes. Shape: (N,)

    Returns:
        Information of each bit, between 0 and 1, float64. Shape: (D,)

    Raises:
        ValueError: for labels of another length, or missing labels.
        TypeError: for labels that are not integers.
    """
    x = _bit_matrix(bits)
    y = class_labels(labels, len(x), "labels")
    information = bit_entropy(x)
    for label in np.unique(y):
        in_class = y == label
        information = information - in_class.mean() * bit_entropy(x[in_class])
    return np.maximum(information, 0.0)


def _weights(device: torch.device) -> Tensor:
    """Place values of a byte's bits, the highest first."""
    return torch.bitwise_left_shift(
        torch.ones((), dtype=torch.uint8, device=device), torch.arange(7, -1, -1, device=device)
    ).to(torch.uint8)


def _xlog2(p: Array) -> Array:
    return p * np.log2(np.where(p > 0, p, 1.0))


def _bit_matrix(bits: Tensor | Array) -> Array:
    _check_array(bits, "bits")
    x = array(bits, "bits").astype(np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"bits must have shape (N, D) with N and D at least 1, got {x.shape}; unpack codes first")
    other = x[~np.isin(x, (0.0, 1.0))]
    if len(other):
        raise ValueError(
            f"bits must hold only 0 and 1, got {other[0]}; unpack codes with unpack_bits, or threshold first"
        )
    return x


def _varying_bits(bits: Tensor | Array) -> Array:
    x = _bit_matrix(bits)
    varying: Array = x[:, x.std(axis=0) > 0]
    return varying


def _kind(x: object) -> str:
    return type(x).__name__


def _check_array(x: Any, name: str) -> None:
    if not isinstance(x, (Tensor, np.ndarray)):
        raise TypeError(f"{name} must be a numpy array or a tensor, got {_kind(x)}")
    if isinstance(x, np.ndarray):
        valid, kind = x.dtype.kind in "biuf", f"an array of dtype {x.dtype}"
    else:
        valid = x.layout == torch.strided and not x.is_nested and not x.is_complex()
        kind = "a nested tensor" if x.is_nested else f"a {x.layout} tensor of {x.dtype}".replace("torch.", "")
    if not valid:
        raise TypeError(f"{name} must be a dense array or tensor of real numbers or booleans, got {kind}")


def _check_codes(x: Tensor | Array, name: str) -> None:
    _check_array(x, name)
    if x.dtype not in (torch.uint8, np.dtype(np.uint8)):
        raise TypeError(f"{name} must be packed codes of dtype uint8, got {x.dtype}; pack bits with pack_bits")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one byte in its last dimension, got shape {tuple(x.shape)}")
