"""The scripts that measure the paper's claims, on toy runs; and that committed findings follow from their tables."""

import csv
import json
import runpy
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
from cifar10_full import Settings, build_model
from PIL import Image
from safetensors.torch import save_file

from stochastic_bottleneck import StochConWrapper, evaluation
from stochastic_bottleneck.hub import HubModel

PAPER = Path(__file__).parents[2] / "examples" / "paper"
RESULTS = PAPER.parent / "results" / "paper"
CLAIMS = {  # with the runs of each
    **dict.fromkeys(("table", "codes", "counting", "uncertainty"), ("base",)),
    **dict.fromkeys(("compression", "bits", "capacity", "dims"), ("base", "dim8")),
    "collapse": ("base", "own"),
    "settings": ("chosen", "base"),
}
RUNS = {"base": {}, "dim8": {"dim": 8}, "own": {"variance_from": "own"}}
RUNS |= {"chosen": {"symmetric": True, "location_std": 4.0, "deterministic": 1.0, "covariance": 0.2}}
ENCODER = {"channels": [8, 8, 8, 16], "stem_width": 4}
METRICS = "epoch,step,loss,latent/variance_mean\n0,20,2.0,1.0\n0,39,2.0,\n1,40,1.0,0.25\n1,60,1.0,0.15\n"


def save(kind, dim, folder):
    """An untrained model and its metrics, as cifar10_full.py leaves them."""
    torch.manual_seed(dim)
    encoder = timm.create_model("resnet10t", num_classes=0, **ENCODER)
    model = StochConWrapper(encoder, kind=kind, dim=dim, projection_dim=8)
    saved = HubModel.from_wrapper(model, encoder_name="timm:resnet10t", encoder_options=ENCODER)
    saved.save_pretrained(folder)
    (folder / "logs" / "version_0").mkdir(parents=True)
    (folder / "logs" / "version_0" / "metrics.csv").write_text(METRICS)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run folders of two seeds."""
    root = tmp_path_factory.mktemp("runs")
    for name, changed in RUNS.items():
        for seed in (0, 1):
            (folder := root / f"{name}-{seed}").mkdir()
            settings = Settings(**{"encoder": "small", "dim": 32, "epochs": 5, "seed": seed, **changed})
            (folder / "simclr").mkdir()
            save_file(build_model("simclr", settings).state_dict(), folder / "simclr" / "model.safetensors")
            for kind in ("bern", "gauss"):
                saved = root / f"{kind}{settings.dim}"
                if not saved.exists():
                    save(kind, settings.dim, saved)
                (folder / kind).symlink_to(saved)
            scores = {"probe": 0.5 + 0.01 * seed, "knn": 0.4, "map": 0.2}
            codes = {"fitted": {"z": scores}, "itq": {"codes": scores}}
            found = {"h": scores, "z": scores, "finetuned": {"accuracy": 0.6}, "codes": codes}
            models = {"simclr": found, "bern": found, "gauss": found, "supervised": {"finetuned": found["finetuned"]}}
            results = {"models": models, "settings": asdict(settings), "data": {"name": "toy"}, "commit": "12"}
            results["environment"] = {"machine": "toy"}
            (folder / "results.json").write_text(json.dumps(results, default=str))
    return root


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start a script with arguments."""
    monkeypatch.syspath_prepend(PAPER)
    import claim

    classes = torch.arange(60) % 3
    noise = torch.randint(128, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = (noise + 40 * classes[:, None, None, None]).byte()
    images = SimpleNamespace(pixels=pixels, labels=classes.roll(1).where(torch.arange(60) < 9, classes))
    digits = SimpleNamespace(images=16 * np.random.default_rng(0).random((20, 8, 8)))
    monkeypatch.setattr(claim, "load_images", lambda settings: (images, images))
    monkeypatch.setattr(evaluation, "forest_curve", partial(evaluation.forest_curve, trees=5, jobs=1))
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)

    def run(name, *folders):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, folders), "--out", str(tmp_path)])
        runpy.run_path(str(PAPER / f"{name}.py"), run_name="__main__")
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


