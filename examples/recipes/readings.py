"""What one training step says of itself: loss, gradient and latent, as numbers of all processes together."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from stochastic_bottleneck import BernoulliPosterior, GaussianPosterior

Row = dict[str, float]


@torch.no_grad()
def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm over the gradients of all parameters, still on their device. Shape: ()."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in module.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


@torch.no_grad()
def read(trainer: L.Trainer, outputs: dict[str, Any], norm: Tensor) -> Row:
    """Global values of one step, by one reduction over the processes and one copy to the host.

    Args:
        trainer: whose processes take part; each of them calls this.
        outputs: of `training_step`: "loss", maybe "accuracy", and maybe "output" with `z` and `posterior`.
        norm: of the gradient on this process. Shape: ()

    Returns:
        Columns of a row, as `recipes.track.Track` lists them.
    """
    scalars = {name: outputs[name] for name in ("loss", "accuracy") if name in outputs} | {
        "gradient_norm": norm
    }
    sums = {name: torch.as_tensor(value, device=norm.device) for name, value in scalars.items()}
    sums["processes"] = torch.ones_like(norm)
    output: Any = outputs.get("output")
    posterior = getattr(output, "posterior", None)
    if posterior is not None:
        sums |= _latent_sums(output.z, posterior)
    packed = torch.cat([value.double().flatten() for value in sums.values()])
    packed = trainer.strategy.reduce(packed, reduce_op="sum").cpu()
    total = dict(zip(sums, packed.split([value.numel() for value in sums.values()]), strict=True))
    row = {name: (total[name] / total["processes"]).item() for name in scalars}
    return row if posterior is None else row | _latent_row(total)


def _latent_sums(z: Tensor, posterior: BernoulliPosterior | GaussianPosterior) -> dict[str, Tensor]:
    """Sums over this process's images, which add up over processes. Shapes: () or (D,)."""
    z = z.double().flatten(0, -2)
    sums = {"images": z.new_tensor(len(z)), "z": z.sum(dim=0), "z_squared": z.square().sum(dim=0)}
    # In float32 whatever autocast made of the parameters.
    exact = type(posterior)(*(torch.as_tensor(field, device=z.device).float() for field in posterior))
    sums["kl"] = exact.kl().sum()
    if isinstance(exact, BernoulliPosterior):
        sums["ones"] = exact.mode().double().flatten(0, -2).sum(dim=0)
        sums["temperature"] = torch.as_tensor(exact.temperature) * len(z)
    else:
        sums["posterior_variance"] = exact.std.square().mean(dim=-1).sum()
    return sums


def _latent_row(total: dict[str, Tensor]) -> Row:
    """Columns from the sums over all processes."""
    mean = {name: total[name] / total["images"] for name in total}
    row = {
        "latent_variance": (mean["z_squared"] - mean["z"].square()).clamp(min=0).mean(),  # clamp: of rounding
        "kl": mean["kl"],
    }
    if "ones" in mean:
        share = mean["ones"]
        nats = -torch.xlogy(share, share) - torch.xlogy(1 - share, 1 - share)
        row["share_of_ones"], row["bit_entropy"] = share.mean(), nats.mean() / torch.tensor(2.0).log()
        row["temperature"] = mean["temperature"]
    else:
        row["posterior_variance"] = mean["posterior_variance"]
    return {name: value.item() for name, value in row.items()}
