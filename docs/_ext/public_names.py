"""Warns of public names that no page documents; warnings fail the build."""

import pkgutil
from typing import Any

from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

import stochastic_bottleneck

logger = logging.getLogger(__name__)


def public_names() -> list[str]:
    """Full name of everything in an `__all__` of the package and its public modules."""
    modules = ["stochastic_bottleneck"]
    for info in pkgutil.walk_packages(stochastic_bottleneck.__path__, "stochastic_bottleneck."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            modules.append(info.name)
    names = []
    for module in modules:
        public = getattr(pkgutil.resolve_name(module), "__all__", None)
        if public is None:
            logger.warning("%s has no __all__, so its public names cannot be checked", module)
        names += [f"{module}.{name}" for name in public or ()]
    return names


def check(app: Any, env: Any) -> None:
    """Compare the public names with what the pages document, under that name or another of the same object."""
    names = env.domains["py"].objects.keys()
    documented = {id(found) for name in names if (found := _resolve(name)) is not None}
    for name in public_names():
        if name not in names and id(_resolve(name)) not in documented:
            logger.warning("public name %s is not documented; add it to a page in docs/api", name)


def _resolve(name: str) -> object:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):  # a field of a named tuple that only its docstring names
        return None


def setup(app: Any) -> ExtensionMetadata:
    """Run the check once all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
