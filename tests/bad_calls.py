"""The table of bad calls: a valid call of every public function and method, and what is bad of each argument.

`KINDS` has the kind of every parameter by its name, so that a new function whose parameters are called as others are
needs one entry in `CALLS`. Each row of the table is a valid call with one argument replaced by a bad value.
"""

import functools
import inspect
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import torch
import torch.distributed as dist
from bad_values import (
    INF,
    NAN,
    Bad,
    Kind,
    array,
    batches,
    choice,
    codes,
    count,
    device,
    flag,
    generator,
    labelled,
    labels,
    lines,
    module,
    number,
    numbers,
    path,
    seed,
    tensor,
    tensor_or_array,
    train_labels,
    values,
)
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from stochastic_bottleneck import (
    BernoulliPosterior,
    GaussianPosterior,
    InfoNCELoss,
    StochasticBottleneck,
    StochConWrapper,
    TemperatureSchedule,
)

PACKAGE = "stochastic_bottleneck"
MODULES = [info.name for info in pkgutil.iter_modules(import_module(PACKAGE).__path__) if info.name[0] != "_"]

# ---- good values -----------------------------------------------------------------------------------------------

N, D, F, P = 8, 4, 6, 5
IMAGE = (3, 8, 8)


def floats(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def images(n: int = N) -> torch.Tensor:
    return floats(n, *IMAGE)


def bottleneck(kind: str = "bern", **options: Any) -> StochasticBottleneck:
    return StochasticBottleneck(kind, D, **({"in_features": F} | options))


def backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, F, 3), nn.ReLU())


def model(kind: str = "bern") -> StochConWrapper:
    return StochConWrapper(backbone(), kind=kind, dim=D, projection_dim=P, feature_dim=F)


class SimCLR(nn.Module):
    """A model to be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.projection_head = backbone(), nn.Linear(F, P)


def bern() -> BernoulliPosterior:
    return BernoulliPosterior(floats(N, D), torch.tensor(1.0))


def gauss() -> GaussianPosterior:
    return GaussianPosterior(floats(N, D), floats(N, D))


BITS = np.array([[i >> j & 1 for j in range(D)] for i in range(N)])
CODES = torch.arange(2 * N, dtype=torch.uint8).reshape(N, 2)
LABELS = np.arange(2 * N) % 2
FEATURES = np.random.default_rng(0).normal(size=(2 * N, F)) + 3 * LABELS[:, None]


def sets() -> dict[str, Any]:
    """Features and labels of two sets."""
    return {
        "train_features": FEATURES,
        "train_labels": LABELS,
        "test_features": FEATURES[:N],
        "test_labels": LABELS[:N],
    }


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(), torch.arange(N) % 2)]


def schedule() -> TemperatureSchedule:
    return TemperatureSchedule(bottleneck(), end=0.5, total_steps=4)


@functools.cache
def folder() -> Path:
    """Of files that rows share, gone with the process."""
    folder.temporary = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
    path = Path(folder.temporary.name)  # type: ignore[attr-defined]
    (path / "text").write_text("neither ONNX nor a folder")
    (path / "empty").mkdir()
    return path


@functools.cache
def onnx_file() -> dict[str, Any]:
    """A file and its model."""
    found = {"path": folder() / "model.onnx", "model": model()}
    public("export").export_onnx(found["model"], found["path"], images(2))
    return found


def resnet() -> nn.Module:
    model: nn.Module = import_module("torchvision.models").resnet18()
    return model


def hub_model() -> Any:
    return public("hub").HubModel(backbone(), dim=D, projection_dim=P, feature_dim=F)


@functools.cache
def saved_model() -> Path:
    hub_model().save_pretrained(folder() / "saved")
    return folder() / "saved"


def forest_curve() -> Any:
    return public("evaluation").ForestCurve((1, 4), (0.2, 0.5), (0, 1, 2, 3))


def rejection_curve() -> Any:
    return public("evaluation").rejection_curve(floats(4), np.array([1, 0, 1, 1]))


# ---- kinds -----------------------------------------------------------------------------------------------------


def all_of(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


def states(x: dict[str, Any]) -> list[Bad]:
    """Of a TemperatureSchedule's state."""
    changes = [
        ("shape", "bogus"),
        ("total_steps", 1.5),
        ("total_steps", 0),
        ("last_step", "3"),
        ("last_step", -1),
    ]
    changes += [("start", NAN), ("start", 0), ("end", "0.5"), ("end", -1)]
    without = {key: value for key, value in x.items() if key != "end"}
    return [
        *values(None, [])(x),
        Bad("without end", without, ("end",)),
        *(Bad(f"{key}: {value!r}", x | {key: value}, (repr(value),), (key,)) for key, value in changes),
    ]


