"""What the full runs' command lines share: options, their ranges, and presets filled in."""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers

from recipes.models import ENCODERS, MODELS, NORMS
from recipes.training import scaled_rate, world

Presets = Mapping[str, dict[str, Any]]

SCHEDULES = {
    "": ("pretraining", "images a step, two views of each; of all processes together"),
    "probe_": ("linear probe", "images a step"),
    "finetune_": ("fine-tuning", "images a step"),
    "supervised_": ("supervised training", "images a step"),
}
"""Prefix of the options of everything that trains, by what it is and what its batch size counts."""
POSITIVE = ("lr", "loss_temperature", "temperature", "temperature_end", "checkpoint_minutes")
RANGES = {  # both ends allowed
    "seed": (0, 2**31 - 1),  # the upper half of torch's 64 bits; the lower half counts steps
    "epochs": (1, 10**6),
    "finetune_epochs": (0, 10**6),
    "batch_size": (2, 10**6),  # batch norm needs two
    "micro_batch": (2, 10**6),
    "dim": (1, 10**6),
    "projection_dim": (1, 10**6),
    "weight_decay": (0, 1),
    "warmup_epochs": (0, 10**6),
    "jitter": (0, 2.5),  # where the hue has gone round
    "blur": (0, 1),
    "min_crop": (0.01, 0.99),
    "labelled_min_crop": (0.01, 0.99),
    "location_std": (0, 10**6),
    "samples": (1, 1000),
    "noiseless_epochs": (0, 10**6),
    "kl_weight": (0, 10**6),
    "ema": (0, 0.999999),
    "size": (8, 4096),
    "workers": (0, 1024),
    "checkpoint_steps": (1, 10**9),
    "track_every": (1, 10**9),
    "knn_every": (0, 10**6),
}
PROCESSES = """several processes:
  torchrun --nproc-per-node 8 {script} ... uses 8 GPUs, or CPU processes with --device cpu; for several
  machines add torchrun's own options. Batch sizes are those of all processes together and must divide by their
  number. Everything that trains runs on all of them; the rest on the first, while the others wait for the file that
  it writes: --out must be on a file system that all of them share."""

# ---- options --------------------------------------------------------------------------------------------------


def make_parser(description: str | None, script: str, presets: Presets) -> argparse.ArgumentParser:
    """Parser whose help shows the presets in full."""
    values = [f"  {name}: {', '.join(f'{k} {v}' for k, v in p.items())}" for name, p in presets.items()]
    filled = (textwrap.fill(line, 110, subsequent_indent="    ") for line in values)
    return argparse.ArgumentParser(
        description=description,
        epilog="\n".join([PROCESSES.format(script=script), "", "presets:", *filled]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_run(
    parser: argparse.ArgumentParser, presets: Presets, default: str, out: str
) -> argparse._ArgumentGroup:
    """What is run where; returns the group, for the options of the data."""
    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=list(presets), help=f"default: paper with CUDA, {default} without")
    run.add_argument(
        "--model", nargs="+", choices=MODELS, default=list(MODELS), help="models to train (default: all)"
    )
    run.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"results (default: runs/{out}-PRESET-seedSEED)"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out; what is done stays done, and a --model may be added",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print parameters, FLOPs, memory, steps and hours, from a few measured steps",
    )
    run.add_argument(
        "--held-out",
        action="store_true",
        help="evaluate on a fifth of the training images, left out of training, to choose settings on",
    )
    run.add_argument("--seed", type=int, default=0, help="of weights, order, views and noise (default: 0)")
    return run


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Device, speed and memory, and what is written along the way."""
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one"
    )
    machine.add_argument(
        "--precision",
        choices=("32", "bf16", "16"),
        help="default: bf16, or 32 on a CPU that has no arithmetic in bfloat16 and takes several times as long",
    )
    machine.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="train through torch.compile; default: with CUDA",
    )
    machine.add_argument("--workers", type=int, help="processes that read images, for each one that trains; default: "
                         "its share of the cores")  # fmt: skip
    machine.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="pretrain with the activations of N images a process in memory at a time: the whole batch's gradient, by "
        "a gradient cache, for one more forward pass (batch norm sees N images)",
    )
    machine.add_argument("--checkpoint-steps", type=int, metavar="N", help="a checkpoint every N steps too")
    machine.add_argument(
        "--checkpoint-minutes",
        type=float,
        metavar="M",
        default=10.0,
        help="and every M minutes (default: 10)",
    )
    machine.add_argument(
        "--track-every",
        type=int,
        metavar="N",
        default=20,
        help="steps between rows of metrics.csv (default: 20)",
    )
    machine.add_argument(
        "--accumulate", "--accumulate-grad-batches", "--gradient-accumulation-steps", nargs="?", const=True,
        default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip


def add_training(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Encoder, views and loss of pretraining, and the crops of all that trains on labels; returns the group."""
    training = parser.add_argument_group("encoder and views (each defaults to the preset's value)")
    training.add_argument("--encoder", choices=ENCODERS, help="small and medium are made for CPUs")
    training.add_argument("--norm", choices=NORMS, help="of encoder and head; group: for small batches")
    training.add_argument(
        "--encoder-weights", type=Path, metavar="FILE", help="checkpoint that every encoder starts from: timm's, or "
        "the weights.safetensors of a run",
    )  # fmt: skip
    training.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        help="start from timm's weights, which it downloads",
    )
    training.add_argument("--loss-temperature", type=float, help="temperature of InfoNCE")
    training.add_argument("--jitter", type=float, help="strength of the colour jitter")
    training.add_argument("--blur", type=float, help="probability of a blur")
    training.add_argument("--min-crop", type=float, help="smallest share of an image that a view keeps")
    training.add_argument("--labelled-min-crop", type=float, help="the same where labels are trained on")
    training.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="evaluate an average of the weights over pretraining's steps",
    )
    training.add_argument(
        "--knn-every", type=int, metavar="N", help="epochs of pretraining between nearest neighbours; 0: none"
    )
    return training


