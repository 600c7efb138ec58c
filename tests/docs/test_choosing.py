"""The page on choosing kind, dim and temperature: tables of the committed files, and sentences that hold in them."""

import csv
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from recipes.figures import LABELS
from sphinx.errors import ExtensionError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"
sys.path.append(str(ROOT / "docs" / "_ext"))
choosing = importlib.import_module("choosing")


@pytest.fixture(scope="module")
def runs():
    found = [
        choosing.whole_run(RESULTS / choosing.QUICK),
        choosing.run_in_parts(RESULTS / choosing.CPU / "run"),
    ]
    return {run.name: run for run in found}


@pytest.fixture(scope="module")
def settings():
    """Rows of the comparison of settings, by their options, model and seed."""
    lines = (RESULTS / choosing.SETTINGS).read_text().splitlines()
    return {(row["options"], row["model"], row["seed"]): row for row in csv.DictReader(lines)}


@pytest.fixture
def copied(tmp_path):
    """The files that the tables are made of, to be changed; without the cpu run's Gaussian."""
    for name in (f"{choosing.QUICK}/results.json", choosing.SETTINGS, choosing.KL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(RESULTS / name, tmp_path / name)
    run = tmp_path / choosing.CPU / "run"
    shutil.copytree(
        RESULTS / choosing.CPU / "run", run, ignore=shutil.ignore_patterns("pretrain", "*.csv", "gauss")
    )
    return tmp_path


def rows(table):
    """Cells of a list-table."""
    found = []
    for line in table.splitlines():
        text = line.strip()
        if text.startswith("* -"):
            found.append([])
            text = text[2:]
        if found and text.startswith("-"):
            found[-1].append(text[1:].strip().replace(r"\-", "-"))
    return found


def of_kind(parts):
    """Cells of the table of kinds by run and model."""
    return {(row[0], row[1]): row[2:] for row in rows(parts["kind"].partition("\n- ")[0])[1:]}


# ---- the tables -----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_published_table():
    table = (RESULTS / choosing.QUICK / "table.md").read_text().splitlines()
    published = {
        (cells[1], cells[2]): cells
        for line in table
        if len(cells := [c.strip() for c in line.split("|")]) > 8
    }
    kinds = of_kind(choosing.parts(RESULTS, LABELS))
    for name in choosing.MODELS:
        h_probe, h_knn, z_probe, z_knn, finetuned, _ = kinds["quick", LABELS[name]]
        assert [h_probe, h_knn, finetuned] == published[LABELS[name], "h"][4:7]
        latent = published.get((LABELS[name], "z, bits" if name == "bern" else "z, mean"))
        assert [z_probe, z_knn] == (latent[4:6] if latent else ["-", "-"])


def test_a_model_that_is_not_measured_yet_is_named(copied):
    parts = choosing.parts(copied, LABELS)
    assert of_kind(parts)["cpu", "StochCon Gauss"] == ["-"] * 6
    cpu = next(line for line in parts["kind"].splitlines() if line.startswith("- *cpu*"))
    assert cpu.endswith("Not measured yet: StochCon Gauss.")
    assert "10,000 test images" in cpu
    assert "up to 0.5 points" in cpu


def test_a_model_appears_as_soon_as_it_is_measured(copied):
    folder = copied / choosing.CPU / "run" / "gauss"
    folder.mkdir()
    (folder / "pretrain.json").write_text("{}")  # trained, not yet judged
    assert of_kind(choosing.parts(copied, LABELS))["cpu", "StochCon Gauss"] == ["-"] * 6
    h, z = {"dim": 256, "probe": 0.5, "knn": 0.25}, {"dim": 128, "probe": 0.125, "knn": 0.75}
    forest = {"counts": [1, 128], "f1": [0.1, 0.2]}
    (folder / "frozen.json").write_text(json.dumps({"result": {"h": h, "z": z, "forest": forest}}))
    parts = choosing.parts(copied, LABELS)
    assert of_kind(parts)["cpu", "StochCon Gauss"] == ["50.0", "25.0", "12.5", "75.0", "-", "512"]
    assert "Not measured yet" not in parts["kind"]
    assert ["cpu", "StochCon Gauss", "10.0", "-", "-", "-", "-", "-", "20.0"] in rows(parts["forest"])
    (folder / "finetune.json").write_text(json.dumps({"result": {"accuracy": 0.875}}))
    assert of_kind(choosing.parts(copied, LABELS))["cpu", "StochCon Gauss"][4] == "87.5"


@pytest.mark.parametrize("content", [None, "{", "{}", '{"result": 3}'])
def test_files_that_cannot_be_read_stop_the_build(copied, content):
    path = copied / choosing.CPU / "run" / "bern" / "frozen.json"
    if content is None:
        path = copied / choosing.QUICK / "results.json"
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(
        ExtensionError, match=r"needs cifar10_quick/results.json.*as cifar10_full.py.* write them"
    ):
        choosing.parts(copied, LABELS)


def test_other_temperatures_appear_as_soon_as_they_are_measured(copied):
    assert "Not measured yet" in choosing.temperatures([{"options": "--symmetric"}])
    found = choosing.temperatures(
        [
            {"options": "--symmetric --temperature 0.5", "seed": "0", "h_probe": "0.5", "z_probe": "0.25"},
            {"options": "--symmetric --hard", "seed": "1", "h_probe": "0.4", "z_probe": "0.3"},
        ]
    )
    assert rows(found)[1:] == [
        ["Concrete temperature 0.5", "0", "50.0", "25.0"],
        ["straight-through bits", "1", "40.0", "30.0"],
    ]


# ---- the sentences --------------------------------------------------------------------------------------------


def test_both_runs_have_128_dimensions_one_seed_and_temperature_1(runs):
    for run in runs.values():
        options = [
            run.config[name] for name in ("dim", "temperature", "temperature_end", "hard", "location_std")
        ]
        assert options == [128, 1.0, None, False, 2.0]
        assert isinstance(run.config["seed"], int)


def test_bits_score_below_the_same_models_h(runs):
    assert all(run.models["bern"]["z"]["probe"] < run.models["bern"]["h"]["probe"] for run in runs.values())


def test_in_quick_means_score_above_bits_by_far_more_than_the_standard_error(runs):
    models = runs["quick"].models
    ahead = models["gauss"]["z"]["probe"] - models["bern"]["z"]["probe"]
    assert ahead > 4 * (0.5 / runs["quick"].test) ** 0.5  # of a difference: two variances of at most 1/4


def test_in_cpu_means_and_bits_are_level(runs):
    models = runs["cpu"].models
    for score in ("probe", "knn"):
        assert abs(models["gauss"]["z"][score] - models["bern"]["z"][score]) < (0.5 / runs["cpu"].test) ** 0.5


def test_simclrs_h_is_ahead_and_fine_tuned_the_two_are_closer(runs):
    for run in runs.values():
        simclr, bern = run.models["simclr"], run.models["bern"]
        assert simclr["h"]["probe"] > bern["h"]["probe"]
        assert simclr["h"]["knn"] > bern["h"]["knn"]
        assert abs(simclr["finetuned"] - bern["finetuned"]) < simclr["h"]["probe"] - bern["h"]["probe"]


def test_25_bits_bring_most_and_the_rest_still_adds(runs):
    forest = runs["cpu"].models["bern"]["forest"]
    f1 = dict(zip(forest["counts"], forest["f1"], strict=True))
    chance = 0.1
    assert (f1[25] - chance) / (f1[128] - chance) > 0.8
    assert f1[25] < f1[50] < f1[128]


def test_bits_are_balanced_but_not_independent_and_codes_differ(runs):
    for run in runs.values():
        bits = run.models["bern"]["bits"]
        assert bits["entropy"] > 0.99
        assert bits["correlation"] > 0.15
        assert bits["distinct_codes"] >= 0.999 * bits["images"]


def test_without_normalisation_z_is_worse_and_a_gaussian_falls_below_the_pixels(settings):
    pixels = next(float(row["h_probe"]) for row in settings.values() if row["setting"] == "raw pixels")
    for model in ("bern", "gauss"):
        for seed in "01":
            plain = settings["--symmetric --location-std 0", model, seed]
            assert float(plain["z_probe"]) < float(settings["--symmetric", model, seed]["z_probe"])
            if model == "gauss":
                assert float(plain["h_probe"]) < pixels


def test_a_location_std_of_4_is_ahead_for_bits_in_both_seeds(settings):
    for seed in "01":
        four, two = (
            settings[options, "bern", seed] for options in ("--symmetric --location-std 4", "--symmetric")
        )
        assert all(float(four[score]) > float(two[score]) for score in ("h_probe", "z_probe"))
        four, two = (
            settings[options, "gauss", seed] for options in ("--symmetric --location-std 4", "--symmetric")
        )
        assert float(four["z_probe"]) < float(two["z_probe"])


@pytest.fixture(scope="module")
def weighted():
    """What a weight on the KL did: numbers by kind, scale, weight and seed."""
    lines = (RESULTS / choosing.KL).read_text().splitlines()
    found = {}
    for row in csv.DictReader(lines):
        numbers = {name: float(row[name] or "nan") for name in list(row)[4:]}
        found[row["kind"], row["scale"], float(row["kl_weight"]), row["seed"]] = numbers
    return found


def of_bits(weighted, scale, weight):
    """Three seeds of bits."""
    return [weighted["bern", scale, weight, seed] for seed in "012"]


def test_a_weight_makes_outliers_under_a_fixed_scale_and_not_under_a_learned_one(weighted):
    for fixed, learned, none in zip(
        *(of_bits(weighted, scale, 0.1) for scale in ("fixed", "learned", "none")), strict=True
    ):
        assert fixed["kurtosis_in_a_dimension"] > 50
        assert max(x["kurtosis_in_a_dimension"] for x in (learned, none)) < 6
        assert none["kl"] < learned["kl"] < fixed["kl"]
        assert learned["knn_z"] >= fixed["knn_z"]
        assert none["kurtosis"] > 10 * none["kurtosis_in_a_dimension"]
    for scale in ("fixed", "learned", "none"):
        without = of_bits(weighted, scale, 0.0)
        assert all(a["kl"] < b["kl"] for a, b in zip(of_bits(weighted, scale, 0.1), without, strict=True))


def test_one_scale_for_each_dimension_does_no_better(weighted):
    one, each = (weighted["bern", scale, 0.1, "0"] for scale in ("learned", "learned, one a dimension"))
    assert one["kl"] < each["kl"]
    assert one["kurtosis_in_a_dimension"] < each["kurtosis_in_a_dimension"]
    assert one["knn_z"] >= each["knn_z"]


def test_the_kl_of_gaussians_under_a_fixed_scale_is_that_of_their_means(weighted):
    fixed, learned = (weighted["gauss", scale, 0.1, "0"] for scale in ("fixed", "learned"))
    assert fixed["kl"] == pytest.approx(64 * 2.0**2 / 2, rel=0.1)
    assert fixed["kurtosis_in_a_dimension"] < 4
    assert learned["kl"] < 0.1 * fixed["kl"]


def test_without_a_weight_a_learned_scale_grows_and_h_is_no_better(weighted):
    for fixed, learned in zip(
        of_bits(weighted, "fixed", 0.0), of_bits(weighted, "learned", 0.0), strict=True
    ):
        assert learned["std"] > 2 * fixed["std"]
    means = [sum(x["knn_h"] for x in of_bits(weighted, scale, 0.0)) / 3 for scale in ("learned", "fixed")]
    assert means[0] < means[1] + (0.5 / 1000) ** 0.5


def test_no_other_temperature_is_measured_yet(settings):
    """Once one is, the page's "no evidence for temperature 1" has to be looked at again."""
    assert not any(option in options.split() for options, _, _ in settings for option in choosing.OF_BITS)
