"""SimCLR, StochCon and supervised training on ImageNet, from the first step to the table of results.

    python examples/imagenet_full.py smoke --data FOLDER_OR_TAR           # every stage, minutes on 2 CPU cores
    torchrun --nproc-per-node 8 examples/imagenet_full.py paper --data FOLDER
    torchrun --nproc-per-node 8 examples/imagenet_full.py paper --data 'train-{0000..1023}.tar' --test-data 'val-*.tar'

224 pixels, 2,048 bits. Every model starts from the same encoder weights and sees the same views; each is evaluated
frozen, by linear classifiers on h and z, then fine-tuned. Results and models go to `runs/`; the same command with
--resume continues a run that was stopped.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import kornia.augmentation as K
import lightning as L
import timm
import torch
import tyro
from checkpointing import TrainingError, seed_for
from image_files import ImageError
from image_loaders import Split, TrainingLoader, evaluation_loader, find_split
from provenance import DEVICE, PRECISION
from runs import LOCAL_WORLD, MAIN_PROCESS, WORLD, Run, encoder_spec, exit_code, parse_settings, warmup_cosine
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchvision.transforms import v2

from stochastic_bottleneck import StochasticBottleneck, StochConLoss, StochConWrapper
from stochastic_bottleneck.callbacks import LatentMonitor, OnlineKNN
from stochastic_bottleneck.codes import compression_ratio
from stochastic_bottleneck.encoders import as_encoder
from stochastic_bottleneck.evaluation import bit_statistics, encode, knn_accuracy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
ModelName = Literal["simclr", "bern", "gauss", "supervised"]


# ---- settings -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Schedule:
    """Training on labels, by Nesterov's SGD and cosine decay."""

    epochs: int
    batch_size: int  # Images per step, all processes together
    lr: float  # Peak learning rate
    weight_decay: float = 0.0  # Not of biases and norms
    warmup_epochs: float = 0


