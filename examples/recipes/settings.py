"""What the arguments of a full run mean: its machine, models, images and schedules."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import lightning as L
import torch
from torch import nn

from recipes import plan
from recipes.checkpoints import Checkpoints
from recipes.feeds import Feed, LabelledImages
from recipes.figures import LABELS, PARTS
from recipes.models import make_encoder, make_model
from recipes.online_knn import OnlineKNN
from recipes.pretrain import Training, TrainingOptions, pretrain
from recipes.screen import RunProgress
from recipes.track import Track
from recipes.training import Hardware, Schedule
from stochastic_bottleneck import InfoNCELoss, StochConWrapper


def hardware(args: argparse.Namespace) -> Hardware:
    """The machine's part of the arguments."""
    return Hardware(args.device, args.precision, args.compile, args.workers)


def schedule(args: argparse.Namespace, prefix: str = "") -> Schedule:
    """Schedule of one of `command.SCHEDULES`."""
    given = vars(args)
    return Schedule(
        epochs=given[f"{prefix}epochs"],
        batch_size=given[f"{prefix}batch_size"],
        optimizer=given[f"{prefix}optimizer"],
        learning_rate=given[f"{prefix}lr"],
        weight_decay=given[f"{prefix}weight_decay"],
        warmup_epochs=given[f"{prefix}warmup_epochs"],
        ema=None if prefix else args.ema,
    )


def start_encoder(args: argparse.Namespace, images: LabelledImages) -> nn.Module:
    """The encoder as every model starts with it."""
    torch.manual_seed(args.seed)
    return make_encoder(
        args.encoder,
        images.size,
        norm=args.norm,
        weights=None if args.encoder_weights is None else Path(args.encoder_weights),
        pretrained=args.pretrained,
    )


def start_model(name: str, args: argparse.Namespace, images: LabelledImages) -> nn.Module:
    """A contrastive model before its first step."""
    torch.manual_seed(args.seed)
    return make_model(
        name,
        args.encoder,
        args.dim,
        args.projection_dim,
        size=images.size,
        norm=args.norm,
        weights=None if args.encoder_weights is None else Path(args.encoder_weights),
        pretrained=args.pretrained,
        symmetric=args.symmetric,
        temperature=args.temperature,
        hard=args.hard,
        location_std=args.location_std,
        variance_from=args.variance_from,
        projector=args.projector,
        upsampler=args.upsampler,
    )


def pretraining_feed(args: argparse.Namespace, images: LabelledImages) -> Feed:
    """Two views of each image."""
    return images.pretraining(args.jitter, args.min_crop, args.blur)


def planned_stages(args: argparse.Namespace, images: LabelledImages) -> dict[str, dict[str, plan.Stage]]:
    """The parts of every model's chain that train, for `plan.make`."""
    loss = InfoNCELoss(args.loss_temperature)
    labelled = images.training(args.labelled_min_crop)
    encoder = start_encoder(args, images)
    linear = nn.Linear(encoder.num_features, len(images.classes))
    classifier = nn.Sequential(OrderedDict(encoder=encoder, classifier=linear))
    chains: dict[str, dict[str, plan.Stage]] = {}
    # Frozen and fine-tuned encoders cost the same whatever pretrained them: the same object is measured once.
    shared = {}
    if "probe_epochs" in args:
        shared["probe"] = plan.Stage(classifier, labelled, schedule(args, "probe_"), None)
    if args.finetune_epochs:
        cross_entropy = nn.functional.cross_entropy
        shared["finetune"] = plan.Stage(classifier, labelled, schedule(args, "finetune_"), cross_entropy)
    for name in args.model:
        if name == "supervised":
            planned = schedule(args, "supervised_")
            chains[name] = {"train": plan.Stage(classifier, labelled, planned, nn.functional.cross_entropy)}
        else:
            pretraining = plan.Stage(
                start_model(name, args, images),
                pretraining_feed(args, images),
                schedule(args),
                lambda output, _: loss(output.v, output.v_prime),
            )
            chains[name] = {"pretrain": pretraining, **shared}
    return chains


def width_of(model: nn.Module) -> int:
    """Width of a model's features h."""
    encoder = model.encoder
    return encoder.feature_dim if isinstance(model, StochConWrapper) else encoder.num_features


def pretrain_model(
    name: str, args: argparse.Namespace, images: LabelledImages, machine: Hardware, folder: Path
) -> Training:
    """Pretrain one model in a folder, or finish or load what is there."""
    followed = callbacks(args, folder, name, "pretrain", args.batch_size)
    if args.knn_every:
        followed.append(OnlineKNN(images, args.knn_every, workers=machine.workers))
    options = TrainingOptions(
        args.loss_temperature,
        args.temperature_end,
        args.kl_weight,
        args.seed,
        args.samples or 1,
        args.noiseless_epochs or 0.0,
    )
    return pretrain(
        start_model(name, args, images),
        pretraining_feed(args, images),
        schedule(args),
        options,
        machine,
        folder,
        followed,
        args.micro_batch,
    )


def callbacks(
    args: argparse.Namespace, folder: Path, name: str, part: str, batch_size: int
) -> list[L.Callback]:
    """What shows, logs and keeps the training of a model's part."""
    return [
        RunProgress(f"{LABELS[name]}, {PARTS[part]}", batch_size),
        Track(folder, args.track_every),
        Checkpoints(folder, args.checkpoint_steps, args.checkpoint_minutes),
    ]
