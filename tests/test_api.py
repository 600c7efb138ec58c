"""The surface: names, signatures and defaults that the design fixes, and docstrings that say what they take."""

import doctest
import importlib
import inspect
import pkgutil
import re
from importlib import metadata
from pathlib import Path

import pytest

import stochastic_bottleneck
from stochastic_bottleneck import InfoNCELoss, StochasticBottleneck, StochConWrapper, codes, functional

PACKAGE = Path(stochastic_bottleneck.__file__).parent
ROOT = PACKAGE.parent


def modules():
    """Every module of the package, by its name inside it; "" is the package."""
    prefix = "stochastic_bottleneck."
    found = [info.name for info in pkgutil.walk_packages(stochastic_bottleneck.__path__, prefix)]
    return {name.removeprefix(prefix): importlib.import_module(name) for name in found} | {
        "": stochastic_bottleneck
    }


MODULES = modules()
PUBLIC_MODULES = {
    name: module
    for name, module in MODULES.items()
    if not any(part.startswith("_") for part in name.split("."))
}

# ---- names -------------------------------------------------------------------------------------------------

FIXED = {
    stochastic_bottleneck: {
        "StochasticBottleneck",
        "BottleneckOutput",
        "InfoNCELoss",
        "StochConWrapper",
        "StochConOutput",
        "BernoulliPosterior",
        "GaussianPosterior",
        "TemperatureSchedule",
        "Encoder",
        "as_encoder",
        "cached_backward",
        "codes",
        "functional",
        "__version__",
    },
    functional: {
        "info_nce",
        "relaxed_bernoulli_rsample",
        "relaxed_bernoulli_rsample_kl",
        "gaussian_rsample",
        "gaussian_rsample_kl",
    },
    codes: {"pack_bits", "unpack_bits", "hamming_distance", "compression_ratio"},
}


@pytest.mark.parametrize("module", FIXED, ids=lambda module: module.__name__)
def test_names_of_the_design_are_public(module):
    assert FIXED[module] <= set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_lists_what_exists_once(name):
    module = PUBLIC_MODULES[name]
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_leaves_out_nothing_public(name):
    """Every class and function that a module defines itself is in its list or has an underscore."""
    module = PUBLIC_MODULES[name]
    own = {
        key
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    }
    assert {key for key in own if not key.startswith("_")} <= set(module.__all__)


def test_star_import_is_the_list():
    names = {}
    exec("from stochastic_bottleneck import *", names)
    assert names.keys() - {"__builtins__"} == set(stochastic_bottleneck.__all__)


# ---- signatures --------------------------------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty

# Positional parameters and keyword-only ones, in order, with their defaults.
SIGNATURES = {
    StochasticBottleneck: (
        {"kind": "bern", "dim": 128},
        {
            "in_features": None,
            "out_features": None,
            "temperature": 1.0,
            "hard": False,
            "variance": "diagonal",
            "projector": "linear",
            "upsampler": "linear",
        },
    ),
    StochasticBottleneck.forward: (
        {"self": REQUIRED, "features": REQUIRED, "opposing": None},
        {"sample": None, "generator": None},
    ),
    StochasticBottleneck.posterior: ({"self": REQUIRED, "features": REQUIRED, "opposing": None}, {}),
    InfoNCELoss: (
        {"temperature": 0.5},
        {"gather_distributed": False, "group": None, "reduction": "mean", "block_size": None},
    ),
    InfoNCELoss.forward: ({"self": REQUIRED, "v": REQUIRED, "v_prime": REQUIRED}, {}),
    StochConWrapper: (
        {"encoder": REQUIRED},
        {
            "kind": "bern",
            "dim": 128,
            "bottleneck": None,
            "head": None,
            "projection_dim": 128,
            "variance_from": "opposing",
            "symmetric": False,
        },
    ),
    StochConWrapper.forward: ({"self": REQUIRED, "x": REQUIRED, "x_prime": REQUIRED}, {}),
    StochConWrapper.encode: ({"self": REQUIRED, "x": REQUIRED, "representation": "h"}, {}),
    StochConWrapper.from_simclr: (
        {"model": REQUIRED},
        {"kind": "bern", "dim": 128, "encoder": None, "head": None},
    ),
    functional.info_nce: ({"v": REQUIRED, "v_prime": REQUIRED, "temperature": 0.5}, {}),
    functional.gaussian_rsample: ({"mean": REQUIRED, "log_std": REQUIRED, "noise": None}, {}),
    functional.relaxed_bernoulli_rsample: (
        {"logits": REQUIRED, "temperature": REQUIRED, "hard": False, "noise": None},
        {},
    ),
    codes.pack_bits: ({"z": REQUIRED}, {}),
    codes.unpack_bits: ({"codes": REQUIRED, "dim": REQUIRED}, {}),
    codes.hamming_distance: ({"a": REQUIRED, "b": REQUIRED}, {}),
    codes.compression_ratio: ({"image_shape": REQUIRED, "bits": REQUIRED, "bits_per_channel": 8}, {}),
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signature_is_the_designs(function):
    """More may be added, by keyword and with a default; what is there stays."""
    positional, keyword_only = SIGNATURES[function]
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found.items()) == list(positional.items())
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert list(found.items())[: len(keyword_only)] == list(keyword_only.items())
    assert REQUIRED not in found.values()
    assert not any(p.kind is p.VAR_POSITIONAL for p in parameters)