def add_schedule(parser: argparse.ArgumentParser, prefix: str) -> None:
    """Schedule of one of `SCHEDULES`."""
    title, batch = SCHEDULES[prefix]
    group = parser.add_argument_group(f"{title} (each defaults to the preset's value)")
    name = "--" + prefix.replace("_", "-")
    none = "; 0 leaves it out" if prefix == "finetune_" else ""
    group.add_argument(f"{name}epochs", type=int, help=f"passes over the training images{none}")
    group.add_argument(f"{name}batch-size", type=int, help=batch)
    group.add_argument(f"{name}optimizer", help="a name that timm knows, such as sgd, lars or adamw")
    group.add_argument(
        f"{name}lr", type=float, help="peak learning rate; scales with a changed batch size unless given"
    )
    if not prefix:
        group.add_argument(
            "--lr-scaling", choices=("linear", "sqrt"), help="how it scales: with the batch, or with its root"
        )
    group.add_argument(f"{name}weight-decay", type=float)
    group.add_argument(f"{name}warmup-epochs", type=float, help="linear warm-up, then cosine decay")


def add_latent(parser: argparse.ArgumentParser) -> None:
    """The bottleneck."""
    latent = parser.add_argument_group("latent (each defaults to the preset's value)")
    latent.add_argument("--dim", type=int, help="latent dimensions; bits for bern")
    latent.add_argument("--projection-dim", type=int, help="width of the head's output")
    latent.add_argument("--temperature", type=float, help="bern: Concrete temperature at the start")
    latent.add_argument("--temperature-end", type=float, help="bern: Concrete temperature at the end")
    latent.add_argument(
        "--location-std", type=float, help="scale that logits and means are normalised to; 0 for none"
    )
    latent.add_argument(
        "--kl-weight",
        type=float,
        help="of the KL divergence from the prior, in nats an image; give --location-std 0 with it: under a fixed "
        "scale the KL cannot make logits smaller, and makes outliers of them",
    )
    latent.add_argument(
        "--hard", action=argparse.BooleanOptionalAction, help="bern: straight-through bits in training"
    )
    latent.add_argument(
        "--variance-from",
        choices=("opposing", "own"),
        help="gauss: view that gives the variance (default: opposing)",
    )
    for part, what in (
        ("projector", "features to the latent's parameters"),
        ("upsampler", "latent to features"),
    ):
        latent.add_argument(f"--{part}", choices=("linear", "mlp"), help=f"{what} (default: linear)")
    latent.add_argument(
        "--samples", type=int, metavar="K", help="of the latent an image and step (default: 1)"
    )
    latent.add_argument(
        "--noiseless-epochs",
        type=float,
        metavar="E",
        help="at the start, without the latent's noise (default: 0)",
    )
    latent.add_argument(
        "--symmetric", action=argparse.BooleanOptionalAction, help="make each view the stochastic one once"
    )


