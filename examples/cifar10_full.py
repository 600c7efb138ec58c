"""SimCLR, StochCon and supervised training on CIFAR-10, from the first step to the table of results.

    python examples/cifar10_full.py quick                     # 5,000 images that ship here; minutes on 2 CPU cores
    python examples/cifar10_full.py cpu --data FOLDER_OR_TAR  # all of CIFAR-10; about three hours on 2 CPU cores
    torchrun --nproc-per-node 4 examples/cifar10_full.py paper --models bern

Every model starts from the same encoder weights and sees the same views; each is evaluated frozen, then fine-tuned.
Results, figures and models go to `runs/`; the same command with --resume continues a run that was stopped.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import kornia.augmentation as K
import lightning as L
import timm
import torch
import tyro
from checkpointing import resumable_loader, seed_for
from image_files import SAMPLE, Images, read_splits
from other_codes import other_codes
from provenance import DEVICE, PRECISION
from runs import MAIN_PROCESS, FileLock, Run, encoder_spec, exit_code, parse_settings, scores, warmup_cosine
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.datasets import CIFAR10

from stochastic_bottleneck import StochConLoss, StochConWrapper, fit_bottleneck
from stochastic_bottleneck.callbacks import LatentMonitor, OnlineKNN
from stochastic_bottleneck.codes import compression_ratio
from stochastic_bottleneck.encoders import small_image_stem
from stochastic_bottleneck.evaluation import bit_statistics, encode, fine_tune, forest_curve

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
NORMALIZE = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
PREPROCESSING = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": MEAN, "std": STD}
ModelName = Literal["simclr", "penalized", "bern", "gauss", "supervised"]


# ---- settings -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """SimCLR, StochCon and supervised training on CIFAR-10; a setting without a source is our choice."""

    data: Path | None = None  # Folder or tar of train/CLASS/* and test/CLASS/*, torchvision's, or no labels
    models: tuple[ModelName, ...] = ("simclr", "bern", "gauss", "supervised")  # "penalized": SimCLR + covariance
    encoder: str = "resnet50"  # "small", made for CPUs, or a ResNet of timm's
    epochs: int = 1000  # Of pretraining (this and the next five: SimCLR's README)
    batch_size: int = 512  # Images per step, all processes together
    optimizer: str = "lars"  # Any of timm's; "momentum" is plain SGD
    lr: float = 2.0  # Peak learning rate
    weight_decay: float = 1e-4  # Not of biases and norms
    warmup_epochs: float = 10  # Linear warm-up, then cosine decay
    loss_temperature: float = 0.5  # Of InfoNCE (SimCLR, appendix B.9)
    jitter: float = 0.5  # Strength of the colour jitter (SimCLR, appendix B.9)
    min_crop: float = 0.08  # Smallest crop, as a share of the image (SimCLR, appendix A)
    gray: tyro.conf.Suppress[float] = 0.2  # Share of gray views (SimCLR, appendix A)
    hidden_dim: tyro.conf.Suppress[int | None] = None  # Width of the head's hidden layer; the encoder's if not given
    head_norm: tyro.conf.Suppress[bool] = True  # BatchNorm in the head
    dim: int = 128  # Latent dimensions
    location_std: float | None = 2.0  # Standard deviation that logits and means are normalised to
    normalization: Literal["batch", "whiten"] | None = "batch"  # Of logits and means
    temperature: float = 1.0  # Concrete temperature of the bits
    variance_from: Literal["opposing", "own"] = "opposing"  # View that gives a Gaussian's variance
    symmetric: bool = False  # Use each view once as the stochastic one
    samples: int = 1  # Latents drawn per image; 0 for no noise
    detach_encoder: bool = False  # Train the encoder by the deterministic views alone
    deterministic: float = 0.0  # Weight of a term of StochConLoss, as the next three; Algorithm 1 has none of them
    codes: float = 0.0  # InfoNCE between codes
    covariance: float = 0.0  # Covariance penalty
    kl: float = 0.0  # KL divergence from the prior
    learnable_scale: bool = False  # Learn the scale of the logits
    finetune_epochs: int = 100  # Epochs of fine-tuning; 0 for none
    finetune_lr: float = 0.025  # 0.05 x batch / 256 (SimCLR, appendix B.5)
    supervised_epochs: int = 200  # Rate 0.1, decay 5e-4 (wide ResNets, arXiv 1605.07146); 0 for none
    probe: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # Inverse penalties that linear probes choose from
    ema: float | None = None  # Decay of a moving average of the weights
    precision: Literal["bf16-mixed", "16-mixed", "32-true"] = PRECISION  # bf16-mixed where it is fast, else 32-true
    compile: bool = False  # torch.compile the model
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"  # Where metrics are logged
    seed: int = 0  # Of weights, order, views and noise
    held_out: bool = False  # Evaluate on a fifth of the training images
    out: Path | None = None  # Folder of the run; runs/cifar10-PRESET-seedN if not given
    resume: bool = False  # Continue the run in that folder
    dry_run: bool = False  # Take one step, print parameters, FLOPs and memory
    preset: tyro.conf.Suppress[str] = "paper"


QUICK = Settings(
    preset="quick", encoder="small", epochs=5, batch_size=128, optimizer="momentum", lr=0.2, weight_decay=5e-4,
    warmup_epochs=1, loss_temperature=0.2, min_crop=0.2, symmetric=True, location_std=4.0, deterministic=1.0,
    covariance=0.2, finetune_epochs=2, finetune_lr=0.1, supervised_epochs=3, probe=(1e-2,),
)  # fmt: skip
PRESETS = {
    "quick": ("5,000 images, a small encoder, minutes on 2 CPU cores", QUICK),
    "cpu": ("40 epochs of a small encoder, three hours on 2 CPU cores", replace(
        QUICK, preset="cpu", epochs=40, batch_size=256, lr=0.4, finetune_epochs=5, supervised_epochs=15,
        probe=Settings.probe)),
    "resnet18": ("100 epochs of ResNet-18 by dkobak/simclr-cifar10, which has 85.6 % by linear probe", Settings(
        preset="resnet18", encoder="resnet18", epochs=100, optimizer="momentum", lr=0.12, weight_decay=5e-4,
        warmup_epochs=0, min_crop=0.2, gray=0.1, hidden_dim=1024, head_norm=False)),
    "paper": ("1,000 epochs of ResNet-50 by SimCLR's README, for the paper's table", Settings()),
}  # fmt: skip


# ---- data and views -------------------------------------------------------------------------------------------------
def load_images(s: Settings) -> tuple[Images, Images | None]:
    """Training and test images; no test images where there are no labels."""
    download = s.data is None and s.preset != "quick"
    if download or (s.data and (s.data / "cifar-10-batches-py").is_dir()):
        with FileLock("data.lock"):  # one process downloads, the others wait
            sets = [CIFAR10(s.data or "data", train, download=download) for train in (True, False)]
        pixels = [torch.from_numpy(x.data).permute(0, 3, 1, 2) for x in sets]
        train, test = (Images(p, torch.tensor(x.targets), x.classes) for p, x in zip(pixels, sets, strict=True))
    else:
        train, test = read_splits(s.data or SAMPLE, 32)
    return train.hold_out() if s.held_out and test else (train, test)


def views(s: Settings) -> nn.Module:
    """SimCLR's random views for CIFAR-10 (arXiv 2002.05709, appendices A and B.9; no blur), drawn on the device."""
    mode = "slice" if DEVICE.type == "cpu" else "resample"  # image by image, or all in a few launches
    return nn.Sequential(
        # Without align_corners it resizes as torchvision does.
        K.RandomResizedCrop((32, 32), scale=(s.min_crop, 1.0), align_corners=False, cropping_mode=mode),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*(s.jitter * x for x in (0.8, 0.8, 0.8, 0.2)), p=0.8),
        K.RandomGrayscale(p=s.gray),
        NORMALIZE,
    )


