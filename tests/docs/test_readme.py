"""The README's code runs, and its tables are those of the committed results."""

import csv
import json
import re
import statistics
from pathlib import Path

import cifar10_full
import pytest
from provenance import markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_its_python_runs():
    *shown, first, second = blocks("python")
    names = {}
    exec(compile(first + second, "README.md", "exec"), names)
    assert [names[name].shape for name in ("codes", "bits", "uncertainty")] == [(600, 8), (8, 16), (600,)]
    assert names["loss"].isfinite()
    assert [len(lines.splitlines()) for lines in shown] == [2, 2]
    assert shown[0] in first
    assert shown[1] in second


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


@pytest.mark.parametrize(
    "table",
    ["examples/results/cifar10_quick.json", "examples/results/compress/cifar10.json", "benchmarks/results/table.md"],
)
def test_its_tables_are_up_to_date(table):
    text = (ROOT / table).read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    lines = lines or markdown(json.loads(text)["rows"]).splitlines()
    assert len(lines) > 3
    assert [line for line in lines if line not in README] == []


def test_codes_are_ahead_in_retrieval_and_pq_in_float_neighbours():
    with open(ROOT / "examples" / "results" / "compress" / "cifar10.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["bits"] == "64"]
    scores = {}
    for row in rows:
        scores.setdefault((row["metric"], row["method"]), []).append(float(row["value"]))
    mean = {key: statistics.fmean(values) for key, values in scores.items()}
    others = [method for metric, method in mean if metric == "map_1000" and method != "float" and "bern" not in method]
    assert len(others) >= 4
    assert mean["map_1000", "bern"] > max(mean["map_1000", method] for method in others)
    assert mean["recall_10", "bern"] < mean["recall_10", "pq"]


def test_the_quick_run_beat_both_baselines():
    results = json.loads((ROOT / "examples" / "results" / "cifar10_quick.json").read_text())
    models, baselines = results["models"], results["baselines"].values()
    assert set(models) == {"simclr", "bern", "gauss", "supervised"}
    assert all("finetuned" in model for model in models.values())
    bar = max(baseline["h"]["probe"] for baseline in baselines)
    assert all(models[name]["h"]["probe"] > bar for name in ("simclr", "bern", "gauss"))
    assert "dirty" not in results["commit"]
