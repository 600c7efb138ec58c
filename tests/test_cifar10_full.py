"""The main job on tiny images: from the command line to its table, stopped, resumed and refused."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cifar10_full
import pytest
import torch
from full_runs import calling, lasting, results_of
from recipes import classify, data, evaluate, report, run, settings
from recipes.grid import save_grid
from recipes.models import make_encoder
from recipes.pretrain import pretrain
from safetensors.torch import load_file
from small_images import write_folder

from stochastic_bottleneck.evaluation import forest_curve
from stochastic_bottleneck.hub import HubModel

ROOT = Path(__file__).parents[1]
EPOCHS, STEPS, DIM = 2, 3, 64
COUNTS = [1, 2, 5, 11, 25, 50, DIM]
TINY = [
    *("--preset", "quick", "--epochs", f"{EPOCHS}", "--batch-size", "12", "--dim", f"{DIM}"),
    *("--finetune-epochs", "1", "--finetune-batch-size", "12"),
    *("--supervised-epochs", "2", "--supervised-batch-size", "12", "--track-every", "1"),
]
ALL = ("simclr", "bern", "gauss")
PRECISION = cifar10_full.parse(["--preset", "quick", "--device", "cpu"]).precision  # this CPU's
PARTS = ("pretrain", "frozen", "finetune")


@pytest.fixture(scope="module", autouse=True)
def small_forests_and_grids():
    """Forests of a few trees, grids of a few views; their number is no part of what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_grid", functools.partial(save_grid, images=2, views=2))
        patch.setattr(evaluate, "forest_curve", functools.partial(forest_curve, trees=5, jobs=1))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of twelve training and six test images."""
    return write_folder(tmp_path_factory.mktemp("data") / "colours", 12, 6)


@pytest.fixture
def call(folder, tmp_path, capsys):
    return calling(cifar10_full.main, TINY, folder, tmp_path / "out", capsys)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of all four models."""
    out = tmp_path_factory.mktemp("runs") / "all"
    assert cifar10_full.main([*TINY, "--precision", "32", "--data", str(folder), "--out", str(out)]) == 0
    return out


def content(out):
    return {p.relative_to(out): (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def must_not_run(*args, **kwargs):
    raise AssertionError("this part was done already")


# ---- the command line -----------------------------------------------------------------------------------------


def test_what_happens_is_said_and_explained_before_anything_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nowhere = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    for arguments, preset, reason in (
        ([], "quick", "there is no CUDA"),
        (["--preset", "cpu"], "cpu", "as asked"),
    ):
        assert cifar10_full.main([*arguments, *nowhere]) == 2
        first, stopped = " ".join(capsys.readouterr().out.split()).split("stopped:")
        assert f"preset {preset} ({reason}" in first
        assert f"device cpu, precision {PRECISION}" in first
        assert "SimCLR, StochCon Bern, StochCon Gauss, Supervised" in first
        assert f"encoder {cifar10_full.PRESETS[preset]['encoder']}" in first
        assert "no data at" in stopped
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["--preset", "quick"], data.SAMPLE),
        (["--preset", "quick", "--data", "x"], Path("x")),
        (["--preset", "cpu"], None),
        (["--preset", "paper", "--data", "x"], Path("x")),
    ],
)
def test_where_images_come_from(monkeypatch, arguments, source):
    asked = []
    monkeypatch.setattr(data, "load", asked.append)
    cifar10_full.load_data(cifar10_full.parse(arguments))
    assert asked == [source]


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_seeds_at_both_ends_work(call, seed):
    assert call("--model", "simclr", "--seed", str(seed), "--epochs", "1")[0] == 0


# ---- a run ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    parts = {path.relative_to(finished).with_suffix("").as_posix() for path in finished.glob("*/*.json")}
    chains = {f"{name}/{part}" for name in ALL for part in PARTS}
    saved = {"bern/config", "gauss/config"}
    assert parts == {"pixels/frozen", "untrained/frozen", "supervised/train"} | chains | saved
    for name in ALL:
        left = {path.name for path in (finished / name / "pretrain").iterdir()}
        assert {"weights.safetensors", "loss.csv", "metrics.csv", "tensorboard"} <= left
    figures = {"loss", "knn", "f1_against_bits", "bit_usage", "latent", "classification", "views"}
    for name in figures:
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    files = {path.name for path in finished.iterdir() if path.is_file()}
    others = {"config.json", "results.json", "table.md", "report.html"}
    assert files == others | {f"{name}.png" for name in figures}


