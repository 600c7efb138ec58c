"""Argument checks of functions and modules. They read no tensor's values, so they never wait for a device."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

MIN_TEMPERATURE = 0.01
"""The lowest InfoNCE temperature for which finite results are guaranteed."""
MIN_CONCRETE = 1e-6
"""The lowest Concrete temperature: a logit divided by it, and its gradient, still fit in float32."""


def real(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """Return `value` as a float; numpy's numbers are accepted, bools are not.

    Raises:
        TypeError: for anything but a real number.
        ValueError: for a number outside the bounds, or not finite.
    """
    # A tuple of types, here and elsewhere: torch 2.4 cannot compile a union.
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(_must_be(name, _finite(above, least, most, below), value, hint))
    try:
        number = float(value)
    except OverflowError:  # an int larger than any float
        number = math.inf
    inside = (
        (above is None or number > above)
        and (least is None or number >= least)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not (inside and -math.inf < number < math.inf):
        raise ValueError(_must_be(name, _finite(above, least, most, below), value, hint))
    return number


def integer(name: str, value: object, least: int = 1, most: int | None = None, hint: str = "") -> int:
    """Return `value` as an int; numpy's integers are accepted, bools are not.

    Raises:
        TypeError: for anything but a number.
        ValueError: for an integer outside the bounds, or another number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(_must_be(name, _whole(least, most), value, hint))
    if not isinstance(value, (int, Integral)):
        raise ValueError(_must_be(name, _whole(least, most), value, hint))
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ValueError(_must_be(name, _whole(least, most), value, hint))
    return number


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False; a string such as "False" would count as true.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise an error unless `value` is one of the choices.

    Raises:
        TypeError: for anything but a string.
        ValueError: for another string.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = (f'"{x}"' for x in choices)
        message = _must_be(name, f"{', '.join(others)} or {last}" if others else last, value)
        raise ValueError(message) if isinstance(value, str) else TypeError(message)


def device_of(device: object, default: torch.device) -> torch.device:
    """The given device if it exists, or the default for None."""
    if device is None:
        return default
    message = f'device must be available, such as "cpu" or "cuda:0", or None, got {device!r}'
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise TypeError(message)
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's errors differ by kind of device
        raise ValueError(f"{message} ({error})") from error


def seed_of(seed: object) -> int:
    """Return a seed in the range that torch, numpy and scikit-learn accept."""
    return integer("seed", seed, least=0, most=2**32 - 1)


def _must_be(name: str, rule: str, value: object, hint: str = "") -> str:
    return f"{name} must be {rule}, got {value!r}" + (f"; {hint}" if hint else "")


def _finite(above: float | None, least: float | None, most: float | None, below: float | None) -> str:
    bounds = {"above": above, "of at least": least, "of at most": most, "below": below}
    words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    return " ".join(["a finite number", " and ".join(words)]).strip()


def _whole(least: int, most: int | None) -> str:
    words = "a positive int" if least == 1 else f"an int of at least {least}"
    return words if most is None else f"{words} and at most {most}"


def concrete_temperature(value: object) -> float:
    """Return a Concrete temperature, at least `MIN_CONCRETE`, as a float."""
    return real("temperature", value, least=MIN_CONCRETE, hint="0.5 to 1 is usual")


def check_concrete(temperature: Tensor | float, logits: Tensor) -> None:
    """Check a Concrete temperature: a number of at least `MIN_CONCRETE`, or a tensor that fits the logits.

    A tensor's values are not read (no host sync).
    """
    if not isinstance(temperature, Tensor):
        concrete_temperature(temperature)
        return
    check_floating(temperature, "temperature")
    _check_fit("temperature", temperature, logits, "logits")


