"""Bad calls of every public function and method: a valid call in which one argument has a bad value.

The valid call passes the required parameters of the signature: the good value of a parameter is found by its name in
`GOOD`, its bad values in `KINDS`, so that a new function whose parameters have the usual names needs no entry. An entry
for one function alone has the function's name in front; with such an entry an optional parameter is passed too.
"""

import functools
import inspect
import pkgutil
import re
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import bad_values as kinds
import numpy as np
import torch
import torch.distributed as dist
from bad_values import INF, NAN, Bad, Kind
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from stochastic_bottleneck import (
    BernoulliPosterior,
    ClipLoss,
    InfoNCELoss,
    StochasticBottleneck,
    StochConLoss,
    StochConWrapper,
    SupConLoss,
)

PACKAGE = "stochastic_bottleneck"
MODULES = [
    info.name
    for info in pkgutil.iter_modules(import_module(PACKAGE).__path__)
    if info.name[0] != "_" and info.name != "kernels"
]


def public(name: str) -> Any:
    """The object of a public name that starts with a module of the package."""
    first, *rest = name.split(".")
    return functools.reduce(getattr, rest, import_module(f"{PACKAGE}.{first}"))


def by_name(*entries: tuple[Any, str]) -> dict[str, Any]:
    """A table from pairs of a value and the names that it belongs to."""
    return {name: value for value, names in entries for name in names.split()}


# ---- good values -----------------------------------------------------------------------------------------------

N, D, F, P = 8, 4, 6, 5
IMAGE = (3, 8, 8)
BITS = np.array([[i >> j & 1 for j in range(D)] for i in range(N)])
CODES = torch.arange(2 * N, dtype=torch.uint8).reshape(N, 2)
LABELS = np.arange(2 * N) % 2
FEATURES = np.random.default_rng(0).normal(size=(2 * N, F)) + 3 * LABELS[:, None]
LINEAR = nn.Linear(2, 2)
PREPROCESSING = {"input_size": IMAGE, "crop_pct": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def floats(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def images(n: int = N) -> torch.Tensor:
    return floats(n, *IMAGE)


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(), torch.arange(N) % 2)]


def backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, F, 3), nn.ReLU())


def bottleneck(kind: str = "bern") -> StochasticBottleneck:
    return StochasticBottleneck(kind, D, in_features=F)


def model() -> StochConWrapper:
    return StochConWrapper(backbone(), dim=D, projection_dim=P, feature_dim=F)


