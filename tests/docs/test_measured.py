"""What docs/measured.rst says in words, against the committed files that it says it of."""

import itertools
import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "examples" / "results"
LATENTS = ("bern", "gauss")


def values(name, folder="claims"):
    return json.loads((RESULTS / folder / f"{name}.json").read_text())["values"]


def first(series):
    """The seed that every setting of the search has."""
    return series["seeds"]["0"]


@pytest.fixture(scope="module")
def scores():
    return values("settings")["scores"]


def test_every_claim_has_its_seeds():
    for path in (RESULTS / "claims").glob("*.json"):
        content = json.loads(path.read_text())
        assert content["missing"] == []
        assert content["seeds"] == [0, 1, 2]
        config = content["config"]
        assert 2 * config["epochs"] + config["finetune_epochs"] == config["supervised_epochs"] == 15
        assert (config["symmetric"], config["location_std"]) == (True, 4.0)


@pytest.mark.parametrize("model", LATENTS)
@pytest.mark.parametrize("score", ["h", "z"])
def test_the_settings_of_the_preset_are_ahead_in_every_seed(scores, model, score):
    chosen, start = (
        scores[label][model][score]["seeds"] for label in ("both ways round, location std 4", "start")
    )
    assert chosen.keys() == start.keys() == {"0", "1", "2"}
    assert all(chosen[seed] > start[seed] for seed in start)


@pytest.mark.parametrize("model", LATENTS)
def test_noise_is_a_part_of_the_gap_and_the_bottleneck_the_rest(scores, model):
    start, quiet = first(scores["start"][model]["h"]), first(scores["no noise at all"][model]["h"])
    both = first(scores["both ways round"][model]["h"])
    simclr = first(scores["start"]["simclr"]["h"])
    assert start + 0.01 < quiet < simclr - 0.01
    assert abs(both - quiet) < 0.01 < both - start


@pytest.mark.parametrize("model", LATENTS)
def test_fine_tuning_narrows_the_gap_and_does_not_close_it(model):
    table = values("table")
    gaps = [table[part]["simclr"]["mean"] - table[part][model]["mean"] for part in ("frozen_h", "fine_tuned")]
    assert gaps[0] > gaps[1] > 0
    assert table["fine_tuned"]["supervised"]["mean"] > table["fine_tuned"]["simclr"]["mean"]


def test_after_a_longer_schedule_all_are_ahead_of_supervised_training():
    fine_tuned = {
        name: first(s) for name, s in values("table", "claims_40_epochs")["fine_tuned"].items() if s["seeds"]
    }
    assert set(fine_tuned) == {"simclr", *LATENTS, "supervised"}
    assert all(fine_tuned[name] > fine_tuned["supervised"] for name in ("simclr", *LATENTS))


def test_the_step_to_probabilities_loses_most():
    of_step = {step: s["mean"] for step, s in values("probed")["probe"]["bern"].items()}
    order = ("h", "location", "probability", "z")
    losses = dict(
        zip(order[1:], (of_step[a] - of_step[b] for a, b in itertools.pairwise(order)), strict=True)
    )
    assert max(losses, key=losses.get) == "probability"
    assert losses["probability"] > of_step["probability"] - of_step["sample"]


def test_bits_repeat_each_other_with_and_without_noise(scores):
    start, quiet = (first(scores[label]["bern"]["correlation"]) for label in ("start", "no noise at all"))
    assert abs(start - quiet) < 0.02
    assert min(start, quiet) > 0.2


def test_the_variance_falls_as_far_either_way():
    own, opposing = (values("collapse")[view]["share_left"] for view in ("own", "opposing"))
    assert own["mean"] < 0.1
    assert abs(own["mean"] - opposing["mean"]) < own["std"] + opposing["std"]


def test_the_variance_rises_with_every_step_of_dimensions():
    means = [s["mean"] for s in values("dims")["posterior_variance"]]
    assert means == sorted(means)
    assert len(means) == 7


def test_effective_bits_hardly_grow_with_their_number():
    found = values("capacity")
    few, many = (found[dim]["effective_bits"]["mean"] for dim in ("128", "512"))
    assert few < many < 1.2 * few < 128 / 5
    assert all(found[dim]["upper_bound"]["mean"] < 0.8 * int(dim) for dim in ("128", "512"))


def test_of_corruptions_low_contrast_is_told_and_hardly_any_other():
    for model in LATENTS:
        by_kind = {
            kind: s["mean"]
            for kind, s in values("uncertainty")[model]["posterior"]["corrupted_by_kind"].items()
        }
        assert by_kind.pop("contrast") > 0.7
        assert max(by_kind.values()) < 0.6


def test_foreign_images_look_certain_and_softmax_is_no_better_than_chance():
    found = values("uncertainty")
    for foreign in ("digits", "fashion"):
        for model in LATENTS:
            assert found[model]["posterior"][foreign]["mean"] < 0.1
        for model in ("simclr", *LATENTS):
            softmax = found[model]["softmax"][foreign]
            assert softmax["mean"] - softmax["std"] < 0.5