def _check_fit(name: str, x: Tensor, other: Tensor, other_name: str) -> None:
    """Check that a tensor broadcasts with another one on the same device."""
    for i in range(1, 1 + min(x.ndim, other.ndim)):
        if x.shape[-i] != other.shape[-i] and x.shape[-i] != 1 and other.shape[-i] != 1:
            raise ValueError(f"{name} must broadcast with {other_name}, {tuple(other.shape)}, got {tuple(x.shape)}")
    _check_device(name, x, other, other_name)


def _check_device(name: str, x: Tensor, other: Tensor, other_name: str) -> None:
    if x.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {x.device}; move it with .to()"
        )


def _check_pair(x: Tensor, x_prime: Tensor, name: str, name_prime: str) -> None:
    """Check that two tensors share a dtype and a device."""
    if x.dtype != x_prime.dtype:
        raise TypeError(
            f"{name} and {name_prime} must have one dtype, got {x.dtype} and {x_prime.dtype}; convert one with .to()"
        )
    if x.device != x_prime.device:
        raise ValueError(
            f"{name} and {name_prime} must be on one device, got {x.device} and {x_prime.device}; move one with .to()"
        )


def check_info_nce_options(temperature: float, reduction: str, block_size: int | None) -> None:
    """Check the options of the loss."""
    real("temperature", temperature, least=MIN_TEMPERATURE, hint="0.1 to 0.5 is usual")
    choice("reduction", reduction, ("mean", "none"))
    if block_size is not None:
        integer("block_size", block_size, hint="None chooses by size")


def check_temperature_tensor(temperature: Tensor, min_temperature: float, v: Tensor) -> None:
    """Check a temperature that is a tensor, and its lower bound."""
    real("min_temperature", min_temperature, least=MIN_TEMPERATURE)
    check_floating(temperature, "temperature")
    if temperature.ndim:
        raise ValueError(
            f"temperature must be a number or have shape (), got {tuple(temperature.shape)}; index it, as in "
            "temperature[0]"
        )
    _check_device("temperature", temperature, v, "v")


def check_floating(x: Tensor, name: str) -> None:
    """Check that `x` is a dense tensor of real floating point numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
    if x.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; convert it with torch.nested.to_padded_tensor"
        )
    if x.layout != torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {kind} one; convert it with {name}.to_dense()")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating point tensor, got {x.dtype}; convert it with {name}.float()")


def check_images(x: Tensor, name: str) -> None:
    """Check that `x` is a batch of images in floating point."""
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        raise TypeError(
            f"{name} must hold images in floating point, got torch.uint8; scale them first, as in {name}.float() / 255"
        )
    check_floating(x, name)
    if x.ndim < 2:
        raise ValueError(f"{name} must hold a batch of images, (N, C, H, W), got shape {tuple(x.shape)}")
    if 0 in x.shape:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; skip empty batches")


def check_image_pair(x: Tensor, x_prime: Tensor) -> None:
    """Check two views of the same images; their heights and widths may differ."""
    check_images(x, "x")
    check_images(x_prime, "x_prime")
    if x.shape[0] != x_prime.shape[0]:
        raise ValueError(
            f"x and x_prime must hold two views of the same images, got {x.shape[0]} and {x_prime.shape[0]} images"
        )
    _check_pair(x, x_prime, "x", "x_prime")


def explain_mismatch(name: str, x: Tensor, module: nn.Module, error: Exception) -> None:
    """Explain torch's error if the input has another dtype or device than the module's weights.

    Raises:
        TypeError: for another dtype.
        ValueError: for another device.
    """
    weight = next((p for p in module.parameters() if p.dtype.is_floating_point), None)
    if weight is None or not re.search("type|device", str(error)):
        return
    if x.device != weight.device:
        raise ValueError(
            f"{name} must be on the module's device, {weight.device}, got {x.device}; move one with .to()"
        ) from error
    if x.dtype != weight.dtype:
        raise TypeError(
            f"{name} must have the dtype of the module's weights, {weight.dtype}, got {x.dtype}; convert it with "
            f"{name}.to({weight.dtype})"
        ) from error


def check_noise(parameter: Tensor, noise: Tensor, name: str) -> None:
    """Check that noise has the shape of the parameter it is added to."""
    check_floating(noise, "noise")
    if noise.shape != parameter.shape:
        raise ValueError(f"noise must have the shape of {name}, {tuple(parameter.shape)}, got {tuple(noise.shape)}")
    _check_device("noise", noise, parameter, name)


def check_value(z: Tensor, parameter: Tensor, name: str) -> None:
    """Check that values have the distribution's dimensions; leading sample dimensions are allowed."""
    check_floating(z, "z")
    if z.shape[-1:] != parameter.shape[-1:]:
        raise ValueError(f"z must end in the last dimension of {name}, {tuple(parameter.shape)}, got {tuple(z.shape)}")
    _check_fit("z", z, parameter, name)


