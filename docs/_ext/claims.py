"""Tables of what was measured for the claims, made from `examples/results/paper/<claim>.json`."""

import csv
import io
import json
import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

from sphinx.util.typing import ExtensionMetadata

RESULTS = Path(__file__).parents[2] / "examples" / "results"
CLAIMS = ("table", "compression", "bits", "capacity", "collapse", "dims", "counting", "uncertainty")
OURS = ("codes", "settings")


def read(claim: str) -> dict[str, Any]:
    """Content of a results file, which `examples/paper/<claim>.py` writes."""
    content: dict[str, Any] = json.loads((RESULTS / "paper" / f"{claim}.json").read_text())
    return content


def shown(cell: Any, form: str) -> str:
    """A cell as text; of several seeds their mean and sample standard deviation."""
    if cell is None or isinstance(cell, str):
        return cell or "-"
    if not isinstance(cell, dict | list):
        return f"{cell:{form}}"
    numbers = list(cell.values()) if isinstance(cell, dict) else cell
    spread = f" ± {statistics.stdev(numbers):{form}}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):{form}}{spread}"


def rows(table: dict[str, Any]) -> list[list[str]]:
    """Cells of a table as text, header first."""
    cells = [zip(row, table["formats"], strict=True) for row in table["rows"]]
    return [table["columns"], *([shown(*cell) for cell in row] for row in cells)]


def directive(cells: list[list[str]], kind: str = "results") -> str:
    """A reStructuredText table of these cells, header first."""
    text = io.StringIO()
    # A leading bullet, and bars anywhere, are markup.
    escaped = [[re.sub(r"^[-+*](?= |$)|\|", r"\\\g<0>", cell) for cell in row] for row in cells]
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(escaped)
    options = f".. csv-table::\n   :header-rows: 1\n   :class: {kind}\n\n"
    return options + textwrap.indent(text.getvalue(), "   ")


def write(app: Any) -> None:
    """Write the tables that pages include."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    objective = json.loads((RESULTS / "objective.json").read_text())
    (folder / "objective.rst").write_text(directive(rows(objective["table"])))
    for name, claims in {"paper": CLAIMS, "ours": OURS}.items():
        summary = [["claim", "in our runs", "what we measured", "epochs", "seeds"]]
        for results in map(read, claims):
            (folder / f"claim_{results['claim']}.rst").write_text(directive(rows(results["table"])))
            row = [results["paper"], f"**{results['verdict'] or 'open'}**", results["finding"]]
            summary.append([*row, str(results["epochs"]), str(results["seeds"])])
        (folder / f"claims_{name}.rst").write_text(directive(summary, "results sentences"))


def setup(app: Any) -> ExtensionMetadata:
    """Write the tables before any page is read."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