@pytest.mark.parametrize("name", ["bern", "gauss"])
def test_a_run_leaves_a_model_that_loads(finished, name, tmp_path):
    """The error says which encoder to pass, and it is the right one (L29)."""
    with pytest.raises(
        ValueError, match=r"encoder must be passed: .*recipes\.models\.make_encoder\("
    ) as raised:
        HubModel.from_pretrained(finished / name)
    made = re.search(r"recipes\.models\.(make_encoder\(.*?\)).;", str(raised.value))[1]
    loaded = HubModel.from_pretrained(finished / name, encoder=eval(made, {"make_encoder": make_encoder}))
    weights = load_file(finished / name / "pretrain" / "weights.safetensors")
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(
        FileNotFoundError, match=r"is no folder that HubModel.save_pretrained wrote \(it holds "
    ):
        HubModel.from_pretrained(finished / "simclr")
    with pytest.raises(ValueError, match=r"must be of model_type .*, got None; pass a folder"):
        HubModel.from_pretrained(finished)


def test_results_say_what_was_run_on_what(finished, folder):
    results = results_of(finished)
    keys = {"command", "date", "config", "environment", "data", "baselines", "models"}
    assert set(results) == keys | {"commits", "seconds"}
    assert shlex.split(results["command"])[:2] == ["python", "examples/cifar10_full.py"]
    images = data.load(folder)
    assert results["data"] == {
        "name": "colours",
        "train": 36,
        "test": 18,
        "classes": 3,
        "image_shape": [32, 32, 3],
        "sha256": images.fingerprint,
    }
    config = results["config"]
    assert config["model"] == [*ALL, "supervised"]
    assert (config["epochs"], config["batch_size"], config["dim"]) == (EPOCHS, 12, DIM)
    assert (config["preset"], config["precision"], config["device"]) == ("quick", "32", "cpu")
    kept = json.loads((finished / "config.json").read_text())
    assert kept == {k: v for k, v in config.items() if k != "model"}
    chains = {f"{name}/{part}" for name in ALL for part in PARTS}
    others = {"pixels/frozen", "untrained/frozen", "supervised/train", "this_call"}
    assert set(results["seconds"]) == chains | others
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    assert set(results["commits"]) == (chains | others) - {"this_call"}
    assert set(results["commits"].values()) == {results["environment"]["commit"]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results["date"])


def share(value):
    return isinstance(value, float) and 0 <= value <= 1


def test_scores_are_shares_of_the_right_representations(finished):
    results = results_of(finished)
    assert set(results["baselines"]) == {"pixels", "untrained"}
    assert list(results["models"]) == [*ALL, "supervised"]
    supervised = results["models"].pop("supervised")
    judged = {name: part["h"] for name, part in (results["baselines"] | results["models"]).items()}
    latents = {name: results["models"][name]["z"] for name in ("bern", "gauss")}
    assert "z" not in results["models"]["simclr"]
    for scores in (*judged.values(), *latents.values()):
        assert set(scores) == {"dim", "probe", "probe_f1", "probe_c", "knn"}
        assert all(share(scores[key]) for key in ("probe", "probe_f1", "knn"))
    assert judged["pixels"]["dim"] == 3 * 32 * 32
    assert {judged[name]["dim"] for name in ("untrained", *ALL)} == {256}
    assert {scores["dim"] for scores in latents.values()} == {DIM}
    assert judged["pixels"]["probe"] > 0.9  # colours tell these classes apart
    labelled = [results["models"][name]["finetuned"] for name in ALL] + [supervised["trained"]]
    for scores in labelled:
        assert set(scores) == {"accuracy", "f1", "top5", "seconds", "epoch_losses"}
        assert share(scores["accuracy"])
    assert [len(scores["epoch_losses"]) for scores in labelled] == [1, 1, 1, 2]
    assert "h" not in supervised


