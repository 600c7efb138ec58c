"""The README's code runs, and its tables are those of the committed results."""

import json
import re
from pathlib import Path

import cifar10_full
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_its_python_runs():
    two_lines, *rest = blocks("python")
    names = {}
    exec(compile("".join(rest), "README.md", "exec"), names)
    assert [names[name].shape for name in ("codes", "features", "uncertainty")] == [(8, 16), (8, 32), (8,)]
    assert names["loss"].isfinite()
    assert len(two_lines.splitlines()) == 2
    assert two_lines in rest[0]


def test_ci_runs_its_commands():
    ci = (ROOT / ".ci" / "run").read_text()
    followed = re.findall(r'follow_readme "(.+)"', ci)
    named = [m[1] for block in blocks("bash") if (m := re.match(r"# (set up .+)\n", block))]
    assert sorted(named) == sorted(followed) == ["set up and pass the tests", "set up and run the main job"]


def test_its_presets_are_those_of_the_script():
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", README, re.MULTILINE)}
    for name, (_, settings) in cifar10_full.PRESETS.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert {settings.encoder, str(settings.epochs), str(settings.batch_size)} <= set(cells)


@pytest.mark.parametrize("table", ["examples/results/cifar10_quick.md", "benchmarks/results/table.md"])
def test_its_tables_are_up_to_date(table):
    lines = [line.strip() for line in (ROOT / table).read_text().splitlines() if line.strip().startswith("|")]
    assert lines
    assert [line for line in lines if line not in README] == []


def test_the_quick_run_beat_both_baselines():
    results = json.loads((ROOT / "examples" / "results" / "cifar10_quick.json").read_text())
    models, baselines = results["models"], results["baselines"].values()
    assert set(models) == {"simclr", "bern", "gauss", "supervised"}
    assert all("finetuned" in model for model in models.values())
    bar = max(baseline["h"]["probe"] for baseline in baselines)
    assert all(models[name]["h"]["probe"] > bar for name in ("simclr", "bern", "gauss"))
    assert "dirty" not in results["commit"]
