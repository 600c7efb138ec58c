"""Pretraining of the examples: the same views for every model, and the same end however often it was stopped."""

import shutil
import signal
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from recipes import training
from recipes.branches import drawn_again, without_noise
from recipes.checkpoints import Stopped, newest_whole
from recipes.feeds import DataError
from recipes.files import write_atomically
from recipes.models import make_encoder, make_model
from recipes.pretrain import Pretraining, TrainingError, TrainingOptions
from recipes.track import Track
from safetensors.torch import load_file
from small_training import (
    BATCH,
    IMAGES,
    OPTIONS,
    SCHEDULE,
    STEPS,
    TOTAL,
    Before,
    at_step,
    launch,
    make,
    terminate,
    train,
    wait,
)

from stochastic_bottleneck import InfoNCELoss

LEFT = {"weights.safetensors", "loss.csv", "step=0000008.ckpt", "step=0000012.ckpt"}


class Halt(BaseException):
    """Ends a run at once, as a crash does."""


def halt():
    raise Halt


def never():
    raise AssertionError("a step was taken")


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


def checkpoint(folder):
    """What the last checkpoint holds of weights, optimizer, rate, temperature, average and scale."""
    content = torch.load(newest_whole(folder), weights_only=True)
    content["run"].pop("seconds")
    for name in ("loops", "Checkpoints", "Track"):
        content.pop(name, None)
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if k == "Average"}
    return content