# ---- models ---------------------------------------------------------------------------------------------------------
def build_encoder(s: Settings) -> nn.Module:
    """The encoder that every model starts from, with SimCLR's stem for small images."""
    torch.manual_seed(s.seed)
    name, options = encoder_spec(s.encoder)
    return small_image_stem(timm.create_model(name, **options))


def build_model(name: ModelName, s: Settings) -> nn.Module:
    """SimCLR, or StochCon around the very same encoder and head."""
    encoder = build_encoder(s)
    hidden = s.hidden_dim or encoder.num_features
    norm = [nn.BatchNorm1d(hidden)] if s.head_norm else []
    head = nn.Sequential(nn.Linear(encoder.num_features, hidden, not norm), *norm, nn.ReLU(), nn.Linear(hidden, 128))
    simclr = nn.Sequential(OrderedDict(encoder=encoder, head=head))
    if name == "simclr":
        return simclr
    names = "temperature location_std learnable_scale normalization variance_from samples detach_encoder"
    options = {name: getattr(s, name) for name in names.split()}
    options |= {"kind": "gauss" if name == "gauss" else "bern", "symmetric": s.symmetric or name == "penalized"}
    return StochConWrapper.from_simclr(simclr, dim=s.dim, **options)


# ---- pretraining ----------------------------------------------------------------------------------------------------
class Pretraining(L.LightningModule):
    """InfoNCE between two views of each image; StochCon passes the second one through its latent."""

    def __init__(self, name: ModelName, s: Settings, steps_per_epoch: int) -> None:
        super().__init__()
        self.s, self.views, self.steps_per_epoch = s, views(s), steps_per_epoch
        self.model = build_model(name, s).to(memory_format=torch.channels_last)
        terms = {term: getattr(s, term) for term in ("deterministic", "codes", "covariance", "kl")}
        if name == "penalized":  # the control: SimCLR with the covariance penalty on a linear map of h
            terms |= {"stochastic": 0, "deterministic": 1, "codes": 0, "kl": 0}
            self.model.bottleneck.upsampler.requires_grad_(False)  # not in this loss, which DDP would not accept
        self.loss = StochConLoss(s.loss_temperature, gather_distributed=True, **terms)
        if s.compile:
            self.model.compile()

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Two random views of the images, in float32 whatever the precision."""
        torch.manual_seed(seed_for(self.s.seed, self.global_step, self.global_rank))  # of views and noise
        return tuple(self.views(x).contiguous(memory_format=torch.channels_last) for x in 2 * [batch[0] / 255])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Algorithm 1 of StochCon: both views through the encoder, the second through the latent, one head, InfoNCE."""
        has_latent = isinstance(self.model, StochConWrapper)
        loss = self.loss(self.model(*batch)) if has_latent else self.loss.info_nce(*map(self.model, batch))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Linear warm-up and cosine decay by step; biases and norms without weight decay."""
        s = self.s
        optimizer = create_optimizer_v2(self.model, s.optimizer, s.lr, s.weight_decay, momentum=0.9)
        return warmup_cosine(optimizer, s.epochs * self.steps_per_epoch, round(s.warmup_epochs * self.steps_per_epoch))


def pretrain(name: ModelName, s: Settings, train: Images, run: Run) -> nn.Module:
    """Train one model, or continue from the newest checkpoint, and save it as a folder that `HubModel` loads."""
    callbacks: list[L.Callback] = [] if name == "simclr" else [LatentMonitor()]
    if train.labels is not None:
        labelled = DataLoader(TensorDataset(NORMALIZE(train.pixels / 255), train.labels), 512)
        callbacks.append(OnlineKNN(labelled, every_n_epochs=max(s.epochs // 20, 10)))
    trainer = run.trainer(name, s.epochs, *callbacks)
    loader = resumable_loader(TensorDataset(train.pixels), s.batch_size, s.seed, trainer)
    module = Pretraining(name, s, len(loader))
    run.fit(name, trainer, module, loader)
    run.save_model(name, module.model.eval(), PREPROCESSING, small_images=True)
    return module.model


# ---- evaluation -----------------------------------------------------------------------------------------------------
def evaluate(name: str, model: nn.Module, s: Settings, train: Images, test: Images) -> dict[str, Any]:
    """Frozen: scores of h, of the latent and of codes of h; a random forest on the latent, the use of its bits."""
    has_latent = name in ("bern", "gauss")
    source, parts = (model, ("h", "z")) if has_latent else (getattr(model, "encoder", model), ("h",))
    sets = [encode(source.to(DEVICE), NORMALIZE(images.pixels / 255), parts).features for images in (train, test)]
    labels, metrics = (train.labels, test.labels), {"h": "cosine", "z": "hamming" if name == "bern" else "cosine"}
    results = {part: scores([x[part] for x in sets], labels, metrics[part], s.probe) for part in parts}
    ratio = {"compression": compression_ratio((32, 32, 3), s.dim)}
    if has_latent:
        results["z"]["forest"] = forest_curve(sets[0]["z"], labels[0], sets[1]["z"], labels[1], trees=50)._asdict()
    if name == "bern":
        results["z"] |= ratio | {"bits": bit_statistics(sets[1]["z"], labels[1])._asdict()}
        results["logits"] = scores(logits(model.bottleneck, sets), labels, "cosine", s.probe)
    if name in ("simclr", "penalized", "bern"):
        z = fitted_logits(encode_views(source, s, train), sets, s)
        bits = scores([1.0 * (x > 0) for x in z], labels, "hamming", s.probe) | ratio
        results["codes"] = {"fitted": {"z": bits, "logits": scores(z, labels, "cosine", s.probe)}}
    if name in ("simclr", "penalized"):
        for code, codes, metric in other_codes(*(x["h"] for x in sets), s.dim, s.seed):
            results["codes"][code] = {"codes": scores(codes, labels, metric, s.probe) | ratio}
    return results


def encode_views(model: nn.Module, s: Settings, train: Images) -> list[Any]:
    """Frozen features of four random views of each training image."""
    torch.manual_seed(seed_for(s.seed, 0, 0))  # of the views
    batches = [pixels.to(DEVICE) / 255 for pixels in train.pixels.split(500)]
    with torch.autocast(DEVICE.type, torch.bfloat16, s.precision == "bf16-mixed"):
        return [encode(model, map(views(s).to(DEVICE), batches)).features for _ in range(4)]


def fitted_logits(pairs: list[Any], sets: list[dict[str, Any]], s: Settings, **options: Any) -> list[Any]:
    """Logits of a latent that is fitted to these views, without labels, behind the frozen encoder."""
    batch_size = min(512, len(sets[0]["h"]))
    options = {"dim": s.dim, "epochs": 20, "batch_size": batch_size, "seed": s.seed, "device": DEVICE} | options
    return logits(fit_bottleneck([sets[0]["h"], *pairs], "bern", **options).to(DEVICE), sets)


def logits(bottleneck: nn.Module, sets: list[dict[str, Any]]) -> list[Any]:
    """Logits of the bits of training and test images, the latent as floats."""
    with torch.inference_mode():
        return [bottleneck.posterior(torch.from_numpy(x["h"]).to(DEVICE)).logits.cpu().numpy() for x in sets]


def supervise(encoder: nn.Module, s: Settings, train: Images, test: Images, options: dict[str, Any]) -> dict[str, Any]:
    """Train an encoder with a linear layer on labelled crops, and classify the test images."""
    crops = nn.Sequential(K.RandomResizedCrop((32, 32), (0.25, 1.0), align_corners=False), K.RandomHorizontalFlip())

    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        images, labels = default_collate(rows)
        return crops(images).contiguous(memory_format=torch.channels_last), labels

    sets = [TensorDataset(NORMALIZE(images.pixels / 255), images.labels) for images in (train, test)]
    batches = {"batch_size": 128, "shuffle": True, "drop_last": len(train.pixels) >= 128}
    loaders = DataLoader(sets[0], collate_fn=collate, **batches), DataLoader(sets[1], 512)
    precision = "bf16-mixed" if s.precision == "bf16-mixed" else "32-true"  # float16 would need a scaled loss
    options |= {"precision": precision, "seed": s.seed, "device": DEVICE}
    result = fine_tune(encoder, *loaders, len(train.classes), progress=True, **options)
    return {"finetuned": {"accuracy": result.accuracy, "f1": result.f1}}


def main() -> None:
    """Train and evaluate all models, one stage after the other; finished stages are in `results.json`."""
    s = parse_settings(PRESETS)
    train, test = load_images(s)
    data = {"name": s.data.name if s.data else "CIFAR-10 sample (JPEG copy)" if s.preset == "quick" else "CIFAR-10"}
    data |= {"train": len(train.pixels), "test": len(test.pixels) if test else 0}
    data["fingerprint"] = " ".join(images.fingerprint() for images in (train, test) if images)
    run = Run(s.out or Path("runs") / f"cifar10-{s.preset}-seed{s.seed}", s, data)
    models = {name: pretrain(name, s, train, run) for name in s.models if name != "supervised"}
    if test is None:
        print(f"{s.data} has no labels: the models are trained and saved, evaluation is left out")
    if test is None or s.dry_run or not MAIN_PROCESS:
        return
    one = replace(s, probe=(1e-3,))  # the search takes half a minute on 3,072 pixels
    run.stage("baselines", "pixels", "h", evaluate, "pixels", nn.Flatten(), one, train, test)
    run.stage("baselines", "untrained", "h", evaluate, "untrained", build_encoder(s), s, train, test)
    for name, model in models.items():
        run.stage("models", name, "h", evaluate, name, model, s, train, test)
        if s.finetune_epochs:
            tuning = {"epochs": s.finetune_epochs, "lr": s.finetune_lr}
            run.stage("models", name, "finetuned", supervise, model.encoder, s, train, test, tuning)
    if "supervised" in s.models and s.supervised_epochs:
        training = {"epochs": s.supervised_epochs, "lr": 0.1, "weight_decay": 5e-4}
        training["warmup_epochs"] = min(1, s.supervised_epochs - 1)
        run.stage("models", "supervised", "finetuned", supervise, build_encoder(s), s, train, test, training)
    run.report(f"{s.encoder} encoder, {s.epochs} epochs")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
