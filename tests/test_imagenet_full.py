"""The run on ImageNet, on a few small photographs at its real size of 224 pixels and 2,048 bits."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import imagenet_full
import pytest
import torch
from full_runs import calling, lasting, results_of
from recipes import classify, evaluate, report, run
from recipes.checkpoints import Stopped
from recipes.grid import save_grid
from small_images import write_folder, write_tar

from stochastic_bottleneck.evaluation import forest_curve

ROOT = Path(__file__).parents[1]
STEPS = 3
SMALL_STAGES = [
    part
    for prefix in ("", "probe-", "finetune-", "supervised-")
    for part in (f"--{prefix}epochs", "1", f"--{prefix}batch-size", "6")
]
TINY = ["--preset", "smoke", *SMALL_STAGES, "--workers", "0", "--precision", "32"]
ALL = ("simclr", "bern", "gauss")


@pytest.fixture(scope="module", autouse=True)
def small_forests_and_grids():
    """Forests of a few trees, grids of a few views; their number is no part of what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_grid", functools.partial(save_grid, images=2, views=2))
        patch.setattr(evaluate, "forest_curve", functools.partial(forest_curve, trees=5, jobs=1))
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three classes of six photographs to train on and two to evaluate on."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    return write_folder(folder, 6, 2, suffix=".JPEG", test_name="val", size=(240, 260))


@pytest.fixture
def call(photographs, tmp_path, capsys):
    return calling(imagenet_full.main, TINY, photographs, tmp_path / "out", capsys)


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    """A run of all four models."""
    out = tmp_path_factory.mktemp("runs") / "all"
    assert imagenet_full.main([*TINY, "--data", str(photographs), "--out", str(out)]) == 0
    return out


# ---- a run ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_for_each_part(finished):
    parts = {path.relative_to(finished).with_suffix("").as_posix() for path in finished.glob("*/*.json")}
    chains = {f"{name}/{part}" for name in ALL for part in ("pretrain", "probe", "frozen", "finetune")}
    assert parts == chains | {"supervised/train", "bern/config", "gauss/config"}
    for name in ALL:
        assert (finished / name / "pretrain" / "weights.safetensors").exists()
    for file in ("config.json", "results.json", "table.md", "report.html", "views.png"):
        assert (finished / file).exists(), file


