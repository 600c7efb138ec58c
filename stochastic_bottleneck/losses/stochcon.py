"""`StochConLoss`, a weighted sum of the terms that train a latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._arrays import sequence
from stochastic_bottleneck.kernels.elementwise import without_autocast
from stochastic_bottleneck.losses.info_nce import InfoNCELoss

__all__ = ["StochConLoss"]


class StochConLoss(nn.Module):
    r"""Weighted sum of the terms that train a latent; `terms` names each for logging.

    For two views of each image, with the head's outputs v of the deterministic and v' of the stochastic branch:

    - `stochastic`: InfoNCE(v, v'), Algorithm 1.
    - `deterministic`: InfoNCE between both views' v, SimCLR's loss.
    - `codes`: InfoNCE between both views' codes, which is what a search by them compares: the bits as -1 and 1, with
      the gradient of tanh(logits / 2) (straight-through), or a Gaussian's means.
    - `covariance`: squared correlations of the logits or means between different dimensions, summed and divided by
      D; it decorrelates the dimensions.
    - `coding_rate`: -log det(I + D / N sum of z z^T) / D, in nats, of N normalized rows z of logits or means; it is low
      where they spread evenly over all dimensions.
    - `kl`: KL divergence of the posterior from its prior, in nats.

    Training and evaluation mode are the same. A term of weight 0 is not computed.

    Args:
        temperature: of InfoNCE between the head's outputs, at least 0.01.
        stochastic: weight of the term, at least 0; likewise the five below.
        deterministic: weight. It and `codes` need both directions: `StochConWrapper(symmetric=True)`.
        codes: weight.
        covariance: weight.
        coding_rate: weight.
        kl: weight.
        code_temperature: of InfoNCE between codes.
        prefixes: also compare codes cut to these sizes, with equal weights, so that one model is usable at several
            sizes; integers below D.
        gather_distributed: gather the rows of all processes for the InfoNCE terms, as in `InfoNCELoss`. `covariance`
            and `coding_rate` are those of each process's batch.
        group: process group to gather from, as in `InfoNCELoss`.

    Raises:
        ValueError: for a value out of its range, no positive weight, or an output that lacks what a term needs.
        TypeError: for an output that is neither a `StochConOutput` nor tensors and a posterior.

    Example:
        >>> import torch
        >>> from stochastic_bottleneck import StochConWrapper
        >>> model = StochConWrapper(torch.nn.Flatten(), dim=16, feature_dim=48, symmetric=True)
        >>> output = model(torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4))
        >>> loss = StochConLoss()
        >>> list(loss.terms(output)), loss(output).shape
        (['stochastic', 'deterministic', 'codes'], torch.Size([]))

    Source:
        StochCon (arXiv 2110.00552), Algorithm 1; SimCLR (arXiv 2002.05709), equation 1; InfoNCE on codes: CIBHash
        (arXiv 2109.10021); covariance: VICReg (arXiv 2105.04906), equation 4, of standardised values; coding
        rate: MCR^2 (arXiv 2006.08558), with a squared error of 1; prefixes: Matryoshka representations
        (arXiv 2205.13147).
    """

    def __init__(
        self,
        temperature: float = 0.2,
        *,
        stochastic: float = 1.0,
        deterministic: float = 1.0,
        codes: float = 1.0,
        covariance: float = 0.0,
        coding_rate: float = 0.0,
        kl: float = 0.0,
        code_temperature: float = 0.3,
        prefixes: Sequence[int] = (),
        gather_distributed: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        given = {"stochastic": stochastic, "deterministic": deterministic, "codes": codes}
        given |= {"covariance": covariance, "coding_rate": coding_rate, "kl": kl}
        self.weights = {name: _checks.real(name, weight, least=0) for name, weight in given.items()}
        if not any(self.weights.values()):
            raise ValueError(
                "stochastic, deterministic, codes, covariance, coding_rate or kl must be above 0, got 0 for all of them"
            )
        self.prefixes = sequence(
            prefixes, "prefixes", "some positive ints, such as (32, 64)", _checks.integer, empty=True
        )
        _checks.real("code_temperature", code_temperature, least=_checks.MIN_TEMPERATURE, hint="0.1 to 0.5 is usual")
        self.info_nce = InfoNCELoss(temperature, gather_distributed=gather_distributed, group=group)
        self.code_info_nce = InfoNCELoss(code_temperature, gather_distributed=gather_distributed, group=group)

    def forward(self, output: Any, v_prime: Tensor | None = None, posterior: Any = None) -> Tensor:
        """Weighted sum of the terms.

        Args:
            output: a `StochConOutput`; or v, followed by `v_prime` and `posterior`.
            v_prime: outputs of the stochastic branch, shaped as v: (N, P), or (2, N, P) for both directions, the
                first of which has the second views as the stochastic ones.
            posterior: distribution of the stochastic views. Shape: (N, D), or (2, N, D)

        Returns:
            Loss. Shape: ()
        """
        terms = self.terms(output, v_prime, posterior)
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def terms(self, output: Any, v_prime: Tensor | None = None, posterior: Any = None) -> dict[str, Tensor]:
        """Each term by its name, without its weight; those of weight 0 are left out.

        Args:
            output: as in `forward`, and so are `v_prime` and `posterior`.
            v_prime: see `forward`.
            posterior: see `forward`.

        Returns:
            Terms; all but `covariance` are in nats. Shapes: ()
        """
        v = output
        if not isinstance(output, Tensor):
            try:
                v, v_prime, posterior = output.v, output.v_prime, output.posterior
            except AttributeError as error:
                raise TypeError(
                    f"output must be a StochConOutput, or a tensor followed by v_prime and posterior, got {output!r}"
                ) from error
        if not isinstance(v_prime, Tensor) or not hasattr(posterior, "kl"):
            raise TypeError(
                "v_prime and posterior must be a tensor and a posterior after a tensor of v, got "
                f"{type(v_prime).__name__} and {type(posterior).__name__}"
            )
        weight, terms = self.weights, {}
        location = posterior[0]  # logits or means
        if location.dtype != torch.float64:
            location = location.float()
        both = v.ndim == 3 and location.ndim == 3
        if not both and (weight["deterministic"] or weight["codes"]):
            raise ValueError(
                "output must have both directions for the terms deterministic and codes, got shapes "
                f"{tuple(v.shape)} of v and {tuple(location.shape)} of the posterior; set symmetric=True in the model"
            )
        if weight["stochastic"]:
            terms["stochastic"] = self.info_nce(v, v_prime)
        if weight["deterministic"]:
            terms["deterministic"] = self.info_nce(v[0], v[len(v) // 2])
        if weight["codes"]:
            codes = _signs(location) if hasattr(posterior, "logits") else location
            terms["codes"] = torch.stack(
                [self.code_info_nce(*codes[..., :d].contiguous()) for d in self._sizes(codes)]
            ).mean()
        with without_autocast(location.device.type):
            for name, penalty in (("covariance", _correlation), ("coding_rate", _coding_rate)):
                if weight[name]:
                    terms[name] = penalty(location.flatten(0, -2))
        if weight["kl"]:
            terms["kl"] = posterior.kl().mean()
        return terms

    def _sizes(self, codes: Tensor) -> tuple[int, ...]:
        if any(d >= codes.shape[-1] for d in self.prefixes):
            raise ValueError(
                f"prefixes must be below the {codes.shape[-1]} dimensions of the latent, got {self.prefixes}"
            )
        return (*self.prefixes, codes.shape[-1])

    def extra_repr(self) -> str:
        """Weights and prefixes, for `repr`."""
        return ", ".join(f"{name}={value}" for name, value in {**self.weights, "prefixes": self.prefixes}.items())


def _signs(logits: Tensor) -> Tensor:
    """Bits as -1 and 1, with the gradient of their mean under the posterior, tanh(logits / 2)."""
    mean = torch.tanh(logits / 2)
    return mean + (torch.where(logits > 0, 1.0, -1.0) - mean).detach()


def _correlation(x: Tensor) -> Tensor:
    """Squared correlations between different columns, summed and divided by their number. Shape: (N, D) to ()."""
    x = x - x.mean(dim=0)
    x = x / (x.square().mean(dim=0) + 1e-6).sqrt()
    c = x.mT @ x / len(x)
    return (c.square().sum() - c.diagonal().square().sum()) / c.shape[-1]


def _coding_rate(x: Tensor) -> Tensor:
    """Negative coding rate of the normalized rows, per dimension. Shape: (N, D) to ()."""
    z, (n, d) = nn.functional.normalize(x), x.shape
    gram = torch.eye(d, dtype=z.dtype, device=z.device) + z.mT @ z * (d / n)
    log_det: Tensor = 2 * torch.linalg.cholesky_ex(gram).L.diagonal().log().sum()
    return -log_det / d
