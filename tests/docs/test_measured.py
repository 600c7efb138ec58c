"""What docs/measured.rst says in words holds for the committed results; and its tables show their numbers."""

import itertools
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
    table = json.loads((ROOT / "examples" / "results" / f"{claim}.json").read_text())["table"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"] if row[0] == epochs]


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


def test_the_step_to_probabilities_loses_most():
    of_step = {row["probe on"]: mean(row["StochCon Bern"]) for row in rows("probed")}
    steps = itertools.pairwise(("h", "logits", "probabilities", "z"))
    losses = {b: of_step[a] - of_step[b] for a, b in steps}
    assert max(losses, key=losses.get) == "probabilities"
    assert losses["probabilities"] > of_step["probabilities"] - of_step["one sample"]


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
            assert max(mean(row["digits"]), mean(row["Fashion-MNIST"])) < 0.1
        else:
            for kind in ("digits", "Fashion-MNIST"):
                assert mean(row[kind]) - statistics.stdev(row[kind]) < 0.5


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
    assert page.count(".png") == 11
    del sys.modules["claims"]
