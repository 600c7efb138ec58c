"""What each module may import, what importing the package costs, and how long files may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stochastic_bottleneck

PACKAGE = Path(stochastic_bottleneck.__file__).parent
ROOT, NAME = PACKAGE.parent, PACKAGE.name

# The modules of the package that a module may import, all of them further down. A folder counts as one module.
ALLOWED = {
    "__init__": "wrapper fitting schedules bottleneck posteriors losses gradient_cache encoders codes functional"
    " _version",
    "callbacks": "evaluation wrapper encoders schedules bottleneck posteriors codes _simclr _arrays _extras _checks",
    "export": "_saved wrapper posteriors codes _checks _layers _replay _extras _version",
    "plots": "evaluation codes _arrays _extras _checks",
    "evaluation": "_saved _unwrap wrapper fitting losses encoders codes functional"
    " _replay _arrays _layers _extras _checks",
    "_saved": "hub _unwrap wrapper",
    "hub": "_unwrap wrapper bottleneck encoders codes _checks _layers _extras _version",
    "_unwrap": "wrapper encoders",
    "wrapper": "_extractor _timm _checks bottleneck encoders posteriors _layers _replay",
    "_extractor": "bottleneck encoders posteriors codes _checks _layers",
    "_timm": "encoders _checks",
    "fitting": "bottleneck losses functional _feature_pairs _whitening _replay _checks _extras _layers",
    "schedules": "bottleneck encoders _checks",
    "bottleneck": "posteriors _whitening _checks _layers",
    "posteriors": "functional _checks",
    "losses": "functional distributed kernels _arrays _checks",
    "gradient_cache": "_checks _replay",
    "encoders": "_simclr _strip _checks",
    "codes": "_arrays _checks _hamming",
    "functional": "kernels _checks _noise",
    "_noise": "kernels _checks",
    "distributed": "kernels _checks",
    "_simclr": "_strip",
    "_whitening": "kernels",
    "_feature_pairs": "_checks",
    "_replay": "kernels",
    **dict.fromkeys(("_checks", "_arrays", "_hamming", "_extras", "_layers", "_strip"), ""),
    **dict.fromkeys(("kernels", "_version"), ""),
}
ALLOWED = {module: set(names.split()) for module, names in ALLOWED.items()}
# Packages that a module may import besides torch and the standard library; some for type annotations alone.
PACKAGES = {
    "callbacks": {"lightning"},
    **{module: {"numpy"} for module in ("codes", "_arrays", "_feature_pairs", "_hamming", "evaluation")},
    "plots": {"numpy", "matplotlib"},
    "kernels": {"triton"},
    "hub": {"huggingface_hub", "safetensors", "PIL"},
}
KERNELS_ONLY = {"torch.compile", "torch.autograd.Function"}  # names that only kernels may use
NEEDS_AN_EXTRA = {"hub"}  # its class inherits from huggingface_hub's
EXTRAS = {
    *("faiss", "huggingface_hub", "kornia", "lightly", "lightning", "matplotlib", "onnx", "onnxruntime"),
    *("onnxscript", "pytorch_lightning", "rich", "safetensors", "sklearn", "timm", "torchvision"),
}

MAX_LINES = 350  # of a file of the package
MAX_PAPER_SCRIPT, MAX_TRACKED_FILES = 120, 330
BUDGETS = {  # lines of Python
    "examples": 4150,
    "examples/cifar10_full.py": 300,
    "examples/imagenet_full.py": 350,
    "examples/checkpointing.py": 150,
    "examples/paper": 900,
    "tests": 14800,
    "docs": 500,
    "benchmarks": 2500,
}

FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Full names of everything imported anywhere in a file, as `package.module.name`."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not resolve"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path):
    """Modules of the package that a file imports from; the package itself counts as `__init__`."""
    inside = [name.split(".")[1:] for name in imports(path) if name.split(".")[0] == NAME]
    return {rest[0] if rest and rest[0] in ALLOWED else "__init__" for rest in inside}


def used_names(path):
    """Dotted names in the code of a file, without comments and strings, with aliases of imports resolved."""
    tree, aliases = tree_of(path), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = "" if isinstance(node, ast.Import) else f"{node.module}."
            aliases |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    names = set(aliases.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            names.add(f"{aliases.get(first, first)}.{rest}")
    return names


# ---- imports -----------------------------------------------------------------------------------------------


def test_the_table_lists_every_module_and_points_down():
    assert {module_of(path) for path in FILES} == ALLOWED.keys()
    order = list(ALLOWED)
    for module, allowed in ALLOWED.items():
        assert allowed <= set(order[order.index(module) + 1 :]), module


@each_file
def test_modules_import_only_what_they_may(path):
    module = module_of(path)
    assert imported_modules(path) <= ALLOWED[module] | {module}
    packages = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {NAME, "torch"}
    assert packages <= PACKAGES.get(module, set())
    if module != "kernels":
        assert not used_names(path) & KERNELS_ONLY


@pytest.mark.parametrize(
    ("source", "modules", "names"),
    [
        (f"from {NAME} import codes, InfoNCELoss", {"codes", "__init__"}, set()),
        (f"import {NAME}", {"__init__"}, set()),
        (f"def f():\n    from {NAME}.kernels.gaussian import kl", {"kernels"}, set()),
        ("import torch as t\n@t.compile\ndef f(): ...", set(), {"torch.compile"}),
        ("from torch import compile", set(), {"torch.compile"}),
        ("from torch.autograd import Function", set(), {"torch.autograd.Function"}),
        ("from torch import autograd\nclass F(autograd.Function): ...", set(), {"torch.autograd.Function"}),
        ("import torch\n'torch.compile'  # torch.compile\ntorch.compiler.is_compiling()", set(), set()),
    ],
)
def test_imports_and_names_are_found(source, modules, names, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imported_modules(path) == modules
    assert used_names(path) & KERNELS_ONLY == names


def test_importing_the_package_imports_no_extra():
    modules = [module for module in ALLOWED if not module.startswith("_") and module not in NEEDS_AN_EXTRA]
    public = ", ".join(f"{NAME}.{module}" for module in modules)
    code = f"import sys, {public}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {NAME, "torch", "numpy"} <= set(loaded.split())
    assert not EXTRAS & set(loaded.split())


def test_examples_use_public_names_only():
    names = {path: used_names(path) | imports(path) for path in (ROOT / "examples").rglob("*.py")}
    ours = {(str(path), name) for path, found in names.items() for name in found if name.startswith(f"{NAME}.")}
    assert ours
    assert not {(path, name) for path, name in ours if "._" in name or name.startswith(f"{NAME}.kernels")}


# ---- files -------------------------------------------------------------------------------------------------


@each_file
def test_files_of_the_package_are_short_and_print_nothing(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES
    for node in ast.walk(tree_of(path)):
        where = f"line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), where  # removed under -O
        assert not (isinstance(node, ast.Name) and node.id == "print"), where


@pytest.fixture(scope="module")
def tracked():
    """All files in git."""
    try:
        run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git or a repository is needed")
    if not run.stdout:
        pytest.skip("these files are not in git")
    return [ROOT / name for name in run.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("name", BUDGETS)
def test_lines_of_python_stay_within_their_budget(name, tracked):
    files = [path for path in tracked if path.is_relative_to(ROOT / name) and path.suffix == ".py"]
    assert 0 < sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= BUDGETS[name]


def test_paper_scripts_are_short_and_files_are_few(tracked):
    paper = ROOT / "examples" / "paper"
    scripts = {path.name: path.read_text(encoding="utf-8") for path in tracked if path.parent == paper}
    long = [name for name, text in scripts.items() if len(text.splitlines()) > MAX_PAPER_SCRIPT]
    assert [name for name in long if name.endswith(".py")] == ["claim.py"]  # which the others share
    assert len(tracked) <= MAX_TRACKED_FILES
