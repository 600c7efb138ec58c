"""Sphinx configuration. The pages build without a network: pictures and formulas are made here, by code."""

import doctest
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]

project = "stochastic_bottleneck"
author = "the stochastic_bottleneck authors"
release = metadata.version("stochastic-bottleneck")
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "pictures",
    "cifar10_results",
    "search_results",
    "benchmark_results",
    "choosing",
    "claims",
    "public_names",
]
exclude_patterns = ["_build", "_generated/*.rst"]
smartquotes = False  # quotes of "bern" are code, and so are the dashes of --options
nitpicky = True
# Libraries whose documentation is not linked, because the build may not download an inventory.
# Sphinx before 9 looks for named-tuple fields' types (Tensor, Posterior) without their module.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|numpy|np|nn|NDArray|matplotlib|Axes|Figure|Images|MapMethod|Tensor|Posterior|pathlib\.Path|os\.PathLike"
        r"|collections\.abc|stochastic_bottleneck\.codes\.ArrayT)\b.*",
    )
]

cifar10_results = "../examples/results/cifar10_quick"  # relative to this folder
benchmark_results = "../benchmarks/results"  # likewise

# Scripts of the gallery run, and a script that fails fails the build. Unchanged ones are not run again; delete the
# folder `gallery` to run all.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "ignore_pattern": r"shipped\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),  # what a page shows is printed or drawn
    "image_srcset": ["2x"],
    "notebook_extensions": set(),  # a notebook would lack what lies beside the script
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,  # no page has a number that differs from build to build
    "min_reported_time": float("inf"),
}

# In docstrings, `name` is code: a link where it names something documented, plain code elsewhere.
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_typehints = "signature"
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]

# Unlike Sphinx's own, these compare the words of an error.
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
doctest_global_setup = """
import torch
from torch import nn
import stochastic_bottleneck
from stochastic_bottleneck import *
from stochastic_bottleneck.codes import *
from stochastic_bottleneck.encoders import *
from stochastic_bottleneck.evaluation import *
from stochastic_bottleneck.functional import *
from stochastic_bottleneck.plots import *

torch.manual_seed(0)
"""

html_theme = "furo"
html_title = f"stochastic_bottleneck {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def skip_tuple_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a named tuple's fields, which its docstring documents already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def short_arrays(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write an array of any shape and dtype as such."""
    any_array = r"numpy\.ndarray\[.*?dtype\[~?typing\.Any\]\]"
    return tuple(text and re.sub(any_array, "numpy.ndarray", text) for text in (signature, returns))


def plain_returns(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading "Loss in nats. Shape" as a type: what stands before a first colon is one to it."""
    first = [i + 1 for i, line in enumerate(lines[:-1]) if line.strip() == "Returns:"]
    if what == "property":
        first.append(0)
    for i in first:
        indent = len(lines[i]) - len(lines[i].lstrip())
        lines[i] = f"{' ' * indent}: {lines[i].lstrip()}"


def plain_code(app: Any, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Code in backticks that names nothing documented."""
    return contnode if node.get("reftype") == "obj" else None


def setup(app: Any) -> None:
    """Connect what docstrings need."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-signature", short_arrays)
    app.connect("autodoc-process-docstring", plain_returns, priority=400)  # before napoleon
    app.connect("missing-reference", plain_code)
