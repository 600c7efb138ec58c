"""Pretraining of the examples: the same views for every model, and the same end however often it was stopped."""

import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipes import files
from recipes.files import write_atomically, write_json
from recipes.models import make_encoder, make_model
from recipes.pretrain import Pretraining, TrainingError, TrainingOptions, pretrain
from safetensors.torch import load_file
from small_images import batch

EPOCHS, STEPS = 4, 2
OPTIONS = TrainingOptions(
    epochs=EPOCHS,
    batch_size=12,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup_epochs=1,
    loss_temperature=0.5,
    jitter_strength=0.5,
    min_crop=0.2,
    temperature_end=0.25,
    precision="32",
    device="cpu",
    compile=False,
    seed=5,
)
LEFT = {"weights.safetensors", "loss.csv", "last.ckpt"}


def make(name, **options):
    torch.manual_seed(OPTIONS.seed)
    return make_model(name, "small", 16, 16, **options)


def train(folder, name="bern", *, before_step=None, **changes):
    """Train on a little more than two batches; `before_step(n)` runs before the n-th step of this call."""
    model, steps = make(name), iter(range(1, 1000))
    if before_step is not None:
        model.register_forward_pre_hook(lambda module, views: before_step(next(steps)))
    return pretrain(model, batch(26), OPTIONS._replace(**changes), folder, name)


def stop_at(step, how):
    def before_step(n):
        if n == step:
            how()

    return before_step


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def checkpoint(folder):
    """What a checkpoint holds, without the times it took."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    content["run"].pop("seconds")
    content["callbacks"] = None  # paths
    content["loops"] = _without_times(content["loops"])
    return content


def _without_times(loops):
    return {k: v for k, v in loops["fit_loop"].items() if k != "state_dict"}


def assert_equal(a, b, place=""):
    """Nested containers equal bit for bit."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


def assert_same_end(training, folder, other, other_folder):
    assert training.losses == other.losses
    assert_equal(dict(training.model.state_dict()), dict(other.model.state_dict()))
    assert_equal(checkpoint(folder), checkpoint(other_folder))
    assert load_file(folder / "weights.safetensors").keys() == training.model.state_dict().keys()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and end of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "bern"
    return folder, train(folder)


# ---- one run --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_weights_losses_and_checkpoint(whole):
    folder, training = whole
    assert {path.name for path in folder.iterdir()} == LEFT
    assert not training.model.training
    assert len(training.losses) == EPOCHS * STEPS  # the smaller last batch is dropped
    assert training.seconds > 0
    assert_equal(load_file(folder / "weights.safetensors"), dict(training.model.state_dict()))
    lines = (folder / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,loss,seconds"
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1, 9)]
    assert float(lines[-1].split(",")[2]) == pytest.approx(training.seconds, abs=0.01)


@pytest.mark.parametrize("name", ["simclr", "bern", "gauss"])
def test_the_loss_falls(tmp_path, name):
    easy = {"optimizer": "adamw", "learning_rate": 0.01, "min_crop": 0.8, "jitter_strength": 0.1}
    losses = train(tmp_path, name, epochs=10, **easy).losses
    begin, end = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    assert end < begin - 0.2


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_encoder_and_weights_stay_float32(tmp_path, precision, dtype):
    model, seen = make("gauss"), set()
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    training = pretrain(model, batch(12), OPTIONS._replace(epochs=1, precision=precision), tmp_path, "gauss")
    assert seen == {dtype}
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert all(torch.tensor(training.losses).isfinite())


def test_the_temperature_is_annealed_over_the_whole_run(whole):
    folder, training = whole
    assert training.model.bottleneck.temperature.item() == pytest.approx(0.25)
    schedule = checkpoint(folder)["run"]["schedule"]
    assert schedule["last_step"] == schedule["total_steps"] == EPOCHS * STEPS


def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path):
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "recipes.pretrain.create_optimizer_v2", lambda m, o, lr, wd: Recorder(m.parameters(), lr)
        )
        train(tmp_path, "simclr", epochs=6, warmup_epochs=2)
    assert len(rates) == 12
    assert rates[0] == pytest.approx(0.001)
    warmup = 2 * STEPS
    assert rates[:warmup] == pytest.approx([0.001 + (0.1 - 0.001) * i / warmup for i in range(warmup)])
    after = len(rates) - warmup
    assert rates[warmup:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / after)) for i in range(after)])