def assert_same_end(ended, folder, other, other_folder):
    assert len(ended.losses) == TOTAL
    assert ended.losses == other.losses
    assert_equal(dict(ended.model.state_dict()), dict(other.model.state_dict()))
    assert_equal(checkpoint(folder), checkpoint(other_folder))
    assert_equal(load_file(folder / "weights.safetensors"), dict(ended.model.state_dict()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and end of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "bern"
    return folder, train(folder)


# ---- one run --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_weights_losses_and_checkpoints(whole):
    folder, ended = whole
    assert {path.name for path in folder.iterdir()} == LEFT
    assert not ended.model.training
    assert {p.device.type for p in ended.model.parameters()} == {"cpu"}
    assert len(ended.losses) == TOTAL  # the smaller last batch is dropped
    assert ended.seconds > 0
    assert_equal(load_file(folder / "weights.safetensors"), dict(ended.model.state_dict()))
    lines = (folder / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,loss,seconds"
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1, TOTAL + 1)]
    assert [float(line.split(",")[1]) for line in lines[1:]] == ended.losses
    assert float(lines[-1].split(",")[2]) == pytest.approx(ended.seconds, abs=0.01)


@pytest.mark.parametrize("name", ["simclr", "bern", "gauss"])
def test_the_loss_falls(tmp_path, name):
    easy = {"optimizer": "adamw", "learning_rate": 0.02, "min_scale": 0.8, "strength": 0.1}
    losses = train(tmp_path, name, epochs=10, **easy).losses
    begin, end = sum(losses[:STEPS]) / STEPS, sum(losses[-STEPS:]) / STEPS
    assert end < begin - 0.2


def test_the_loss_is_infonce_of_the_models_output_on_the_transforms_views(tmp_path):
    model, given = make("simclr"), []
    model.register_forward_hook(lambda m, views, output: given.append([x.detach() for x in output]))
    losses = train(tmp_path, model=model).losses
    expected = [InfoNCELoss(OPTIONS.loss_temperature)(*output).item() for output in given]
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_encoder_and_weights_stay_float32(tmp_path, precision, dtype):
    model, seen = make("gauss"), set()
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    ended = train(tmp_path, model=model, epochs=1, precision=precision)
    assert seen == {dtype}
    assert {p.dtype for p in ended.model.parameters()} == {torch.float32}
    assert all(torch.tensor(ended.losses).isfinite())


def test_the_temperature_is_annealed_over_the_whole_run(tmp_path):
    seen = []

    class Read(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(module.model.bottleneck.temperature.item())

    ended = train(tmp_path, callbacks=[Read()])
    assert seen == pytest.approx([0.25 ** (k / TOTAL) for k in range(TOTAL)])
    assert ended.model.bottleneck.temperature.item() == pytest.approx(0.25)


def test_models_without_a_temperature_ignore_its_end(tmp_path):
    assert len(train(tmp_path / "gauss", "gauss", epochs=1).losses) == STEPS
    assert len(train(tmp_path / "simclr", "simclr", epochs=1).losses) == STEPS
    kept = train(tmp_path / "kept", "bern", epochs=1, temperature_end=None)
    assert kept.model.bottleneck.temperature.item() == 1.0


def test_the_divergence_from_the_prior_can_be_added_to_the_loss():
    output = make("bern")(*torch.rand(2, 5, 3, 32, 32))
    contrast = InfoNCELoss(OPTIONS.loss_temperature)(output.v, output.v_prime)
    weighted = Pretraining(make("bern"), SCHEDULE, OPTIONS._replace(kl_weight=0.01)).objective(output)
    torch.testing.assert_close(weighted, contrast + 0.01 * output.posterior.kl().mean())
    assert weighted > contrast + 1e-4
    simclr = make("simclr")(*torch.rand(2, 5, 3, 32, 32))
    plain, same = (
        Pretraining(make("simclr"), SCHEDULE, OPTIONS._replace(kl_weight=weight)).objective(simclr)
        for weight in (0.0, 0.01)
    )
    assert plain == same


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_several_samples_are_drawn_for_one_pass_of_the_encoder(kind, symmetric, tmp_path):
    model, passes, drawn = make(kind, symmetric=symmetric), [], []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    model.bottleneck.register_forward_hook(lambda m, given, output: drawn.append(output.z.detach()))
    torch.manual_seed(0)
    output = model(*torch.rand(2, 5, 3, 32, 32))
    loss = InfoNCELoss(OPTIONS.loss_temperature)
    losses = [loss(output.v, output.v_prime), *(loss(output.v, drawn_again(model, output)) for _ in range(2))]
    assert len(passes) == 2
    assert len(drawn) == 3 * (1 + symmetric)
    assert len({z.sum().item() for z in drawn}) == len(drawn)
    assert len({x.item() for x in losses}) == 3
    ended = train(tmp_path, kind, latent={"symmetric": symmetric}, samples=3, epochs=1)
    assert all(torch.tensor(ended.losses).isfinite())


def test_the_loss_of_several_samples_is_their_mean(monkeypatch):
    model = make("bern")
    output = model(*torch.rand(2, 5, 3, 32, 32))
    loss = InfoNCELoss(OPTIONS.loss_temperature)
    others = [output.v_prime.roll(shift, 0) for shift in (1, 2)]
    monkeypatch.setattr("recipes.pretrain.drawn_again", lambda *_, left=list(others): left.pop(0))
    found = Pretraining(model, SCHEDULE, OPTIONS._replace(samples=3)).objective(output)
    expected = sum(loss(output.v, v_prime) for v_prime in (output.v_prime, *others)) / 3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["bern", "gauss"])
def test_without_noise_the_latent_is_repeatable_and_can_be_trained_on(kind, symmetric):
    model, views = make(kind, symmetric=symmetric), torch.rand(2, 5, 3, 32, 32)
    first, again = without_noise(model, *views), without_noise(model, *views)
    torch.testing.assert_close(first, again)
    posterior = first.posterior
    centre = posterior.probs if kind == "bern" else posterior.mean  # the temperature is 1
    torch.testing.assert_close(first.z, centre)
    sampled = model(*views)
    assert [x.shape for x in first[:5]] == [x.shape for x in sampled[:5]]
    torch.testing.assert_close(first.h, sampled.h)
    torch.testing.assert_close(first.posterior, sampled.posterior)
    first.v_prime.square().mean().backward()
    assert model.bottleneck.projector.weight.grad.abs().sum() > 0


def test_the_noise_is_left_out_in_the_first_epochs_alone(tmp_path):
    seen = []

    class Read(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            output = outputs["output"]
            seen.append(torch.equal(output.z, output.posterior.rsample(noise=torch.zeros_like(output.z))))

    train(tmp_path, callbacks=[Read()], noiseless_epochs=1.5)
    steps = -(-3 * STEPS // 2)
    assert seen == [True] * steps + [False] * (TOTAL - steps)
    assert len(train(tmp_path / "simclr", "simclr", epochs=1, noiseless_epochs=1).losses) == STEPS


@pytest.mark.parametrize("changes", [{"samples": 2}, {"noiseless_epochs": 1.0}])
def test_micro_batches_take_one_sample_with_noise(changes):
    with pytest.raises(
        ValueError, match="micro_batch=3 goes with samples=1 and noiseless_epochs=0 alone, got"
    ):
        Pretraining(make(), SCHEDULE, TrainingOptions(**changes), 3)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Pretraining(make(), SCHEDULE, TrainingOptions(samples=0))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="kl_weight must be finite and not below 0, got"):
        Pretraining(make(), SCHEDULE, TrainingOptions(kl_weight=weight))


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_callbacks_see_what_the_model_returned_without_its_graph(tmp_path, micro_batch):
    outputs = []

    class See(L.Callback):
        def on_train_batch_end(self, trainer, module, seen, batch, batch_idx):
            outputs.append(seen)

    losses = train(tmp_path, epochs=1, micro_batch=micro_batch, callbacks=[See(), Track(tmp_path)]).losses
    assert [seen["loss"].item() for seen in outputs] == losses
    for seen in outputs:
        output = seen["output"]
        assert type(output).__name__ == "StochConOutput"
        assert output.v.shape == (BATCH, 4)
        assert output.z.shape == output.posterior.logits.shape
        assert not any(x.requires_grad for x in (*output[:5], *output.posterior))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert {"gradient_norm", "share_of_ones", "temperature", "kl"} <= set(header.split(","))


@pytest.mark.slow
def test_a_compiled_run_is_as_one_that_is_not(tmp_path):
    """With micro batches, so that the model is compiled for a pass without a gradient and for one with it."""
    words = {"name": "simclr", "epochs": 1, "micro_batch": 4}
    eager = train(tmp_path / "eager", **words)
    compiled = train(tmp_path / "compiled", compile=True, **words)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)


@pytest.mark.parametrize("compile", [False, True])
def test_a_model_is_compiled_when_asked(tmp_path, compile, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self))
    model = make("simclr")
    train(tmp_path, model=model, epochs=1, compile=compile)
    assert asked == [model] * compile