class SimCLR(nn.Module):
    """A model to be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.projection_head = backbone(), nn.Linear(F, P)


def hub_model() -> Any:
    return public("hub").HubModel(backbone(), dim=D, projection_dim=P, feature_dim=F)


def bern() -> BernoulliPosterior:
    return BernoulliPosterior(floats(N, D), torch.tensor(1.0))


def gauss() -> Any:
    return public("posteriors").GaussianPosterior(floats(N, D), floats(N, D))


def schedule() -> Any:
    return public("schedules").TemperatureSchedule(bottleneck(), end=0.5, total_steps=4)


TEMPORARY = tempfile.TemporaryDirectory()
FOLDER = Path(TEMPORARY.name)
(FOLDER / "text").write_text("neither ONNX nor a folder")
(FOLDER / "empty").mkdir()


@functools.cache
def onnx_file() -> tuple[Path, StochConWrapper]:
    path, exported = FOLDER / "model.onnx", model()
    public("export").export_onnx(exported, path, images(2))
    return path, exported


@functools.cache
def saved_model() -> Path:
    hub_model().save_pretrained(FOLDER / "saved")
    return FOLDER / "saved"


def forest_curve() -> Any:
    return public("evaluation").ForestCurve((1, 4), (0.2, 0.5), (0, 1, 2, 3))


def rejection_curve() -> Any:
    return public("evaluation").rejection_curve(floats(4), np.array([1, 0, 1, 1]))


GOOD: dict[str, Callable[[], Any]] = by_name(
    # Tensors
    (lambda: floats(N, D), "v logits mean log_std z like noise"),
    (lambda: floats(N, D) + 0.1, "v_prime losses.InfoNCELoss.forward.v_prime losses.SupConLoss.forward.v_prime"),
    (lambda: torch.arange(N) % 3, "losses.SupConLoss.forward.labels"),
    (
        lambda: floats(N, D) + 0.2,
        "losses.ClipLoss.forward.keys losses.ClipLoss.forward.queries losses.ClipLoss.forward.negatives",
    ),
    (lambda: floats(2, N, D), "losses.StochConLoss.forward.output losses.StochConLoss.terms.output"),
    (lambda: floats(2, N, D) + 0.1, "losses.StochConLoss.forward.v_prime losses.StochConLoss.terms.v_prime"),
    (
        lambda: BernoulliPosterior(floats(2, N, D), torch.tensor(1.0)),
        "losses.StochConLoss.forward.posterior losses.StochConLoss.terms.posterior",
    ),
    (lambda: floats(2, N, F).numpy(), "views"),
    (lambda: floats(2, N, F).numpy(), "evaluation.BottleneckTransformer.fit.X"),
    (lambda: floats(N, F).numpy(), "evaluation.BottleneckTransformer.transform.X"),
    (lambda: floats(N, F), "features bottleneck.StochasticBottleneck.forward.opposing"),
    (lambda: floats(N, F), "bottleneck.StochasticBottleneck.posterior.opposing"),
    (images, "images x x_prime"),
    (lambda: images(2), "example_images export.verify_onnx.images"),
    (lambda: (images(), images()), "gradient_cache.cached_backward.inputs"),
    (lambda: (floats(4, 2), floats(4, 2)), "distributed.gather_rows.tensors"),
    # Arrays
    (lambda: BITS, "bits codes.pack_bits.z"),
    (lambda: CODES, "codes a b"),
    (lambda: FEATURES, "train_features"),
    (lambda: FEATURES[:N], "test_features"),
    (lambda: LABELS, "train_labels"),
    (
        lambda: LABELS[:N],
        "labels test_labels query_labels database_labels correct positive evaluation.bit_statistics.labels",
    ),
    (lambda: CODES, "queries database"),
    (lambda: floats(N, 9).numpy(), "evaluation.asymmetric_topk.queries evaluation.rescore.queries"),
    (lambda: floats(N, 9).numpy(), "evaluation.rescore.database"),
    (lambda: np.arange(3 * N).reshape(N, 3) % N, "candidates found true"),
    (lambda: floats(N).numpy(), "uncertainty scores"),
    (lambda: images().numpy(), "X plots.bit_images.images plots.certain_images.images"),
    (lambda: np.full((N, 4), 0.25), "probabilities"),
    (lambda: floats(N, D).numpy(), "probs"),
    # Numbers and words
    (lambda: 0.5, "temperature end"),
    (lambda: torch.tensor(0.5), "functional.info_nce.temperature"),  # which min_temperature bounds
    (
        lambda: 1,
        "fitting.fit_bottleneck.epochs evaluation.BottleneckTransformer.epochs evaluation.fine_tune.epochs "
        "evaluation.forest_curve.jobs",
    ),
    (lambda: 2, "step classes evaluation.forest_curve.trees"),
    (lambda: 2, "plots.bit_images.count plots.certain_images.count"),
    (lambda: 3, "evaluation.knn_accuracy.k evaluation.retrieval_scores.k"),
    (lambda: 2, "k"),
    (lambda: 4, "total_steps chunk_size fitting.fit_bottleneck.batch_size evaluation.BottleneckTransformer.batch_size"),
    (lambda: 5, "evaluation.linear_probe.max_iter"),
    (lambda: 8, "codes.compression_ratio.bits"),
    (lambda: 9, "dim"),
    (lambda: F, "in_features bottleneck.StochasticBottleneck.in_features wrapper.StochConWrapper.feature_dim"),
    (lambda: IMAGE, "image_shape"),
    (lambda: (2,), "evaluation.forest_curve.counts"),
    (lambda: (0, 1), "plots.bit_images.bits"),
    (lambda: "bits", "wrapper.StochConWrapper.encode.representation"),
    (lambda: 1, "callbacks.OnlineKNN.k"),
    (lambda: ["cat"] * N, "plots.certain_images.captions"),
    # Objects
    (backbone, "backbone encoder encoders.as_encoder.model hub.HubModel.from_pretrained.encoder"),
    (model, "model"),
    (lambda: import_module("torchvision.models").resnet18(), "encoders.small_image_stem.model"),
    (SimCLR, "wrapper.StochConWrapper.from_simclr.model encoders.simclr_parts.model"),
    (bottleneck, "bottleneck"),
    (bern, "posterior"),
    (lambda: lambda output: InfoNCELoss()(*output[:2]), "loss"),
    (loader, "train test batches"),
    (lambda: PREPROCESSING, "model_or_cfg"),
    (lambda: {"a": forest_curve()}, "plots.f1_against_bits.curves"),
    (lambda: {"a": rejection_curve()}, "plots.rejection_curves.curves"),
    (lambda: schedule().state_dict(), "schedules.TemperatureSchedule.load_state_dict.state_dict"),
    (lambda: {"start": 1.0}, "callbacks.TemperatureAnnealing.load_state_dict.state_dict"),
    # Files
    (lambda: FOLDER / "new.onnx", "path"),
    (lambda: onnx_file()[0], "export.verify_onnx.path"),
    (lambda: onnx_file()[1], "export.verify_onnx.model"),
    (lambda: FOLDER / "new", "save_directory"),
    (saved_model, "pretrained_model_name_or_path"),
)

OBJECTS: dict[str, Callable[[], Any]] = {
    "bottleneck.StochasticBottleneck": bottleneck,
    "bottleneck.StochasticBottleneck.forward": lambda: bottleneck("gauss"),
    "bottleneck.StochasticBottleneck.posterior": lambda: bottleneck("gauss"),
    "wrapper.StochConWrapper": model,
    "encoders.Encoder": lambda: public("encoders").Encoder(backbone(), F),
    "losses.InfoNCELoss": InfoNCELoss,
    "losses.SupConLoss": SupConLoss,
    "losses.ClipLoss": lambda: ClipLoss(symmetric=False),
    "losses.StochConLoss": StochConLoss,
    "posteriors.BernoulliPosterior": bern,
    "posteriors.GaussianPosterior": gauss,
    "schedules.TemperatureSchedule": schedule,
    "evaluation.StochConTransformer": lambda: public("evaluation").StochConTransformer(model()),
    "evaluation.BottleneckTransformer": lambda: fit_transformer(),
    "hub.HubModel": hub_model,
    "callbacks.TemperatureAnnealing": lambda: public("callbacks").TemperatureAnnealing(0.25, 4),
}
"""Makes the object of a class's methods, or of one method."""