def test_losses_are_those_of_its_steps(finished):
    models = results_of(finished)["models"]
    for name, model in ((name, models[name]) for name in ALL):
        rows = (finished / name / "pretrain" / "loss.csv").read_text().splitlines()[1:]
        losses = torch.tensor([float(row.split(",")[1]) for row in rows])
        assert len(losses) == EPOCHS * STEPS
        assert model["epoch_losses"] == pytest.approx(
            losses.view(EPOCHS, STEPS).mean(dim=1).tolist(), abs=1e-5
        )
        assert all(0 < loss < 10 for loss in model["epoch_losses"])
        assert model["training_seconds"] >= 0
        metrics = model["metrics"]
        assert metrics["step"] == list(range(1, EPOCHS * STEPS + 1))
        assert metrics["loss"] == pytest.approx(losses.tolist(), abs=1e-5)
        assert share(metrics["knn"][-1])
        assert ("share_of_ones" in metrics) == (name == "bern")


def test_the_forest_is_measured_at_the_counts_of_the_paper(finished):
    models = results_of(finished)["models"]
    assert "forest" not in models["simclr"]
    for name in ("bern", "gauss"):
        forest = models[name]["forest"]
        assert forest["counts"] == COUNTS
        assert len(forest["f1"]) == len(COUNTS)
        assert all(share(f1) for f1 in forest["f1"])
        assert sorted(forest["ranking"]) == list(range(DIM))


def test_bits_are_counted_on_the_test_images(finished):
    models = results_of(finished)["models"]
    assert "bits" not in models["gauss"]
    bits = models["bern"]["bits"]
    by_bit = torch.tensor(bits["share_of_ones_by_bit"])
    assert len(by_bit) == DIM
    counted = by_bit * bits["images"]
    torch.testing.assert_close(counted, counted.round(), rtol=0, atol=1e-4)
    assert bits["share_of_ones"] == pytest.approx(by_bit.mean().item())
    assert 0 < bits["share_of_ones"] < 1
    assert bits["images"] == 18
    assert 1 <= bits["distinct_codes"] <= 18
    assert (bits["image_bytes"], bits["code_bytes"]) == (32 * 32 * 3, DIM // 8)
    assert bits["compression_ratio"] == 32 * 32 * 3 * 8 / DIM
    assert share(bits["entropy"])
    assert share(bits["correlation"])
    # At most the entropy of three classes, log2(3) bits, and of the bit itself.
    assert 0 <= bits["class_information"] <= bits["entropy"]


def test_the_table_is_that_of_its_results(finished):
    title, _, table = (finished / "table.md").read_text().partition("\n\n")
    assert title.rstrip(".") == report.title(results_of(finished))
    assert table == report.markdown_table(results_of(finished)) + "\n"
    assert len(table.splitlines()) == 2 + 2 + 1 + 2 + 2 + 1  # head, baselines, a row for each representation


def test_the_terminal_shows_stages_table_and_sentences(call):
    code, printed = call("--model", "bern")
    assert code == 0
    for said in (
        "1/5 raw pixels",
        "2/5 untrained encoder",
        "3/5 StochCon Bern, pretraining",
        "4/5 StochCon Bern, frozen evaluation",
        "5/5 StochCon Bern, fine-tuning",
        "36 training, 18 test images",
    ):
        assert said in printed
    assert f"epoch {EPOCHS}/{EPOCHS} loss" in printed
    assert "left 0:00:00" in printed
    assert "StochCon Bern, linear probe on h:" in printed
    for file in ("results.json", "table.md", "report.html", "f1_against_bits.png", "bit_usage.png"):
        assert file in printed.split("StochCon Bern, linear probe on h:")[1]


@pytest.mark.parametrize("precision", ["32", None], ids=["fp32", "default"])
def test_simclr_alone(call, tmp_path, precision):
    code, _ = call("--model", "simclr", *(["--precision", precision] if precision else []))
    assert code == 0
    results = results_of(tmp_path / "out")
    assert list(results["models"]) == ["simclr"]
    assert results["config"]["precision"] == (precision or PRECISION)
    drawn = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {"views", "loss", "knn", "classification"}


def test_precision_changes_numbers_a_little(call, tmp_path):
    first = []
    for precision in ("32", "bf16"):
        assert call("--model", "simclr", "--precision", precision, out=tmp_path / precision)[0] == 0
        first.append(results_of(tmp_path / precision)["models"]["simclr"]["epoch_losses"][0])
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], abs=0.05)


