"""Brings the benchmarks into their page: tables and figures of the committed results, or a note that there are none."""

import json
import sys
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata


def bring_in(app: Any) -> None:
    """Write a file to include for each benchmark.

    Raises:
        ExtensionError: for a results file that does not have the expected form.
    """
    source = Path(app.srcdir) / app.config.benchmark_results
    root = str(Path(app.srcdir).parent)
    if root not in sys.path:
        sys.path.append(root)
    import benchmarks
    from benchmarks import figures, tables

    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name in benchmarks.NAMES:
        path = source / f"{name}.json"
        if path.is_file():
            try:
                results = json.loads(path.read_text())
                text = page_part(tables, results)
                pictures = figures.draw(tables.benchmark_of(name), results)
            except (KeyError, TypeError, ValueError) as error:
                raise ExtensionError(
                    f"{path} cannot be read ({error!r}); run python -m benchmarks {name} again"
                ) from error
            for stem, picture in pictures.items():
                (folder / f"benchmark_{stem}.svg").write_text(picture)
                text += figure(stem, tables.benchmark_of(name).title)
        else:
            text = f".. note::\n\n   Not measured yet: no results of ``python -m benchmarks {name}`` are committed.\n"
        (folder / f"benchmark_{name}.rst").write_text(text)
    (folder / "benchmark_h100.rst").write_text(on_a_gpu(tables, source / "h100"))


def page_part(tables: Any, results: dict[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    """What was compared, the tables but for those of some headings, and the conditions."""
    benchmark = tables.benchmark_of(results["benchmark"])
    conditions = (f":{name}: {escape(name, value)}" for name, value in tables.conditions(results))
    parts = [
        benchmark.note,
        *(table.rst() for table in tables.tables(benchmark, results) if table.title not in leave_out),
        "\n".join(conditions),
    ]
    return "\n\n".join(parts) + "\n\n"


def on_a_gpu(tables: Any, folder: Path) -> str:
    """Shortened runs on a GPU, whose targets were set for CPUs."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        parts += [
            f".. rubric:: {tables.benchmark_of(path.stem).title}",
            page_part(tables, results, ("Targets",)),
        ]
    return "\n\n".join(parts)


def escape(name: str, value: str) -> str:
    """A command as code."""
    return f"``{value}``" if name == "Command" else value


def figure(stem: str, title: str) -> str:
    """A figure with the words for those who do not see it."""
    kind = stem.rpartition("_")[2]
    what = {"time": "time against N", "memory": "extra memory against N"}.get(kind, "median times")
    return f".. figure:: /_generated/benchmark_{stem}.svg\n   :alt: {title}: {what}; its numbers are in the tables.\n\n"


def setup(app: Any) -> ExtensionMetadata:
    """Bring the results in before any page is read."""
    app.add_config_value("benchmark_results", "", "env", str)
    app.connect("builder-inited", bring_in)
    return {"parallel_read_safe": True}
