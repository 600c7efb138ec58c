"""What docs/measured.rst and docs/choosing.rst say in words holds for the committed results."""

import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
LATENTS = ("StochCon Bern", "StochCon Gauss")


def rows(claim, epochs=5):
    """Rows of a results file's table by column; numbers are lists of one a seed."""
    table = json.loads((ROOT / "examples" / "results" / "paper" / f"{claim}.json").read_text())["table"]
    cells = [[list(cell.values()) if isinstance(cell, dict) else cell for cell in row] for row in table["rows"]]
    return [dict(zip(table["columns"], row, strict=True)) for row in cells if epochs in (row[0], None)]


def mean(cell):
    return statistics.fmean(cell)


@pytest.fixture(scope="module")
def tried():
    return {(row["setting"], row["model"]): row for row in rows("settings")}


def test_fine_tuning_narrows_the_gap_to_simclr_and_does_not_close_it():
    simclr, *latents, supervised = rows("table")
    for row in latents:
        frozen, tuned = (mean(simclr[name]) - mean(row[name]) for name in ("probe on h", "fine-tuned"))
        assert frozen > tuned > 0
    assert mean(supervised["fine-tuned"]) > mean(simclr["fine-tuned"])


def test_after_40_epochs_all_are_ahead_of_supervised_training():
    *contrastive, supervised = rows("table", 40)
    assert len(contrastive) == 3
    assert all(row["fine-tuned"] > supervised["fine-tuned"] for row in contrastive)


@pytest.mark.parametrize("model", LATENTS)
def test_noise_is_a_part_of_the_gap_and_the_bottleneck_the_rest(tried, model):
    noisy, quiet, simclr = (
        tried[setting]["probe on h"][0] for setting in (("start", model), ("samples=0", model), ("start", "SimCLR"))
    )
    assert noisy + 0.01 < quiet < simclr - 0.01


def test_bits_repeat_each_other_with_and_without_noise(tried):
    noisy, quiet = (tried[setting, "StochCon Bern"]["correlation"][0] for setting in ("start", "samples=0"))
    assert abs(noisy - quiet) < 0.02
    few, many = (mean(row["effective bits"]) for row in rows("capacity"))
    assert few < many < 1.2 * few < 128 / 5


def test_the_variance_falls_as_far_either_way():
    opposing, own = (row["left of the start"] for row in rows("collapse"))
    assert abs(mean(own) - mean(opposing)) < statistics.stdev(own) + statistics.stdev(opposing)


def test_the_variance_rises_with_every_step_of_dimensions():
    means = [mean(row["posterior variance"]) for row in rows("dims")]
    assert means == sorted(means)
    assert len(means) == 7


def test_posteriors_detect_low_contrast_and_are_more_certain_of_foreign_images():
    for row in rows("uncertainty"):
        if "posterior" in row["uncertainty"]:
            others = [mean(row[kind]) for kind in ("noise", "blur", "pixelate", "jpeg")]
            assert max(others) < 0.6 < 0.7 < mean(row["contrast"])
            assert mean(row["digits"]) < 0.1
        else:
            assert mean(row["digits"]) - statistics.stdev(row["digits"]) < 0.5