def test_options_reach_model_and_training(call, tmp_path, monkeypatch):
    seen = {}

    def look(model, feed, schedule, options, *args, **kwargs):
        seen.update(model=model, feed=feed, schedule=schedule, options=options)
        return pretrain(model, feed, schedule, options, *args, **kwargs)

    monkeypatch.setattr(settings, "pretrain", look)
    options = (
        "--model bern --held-out --symmetric --hard --temperature 0.8 --temperature-end 0.4 --jitter 0.3 --blur 0.2 "
        "--min-crop 0.6 --optimizer adamw --lr 0.001 --weight-decay 0.01 --loss-temperature 0.3 --norm group"
    )
    assert call(*options.split())[0] == 0
    bottleneck = seen["model"].bottleneck
    assert (bottleneck.kind, bottleneck.dim, bottleneck.hard) == ("bern", DIM, True)
    assert seen["model"].symmetric
    assert any(isinstance(m, torch.nn.GroupNorm) for m in seen["model"].encoder.modules())
    assert bottleneck.temperature.item() == pytest.approx(0.4)
    assert len(seen["feed"].dataset) == 30  # two of twelve images of each class are held out
    views = seen["feed"].transform
    assert (views.strength, views.min_scale, views.blur) == (0.3, 0.6, 0.2)
    assert seen["schedule"][:5] == (EPOCHS, 12, "adamw", 0.001, 0.01)
    assert (seen["options"].loss_temperature, seen["options"].temperature_end) == (0.3, 0.4)
    results = results_of(tmp_path / "out")
    assert (results["data"]["train"], results["data"]["test"]) == (30, 6)
    assert "held out" in results["data"]["name"]


@pytest.mark.parametrize("extra", [["--micro-batch", "4"], ["--ema", "0.9"], ["--finetune-epochs", "0"]])
def test_ways_to_train_change_what_they_should(call, finished, tmp_path, extra):
    assert call("--model", "simclr", "--precision", "32", *extra)[0] == 0
    result, expected = (results_of(out)["models"]["simclr"] for out in (tmp_path / "out", finished))
    assert ("finetuned" in result) == ("--finetune-epochs" not in extra)
    same_losses = result["epoch_losses"] == expected["epoch_losses"]
    assert same_losses == ("--micro-batch" not in extra)  # batch norm sees fewer images
    weights = [
        (out / "simclr/pretrain/weights.safetensors").read_bytes() for out in (tmp_path / "out", finished)
    ]
    assert (weights[0] == weights[1]) == ("--finetune-epochs" in extra)


def test_the_same_seed_gives_the_same_results_and_another_does_not(call, finished, tmp_path):
    told = ("--model", "simclr", "--precision", "32")
    assert call(*told, out=tmp_path / "same")[0] == 0
    assert call(*told, "--seed", "1", out=tmp_path / "other")[0] == 0
    expected = lasting(results_of(finished)["models"]["simclr"])
    assert lasting(results_of(tmp_path / "same")["models"]["simclr"]) == expected
    assert lasting(results_of(tmp_path / "other")["models"]["simclr"]) != expected


# ---- stopped, resumed, refused --------------------------------------------------------------------------------


def test_an_earlier_run_is_not_overwritten(call, finished):
    before = content(finished)
    code, printed = call("--precision", "32", "--epochs", "3", out=finished)
    assert code == 2
    assert (
        "holds an earlier run; add --resume to finish or show it, or give another folder with --out"
        in printed
    )
    assert content(finished) == before


