"""The main job on tiny images: from the command line to its table, stopped, resumed and refused."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import cifar10_full
import pytest
import torch
from recipes import data, evaluate, report
from recipes.pretrain import pretrain
from small_images import write_folder

from stochastic_bottleneck.evaluation import forest_curve

ROOT = Path(__file__).parents[1]
EPOCHS, STEPS, DIM = 2, 3, 64
COUNTS = [1, 2, 5, 11, 25, 50, DIM]
TINY = ["--preset", "quick", "--epochs", f"{EPOCHS}", "--batch-size", "12", "--dim", f"{DIM}"]
ALL = ("simclr", "bern", "gauss")


@pytest.fixture(scope="module", autouse=True)
def small_forests():
    """Forests of a few trees; their number is no part of what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "forest_curve", functools.partial(forest_curve, trees=5, jobs=1))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of twelve training and six test images."""
    return write_folder(tmp_path_factory.mktemp("data") / "colours", 12, 6)


@pytest.fixture
def call(folder, tmp_path, capsys):
    """Run in this process: exit code and everything that was printed, spaces run together."""

    def run(*arguments, out=tmp_path / "out", source=folder):
        try:
            code = cifar10_full.main([*TINY, "--data", str(source), "--out", str(out), *arguments])
        except SystemExit as stop:  # argparse's way out
            code = stop.code
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return run


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of all three models."""
    out = tmp_path_factory.mktemp("runs") / "all"
    assert cifar10_full.main([*TINY, "--precision", "32", "--data", str(folder), "--out", str(out)]) == 0
    return out


def results_of(out):
    return json.loads((out / "results.json").read_text())


def lasting(results):
    """Results without what differs from one run to the next of the same thing."""
    if isinstance(results, dict):
        passing = ("seconds", "training_seconds", "command", "date")
        return {k: lasting(v) for k, v in results.items() if k not in passing}
    return results