# ---- calls -----------------------------------------------------------------------------------------------------


def gather_rows(*, tensors: Any, **options: Any) -> object:
    """In a process group that sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        return public("distributed").gather_rows(*tensors, **options)
    finally:
        dist.destroy_process_group()


def cached_backward(*, model: Any, loss: Any, inputs: Any, **options: Any) -> object:
    return public("gradient_cache").cached_backward(model, loss, *inputs, **options)


def monitor(**arguments: Any) -> object:
    """Start training, when the names are looked up."""
    return public("callbacks").LatentMonitor(**arguments).on_fit_start(None, model())


def measure(**arguments: Any) -> object:
    """End an epoch of a Trainer with one process."""
    knn, module = public("callbacks").OnlineKNN(**arguments), nn.ModuleDict({"model": model()})
    module.device, module.log = torch.device("cpu"), lambda *_, **__: None
    trainer = Mock(is_global_zero=True, current_epoch=0, max_epochs=1)
    trainer.precision_plugin.convert_input = trainer.strategy.broadcast = lambda x: x
    trainer.precision_plugin.forward_context = nullcontext
    knn.on_fit_start(trainer, module)
    return knn.on_train_epoch_end(trainer, module)


def transform(**arguments: Any) -> object:
    """Use the transformer: scikit-learn's estimators check their arguments only then."""
    return public("evaluation").StochConTransformer(**arguments).transform(images().numpy())