def test_a_finished_run_is_shown_again_without_work(call, finished, monkeypatch):
    for module, name in (
        (run, "pretrain_model"),
        (classify, "fine_tune"),
        (classify, "supervise"),
        (evaluate, "evaluate"),
        (evaluate, "judge"),
    ):
        monkeypatch.setattr(module, name, must_not_run)
    before, files = results_of(finished), content(finished)
    code, printed = call("--precision", "32", "--resume", out=finished)
    assert code == 0
    assert printed.count(", kept") == 2 + len(ALL) * len(PARTS) + 1
    assert "StochCon Bern, linear probe on h:" in printed
    assert lasting(results_of(finished)) == lasting(before)
    untouched = [path for path in files if len(path.parts) > 1]
    assert {p: files[p] for p in untouched} == {p: content(finished)[p] for p in untouched}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--epochs", "3"), "epochs: 2 then, 3 now"),
        (("--lr", "0.5"), "lr: 0.01875 then, 0.5 now"),
        (("--seed", "7"), "seed: 0 then, 7 now"),
        (("--precision", "bf16"), "precision: 32 then, bf16 now"),
        (("--hard",), "hard: False then, True now"),
        (("--held-out",), "held_out: False then, True now"),
        (("--temperature-end", "0.5"), "temperature_end: None then, 0.5 now"),
        (("--encoder", "medium", "--dim", "32"), "encoder: small then, medium now; dim: 64 then, 32 now"),
    ],
)
def test_other_settings_are_refused_by_name(call, finished, arguments, named):
    before = content(finished)
    code, printed = call("--precision", "32", "--resume", *arguments, out=finished)
    assert code == 2
    if arguments[0] in ("--lr", "--temperature-end", "--hard"):  # what was then is the preset's
        named = named.split(": ")[0] + ": "
    parts = named.split("; ")
    assert all(part in printed for part in parts)
    assert printed.count(" then, ") == len(parts)
    assert content(finished) == before


def test_other_data_is_refused(call, finished, tmp_path):
    before = content(finished)
    other = write_folder(tmp_path / "colours", 12, 6, first=100)
    code, printed = call("--precision", "32", "--resume", out=finished, source=other)
    assert code == 2
    assert "was made from other data; give the same --data, or another --out" in printed
    assert content(finished) == before


def test_a_run_that_could_not_start_leaves_its_folder_free(call, tmp_path, folder):
    code, printed = call("--model", "simclr", source=tmp_path / "nowhere")
    assert code == 2
    assert "no data at" in printed
    assert call("--model", "simclr", "--epochs", "1")[0] == 0


def test_a_batch_larger_than_the_data_is_mended_without_a_new_folder(call, tmp_path):
    code, printed = call("--model", "simclr", "--batch-size", "37", out=tmp_path / "a")
    assert code == 2
    assert re.search(r"stopped: --batch-size .*36 training images", printed)
    assert call("--model", "simclr", out=tmp_path / "a")[0] == 0


def test_models_can_be_added_to_a_run(call, finished, tmp_path, monkeypatch):
    told = ("--precision", "32", "--model", "simclr")
    assert call(*told)[0] == 0
    trained, pretrain_model = [], run.pretrain_model

    def look(name, *args):
        trained.append(name)
        return pretrain_model(name, *args)

    monkeypatch.setattr(run, "pretrain_model", look)
    assert call("--precision", "32", "--model", "gauss", "supervised", "--resume")[0] == 0
    assert trained == ["gauss"]
    results, expected = results_of(tmp_path / "out"), results_of(finished)["models"]
    names = ["simclr", "gauss", "supervised"]  # what was done before is told too
    assert results["config"]["model"] == names
    assert lasting(results["models"]) == lasting({name: expected[name] for name in names})


def test_each_model_is_reported_as_soon_as_it_is_done(call, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "supervise", stop)
    code, printed = call("--model", "simclr", "supervised")
    assert code == 130
    assert printed.endswith("--model simclr supervised --resume")
    assert list(results_of(tmp_path / "out")["models"]) == ["simclr"]
    for file in ("table.md", "report.html"):
        assert "SimCLR" in (tmp_path / "out" / file).read_text()


def test_what_changes_no_number_may_change(call, finished):
    told = "--precision 32 --resume --workers 1 --checkpoint-steps 2 --checkpoint-minutes 3 --track-every 9"
    assert call(*told.split(), out=finished)[0] == 0


