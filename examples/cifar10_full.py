"""SimCLR and StochCon on CIFAR-10, from pretraining to the table of frozen results.

    python examples/cifar10_full.py --preset quick                     # minutes on 2 CPU cores, no download
    python examples/cifar10_full.py --preset cpu --data FOLDER_OR_TAR  # hours on 2 CPU cores, all images
    python examples/cifar10_full.py --preset paper --model bern        # ResNet-50, 1,000 epochs, needs a GPU

Every model starts from the same encoder weights and is trained on the same views in the same order. A run
leaves `results.json`, `table.md`, figures and weights in `--out`; one that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from recipes import data, evaluate, report
from recipes.files import write_json
from recipes.models import ENCODERS, MODELS, make_encoder, make_model
from recipes.pretrain import TrainingError, TrainingOptions, pretrain
from recipes.screen import console
from recipes.stages import RunError, Stages, check_folder
from rich.markup import escape
from timm.optim import list_optimizers

# ---- presets --------------------------------------------------------------------------------------------------

COMMON = {
    "dim": 128,
    "projection_dim": 128,  # SimCLR (arXiv 2002.05709), section 4.2
    "jitter": 0.5,  # SimCLR, appendix B.9: half the strength of ImageNet, no blur
    "temperature": 1.0,
    "temperature_end": None,
    "location_std": 2.0,
    "hard": False,
    "symmetric": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    # What examples/compare_settings.py lists was chosen on a held-out fifth of the sample's training images.
    "quick": {
        **COMMON,
        "encoder": "small",
        "epochs": 11,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.2,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "loss_temperature": 0.2,
        "min_crop": 0.2,
    },
    "cpu": {
        **COMMON,
        "encoder": "medium",
        "epochs": 25,
        "batch_size": 256,
        "optimizer": "sgd",
        "lr": 0.4,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "loss_temperature": 0.2,
        "min_crop": 0.2,
    },
    # SimCLR's own CIFAR-10 recipe as in its public README: LARS at 1.0 x batch / 256, decay 1e-4, 1,000
    # epochs of batch 512, temperature 0.5. The poster of StochCon does not give its schedule.
    "paper": {
        **COMMON,
        "encoder": "resnet50",
        "epochs": 1000,
        "batch_size": 512,
        "optimizer": "lars",
        "lr": 2.0,
        "weight_decay": 1e-4,
        "warmup_epochs": 10,
        "loss_temperature": 0.5,
        "min_crop": 0.08,
    },
}
POSITIVE = ("lr", "loss_temperature", "temperature", "temperature_end")
RANGES = {  # both ends allowed
    "seed": (0, 2**31 - 1),  # the upper half of torch's 64 bits; the lower half counts steps
    "epochs": (1, 10**6),
    "batch_size": (2, 10**6),  # batch norm needs two
    "dim": (1, 10**6),
    "projection_dim": (1, 10**6),
    "weight_decay": (0, 1),
    "warmup_epochs": (0, 10**6),
    "jitter": (0, 2.5),  # where the hue has gone round
    "min_crop": (0.01, 0.99),
    "location_std": (0, 10**6),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line, the preset's values filled in where nothing was given."""
    values = [f"  {name}: {', '.join(f'{k} {v}' for k, v in p.items())}" for name, p in PRESETS.items()]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join(
            ["presets:", *(textwrap.fill(line, 80, subsequent_indent="    ") for line in values)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--preset", choices=list(PRESETS), help="quick, cpu or paper; default: paper with CUDA, quick without"
    )
    run.add_argument(
        "--model", nargs="+", choices=MODELS, default=list(MODELS), help="models to train (default: all)"
    )
    run.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder or tar with train/<class>/*.jpg and test/<class>/*.jpg, or the folder that holds torchvision's "
        "cifar-10-batches-py; default: the sample that ships here (quick), torchvision's download into ./data",
    )
    run.add_argument(
        "--out", type=Path, metavar="FOLDER", help="results (default: runs/cifar10-PRESET-seedSEED)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; what is done stays done"
    )
    run.add_argument("--seed", type=int, default=0, help="of weights, order, views and noise (default: 0)")
    run.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one"
    )
    run.add_argument("--precision", choices=("32", "bf16", "16"), help="default: bf16")
    run.add_argument("--compile", action="store_true", help="train through torch.compile")
    run.add_argument(
        "--held-out",
        action="store_true",
        help="evaluate on a fifth of the training images, left out of training, to choose settings on",
    )
    training = parser.add_argument_group("training (each defaults to the preset's value)")
    training.add_argument("--encoder", choices=ENCODERS, help="small and medium are made for CPUs")
    training.add_argument("--epochs", type=int, help="passes over the training images")
    training.add_argument("--batch-size", type=int, help="images a step, two views of each")
    training.add_argument("--optimizer", help="a name that timm knows, such as sgd, lars or adamw")
    training.add_argument(
        "--lr", type=float, help="peak learning rate; scales with a changed --batch-size unless given"
    )
    training.add_argument("--weight-decay", type=float)
    training.add_argument("--warmup-epochs", type=float, help="linear warm-up, then cosine decay")
    training.add_argument("--loss-temperature", type=float, help="temperature of InfoNCE")
    training.add_argument("--jitter", type=float, help="strength of the colour jitter")
    training.add_argument("--min-crop", type=float, help="smallest share of an image that a crop keeps")
    latent = parser.add_argument_group("latent (each defaults to the preset's value)")
    latent.add_argument("--dim", type=int, help="latent dimensions; bits for bern")
    latent.add_argument("--projection-dim", type=int, help="width of the head's output")
    latent.add_argument("--temperature", type=float, help="bern: Concrete temperature at the start")
    latent.add_argument("--temperature-end", type=float, help="bern: Concrete temperature at the end")
    latent.add_argument(
        "--location-std", type=float, help="scale that logits and means are normalised to; 0 for none"
    )
    latent.add_argument(
        "--hard", action=argparse.BooleanOptionalAction, help="bern: straight-through bits in training"
    )
    latent.add_argument(
        "--symmetric", action=argparse.BooleanOptionalAction, help="make each view the stochastic one once"
    )
    args = parser.parse_args(arguments)
    for name in POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be finite and above 0, got {value}")
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} must be between {low} and {high}, got {value}")
    if args.optimizer is not None and args.optimizer not in list_optimizers():
        parser.error(f"--optimizer {args.optimizer} is not one of timm's: {', '.join(list_optimizers())}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch finds no CUDA device; use --device cpu")
    if args.precision == "16" and (args.device == "cpu" or not torch.cuda.is_available()):
        parser.error("--precision 16 needs a CUDA device, got a CPU; use --precision bf16 or 32")
    return _fill_in(args)


def _fill_in(args: argparse.Namespace) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    args.reason = "as asked"
    if args.preset is None:
        args.preset = "paper" if cuda and args.device != "cpu" else "quick"
        args.reason = "a CUDA device is here" if args.preset == "paper" else "made for a CPU"
        if not cuda:
            args.reason = "there is no CUDA device to train on"
    if args.device == "auto":
        args.device = "cuda" if cuda else "cpu"
    preset = PRESETS[args.preset]
    if args.lr is None and args.batch_size is not None:  # linear scaling, arXiv 1706.02677
        args.lr = preset["lr"] * args.batch_size / preset["batch_size"]
    for name, value in preset.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.location_std = args.location_std or None
    args.precision = args.precision or "bf16"
    args.out = args.out or Path("runs") / f"cifar10-{args.preset}-seed{args.seed}"
    args.model = [name for name in MODELS if name in args.model]
    return args


# ---- the run --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 when everything was done, 2 for what the user can mend, 130 when stopped."""
    args = parse(arguments)
    command = shlex.join(
        ["python", "examples/cifar10_full.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    resume = command if args.resume else f"{command} --resume"
    try:
        run(args, command)
    except (RunError, data.DataError, TrainingError, OSError) as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print(
            f"\nstopped; what is done is kept. Go on with:\n  {resume}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return 130
    return 0


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Train and evaluate what was asked for, and report it."""
    begin = time.perf_counter()
    announce(args)
    left_out = ("out", "resume", "reason", "model", "data")
    config = {name: value for name, value in vars(args).items() if name not in left_out}
    check_folder(args.out, config, args.resume)
    images = load_data(args)
    if not (args.out / "config.json").exists():
        write_json(args.out / "config.json", config)
    console.print(
        f"{images.name}: {len(images.train.labels):,} training, {len(images.test.labels):,} test images",
        markup=False,
    )
    results = {
        "command": command,
        "date": date.today().isoformat(),
        "config": {**config, "model": args.model},
        "environment": report.environment(),
        "data": {
            "name": images.name,
            "train": len(images.train.labels),
            "test": len(images.test.labels),
            "classes": len(images.classes),
            "sha256": images.fingerprint,
        },
    }
    stages = Stages(args.out, images.fingerprint, total=2 + len(args.model))
    results["baselines"] = {
        "pixels": stages.run("pixels", lambda: {"h": judge_pixels(images)}),
        "untrained": stages.run("untrained", lambda: evaluate_untrained(args, images)),
    }
    results["models"] = {
        name: stages.run(name, lambda name=name: train(name, args, images)) for name in args.model
    }
    results["seconds"] = {**stages.seconds, "this_call": round(time.perf_counter() - begin, 1)}
    show(results, args.out)
    return results


def announce(args: argparse.Namespace) -> None:
    """Say what is about to happen, and why, before anything is spent."""
    console.print(
        f"[bold]preset {args.preset}[/] ({args.reason}), device {args.device}, precision {args.precision}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{', '.join(report.LABELS[name] for name in args.model)}: encoder {args.encoder}, {args.epochs} epochs "
        f"of batch {args.batch_size}, {args.dim} latent dimensions, seed {args.seed}; results go to {args.out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    if args.preset == "paper" and args.device == "cpu":
        console.print("[yellow]preset paper is far too slow for a CPU; --preset cpu is made for one[/]")


def load_data(args: argparse.Namespace) -> data.ImageData:
    """Data of the run, and where it comes from when nothing was named."""
    source = data.SAMPLE if args.data is None and args.preset == "quick" else args.data
    images = data.load(source)
    return data.hold_out(images) if args.held_out else images


def judge_pixels(images: data.ImageData) -> dict[str, Any]:
    """First baseline: a linear probe on the pixels themselves."""
    with console.status("linear probe on raw pixels"):
        return evaluate.judge(evaluate.pixels(images), images)


def evaluate_untrained(args: argparse.Namespace, images: data.ImageData) -> dict[str, Any]:
    """Second baseline: the encoder as every model starts with it."""
    torch.manual_seed(args.seed)
    encoder = make_encoder(args.encoder).eval().to(args.device)
    features = evaluate.extract(encoder, images, args.device, args.precision, "untrained")
    with console.status("linear probe on the untrained encoder"):
        return {"h": evaluate.judge(features, images)}


def train(name: str, args: argparse.Namespace, images: data.ImageData) -> dict[str, Any]:
    """Pretrain one model and evaluate it frozen."""
    torch.manual_seed(args.seed)
    model = make_model(
        name,
        args.encoder,
        args.dim,
        args.projection_dim,
        symmetric=args.symmetric,
        temperature=args.temperature,
        hard=args.hard,
        location_std=args.location_std,
    )
    options = TrainingOptions(
        epochs=args.epochs,
        batch_size=args.batch_size,
        optimizer=args.optimizer,
        learning_rate=args.lr,
        weight_decay=args.weight_decay,
        warmup_epochs=args.warmup_epochs,
        loss_temperature=args.loss_temperature,
        jitter_strength=args.jitter,
        min_crop=args.min_crop,
        temperature_end=args.temperature_end,
        precision=args.precision,
        device=args.device,
        compile=args.compile,
        seed=args.seed,
    )
    training = pretrain(model, images.train.images, options, args.out / name, report.LABELS[name])
    with console.status(f"evaluating {report.LABELS[name]}"):
        result = evaluate.evaluate(training.model, images, args.device, args.precision, args.seed)
    losses = torch.tensor(training.losses).view(args.epochs, -1).mean(dim=1)
    return {**result, "training_seconds": round(training.seconds, 1), "epoch_losses": losses.tolist()}


def show(results: dict[str, Any], folder: Path) -> None:
    """Write what a run leaves, and print its table and how it compares with the baselines."""
    write_json(folder / "results.json", results)
    written = ["results.json", *(path.name for path in report.write(results, folder))]
    console.print(report.terminal_table(results))
    for sentence in report.against_baselines(results):
        console.print(sentence, highlight=False)
    console.print(f"{folder}{os.sep}: {', '.join(written)}", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