def fit_transformer(**arguments: Any) -> Any:
    """Fit the transformer, which checks its arguments only then."""
    arguments = {"dim": D, "epochs": 1, "batch_size": 4} | arguments
    return public("evaluation").BottleneckTransformer(**arguments).fit(floats(2, N, F))


CALLS: dict[str, Callable[..., object]] = {
    "posteriors.BernoulliPosterior": lambda **arguments: BernoulliPosterior(**arguments).rsample(),
    "posteriors.GaussianPosterior": lambda **arguments: type(gauss())(**arguments).rsample(),
    "distributed.gather_rows": gather_rows,
    "gradient_cache.cached_backward": cached_backward,
    "evaluation.StochConTransformer": transform,
    "evaluation.BottleneckTransformer": fit_transformer,
    "callbacks.LatentMonitor": monitor,
    "callbacks.OnlineKNN": measure,
}
"""What is called instead of the public name itself."""

# ---- bad values ------------------------------------------------------------------------------------------------


def states(x: dict[str, Any]) -> list[Bad]:
    """Of a TemperatureSchedule's state."""
    changes = [("shape", "bogus"), ("total_steps", 1.5), ("total_steps", 0), ("last_step", "3")]
    changes += [("last_step", -1), ("start", NAN), ("start", 0), ("end", "0.5"), ("end", -1)]
    without = {key: value for key, value in x.items() if key != "end"}
    return [
        *kinds.values(None, [])(x),
        Bad("without end", without, ("end",)),
        *(Bad(f"{key}: {value!r}", x | {key: value}, (repr(value),), (key,)) for key, value in changes),
    ]


def curves(x: dict[str, Any]) -> list[Bad]:
    other = rejection_curve() if type(x["a"]).__name__ == "ForestCurve" else forest_curve()
    entries = [(type(bad).__name__, bad) for bad in (3, other)]
    return [
        Bad("{}", {}, ("{}", "none", "empty")),
        *kinds.values(None, list(x.values()))(x),
        *(Bad(f"{{'a': {kind}}}", {"a": bad}, (kind, repr(bad))) for kind, bad in entries),
    ]


def files(*names: str) -> Kind:
    """Of paths; these names are in the folder, but unusable, or not in it."""
    return lambda x: [*kinds.path(x), *(Bad(name, str(FOLDER / name), (str(FOLDER / name),)) for name in names)]


def some_images_or_batches(x: torch.Tensor) -> list[Bad]:
    tensors = [bad for bad in image_batch(x) if bad.label not in ("None", "list", "ndarray")]
    return [*tensors, *kinds.batches(loader())]