# ---- models are compared on equal terms -----------------------------------------------------------------------


def test_models_start_from_the_same_encoder_and_head():
    def start(make):
        torch.manual_seed(5)
        return make().state_dict()

    simclr, bern, gauss = (
        start(lambda name=name: make_model(name, "small", 16, 16)) for name in ("simclr", "bern", "gauss")
    )
    alone = start(lambda: make_encoder("small", 32))  # the untrained baseline
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
        train(tmp_path / name, model=model, epochs=2)
    assert len(seen["simclr"]) == 2 * STEPS
    assert_equal(seen["simclr"], seen["bern"])
    assert_equal(seen["simclr"], seen["gauss"])
    steps = [torch.cat(views) for views in seen["simclr"]]
    assert not any(torch.equal(a, b) for i, a in enumerate(steps) for b in steps[:i])


def test_another_seed_gives_other_views(tmp_path):
    seen = []
    for seed in (5, 6):
        model = make("simclr")
        model.register_forward_pre_hook(lambda m, views: seen.append(views[0].clone()))
        train(tmp_path / str(seed), model=model, seed=seed, epochs=1)
    assert not any(torch.equal(a, b) for a in seen[:STEPS] for b in seen[STEPS:])


# ---- batches larger than the device ---------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [2, 3, 7])
def test_micro_batches_give_the_whole_batchs_steps(tmp_path, micro_batch):
    model, sizes = make("simclr", "group"), []
    model.register_forward_pre_hook(lambda m, views: sizes.append(len(views[0])))
    small = train(tmp_path / "small", model=model, micro_batch=micro_batch)
    assert max(sizes) <= micro_batch
    assert len(sizes) == 2 * TOTAL * -(-BATCH // micro_batch)
    large = train(tmp_path / "large", "simclr", norm="group")
    assert small.losses == pytest.approx(large.losses, rel=1e-5)
    for name, value in large.model.state_dict().items():  # float32's rounding, over twelve steps
        assert (small.model.state_dict()[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_accumulated_gradients_are_those_of_other_negatives(tmp_path):
    """What micro batches are there for: the loss of half a batch is another one."""
    whole, half = train(tmp_path / "a", "simclr", norm="group"), []
    model = make("simclr", "group")
    model.register_forward_hook(
        lambda m, views, output: half.append([x[: BATCH // 2].detach() for x in output])
    )
    train(tmp_path / "b", model=model)
    losses = [InfoNCELoss(OPTIONS.loss_temperature)(*output).item() for output in half]
    assert all(a - b > 0.3 for a, b in zip(whole.losses, losses, strict=True))  # about log 2


def test_a_micro_batch_as_large_as_the_batch_runs_once(tmp_path):
    model, sizes = make("simclr"), []
    model.register_forward_pre_hook(lambda m, views: sizes.append(len(views[0])))
    small = train(tmp_path / "small", model=model, micro_batch=BATCH)
    assert sizes == [BATCH] * TOTAL
    large = train(tmp_path / "large", "simclr")
    assert small.losses == pytest.approx(large.losses, rel=1e-6)


def test_a_micro_batch_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        train(tmp_path, micro_batch=0)


# ---- stopped and resumed --------------------------------------------------------------------------------------

FULL = {"ema": 0.8, "precision": "bf16"}
RUNS = {
    "bern": {},
    "bern, averaged, bfloat16": FULL,
    "gauss, adamw": {"name": "gauss", "optimizer": "adamw", "learning_rate": 0.01},
    "simclr, lars": {"name": "simclr", "optimizer": "lars", "learning_rate": 1.0},
    "bern, micro batches, averaged": {"micro_batch": 3, "ema": 0.8, "precision": "bf16"},
    "bern, uneven steps": {"every_steps": 5},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_crashed_run_ends_as_one_that_did_not(tmp_path, case):
    words = {"every_steps": 1, **RUNS[case]}
    expected = train(tmp_path / "whole", **words)
    for step in (3, STEPS + 1, 7, 8, TOTAL):
        with pytest.raises(Halt):
            train(tmp_path / "halted", **words, callbacks=[at_step(step, halt)])
        torch.rand(step)  # what is left in the global generators decides nothing
    watch = Before()
    ended = train(tmp_path / "halted", **words, callbacks=[watch])
    last = (TOTAL - 1) if words["every_steps"] == 1 else 10
    assert watch.taken == list(range(last + 1, TOTAL + 1))
    assert_same_end(ended, tmp_path / "halted", expected, tmp_path / "whole")


def test_a_killed_process_is_taken_up_at_its_last_checkpoint(tmp_path):
    """Other processes than this one, one after the other: nothing but the folder is handed over."""
    words = {"every_steps": 1, **FULL}
    expected = train(tmp_path / "whole", **words)
    for step in (2, 7):
        code, _, said = wait(launch([sys.executable], tmp_path, {"killed": {**words, "kill_at": step}}))
        assert code == -signal.SIGKILL, said
        assert newest_whole(tmp_path / "killed").name == f"step=000000{step - 1}.ckpt"
    ended = train(tmp_path / "killed", **words)
    assert_same_end(ended, tmp_path / "killed", expected, tmp_path / "whole")


def test_a_terminated_run_writes_its_step_and_ends_as_one_that_was_not(whole, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stopped:
        train(tmp_path, callbacks=[at_step(6, terminate)])
    assert stopped.value.checkpoint == newest_whole(tmp_path) == tmp_path / "step=0000006.ckpt"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not (tmp_path / "weights.safetensors").exists()
    watch = Before()
    assert_same_end(train(tmp_path, callbacks=[watch]), tmp_path, whole[1], whole[0])
    assert watch.taken[0] == 7


def test_an_interrupt_before_training_is_one_of_the_keyboard(tmp_path):
    class Interrupt(L.Callback):
        def on_fit_start(self, trainer, module):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler  # Ctrl-C works again


@pytest.mark.parametrize("ema", [None, 0.8])
def test_a_run_stopped_after_its_last_step_only_writes_what_was_missing(tmp_path, ema):
    expected = train(tmp_path / "whole", ema=ema)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "weights.safetensors").unlink()
    ended = train(tmp_path / "again", ema=ema, callbacks=[at_step(TOTAL + 1, never)])
    assert_same_end(ended, tmp_path / "again", expected, tmp_path / "whole")
    assert ended.seconds == pytest.approx(expected.seconds, abs=0.5)


def test_a_finished_run_is_loaded_and_not_trained(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bern").iterdir()}
    watch = Before()
    ended = train(tmp_path / "bern", callbacks=[watch])
    assert watch.taken == []
    assert not ended.model.training
    assert_equal(dict(ended.model.state_dict()), dict(whole[1].model.state_dict()))
    assert ended.losses == whole[1].losses
    assert ended.seconds == pytest.approx(whole[1].seconds, abs=0.01)
    assert {path.name: path.read_bytes() for path in (tmp_path / "bern").iterdir()} == before


# ---- 16-bit floats and their scale ----------------------------------------------------------------------------

SCALE = 1024.0


@pytest.fixture
def float16(monkeypatch):
    """Float16 with its scale on the CPU, where Lightning's own arguments would make it bfloat16."""
    real = L.Trainer

    def trainer(precision, plugins, **options):
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=3)
        return real(plugins=[*plugins, MixedPrecision("16-mixed", "cpu", scaler)], **options)

    monkeypatch.setattr(training.L, "Trainer", trainer)


def scale_of(folder):
    return torch.load(newest_whole(folder), weights_only=True)["MixedPrecision"]["scale"]


@pytest.mark.usefixtures("float16")
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_scale_of_float16_is_taken_up_too(tmp_path, micro_batch):
    words = {"name": "simclr", "norm": "group", "every_steps": 1, "micro_batch": micro_batch}
    expected = train(tmp_path / "whole", **words)
    for step in (3, 6):
        with pytest.raises(Halt):
            train(tmp_path / "halted", **words, callbacks=[at_step(step, halt)])
    ended = train(tmp_path / "halted", **words)
    assert_same_end(ended, tmp_path / "halted", expected, tmp_path / "whole")
    assert scale_of(tmp_path / "whole") != SCALE  # it has moved


@pytest.mark.usefixtures("float16")
def test_micro_batches_scale_the_loss_and_the_optimizer_takes_it_out(tmp_path):
    words = {"name": "simclr", "norm": "group"}
    large = train(tmp_path / "large", **words)
    small = train(tmp_path / "small", **words, micro_batch=3)
    assert scale_of(tmp_path / "small") == scale_of(tmp_path / "large")
    assert small.losses == pytest.approx(large.losses, rel=2e-3)
    start = make("simclr", "group").state_dict()
    for name, value in large.model.state_dict().items():
        moved = (value - start[name]).norm()
        assert (small.model.state_dict()[name] - value).norm() < 0.02 * moved + 1e-6, name


# ---- what can go wrong ----------------------------------------------------------------------------------------


def test_damaged_weights_are_named(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    path = tmp_path / "bern" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"(?s)weights\.safetensors .*; delete it"):
        train(tmp_path / "bern")


def test_weights_of_another_model_are_named(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "bern")
    with pytest.raises(
        TrainingError, match=r"(?s)weights\.safetensors is damaged or of another model .*; delete it"
    ):
        train(tmp_path / "bern", "gauss")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "bern")
    (tmp_path / "bern" / "weights.safetensors").unlink()
    path = tmp_path / "bern" / "step=0000012.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    watch = Before()
    ended = train(tmp_path / "bern", callbacks=[watch])
    assert watch.taken == [9, 10, 11, 12]
    assert "step=0000012.ckpt is damaged" in capsys.readouterr().out
    assert_same_end(ended, tmp_path / "bern", whole[1], whole[0])


@pytest.mark.parametrize("size", [IMAGES + 1, 1])
def test_a_batch_that_cannot_be_made_is_refused(tmp_path, size):
    with pytest.raises(DataError, match=rf"--batch-size .*{IMAGES} training images, got {size}"):
        train(tmp_path / "run", batch_size=size)
    assert not (tmp_path / "run").exists()


class FullDiskError(OSError):
    pass


def test_weights_that_cannot_be_written_cost_no_training(whole, tmp_path, monkeypatch):
    def fail_on_weights(path, content):
        if path.suffix == ".safetensors":
            raise FullDiskError("no space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("recipes.finished.write_atomically", fail_on_weights)
        with pytest.raises(FullDiskError):
            train(tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()
    watch = Before()
    ended = train(tmp_path, callbacks=[watch])
    assert watch.taken == []
    assert_same_end(ended, tmp_path, whole[1], whole[0])