def test_a_pretrained_model_is_read_where_only_later_parts_are_missing(call, finished, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    for part in ("frozen", "finetune"):
        (out / "bern" / f"{part}.json").unlink()
    shutil.rmtree(out / "bern" / "finetune")
    monkeypatch.setattr(run, "pretrain_model", must_not_run)
    assert call("--precision", "32", "--resume", out=out)[0] == 0
    assert lasting(results_of(out)["models"]) == lasting(results_of(finished)["models"])


def test_missing_weights_of_a_pretrained_model_are_told(call, finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "bern" / "frozen.json").unlink()
    (out / "bern" / "pretrain" / "weights.safetensors").unlink()
    code, printed = call("--precision", "32", "--resume", out=out)
    assert code == 2
    assert "weights.safetensors is missing; delete" in printed


def test_a_damaged_part_is_told(call, finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    (out / "simclr" / "frozen.json").write_text('{"sha256": ')
    code, printed = call("--precision", "32", "--resume", out=out)
    assert code == 2
    assert "frozen.json is damaged" in printed
    assert "delete it to do this part again" in printed


@pytest.mark.parametrize("part", ["pretraining", "evaluation", "fine-tuning"])
def test_a_run_stopped_between_ends_as_one_that_was_not(call, finished, tmp_path, monkeypatch, part):
    module, name = {
        "pretraining": (run, "pretrain_model"),
        "evaluation": (evaluate, "evaluate"),
        "fine-tuning": (classify, "fine_tune"),
    }[part]
    work, calls = getattr(module, name), []

    def stop_at_the_second_model(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop_at_the_second_model)
        code, printed = call("--precision", "32")
    assert code == 130
    assert "stopped; what is done is kept. Go on with: python examples/cifar10_full.py" in printed
    assert printed.endswith("--precision 32 --resume")
    assert list(results_of(tmp_path / "out")["models"]) == ["simclr"]
    assert call("--precision", "32", "--resume")[0] == 0
    assert lasting(results_of(tmp_path / "out")) == lasting(results_of(finished))


def test_brackets_in_paths_are_shown_as_they_are(call, tmp_path):
    source = tmp_path / "[red] [" / "nowhere"  # what the terminal's markup would swallow, or stumble over
    code, printed = call("--model", "simclr", out=tmp_path / "[blue]", source=source)
    assert code == 2
    assert "[red] [/nowhere" in printed
    assert "results go to" in printed
    assert "[blue]" in printed


# ---- real processes -------------------------------------------------------------------------------------------


def start(arguments, **options):
    """Start the script as a reader would, with Ctrl-C heard even where this process ignores it."""
    return subprocess.Popen(
        [sys.executable, "-u", "examples/cifar10_full.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def wait_for(process, said):
    """Read what a process prints until it says this."""
    read = ""
    for line in process.stdout:
        read += line
        if said in line:
            return read
    raise AssertionError(f"the process ended without {said!r}:\n{read}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_the_command_that_goes_on(folder, tmp_path, monkeypatch, number):
    out = tmp_path / "with a space"
    told = [*TINY, "--epochs", "12", "--model", "simclr", "--data", str(folder), "--out", str(out)]
    with start(told) as process:
        wait_for(process, "epoch 2/12")
        process.send_signal(number)
        printed, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed
    command = printed.rstrip().splitlines()[-1]
    assert command.startswith("  python examples/cifar10_full.py ")
    newest = max((out / "simclr" / "pretrain").glob("step=*.ckpt"))
    saved = torch.load(newest, weights_only=True)["global_step"]
    assert STEPS <= saved < 12 * STEPS
    assert not (out / "results.json").exists()
    monkeypatch.chdir(ROOT)
    assert cifar10_full.main(shlex.split(command)[2:]) == 0
    assert len(results_of(out)["models"]["simclr"]["epoch_losses"]) == 12
    assert results_of(out)["config"]["precision"] == PRECISION


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_same_command_with_resume(folder, tmp_path):
    told = [*TINY, "--precision", "32", "--data", str(folder)]
    outs = [tmp_path / "killed", tmp_path / "whole"]
    with start([*told, "--out", str(outs[0])]) as process:
        wait_for(process, "StochCon Bern, pretraining  epoch 1/2")
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    for arguments in (["--out", str(outs[0]), "--resume"], ["--out", str(outs[1])]):
        with start([*told, *arguments]) as process:
            printed, _ = process.communicate(timeout=200)
        assert process.returncode == 0, printed
    assert lasting(results_of(outs[0])) == lasting(results_of(outs[1]))


@pytest.mark.slow
def test_a_compiled_run(call, tmp_path, fresh_compiler):
    for extra in ([], ["--compile"]):
        out = tmp_path / f"compiled {bool(extra)}"
        assert call("--model", "bern", "--epochs", "1", "--precision", "32", *extra, out=out)[0] == 0
    eager, compiled = (
        results_of(tmp_path / f"compiled {flag}")["models"]["bern"]["epoch_losses"] for flag in (False, True)
    )
    assert eager == pytest.approx(compiled, abs=0.05)