NO_TENSORS = [
    Bad("()", (), ("none", "()", "empty")),
    *(Bad(repr((x,)), (x,), (type(x).__name__,)) for x in ("x", None, [1.0], np.zeros(2))),
]
INPUTS = [
    *NO_TENSORS,
    Bad("0-d", (torch.tensor(1.0), torch.tensor(1.0)), ("()",)),
    Bad("fewer rows", (images(), images()[1:]), (f"{N - 1}", str((N - 1, *IMAGE)))),
    Bad("empty", (images(0), images(0)), (str((0, *IMAGE)), "empty")),
]
TENSORS = [*NO_TENSORS, Bad("one shorter", (floats(4, 2), floats(3, 2)), ("(3, 2)",))]
another_module = kinds.also(kinds.values("mlp", nn.Linear), Bad("another", LINEAR, ("weight", "Linear")))
bern_bottleneck = kinds.also(kinds.values(None, "bern", model()), Bad("of kind gauss", bottleneck("gauss"), ("gauss",)))
preprocessing = kinds.also(
    kinds.values(None, "timm:resnet18", 3),
    Bad("{}", {}, ("none",)),
    Bad("crop_pct=7", {**PREPROCESSING, "crop_pct": 7}, ("7",)),
)
representations = kinds.also(
    kinds.choice,
    Bad("()", (), ("()", "none", "empty")),
    *(Bad(repr(x), x, (repr(x), repr(x[-1]))) for x in (["h", "unknown"], ("h", 3))),
)
some_bottlenecks = kinds.also(
    kinds.values(3, True, "missing"),
    Bad("one missing", ["bottleneck", "missing"], ("'missing'",)),
    Bad("[3]", [3], ("3", "int")),
)
OF_ROWS = ("0-d", "empty", "narrower", "fewer dimensions")
ELSEWHERE = ("meta", "float64")  # another device or dtype than the model's
of_two_views = kinds.tensor("0-d", "empty", "fewer rows", "fewer dimensions", *ELSEWHERE)
two_directions = kinds.tensor("0-d", "fewer rows", "narrower", "fewer dimensions", *ELSEWHERE)
some_views = kinds.also(
    kinds.array("0-d", "empty", "fewer dimensions", "nan", "inf", wrong=("uint8", "int64", "complex64")),
    *kinds.values(3, "features", {}, iter([(floats(N, F), floats(N, F))]))(None),
    Bad("one view", floats(1, N, F), (f"(1, {N}, {F})",)),
    Bad("two shapes", (floats(N, F), floats(N, F + 1)), (str((N, F + 1)),)),
    Bad("nan in a batch", [(floats(N, F), floats(N, F) * NAN)], ("nan",)),
    Bad("no batches", [], ("[]", "no", "empty")),
    Bad("[3]", [3], ("3",)),
)
image_batch = kinds.tensor("0-d", "empty", "fewer dimensions", *ELSEWHERE)
no_temperature = kinds.tensor("meta", "more dimensions", wrong=("int64",))
label_tensor = kinds.tensor("0-d", "fewer rows", "more dimensions", "meta", wrong=("float32", "bool", "complex64"))
pictures = kinds.array("0-d", "empty", "fewer dimensions", "nan", "2", "-1")
part_of_simclr = kinds.values("missing", 3, nn.Linear)
encoder_names = ("resnet18", "other:resnet18", "torchvision:no_such_model", "timm:no_such_model", "timm:a/b")

