"""Stateless functions behind every module: they check arguments and call the kernels.

Statistics are computed in float32 (float64 for float64 inputs), also under autocast; samples are returned in the
dtype of their parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stochastic_bottleneck import _checks
from stochastic_bottleneck._noise import gaussian_noise, logistic_noise, normal_noise, relaxed_noise
from stochastic_bottleneck.kernels import bernoulli, contrastive, exp_sums, gaussian, nt_xent, nt_xent_op
from stochastic_bottleneck.kernels.elementwise import without_autocast
from stochastic_bottleneck.kernels.nt_xent_dispatch import has_fast_bfloat16

__all__ = [
    "bernoulli_entropy",
    "bernoulli_kl",
    "bernoulli_log_prob",
    "fast_precision",
    "gaussian_entropy",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_rsample",
    "gaussian_rsample_kl",
    "info_nce",
    "logistic_noise",
    "normal_noise",
    "relaxed_bernoulli_log_prob",
    "relaxed_bernoulli_rsample",
    "relaxed_bernoulli_rsample_kl",
]


def info_nce(
    v: Tensor,
    v_prime: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    reduction: Literal["mean", "none"] = "mean",
    block_size: int | None = None,
    min_temperature: float = _checks.MIN_TEMPERATURE,
) -> Tensor:
    r"""NT-Xent over 2N views, the self pair masked.

    .. math::
        \ell_i = -\log \frac{\exp(\mathrm{sim}(v_i, v_{p(i)}) / \tau)}
        {\sum_{k \neq i} \exp(\mathrm{sim}(v_i, v_k) / \tau)}

    where `sim` is the cosine similarity and :math:`p(i)` the same image's other view. Rows need not be
    normalised. A zero row has similarity 0 with every row, and a finite gradient.

    Statistics are float32 or better. For 512 or more images at temperatures of 0.05 or more, bfloat16 rows are
    multiplied in bfloat16 on hardware that is faster at it; the error of a loss is at most
    :math:`2^{-9} (3 / \tau + 1)`. So are float16 rows in TF32, on GPUs with the Triton kernels: :math:`2^{-9} / \tau`.

    Args:
        v: first views. Shape: (N, D), or (K, N, D) for K independent losses over the same images.
        v_prime: second views, the same shape, dtype and device as `v`.
        temperature: tau, at least 0.01; or a tensor on the device of `v`, which may require a gradient. Shape: ()
        reduction: "mean" over all rows, or "none".
        block_size: largest number of rows and of columns in a tile of pairs; saves memory. None chooses by batch
            size: the matrix of all pairs for small batches, otherwise tiles that fit the processor's cache. Memory
            does not grow with N x N.
        min_temperature: lower bound of a temperature that is a tensor: smaller values, which are not read on a GPU,
            count as this one. Below 0.025, exponentials are float64, which GPUs compute several times slower.

    Returns:
        Loss in nats, float32 or float64. Shape: () for "mean"; (2N,) or (K, 2N) for "none", the rows of `v`
        first.

    Raises:
        ValueError: for shapes that differ or are empty, a number below 0.01 as temperature, an unknown reduction.
        TypeError: for dtypes that differ or are not floating point.

    Example:
        >>> import math, torch
        >>> parallel = torch.ones(4, 8)
        >>> loss = info_nce(parallel, parallel)      # all views equal: log(2N - 1)
        >>> math.isclose(loss.item(), math.log(7), rel_tol=1e-6)
        True

    Source:
        SimCLR (arXiv 2002.05709), equation 1; StochCon (arXiv 2110.00552) uses it unchanged.
    """
    _checks.check_views(v, v_prime)
    if isinstance(temperature, Tensor):
        _checks.check_temperature_tensor(temperature, min_temperature, v)
        _checks.check_info_nce_options(min_temperature, reduction, block_size)
        with without_autocast(v.device.type):
            options = exp_sums.make_options(temperature, min_temperature, v, block_size)
            losses = contrastive.two_view_losses(v, v_prime, options)
        return losses.mean() if reduction == "mean" else losses
    _checks.check_info_nce_options(temperature, reduction, block_size)
    temperature, block_size = float(temperature), None if block_size is None else int(block_size)
    # Under autocast, products of rows would be half precision and lose the small differences between logits.
    with without_autocast(v.device.type):
        if not _use_tiles(v.shape[-2], block_size):
            return nt_xent.plain_nt_xent(v, v_prime, temperature, reduction)
        losses = nt_xent_op.blockwise_nt_xent(v, v_prime, temperature, block_size)
    return losses.mean() if reduction == "mean" else losses


def relaxed_bernoulli_rsample(
    logits: Tensor, temperature: Tensor | float, hard: bool = False, noise: Tensor | None = None
) -> Tensor:
    """Binary Concrete sample, differentiable in the logits: `sigmoid((logits + noise) / temperature)`.

    Args:
        logits: log odds of a one. Shape: (...)
        temperature: Concrete temperature, at least 1e-6. Lower ones give samples closer to bits and noisier
            gradients.
        hard: return exact bits in the forward pass and use the relaxed gradient (straight-through).
        noise: standard logistic noise; sampled if None. Shape: (...)

    Returns:
        Samples in [0, 1], in the dtype of `logits`. Shape: (...)

    Raises:
        ValueError: for a temperature below 1e-6, or noise of another shape.
        TypeError: for logits that are not floating point.

    Example:
        >>> import torch
        >>> logits = torch.tensor([-2.0, 0.0, 2.0])
        >>> relaxed_bernoulli_rsample(logits, 1.0, noise=torch.zeros(3))
        tensor([0.1192, 0.5000, 0.8808])
        >>> relaxed_bernoulli_rsample(logits, 1.0, hard=True, noise=torch.zeros(3))
        tensor([0., 0., 1.])

    Source:
        Maddison et al., The Concrete Distribution (arXiv 1611.00712), equation 4.
    """
    noise = relaxed_noise(logits, temperature, hard, noise)
    return bernoulli.relaxed_rsample(logits, temperature, hard, noise)


def relaxed_bernoulli_rsample_kl(
    logits: Tensor, temperature: Tensor | float, hard: bool = False, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`relaxed_bernoulli_rsample` and `bernoulli_kl` in one pass, faster than both.

    Args:
        logits: log odds of a one. Shape: (...)
        temperature: Concrete temperature, at least 1e-6.
        hard: return exact bits in the forward pass and use the relaxed gradient (straight-through).
        noise: standard logistic noise; sampled if None. Shape: (...)

    Returns:
        Samples in the dtype of `logits`, and the divergence of each bit from a fair coin in nats, float32 or
        float64. Two tensors of Shape: (...)

    Raises:
        ValueError: for a temperature below 1e-6, or noise of another shape.
        TypeError: for logits that are not floating point.

    Example:
        >>> import torch
        >>> relaxed_bernoulli_rsample_kl(torch.tensor([0.0, 1e4]), 1.0, noise=torch.zeros(2))
        (tensor([0.5000, 1.0000]), tensor([0.0000, 0.6931]))
    """
    noise = relaxed_noise(logits, temperature, hard, noise)
    return bernoulli.relaxed_rsample_kl(logits, temperature, hard, noise)


