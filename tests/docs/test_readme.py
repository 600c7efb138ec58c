"""The README tells the truth: its code runs, and its tables are what the committed results hold."""

import json
import re
from pathlib import Path

import cifar10_full
import pytest
import torch
from publish import TABLE, publish, with_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = sorted(path.parent for path in (ROOT / "examples" / "results").glob("*/results.json"))


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_its_python_runs():
    two_lines, *rest = blocks("python")
    names = {}
    for block in rest:
        exec(compile(block, "README.md", "exec"), names)
    assert names["codes"].shape == (8, 16)
    assert names["codes"].dtype == torch.uint8
    assert names["features"].shape == (8, 32)
    assert names["uncertainty"].shape == (8,)
    assert len(two_lines.splitlines()) == 2
    assert two_lines in rest[0]
    names["loss"] = None
    exec(compile(two_lines, "README.md", "exec"), names)
    assert names["loss"].isfinite()


def test_ci_follows_its_commands():
    ci = (ROOT / ".ci" / "run").read_text()
    followed = re.findall(r'follow_readme "(.+)"', ci)
    named = [m[1] for block in blocks("bash") if (m := re.match(r"# (set up .+)\n", block))]
    assert sorted(named) == sorted(followed) == ["set up and pass the tests", "set up and run the main job"]


def test_its_presets_are_those_of_the_script():
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", README, re.MULTILINE)}
    assert set(rows) == set(cifar10_full.PRESETS)
    for name, preset in cifar10_full.PRESETS.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        shown = [preset[key] for key in ("encoder", "epochs", "batch_size", "optimizer")]
        assert [cells[2], *cells[4:7]] == [str(value) for value in shown]


def test_its_tables_are_up_to_date():
    assert TABLE.search(README)
    assert with_tables(README) == README


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_published_results_follow_from_their_json(folder, tmp_path):
    publish(folder, tmp_path / "again")
    assert (folder / "table.md").read_text() == (tmp_path / "again" / "table.md").read_text()
    assert {p.name for p in folder.iterdir()} - {"run"} == {p.name for p in (tmp_path / "again").iterdir()}


def test_the_quick_run_beat_both_baselines():
    results = json.loads((ROOT / "examples" / "results" / "cifar10_quick" / "results.json").read_text())
    assert set(results["models"]) == {"simclr", "bern", "gauss", "supervised"}
    models = {name: model for name, model in results["models"].items() if name != "supervised"}
    assert all("finetuned" in model for model in models.values())
    bar = max(baseline["h"]["probe"] for baseline in results["baselines"].values())
    assert all(model["h"]["probe"] > bar for model in models.values())
    assert results["seconds"]["this_call"] < 480
    assert "dirty" not in results["environment"]["commit"]


def test_a_stale_table_is_seen(tmp_path):
    (tmp_path / "table.md").write_text("| new |\n")
    text = "a\n<!-- table: table.md -->\n\n| old |\n\n<!-- end of table -->\nb"
    assert with_tables(text, tmp_path) == text.replace("old", "new")