KINDS: dict[str, Kind] = by_name(
    # Numbers
    (kinds.number(0, -1), "location_std start end lr"),
    (kinds.number(0, -1, 1e-46), "temperature"),
    (lambda x: [*kinds.number(0, -1)(x), *no_temperature(x)[:5]], "functional.info_nce.temperature"),
    (kinds.number(-0.1, 1.5), "chance shrinkage"),
    (kinds.number(0, 1), "query_share"),
    (kinds.number(-1), "weight_decay stochastic deterministic covariance coding_rate kl"),
    (kinds.number(-1), "losses.StochConLoss.codes"),
    (kinds.number(0, -1, 1e-46), "code_temperature min_temperature"),
    (kinds.values(2, None, "16", (0,), (2.5,)), "prefixes"),
    (kinds.count(0), "hidden_dim"),
    (kinds.count(0, 1, 99), "fitting.fit_bottleneck.batch_size evaluation.BottleneckTransformer.batch_size"),
    (kinds.number(-1, 99), "warmup_epochs"),
    (kinds.number(0, 1, -0.2), "validation_share"),
    (kinds.values("0.5", True, None, NAN, -1), "tolerance"),
    (kinds.values("3", None, NAN), "step"),
    (kinds.values("2", True, 2.5, 0), "jobs"),
    (kinds.count(0), "dim in_features out_features projection_dim feature_dim block_size batch_size"),
    (kinds.count(0), "chunk_size total_steps epochs bins count max_iter trees opset_version bits_per_channel"),
    (kinds.count(0), "codes.compression_ratio.bits every_n_epochs callbacks.OnlineKNN.k"),
    (kinds.count(-1), "samples neighbours"),
    (kinds.count(0, 99), "k codes.unpack_bits.dim evaluation.asymmetric_topk.dim"),
    (kinds.count(0), "r"),
    (kinds.count(1), "classes"),
    (kinds.seed, "seed"),
    (kinds.numbers(2, 0, 2.5), "counts"),
    (kinds.numbers(8, 0, 2.5), "image_shape"),
    (kinds.numbers(0.5, 0, INF), "regularisations"),
    (kinds.numbers(1, -1, D, 1.5), "plots.bit_images.bits"),
    # Flags and choices
    (kinds.flag, "hard learnable_scale frozen gather_distributed ring symmetric detach_encoder checkpoint_encoder"),
    (kinds.flag, "learnable sample strip dynamic_batch validate check_replay progress"),
    (kinds.choice, "kind output variance variance_from normalization reduction representation shape"),
    (kinds.choice, "metric precision"),
    (representations, "evaluation.encode.representation"),
    # Objects
    (kinds.device, "device map_location"),
    (kinds.generator, "generator"),
    (kinds.module, "backbone encoder head wrapper.StochConWrapper.from_simclr.model"),
    (kinds.module, "encoders.as_encoder.model encoders.simclr_parts.model encoders.small_image_stem.model"),
    (kinds.module, "evaluation.encode.model evaluation.fine_tune.model gradient_cache.cached_backward.model"),
    (part_of_simclr, "wrapper.StochConWrapper.from_simclr.encoder"),
    (part_of_simclr, "wrapper.StochConWrapper.from_simclr.head"),
    (part_of_simclr, "encoders.simclr_parts.encoder encoders.simclr_parts.head callbacks.OnlineKNN.encoder"),
    (kinds.values(*encoder_names, None, nn.Linear), "hub.HubModel.encoder"),
    (kinds.values("resnet18", "torchvision:resnet18", "timm:no_such_model", 3), "encoder_name"),
    (kinds.values("x", [1], {"a": 1}), "encoder_options"),
    (kinds.values("yes", 1, None, True), "small_images"),  # True needs the encoder's name
    (preprocessing, "pretrained_cfg"),
    (kinds.also(preprocessing, *kinds.values(LINEAR)(None)), "model_or_cfg"),
    (another_module, "hub.HubModel.from_pretrained.encoder hub.HubModel.from_pretrained.head"),
    (another_module, "hub.HubModel.from_pretrained.bottleneck"),
    (kinds.values("cubic", 3, None, nn.Linear), "projector upsampler"),
    (kinds.values(None, "resnet18", StochConWrapper, LINEAR), "model"),
    (kinds.values("bern", None, StochasticBottleneck, LINEAR), "bottleneck"),
    (bern_bottleneck, "schedules.TemperatureSchedule.bottleneck"),
    (kinds.values(3, True), "callbacks.TemperatureAnnealing.bottleneck"),
    (some_bottlenecks, "bottlenecks"),
    (kinds.values(None, "bern", [1]), "posterior"),
    (kinds.values("sgd", torch.optim.SGD([torch.zeros(1)], 0.1)), "optimizer"),
    (kinds.values(None, "mean", torch.tensor(2.0), lambda a, b: a), "loss"),
    (
        kinds.values("mean", torch.tensor(2.0), LINEAR),
        "fitting.fit_bottleneck.loss evaluation.BottleneckTransformer.loss",
    ),
    (kinds.values(None, "x", 3, InfoNCELoss), "losses.StochConLoss.forward.output losses.StochConLoss.terms.output"),
    (kinds.values(3, "backward"), "backward"),
    (kinds.values(3, "data", [0, 1]), "group"),
    (kinds.values("x", np.empty(2, object)), "axes"),
    (curves, "curves"),
    (states, "state_dict"),
    (kinds.values(None, "x", {}), "callbacks.TemperatureAnnealing.load_state_dict.state_dict"),
    (kinds.lines, "captions"),
    (kinds.labelled_by_class, "train test"),
    (kinds.labelled, "batches"),
    (some_images_or_batches, "evaluation.encode.images"),
    # Files
    (files("empty"), "path"),
    (files("empty", "no", "text"), "export.verify_onnx.path pretrained_model_name_or_path"),
    (files("text"), "save_directory"),
    (files("empty", "text", "no/file"), "checkpoint"),
    # Tensors
    (kinds.tensor("0-d", "empty", "fewer rows", "narrower", "fewer dimensions", *ELSEWHERE), "v v_prime keys"),
    (kinds.tensor("0-d", "empty", "fewer rows", "narrower", *ELSEWHERE), "losses.ClipLoss.forward.queries"),
    (kinds.tensor("0-d", "narrower", "fewer dimensions", *ELSEWHERE), "negatives"),
    (two_directions, "losses.StochConLoss.forward.v_prime losses.StochConLoss.terms.v_prime"),
    (some_views, "views evaluation.BottleneckTransformer.fit.X"),
    (kinds.array("0-d", "empty", "narrower", "fewer dimensions"), "evaluation.BottleneckTransformer.transform.X"),
    (kinds.tensor(), "like logits"),
    (image_batch, "images example_images x x_prime"),
    (of_two_views, "wrapper.StochConWrapper.forward.x wrapper.StochConWrapper.forward.x_prime"),
    (kinds.tensor("0-d", "fewer dimensions", "float64"), "encoders.Encoder.forward.x"),
    (kinds.tensor("fewer rows", "meta"), "mean"),
    (kinds.tensor("narrower", "meta"), "log_std"),
    (kinds.tensor("fewer rows"), "functional.gaussian_entropy.mean"),  # only its shape is used
    (kinds.tensor("narrower"), "functional.gaussian_entropy.log_std"),
    (kinds.tensor("narrower", "fewer rows", "meta", wrong=("complex64",)), "noise"),
    (kinds.tensor("narrower", "meta", wrong=("complex64",)), "z"),
    (kinds.tensor("narrower", "meta"), "functional.relaxed_bernoulli_log_prob.z"),
    (kinds.tensor("narrower", "meta"), "posteriors.BernoulliPosterior.relaxed_log_prob.z"),
    (kinds.tensor("0-d", "fewer rows", "narrower", "fewer dimensions", *ELSEWHERE), "opposing"),
    (kinds.tensor("0-d", "empty", "narrower", "fewer dimensions", "more dimensions", *ELSEWHERE), "features"),
    (lambda _: INPUTS, "inputs"),
    (lambda _: TENSORS, "tensors"),
    # Arrays
    (kinds.codes("narrower", "0-d", "meta"), "a b"),
    (kinds.codes("0-d"), "codes"),
    (kinds.codes(*OF_ROWS, "meta"), "queries database"),
    (kinds.array(*OF_ROWS, "nan", "inf"), "evaluation.asymmetric_topk.queries evaluation.rescore.queries"),
    (kinds.array(*OF_ROWS, "nan", "inf"), "evaluation.rescore.database"),
    (kinds.array("0-d", "empty", "fewer dimensions", "fewer rows", "0.5", "-1", "99"), "candidates"),
    (kinds.array("0-d", "empty", "fewer dimensions", "fewer rows", "0.5"), "found"),
    (kinds.array("0-d", "empty", "fewer dimensions", "fewer rows", "0.5", "-1"), "true"),
    (kinds.array("empty", "fewer dimensions", "narrower", "nan", "inf"), "train_features test_features"),
    (kinds.labels(), "labels test_labels query_labels database_labels"),
    (label_tensor, "losses.SupConLoss.forward.labels"),
    (kinds.labels("-1", "9"), "evaluation.expected_calibration_error.labels"),
    (kinds.train_labels, "train_labels"),
    (kinds.array("0-d", "empty", "more dimensions", "nan", "inf"), "uncertainty scores"),
    (kinds.array("0-d", "fewer rows", "more dimensions", "nan", "inf"), "plots.certain_images.uncertainty"),
    (kinds.array("0-d", "fewer rows", "more dimensions", "nan", "0.5", "2"), "correct positive"),
    (kinds.array("0-d", "empty", "fewer dimensions", wrong=("uint8", "int64")), "X"),
    (pictures, "plots.bit_images.images plots.certain_images.images"),
    (kinds.tensor_or_array("0-d", "empty", "fewer dimensions", "more dimensions", "2", "0.5", "nan"), "bits"),
    (kinds.tensor_or_array("0-d", "2", "0.5", "nan"), "codes.pack_bits.z"),
    (kinds.array("0-d", "empty", "fewer dimensions", "nan", "2", "-1"), "probabilities"),
    (kinds.array("0-d", "fewer rows", "fewer dimensions", "nan", "2", "-1"), "probs"),
)

