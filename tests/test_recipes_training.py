"""How the examples train: optimizers and rates, the average of weights, and no diverged state in a checkpoint."""

import math

import lightning as L
import pytest
import torch
from recipes import stepped, training
from recipes.checkpoints import Checkpoints, newest_whole
from recipes.feeds import Feed, TrainingData
from recipes.optimization import Average
from recipes.pretrain import Pretraining
from recipes.training import Hardware, Schedule, TrainingError, configure, fit, scaled_rate, world
from small_training import (
    BATCH,
    CPU,
    EPOCHS,
    IMAGES,
    OPTIONS,
    SCHEDULE,
    STEPS,
    TOTAL,
    Before,
    images,
    make,
    train,
)
from torch import nn

# ---- optimizers -----------------------------------------------------------------------------------------------

RATE, DECAY = 0.5, 0.1


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2))


def stepped_once(optimizer, weight_decay, steps=1, gradient=None):
    """Parameters before, their gradient, and parameters after steps at the peak rate."""
    model = layers()
    schedule = Schedule(1, BATCH, optimizer, RATE, weight_decay, warmup_epochs=0)
    made = configure(model, schedule, 1000)["optimizer"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: torch.randn_like(p) if gradient is None else gradient(p) for name, p in before.items()}
    for _ in range(steps):
        for name, p in model.named_parameters():
            p.grad = gradients[name].clone()
        made.step()
    return before, gradients, dict(model.named_parameters())


def is_weight(name):
    return name in ("0.weight", "2.weight")


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_lars_adapts_the_rate_of_weights_alone_and_decays_them_alone(decay):
    before, gradients, after = stepped_once("lars", decay)
    assert sum(map(is_weight, before)) == 2
    for name, w in before.items():
        g, change = gradients[name], after[name] - before[name]
        if is_weight(name):
            trust = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8)
            torch.testing.assert_close(change, -RATE * trust * (g + decay * w))
        else:
            torch.testing.assert_close(change, -RATE * g)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_sgd_has_momentum_and_not_nesterovs(decay):
    before, gradients, after = stepped_once("sgd", decay, steps=2)
    for name, w in before.items():
        g, kept = gradients[name], decay if is_weight(name) else 0.0
        first = g + kept * w
        w = w - RATE * first
        expected = w - RATE * (0.9 * first + g + kept * w)
        torch.testing.assert_close(after[name], expected)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "nlars"])
def test_others_leave_biases_and_norms_out_of_decay_too(optimizer):
    before, _, after = stepped_once(optimizer, DECAY, gradient=torch.zeros_like)
    for name, w in before.items():
        shrunk = bool((after[name].abs() < w.abs()).all())
        assert shrunk == is_weight(name), name


def test_a_frozen_parameter_is_not_the_optimizers():
    model = layers()
    model[0].requires_grad_(False)
    optimizer = configure(model, SCHEDULE, 10)["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_model_of_biases_alone_can_be_trained_and_one_of_nothing_cannot():
    bias = nn.BatchNorm1d(3)
    assert len(configure(bias, SCHEDULE, 10)["optimizer"].param_groups) == 1
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        configure(bias.requires_grad_(False), SCHEDULE, 10)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="nosuch"):
        configure(layers(), SCHEDULE._replace(optimizer="nosuch"), 10)


# ---- rates ----------------------------------------------------------------------------------------------------


def test_rates_scale_as_simclr_has_it():
    assert scaled_rate(0.3, 4096) == pytest.approx(4.8)
    assert scaled_rate(1.2, 4096, "sqrt") == pytest.approx(0.075 * math.sqrt(4096))
    assert scaled_rate(1.0, 256) == scaled_rate(1.0, 256, "sqrt") == 1.0


def test_rates_of_no_rule_or_batch_are_refused():
    with pytest.raises(ValueError, match='"linear" or "sqrt", got \'cubic\''):
        scaled_rate(1.0, 256, "cubic")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        scaled_rate(1.0, 0)


class Rates(L.Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path, micro_batch):
    watch = Rates()
    train(tmp_path, callbacks=[watch], warmup_epochs=1.5, learning_rate=0.1, micro_batch=micro_batch)
    weights, biases = zip(*watch.rates, strict=True)
    warmup = 6
    assert weights == biases
    assert weights[:warmup] == pytest.approx([0.001 + (0.1 - 0.001) * i / warmup for i in range(warmup)])
    after = TOTAL - warmup
    assert weights[warmup:] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * i / after)) for i in range(after)]
    )


def test_a_warm_up_longer_than_the_run_leaves_a_step_at_the_peak(tmp_path):
    watch = Rates()
    train(tmp_path, callbacks=[watch], warmup_epochs=9, epochs=1)
    assert watch.rates[-1][0] == pytest.approx(0.1)


# ---- the average of weights -----------------------------------------------------------------------------------


