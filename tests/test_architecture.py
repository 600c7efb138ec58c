"""The rooms: what each may import, what importing the package costs, and rules that hold in every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stochastic_bottleneck

PACKAGE = Path(stochastic_bottleneck.__file__).parent
EXAMPLES = PACKAGE.parent / "examples"
NAME = PACKAGE.name
MAX_LINES = 350

# Room: the rooms it may import, all of them further down. A folder is one room.
ROOMS = {
    "__init__": {
        "wrapper",
        "schedules",
        "bottleneck",
        "posteriors",
        "losses",
        "gradient_cache",
        "encoders",
        "codes",
        "functional",
        "_version",
    },
    "export": {"_saved", "wrapper", "posteriors", "codes", "_checks", "_layers", "_extras", "_version"},
    "callbacks": {
        *("evaluation", "wrapper", "encoders", "schedules", "bottleneck", "posteriors", "codes"),
        *("_arrays", "_extras", "_checks"),
    },
    "plots": {"evaluation", "codes", "_arrays", "_extras", "_checks"},
    "evaluation": {
        "_saved",
        "_unwrap",
        "wrapper",
        "encoders",
        "codes",
        "functional",
        "_arrays",
        "_layers",
        "_extras",
        "_checks",
    },
    "_saved": {"hub", "_unwrap", "wrapper"},  # of export and evaluation
    "hub": {
        "_unwrap",
        "wrapper",
        "bottleneck",
        "encoders",
        "codes",
        "_checks",
        "_layers",
        "_extras",
        "_version",
    },
    "_unwrap": {"wrapper", "encoders"},  # of _saved, hub and evaluation
    "wrapper": {"_extractor", "_timm", "_checks", "bottleneck", "encoders", "posteriors", "_layers"},
    "_extractor": {"bottleneck", "encoders", "posteriors", "codes", "_checks", "_layers"},  # of wrapper
    "_timm": {"encoders", "_checks"},  # of wrapper
    "schedules": {"bottleneck", "encoders", "_checks"},
    "bottleneck": {"posteriors", "_checks", "_layers"},
    "posteriors": {"functional", "_checks"},
    "losses": {"functional", "distributed", "_checks"},
    "gradient_cache": {"_checks", "_replay"},
    "encoders": {"_simclr", "_strip", "_checks"},
    "codes": {"_arrays", "_checks", "_hamming"},
    "functional": {"_ops", "_checks", "_noise"},
    "_noise": {"_ops", "_checks"},  # of functional
    "distributed": {"_ops", "_checks"},
    "_checks": set(),
    "_arrays": set(),  # of codes, evaluation and plots
    "_hamming": set(),  # of codes
    "_extras": set(),  # of hub, export, callbacks, plots and evaluation
    "_layers": set(),  # of bottleneck and wrapper
    "_replay": set(),  # of gradient_cache
    "_simclr": {"_strip"},  # of encoders
    "_strip": set(),  # of encoders
    "_ops": set(),
    "_version": set(),
}
OUTSIDE = {room: {"torch"} for room in ROOMS} | {
    "callbacks": {"torch", "lightning"},  # for its types alone
    "codes": {"torch", "numpy"},
    "_arrays": {"torch", "numpy"},
    "_hamming": {"torch", "numpy"},
    "evaluation": {"torch", "numpy"},
    "plots": {"torch", "numpy", "matplotlib"},  # for its types alone
    "_ops": {"torch", "triton"},
    "_extras": set(),
    "hub": {"torch", "huggingface_hub", "safetensors", "PIL"},  # PIL for its types alone
    "_version": set(),
}
"""Packages that a room may import besides the standard library."""
KERNEL_ONLY = {"torch.compile", "torch.autograd.Function"}
"""Names that stay in the room of kernels."""
EXTRAS = {
    "faiss",
    "huggingface_hub",
    "kornia",
    "lightly",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pytorch_lightning",
    "rich",
    "safetensors",
    "sklearn",
    "timm",
    "torchvision",
}
"""Packages that importing the library must not import."""
NEEDS_AN_EXTRA = {"hub"}
"""Rooms that cannot be imported without one, because their class inherits from it."""


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Full names of everything imported anywhere in a file, as `package.module.name`."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this file does not resolve"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(path):
    """Rooms of the package that a file imports from; the package itself counts as `__init__`."""
    found = set()
    for name in imports(path):
        first, *rest = name.split(".")
        if first == NAME:
            room = rest[0] if rest else "__init__"
            found.add(room if room in ROOMS else "__init__")
    return found


def used_names(path):
    """Dotted names in the code of a file (not its comments and strings), aliases of imports resolved."""
    tree, aliases = tree_of(path), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = "" if isinstance(node, ast.Import) else f"{node.module}."
            for alias in node.names:
                aliases[alias.asname or alias.name] = prefix + alias.name
    names = set(aliases.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            names.add(f"{aliases.get(first, first)}.{rest}")
    return names


# ---- the import rule ---------------------------------------------------------------------------------------


def test_the_table_names_every_room():
    assert {room_of(path) for path in FILES} == ROOMS.keys()


def test_the_table_points_down_only():
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert allowed <= set(order[order.index(room) + 1 :]), room


@each_file
def test_room_imports_only_what_the_table_allows(path):
    room = room_of(path)
    assert imported_rooms(path) <= ROOMS[room] | {room}


@each_file
def test_room_imports_only_the_packages_it_may(path):
    packages = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {NAME}
    assert packages <= OUTSIDE[room_of(path)]


@each_file
def test_only_kernels_name_the_compiler_and_autograd_functions(path):
    if room_of(path) != "_ops":
        assert not used_names(path) & KERNEL_ONLY


def test_kernels_are_seen_to_name_an_autograd_function():
    """The check above finds what it looks for."""
    kernels = [path for path in FILES if room_of(path) == "_ops"]
    assert any(used_names(path) & KERNEL_ONLY for path in kernels)


@pytest.mark.parametrize(
    ("source", "rooms", "compiler"),
    [
        (f"from {NAME} import codes, InfoNCELoss", {"codes", "__init__"}, set()),
        (f"import {NAME}", {"__init__"}, set()),
        (f"def f():\n    from {NAME}._ops.gaussian import kl", {"_ops"}, set()),
        ("import torch as t\n@t.compile\ndef f(): ...", set(), {"torch.compile"}),
        ("from torch import compile", set(), {"torch.compile"}),
        ("from torch.autograd import Function", set(), {"torch.autograd.Function"}),
        ("from torch import autograd\nclass F(autograd.Function): ...", set(), {"torch.autograd.Function"}),
        ("import torch\n'torch.compile'  # torch.compile\ntorch.compiler.is_compiling()", set(), set()),
    ],
)
def test_the_checks_find_what_they_look_for(source, rooms, compiler, tmp_path):
    path = tmp_path / "room.py"
    path.write_text(source)
    assert imported_rooms(path) == rooms
    assert used_names(path) & KERNEL_ONLY == compiler


def test_importing_the_package_imports_no_extra():
    rooms = [room for room in ROOMS if not room.startswith("_") and room not in NEEDS_AN_EXTRA]
    public = ", ".join(f"{NAME}.{room}" for room in rooms)
    code = f"import sys, {public}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {NAME, "torch", "numpy"} <= set(loaded.split())
    assert not EXTRAS & set(loaded.split())


# ---- examples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_use_public_names_only(path):
    ours = {name for name in used_names(path) | imports(path) if name.split(".")[0] == NAME}
    private = {name for name in ours if any(part.startswith("_") for part in name.split("."))}
    assert not private


def test_examples_are_seen_to_use_the_package():
    assert any(name.startswith(f"{NAME}.") for path in EXAMPLES.rglob("*.py") for name in imports(path))


# ---- every file --------------------------------------------------------------------------------------------


@each_file
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


@each_file
def test_mistakes_are_raised_and_nothing_is_printed(path):
    """`assert` disappears under -O; a library prints nothing."""
    for node in ast.walk(tree_of(path)):
        where = f"line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), where
        assert not (isinstance(node, ast.Name) and node.id == "print"), where