# ---- the table -------------------------------------------------------------------------------------------------

EXEMPT = re.compile(  # called by Lightning; torch's own; passed by scikit-learn and ignored
    r"callbacks\.\w+\.(on_\w+|setup|teardown)|encoders\.Encoder\.train|evaluation\.\w+Transformer\.fit\.y"
)


class Row(NamedTuple):
    """A bad call."""

    name: str
    parameter: str
    bad: Bad

    def __str__(self) -> str:
        return f"{self.name}({self.parameter}={self.bad.label})"

    def call(self) -> object:
        """Make a valid call, since models may change, with the bad value."""
        function, arguments = valid_call(self.name)
        return function(**arguments | {self.parameter: self.bad.value})


@functools.cache
def surface() -> dict[str, dict[str, inspect.Parameter]]:
    """The parameters that need rows, of every public function, constructor and method by its name."""
    functions: dict[str, Any] = {}
    for module_name in MODULES:
        for name in public(module_name).__all__:
            value, own = getattr(public(module_name), name), f"{module_name}.{name}"
            is_class = inspect.isclass(value)
            if is_class and issubclass(value, tuple) and "Posterior" not in name:
                continue  # a result, which the library creates
            if is_class or inspect.isfunction(value):
                functions[own] = value
            methods = {key: getattr(value, key) for key in vars(value) if key[0] != "_"} if is_class else {}
            functions |= {f"{own}.{key}": m for key, m in methods.items() if inspect.isroutine(m)}
    found = {}
    for name, function in functions.items():
        # The receiver of **options checks them.
        parameters = {
            key: p
            for key, p in inspect.signature(function).parameters.items()
            if key != "self" and p.kind is not p.VAR_KEYWORD and not EXEMPT.fullmatch(f"{name}.{key}")
        }
        if parameters and not EXEMPT.fullmatch(name):
            found[name] = parameters
    return found