class Kept(L.Callback):
    """Weights and buffers after every step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in module.model.state_dict().items()})


def test_an_average_is_what_is_kept_and_checkpoints_hold_both(tmp_path):
    decay, watch = 0.8, Kept()
    ended = train(tmp_path, "simclr", ema=decay, callbacks=[watch])
    expected = watch.states[0]
    for k, state in enumerate(watch.states[1:], 1):
        share = min(decay, 1 - (1 + k) ** (-2 / 3))  # timm's warm-up
        expected = {
            name: share * expected[name] + (1 - share) * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    assert len(watch.states) == TOTAL
    torch.testing.assert_close(dict(ended.model.state_dict()), expected)
    content = torch.load(newest_whole(tmp_path), weights_only=True)
    own = {
        name.removeprefix("model."): value
        for name, value in content["state_dict"].items()
        if name.startswith("model.")
    }
    torch.testing.assert_close(own, watch.states[-1], rtol=0, atol=0)
    torch.testing.assert_close(dict(content["callbacks"]["Average"]["weights"]), expected)
    distance = max((own[k].float() - v.float()).abs().max() for k, v in expected.items())
    assert distance > 1e-4  # the average and the last weights are two things


def test_an_average_changes_no_step(tmp_path):
    assert train(tmp_path / "with", ema=0.9).losses == train(tmp_path / "without").losses


def test_an_averaged_model_has_the_last_temperature(tmp_path):
    ended = train(tmp_path, ema=0.99)
    assert ended.model.bottleneck.temperature.item() == pytest.approx(OPTIONS.temperature_end)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_average_that_never_moves_is_refused(decay):
    with pytest.raises(ValueError, match="ema must be at least 0 and below 1, got"):
        Average(decay)


# ---- seeds ----------------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """A transform that notes how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images, seed=None, rank=0, world=1):
        self.calls.append((seed, rank, world))
        views = images.float() / 255
        return views, views


def noise_and_views(tmp_path, seed, epochs=EPOCHS):
    transform, noise = Recorded(), []
    feed = Feed(images().pretraining(0.5, 0.5).dataset, transform, in_memory=True)
    module = Pretraining(make("simclr"), SCHEDULE._replace(epochs=epochs), OPTIONS)
    module.model.register_forward_pre_hook(lambda m, views: noise.append(torch.rand(()).item()))
    fit(module, TrainingData(feed, BATCH, seed), tmp_path / f"{seed}-{epochs}", CPU)
    return noise, transform.calls


def test_views_and_noise_are_seeded_by_seed_and_step_and_nothing_else(tmp_path):
    noise, calls = noise_and_views(tmp_path, 5)
    assert len(set(noise)) == TOTAL
    assert len({seed for seed, *_ in calls}) == TOTAL
    assert {(rank, size) for _, rank, size in calls} == {(0, 1)}
    torch.rand(17)
    assert noise_and_views(tmp_path, 5, epochs=2) == (noise[: 2 * STEPS], calls[: 2 * STEPS])
    other_noise, other_calls = noise_and_views(tmp_path, 5 + 2**32)
    assert not set(noise) & set(other_noise)
    assert not {seed for seed, *_ in calls} & {seed for seed, *_ in other_calls}


def test_ranks_draw_other_noise():
    drawn = {stepped._number("noise", 5, 7, rank) for rank in range(100)}
    assert len(drawn) == 100


# ---- divergence -----------------------------------------------------------------------------------------------


def spoil(at, value, what):
    """Before a step, makes its loss, its gradient, or a buffer or the optimizer's memory after it, not finite."""

    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step + 1 == at and what == "loss":
                module.model.register_forward_hook(
                    lambda m, views, output: output._replace(v=output.v * value)
                )

        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step + 1 == at and what == "gradient":
                module.model.head[0].weight.grad[0, 0] = value

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == at and what == "buffer":
                module.model.encoder[1].running_var[0] = value
            if trainer.global_step == at and what == "optimizer":
                state = trainer.optimizers[0].state
                memory = next(iter(state.values()))["momentum_buffer"]
                memory[(0,) * memory.ndim] = value

    return Spoil()


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("loss", r"the loss became nan at step 7"),
        ("gradient", r"model\.head\.0\.weight .*became inf or nan by step 7"),
        ("buffer", r"model\.encoder\.1\.running_var became inf or nan by step 7"),
        ("optimizer", r"optimizer\.0\.state\.0\.momentum_buffer became inf or nan by step 7"),
    ],
)
def test_a_diverged_state_is_never_written(tmp_path, what, told, value, micro_batch):
    with pytest.raises(TrainingError, match=told) as caught:
        train(tmp_path, "simclr", every_steps=1, callbacks=[spoil(7, value, what)], micro_batch=micro_batch)
    kept = tmp_path / "step=0000006.ckpt"
    assert (
        f"; {kept} is kept; start anew with a lower learning rate than 0.1, a longer warm-up than 1 epochs"
        in str(caught.value)
    )
    assert str(caught.value).endswith("epochs")  # in float32 there is no wider precision to advise
    assert newest_whole(tmp_path) == kept
    content = torch.load(kept, weights_only=True)
    assert all(v.isfinite().all() for v in content["state_dict"].values())
    assert content["run"]["losses"].isfinite().all()
    assert len(content["run"]["losses"]) == 6
    assert not (tmp_path / "weights.safetensors").exists()
    ended = train(tmp_path, "simclr", micro_batch=micro_batch)  # the same, now without the spoiling
    assert len(ended.losses) == TOTAL


