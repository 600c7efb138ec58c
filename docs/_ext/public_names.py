"""Warn of public names that no page documents; warnings fail the build."""

import pkgutil
from typing import Any

from sphinx.util import logging

import stochastic_bottleneck

logger = logging.getLogger(__name__)


def find(name: str) -> object:
    """The object of that name; None for a field that only a docstring names."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def check(app: Any, env: Any) -> None:
    """Compare the `__all__` of every public module with what the pages document, under any name of the same object."""
    documented = env.domains["py"].objects.keys()
    objects = {id(found) for name in documented if (found := find(name)) is not None}
    modules = [info.name for info in pkgutil.walk_packages(stochastic_bottleneck.__path__, "stochastic_bottleneck.")]
    for module in ["stochastic_bottleneck", *modules]:
        if "._" in module or ".kernels" in module:
            continue
        names = getattr(pkgutil.resolve_name(module), "__all__", None)
        if names is None:
            logger.warning("%s has no __all__, so its public names cannot be checked", module)
        for name in (f"{module}.{name}" for name in names or ()):
            if name not in documented and id(find(name)) not in objects:
                logger.warning("public name %s is not documented; add it to a page in docs/api", name)


def setup(app: Any) -> dict[str, bool]:
    """Run the check once all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