def relaxed_bernoulli_log_prob(logits: Tensor, temperature: Tensor | float, z: Tensor) -> Tensor:
    """Log density of relaxed samples under the Binary Concrete distribution.

    Args:
        logits: log odds of a one. Shape: (...)
        temperature: Concrete temperature, at least 1e-6.
        z: relaxed samples, clamped to the smallest normal number of their dtype and 1 - eps, as torch.distributions
            does. Shape: (...)

    Returns:
        Log densities in nats, finite for finite logits; NaN if z is. Shape: (...)

    Source:
        Maddison et al. (arXiv 1611.00712), appendix C.3.2.
    """
    _checks.check_floating(logits, "logits")
    _checks.check_concrete(temperature, logits)
    _checks.check_value(z, logits, "logits")
    return bernoulli.relaxed_log_prob(logits, temperature, z)


def bernoulli_kl(logits: Tensor) -> Tensor:
    """Divergence of each bit from a fair coin, `KL(Bernoulli(sigmoid(logits)) || Bernoulli(0.5))`.

    Args:
        logits: log odds of a one. Shape: (...)

    Returns:
        Divergence in nats, between 0 and log 2, exact to rounding for any logits, also infinite ones.
        Shape: (...)

    Example:
        >>> import torch
        >>> bernoulli_kl(torch.tensor([0.0, -1e4, 1e4]))
        tensor([0.0000, 0.6931, 0.6931])
    """
    _checks.check_floating(logits, "logits")
    return bernoulli.kl(logits)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of each bit.

    Args:
        logits: log odds of a one. Shape: (...)

    Returns:
        Entropy in nats, between 0 and log 2. Shape: (...)
    """
    _checks.check_floating(logits, "logits")
    return bernoulli.entropy(logits)


def bernoulli_log_prob(logits: Tensor, z: Tensor) -> Tensor:
    """Log mass of bits, linear in `z` between 0 and 1.

    Args:
        logits: log odds of a one. Shape: (...)
        z: bits, of any real dtype. Shape: (...)

    Returns:
        Log mass in nats; for an infinite logit, 0 for the certain bit and -inf for the other. Shape: (...)
    """
    _checks.check_floating(logits, "logits")
    if isinstance(z, Tensor) and not (z.is_floating_point() or z.is_complex()):
        z = z.to(logits.dtype)
    _checks.check_value(z, logits, "logits")
    return bernoulli.log_prob(logits, z)


def gaussian_rsample(mean: Tensor, log_std: Tensor, noise: Tensor | None = None) -> Tensor:
    """Reparameterized Gaussian sample, `mean + exp(log_std) * noise`.

    Args:
        mean: Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D), or (..., 1) for one per sample
        noise: standard normal noise; sampled if None. Shape: (..., D)

    Returns:
        Samples in the dtype of `mean`. Shape: (..., D)

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for a mean that is not floating point.

    Source:
        Kingma and Welling (arXiv 1312.6114), section 2.4.
    """
    return gaussian.rsample(mean, log_std, gaussian_noise(mean, log_std, noise))


def gaussian_rsample_kl(mean: Tensor, log_std: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`gaussian_rsample` and `gaussian_kl` in one pass, faster than both.

    Args:
        mean: Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D), or (..., 1) for one per sample
        noise: standard normal noise; sampled if None. Shape: (..., D)

    Returns:
        Samples in the dtype of `mean`, and the divergence of each dimension from the standard normal in nats,
        float32 or float64. Two tensors of Shape: (..., D)

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for a mean that is not floating point.
    """
    return gaussian.rsample_kl(mean, log_std, gaussian_noise(mean, log_std, noise))


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """Divergence of each dimension from the standard normal, `KL(N(mean, std^2) || N(0, 1))`.

    Args:
        mean: Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D) or (..., 1)

    Returns:
        Divergence in nats, exact to rounding: 0 at the prior, infinite for a point mass. Shape: (..., D)

    Example:
        >>> import torch
        >>> gaussian_kl(torch.tensor([0.0, 1.0]), torch.zeros(2))
        tensor([0.0000, 0.5000])
    """
    _checks.check_gaussian(mean, log_std)
    return gaussian.kl(mean, log_std)


