"""Brings the tables of searches and duplicates into their page, from the files the runs wrote."""

import json
from pathlib import Path
from typing import Any

from cifar10_results import list_table, markdown_rows
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

RESULTS = "../examples/results/search"
"""Relative to the documentation's folder."""


def bring_in(app: Any) -> None:
    """Write a table to include for each folder of results.

    Raises:
        ExtensionError: for a file that is missing or does not have the expected form.
    """
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name in ("cifar10", "photographs", "duplicates"):
        source = Path(app.srcdir) / RESULTS / name
        try:
            results = json.loads((source / "results.json").read_text())
            conditions = (
                f":Command: ``{results['command']}``\n:Machine: {results['environment']['machine']}\n"
            )
            conditions += f":Commit: ``{results['environment']['commit']}``, {results['date']}\n"
            table = list_table(markdown_rows((source / "table.md").read_text()))
        except (OSError, KeyError, ValueError) as error:
            raise ExtensionError(f"{source} cannot be read ({error!r}); run its command again") from error
        (folder / f"search_{name}.rst").write_text(f"{table}\n{conditions}")


def setup(app: Any) -> ExtensionMetadata:
    """Bring the results in before any page is read."""
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
