"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, needed_by: str, extra: str) -> Any:
    """Import a module of an optional package, or raise an error that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is installed, but one of its own dependencies is not
        raise ModuleNotFoundError(
            f'{needed_by} needs {package}; install it with pip install "stochastic-bottleneck[{extra}]"',
            name=package,
        ) from error