def curves(x: dict[str, Any]) -> list[Bad]:
    other = rejection_curve() if type(x["a"]).__name__ == "ForestCurve" else forest_curve()
    return [
        Bad("{}", {}, ("{}", "none", "empty")),
        *values(None, list(x.values()))(x),
        *(
            Bad(f"{{'a': {type(bad).__name__}}}", {"a": bad}, (type(bad).__name__, repr(bad)))
            for bad in (3, other)
        ),
    ]


def encoder_or_name(x: nn.Module) -> list[Bad]:
    names = ("resnet18", "other:resnet18", "torchvision:no_such_model", "timm:no_such_model", "timm:a/b")
    return values(*names, None, nn.Linear)(x)


def image_array(x: np.ndarray) -> list[Bad]:
    return [
        *array("0-d", "empty", "fewer dimensions")(x),
        *(Bad(d, x.astype(d), (d,)) for d in ("uint8", "int64")),
    ]


def preprocessing_config(x: object) -> list[Bad]:
    wrong = {**PREPROCESSING, "crop_pct": 7}
    return [*values(None, "timm:resnet18", 3)(x), Bad("{}", {}, ("none",)), Bad("crop_pct=7", wrong, ("7",))]


def noise(_: Any) -> list[Bad]:
    return tensor("narrower", "fewer rows", "meta", integers=True)(floats(N, D))


def paths(*names: str) -> Kind:
    """Of files, of which these are in the folder or not."""
    return lambda x: [*path(x), *(Bad(name, str(folder() / name), (str(folder() / name),)) for name in names)]


