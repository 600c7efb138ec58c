"""Directives that show committed results: `results` for any JSON file, `benchmark` for a benchmark's."""

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


def list_table(rows: list[list[str]], style: str = "results") -> str:
    """Format rows, the header first, as a reStructuredText table."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :class: {style}", ""]
    for row in rows:
        cells = [r"\-" if cell == "-" else cell.replace("@", r"\@") for cell in row]
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return "\n".join(lines) + "\n"


def shown(cell: str | float) -> str:
    """A cell of a row of results as text."""
    return cell if isinstance(cell, str) else f"{cell:,.0f}" if cell >= 1000 else f"{cell:.4g}"


def fill_in(template: str, results: dict[str, Any]) -> str:
    """Format a template such as `{settings[epochs]} epochs`, or give "-" where the results lack a value."""
    try:
        return template.format_map(results)
    except (KeyError, IndexError, TypeError):
        return "-"


class Results(SphinxDirective):
    """Show JSON files of results, given relative to the page.

    Without content the file's `rows` are shown. Otherwise each line `label: template` of the content is a row and each
    file a column; the option `header` names the columns. One file without `header` becomes a list of fields.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"header": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Read the files and parse the text made from them."""
        paths = [Path(self.env.relfn2path(name)[1]) for name in self.arguments[0].split()]
        for path in paths:
            self.env.note_dependency(str(path))
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            place = self.get_location()
            logger.warning("no results in %s", missing[0], type="results", subtype="missing", location=place)
            return self.parse_text_to_nodes(f".. note::\n\n   Not measured yet: {missing[0]} is missing.\n")
        try:
            return self.parse_text_to_nodes(self.text(paths))
        except (ValueError, KeyError, TypeError) as error:
            raise self.error(f"{self.arguments[0]} cannot be read: {error!r}") from error

    def text(self, paths: list[Path]) -> str:
        """Write the reStructuredText to parse."""
        found = [json.loads(path.read_text()) for path in paths]
        if not self.content:
            rows = found[0]["rows"]
            return list_table([[*rows[0]], *([shown(cell) for cell in row.values()] for row in rows)])
        rows = []
        for line in self.content:
            label, _, template = line.partition(": ")
            cells = [fill_in(template, results) for results in found]
            if all(cell == "-" for cell in cells):
                raise ValueError(f"no file has the values of {template!r}")
            rows.append([label, *cells])
        if "header" not in self.options:
            return "".join(f":{label}: {cell}\n" for label, cell in rows)
        return list_table([["", *self.options["header"].split(", ")], *rows])


class Benchmark(Results):
    """Show a benchmark's tables and the conditions of the run; from a GPU without targets, which are for CPUs."""

    has_content = False

    def text(self, paths: list[Path]) -> str:
        """Let the benchmarks format their own results."""
        from benchmarks import tables

        results = json.loads(paths[0].read_text())
        benchmark = tables.benchmark_of(results["benchmark"])
        parts = [benchmark.note]
        for table in tables.tables(benchmark, results):
            if paths[0].parent.name != "h100" or table.title != "Targets":
                parts.append(table.rst())
        for name, value in tables.conditions(results):
            parts.append(f":{name}: ``{value}``" if name == "Command" else f":{name}: {value}")
        return "\n\n".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("results", Results)
    app.add_directive("benchmark", Benchmark)
    return {"parallel_read_safe": True}
