"""Kinds of parameters: functions from a good value to bad ones, with the words that an error message must show."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

NAN, INF = float("nan"), float("inf")


class Bad(NamedTuple):
    """A bad value."""

    label: str
    value: Any
    shows: tuple[str, ...]  # a message must show one of these words
    names: tuple[str, ...] = ()  # accepted in a message instead of the argument's name


Kind = Callable[[Any], list[Bad]]

# ---- numbers, words, objects -----------------------------------------------------------------------------------


def values(*bad: Any) -> Kind:
    """These values, which a message shows as they are or by their type."""

    def kind(_: Any) -> list[Bad]:
        return [Bad(_label(x), x, (repr(x), type(x).__name__, getattr(x, "__name__", repr(x)))) for x in bad]

    return kind


def _label(x: Any) -> str:
    is_object = isinstance(x, (nn.Module, np.random.Generator, np.ndarray, torch.optim.Optimizer))
    return getattr(x, "__name__", type(x).__name__ if is_object else repr(x))


def also(kind: Kind, *bad: Bad) -> Kind:
    return lambda x: [*kind(x), *bad]


def number(*out_of_range: float) -> Kind:
    return values("0.5", True, None, NAN, INF, *out_of_range)


def count(*out_of_range: int) -> Kind:
    return values("4", True, None, 2.5, *out_of_range)


def numbers(good: float, *out_of_range: Any) -> Kind:
    """For a sequence of numbers such as `good`."""

    def kind(x: Any) -> list[Bad]:
        return [
            *(Bad(repr((y,)), (y,), (repr((y,)), repr(y))) for y in (str(good), True, NAN, None, *out_of_range)),
            Bad("()", (), ("()", "tuple", "empty", "none")),
            *values(good, str(good), None)(x),
            Bad("generator", (y for y in (good,)), ("generator",)),
        ]

    return kind


def lines(good: list[str]) -> list[Bad]:
    """For a sequence of strings."""
    n = len(good)
    nones = Bad("[None, ...]", [None] * n, ("None", "NoneType"))
    return [Bad("fewer", good[:-1], (str(n - 1),)), nones, *values("x" * n, 3)(good)]


flag = values("False", 1, None)
choice = values("unknown", 3, None)
seed = values("0", True, 2.5, -1)
device = values("gpu", 2.5)
generator = values(0, np.random.default_rng(0))
path = values(3, None, ["a"])
module = values(None, "resnet18", nn.Linear, [nn.Identity()])

# ---- tensors and arrays ----------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[Any], Any]] = {
    "0-d": lambda x: x.reshape(-1)[0],
    "empty": lambda x: x[:0],
    "fewer rows": lambda x: x[:-1],
    "narrower": lambda x: x[..., :-1],
    "fewer dimensions": lambda x: x[0],
    "more dimensions": lambda x: x[None],
}
SIZES = {"fewer rows": 0, "narrower": -1, "empty": 0}
"""Dimension whose size a message may show instead of the shape."""


def _shapes(x: Any, names: tuple[str, ...]) -> list[Bad]:
    """The good value in other shapes."""
    bad = []
    for name in (name for name in names if name in SHAPES):
        y = SHAPES[name](x)
        y = np.asarray(y) if isinstance(x, np.ndarray) else y
        sizes = (str(y.shape[SIZES[name]]),) if name in SIZES else ()
        bad.append(Bad(name, y, (str(tuple(y.shape)), *sizes, *(("empty",) if name == "empty" else ()))))
    return bad


def _layouts(x: Any) -> list[Bad]:
    """The good value as a tensor without a dense block of memory."""
    x = torch.as_tensor(x)
    nested = torch.nested.nested_tensor([x.flatten(), x.flatten()[:-1]], layout=torch.jagged)
    return [Bad("sparse", x.to_sparse(), ("sparse", "sparse_coo")), Bad("nested", nested, ("nested",))]


def _meta(x: Any) -> Bad:
    """The good value without data, on another device than the other arguments."""
    return Bad("meta", torch.as_tensor(x).to("meta"), ("meta",))


def tensor(*also: str, wrong: tuple[str, ...] = ("complex64", "uint8", "int64")) -> Kind:
    """For a dense tensor of other dtypes than the wrong ones."""

    def kind(x: torch.Tensor) -> list[Bad]:
        dtypes = (*wrong, *(name for name in also if name == "float64"))
        return [
            *(Bad(name, x.to(getattr(torch, name)), (name,)) for name in dtypes),
            *_layouts(x),
            *([_meta(x)] if "meta" in also else []),
            *_shapes(x, also),
            Bad("list", x.tolist(), ("list",)),
            Bad("ndarray", x.numpy(), ("ndarray",)),
            *values(None)(x),
        ]

    return kind


def codes(*also: str) -> Kind:
    """For packed codes, tensors or arrays."""

    def kind(x: torch.Tensor) -> list[Bad]:
        bad = tensor(*also, wrong=("int64", "float32", "bool"))(x)
        without_bytes = Bad("without bytes", x[..., :0], (str(tuple(x[..., :0].shape)), "0"))
        return [*(b for b in bad if b.label != "ndarray"), without_bytes]

    return kind


def array(*also: str, wrong: tuple[str, ...] = ()) -> Kind:
    """For an array, a tensor or a list of real numbers; dtypes in `wrong` and numbers in `also` are bad."""

    def kind(x: np.ndarray) -> list[Bad]:
        strings, objects = x.astype(str), x.astype(object)
        objects.reshape(-1)[0] = None
        entries = [name for name in also if name not in SHAPES]
        return [
            Bad("strings", strings, (str(strings.dtype), "str")),
            Bad("None inside", objects, ("object", "None")),
            Bad("complex", x.astype(complex), ("complex128", "complex")),
            *_layouts(x),
            _meta(x),
            *_shapes(x, also),
            *(Bad(name, x.astype(name), (name,)) for name in wrong),
            *(Bad(f"{name} inside", _with_entry(x, float(name)), (name, "1")) for name in entries),
            *values(None)(x),
        ]

    return kind


def _with_entry(x: np.ndarray, value: float) -> np.ndarray:
    changed = x.astype(np.float64)
    changed.reshape(-1)[0] = value
    return changed


def tensor_or_array(*also: str) -> Kind:
    """As `array`, for functions that take no lists."""
    return lambda x: [*array(*also)(x), Bad("list", x.tolist(), ("list",))]


def labels(*also: str) -> Kind:
    """For one integer per image."""
    return array("0-d", "fewer rows", "more dimensions", "nan", "0.5", *also)


def train_labels(x: np.ndarray) -> list[Bad]:
    return [*labels()(x), Bad("one class", np.zeros_like(x), ("1", "one", "0"))]


def batches(x: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Bad]:
    """For batches of images and labels."""
    [(images, y)] = x
    n = len(y)
    return [
        *values(None, 3)(x),
        Bad("[]", [], ("empty", "none", "[]")),
        Bad("['x']", ["x"], ("'x'", "str")),
        Bad("[None]", [None], ("None", "NoneType")),
        Bad("uint8 images", [(images.to(torch.uint8), y)], ("uint8",)),
        Bad("float64 images", [(images.double(), y)], ("float64",)),
        Bad("arrays", [(images.numpy(), y)], ("ndarray", "tuple")),
        Bad("fewer labels", [(images, y[:-1])], (f"{n - 1}", f"({n - 1},)")),
        Bad("more labels", [(images, torch.cat([y, y]))], (f"{2 * n}", f"({2 * n},)")),
        Bad("strings as labels", [(images, ["a"] * n)], ("'a'", "str", "list", "<U1")),
        Bad("nan as labels", [(images, torch.full((n,), NAN))], ("nan", "float32", str(n))),
    ]


def labelled(x: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Bad]:
    """For batches that are read more than once, all with labels."""
    alone = Bad("images alone", [x[0][0]], ("alone", "only images", "Tensor"))
    return [*batches(x), Bad("generator", (batch for batch in x), ("generator",)), alone]


def labelled_by_class(x: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Bad]:
    """For batches with labels below a number of classes."""
    [(images, y)] = x
    too_large = Bad("label too large", [(images, y + 90)], ("90", "91"))
    return [*labelled(x), too_large, Bad("negative label", [(images, -y)], ("-1",))]