def content(out):
    return {p.relative_to(out): (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def must_not_run(*args, **kwargs):
    raise AssertionError("this part was done already")


# ---- the command line -----------------------------------------------------------------------------------------


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cifar10_full.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    options = [name for name in vars(cifar10_full.parse([])) if name != "reason"]
    assert len(options) > 20
    for name in options:
        assert re.search(rf"^  --{name.replace('_', '-')}\b", told, re.MULTILINE), name
    for preset in cifar10_full.PRESETS:
        assert f"--preset {preset}" in told  # an example of each
    assert max(len(line) for line in told.splitlines()) < 125


def test_presets_set_the_same_options():
    names = {frozenset(preset) for preset in cifar10_full.PRESETS.values()}
    assert len(names) == 1


NO_GPU, GPU = "there is no CUDA device", "a CUDA device is here"
DEFAULTS = [
    # cuda, arguments, preset, device, in the reason
    (False, [], "quick", "cpu", NO_GPU),
    (True, [], "paper", "cuda", GPU),
    (True, ["--device", "cpu"], "quick", "cpu", ""),
    (False, ["--preset", "paper"], "paper", "cpu", "as asked"),
    (True, ["--preset", "cpu"], "cpu", "cuda", "as asked"),
]


@pytest.mark.parametrize(("cuda", "arguments", "preset", "device", "reason"), DEFAULTS)
def test_the_default_preset_is_said_and_explained_before_anything_starts(
    monkeypatch, tmp_path, capsys, cuda, arguments, preset, device, reason
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    nowhere = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert cifar10_full.main([*arguments, *nowhere]) == 2
    first, stopped = " ".join(capsys.readouterr().out.split()).split("stopped:")
    assert f"preset {preset} ({reason}" in first
    assert f"device {device}" in first
    assert "SimCLR, StochCon Bern, StochCon Gauss" in first
    assert f"encoder {cifar10_full.PRESETS[preset]['encoder']}" in first
    assert ("far too slow for a CPU" in first) == (preset == "paper" and device == "cpu")
    assert "no data at" in stopped
    if cuda:
        assert NO_GPU not in first


def test_a_preset_fills_in_what_was_not_given():
    args = cifar10_full.parse(["--preset", "cpu", "--epochs", "7", "--hard"])
    expected = {**cifar10_full.PRESETS["cpu"], "epochs": 7, "hard": True}
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.out == Path("runs/cifar10-cpu-seed0")
    assert cifar10_full.parse(["--model", "gauss", "simclr", "gauss"]).model == ["simclr", "gauss"]
    assert cifar10_full.parse(["--seed", "3", "--preset", "quick"]).out == Path("runs/cifar10-quick-seed3")


def test_the_learning_rate_follows_the_batch_unless_it_is_given():
    preset = cifar10_full.PRESETS["quick"]
    halved = ["--preset", "quick", "--batch-size", str(preset["batch_size"] // 2)]
    assert cifar10_full.parse(halved).lr == preset["lr"] / 2
    assert cifar10_full.parse([*halved, "--lr", "0.7"]).lr == 0.7
    assert cifar10_full.parse(["--preset", "quick"]).lr == preset["lr"]


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


BAD = [
    ("--preset", "huge"),
    ("--model", "vae"),
    ("--device", "tpu"),
    ("--device", "cuda"),
    ("--precision", "8"),
    ("--precision", "16"),
    ("--encoder", "vgg"),
    ("--optimizer", "magic"),
    ("--seed", "one"),
    ("--seed", "-1"),
    ("--seed", str(2**31)),
    ("--epochs", "0"),
    ("--epochs", "1.5"),
    ("--batch-size", "0"),
    ("--batch-size", "1"),
    ("--dim", "-4"),
    ("--projection-dim", "0"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--lr", "inf"),
    ("--lr", "fast"),
    ("--weight-decay", "-0.1"),
    ("--weight-decay", "nan"),
    ("--warmup-epochs", "-1"),
    ("--loss-temperature", "0"),
    ("--jitter", "-0.5"),
    ("--jitter", "3"),
    ("--min-crop", "0"),
    ("--min-crop", "1.5"),
    ("--temperature", "0"),
    ("--temperature-end", "-1"),
    ("--location-std", "-1"),
]


@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_bad_value_is_refused_by_name_before_anything_starts(monkeypatch, call, tmp_path, option, value):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, printed = call(option, value)
    assert code == 2
    complaint = printed.split("error: ")[1]
    assert option in complaint
    assert value in complaint
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_refused(call):
    code, printed = call("--learning-rate", "1")
    assert code == 2
    assert "--learning-rate" in printed.split("error: ")[1]


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_seeds_at_both_ends_work(call, seed):
    assert call("--model", "simclr", "--seed", str(seed), "--epochs", "1")[0] == 0


# ---- a run ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    parts = {f"{name}/{file}" for name in ALL for file in ("last.ckpt", "weights.safetensors", "loss.csv")}
    evaluations = {f"{name}/evaluation.json" for name in ("pixels", "untrained", *ALL)}
    figures = {"loss.png", "f1_against_bits.png", "bit_usage.png"}
    assert files == {"config.json", "results.json", "table.md"} | parts | evaluations | figures
    for name in figures:
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_results_say_what_was_run_on_what(finished, folder):
    results = results_of(finished)
    keys = {"command", "date", "config", "environment", "data", "baselines", "models", "seconds"}
    assert set(results) == keys
    assert shlex.split(results["command"])[:2] == ["python", "examples/cifar10_full.py"]
    images = data.load(folder)
    assert results["data"] == {
        "name": "colours",
        "train": 36,
        "test": 18,
        "classes": 3,
        "sha256": images.fingerprint,
    }
    config = results["config"]
    assert config["model"] == list(ALL)
    assert (config["epochs"], config["batch_size"], config["dim"]) == (EPOCHS, 12, DIM)
    assert (config["preset"], config["precision"], config["device"]) == ("quick", "32", "cpu")
    kept = json.loads((finished / "config.json").read_text())
    assert kept == {k: v for k, v in config.items() if k != "model"}
    assert set(results["seconds"]) == {"pixels", "untrained", *ALL, "this_call"}
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results["date"])


def share(value):
    return isinstance(value, float) and 0 <= value <= 1


def test_scores_are_shares_of_the_right_representations(finished):
    results = results_of(finished)
    assert set(results["baselines"]) == {"pixels", "untrained"}
    assert list(results["models"]) == list(ALL)
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


def test_losses_are_those_of_its_steps(finished):
    for name, model in results_of(finished)["models"].items():
        rows = (finished / name / "loss.csv").read_text().splitlines()[1:]
        losses = torch.tensor([float(row.split(",")[1]) for row in rows])
        assert len(losses) == EPOCHS * STEPS
        assert model["epoch_losses"] == pytest.approx(
            losses.view(EPOCHS, STEPS).mean(dim=1).tolist(), abs=1e-5
        )
        assert all(0 < loss < 10 for loss in model["epoch_losses"])
        assert model["training_seconds"] >= 0


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
    assert bits["bytes_a_code"] == DIM // 8
    assert bits["compression_ratio"] == 32 * 32 * 3 * 8 / DIM
    assert share(bits["entropy"])
    assert share(bits["correlation"])
    # At most the entropy of three classes, log2(3) bits, and of the bit itself.
    assert 0 <= bits["class_information"] <= bits["entropy"]


def test_the_table_is_that_of_its_results(finished):
    title, _, table = (finished / "table.md").read_text().partition("\n\n")
    assert title.rstrip(".") == report.title(results_of(finished))
    assert table == report.markdown_table(results_of(finished)) + "\n"
    assert len(table.splitlines()) == 2 + 2 + 1 + 2 + 2  # head, baselines, and a row for each representation


def test_the_terminal_shows_stages_table_and_sentences(call):
    code, printed = call("--model", "bern")
    assert code == 0
    for said in (
        "1/3 raw pixels",
        "2/3 untrained encoder",
        "3/3 StochCon Bern",
        "36 training, 18 test images",
    ):
        assert said in printed
    assert f"epoch {EPOCHS}/{EPOCHS} loss" in printed
    assert "left 0:00:00" in printed
    assert "StochCon Bern, linear probe on h:" in printed
    assert "results.json, table.md, loss.png, f1_against_bits.png, bit_usage.png" in printed


@pytest.mark.parametrize("precision", ["32", None], ids=["fp32", "default"])
def test_simclr_alone(call, tmp_path, precision):
    code, _ = call("--model", "simclr", *(["--precision", precision] if precision else []))
    assert code == 0
    results = results_of(tmp_path / "out")
    assert list(results["models"]) == ["simclr"]
    assert results["config"]["precision"] == (precision or "bf16")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"loss.png"}


def test_precision_changes_numbers_a_little(call, tmp_path):
    first = []
    for precision in ("32", "bf16"):
        assert call("--model", "simclr", "--precision", precision, out=tmp_path / precision)[0] == 0
        first.append(results_of(tmp_path / precision)["models"]["simclr"]["epoch_losses"][0])
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], abs=0.05)


def test_options_reach_model_and_training(call, tmp_path, monkeypatch):
    seen = {}

    def look(model, images, options, folder, name):
        seen.update(model=model, options=options, images=len(images), name=name)
        return pretrain(model, images, options, folder, name)

    monkeypatch.setattr(cifar10_full, "pretrain", look)
    options = (
        "--model bern --held-out --symmetric --hard --temperature 0.8 --temperature-end 0.4 --jitter 0.3"
    )
    assert call(*options.split(), "--min-crop", "0.6", "--optimizer", "adamw", "--lr", "0.001")[0] == 0
    bottleneck = seen["model"].bottleneck
    assert (bottleneck.kind, bottleneck.dim, bottleneck.hard) == ("bern", DIM, True)
    assert seen["model"].symmetric
    assert bottleneck.temperature.item() == pytest.approx(0.4)
    assert seen["images"] == 30  # two of twelve images of each class are held out
    assert seen["name"] == "StochCon Bern"
    chosen = seen["options"]
    assert (chosen.jitter_strength, chosen.min_crop, chosen.optimizer) == (0.3, 0.6, "adamw")
    assert (chosen.learning_rate, chosen.temperature_end) == (0.001, 0.4)
    results = results_of(tmp_path / "out")
    assert (results["data"]["train"], results["data"]["test"]) == (30, 6)
    assert "held out" in results["data"]["name"]


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
    for name in ("pretrain", "judge_pixels", "evaluate_untrained"):
        monkeypatch.setattr(cifar10_full, name, must_not_run)
    monkeypatch.setattr(evaluate, "evaluate", must_not_run)
    before, files = results_of(finished), content(finished)
    code, printed = call("--precision", "32", "--resume", out=finished)
    assert code == 0
    assert printed.count(", kept") == 5
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


def test_models_can_be_added_to_a_run(call, finished, tmp_path, monkeypatch):
    told = ("--precision", "32", "--model", "simclr")
    assert call(*told)[0] == 0
    trained = []

    def look(model, images, options, folder, name):
        trained.append(name)
        return pretrain(model, images, options, folder, name)

    monkeypatch.setattr(cifar10_full, "pretrain", look)
    assert call("--precision", "32", "--model", "simclr", "gauss", "--resume")[0] == 0
    assert trained == ["StochCon Gauss"]
    models, expected = results_of(tmp_path / "out")["models"], results_of(finished)["models"]
    assert lasting(models) == lasting({name: expected[name] for name in ("simclr", "gauss")})


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_run_stopped_between_ends_as_one_that_was_not(call, finished, tmp_path, monkeypatch, where):
    def stop_in_bern(*args, **kwargs):
        if where == "training" and args[4] != "StochCon Bern":
            return pretrain(*args, **kwargs)
        if where == "evaluation" and not hasattr(args[0], "bottleneck"):
            return whole_evaluation(*args, **kwargs)
        raise KeyboardInterrupt

    whole_evaluation = evaluate.evaluate
    with monkeypatch.context() as patch:
        if where == "training":
            patch.setattr(cifar10_full, "pretrain", stop_in_bern)
        else:
            patch.setattr(evaluate, "evaluate", stop_in_bern)
        code, printed = call("--precision", "32")
    assert code == 130
    assert "stopped; what is done is kept. Go on with: python examples/cifar10_full.py" in printed
    assert printed.endswith("--precision 32 --resume")
    assert not (tmp_path / "out" / "results.json").exists()
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


def test_ctrl_c_prints_the_command_that_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "with a space"
    told = [*TINY, "--epochs", "12", "--model", "simclr", "--data", str(folder), "--out", str(out)]
    with start(told) as process:
        wait_for(process, "epoch 2/12")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=100)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    command = printed.rstrip().splitlines()[-1]
    assert command.startswith("  python examples/cifar10_full.py ")
    saved = torch.load(out / "simclr" / "last.ckpt", weights_only=True)["global_step"]
    assert STEPS <= saved < 12 * STEPS
    assert not (out / "results.json").exists()
    monkeypatch.chdir(ROOT)
    assert cifar10_full.main(shlex.split(command)[2:]) == 0
    assert len(results_of(out)["models"]["simclr"]["epoch_losses"]) == 12
    assert results_of(out)["config"]["precision"] == "bf16"


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_same_command_with_resume(folder, tmp_path):
    told = [*TINY, "--precision", "32", "--data", str(folder)]
    outs = [tmp_path / "killed", tmp_path / "whole"]
    with start([*told, "--out", str(outs[0])]) as process:
        wait_for(process, "StochCon Bern  epoch 1/2")
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
