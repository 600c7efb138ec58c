"""Fit a latent to the features of a frozen encoder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stochastic_bottleneck import _checks
from stochastic_bottleneck._extras import require
from stochastic_bottleneck._feature_pairs import FeaturePairs
from stochastic_bottleneck._layers import mlp
from stochastic_bottleneck._replay import seeded, without_autocast
from stochastic_bottleneck._whitening import BatchWhitening
from stochastic_bottleneck.bottleneck import StochasticBottleneck
from stochastic_bottleneck.functional import fast_precision
from stochastic_bottleneck.losses import StochConLoss

__all__ = ["fit_bottleneck"]


def fit_bottleneck(
    views: Any,
    kind: Literal["bern", "gauss"] = "bern",
    dim: int = 64,
    *,
    loss: StochConLoss | None = None,
    epochs: int = 10,
    batch_size: int = 512,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    projector: Literal["linear", "mlp"] = "mlp",
    hidden_dim: int = 256,
    location_std: float = 4.0,
    normalization: Literal["batch", "whiten"] = "batch",
    shrinkage: float = 0.1,
    neighbours: int = 5,
    samples: int = 1,
    precision: Literal["32-true", "bf16-mixed"] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> StochasticBottleneck:
    """Train a bottleneck on features of a frozen encoder, so that views of one item get similar latents.

    Algorithm 1 of StochCon on features: the bottleneck and a head (an MLP, dropped afterwards) are trained by AdamW
    with warm-up and a cosine. No labels are used. Features are standardized; the bottleneck that is returned takes
    and gives them as they are, since their mean and scale are folded into its projector and upsampler.

    Args:
        views: features of several views (augmentations, captions, neighbouring frames) of each item, floating point:
            an array, a memory-mapped array or a tensor of Shape (V, N, F), V at least 2, of which each step takes two
            views at random; include the item as it will be searched. Or a tuple of such arrays of Shape (N, F); or an
            iterable of pairs of them, a batch each, that can be read once an epoch, such as a DataLoader. Arrays are
            read batch by batch, and may be larger than memory.
        kind: "bern" for bits, "gauss" for Gaussians.
        dim: latent dimensions D; for "bern", of bits.
        loss: terms and their weights; None for `StochConLoss()`.
        epochs: passes over the items.
        batch_size: items in a step, from arrays; the last ones of an epoch that fill no batch are left out.
        lr: peak learning rate.
        weight_decay: of AdamW.
        projector: pi, as for `StochasticBottleneck`: "mlp", or "linear" for a code that is one matrix product.
        hidden_dim: width of the head's hidden layer.
        location_std: as for `StochasticBottleneck`.
        normalization: as for `StochasticBottleneck`.
        shrinkage: as for `StochasticBottleneck`.
        neighbours: half of the second views come from one of this many nearest neighbours of the item, by the cosine
            of the means of its views and among up to 65,536 random items, so that codes bring together items of one
            kind rather than the views of one item alone; from arrays only. 0 for a search for the item itself, such
            as a duplicate or a caption.
        samples: latents drawn for each view; 0 trains without noise, as in `StochConWrapper`.
        precision: "bf16-mixed" trains under autocast to bfloat16; None does so where the hardware is faster with it.
        seed: of weights, order, views and noise. The same seed gives the same bottleneck on the same machine
            if no other thread draws from torch's global generators meanwhile.
        device: to train on; None for a GPU if there is one, else the CPU. The bottleneck is returned on the device
            of the views.
        progress: show a progress bar over the epochs (needs rich).
        checkpoint: file to save to after each epoch. If it exists, training continues from it, under the same
            arguments.

    Returns:
        The bottleneck, in evaluation mode: `bottleneck(features).z` is the mode, `bottleneck.posterior(features)` the
        distribution. `StochConWrapper(encoder, bottleneck=bottleneck)` puts it behind its encoder.

    Raises:
        ValueError: for views of other shapes, fewer items than a batch, features that are not finite, a value out of
            its range, a device that is not available, a checkpoint of other arguments or features, or a loss that is
            no longer finite.
        TypeError: for views that are neither arrays, tensors nor an iterable of pairs, or not floating point.
        ModuleNotFoundError: for a progress bar without rich.

    Example:
        >>> import torch
        >>> from stochastic_bottleneck.codes import pack_bits
        >>> items = torch.randn(256, 8)
        >>> views = items + 0.1 * torch.randn(4, 256, 8)
        >>> bottleneck = fit_bottleneck(views, dim=16, epochs=2, batch_size=64)
        >>> pack_bits(bottleneck(items).z).shape
        torch.Size([256, 2])

    Source:
        StochCon (arXiv 2110.00552), Algorithm 1; the further terms of `StochConLoss` and all settings are our choice.
    """
    if loss is not None and not isinstance(loss, StochConLoss):
        raise TypeError(f"loss must be a StochConLoss or None, got {type(loss).__name__}")
    loss = StochConLoss() if loss is None else loss
    epochs, batch_size = _checks.integer("epochs", epochs), _checks.integer("batch_size", batch_size, least=2)
    lr, weight_decay = _checks.real("lr", lr, above=0), _checks.real("weight_decay", weight_decay, least=0)
    hidden_dim, neighbours = _checks.integer("hidden_dim", hidden_dim), _checks.integer("neighbours", neighbours, 0)
    samples = _checks.integer("samples", samples, least=0)
    _checks.choice("projector", projector, ("linear", "mlp"))
    if precision is not None:
        _checks.choice("precision", precision, ("32-true", "bf16-mixed"))
    location_std = _checks.real("location_std", location_std, above=0)
    _checks.choice("normalization", normalization, ("batch", "whiten"))
    seed = _checks.seed_of(seed)
    target = _checks.device_of(device, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _checks.flag("progress", progress)
    path = None
    if checkpoint is not None:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be a path or None, got {checkpoint!r}")
        path = Path(checkpoint)
        if not path.parent.is_dir():
            raise ValueError(
                f"checkpoint must be in a folder that is there, got {checkpoint}; make {path.parent} first"
            )
    latent: dict[str, Any] = {"location_std": location_std, "normalization": normalization, "shrinkage": shrinkage}
    StochasticBottleneck(kind, dim, projector="identity", **latent)  # checks them before features are read
    dim, latent["shrinkage"] = int(dim), float(shrinkage)  # numpy's could not be read from a checkpoint
    alone = without_autocast([target])  # results must not depend on the caller's
    with torch.inference_mode(False), torch.enable_grad(), alone, seeded(seed, target) as seed_again:
        pairs = FeaturePairs(views, batch_size, seed, epochs)
        sample = pairs.sample()
        if normalization == "whiten" and not shrinkage and len(sample) <= dim:
            raise ValueError(
                f"shrinkage must be above 0 for at most dim={dim} items, got shrinkage=0 and {len(sample)} items; give "
                "more items, or shrinkage=0.1"
            )
        mean, std = _statistics(sample)
        seed_again(seed)
        with torch.device("cpu"):  # whose generator is seeded, whatever the default device
            bottleneck = StochasticBottleneck(kind, dim, in_features=len(mean), projector=projector, **latent)
            model = nn.ModuleDict({"bottleneck": bottleneck, "head": mlp(len(mean), hidden_dim, 128)})
        if isinstance(bottleneck.location_norm, BatchWhitening):
            bottleneck.location_norm.synchronized = False  # other processes need not take part
        model.to(target, torch.float32)
        fused = target.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=fused)
        settings: dict[str, Any] = {"kind": kind, "dim": dim, "epochs": epochs, "batch_size": batch_size, "lr": lr}
        settings |= {"weight_decay": weight_decay, "hidden_dim": hidden_dim, **latent}
        settings |= {"seed": seed, "loss": repr(loss), "projector": projector, "neighbours": neighbours}
        settings |= {"samples": samples, "precision": precision, "views": pairs.description}
        identity = {"settings": settings, "mean": mean, "std": std}
        done = _resume(path, identity, model, optimizer) if path and path.exists() else 0
        passes: Iterable[int] = range(done, epochs)
        if progress:
            passes = require("rich.progress", "fit_bottleneck(progress=True)", "evaluation").track(passes, "fitting")
        mean, std = mean.to(target), std.to(target)
        if neighbours and pairs.arrays and done < epochs:
            pairs.find_neighbours(neighbours, mean, target)
        precision = precision or fast_precision(target)
        for epoch in passes:
            seed_again(pairs.epoch_seed(epoch))  # of noise, and of a loader that shuffles
            total = torch.zeros((), device=target)
            for progressed, x, x_prime in pairs.epoch(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = lr * _rate(progressed)
                h = (torch.cat([x, x_prime]).to(target, torch.float32) - mean) / std
                with torch.autocast(target.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    value = _step(model, h, loss, samples)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                torch.clear_autocast_cache()  # torch does so on leaving the outermost autocast only
                total += value.detach()
            if not math.isfinite(float(total)):  # one host sync an epoch
                raise ValueError(
                    f"lr must be small enough for the loss to stay finite, got {float(total)} in epoch {epoch + 1} "
                    f"with lr={lr}; lower it"
                )
            if path:
                partial = path.with_name(f"{path.name}.partial")
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
                torch.save(identity | state, partial)
                partial.replace(path)
        _set_statistics(bottleneck, (sample.to(target, torch.float32) - mean) / std)
        if isinstance(bottleneck.location_norm, BatchWhitening):
            bottleneck.location_norm.synchronized = True
        _fold(bottleneck, mean, std)
        return bottleneck.eval().to(sample.device)


def _step(model: nn.ModuleDict, h: Tensor, loss: StochConLoss, samples: int) -> Tensor:
    """Loss of both directions of Algorithm 1 on features of the first and then the second views. Shape: (2N, F)."""
    bottleneck, head = model["bottleneck"], model["head"]
    both = (2, len(h) // 2)
    other = h.roll(both[1], 0) if bottleneck.kind == "gauss" else None  # the variance is the other view's
    features, _, posterior = bottleneck(h, other, samples=samples)
    # The second views' come first; one sample at a time, since batch normalization takes the statistics of one.
    drawn = [head(x).unflatten(0, both).flip(0) for x in (features if features.ndim == 3 else features[None])]
    v_prime = torch.stack(drawn, dim=1).flatten(0, 1)
    v = head(h).unflatten(0, both).repeat_interleave(len(drawn), dim=0)
    stochastic = (p.unflatten(0, both).flip(0) if p.ndim else p for p in posterior)
    return loss(v, v_prime, type(posterior)(*stochastic))  # type: ignore[no-any-return]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; a constant one is not scaled. Shape: (N, F) to (F,) each."""
    x = x.cpu().double()
    std = x.std(dim=0, correction=0)
    return x.mean(dim=0).float(), torch.where(std > 1e-6 * std.max(), std, 1).float()


