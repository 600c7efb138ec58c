"""Directives that show committed results: `results` for JSON and Markdown files, `benchmark` for a benchmark's JSON."""

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


def markdown_rows(text: str) -> list[list[str]]:
    """Read the cells of a Markdown table, the header first."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    if len(rows) < 3 or len({len(row) for row in rows}) != 1:
        raise ValueError(f"expected one Markdown table with a header, got {len(rows)} lines of a table")
    return [rows[0], *rows[2:]]


def fill_in(template: str, results: dict[str, Any]) -> str:
    """Format a template such as `{settings[epochs]} epochs`, or give "-" where the results lack a value."""
    try:
        return template.format_map(results)
    except (KeyError, IndexError, TypeError):
        return "-"


class Results(SphinxDirective):
    """Show files of results, given relative to the page.

    A Markdown file's table is shown as it is. Of JSON files, each line `label: template` of the content is a row and
    each file a column; the option `header` names the columns. One JSON file without `header` becomes a list of fields.
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
        if paths[0].suffix == ".md":
            return list_table(markdown_rows(paths[0].read_text()))
        found = [json.loads(path.read_text()) for path in paths]
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