def gaussian_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Differential entropy of each dimension.

    Args:
        mean: only its shape is used. Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D) or (..., 1)

    Returns:
        Entropy in nats. Shape: (..., D)
    """
    _checks.check_gaussian(mean, log_std)
    return gaussian.entropy(mean, log_std)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """Log density of each dimension.

    Args:
        mean: Shape: (..., D)
        log_std: log standard deviation. Shape: (..., D) or (..., 1)
        z: points at which to evaluate the density. Shape: (..., D)

    Returns:
        Log density in nats. Shape: (..., D)
    """
    _checks.check_gaussian(mean, log_std)
    _checks.check_value(z, mean, "mean")
    return gaussian.log_prob(mean, log_std, z)


def fast_precision(device: torch.device | str | None = None) -> Literal["bf16-mixed", "32-true"]:
    """Precision to train in, by Lightning's names: bfloat16 where the hardware is faster at it, else float32.

    Args:
        device: to train on; None for the CPU. Without bfloat16 units it would be emulated, which is slow.

    Returns:
        "bf16-mixed" or "32-true".
    """
    return "bf16-mixed" if has_fast_bfloat16(_checks.device_of(device, torch.device("cpu"))) else "32-true"


def _use_tiles(n_images: int, block_size: int | None) -> bool:
    """Whether tiles are faster than the matrix of all pairs."""
    # Compiled, the matrix is one fused kernel, and all common batch sizes share one graph.
    return block_size is not None or n_images > (512 if torch.compiler.is_compiling() else 256)