@torch.no_grad()
def _set_statistics(bottleneck: StochasticBottleneck, h: Tensor) -> None:
    """Replace running averages, which remember the start of a short training, by the statistics of these features."""
    norms: list[Any] = [m for m in bottleneck.modules() if isinstance(m, (nn.BatchNorm1d, BatchWhitening))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    bottleneck.projector.train()(h)
    bottleneck.eval().location_norm.train()  # of what the projector gives in evaluation mode
    bottleneck.posterior(h)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _rate(progressed: float) -> float:
    """Share of the peak learning rate: linear warm-up over a tenth of the training, then a cosine to 0."""
    if progressed < 0.1:
        return progressed / 0.1
    return (1 + math.cos(math.pi * (progressed - 0.1) / 0.9)) / 2


@torch.no_grad()
def _fold(bottleneck: StochasticBottleneck, mean: Tensor, std: Tensor) -> None:
    """Make a bottleneck on standardized features one on the features themselves, in and out."""
    projector: Any = bottleneck.projector
    upsampler: Any = bottleneck.upsampler
    first: Any = projector[0] if isinstance(projector, nn.Sequential) else projector
    first.weight /= std
    if first is projector:
        projector.bias -= first.weight @ mean
    else:  # a linear map without bias before batch normalization, which subtracts its mean
        projector[1].running_mean += first.weight @ mean
    upsampler.weight *= std[:, None]
    upsampler.bias.mul_(std).add_(mean)


def _resume(path: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint; returns the number of epochs that are done."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, same = saved["settings"], all(torch.equal(saved[x], identity[x]) for x in ("mean", "std"))
    except Exception as error:  # torch raises many types for files that are not its own
        raise ValueError(f"checkpoint must be a file that fit_bottleneck saved, got {path} ({error})") from error
    differing = [f"{k}={settings.get(k)!r}, now {v!r}" for k, v in identity["settings"].items() if settings.get(k) != v]
    if differing or not same:
        raise ValueError(
            f"checkpoint {path} is of another training ({'; '.join(differing) or 'other features'}); give the same "
            "arguments, or another file"
        )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["epochs"])
