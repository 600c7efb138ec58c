"""Sphinx configuration. The pages build without a network: figures and formulas are made during the build."""

import doctest
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext"), str(HERE.parent)]

project = "stochastic_bottleneck"
author = "the stochastic_bottleneck authors"
release = version = metadata.version("stochastic-bottleneck")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "pictures",
    "results",
    "claims",
    "public_names",
]
exclude_patterns = ["_build", "_generated/*.rst"]
smartquotes = False  # they would change "bern" and --options
nitpicky = True
# Libraries whose documentation is not linked, because the build may not download an inventory.
# Sphinx before 9 looks for named-tuple fields' types (Tensor, Posterior) without their module.
ignored = r"torch|numpy|np|nn|NDArray|matplotlib|Axes|Figure|PIL|Images?|MapMethod|Tensor|Posterior"
ignored += r"|pathlib\.Path|os\.PathLike|collections\.abc|sklearn|[\w.]+\.(ArrayT|MatrixT)"
nitpick_ignore_regex = [("py:.*", rf"({ignored})\b.*")]

# A failing script fails the build. Unchanged ones are not run again; delete `docs/gallery` to run all.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "ignore_pattern": r"shipped\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "image_srcset": ["2x"],
    "notebook_extensions": set(),  # a notebook would lack the files next to the script
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,  # they would differ from build to build
    "min_reported_time": float("inf"),
}

default_role = "py:obj"  # `name` links to what is documented, and is plain code otherwise
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_typehints = "signature"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]

# Without Sphinx's IGNORE_EXCEPTION_DETAIL: the words of an error are compared.
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
doctest_global_setup = "import torch, stochastic_bottleneck\nfrom torch import nn\n" + "".join(
    f"from stochastic_bottleneck{module} import *\n"
    for module in ("", ".codes", ".encoders", ".evaluation", ".functional", ".plots")
)
doctest_global_setup += "torch.manual_seed(0)\n"

copybutton_prompt_text = r">>> |\.\.\. |\$ "  # copies the lines with prompts, without them and without the output
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"stochastic_bottleneck {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = html_show_copyright = False
html_theme_options = {
    f"{theme}_css_variables": {"color-brand-primary": blue, "color-brand-content": blue}
    for theme, blue in (("light", "#0072B2"), ("dark", "#56B4E9"))
}
html_math_renderer = "mathml"  # drawn by the browser: no script, font or network


def write_math(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, a tilde as the relation."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    formula = convert(node.astext(), display=display).replace("&#x0007E;", "&#x0223C;")
    translator.body.append(f'<div class="math">{formula}</div>' if display == "block" else formula)
    raise nodes.SkipNode


def short_arrays(app: Any, what: str, name: str, obj: Any, options: Any, *texts: str | None) -> tuple[Any, ...]:
    """Write an array of any shape and dtype as `numpy.ndarray` in signatures."""
    return tuple(text and re.sub(r"numpy\.ndarray\[.*?Any\]\]", "numpy.ndarray", text) for text in texts)


def plain_returns(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put a colon before what is returned, because napoleon takes any text before a first colon for a type."""
    first = [i + 1 for i, line in enumerate(lines[:-1]) if line.strip() == "Returns:"]
    for i in first + [0] * (what == "property"):
        text = lines[i].lstrip()
        lines[i] = f"{' ' * (len(lines[i]) - len(text))}: {text}"


def setup(app: Any) -> None:
    """Connect the functions above; leave out named tuples' fields, which their docstrings document already."""
    app.connect("autodoc-skip-member", lambda *args: type(args[3]).__name__ == "_tuplegetter" or None)
    app.connect("autodoc-process-signature", short_arrays)
    app.connect("autodoc-process-docstring", plain_returns, priority=400)  # before napoleon
    app.connect("missing-reference", lambda *args: args[3] if args[2].get("reftype") == "obj" else None)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