def entry(table: dict[str, Any], name: str, parameter: str, default: Any = None) -> Any:
    """The entry of a function's parameter, or of every parameter of that name."""
    return table.get(f"{name}.{parameter}", table.get(parameter, default))


def valid_call(name: str) -> tuple[Callable[..., object], dict[str, Any]]:
    """A function, and good arguments."""
    arguments = {
        key: entry(GOOD, name, key)()
        for key, parameter in surface()[name].items()
        if parameter.default is parameter.empty or f"{name}.{key}" in GOOD
    }
    owner, _, method = name.rpartition(".")
    if owner in OBJECTS and not inspect.ismethod(public(name)):
        return getattr(OBJECTS.get(name, OBJECTS[owner])(), method), arguments
    return CALLS.get(name, public(name)), arguments


@functools.cache
def table() -> list[Row]:
    """All rows. A bad value that is an iterator is used up by its call."""
    rows = []
    for name, parameters in surface().items():
        for key, parameter in parameters.items():
            kind, good = entry(KINDS, name, key, lambda _: []), entry(GOOD, name, key, lambda: None)
            none_is_good = "None" in f"{parameter.default} {parameter.annotation}"
            bad = [bad for bad in kind(good()) if bad.value is not None or not none_is_good]
            rows += [Row(name, key, value) for value in bad]
    return rows