another = nn.Linear(2, 2)
PREPROCESSING = {
    "input_size": (3, 8, 8),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
of_a_name: dict[str, Kind] = {
    "small_images": values("yes", 1, None, True),
    "pretrained_cfg": preprocessing_config,
    "encoder_name": values("resnet18", "torchvision:resnet18", "timm:no_such_model", 3),
    "encoder_options": values("x", [1], {"a": 1}),
}
image_tensor = tensor("0-d", "fewer dimensions", "float64")
image_batch = tensor("0-d", "empty", "fewer dimensions", "meta", "float64")
pictures = array("0-d", "empty", "fewer dimensions", "nan", "2", "-1")
pair_of_codes = codes("narrower", "0-d", "meta")
some_features = array("empty", "fewer dimensions", "narrower", "nan", "inf")
scores = array("0-d", "empty", "more dimensions", "nan")
binary = array("0-d", "fewer rows", "more dimensions", "nan", "0.5", "2")

KINDS: dict[str, Kind] = {
    # Numbers
    **all_of(number(0, -1), "location_std", "start", "end", "lr"),
    **all_of(count(0), "dim", "in_features", "out_features", "projection_dim", "feature_dim", "block_size"),
    **all_of(
        count(0), "batch_size", "chunk_size", "total_steps", "epochs", "bins", "count", "max_iter", "trees"
    ),
    "temperature": number(0, -1, 1e-46),
    "tolerance": values("0.5", True, None, NAN, -1),
    "chance": number(-0.1, 1.5),
    "validation_share": number(0, 1, -0.2),
    "step": values("3", None, NAN),
    "k": count(0, 99),
    "classes": count(1),
    "opset_version": count(0),
    "bits_per_channel": count(0),
    "jobs": values("2", True, 2.5, 0),
    "seed": seed,
    "counts": numbers(2, 0, 2.5),
    "samples": count(-1),
    "every_n_epochs": count(0),
    "query_share": number(0, 1),
    "weight_decay": number(-1),
    "warmup_epochs": number(-1, 99),
    "image_shape": numbers(8, 0, 2.5),
    "regularisations": numbers(0.5, 0, INF),
    # Flags and choices
    **all_of(
        flag,
        "hard",
        "learnable_scale",
        "frozen",
        "gather_distributed",
        "symmetric",
        "checkpoint_encoder",
        "sample",
        "strip",
    ),
    **all_of(flag, "dynamic_batch", "validate", "check_replay", "progress"),
    **all_of(
        choice,
        "kind",
        "variance",
        "variance_from",
        "reduction",
        "representation",
        "shape",
        "metric",
        "method",
        "precision",
    ),
    # Objects
    **all_of(device, "device", "map_location"),
    **all_of(module, "backbone", "encoder", "head"),
    **all_of(values("cubic", 3, None, nn.Linear), "projector", "upsampler"),
    **all_of(lines, "names", "captions"),
    **all_of(labelled, "train", "test"),
    "generator": generator,
    "model": values(None, "resnet18", StochConWrapper, another),
    "bottleneck": values("bern", None, StochasticBottleneck, another),
    "optimizer": values("sgd", torch.optim.SGD([torch.zeros(1)], 0.1)),
    "axes": values("x", np.empty(2, object)),
    "curves": curves,
    "state_dict": states,
    "group": values(3, "data", [0, 1]),
    # Tensors
    **all_of(
        tensor("0-d", "empty", "fewer rows", "narrower", "fewer dimensions", "meta", "float64"),
        "v",
        "v_prime",
    ),
    **all_of(tensor(), "like", "logits"),
    **all_of(image_batch, "images", "example_images", "x_prime"),
    "mean": tensor("fewer rows", "meta"),
    "log_std": tensor("narrower", "meta"),
    "noise": noise,
    "z": tensor("narrower", "meta", integers=True),
    "features": tensor("0-d", "empty", "narrower", "fewer dimensions", "more dimensions", "meta", "float64"),
    "opposing": tensor("0-d", "fewer rows", "narrower", "fewer dimensions", "meta", "float64"),
    "x": image_batch,
    # Arrays
    **all_of(pair_of_codes, "a", "b"),
    **all_of(some_features, "train_features", "test_features"),
    **all_of(labels(), "labels", "test_labels"),
    **all_of(scores, "uncertainty", "scores"),
    **all_of(binary, "correct", "positive"),
    "X": image_array,
    "codes": codes("0-d"),
    "bits": tensor_or_array("0-d", "empty", "fewer dimensions", "more dimensions", "2", "0.5", "nan"),
    "train_labels": train_labels,
    "probabilities": array("0-d", "empty", "fewer dimensions", "nan", "2", "-1"),
    "probs": array("0-d", "fewer rows", "fewer dimensions", "nan", "2", "-1"),
}

# ---- valid calls -----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A valid call.

    Args:
        arguments: makes them, by name.
        of: makes the object, of a method.
        call: what is called instead of the public name.
        kinds: of parameters that differ from those of the same name.
    """

    arguments: Callable[[], dict[str, Any]]
    of: Callable[[], Any] | None = None
    call: Callable[..., object] | None = None
    kinds: Mapping[str, Kind] = MappingProxyType({})


def public(name: str) -> Any:
    """What a public name stands for, the first part being a module of the package."""
    first, *rest = name.split(".")
    return functools.reduce(getattr, rest, import_module(f"{PACKAGE}.{first}"))


def starred(name: str, parameter: str) -> Callable[..., object]:
    """The function, its `*parameter` by keyword."""

    def call(**arguments: Any) -> object:
        several = arguments.pop(parameter)
        first = [arguments.pop(key) for key in ("model", "loss") if key in arguments]
        return public(name)(*first, *several, **arguments)

    return call


def grouped(call: Callable[..., object]) -> Callable[..., object]:
    """The call in a process group that sends nothing."""

    def inside(**arguments: Any) -> object:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            return call(**arguments)
        finally:
            dist.destroy_process_group()

    return inside


def monitored(**arguments: Any) -> object:
    """The names are looked up when training starts."""
    return public("callbacks").LatentMonitor(**arguments).on_fit_start(None, model())


def measured(**arguments: Any) -> object:
    """After an epoch of a Trainer with one process."""
    knn, module = public("callbacks").OnlineKNN(**arguments), nn.ModuleDict({"model": model()})
    module.device, module.log = torch.device("cpu"), lambda *_, **__: None
    trainer = Mock(is_global_zero=True, current_epoch=0, max_epochs=1)
    trainer.precision_plugin.convert_input = lambda x: x
    trainer.precision_plugin.forward_context = nullcontext
    trainer.strategy.broadcast = lambda x: x
    knn.on_fit_start(trainer, module)
    return knn.on_train_epoch_end(trainer, module)


def transformed(**arguments: Any) -> object:
    """scikit-learn's estimators check their arguments when they are used."""
    return public("evaluation").StochConTransformer(**arguments).transform(images().numpy())


def views() -> dict[str, Any]:
    return {"v": floats(N, D), "v_prime": floats(N, D) + 0.1}


def logits(**more: Any) -> dict[str, Any]:
    return {"logits": floats(N, D), **more}


def mean(**more: Any) -> dict[str, Any]:
    return {"mean": floats(N, D), "log_std": floats(N, D), **more}


def concrete() -> dict[str, Any]:
    return logits(temperature=1.0, noise=floats(N, D))


def objective(output: Any) -> torch.Tensor:
    return InfoNCELoss()(output.v, output.v_prime)


relaxed = {"z": tensor("narrower", "meta")}
own_module = {"model": module}
losses = values(None, "mean", objective(model()(images(), images())), lambda a, b: a)
no_tensors = [
    Bad("()", (), ("none", "()", "empty")),
    *(Bad(repr((x,)), (x,), (type(x).__name__,)) for x in ("x", None, [1.0], np.zeros(2))),
]
inputs = [
    *no_tensors,
    Bad("0-d", (torch.tensor(1.0), torch.tensor(1.0)), ("()",)),
    Bad("fewer rows", (images(), images()[1:]), (f"{N - 1}", str((N - 1, *IMAGE)))),
    Bad("empty", (images(0), images(0)), (str((0, *IMAGE)), "empty")),
]

CALLS: dict[str, Call] = {
    # functional
    "functional.info_nce": Call(views),
    "functional.relaxed_bernoulli_rsample": Call(concrete),
    "functional.relaxed_bernoulli_rsample_kl": Call(concrete),
    "functional.relaxed_bernoulli_log_prob": Call(
        lambda: logits(temperature=1.0, z=floats(N, D)), kinds=relaxed
    ),
    "functional.bernoulli_kl": Call(logits),
    "functional.bernoulli_entropy": Call(logits),
    "functional.bernoulli_log_prob": Call(lambda: logits(z=floats(N, D))),
    "functional.gaussian_rsample": Call(lambda: mean(noise=floats(N, D))),
    "functional.gaussian_rsample_kl": Call(lambda: mean(noise=floats(N, D))),
    "functional.gaussian_kl": Call(mean),
    "functional.gaussian_entropy": Call(  # which the mean gives its shape alone
        mean, kinds={"mean": tensor("fewer rows"), "log_std": tensor("narrower")}
    ),
    "functional.gaussian_log_prob": Call(lambda: mean(z=floats(N, D))),
    "functional.logistic_noise": Call(lambda: {"like": floats(N, D)}),
    "functional.normal_noise": Call(lambda: {"like": floats(N, D)}),
    # codes
    "codes.pack_bits": Call(lambda: {"z": BITS}, kinds={"z": tensor_or_array("0-d", "2", "0.5", "nan")}),
    "codes.unpack_bits": Call(lambda: {"codes": CODES, "dim": 9}, kinds={"dim": count(0, 99)}),
    "codes.hamming_distance": Call(lambda: {"a": CODES, "b": CODES}),
    "codes.compression_ratio": Call(lambda: {"image_shape": IMAGE, "bits": 8}, kinds={"bits": count(0)}),
    "codes.share_of_ones": Call(lambda: {"bits": BITS}),
    "codes.bit_entropy": Call(lambda: {"bits": BITS}),
    "codes.bit_correlation": Call(lambda: {"bits": BITS}),
    "codes.distinct_codes": Call(lambda: {"bits": BITS}),
    "codes.bit_class_information": Call(lambda: {"bits": BITS, "labels": LABELS[:N]}),
    # bottleneck
    "bottleneck.StochasticBottleneck": Call(lambda: {"in_features": F}),
    "bottleneck.StochasticBottleneck.forward": Call(
        lambda: {"features": floats(N, F), "opposing": floats(N, F)}, of=lambda: bottleneck("gauss")
    ),
    "bottleneck.StochasticBottleneck.posterior": Call(
        lambda: {"features": floats(N, F), "opposing": floats(N, F)}, of=lambda: bottleneck("gauss")
    ),
    "bottleneck.StochasticBottleneck.materialize": Call(lambda: {"in_features": F}, of=bottleneck),
    "bottleneck.StochasticBottleneck.set_temperature": Call(lambda: {"temperature": 0.5}, of=bottleneck),
    # wrapper
    "wrapper.StochConWrapper": Call(lambda: {"encoder": backbone(), "feature_dim": F}),
    "wrapper.StochConWrapper.from_simclr": Call(
        lambda: {"model": SimCLR()},
        kinds=own_module | all_of(values("missing", 3, nn.Linear), "encoder", "head"),
    ),
    "wrapper.StochConWrapper.forward": Call(
        lambda: {"x": images(), "x_prime": images()},
        of=model,
        kinds=all_of(lambda x: [*image_batch(x), Bad("fewer rows", x[1:], (f"{N - 1}",))], "x", "x_prime"),
    ),
    "wrapper.StochConWrapper.encode": Call(lambda: {"x": images(), "representation": "bits"}, of=model),
    "wrapper.StochConWrapper.feature_extractor": Call(dict, of=model),
    "wrapper.StochConWrapper.freeze_encoder": Call(dict, of=model),
    # encoders
    "encoders.Encoder": Call(lambda: {"backbone": backbone()}),
    "encoders.Encoder.freeze": Call(dict, of=lambda: public("encoders").Encoder(backbone())),
    "encoders.Encoder.forward": Call(
        lambda: {"x": images()},
        of=lambda: public("encoders.Encoder")(backbone(), F),
        kinds={"x": image_tensor},
    ),
    "encoders.as_encoder": Call(lambda: {"model": backbone()}, kinds=own_module),
    "encoders.small_image_stem": Call(lambda: {"model": resnet()}, kinds=own_module),
    "encoders.simclr_parts": Call(
        lambda: {"model": SimCLR()},
        kinds=own_module | all_of(values("missing", 3, nn.Linear), "encoder", "head"),
    ),
    # losses, posteriors, schedules
    "losses.InfoNCELoss": Call(dict),
    "losses.InfoNCELoss.forward": Call(views, of=InfoNCELoss),
    "posteriors.BernoulliPosterior": Call(logits, call=lambda **a: BernoulliPosterior(**a).rsample()),
    "posteriors.BernoulliPosterior.rsample": Call(dict, of=bern),
    "posteriors.BernoulliPosterior.rsample_kl": Call(dict, of=bern),
    "posteriors.BernoulliPosterior.log_prob": Call(lambda: {"z": floats(N, D)}, of=bern),
    "posteriors.BernoulliPosterior.relaxed_log_prob": Call(
        lambda: {"z": floats(N, D)}, of=bern, kinds=relaxed
    ),
    "posteriors.GaussianPosterior": Call(mean, call=lambda **a: GaussianPosterior(**a).rsample()),
    "posteriors.GaussianPosterior.rsample": Call(dict, of=gauss),
    "posteriors.GaussianPosterior.rsample_kl": Call(dict, of=gauss),
    "posteriors.GaussianPosterior.log_prob": Call(lambda: {"z": floats(N, D)}, of=gauss),
    "schedules.TemperatureSchedule": Call(
        lambda: {"bottleneck": bottleneck(), "end": 0.5, "total_steps": 4},
        kinds={
            "bottleneck": lambda _: [
                *values(None, "bern", model())(_),
                Bad("of kind gauss", bottleneck("gauss"), ("gauss",)),
            ]
        },
    ),
    "schedules.TemperatureSchedule.temperature_at": Call(lambda: {"step": 2}, of=schedule),
    "schedules.TemperatureSchedule.load_state_dict": Call(
        lambda: {"state_dict": schedule().state_dict()}, of=schedule
    ),
    # distributed
    "distributed.gather_rows": Call(
        lambda: {"tensors": (floats(4, 2), floats(4, 2))},
        call=grouped(starred("distributed.gather_rows", "tensors")),
        kinds={
            "tensors": lambda _: [*no_tensors, Bad("one shorter", (floats(4, 2), floats(3, 2)), ("(3, 2)",))]
        },
    ),
    # gradient_cache
    "gradient_cache.cached_backward": Call(
        lambda: {"model": model(), "loss": objective, "inputs": (images(), images()), "chunk_size": 4},
        call=starred("gradient_cache.cached_backward", "inputs"),
        kinds=own_module | {"loss": losses, "inputs": lambda _: inputs, "backward": values(3, "backward")},
    ),
    # evaluation
    "evaluation.bit_statistics": Call(lambda: {"bits": BITS, "labels": LABELS[:N]}),
    "evaluation.encode": Call(
        lambda: {"model": model(), "images": images()},
        kinds=own_module
        | {
            "images": lambda x: [
                *(bad for bad in image_batch(x) if bad.label not in ("None", "list", "ndarray")),
                *batches(loader()),
            ]
        },
    ),
    "evaluation.fine_tune": Call(
        lambda: {"model": model(), "train": loader(), "test": loader(), "classes": 2, "epochs": 1},
        kinds=own_module,
    ),
    "evaluation.forest_curve": Call(lambda: sets() | {"counts": (2,), "trees": 2, "jobs": 1}),
    "evaluation.knn_accuracy": Call(lambda: sets() | {"k": 3}),
    "evaluation.linear_probe": Call(lambda: sets() | {"max_iter": 5}),
    "evaluation.auroc": Call(lambda: {"scores": floats(N).numpy(), "positive": LABELS[:N]}),
    "evaluation.rejection_curve": Call(lambda: {"uncertainty": floats(N).numpy(), "correct": LABELS[:N]}),
    "evaluation.expected_calibration_error": Call(
        lambda: {"probabilities": np.full((N, 4), 0.25), "labels": LABELS[:N]},
        kinds={"labels": labels("-1", "9")},
    ),
    "evaluation.StochConTransformer": Call(lambda: {"model": model()}, call=transformed),
    "evaluation.StochConTransformer.fit": Call(
        lambda: {"X": images().numpy()}, of=lambda: public("evaluation.StochConTransformer")(model())
    ),
    "evaluation.StochConTransformer.transform": Call(
        lambda: {"X": images().numpy()}, of=lambda: public("evaluation.StochConTransformer")(model())
    ),
    # plots
    "plots.bit_images": Call(
        lambda: {"images": images().numpy(), "probs": floats(N, D).numpy(), "bits": (0, 1), "count": 2},
        kinds={"images": pictures, "bits": numbers(1, -1, D, 1.5)},
    ),
    "plots.certain_images": Call(
        lambda: {
            "images": images().numpy(),
            "uncertainty": floats(N).numpy(),
            "captions": ["cat"] * N,
            "count": 2,
        },
        kinds={
            "images": pictures,
            "uncertainty": array("0-d", "fewer rows", "more dimensions", "nan", "inf"),
        },
    ),
    "plots.bit_usage": Call(lambda: {"bits": BITS}),
    "plots.code_map": Call(
        lambda: {"codes": FEATURES, "labels": LABELS, "names": ["cat", "dog"]},
        kinds={"codes": array("0-d", "empty", "fewer dimensions", "nan", "inf")},
    ),
    "plots.f1_against_bits": Call(lambda: {"curves": {"a": forest_curve()}, "chance": 0.1}),
    "plots.rejection_curves": Call(lambda: {"curves": {"a": rejection_curve()}}),
    # export
    "export.export_program": Call(lambda: {"model": model(), "example_images": images(2)}),
    "export.export_onnx": Call(
        lambda: {"model": model(), "path": folder() / "new.onnx", "example_images": images(2)},
        kinds={"path": paths("empty")},
    ),
    "export.verify_onnx": Call(
        lambda: onnx_file() | {"images": images(2)},
        kinds={"path": paths("empty", "no", "text")},
    ),
    # hub
    "hub.HubModel": Call(
        lambda: {"encoder": backbone()},
        kinds={"encoder": encoder_or_name} | of_a_name,
    ),
    "hub.preprocessing": Call(
        lambda: {"model_or_cfg": PREPROCESSING},
        kinds={"model_or_cfg": lambda x: [*preprocessing_config(x), *values(another)(x)]},
    ),
    "hub.HubModel.from_wrapper": Call(lambda: {"model": model()}, kinds=of_a_name),
    "hub.HubModel.save_pretrained": Call(
        lambda: {"save_directory": folder() / "new"},
        of=hub_model,
        kinds={"save_directory": paths("text")},
    ),
    "hub.HubModel.from_pretrained": Call(
        lambda: {"pretrained_model_name_or_path": saved_model(), "encoder": backbone()},
        kinds={
            "pretrained_model_name_or_path": paths("empty", "no", "text"),
            **all_of(
                lambda _: [*values("mlp", nn.Linear)(_), Bad("another", another, ("weight", "Linear"))],
                *("encoder", "bottleneck", "head"),
            ),
        },
    ),
    # callbacks
    "callbacks.latent_statistics": Call(
        lambda: {"posterior": bern()}, kinds={"posterior": values(None, "bern", [1])}
    ),
    "callbacks.OnlineKNN": Call(
        lambda: {"batches": loader(), "k": 1},
        call=measured,
        kinds={
            "batches": lambda x: [bad for bad in labelled(x) if bad.label[:5] not in ("label", "negat")],
            "encoder": values("missing", 3, nn.Linear),
            "k": count(0),
        },
    ),
    "callbacks.TemperatureAnnealing": Call(
        lambda: {"end": 0.25, "total_steps": 4}, kinds={"bottleneck": values(3, True)}
    ),
    "callbacks.TemperatureAnnealing.load_state_dict": Call(
        lambda: {"state_dict": {"start": 1.0}},
        of=lambda: public("callbacks").TemperatureAnnealing(0.25, 4),
        kinds={"state_dict": values(None, "x", {})},
    ),
    "callbacks.LatentMonitor": Call(
        dict,
        call=monitored,
        kinds={
            "bottlenecks": lambda _: [
                *values(3, True, "missing")(_),
                Bad("one missing", ["bottleneck", "missing"], ("'missing'",)),
                Bad("[3]", [3], ("3", "int")),
            ]
        },
    ),
}

EXEMPT = {
    **dict.fromkeys(
        (
            "bottleneck.BottleneckOutput",
            "wrapper.StochConOutput",
            "export.OnnxComparison",
            "evaluation.BitStatistics",
        ),
        "a result, which the library makes",
    ),
    **{
        f"evaluation.{name}": "a result, which the library makes"
        for name in ("Encoded", "FineTuned", "ForestCurve", "ProbeResult", "RejectionCurve")
    },
    **{
        f"callbacks.{hook}": "Lightning calls it"
        for hook in (
            *(
                "LatentMonitor.on_fit_start",
                "LatentMonitor.on_train_batch_start",
                "LatentMonitor.on_train_batch_end",
            ),
            *(
                "LatentMonitor.on_exception",
                "LatentMonitor.teardown",
                "TemperatureAnnealing.setup",
                "TemperatureAnnealing.on_train_start",
            ),
            *("OnlineKNN.on_fit_start", "OnlineKNN.on_train_epoch_end"),
            *("TemperatureAnnealing.on_train_batch_end", "TemperatureAnnealing.teardown"),
        )
    },
    "encoders.Encoder.train": "torch's own",
    "evaluation.StochConTransformer.fit.y": "scikit-learn passes it, and it is not looked at",
}
"""Public names, and parameters, without rows."""

# ---- the table -------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A bad call."""

    name: str
    parameter: str
    bad: Bad

    def __str__(self) -> str:
        return f"{self.name}({self.parameter}={self.bad.label})"

    def call(self) -> object:
        """A valid call made anew, since models may change, with the bad value."""
        called, arguments = valid(self.name)
        return called(**arguments | {self.parameter: self.bad.value})


def surface() -> dict[str, Any]:
    """Every public function, constructor and method with its own parameters, by its name."""
    found: dict[str, Any] = {}
    for module_name in MODULES:
        for name in public(module_name).__all__:
            value = getattr(public(module_name), name)
            own = f"{module_name}.{name}"
            if inspect.isclass(value):
                found[own] = value
                methods = {key: getattr(value, key) for key in vars(value) if not key.startswith("_")}
                found |= {f"{own}.{key}": m for key, m in methods.items() if inspect.isroutine(m)}
            elif inspect.isfunction(value):
                found[own] = value
    return found


def parameters(name: str, function: Any) -> dict[str, inspect.Parameter]:
    """Those that need rows; `**options` are checked by whoever gets them."""
    found = inspect.signature(function).parameters.items()
    return {
        key: p
        for key, p in found
        if key != "self" and p.kind is not p.VAR_KEYWORD and not {name, f"{name}.{key}"} & EXEMPT.keys()
    }


def valid(name: str) -> tuple[Callable[..., object], dict[str, Any]]:
    """What is called, and with what."""
    call = CALLS[name]
    if call.of is not None:
        return getattr(call.of(), name.rpartition(".")[2]), call.arguments()
    return call.call or public(name), call.arguments()


@functools.cache
def table() -> tuple[Row, ...]:
    """All rows. A bad value that is an iterator is used up by its call."""
    return tuple(_rows())


def _rows() -> Iterator[Row]:
    for name, function in surface().items():
        if name not in CALLS:
            continue
        good = CALLS[name].arguments()
        for key, parameter in parameters(name, function).items():
            kind = CALLS[name].kinds.get(key) or KINDS.get(key)
            for bad in [] if kind is None else kind(good.get(key)):
                is_good = bad.value is None and "None" in f"{parameter.default} {parameter.annotation}"
                if not is_good:
                    yield Row(name, key, bad)
