"""The directive that shows committed results, in a small Sphinx project."""

import io
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGE = """Page
====

.. results:: a.json b.json
   :header: first, second

   Probe: {h[probe]:.1%}

.. results:: a.json

   Command: ``{command}``

.. results:: a.md
.. results:: missing.json
.. results:: a.json

   Neighbours: {h[knn]}
"""


def test_files_become_tables_and_missing_files_and_values_are_warnings(tmp_path, monkeypatch):
    (tmp_path / "index.rst").write_text(PAGE)
    (tmp_path / "a.json").write_text('{"command": "run a", "h": {"probe": 0.534}}')
    (tmp_path / "b.json").write_text('{"command": "run b"}')
    (tmp_path / "a.md").write_text("Title\n\n| model | probe |\n| --- | --- |\n| SimCLR | 53.4 |\n| pixels | - |\n")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    monkeypatch.delitem(sys.modules, "results", raising=False)
    log, settings = io.StringIO(), {"extensions": ["results"]}
    Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "tree", "text", settings, None, log).build()
    text = (tmp_path / "out" / "index.txt").read_text()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    for row in (["first", "second"], ["Probe", "53.4%", "-"], ["SimCLR", "53.4"], ["pixels", "-"]):
        assert row in cells or ["", *row] in cells
    assert 'Command:\n   "run a"' in text
    assert "no results in missing.json" in log.getvalue()
    assert "no file has the values of '{h[knn]}'" in log.getvalue()