def test_a_run_that_diverges_before_its_first_checkpoint_promises_none(tmp_path):
    with pytest.raises(
        TrainingError, match=r"nan at step 1; there is no checkpoint yet; .*, or --precision 32$"
    ):
        train(tmp_path, "simclr", callbacks=[spoil(1, float("nan"), "loss")], precision="bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_divergence_between_checkpoints_costs_a_few_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(stepped, "CHECK_EVERY", 3)
    watch = Before()
    with pytest.raises(TrainingError, match="nan at step 5; there is no checkpoint yet"):
        train(tmp_path, "simclr", epoch_ends=False, callbacks=[watch, spoil(5, float("nan"), "loss")])
    assert watch.taken == [1, 2, 3, 4, 5, 6]


def test_losses_are_waited_for_at_checkpoints_and_every_so_often_alone(tmp_path, monkeypatch):
    waits = []

    class Counted(Pretraining):
        def collect(self):
            if self._recent:
                waits.append(self.global_step)
            super().collect()

    monkeypatch.setattr(stepped, "CHECK_EVERY", 6)
    module = Counted(make(), SCHEDULE, OPTIONS)
    data = TrainingData(images().pretraining(0.5, 0.5), BATCH, 5)
    fit(module, data, tmp_path, CPU, [Checkpoints(tmp_path, 5, None, epoch_ends=False)])
    assert waits == [5, 6, 10, 12]
    assert len(module.losses) == TOTAL


# ---- going on -------------------------------------------------------------------------------------------------


def test_another_schedule_is_refused(tmp_path):
    train(tmp_path, "simclr", every_steps=1)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(
        TrainingError, match=r"epochs: 3 then, 5 now; ema: None then, 0\.5 now.*; give the same"
    ):
        train(tmp_path, "simclr", epochs=5, ema=0.5)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    train(tmp_path, "bern")
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(
        TrainingError, match=rf"(?s)step=0000012\.ckpt is of another model .*; delete {tmp_path}"
    ):
        train(tmp_path, "gauss")


def test_processes_that_do_not_share_a_folder_are_told(tmp_path, monkeypatch):
    module = Pretraining(make("simclr"), SCHEDULE, OPTIONS)
    monkeypatch.setattr(
        L.pytorch.strategies.SingleDeviceStrategy, "broadcast", lambda self, value, src=0: value + 8
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(
        TrainingError, match=r"goes on from step 8, this one of rank 0 from step 0; keep the run's folder"
    ):
        module.on_train_start()


# ---- processes ------------------------------------------------------------------------------------------------


def started(monkeypatch, **variables):
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}


def test_the_world_is_what_torchrun_tells(monkeypatch):
    started(monkeypatch)
    assert world() == (0, 1, 1)
    started(monkeypatch, **TORCHRUN)
    assert world() == (9, 16, 8)
    started(
        monkeypatch, RANK="1", WORLD_SIZE="2", SLURM_STEP_NUM_TASKS="1"
    )  # left over, or of something else
    assert world() == (0, 1, 1)


def test_processes_of_srun_alone_are_refused(monkeypatch):
    started(monkeypatch, SLURM_STEP_NUM_TASKS="4")
    with pytest.raises(TrainingError, match=r"srun has started 4 processes .* by torchrun"):
        world()
    started(monkeypatch, SLURM_STEP_NUM_TASKS="2", **TORCHRUN)  # one task a machine, and torchrun in each
    assert world() == (9, 16, 8)


def test_every_process_needs_a_gpu_of_its_own(monkeypatch):
    started(monkeypatch, **TORCHRUN)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    module = Pretraining(make("simclr"), SCHEDULE, OPTIONS)
    with pytest.raises(
        TrainingError, match=r"8 processes on this machine need a GPU each, found 3; give torchrun"
    ):
        training.make_trainer(module, Hardware("cuda", "bf16", compile=True, workers=2), [])


def test_the_trainer_is_asked_for_what_processes_on_gpus_need(monkeypatch):
    """Not built, as there is no GPU: only what it is asked for."""
    started(monkeypatch, **TORCHRUN)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    asked = {}
    monkeypatch.setattr(training.L, "Trainer", lambda **options: asked.update(options))
    module = Pretraining(make("simclr"), SCHEDULE, OPTIONS)
    training.make_trainer(module, Hardware("cuda", "16", compile=True, workers=2), [])
    assert (asked["accelerator"], asked["devices"], asked["num_nodes"]) == ("gpu", 8, 2)
    assert (asked["strategy"], asked["sync_batchnorm"], asked["precision"]) == ("ddp", True, "16-mixed")
    assert not asked.keys() & {"accumulate_grad_batches", "gradient_clip_val"}


def test_the_images_an_epoch_does_not_use_are_those_that_fill_no_batch():
    assert IMAGES // BATCH == STEPS
    assert IMAGES % BATCH