def test_weights_decay_and_biases_and_norms_do_not():
    model = make("bern")
    optimizer = Pretraining(model, batch(26), OPTIONS).configure_optimizers()["optimizer"]
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decayed[id(p)] for name, p in model.named_parameters()}
    assert {decay for name, decay in names.items() if name.endswith("bias")} == {0.0}
    assert names["encoder.backbone.bn1.weight"] == 0.0
    assert names["encoder.backbone.conv1.0.weight"] == names["head.3.weight"] == OPTIONS.weight_decay


# ---- models are compared on equal terms -----------------------------------------------------------------------


def test_models_start_from_the_same_encoder_and_head():
    simclr, bern, gauss = (make(name).state_dict() for name in ("simclr", "bern", "gauss"))
    torch.manual_seed(OPTIONS.seed)
    alone = make_encoder("small").state_dict()  # the untrained baseline
    assert len(alone) > 20
    shared = [k for k in simclr if k.startswith("head.")] + [f"encoder.{k}" for k in alone]
    assert len(shared) == len(simclr)
    for other in (bern, gauss):
        values = {k.replace("encoder.backbone.", "encoder."): v for k, v in other.items()}
        assert_equal({k: simclr[k] for k in shared}, {k: values[k] for k in shared})
    assert_equal({k: simclr[f"encoder.{k}"] for k in alone}, dict(alone))


def test_models_see_the_same_views_in_the_same_order(tmp_path):
    seen = {}
    for name in ("simclr", "bern", "gauss"):
        model, seen[name] = make(name), []
        model.register_forward_pre_hook(
            lambda m, views, kept=seen[name]: kept.append([v.clone() for v in views])
        )
        pretrain(model, batch(26), OPTIONS._replace(epochs=2), tmp_path / name, name)
    assert len(seen["simclr"]) == 2 * STEPS
    assert_equal(seen["simclr"], seen["bern"])
    assert_equal(seen["simclr"], seen["gauss"])
    steps = [torch.cat(views) for views in seen["simclr"]]
    assert not any(torch.equal(a, b) for i, a in enumerate(steps) for b in steps[:i])


def test_another_seed_gives_other_views_and_order(tmp_path):
    seen = []
    for seed in (5, 6):
        train(tmp_path / str(seed), "simclr", seed=seed, epochs=1, before_step=lambda n: None)
        model = make("simclr")
        model.register_forward_pre_hook(lambda m, views: seen.append(views[0].clone()))
        pretrain(model, batch(26), OPTIONS._replace(epochs=1, seed=seed), tmp_path / f"again{seed}", "simclr")
    assert not any(torch.equal(a, b) for a in seen[:STEPS] for b in seen[STEPS:])


# ---- stopped and resumed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 8], ids=["before a checkpoint", "in the second epoch", "in the last"])
def test_an_interrupted_run_ends_as_one_that_was_not(whole, tmp_path, step):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, before_step=stop_at(step, interrupt))
    assert signal.getsignal(signal.SIGINT) is handler  # Ctrl-C works again
    epochs_done = (step - 1) // STEPS
    assert (tmp_path / "last.ckpt").exists() == (epochs_done > 0)
    assert not (tmp_path / "weights.safetensors").exists()
    taken = []
    training = train(tmp_path, before_step=taken.append)
    assert len(taken) == (EPOCHS - epochs_done) * STEPS
    assert_same_end(training, tmp_path, whole[1], whole[0])


def test_a_run_interrupted_twice_ends_as_one_that_was_not(whole, tmp_path):
    for step in (4, 3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, before_step=stop_at(step, interrupt))
    assert_same_end(train(tmp_path), tmp_path, whole[1], whole[0])


def test_a_killed_process_is_taken_up_where_its_last_epoch_ended(whole, tmp_path):
    program = (
        "import torch; torch.set_num_threads(1); from pathlib import Path; import test_recipes_pretrain as t; "
        f"t.train(Path({str(tmp_path)!r}), before_step=t.stop_at(6, t.kill))"
    )
    here = Path(__file__).parent
    path = os.pathsep.join((str(here), str(here.parent / "examples"), os.environ.get("PYTHONPATH", "")))
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2 * STEPS
    taken = []
    training = train(tmp_path, before_step=taken.append)
    assert len(taken) == 2 * STEPS
    assert_same_end(training, tmp_path, whole[1], whole[0])


