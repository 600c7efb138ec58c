"""The public API: names, signatures and defaults, and docstrings that describe every argument."""

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
PREFIX = "stochastic_bottleneck."
NAMES = [info.name for info in pkgutil.walk_packages(stochastic_bottleneck.__path__, PREFIX)]
MODULES = {name.removeprefix(PREFIX): importlib.import_module(name) for name in NAMES}
MODULES[""] = stochastic_bottleneck
PUBLIC_MODULES = {name: module for name, module in MODULES.items() if not re.search(r"(^|\.)(_|kernels\b)", name)}

# ---- names -------------------------------------------------------------------------------------------------

FIXED = {
    stochastic_bottleneck: "StochasticBottleneck BottleneckOutput InfoNCELoss StochConWrapper StochConOutput "
    "BernoulliPosterior GaussianPosterior TemperatureSchedule Encoder as_encoder cached_backward codes functional "
    "__version__",
    functional: "info_nce relaxed_bernoulli_rsample relaxed_bernoulli_rsample_kl gaussian_rsample gaussian_rsample_kl",
    codes: "pack_bits unpack_bits hamming_distance compression_ratio",
}


@pytest.mark.parametrize("module", FIXED, ids=lambda module: module.__name__)
def test_fixed_names_are_public(module):
    assert set(FIXED[module].split()) <= set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_lists_every_public_name_once(name):
    module = PUBLIC_MODULES[name]
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    defined = {
        key
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    }
    assert {key for key in defined if not key.startswith("_")} <= set(module.__all__)


# ---- signatures --------------------------------------------------------------------------------------------

SIGNATURES = {
    StochasticBottleneck: "kind='bern', dim=128, *, in_features=None, out_features=None, temperature=1.0, "
    "hard=False, variance='diagonal', projector='linear', upsampler='linear'",
    StochasticBottleneck.forward: "self, features, opposing=None, *, sample=None, generator=None",
    StochasticBottleneck.posterior: "self, features, opposing=None",
    InfoNCELoss: "temperature=0.5, *, gather_distributed=False, group=None, reduction='mean', block_size=None",
    InfoNCELoss.forward: "self, v, v_prime=None",
    StochConWrapper: "encoder, *, kind='bern', dim=128, bottleneck=None, head=None, projection_dim=128, "
    "variance_from='opposing', symmetric=False",
    StochConWrapper.forward: "self, x, x_prime",
    StochConWrapper.encode: "self, x, representation='h'",
    StochConWrapper.from_simclr: "model, *, kind='bern', dim=128, encoder=None, head=None",
    functional.info_nce: "v, v_prime, temperature=0.5",
    functional.gaussian_rsample: "mean, log_std, noise=None",
    functional.relaxed_bernoulli_rsample: "logits, temperature, hard=False, noise=None",
    codes.pack_bits: "z",
    codes.unpack_bits: "codes, dim",
    codes.hamming_distance: "a, b",
    codes.compression_ratio: "image_shape, bits, bits_per_channel=8",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_fixed(function):
    """Only optional keyword arguments may be added."""
    expected = inspect.signature(eval(f"lambda {SIGNATURES[function]}: None")).parameters.values()
    found = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    assert found[: len(expected)] == list(expected)
    for added in found[len(expected) :]:
        optional = added.kind is added.KEYWORD_ONLY and added.default is not added.empty
        assert optional or added.kind is added.VAR_KEYWORD


@pytest.mark.parametrize(
    ("output", "fields"),
    [
        ("BottleneckOutput", "features z posterior"),
        ("StochConOutput", "v v_prime h h_prime z posterior"),
        ("BernoulliPosterior", "logits temperature"),
        ("GaussianPosterior", "mean log_std"),
    ],
)
def test_fields_of_tuples_are_fixed(output, fields):
    found = getattr(stochastic_bottleneck, output)
    assert found._fields == tuple(fields.split())
    if output.endswith("Posterior"):
        methods = ("rsample", "rsample_kl", "mode", "kl", "entropy", "log_prob")
        assert all(callable(getattr(found, method)) for method in methods)


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
def test_docstrings_have_a_summary_and_every_argument(documented):
    docstring = documented.__doc__
    summary = inspect.cleandoc(docstring).split("\n\n")[0]
    assert summary.endswith(".")
    assert "\n" not in summary
    arguments = [name for name in inspect.signature(documented).parameters if name != "self"]
    assert entries(section(docstring, "Args")) == arguments


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(MODULES[name])
    assert results.failed == 0
    # No example is where doctest does not look.
    assert results.attempted == Path(MODULES[name].__file__).read_text(encoding="utf-8").count(">>> ")


# ---- packaging ---------------------------------------------------------------------------------------------


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_the_version_is_written_in_one_place():
    version = stochastic_bottleneck.__version__
    assert metadata.version("stochastic-bottleneck") == version
    written = [path for path in PACKAGE.rglob("*.py") if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert written == [PACKAGE / "_version.py"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version\s*=", project, re.MULTILINE)
