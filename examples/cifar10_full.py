"""SimCLR, StochCon and supervised training on CIFAR-10, from the first step to the table of results.

    python examples/cifar10_full.py --preset quick                     # minutes on 2 CPU cores, no download
    python examples/cifar10_full.py --preset cpu --data FOLDER_OR_TAR  # three hours on 2 CPU cores, all images
    python examples/cifar10_full.py --preset paper --model bern        # ResNet-50, 1,000 epochs, needs a GPU

Every model starts from the same encoder weights and is trained on the same views in the same order; each is judged
frozen, then fine-tuned. A run leaves `results.json`, `table.md`, `report.html`, figures and weights in `--out`,
anew after every model; one that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import command, data, ending, evaluate
from recipes.run import Run
from recipes.settings import start_encoder

# ---- presets --------------------------------------------------------------------------------------------------

COMMON = {
    "norm": "batch",
    "encoder_weights": None,
    "pretrained": False,
    "dim": 128,
    "projection_dim": 128,  # SimCLR (arXiv 2002.05709), section 4.2
    "jitter": 0.5,  # SimCLR, appendix B.9: half the strength of ImageNet, no blur
    "blur": 0.0,
    "temperature": 1.0,
    "temperature_end": None,
    "location_std": 2.0,
    "kl_weight": 0.0,  # our choice: the poster's objective is InfoNCE alone
    "hard": False,
    "symmetric": False,
    "ema": None,
    "lr_scaling": "linear",  # SimCLR's README: rate x batch / 256
    # Our choice: at ImageNet's usual 8 % a crop of a 32-pixel image has sides of 9 pixels; here, of 16.
    "labelled_min_crop": 0.25,
    # Fine-tuning: rate 0.05 x batch / 256 and no decay are SimCLR's (appendix B.5) and lightly's.
    "finetune_optimizer": "sgd",
    "finetune_weight_decay": 0.0,
    "finetune_warmup_epochs": 0.0,
    # Supervised: rate 0.1 for batch 128 and decay 5e-4 are those of wide ResNets on CIFAR (arXiv 1605.07146, section
    # 3) and of kuangliu/pytorch-cifar, which has our cosine too.
    "supervised_optimizer": "sgd",
    "supervised_weight_decay": 5e-4,
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
        "knn_every": 5,
        # Fewer epochs than published recipes have, at a higher rate; chosen on held-out training images.
        "finetune_epochs": 5,
        "finetune_batch_size": 128,
        "finetune_lr": 0.1,
        "supervised_epochs": 8,
        "supervised_batch_size": 128,
        "supervised_lr": 0.1,
        "supervised_warmup_epochs": 1,
    },
    # Our choice: as quick, for all images; epochs for about 40 minutes a model on two cores. The latent's settings are
    # those that `claims.py --claim settings` confirmed on held-out training images.
    "cpu": {
        **COMMON,
        "symmetric": True,
        "location_std": 4.0,
        "encoder": "small",
        "epochs": 40,
        "batch_size": 256,
        "optimizer": "sgd",
        "lr": 0.4,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "loss_temperature": 0.2,
        "min_crop": 0.2,
        "knn_every": 5,
        "finetune_epochs": 5,
        "finetune_batch_size": 256,
        "finetune_lr": 0.2,  # as quick, by its batch
        "supervised_epochs": 15,
        "supervised_batch_size": 128,
        "supervised_lr": 0.1,
        "supervised_warmup_epochs": 1,
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
        "knn_every": 10,
        # Our choice: lightly's 30 epochs are ImageNet's, whose epochs have 25 times as many images.
        "finetune_epochs": 100,
        "finetune_batch_size": 256,
        "finetune_lr": 0.05,
        "supervised_epochs": 200,  # wide ResNets, section 3
        "supervised_batch_size": 128,
        "supervised_lr": 0.1,
        "supervised_warmup_epochs": 0,
    },
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line, the preset's values filled in where nothing was given."""
    parser = command.make_parser(__doc__, "examples/cifar10_full.py", PRESETS)
    run = command.add_run(parser, PRESETS, "quick", "cifar10")
    run.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder or tar with train/<class>/*.jpg and test/<class>/*.jpg, or the folder that holds torchvision's "
        "cifar-10-batches-py; default: the sample that ships here (quick), torchvision's download into ./data",
    )
    command.add_machine(parser)
    command.add_training(parser)
    for prefix in ("", "finetune_", "supervised_"):
        command.add_schedule(parser, prefix)
    command.add_latent(parser)
    return command.finish(parser, parser.parse_args(arguments), PRESETS, "quick", "cifar10")


# ---- the run --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 when everything was done, 2 for what the user can mend, 130 or 143 when stopped."""
    return ending.main("examples/cifar10_full.py", parse, run, arguments)


def run(args: argparse.Namespace, told: str) -> dict[str, Any]:
    """Train and evaluate what was asked for, and report it."""
    job = Run(args, told, load_data, baselines=2)
    if args.dry_run:
        return job.plan()
    job.views()
    job.baseline("pixels", lambda: judge_pixels(job))
    job.baseline("untrained", lambda: judge_untrained(job))
    for name in args.model:
        if name == "supervised":
            job.supervise()
        else:
            job.pretrain(name)
            job.frozen(name, lambda model: evaluate.evaluate(model, job.data, job.hardware, args.seed))
            job.finetune(name)
        job.report()
    return job.show()


def load_data(args: argparse.Namespace) -> data.ImageData:
    """Data of the run, and where it comes from when nothing was named."""
    source = data.SAMPLE if args.data is None and args.preset == "quick" else args.data
    images = data.load(source)
    return data.hold_out(images) if args.held_out else images


def judge_pixels(job: Run) -> dict[str, Any]:
    """First baseline: a linear probe on the pixels themselves."""
    return {"h": evaluate.judge(evaluate.pixels(job.data, job.hardware), job.data)}


def judge_untrained(job: Run) -> dict[str, Any]:
    """Second baseline: the encoder as every model starts with it."""
    encoder = {"h": start_encoder(job.args, job.data)}
    features = evaluate.features(encoder, job.data, job.hardware, "untrained")
    return {"h": evaluate.judge(features["h"], job.data)}


if __name__ == "__main__":
    sys.exit(main())