@pytest.mark.parametrize("name", CLAIMS)
def test_a_script_writes_its_results_and_figure(name, runs, start, tmp_path):
    results = start(name, *[runs / f"{run}-{seed}" for run in CLAIMS[name] for seed in (0, 1)])
    assert (results["claim"], results["seeds"]) == (name, 2)
    assert {(run["seed"], run["commit"]) for run in results["runs"].values()} == {(0, "12"), (1, "12")}
    assert results["verdict"] in ("holds", "holds in part", "does not hold")
    table = results["table"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])} == {len(table["formats"])}
    cells = [cell.values() for row in table["rows"] for cell in row if isinstance(cell, dict)]
    assert max(map(len, cells)) == 2
    lines = [*csv.DictReader(next(tmp_path.glob("*.csv")).read_text().splitlines())]
    assert {line["seed"] for line in lines} == {"0", "1"}
    assert {float(line["value"]) for line in lines} == {value for cell in cells for value in cell}
    figure = tmp_path / f"{name}.png"
    figure.unlink()
    assert start(name) == results  # without runs the figure is drawn again
    assert figure.read_bytes().startswith(b"\x89PNG")
    for seed, add in ((0, ()), (1, ("--add",))):
        apart = start(name, *[runs / f"{run}-{seed}" for run in CLAIMS[name]], *add)
    assert apart | {"command": results["command"]} == results
    if name != "settings":  # which names its runs by what differs from the first
        again = start(name, runs / f"{CLAIMS[name][-1]}-1", "--add")
        assert again | {"command": results["command"]} == results


def test_one_seed_gives_no_verdict_and_the_longest_runs_with_two_do(runs, start, tmp_path):
    assert start("table", runs / "base-0")["verdict"] is None
    (tmp_path / "table.json").rename(tmp_path / "counting.json")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "results.json").write_text((runs / "chosen-1" / "results.json").read_text())
    with pytest.raises(ValueError, match=r"--add: location_std was 2\.0, of these runs it is 4\.0"):
        start("counting", tmp_path / "bare", "--add")  # before models, of which there are none, are read
    results = json.loads((runs / "base-0" / "results.json").read_text())
    results["settings"]["epochs"] = 40
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "results.json").write_text(json.dumps(results))
    found = start("table", tmp_path / "long", runs / "base-0", runs / "base-1")
    assert [row[0] for row in found["table"]["rows"]] == 4 * [5] + 4 * [40]
    cells = [found["table"]["rows"][i][2] for i in (0, 4)]
    assert (found["seeds"], found["epochs"], *cells) == (2, 5, {"0": 0.5, "1": 0.51}, {"0": 0.5})
    whole, results["models"] = results["models"], {"supervised": results["models"]["supervised"]}
    (tmp_path / "long" / "results.json").write_text(json.dumps(results))  # nothing in the first columns
    assert start("table", tmp_path / "long", "--add")["table"] == found["table"]
    for seed, models in ((1, whole), (2, results["models"])):  # not all models have the third seed
        results["settings"]["seed"], results["models"] = seed, models
        (tmp_path / "long" / "results.json").write_text(json.dumps(results))
        found = start("table", tmp_path / "long", "--add")
        assert (found["seeds"], found["epochs"]) == (2, 40)


@pytest.mark.parametrize("name", CLAIMS)
def test_committed_findings_follow_from_their_tables(name, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(PAPER)
    import claim

    results = json.loads((RESULTS / f"{name}.json").read_text())
    script = runpy.run_path(str(PAPER / f"{name}.py"))
    finding, criteria = script["conclude"](claim.rows_of(results))
    assert (finding, criteria) == (results["finding"], results["criteria"])
    said = "holds" if all(criteria.values()) else "holds in part" if any(criteria.values()) else "does not hold"
    assert results["verdict"] == said
    assert results["commit"]
    claim.write_csv(tmp_path / "claim.csv", results, script.get("NAMES", {"column": "metric"}))
    assert (tmp_path / "claim.csv").read_text() == (RESULTS / f"{name}.csv").read_text()
    assert all(axes.lines for axes in claim.draw(results, script["FIGURE"]).axes)
    pixels = np.asarray(Image.open(RESULTS / f"{name}.png").convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() > 50  # lines and dots have colours, axes have none
    doc = " ".join(script["__doc__"].split())
    assert doc.startswith(f"{results['title']}: {results['paper']} ")
    assert f"Result: {said} (" in doc