def test_a_run_stopped_after_its_last_epoch_only_writes_what_was_missing(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    (tmp_path / "bern" / "weights.safetensors").unlink()
    training = train(tmp_path / "bern", before_step=stop_at(1, interrupt))
    assert_same_end(training, tmp_path / "bern", whole[1], whole[0])


def test_a_finished_run_is_loaded_and_not_trained(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bern").iterdir()}
    training = train(tmp_path / "bern", before_step=stop_at(1, interrupt))
    assert not training.model.training
    assert_equal(dict(training.model.state_dict()), dict(whole[1].model.state_dict()))
    assert training.losses == whole[1].losses
    assert training.seconds == pytest.approx(whole[1].seconds, abs=0.01)
    assert {path.name: path.read_bytes() for path in (tmp_path / "bern").iterdir()} == before


# ---- what can go wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_diverged_loss_names_its_epoch_and_spares_the_checkpoint(tmp_path, value):
    model, steps = make("simclr"), []

    def spoil(module, views, output):
        steps.append(1)
        return output._replace(v=output.v * float(value)) if len(steps) == STEPS + 1 else output

    model.register_forward_hook(spoil)
    message = (
        r"loss became (nan|inf) in epoch 2; the checkpoint of the epoch before is kept; try a lower --lr"
    )
    with pytest.raises(TrainingError, match=message):
        pretrain(model, batch(26), OPTIONS, tmp_path, "simclr")
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == STEPS
    assert all(v.isfinite().all() for v in kept["state_dict"].values())
    assert len(train(tmp_path, "simclr").losses) == EPOCHS * STEPS


def test_a_loss_that_diverges_in_the_first_epoch_promises_no_checkpoint(tmp_path):
    model = make("simclr")
    model.register_forward_hook(lambda m, views, output: output._replace(v=output.v * float("nan")))
    with pytest.raises(TrainingError, match=r"became nan in epoch 1; (?!the checkpoint).*lower --lr"):
        pretrain(model, batch(26), OPTIONS, tmp_path, "simclr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "words", "cut"])
def test_a_damaged_checkpoint_is_named(whole, tmp_path, content):
    path = tmp_path / "last.ckpt"
    whole_file = (whole[0] / "last.ckpt").read_bytes()
    path.write_bytes(whole_file[: len(whole_file) // 2] if content is None else content)
    with pytest.raises(
        TrainingError, match=r"(?s)last\.ckpt is damaged.*\(.*\); delete it to train this model anew"
    ):
        train(tmp_path)
    path.unlink()
    assert len(train(tmp_path, epochs=1).losses) == STEPS


def test_damaged_weights_are_named(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    path = tmp_path / "bern" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"(?s)weights\.safetensors .*; delete it"):
        train(tmp_path / "bern")


def test_a_checkpoint_of_another_model_is_named(whole, tmp_path):
    shutil.copy(whole[0] / "last.ckpt", tmp_path)
    with pytest.raises(TrainingError, match=r"(?s)last\.ckpt .*; delete it"):
        train(tmp_path, "gauss")


@pytest.mark.parametrize("size", [27, 1])
def test_a_batch_that_cannot_be_made_is_refused(tmp_path, size):
    with pytest.raises(TrainingError, match=rf"--batch-size .*26 training images, got {size}$"):
        train(tmp_path / "run", batch_size=size)
    assert not (tmp_path / "run").exists()


# ---- whole files ----------------------------------------------------------------------------------------------


class FullDiskError(OSError):
    pass


def full_disk(*args):
    raise FullDiskError("no space left on device")


def test_a_failing_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "below" / "file.json"
    write_json(path, {"a": 1})
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(FullDiskError):
            write_atomically(path, b"half of it")
    assert path.read_bytes() == old
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    write_atomically(path, b"old")
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        order.append(("fsync", path.read_bytes()))
        real_fsync(descriptor)

    def replace(self, target):
        order.append(("replace", self.read_bytes()))
        return real_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(path, b"new")
    assert order == [("fsync", b"old"), ("replace", b"new")]


def test_weights_that_cannot_be_written_cost_no_training(whole, tmp_path, monkeypatch):
    def fail_on_weights(path, content):
        full_disk() if path.suffix == ".safetensors" else write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("recipes.pretrain.write_atomically", fail_on_weights)
        with pytest.raises(FullDiskError):
            train(tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()
    training = train(tmp_path, before_step=stop_at(1, interrupt))
    assert_same_end(training, tmp_path, whole[1], whole[0])


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    """Also with the folder on another disk than the system's temporary files, where a move is a copy."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, before_step=stop_at(3, interrupt))
    good = (tmp_path / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(FullDiskError):
            train(tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == good
