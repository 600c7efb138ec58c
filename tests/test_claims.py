"""The claims of the paper: verdicts, what each asks of which runs, the command line, the page, and a whole run."""

import argparse
import functools
import importlib.util
import json
from pathlib import Path

import claims
import numpy as np
import pytest
import torch
from recipes import evaluate
from recipes.claims import baselines, bits, collapse, compression, corruptions, probed, search, table
from recipes.claims.catalogue import CLAIMS, MEASURES, OURS
from recipes.claims.evidence import QUICK, Evidence, Grid, Need, Setting, merged
from recipes.claims.series import (
    DOES_NOT,
    HOLDS,
    IN_PART,
    Criterion,
    Series,
    ahead,
    every,
    no,
    rises,
    verdict,
)
from recipes.data import ImageData, Images
from small_images import CLASSES, batch, write_folder
from sphinx.errors import ExtensionError

from stochastic_bottleneck.evaluation import forest_curve

SEEDS = (0, 1, 2)
ROOT = Path(__file__).parents[1]


def series(*values, seeds=SEEDS):
    return Series(dict(enumerate(values)), seeds)


# ---- verdicts -------------------------------------------------------------------------------------------------


def test_a_series_says_its_mean_and_sample_deviation():
    found = series(0.5, 0.7, 0.9)
    assert found.mean == pytest.approx(0.7)
    assert found.std == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1))
    assert found.json()["seeds"] == {"0": 0.5, "1": 0.7, "2": 0.9}
    assert (series().mean, series().std, series(0.5).std) == (None, None, None)
    assert found.complete
    assert not series(0.5, 0.7).complete


def test_ahead_compares_with_the_spread_of_a_difference():
    low, high = (0.50, 0.52, 0.54), (0.60, 0.62, 0.64)  # deviations of 0.02 each: a spread of 0.028
    assert ahead(series(*high), series(*low)) is True
    assert ahead(series(*low), series(*high)) is False
    near = [value + 0.0282 for value in low]
    assert ahead(series(*near), series(*low)) is False
    assert ahead(series(*(value + 0.0284 for value in low)), series(*low)) is True
    assert ahead(series(*low), 0.49) is True
    assert ahead(series(*low), 0.51) is False
    assert ahead(0.55, series(*low)) is True


@pytest.mark.parametrize(
    ("a", "b"), [(series(0.9), 0.1), (series(0.9, 0.8), 0.1), (series(0.9, 0.8, 0.9), series())]
)
def test_nothing_is_ahead_while_a_seed_is_missing(a, b):
    assert ahead(a, b) is None


def test_one_seed_has_no_spread():
    assert ahead(Series({0: 0.9}, (0,)), 0.1) is None


def test_rises_needs_the_ends_apart_and_no_way_back():
    a, b, c = (series(v, v + 0.01, v + 0.02) for v in (0.1, 0.3, 0.5))
    assert rises([a, b, c]) is True
    assert rises([c, b, a]) is False
    assert rises([c, b, a], falls=True) is True
    assert rises([a, c, b]) is False
    assert rises([a, a, c]) is True
    assert rises([a, a]) is False
    assert rises([a, series(0.3), c]) is None


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ([True, True], HOLDS),
        ([True, False], IN_PART),
        ([False, False], DOES_NOT),
        ([True, None], None),
        ([], None),
    ],
)
def test_the_verdict_follows_from_the_criteria(met, said):
    assert verdict([Criterion("", value) for value in met]) == said


def test_open_questions_stay_open():
    assert (every([True, None]), every([]), every([True, False]), every([True])) == (None, None, False, True)
    assert (no(None), no(True), no(False)) == (None, False, True)


# ---- what is asked --------------------------------------------------------------------------------------------


def test_claims_share_their_runs():
    grid = Grid()
    papers = [need for name, claim in CLAIMS.items() if name not in OURS for need in claim.needs(grid)]
    runs = merged(papers)
    base = {setting for setting in runs if not setting.options}
    assert base == {Setting(name) for name in ("simclr", "bern", "gauss", "supervised")}
    sizes = {
        Setting(name, ("--dim", str(dim))) for name in ("bern", "gauss") for dim in grid.dims if dim != 128
    }
    assert set(runs) == base | sizes | {Setting("gauss", ("--variance-from", "own"))}
    assert runs[Setting("bern")].parts[0] == "pretrain"
    assert set(runs[Setting("bern")].parts) == {"pretrain", "frozen", "finetune", "forest", "capacity", "counting",
                                          "uncertainty", "fashion"}  # fmt: skip
    known = {"pretrain", "frozen", "finetune", "train", "fashion", *MEASURES} - {probed.PART}
    assert {part for need in runs.values() for part in need.parts} == known
    assert not any(need.once for need in runs.values())