@dataclass(frozen=True)
class Settings:
    """SimCLR, StochCon and supervised training on ImageNet; a setting without a source is our choice."""

    data: str  # Folder or tar with train/CLASS/* and val/CLASS/*, images without labels, or WebDataset shards
    test_data: str | None = None  # Images to evaluate on, if they are elsewhere
    models: tuple[ModelName, ...] = ("simclr", "bern", "gauss", "supervised")  # Models to train
    encoder: str = "resnet50"  # "small", made for CPUs, or any of timm's
    size: int = 224  # Side of the images in pixels
    epochs: int = 1000  # Epochs of pretraining; StochCon gives none, SimCLR has 69.3 % after 1,000
    batch_size: int = 4096  # Images per step, all processes together (SimCLR, section 2.2)
    optimizer: str = "lars"  # Any of timm's; "momentum" is plain SGD (SimCLR, section 2.2)
    lr: float = 4.8  # 0.075 x sqrt(batch) (SimCLR, appendix B.1)
    weight_decay: float = 1e-6  # Not of biases and norms; timm's LARS needs some (SimCLR, section 2.2)
    warmup_epochs: float = 10  # Linear warm-up, then cosine decay (SimCLR, section 2.2)
    loss_temperature: float = 0.1  # Of InfoNCE (SimCLR, section 4.2)
    jitter: float = 1.0  # Strength of the colour jitter (SimCLR, appendix A)
    blur: float = 0.5  # Share of blurred views (SimCLR, appendix A)
    min_crop: float = 0.08  # Smallest crop, as a share of the image (SimCLR, appendix A)
    dim: int = 2048  # Latent dimensions; 588x: 224 x 224 x 3 x 8 bits over 2,048
    projector: Literal["linear", "mlp", "identity"] = "linear"  # pi, from features to the latent
    upsampler: Literal["linear", "mlp", "identity"] = "linear"  # rho, from the latent to features
    location_std: float | None = 2.0  # Standard deviation that logits and means are normalised to
    temperature: float = 1.0  # Concrete temperature of the bits
    variance_from: Literal["opposing", "own"] = "opposing"  # View that gives a Gaussian's variance
    symmetric: bool = False  # Use each view once as the stochastic one
    samples: int = 1  # Latents drawn per image; 0 for no noise
    deterministic: float = 0.0  # Weight of a term of StochConLoss, as the next three; Algorithm 1 has none of them
    codes: float = 0.0  # InfoNCE between codes
    covariance: float = 0.0  # Covariance penalty
    kl: float = 0.0  # KL divergence from the prior
    knn_every: int = 10  # Epochs between nearest neighbours during pretraining; 0 for none
    probe: Schedule = Schedule(90, 4096, 1.6, 1e-6)  # 0.1 x batch / 256 (SimCLR, appendix B.6; its README's decay)
    finetune: Schedule = Schedule(30, 1024, 0.2)  # 0.05 x batch / 256 (SimCLR, appendix B.5; lightly's epochs)
    supervised: Schedule = Schedule(90, 1024, 0.4, 1e-4, 5)  # arXiv 1706.02677, section 5.1
    ema: float | None = None  # Decay of a moving average of the weights
    precision: Literal["bf16-mixed", "16-mixed", "32-true"] = PRECISION  # bf16-mixed where it is fast, else 32-true
    compile: bool = False  # torch.compile the model
    workers: int = min(16, max(1, (os.cpu_count() or 1) // LOCAL_WORLD))  # Processes that read images, per process
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"  # Where metrics are logged
    seed: int = 0  # Of weights, order, views and noise
    held_out: bool = False  # Evaluate on a fifth of the training images, to choose settings
    out: Path | None = None  # Folder of the run; runs/imagenet-PRESET-seedN if not given
    resume: bool = False  # Continue the run in that folder
    dry_run: bool = False  # Take one step of each stage, print parameters, FLOPs and memory
    preset: tyro.conf.Suppress[str] = "paper"


PRESETS = {
    "smoke": ("every stage on a thousand images, minutes on 2 CPU cores; teaches a model little", Settings(
        tyro.MISSING, preset="smoke", encoder="small", epochs=1, batch_size=100, optimizer="momentum", lr=0.05,
        warmup_epochs=0, knn_every=0, probe=Schedule(1, 100, 0.1), finetune=Schedule(1, 100, 0.02),
        supervised=Schedule(1, 100, 0.04, 1e-4))),
    "paper": ("1,000 epochs of ResNet-50 by SimCLR's recipe", Settings(tyro.MISSING)),
}  # fmt: skip


# ---- data and views -------------------------------------------------------------------------------------------------
def load_data(s: Settings) -> tuple[Split, Split, dict[str, Any]]:
    """Find and check the images to train and to evaluate on, and describe them for the results."""
    train, name = find_split(s.data, "train", workers=s.workers), s.data
    test = find_split(s.test_data or s.data, "val", "test", "train", workers=s.workers)
    if s.held_out:
        train, test, name = train.every(5, rest=True), train.every(5), f"{name}, a fifth of it held out"
    elif test == train:
        name += ", evaluated on its training images"
    if not (train.classes and test.classes):
        train = replace(train, classes=[])
        if MAIN_PROCESS:
            print(f"{s.data} has no class folders or labels: pretraining only; classifiers and neighbours are left out")
    elif test.classes != train.classes[: len(test.classes) if test.sharded else None]:
        differing = {*train.classes} ^ {*test.classes} or "their order"
        raise ImageError(f"training and test images must have the same classes; they differ in {differing}")
    about = {"name": name, "train": train.count, "test": test.count, "classes": len(train.classes)}
    about["sharded"] = train.sharded
    return train, test, about | {"fingerprint": f"{train.fingerprint} {test.fingerprint}"}


def check_batch_sizes(s: Settings, train: Split) -> None:
    """Refuse a batch size of any stage before the first one, after which it could not be changed."""
    sizes, schedules = {}, {"supervised": s.supervised} if "supervised" in s.models else {}
    if {*s.models} != {"supervised"}:
        sizes, schedules = {"batch-size": s.batch_size}, schedules | {"probe": s.probe, "finetune": s.finetune}
    if train.classes:
        sizes |= {f"{stage}.batch-size": c.batch_size for stage, c in schedules.items() if c.epochs or stage == "probe"}
    if len(train.items) < WORLD:
        raise TrainingError(f"each process needs a shard or an image, got {len(train.items)} for {WORLD} processes")
    for option, size in sizes.items():
        if not WORLD <= size <= train.count or size % WORLD:
            rule = f"at most the {train.count:,} training images and a multiple of the {WORLD} processes"
            raise TrainingError(f"--{option} must be {rule}, got {size:,}")


def random_crop(s: Settings, labelled: bool) -> v2.Compose:
    """A random crop, for the loader's workers; with `labelled` also flipped and normalized. Shape: (3, size, size)."""
    resample = v2.InterpolationMode.BICUBIC
    crop = [v2.RandomResizedCrop(s.size, (s.min_crop, 1.0), interpolation=resample), v2.PILToTensor()]
    finish = [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose(crop + finish if labelled else crop)


def preprocessing_config(s: Settings) -> dict[str, Any]:
    """Resize, center crop and normalization for evaluation, with timm's keys, saved with the model."""
    return {"input_size": (3, s.size, s.size), "crop_pct": 0.875, "interpolation": "bicubic", "mean": MEAN, "std": STD}


def color(s: Settings) -> nn.Module:
    """Flip, color jitter, gray, blur and normalization of SimCLR's views, on the device (appendix A)."""
    j, width = s.jitter, s.size // 20 * 2 + 1
    return nn.Sequential(
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.8 * j, 0.8 * j, 0.8 * j, 0.2 * j, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((width, width), (0.1, 2.0), p=s.blur),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


# ---- models ---------------------------------------------------------------------------------------------------------
def build_model(name: ModelName, s: Settings) -> nn.Module:
    """SimCLR, or StochCon around the very same encoder and head."""
    torch.manual_seed(s.seed)
    timm_name, options = encoder_spec(s.encoder)
    encoder = timm.create_model(timm_name, **options)
    width = as_encoder(encoder).feature_dim
    head = [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128)]
    simclr = nn.Sequential(OrderedDict(encoder=encoder, head=nn.Sequential(*head)))  # SimCLR, section 4.2
    if name == "simclr":
        return simclr
    of_bits = {"temperature": s.temperature} if name == "bern" else {}
    maps = {"projector": s.projector, "upsampler": s.upsampler}
    bottleneck = StochasticBottleneck(name, s.dim, in_features=width, location_std=s.location_std, **maps, **of_bits)
    options = {"variance_from": s.variance_from, "symmetric": s.symmetric, "samples": s.samples}
    return StochConWrapper.from_simclr(simclr, bottleneck=bottleneck, **options)


# ---- pretraining ----------------------------------------------------------------------------------------------------
class Pretraining(L.LightningModule):
    """InfoNCE between two views of each image; StochCon passes the second one through its latent."""

    def __init__(self, name: ModelName, s: Settings, batches: int) -> None:
        super().__init__()
        self.s, self.batches, self.color = s, batches, color(s)
        self.model = build_model(name, s).to(memory_format=torch.channels_last)
        terms = {term: getattr(s, term) for term in ("deterministic", "codes", "covariance", "kl")}
        self.loss = StochConLoss(s.loss_temperature, gather_distributed=True, **terms)
        if s.compile:
            self.model.compile()

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Two random views of each image, in float32 whatever the precision."""
        torch.manual_seed(seed_for(self.s.seed, self.global_step, self.global_rank))  # of views and noise
        return [self.color(x.float() / 255).contiguous(memory_format=torch.channels_last) for x in batch[:2]]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Algorithm 1 of StochCon: both views through the encoder, the second through the latent, one head, InfoNCE."""
        has_latent = isinstance(self.model, StochConWrapper)
        loss = self.loss(self.model(*batch)) if has_latent else self.loss.info_nce(*map(self.model, batch))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """LARS by default, on all but biases and norms; linear warm-up and cosine decay by step."""
        optimizer = create_optimizer_v2(self.model, self.s.optimizer, self.s.lr, self.s.weight_decay, momentum=0.9)
        return warmup_cosine(optimizer, self.s.epochs * self.batches, round(self.s.warmup_epochs * self.batches))


def pretrain(name: ModelName, s: Settings, train: Split, run: Run) -> nn.Module:
    """Train one model, or continue from the newest checkpoint, and save it as a folder that `HubModel` loads."""
    config, callbacks = preprocessing_config(s), [] if name == "simclr" else [LatentMonitor()]
    if train.classes and s.knn_every:
        some = train.every(1 + train.count // 25_000)
        callbacks.append(OnlineKNN(evaluation_loader(some, config, s.workers), every_n_epochs=s.knn_every))
    trainer = run.trainer(name, s.epochs, *callbacks)
    loader = TrainingLoader(train, random_crop(s, labelled=False), 2, s.batch_size, trainer, s.seed, s.workers)
    module = Pretraining(name, s, loader.batches)
    run.fit(name, trainer, module, loader)
    model = module.model.eval()
    run.save_model(name, model, config)
    return model


# ---- evaluation -----------------------------------------------------------------------------------------------------
class Classification(L.LightningModule):
    """Cross-entropy of linear classifiers: on h and z of a frozen model, or on h with the encoder trained too."""

    def __init__(self, model: nn.Module, frozen: bool, c: Schedule, s: Settings, classes: int, batches: int) -> None:
        super().__init__()
        self.s, self.c, self.batches = s, c, batches
        self.encoder = as_encoder(copy.deepcopy(model.encoder), strip=False).freeze(frozen).train()
        widths, self.bottleneck = {"h": self.encoder.feature_dim}, None
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training")  # frozen modules are, on purpose
        if frozen and isinstance(model, StochConWrapper):
            self.bottleneck = copy.deepcopy(model.bottleneck).requires_grad_(False)
            widths["z"] = self.bottleneck.dim
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, classes) for name, width in widths.items()})
        for parameter in self.classifiers.parameters():
            nn.init.zeros_(parameter)  # as SimCLR's code does
        top1, top5 = (MulticlassAccuracy(classes, k, "micro") for k in (1, min(5, classes)))
        scores = MetricCollection({"accuracy": top1, "top5": top5, "f1": MulticlassF1Score(classes)})
        self.scores = nn.ModuleDict({name: scores.clone() for name in widths})
        if s.compile:
            self.encoder.compile()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of each classifier. Shape: (N, classes) each."""
        rows = {"h": self.encoder(images)}
        if self.bottleneck is not None:
            rows["z"] = self.bottleneck.eval()(rows["h"], sample=False).z
        return {name: classifier(rows[name]) for name, classifier in self.classifiers.items()}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sum of the losses: with a frozen encoder, each classifier is trained as if it was alone."""
        torch.manual_seed(seed_for(self.s.seed, self.global_step, self.global_rank))  # of dropout
        loss = torch.stack([nn.functional.cross_entropy(x, batch[1]) for x in self(batch[0]).values()]).sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Classify test images."""
        for name, logits in self(batch[0]).items():
            self.scores[name].update(logits, batch[1])

    def configure_optimizers(self) -> Any:
        """SGD with Nesterov's momentum, without weight decay of biases and norms; warm-up and cosine by step."""
        optimizer = create_optimizer_v2(self, "sgd", self.c.lr, self.c.weight_decay, momentum=0.9)
        return warmup_cosine(optimizer, self.c.epochs * self.batches, round(self.c.warmup_epochs * self.batches))


def classify(name: str, stage: str, model: nn.Module, s: Settings, train: Split, test: Split, run: Run) -> Any:
    """Train the classifiers of one stage on all processes, and score them on the test images."""
    c, folder = getattr(s, stage), f"{name}/{stage}" if name != stage else name
    trainer = run.trainer(folder, c.epochs)
    loader = TrainingLoader(train, random_crop(s, labelled=True), 1, c.batch_size, trainer, s.seed, s.workers)
    module = Classification(model, stage == "probe", c, s, len(train.classes), loader.batches)
    run.fit(folder, trainer, module, loader)
    loader = evaluation_loader(test, preprocessing_config(s), s.workers, trainer.global_rank, WORLD)
    trainer.test(module, loader, verbose=False)
    return {name: {key: float(x) for key, x in scores.compute().items()} for name, scores in module.scores.items()}


def evaluate(model: nn.Module, scores: Any, s: Settings, train: Split, test: Split) -> dict[str, Any]:
    """Frozen: the linear classifiers' scores, nearest neighbours on h and z, and the use of the bits."""
    source, names = (model, ("h", "z")) if isinstance(model, StochConWrapper) else (model.encoder, ("h",))
    bank, results = train.every(1 + train.count // 100_000), {}  # about 100 images a class of ImageNet
    loaders = (evaluation_loader(split, preprocessing_config(s), s.workers) for split in (bank, test))
    x, x_test = (encode(source.to(DEVICE), loader, names, progress=True) for loader in loaders)
    for name in names:
        rows, test_rows = x.features[name], x_test.features[name]
        bits = name == "z" and model.bottleneck.kind == "bern"
        results[name] = r = {"dim": rows.shape[1]}
        if train.classes:
            options = {"metric": "hamming" if bits else "cosine", "device": DEVICE}
            r["knn"] = knn_accuracy(rows, x.labels, test_rows, x_test.labels, k=min(20, len(rows)), **options)
            r |= {"probe": scores[name]["accuracy"], "probe_top5": scores[name]["top5"]}
        if bits:
            r["bits"] = bit_statistics(test_rows, x_test.labels if train.classes else None)._asdict()
            r["compression"] = compression_ratio((s.size, s.size, 3), rows.shape[1])
    return results


def main() -> None:
    """Train and evaluate all models, one stage after the other; finished stages are in `results.json`."""
    s = parse_settings(PRESETS)
    train, test, about = load_data(s)
    check_batch_sizes(s, train)
    run = Run(s.out or Path("runs") / f"imagenet-{s.preset}-seed{s.seed}", s, about)
    reports = MAIN_PROCESS and not s.dry_run
    for name in s.models:
        model, stage = build_model("simclr", s), "supervised"
        if name != "supervised":
            model, stage = pretrain(name, s, train, run), "finetune"
            scores = classify(name, "probe", model, s, train, test, run) if train.classes else {}
            if reports:
                run.stage("models", name, "h", evaluate, model, scores, s, train, test)
        if train.classes and getattr(s, stage).epochs:
            scores = classify(name, stage, model, s, train, test, run)
            if reports:
                run.stage("models", name, "finetuned", dict, [("finetuned", scores["h"])])
        if reports:
            run.report(f"{s.encoder} encoder, {s.epochs} epochs")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