def test_tables_show_means_and_deviations(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import claims

    claims.write(SimpleNamespace(srcdir=tmp_path))
    texts = {path.stem: path.read_text() for path in (tmp_path / "_generated").iterdir()}
    page = (ROOT / "docs" / "measured.rst").read_text()
    included = [line.split("/")[-1][:-4] for line in page.splitlines() if line.startswith(".. include::")]
    assert set(included) < set(texts)
    first = rows("table")[0]["fine-tuned"]
    assert f"{mean(first):.1%} ± {statistics.stdev(first):.1%}" in texts["claim_table"]
    for claim in (*claims.CLAIMS, *claims.OURS):
        found = claims.read(claim)
        assert found["finding"] in texts["claims_paper"] + texts["claims_ours"]
        assert texts[f"claim_{claim}"].count("\n") == len(found["table"]["rows"]) + 5
    assert page.count(".png") == 10
    del sys.modules["claims"]


# ---- docs/choosing.rst -------------------------------------------------------------------------------------

RESULTS = Path(__file__).parents[2] / "examples" / "results"


def load(name):
    return json.loads(next(RESULTS.rglob(f"{name}.json")).read_text())


def seeds(claim, score, **wanted):
    """One number per seed, from the row of a claim's table with the wanted values."""
    [found] = [row[score] for row in rows(claim, None) if all(row[key] == value for key, value in wanted.items())]
    return found if isinstance(found, list) else [found]


def trial(model, setting, score):
    return seeds("settings", score, epochs=11, model=model, setting=setting)


def kl(scale, weight, score, model="StochCon Bern"):
    return seeds("kl_weight", score, model=model, scale=scale, **{"KL weight": weight})


def probes(run, part):
    """Of SimCLR, bern and gauss, and the standard error of a difference: two variances of at most 1/4."""
    results = load(run)
    models = (results["models"][name] for name in ("simclr", "bern", "gauss"))
    return [model.get(part, {}).get("probe") for model in models], (0.5 / results["data"]["test"]) ** 0.5


def test_by_algorithm_1_simclr_is_ahead_until_fine_tuned():
    simclr, bern = (load("cifar10_cpu")["models"][name] for name in ("simclr", "bern"))
    assert bern["z"]["probe"] < bern["h"]["probe"] < simclr["h"]["probe"]
    fine_tuned = simclr["finetuned"]["accuracy"] - bern["finetuned"]["accuracy"]
    assert abs(fine_tuned) < simclr["h"]["probe"] - bern["h"]["probe"]


def test_with_the_pair_and_the_penalty_all_features_are_equal_within_the_error():
    found, error = probes("cifar10_quick", "h")
    assert max(found) - min(found) < error
    settings = load("cifar10_quick")["settings"]
    assert settings["deterministic"] > 0 < settings["covariance"]


def test_means_are_ahead_of_bits_in_the_quick_run_and_level_in_the_long_one():
    (_, bern, gauss), error = probes("cifar10_quick", "z")
    assert gauss - bern > 2 * error
    (_, bern, gauss), error = probes("cifar10_cpu", "z")
    assert abs(gauss - bern) < error


def test_25_of_128_bits_have_four_fifths_of_the_score_and_the_rest_adds():
    z = load("cifar10_cpu")["models"]["bern"]["z"]
    f1 = dict(zip(z["forest"]["counts"], z["forest"]["f1"], strict=True))
    assert (f1[25] - 0.1) / (f1[128] - 0.1) > 0.8
    assert f1[25] < f1[50] < f1[128]
    assert z["bits"]["entropy"] > 0.99
    assert z["bits"]["correlation"] > 0.15
    assert z["bits"]["distinct"] >= 0.999


def test_without_normalization_z_is_worse_and_a_gaussian_falls_below_pixels():
    for model in ("StochCon Bern", "StochCon Gauss"):
        plain, normalized = (trial(model, f"symmetric=True{x}", "probe on z") for x in (", location_std=None", ""))
        assert max(plain) < min(normalized)
    h = trial("StochCon Gauss", "symmetric=True, location_std=None", "probe on h")
    assert max(h) < seeds("settings", "probe on h", epochs=11, model="raw pixels")[0]


@pytest.mark.parametrize(("kind", "score", "ahead"), [("Bern", "h", True), ("Bern", "z", True), ("Gauss", "z", False)])
def test_a_location_std_of_4_is_ahead_for_bits_and_behind_for_means(kind, score, ahead):
    settings = "symmetric=True, location_std=4.0", "symmetric=True"
    four, two = (trial(f"StochCon {kind}", setting, f"probe on {score}") for setting in settings)
    assert all((a > b) == ahead for a, b in zip(four, two, strict=True))


def test_a_kl_weight_makes_outliers_with_a_fixed_scale_and_not_with_a_learned_one():
    assert min(kl("fixed", 0.1, "kurtosis")) > 50
    assert max(kl("learned", 0.1, "kurtosis") + kl("none", 0.1, "kurtosis")) < 6
    fixed, learned, none = (kl(scale, 0.1, "KL") for scale in ("fixed", "learned", "none"))
    assert all(a > b > c for a, b, c in zip(fixed, learned, none, strict=True))
    assert all(max(kl(scale, 0.1, "KL")) < min(kl(scale, 0.0, "KL")) for scale in ("fixed", "learned", "none"))
    pairs = zip(kl("learned", 0.1, "kNN on z"), kl("fixed", 0.1, "kNN on z"), strict=True)
    assert all(learned >= fixed for learned, fixed in pairs)
    assert learned[0] < kl("learned, one per dimension", 0.1, "KL")[0]


def test_a_fixed_scale_limits_the_kl_of_gaussians():
    limit = 64 * 2.0**2 / 2
    assert kl("fixed", 0.1, "KL", "StochCon Gauss") == pytest.approx([limit], rel=0.1)
    assert kl("learned", 0.1, "KL", "StochCon Gauss")[0] < 0.1 * limit


def test_without_a_weight_a_learned_scale_grows_and_h_is_no_better():
    assert min(kl("learned", 0.0, "standard deviation")) > 2 * max(kl("fixed", 0.0, "standard deviation"))
    assert sum(kl("learned", 0.0, "kNN on h")) < sum(kl("fixed", 0.0, "kNN on h")) + 3 * (0.5 / 1000) ** 0.5
