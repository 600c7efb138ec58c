"""What functions and modules refuse, each in one place; no tensor's values are read, so nothing waits for a device."""

from __future__ import annotations

from torch import Tensor

MIN_TEMPERATURE = 0.01
"""The lowest InfoNCE temperature for which finite results are promised."""


def check_temperature(temperature: Tensor | float) -> None:
    """Refuse a Concrete temperature that is not positive; a tensor's value is not read (no host sync)."""
    if not isinstance(temperature, Tensor) and not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature must be a finite number above 0, got {temperature!r}; 0.5 to 1 is usual"
        )


def check_info_nce_options(temperature: float, reduction: str, block_size: int | None) -> None:
    """Refuse options of the loss that lie outside their range."""
    # Tuples of types, here as everywhere: torch 2.4 cannot compile a union.
    if not isinstance(temperature, (int, float)) or not MIN_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be a finite number of at least {MIN_TEMPERATURE}, got {temperature!r}; "
            "0.1 to 0.5 is usual"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
    if block_size is not None and (not isinstance(block_size, int) or block_size < 1):
        raise ValueError(f"block_size must be a positive int or None, got {block_size!r}")


def check_width(name: str, value: object) -> None:
    """Refuse a number of dimensions that is not a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")


def check_floating(x: Tensor, name: str) -> None:
    """Refuse what is no tensor, integers and booleans."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating point tensor, got {x.dtype}; convert it with {name}.float()"
        )


def check_noise(parameter: Tensor, noise: Tensor, name: str) -> None:
    """Refuse noise of another shape than the parameter it is added to."""
    if noise.shape != parameter.shape:
        raise ValueError(
            f"noise must have the shape of {name}, {tuple(parameter.shape)}, got {tuple(noise.shape)}"
        )
    if noise.device != parameter.device:
        raise ValueError(
            f"noise must be on the device of {name}, {parameter.device}, got {noise.device}; move it with .to()"
        )


def check_value(z: Tensor, parameter: Tensor, name: str) -> None:
    """Refuse values whose dimensions are not the distribution's; several samples at once may lead."""
    if z.shape[-1:] != parameter.shape[-1:]:
        raise ValueError(
            f"z must end in the last dimension of {name}, {tuple(parameter.shape)}, got {tuple(z.shape)}"
        )


def check_gaussian(mean: Tensor, log_std: Tensor) -> None:
    """Refuse a scale that is neither one a dimension nor one a sample."""
    check_floating(mean, "mean")
    check_floating(log_std, "log_std")
    one_a_sample = (*mean.shape[:-1], 1)
    if log_std.shape != mean.shape and tuple(log_std.shape) != one_a_sample:
        raise ValueError(
            f"log_std must have the shape of mean, {tuple(mean.shape)}, or {one_a_sample}, "
            f"got {tuple(log_std.shape)}"
        )


def check_views(v: Tensor, v_prime: Tensor, name: str = "v", name_prime: str = "v_prime") -> None:
    """Refuse views that do not pair up row by row."""
    for x, x_name in ((v, name), (v_prime, name_prime)):
        check_floating(x, x_name)
    if v.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (N, D) or (K, N, D), got {tuple(v.shape)}; "
            "flatten features to one row an image"
        )
    if v.shape != v_prime.shape:
        raise ValueError(
            f"{name} and {name_prime} must have one shape, got {tuple(v.shape)} and {tuple(v_prime.shape)}; "
            "row i of both must come from image i"
        )
    if 0 in v.shape:
        raise ValueError(
            f"{name} is empty, shape {tuple(v.shape)}; "
            "skip empty batches (drop_last=True in the data loader does)"
        )
    if v.dtype != v_prime.dtype:
        raise TypeError(f"{name} and {name_prime} must have one dtype, got {v.dtype} and {v_prime.dtype}")
    if v.device != v_prime.device:
        raise ValueError(
            f"{name} and {name_prime} must be on one device, got {v.device} and {v_prime.device}; "
            "move one with .to()"
        )


def check_columns(v: Tensor, columns: tuple[Tensor, Tensor], offset: int) -> None:
    """Refuse a global batch that `v` is not a part of."""
    check_views(*columns, "columns[0]", "columns[1]")
    c = columns[0]
    if c.dtype != v.dtype or c.device != v.device:
        raise ValueError(
            f"columns must have v's dtype and device, {v.dtype} on {v.device}, got {c.dtype} on {c.device}"
        )
    if c.ndim != v.ndim or c.shape[-1] != v.shape[-1] or c.shape[:-2] != v.shape[:-2]:
        raise ValueError(
            f"columns must match v in all but the rows, got {tuple(c.shape)} for v {tuple(v.shape)}"
        )
    if not 0 <= offset <= c.shape[-2] - v.shape[-2]:
        raise ValueError(
            f"offset must place v's {v.shape[-2]} rows inside the {c.shape[-2]} columns, got {offset}"
        )