def test_its_compression_is_that_of_the_tensors(finished):
    results = results_of(finished)
    assert results["data"]["image_shape"] == [224, 224, 3]
    assert results["models"]["bern"]["z"]["dim"] == 2048
    bits = results["models"]["bern"]["bits"]
    assert (bits["image_bytes"], bits["code_bytes"]) == (224 * 224 * 3, 2048 // 8)
    assert bits["compression_ratio"] == bits["image_bytes"] / bits["code_bytes"] == 588
    assert "588x" in (finished / "table.md").read_text()
    assert "588x" in (finished / "report.html").read_text()


def share(value):
    return isinstance(value, float) and 0 <= value <= 1


def test_every_row_of_the_papers_table_is_there(finished):
    models = results_of(finished)["models"]
    assert list(models) == [*ALL, "supervised"]
    for name in ALL:
        model = models[name]
        for key in ("h",) if name == "simclr" else ("h", "z"):
            assert set(model[key]) == {"dim", "knn", "probe", "probe_f1", "probe_top5"}, (name, key)
            assert all(share(model[key][score]) for score in ("knn", "probe", "probe_top5"))
        assert model["h"]["dim"] == 256
        assert set(model["finetuned"]) == {"accuracy", "f1", "top5", "seconds", "epoch_losses"}
        assert len(model["epoch_losses"]) == len(model["finetuned"]["epoch_losses"]) == 1
    assert set(models["supervised"]["trained"]) == {"accuracy", "f1", "top5", "seconds", "epoch_losses"}
    judged = [models[name]["finetuned"] for name in ALL] + [models["supervised"]["trained"]]
    assert all(share(scores[key]) for scores in judged for key in ("accuracy", "top5"))


def test_the_table_is_that_of_its_results(finished):
    title, _, table = (finished / "table.md").read_text().partition("\n\n")
    assert title.rstrip(".") == report.title(results_of(finished))
    assert table == report.markdown_table(results_of(finished)) + "\n"
    assert len(table.splitlines()) == 2 + 1 + 2 + 2 + 1  # head, and a row for each representation


def test_the_terminal_tells_what_is_done_and_what_was_found(call):
    code, printed = call("--model", "bern")
    assert code == 0
    for said in (
        "device cpu",
        "StochCon Bern: encoder small, 1 epochs of batch 6, 2048 latent dimensions",
        "photographs: 18 training, 6 test images",
        "1/4 StochCon Bern, pretraining",
        "2/4 StochCon Bern, linear probe",
        "3/4 StochCon Bern, frozen evaluation",
        "4/4 StochCon Bern, fine-tuning",
        "report.html",
    ):
        assert said in printed, said


def test_training_images_that_are_evaluated_on_are_called_so(call, tmp_path):
    source = write_folder(tmp_path / "sample", 4, 0, suffix=".JPEG", size=(230, 230))
    for empty in (source / "test").iterdir():
        empty.rmdir()
    (source / "test").rmdir()
    code, printed = call("--model", "simclr", source=source, out=tmp_path / "sample-run")
    assert code == 0
    assert "sample, evaluated on its training images: 12 training, 12 test images" in printed
    assert "evaluated on its training images" in (tmp_path / "sample-run" / "table.md").read_text()


def test_a_tar_gives_what_its_folder_gives(call, finished, photographs, tmp_path):
    tar = write_tar(photographs, tmp_path / "photographs.tar")
    assert call("--model", "simclr", source=tar)[0] == 0
    models, expected = (results_of(out)["models"]["simclr"] for out in (tmp_path / "out", finished))
    assert lasting(models) == lasting(expected)
    assert list((tmp_path / "index").iterdir())  # what is kept of the tar lies beside the run


def test_a_part_of_the_training_images_can_be_held_out(call, tmp_path):
    assert call("--model", "supervised", "--held-out")[0] == 0
    data = results_of(tmp_path / "out")["data"]
    assert (data["train"], data["test"]) == (15, 3)
    assert "held out" in data["name"]


def test_options_of_every_stage_reach_it(call, monkeypatch):
    seen = {}
    pretrain, probe, fine_tune = run.pretrain_model, classify.probe, classify.fine_tune

    def recorder(name, work):
        def record(*args, **options):
            seen[name] = (args, options)
            return work(*args, **options)

        return record

    monkeypatch.setattr(classify, "probe", recorder("probe", probe))
    monkeypatch.setattr(classify, "fine_tune", recorder("finetune", fine_tune))
    monkeypatch.setattr(run, "pretrain_model", recorder("pretrain", pretrain))
    options = "--model gauss --probe-lr 0.3 --probe-weight-decay 0.01 --finetune-optimizer adamw --finetune-lr 0.001"
    assert call(*options.split(), "--finetune-batch-size", "9", "--norm", "group", "--size", "96")[0] == 0
    planned = {name: [a for a in args if hasattr(a, "learning_rate")] for name, (args, _) in seen.items()}
    (probe_schedule,), (tune_schedule,) = planned["probe"], planned["finetune"]
    assert (probe_schedule.learning_rate, probe_schedule.weight_decay) == (0.3, 0.01)
    assert tune_schedule[:4] == (1, 9, "adamw", 0.001)
    model = seen["finetune"][0][0]
    assert any(isinstance(m, torch.nn.GroupNorm) for m in model.modules())


def test_fine_tuning_can_be_left_out(call, tmp_path):
    code, printed = call("--model", "simclr", "--finetune-epochs", "0")
    assert code == 0
    assert "3/3 SimCLR, frozen evaluation" in printed
    assert "finetuned" not in results_of(tmp_path / "out")["models"]["simclr"]


# ---- stopped, resumed, refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["probe", "frozen", "fine_tune", "supervise"])
def test_a_run_stopped_in_any_part_ends_as_one_that_was_not(call, finished, tmp_path, monkeypatch, part):
    def stop(*args, **kwargs):
        raise Stopped(15, None)

    module = {"frozen": evaluate, "supervise": run.Run}.get(part, classify)
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate" if part == "frozen" else part, stop)
        code, printed = call("--model", "bern", "supervised")
    assert code == 143
    assert printed.endswith("--model bern supervised --resume")
    code, printed = call("--model", "bern", "supervised", "--resume")
    assert code == 0
    assert printed.count(", kept") == {"probe": 1, "frozen": 2, "fine_tune": 3, "supervise": 4}[part]
    models, expected = (results_of(out)["models"] for out in (tmp_path / "out", finished))
    assert lasting(models) == lasting({name: expected[name] for name in ("bern", "supervised")})


def test_a_finished_run_is_shown_again_without_work(call, finished, monkeypatch):
    def must_not_run(*args, **kwargs):
        raise AssertionError("this part was done already")

    for module, name in (
        (classify, "probe"),
        (classify, "fine_tune"),
        (classify, "supervise"),
        (evaluate, "evaluate"),
    ):
        monkeypatch.setattr(module, name, must_not_run)
    before = results_of(finished)
    code, printed = call("--resume", out=finished)
    assert code == 0
    assert printed.count(", kept") == 13
    assert lasting(results_of(finished)) == lasting(before)


def test_missing_photographs_are_told(call, tmp_path):
    code, printed = call(source=tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in printed.split("stopped:")[1]
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_trained(call, tmp_path):
    for option in ("--batch-size", "--probe-batch-size", "--finetune-batch-size", "--supervised-batch-size"):
        code, printed = call(option, "19")
        assert code == 2
        assert f"{option} must be at most the 18 training images, got 19" in printed
        assert not (tmp_path / "out").exists()


# ---- a plan ---------------------------------------------------------------------------------------------------


def test_a_dry_run_plans_every_part_and_trains_nothing(call, tmp_path):
    code, printed = call("--dry-run")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"plan.json"}
    for said in ("SimCLR", "StochCon Bern", "StochCon Gauss", "Supervised", "fine-tuning", "linear probe"):
        assert said in printed, said
    planned = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert list(planned["models"]) == [*ALL, "supervised"]
    assert set(planned["models"]["bern"]) == {"pretrain", "probe", "finetune"}
    assert planned["models"]["bern"]["pretrain"]["steps"] == STEPS
    assert call("--model", "simclr")[0] == 0  # the folder is free for the run itself
    assert results_of(tmp_path / "out")["plan"] == planned
    assert call("--model", "simclr", "--lr", "0.3", out=tmp_path / "other")[0] == 0
    assert "plan" not in results_of(tmp_path / "other")


# ---- several processes ----------------------------------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_give_what_one_gives(photographs, tmp_path):
    """SimCLR, as each process draws its own noise of a latent, and without batch norm, which CPUs do not share."""
    arguments = [*TINY, "--model", "simclr", "--norm", "group", "--data", str(photographs)]
    launch = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    found = {}
    for name, command in launch.items():
        done = subprocess.run(
            [*command, "examples/imagenet_full.py", *arguments, "--out", str(tmp_path / name)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall("1/4  SimCLR, pretraining", done.stdout)) == 1
        found[name] = results_of(tmp_path / name)["models"]["simclr"]
    assert found["two"]["epoch_losses"] == pytest.approx(found["one"]["epoch_losses"], abs=1e-4)
