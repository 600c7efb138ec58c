"""Brings the measured results into the pages: figures copied, tables made from the files the run wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

FIGURES = ("loss.png", "f1_against_bits.png", "bit_usage.png")


def bring_in(app: Any) -> None:
    """Copy figures and write the tables to include.

    Raises:
        ExtensionError: for a file that is missing or does not have the expected form.
    """
    source = Path(app.srcdir) / app.config.cifar10_results
    for name in ("results.json", "table.md", *FIGURES):
        if not (source / name).is_file():
            raise ExtensionError(
                f"the page on CIFAR-10 needs {name} in {app.config.cifar10_results}, where it is missing; it is "
                "put there by examples/publish.py after examples/cifar10_full.py --preset quick"
            )
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name in FIGURES:
        shutil.copyfile(source / name, folder / name)
    try:
        conditions = measured_under(json.loads((source / "results.json").read_text()))
    except KeyError as error:
        raise ExtensionError(
            f"results.json has no {error}; measured_under() in {__file__} reads it"
        ) from error
    (folder / "table.rst").write_text(list_table(markdown_rows((source / "table.md").read_text())))
    (folder / "conditions.rst").write_text("".join(f":{name}: {value}\n" for name, value in conditions))


def measured_under(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers depend on, as the run recorded it."""
    data, environment, config = results["data"], results["environment"], results["config"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return [
        ("Command", f"``{results['command']}``"),
        ("Data", f"{data['name']}; {data['train']:,} training images, {data['test']:,} test images"),
        ("Epochs", f"{config['epochs']} of batch {config['batch_size']}, seed {config['seed']}"),
        ("Machine", f"{environment['gpu'] or 'no GPU'}; {environment['machine']}"),
        ("Versions", f"Python {environment['python']}, {packages}"),
        ("Commit", f"``{environment['commit']}``, {results['date']}"),
    ]


def markdown_rows(table: str) -> list[list[str]]:
    """Cells of a Markdown table, header first."""
    lines = [line.strip() for line in table.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    if len(rows) < 3 or len({len(row) for row in rows}) != 1:
        raise ExtensionError(
            f"table.md must hold one Markdown table with a header, got {len(rows)} lines of it"
        )
    return [rows[0], *rows[2:]]


def list_table(rows: list[list[str]], kind: str = "results") -> str:
    """The rows as a reStructuredText table; a cell of a lone dash stays text, and what has an @ is no address."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :class: {kind}", ""]
    for row in rows:
        cells = [r"\-" if cell == "-" else cell.replace("@", r"\@") for cell in row]
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return "\n".join(lines) + "\n"


def setup(app: Any) -> ExtensionMetadata:
    """Bring the results in before any page is read; the page on the paper's table is made by the same means."""
    app.setup_extension("reproduction")
    app.add_config_value("cifar10_results", "", "env", str)
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