@pytest.mark.parametrize(
    ("output", "fields"),
    [
        ("BottleneckOutput", ("features", "z", "posterior")),
        ("StochConOutput", ("v", "v_prime", "h", "h_prime", "z", "posterior")),
        ("BernoulliPosterior", ("logits", "temperature")),
        ("GaussianPosterior", ("mean", "log_std")),
    ],
)
def test_fields_of_a_tuple_are_the_designs(output, fields):
    assert getattr(stochastic_bottleneck, output)._fields == fields


@pytest.mark.parametrize("posterior", ["BernoulliPosterior", "GaussianPosterior"])
@pytest.mark.parametrize("method", ["rsample", "rsample_kl", "mode", "kl", "entropy", "log_prob"])
def test_posteriors_have_the_designs_methods(posterior, method):
    assert callable(getattr(getattr(stochastic_bottleneck, posterior), method))


# ---- docstrings --------------------------------------------------------------------------------------------

DOCUMENTED = {
    value: f"{name}.{key}"
    for name, module in PUBLIC_MODULES.items()
    for key in module.__all__
    if inspect.isclass(value := getattr(module, key)) or inspect.isfunction(value)
}


def section(docstring, name):
    """Body of one section of a Google docstring, or an empty string."""
    found = re.search(rf"^{name}:\n((?:(?:    .*)?\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return found[1] if found else ""


def entries(body):
    """First words of a section's entries."""
    return re.findall(r"^    \*{0,2}(\w+):", body, re.MULTILINE)


@pytest.mark.parametrize("documented", DOCUMENTED, ids=DOCUMENTED.get)
def test_docstring_has_a_summary_and_every_argument(documented):
    docstring = documented.__doc__
    summary = inspect.cleandoc(docstring).split("\n\n")[0]
    assert summary.endswith(".")
    assert "\n" not in summary
    arguments = [name for name in inspect.signature(documented).parameters if name != "self"]
    assert entries(section(docstring, "Args")) == arguments


def test_the_reader_of_docstrings_reads_google_style():
    docstring = """Summary.

    Args:
        x: first, over
            two lines: not an entry. Shape: (N, D)
        **options: rest.

    Returns:
        y: no argument.
    """
    assert entries(section(docstring, "Args")) == ["x", "options"]
    assert section(docstring, "Raises") == ""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = MODULES[name]
    results = doctest.testmod(module)
    assert results.failed == 0
    # Every example was found: none sits where doctest does not look.
    assert results.attempted == Path(module.__file__).read_text(encoding="utf-8").count(">>> ")


# ---- packaging ---------------------------------------------------------------------------------------------


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_written_in_one_place():
    version = stochastic_bottleneck.__version__
    assert metadata.version("stochastic-bottleneck") == version
    written = [path for path in PACKAGE.rglob("*.py") if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert written == [PACKAGE / "_version.py"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version\s*=", project, re.MULTILINE)