# ---- checks and presets ---------------------------------------------------------------------------------------


def finish(
    parser: argparse.ArgumentParser, args: argparse.Namespace, presets: Presets, default: str, out: str
) -> argparse.Namespace:
    """Refuse what cannot be, and fill in what was not given.

    Args:
        parser: to complain through.
        args: as parsed.
        presets: of the script.
        default: preset without CUDA; with CUDA it is "paper".
        out: beginning of the default folder's name.

    Returns:
        `args`, complete; `args.reason` says why the preset is what it is.
    """
    _check(parser, args)
    _fill_in(args, presets, default, out)
    processes = world().size
    for prefix in _prefixes(args):
        name, size = f"{prefix}batch_size", getattr(args, f"{prefix}batch_size")
        if size % processes or size // processes < 2:
            parser.error(
                f"{_option(name)} must divide by the {processes} processes and leave each at least 2 images, got {size}"
            )
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if hasattr(args, "accumulate"):
        parser.error(
            "--accumulate: gradients summed over small batches are not those of the whole batch under a contrastive "
            "loss, as each image loses its negatives in the other batches; --micro-batch N saves the same memory "
            "exactly"
        )
    for name, value in vars(args).items():
        bare = next((name.removeprefix(p) for p in SCHEDULES if p and name.startswith(p)), name)
        if value is None or isinstance(value, bool):
            continue
        if bare in POSITIVE and not 0 < value < math.inf:
            parser.error(f"{_option(name)} must be finite and above 0, got {value}")
        low, high = RANGES.get(name) or RANGES.get(bare) or (-math.inf, math.inf)
        if isinstance(value, int | float) and not low <= value <= high:
            parser.error(f"{_option(name)} must be between {low} and {high}, got {value}")
        if bare == "optimizer" and value not in list_optimizers():
            parser.error(f"{_option(name)} {value} is not one of timm's: {', '.join(list_optimizers())}")
    for name in ("samples", "noiseless_epochs"):
        if args.micro_batch and getattr(args, name, None) not in (None, 0):
            parser.error(f"{_option(name)} and --micro-batch exclude each other; give one")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch finds no CUDA device; use --device cpu")
    if args.precision == "16" and (args.device == "cpu" or not torch.cuda.is_available()):
        parser.error("--precision 16 needs a CUDA device, got a CPU; use --precision bf16 or 32")
    if args.pretrained and args.encoder_weights:
        parser.error(
            f"--pretrained and --encoder-weights {args.encoder_weights} exclude each other; give one"
        )


def _fill_in(args: argparse.Namespace, presets: Presets, default: str, out: str) -> None:
    cuda = torch.cuda.is_available()
    args.reason = "as asked"
    if args.preset is None:
        args.preset = "paper" if cuda and args.device != "cpu" else default
        args.reason = "a CUDA device is here" if args.preset == "paper" else "made for a CPU"
        if not cuda:
            args.reason = "there is no CUDA device to train on"
    if args.device == "auto":
        args.device = "cuda" if cuda else "cpu"
    preset = presets[args.preset]
    scaling = args.lr_scaling or preset["lr_scaling"]
    for prefix in _prefixes(args):
        rate, size = f"{prefix}lr", getattr(args, f"{prefix}batch_size")
        if getattr(args, rate) is None and size is not None:
            rule = "linear" if prefix else scaling
            before, now = (scaled_rate(1.0, n, rule) for n in (preset[f"{prefix}batch_size"], size))
            setattr(args, rate, preset[rate] * now / before)
    for name, value in preset.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.location_std = args.location_std or None
    if args.encoder_weights is not None:
        args.encoder_weights = str(args.encoder_weights)  # for config.json
    args.precision = args.precision or ("bf16" if args.device == "cuda" or _cpu_has_bfloat16() else "32")
    args.compile = args.device == "cuda" if args.compile is None else args.compile
    if args.workers is None:
        args.workers = min(16, max(1, _cores() // world().local_size))  # more than 16 wait for the disk
    args.out = args.out or Path("runs") / f"{out}-{args.preset}-seed{args.seed}"
    args.model = [name for name in MODELS if name in args.model]


def _prefixes(args: argparse.Namespace) -> list[str]:
    return [prefix for prefix in SCHEDULES if hasattr(args, f"{prefix}batch_size")]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; an older torch does not tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