def test_a_need_of_one_seed_gives_way_to_one_of_all():
    one, all_seeds = (
        Need(Setting("bern"), ("pretrain",), once=True),
        Need(Setting("bern"), ("pretrain", "frozen")),
    )
    assert one.of(SEEDS) == SEEDS[:1]
    for needs in ([one, all_seeds], [all_seeds, one]):
        (need,) = merged(needs).values()
        assert (need.parts, need.of(SEEDS)) == (("pretrain", "frozen"), SEEDS)
    assert merged([one, one])[Setting("bern")].once


def test_the_search_never_sees_the_test_images():
    for grid in (Grid(), QUICK):
        needs = search.needs(grid)
        assert all("--held-out" in need.setting.options for need in needs)
        assert len({need.setting for need in needs}) == len(needs)
        every_seed = {need.setting for need in needs if not need.once}
        assert every_seed == {
            search.setting(label, model, grid)
            for label in search.CONFIRMED
            for model in search.ALTERNATIVES[label][1]
        }
    for name, (options, models) in search.ALTERNATIVES.items():
        assert models, name
        assert claims.cifar10_full.parse(["--preset", "cpu", *options]), name


def scores_of(seed, setting):
    """Plausible results of every part, different for each seed and setting."""
    draw = np.random.default_rng([seed, *f"{setting}".encode()])

    def share():
        return float(draw.uniform(0.2, 0.8))

    dim = int(setting.options[setting.options.index("--dim") + 1]) if "--dim" in setting.options else 128
    counts = [count for count in (*range(1, 13), 25, 50, 100) if count < dim] + [dim]
    frozen = {
        "h": {"dim": 256, "probe": share(), "knn": share(), "probe_c": 0.1},
        "z": {"dim": dim, "probe": share(), "knn": share()},
        "bits": {"share_of_ones": share(), "correlation": share()},
    }
    doubts = ("softmax",) if setting.model == "simclr" else ("softmax", "posterior")
    detected = {kind: share() for kind in doubts}
    curve = {"coverage": [0.5, 1.0], "accuracy": [share(), share()], "area": share()}
    return {
        "pretrain": {"training_seconds": 1.0},
        "frozen": frozen,
        "finetune": {"accuracy": share()},
        "train": {"accuracy": share()},
        "metrics": {
            "step": [1, 2, 3],
            "epoch": [1, 1, 2],
            **{name: [1.0, share(), share()] for name in ("posterior_variance", "latent_variance")},
        },
        "other_codes": {
            "accuracy": {name: {str(d): share() for d in Grid().dims} for name in baselines.METHODS},
            "image_shape": [32, 32, 3],
        },
        "forest": {"counts": counts, "f1": sorted(share() for _ in counts), "ranking": list(range(dim))},
        "capacity": {
            **{name: share() for name in ("share_of_ones", "entropy", "correlation")},
            **{name: dim * share() for name in ("upper_bound", "lower_bound", "effective_bits")},
            "share_of_ones_by_bit": sorted(share() for _ in range(dim)),
            "images": 100,
            "group": 8,
        },
        "counting": {
            "images": {"train": 100, "test": 50},
            "distinct": {"train": 90, "test": 49},
            "shared_codes": {"codes": 0, "images": 0, "purity": None},
            "information": share(),
            "information_by_bit": [share() for _ in range(dim)],
            "information_shuffled": share() / 100,
            "purity": {"1": share(), "10": share()},
            "purity_by_chance": 0.1,
        },
        "uncertainty": {
            "accuracy": share(),
            "rejection": dict.fromkeys(doubts, curve),
            "errors": {kind: share() for kind in doubts},
            "corrupted": {kind: {"1": detected, "5": detected} for kind in corruptions.STRENGTHS},
            "digits": detected,
            "images": 100,
        },
        "fashion": {"detection": detected},
        "representations": {step: share() for step in probed.NAMES if step not in ("h", "z")},
    }


def evidence_of(*seeds, grid=Grid()):  # noqa: B008
    return Evidence(
        lambda setting, seed, part: scores_of(seed, setting)[part] if seed in seeds else None, SEEDS, grid
    )