def check_gaussian(mean: Tensor, log_std: Tensor) -> None:
    """Check that the scale is one per dimension or one per sample."""
    check_floating(mean, "mean")
    check_floating(log_std, "log_std")
    one_per_sample = (*mean.shape[:-1], 1)
    if log_std.shape != mean.shape and tuple(log_std.shape) != one_per_sample:
        raise ValueError(
            f"log_std must have the shape of mean, {tuple(mean.shape)}, or {one_per_sample}, got {tuple(log_std.shape)}"
        )
    _check_fit("log_std", log_std, mean, "mean")


def check_views(v: Tensor, v_prime: Tensor, name: str = "v", name_prime: str = "v_prime") -> None:
    """Check that views have one shape, dtype and device."""
    for x, x_name in ((v, name), (v_prime, name_prime)):
        check_floating(x, x_name)
    if v.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (N, D) or (K, N, D), got {tuple(v.shape)}; flatten features to one row per image"
        )
    if v.shape != v_prime.shape:
        raise ValueError(
            f"{name} and {name_prime} must have one shape, got {tuple(v.shape)} and {tuple(v_prime.shape)}; "
            "row i of both must come from image i"
        )
    if 0 in v.shape:
        raise ValueError(
            f"{name} is empty, shape {tuple(v.shape)}; skip empty batches (drop_last=True in the data loader does)"
        )
    _check_pair(v, v_prime, name, name_prime)


def check_towers(queries: Tensor, keys: Tensor, negatives: Tensor | None, symmetric: bool) -> None:
    """Check rows of two towers, and more negatives for the queries."""
    check_views(queries, keys, "queries", "keys")
    if negatives is None:
        return
    if symmetric:
        raise ValueError(
            "negatives must be None in the symmetric loss, which has none for the keys, got a tensor; "
            "pass symmetric=False to the loss"
        )
    check_floating(negatives, "negatives")
    shape, wanted = tuple(negatives.shape), (*keys.shape[:-2], "M", keys.shape[-1])
    if negatives.ndim != keys.ndim or (*shape[:-2], "M", shape[-1]) != wanted:
        raise ValueError(f"negatives must have shape ({', '.join(map(str, wanted))}), as keys, got {shape}")
    _check_pair(negatives, keys, "negatives", "keys")


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_labels(labels: Tensor, v: Tensor) -> None:
    """Check that labels are one integer for each row of `v`, on its device."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"labels must be a tensor of one integer per image, got {type(labels).__name__}; convert them with "
            "torch.as_tensor"
        )
    if labels.layout != torch.strided or labels.is_nested or labels.dtype not in _INTEGERS:
        kind = "nested" if labels.is_nested else f"{labels.layout} {labels.dtype}"
        raise TypeError(f"labels must be a dense tensor of integers, got a {kind} one; convert it with labels.long()")
    if labels.ndim != 1 or len(labels) != v.shape[-2]:
        raise ValueError(f"labels must have shape ({v.shape[-2]},), one per image, got {tuple(labels.shape)}")
    _check_device("labels", labels, v, "v")