def content_of(name, answer):
    """As much of a claim's file as its figure and its table read."""
    claim = CLAIMS[name]
    content = {
        "claim": name,
        "paper": claim.PAPER,
        "values": answer.values,
        "criteria": [criterion._asdict() for criterion in answer.criteria],
        "verdict": verdict(answer.criteria),
        "missing": [],
        "notes": list(answer.notes),
        "seeds": list(SEEDS),
        "command": "python examples/claims.py",
        "date": "2026-01-01",
        "commits": ["c0ffee"],
        "data": {"name": "small", "train": 100, "test": 50},
        "environment": {"gpu": None, "machine": "m", "python": "3", "packages": {"torch": "2"}},
        "config": {"encoder": "small", "epochs": 2, "batch_size": 8},
    }
    return json.loads(json.dumps(content, allow_nan=False))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_answers_with_a_verdict_a_table_and_a_figure(name):
    answer = CLAIMS[name].answer(evidence_of(*SEEDS))
    assert verdict(answer.criteria) in (HOLDS, IN_PART, DOES_NOT)
    content = content_of(name, answer)
    table_of = CLAIMS[name].rows(content)
    assert len(table_of) > 1
    assert len({len(row) for row in table_of}) == 1
    assert all(
        "±" in " ".join(row[1:])
        for row in table_of[1:]
        if "shared" not in row[0] and "commonest" not in row[0]
    )
    picture = CLAIMS[name].draw(content)
    assert picture.name == name
    assert picture.png().startswith(b"\x89PNG")
    assert "±" in picture.alt or name == "settings"


@pytest.mark.parametrize("seeds", [(), (0,), (0, 1)])
@pytest.mark.parametrize("name", CLAIMS)
def test_a_verdict_waits_for_every_seed(name, seeds):
    answer = CLAIMS[name].answer(evidence_of(*seeds))
    assert verdict(answer.criteria) is None
    content = content_of(name, answer)
    CLAIMS[name].rows(content)
    assert CLAIMS[name].draw(content).png()


def test_the_table_is_judged_by_hand():
    """StochCon ahead of SimCLR by 5 points everywhere, and behind supervised training."""
    level = {"simclr": 0.60, "bern": 0.65, "gauss": 0.65, "supervised": 0.9}

    def read(setting, seed, part):
        value = level[setting.model] + 0.001 * seed
        return {"accuracy": value, "h": {"probe": value}, "z": {"probe": value}}

    answer = table.answer(Evidence(read, SEEDS, Grid()))
    met = {criterion.text: criterion.met for criterion in answer.criteria}
    assert {value for text, value in met.items() if "ahead of SimCLR" in text} == {True}
    assert {value for text, value in met.items() if "ahead of Supervised" in text} == {False}
    assert verdict(answer.criteria) == IN_PART
    assert answer.values["fine_tuned"]["bern"]["mean"] == pytest.approx(0.651)
    assert answer.values["fine_tuned"]["bern"]["std"] == pytest.approx(0.001)


def test_codes_that_cannot_be_had_do_not_count_against_the_bits():
    def read(setting, seed, part):
        if part == "other_codes":
            accuracy = {name: {"8": 0.3 + 0.001 * seed, "512": None} for name in baselines.METHODS}
            return {"accuracy": accuracy, "image_shape": [32, 32, 3]}
        value = (0.6 if setting.options else 0.5) + 0.001 * seed
        return {"h": {"probe": value}, "z": {"probe": value}}

    answer = compression.answer(Evidence(read, SEEDS, Grid(dims=(8, 512), base_dim=8)))
    assert [criterion.met for criterion in answer.criteria] == [True, True]
    assert answer.values["compression_ratio"] == [3072.0, 48.0]


def test_collapse_is_judged_on_what_is_left():
    def read(setting, seed, part):
        last = 0.01 if setting.options else 0.9
        rows = [None, 1.0, 0.5, last + 0.001 * seed, last + 0.001 * seed]
        metrics = {"step": [1, 2, 3, 4, 5], "epoch": [1, 1, 1, 2, 2]}
        scores = {"h": {"probe": 0.5}, "z": {"probe": 0.5}}
        return {**metrics, "posterior_variance": rows, "latent_variance": rows, **scores}

    assert collapse.ends(read(Setting("gauss"), 0, ""), "posterior_variance") == (0.75, 0.9)
    assert collapse.share_left(read(Setting("gauss"), 0, "")) == pytest.approx(0.9)
    answer = collapse.answer(Evidence(read, SEEDS, Grid()))
    assert verdict(answer.criteria) == HOLDS
    assert answer.values["own"]["curve"]["step"] == [2, 3, 4, 5]


# ---- the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "give --claim with one or several of table, compression"),
    (["--claim", "eleven"], "invalid choice: 'eleven'"),
    (["--all", "--quick", "--epochs", "3"], "--quick has sizes of its own"),
    (["--all", "--seeds", "-1"], "--seeds must lie between 0 and"),
    (["--all", "--search-epochs", "0"], "--search-epochs must be at least 1, got 0"),
    (["--all", "--dims", "8"], "--dims must be two or more sizes of at least 1, got 8"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        claims.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_data_end_with_a_sentence(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert claims.main(["--claim", "bits", "--data", str(nowhere), "--out", str(tmp_path / "out")]) == 2
    assert "no data at" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_list_trains_nothing_and_says_what_is_there(tmp_path, capsys):
    data, out = write_folder(tmp_path / "data", 10, 4), tmp_path / "out"
    arguments = [
        "--claim",
        "bits",
        "--data",
        str(data),
        "--out",
        str(out),
        "--results",
        str(tmp_path / "results"),
    ]
    assert claims.main([*arguments, "--list"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "bits: 0 of 6 runs done, 0.0 hours to go, and forest, frozen, pretrain, not timed yet" in said
    assert "StochCon Bern --dim 512, seed 2" in said
    assert "no run of these images is timed yet" in said
    assert claims.main([*arguments, "--no-training"]) == 0
    assert "not measured yet, nothing written" in capsys.readouterr().out
    assert not out.exists()
    assert not (tmp_path / "results").exists()
    assert claims.main([*arguments, "--adopt", str(tmp_path)]) == 2
    assert "is no run of examples/cifar10_full.py" in " ".join(capsys.readouterr().out.split())


def test_a_smaller_data_set_has_a_name_and_a_hash_of_its_own():
    labels = torch.arange(30) % 3
    whole = ImageData(Images(batch(30), labels), Images(batch(12), labels[:12]), CLASSES, "small", "0" * 64)
    found = claims.smaller(whole, 9, 6)
    assert (len(found.train.images), len(found.test.images)) == (9, 6)
    assert found.train_labels.bincount().tolist() == [3, 3, 3]
    assert found.fingerprint != whole.fingerprint
    assert len(found.fingerprint) == 64
    assert "9 training and 6 test images" in found.name


# ---- the page -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The extension, run on a folder of results; gives the summary and the claims it wrote."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    # By its path, as its name is the script's too.
    found = importlib.util.spec_from_file_location("claims_page", ROOT / "docs" / "_ext" / "claims.py")
    extension = importlib.util.module_from_spec(found)
    found.loader.exec_module(extension)
    (tmp_path / "docs").mkdir()

    def write(**contents):
        (tmp_path / "results").mkdir(exist_ok=True)
        for name, content in contents.items():
            (tmp_path / "results" / f"{name}.json").write_text(content)
        app = argparse.Namespace(
            srcdir=str(tmp_path / "docs"), config=argparse.Namespace(claims_results="../results")
        )
        extension.bring_in(app)
        generated = tmp_path / "docs" / "_generated"
        return (generated / "claims_summary.rst").read_text(), (generated / "claims.rst").read_text()

    return write


def test_the_page_says_what_was_not_measured(page):
    summary, sections = page()
    assert summary.count("not measured yet") == len(CLAIMS) - len(OURS)
    assert sections.count("Not measured yet") == len(CLAIMS)
    assert "holds" not in summary


def test_the_page_shows_what_was_measured(page, tmp_path):
    contents = {name: content_of(name, claim.answer(evidence_of(*SEEDS))) for name, claim in CLAIMS.items()}
    contents["bits"]["verdict"], contents["bits"]["missing"] = None, ["StochCon Bern, seed 2: forest"]
    summary, sections = page(**{name: json.dumps(content) for name, content in contents.items()})
    assert f"**{contents['table']['verdict']}**" in summary
    assert "no verdict yet: 1 runs are not finished" in summary
    assert "Not measured yet" not in sections
    for name in CLAIMS:
        assert (tmp_path / "docs" / "_generated" / f"claim_{name}.svg").read_text().count("<svg") == 1
        assert f"claim_{name}.svg" in sections
    assert "96.42" in sections  # the paper's number, beside ours


def test_a_longer_schedule_stands_beside_without_a_verdict(page, tmp_path):
    long = tmp_path / "results_40_epochs"
    long.mkdir()
    content = content_of("bits", CLAIMS["bits"].answer(evidence_of(0)))
    content["values"]["512"] = {
        "counts": [], "f1": [], **dict.fromkeys(("bits_for_95_percent", "share_kept_by_11"), series().json())
    }  # fmt: skip
    (long / "bits.json").write_text(json.dumps(content))
    published = ROOT / "examples" / "results" / "claims_40_epochs" / "capacity.json"  # without 512 bits
    (long / "capacity.json").write_text(published.read_text())
    page()
    text = (tmp_path / "docs" / "_generated" / "claims_long.rst").read_text()
    assert CLAIMS["bits"].TITLE in text
    assert text.count("* - 128") == 2
    assert "* - 512" not in text  # nothing was measured of it but the paper's number
    assert "holds" not in text
    (long / "bits.json").write_text("{}")
    with pytest.raises(ExtensionError, match=r"bits\.json"):
        page()


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_file_stops_the_page(page, content):
    with pytest.raises(ExtensionError, match=r"bits\.json"):
        page(bits=content)


# ---- a run of all of it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Every claim on a few images of the sample, two seeds, with small forests."""
    out = tmp_path_factory.mktemp("claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "forest_curve", functools.partial(forest_curve, trees=5, jobs=1))
        patch.setattr(bits, "TREES", 5)
        assert claims.main(["--all", "--quick", "--device", "cpu", "--out", str(out)]) == 0
    return out


def files(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_claim_is_answered_from_real_runs(quick):
    for name in CLAIMS:
        found = json.loads((quick / "results" / f"{name}.json").read_text())
        assert found["verdict"] in (HOLDS, IN_PART, DOES_NOT)
        assert found["missing"] == []
        assert found["seeds"] == [0, 1]
        assert found["data"]["train"] == claims.QUICK_IMAGES[0]
        assert (quick / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        folders = {key for of_run in found["runs"].values() for key in of_run.values()}
        assert all((quick / key / "config.json").exists() for key in folders)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_is_done_is_not_done_again(quick, capsys):
    before = files(quick)
    assert claims.main(["--all", "--quick", "--device", "cpu", "--out", str(quick)]) == 0
    changed = {path for path, content in files(quick).items() if before.get(path) != content}
    assert {path.parent for path in changed} == {quick / "results"}
    capsys.readouterr()
    assert claims.main(["--all", "--quick", "--device", "cpu", "--out", str(quick), "--list"]) == 0
    assert "together, shared runs once: 26 of 26 runs done, 0.0 hours to go" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_claims_are_written_anew_from_what_was_kept_of_their_runs(quick, tmp_path):
    kept, again = quick / "results" / "measured", tmp_path / "again"
    assert not list(kept.rglob("*.safetensors"))
    arguments = [
        "--all",
        "--quick",
        "--device",
        "cpu",
        "--out",
        str(kept),
        "--results",
        str(again),
        "--no-training",
    ]
    before = files(kept)
    assert claims.main(arguments) == 0
    assert files(kept) == before
    for name in CLAIMS:
        first, second = (
            json.loads((folder / f"{name}.json").read_text()) for folder in (quick / "results", again)
        )
        assert {**first, "command": "", "date": ""} == {**second, "command": "", "date": ""}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parts_can_be_done_apart(tmp_path, capsys):
    arguments = ["--quick", "--claim", "counting", "--seeds", "0", "--device", "cpu", "--out", str(tmp_path)]
    assert claims.main([*arguments, "--parts", "frozen"]) == 0
    assert "not pretrained yet" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/*/*.json"))
    assert claims.main([*arguments, "--parts", "pretrain"]) == 0
    assert {path.name for path in tmp_path.glob("*/*/*.json")} <= {"pretrain.json", "config.json"}
    assert list(tmp_path.glob("*/*/pretrain.json"))
    assert claims.main(arguments) == 0
    assert json.loads((tmp_path / "results" / "counting.json").read_text())["missing"] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_of_the_cache_can_be_adopted_by_another(quick, tmp_path):
    base = json.loads((quick / "results" / "table.json").read_text())["runs"]["SimCLR"]
    arguments = ["--quick", "--claim", "counting", "--no-training", "--device", "cpu", "--out", str(tmp_path)]
    for key in base.values():
        assert claims.main([*arguments, "--adopt", str(quick / key)]) == 0
    ours, theirs = (json.loads((out / "results" / "counting.json").read_text()) for out in (tmp_path, quick))
    assert ours["values"] == theirs["values"]
    assert ours["verdict"] == theirs["verdict"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_test_image_judges_a_setting(quick):
    found = json.loads((quick / "results" / "settings.json").read_text())
    for of_run in found["runs"].values():
        for key in of_run.values():
            assert json.loads((quick / key / "config.json").read_text())["held_out"] is True
