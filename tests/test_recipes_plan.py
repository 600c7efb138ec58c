"""A plan against arithmetic by hand, and what it says of itself."""

import copy
import io
import json
import math
from collections import OrderedDict
from pathlib import Path

import cifar10_full
import imagenet_full
import pytest
import torch
from recipes import plan, plan_table
from recipes.feeds import Feed
from recipes.models import SimCLR, make_encoder, make_model
from recipes.training import Hardware, Schedule, TrainingError
from recipes.trial import STEPS, Trial, _largest_that_fits
from rich.console import Console
from torch import nn

from stochastic_bottleneck import InfoNCELoss

PLANS = Path(__file__).parents[1] / "examples" / "results" / "plans"
CPU = Hardware("cpu", "32", False, 0)
SIDE, CLASSES, IMAGES = 8, 3, 40
SCHEDULE = Schedule(
    epochs=3, batch_size=16, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4, warmup_epochs=1
)


def stage_of(parameters, images=40, batch=4, peak=None):
    """A stage of a plan, made by hand."""
    memory = {"weights": 4000, "gradients": 4000, "optimizer": 4000, "average": 0, "activations": 3 * 2**20}
    return {
        "parameters": parameters,
        "trained": True,
        "images": images,
        "image_shape": [3, 8, 8],
        "views": 2,
        "epochs": 3,
        "batch_size": 16,
        "steps": 6,
        "flops_a_step": 32e9,
        "flops_an_image": 2e9,
        "memory": {**memory, "total": sum(memory.values())},
        "measured": {
            "batch_size": batch,
            "steps": 5,
            "seconds_a_step": 0.5,
            "seconds_an_image": 0.125,
            "seconds_to_read_an_image": 0.0,
            "peak_bytes": peak,
        },
        "images_a_second": 8.0,
        "hours": 12 / 3600,
    }


PLAN = {
    "hardware": {"device": "cpu", "precision": "bf16", "compile": False, "workers": 0, "processes": 1},
    "models": {
        "bern": {
            "pretrain": stage_of(
                {"encoder": 1_200_000, "bottleneck": 66_000, "head": 34_000, "total": 1_300_000}
            ),
            "finetune": stage_of({"total": 1_210_000}, batch=16),
        },
        "supervised": {
            "train": stage_of({"encoder": 1_200_000, "classifier": 10_000, "total": 1_210_000}, batch=16)
        },
    },
    "hours": 36 / 3600,
}


class Bytes(torch.utils.data.Dataset):
    """Images of uint8; counts what is read."""

    def __init__(self, number=IMAGES, side=SIDE):
        self.images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8)
        self.labels = torch.arange(number) % CLASSES
        self.read = []

    def __len__(self):
        return len(self.images)

    def __getitems__(self, places):
        self.read.append(len(places))
        index = [i for i, _ in places]
        return self.images[index], self.labels[index]


class Floats(nn.Module):
    """As many views of the images as asked for."""

    def __init__(self, views):
        super().__init__()
        self.views = views

    def forward(self, images, seed=None, rank=0, world=1):
        x = images.float() / 255
        return x if self.views == 1 else (x, x.flip(-1))


def feed(views, number=IMAGES, side=SIDE, in_memory=True):
    return Feed(Bytes(number, side), Floats(views), in_memory)


def convolution():
    """One convolution of 3x3 onto five channels, a mean, and a linear map to the classes."""
    return nn.Sequential(
        OrderedDict(
            encoder=nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            classifier=nn.Linear(5, CLASSES),
        )
    )


def cross_entropy(output, labels):
    return nn.functional.cross_entropy(output, labels)


def contrastive(output, labels):
    return InfoNCELoss()(output.v, output.v_prime)


def planned(stage, hardware=CPU, world=1, seconds=0.2):
    return plan.make({"supervised": {"train": stage}}, hardware, world, seconds)["models"]["supervised"][
        "train"
    ]


def slow_step(seconds):
    """Steps that say they took so long; `sizes` holds their batches."""
    step = Trial.step

    def told(self):
        step(self)
        told.sizes.append(len(self.images))
        return seconds

    told.sizes = []
    return told


@pytest.fixture
def stage():
    return plan.Stage(convolution(), feed(1), SCHEDULE, cross_entropy)


# ---- counted --------------------------------------------------------------------------------------------------


def test_parameters_by_part(stage):
    found = planned(stage)["parameters"]
    assert found == {"encoder": 3 * 5 * 9 + 5, "classifier": 5 * 3 + 3, "total": 140 + 18}


def test_parts_without_a_name_are_counted_together():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert plan.parameters(model) == {"total": 9 + 4}


def test_flops_of_a_step_are_those_of_its_products(stage):
    convolved, mapped = 2 * 3 * 5 * 9 * SIDE * SIDE, 2 * 5 * CLASSES
    # Backward: the convolution's weights alone, as images want no gradient; the linear map's weights and input.
    an_image = 2 * convolved + 3 * mapped
    found = planned(stage)
    assert found["flops_an_image"] == an_image
    assert found["flops_a_step"] == 16 * an_image


def test_a_frozen_model_only_runs_forward(stage):
    found = planned(stage._replace(objective=None))
    assert found["flops_an_image"] == 2 * 3 * 5 * 9 * SIDE * SIDE + 2 * 5 * CLASSES
    assert found["memory"]["gradients"] == found["memory"]["optimizer"] == 0
    assert found["memory"]["activations"] == 16 * 3 * SIDE * SIDE * 4  # the images alone
    assert found["steps"] == 3 * math.ceil(IMAGES / 16)  # the last, short batch too
    assert found["trained"] is False


def test_memory_by_its_parts(stage):
    memory = planned(stage)["memory"]
    parameters = 158 * 4
    assert (
        memory["weights"] == memory["gradients"] == memory["optimizer"] == parameters
    )  # SGD keeps one momentum
    image, mean, scores, label = 3 * SIDE * SIDE * 4, 5 * 4, CLASSES * 4, 8
    # Kept: the images for the convolution, means for the linear map, log-probabilities, labels, the loss's divisor.
    # A mean's backward pass needs no values.
    assert memory["activations"] == 16 * (image + mean + scores + label) + 4
    assert memory["average"] == 0
    assert memory["total"] == sum(value for key, value in memory.items() if key != "total")


def test_adam_keeps_two_numbers_a_weight_and_an_average_another(stage):
    schedule = SCHEDULE._replace(optimizer="adamw", ema=0.99)
    memory = planned(stage._replace(schedule=schedule))["memory"]
    assert 2 * 158 * 4 <= memory["optimizer"] <= 2 * 158 * 4 + 4 * 8  # and the steps' counts
    assert memory["average"] == memory["weights"]


def test_bfloat16_halves_what_is_kept():
    model = SimCLR(make_encoder("small", 32), 16)
    stage = plan.Stage(model, feed(2, side=32), SCHEDULE, contrastive)
    trials = [Trial(stage, CPU._replace(precision=precision)) for precision in ("32", "bf16")]
    for trial in trials:
        trial.read(2)
        trial.step()
    full, half = (plan.count(trial, 512) for trial in trials)
    assert full.flops == half.flops
    assert half.activations / full.activations == pytest.approx(0.5, abs=0.1)  # some stays in float32


@pytest.mark.parametrize("name", ["simclr", "bern", "gauss"])
def test_what_is_counted_is_what_a_real_step_does(name):
    """Against the same counter and hooks on real tensors."""
    model = make_model(name, "small", 32, 16)
    stage = plan.Stage(model, feed(2, side=32), SCHEDULE, contrastive)
    trial = Trial(stage, CPU)
    trial.read(16)
    trial.step()
    counted = plan.count(trial, 16)
    weights = {p.data_ptr() for p in (*trial.model.parameters(), *trial.model.buffers())}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = contrastive(trial.model(*trial.views), None)
        loss.backward()
    assert counted.flops == counter.get_total_flops()
    kept |= {view.untyped_storage().data_ptr(): view.untyped_storage().nbytes() for view in trial.views}
    assert counted.activations == pytest.approx(sum(kept.values()), rel=0.01)


def test_a_step_of_several_devices(stage):
    whole, shared = planned(stage), planned(stage, world=4)
    assert shared["flops_a_step"] == whole["flops_a_step"]
    assert shared["flops_an_image"] == whole["flops_an_image"]
    assert shared["memory"]["activations"] == pytest.approx(whole["memory"]["activations"] / 4, rel=0.01)
    assert shared["memory"]["weights"] == whole["memory"]["weights"]
    assert shared["steps"] == whole["steps"] == 3 * (IMAGES // 16)


# ---- measured -------------------------------------------------------------------------------------------------


def test_hours_follow_from_the_speed(stage):
    found = planned(stage)
    measured = found["measured"]
    assert measured["seconds_an_image"] == measured["seconds_a_step"] / measured["batch_size"]
    assert 1 <= measured["steps"] <= STEPS
    taken = measured["seconds_an_image"] + measured["seconds_to_read_an_image"]
    assert found["images_a_second"] == pytest.approx(1 / taken)
    assert found["hours"] == pytest.approx(found["steps"] * 16 * taken / 3600)


@pytest.mark.parametrize(
    ("workers", "in_memory", "rate"),
    [
        (0, True, 1 / 0.05),
        (0, False, 1 / 0.05),
        (8, True, 1 / 0.05),
        (1, False, 1 / 0.04),
        (8, False, 1 / 0.01),
    ],
)
def test_workers_read_while_the_model_computes(workers, in_memory, rate):
    measured = {"seconds_an_image": 0.01, "seconds_to_read_an_image": 0.04}
    assert plan.together(measured, workers, in_memory) == pytest.approx(rate)


def test_the_model_stays_as_it_is_and_so_do_random_numbers(stage):
    before, state = copy.deepcopy(stage.model.state_dict()), torch.get_rng_state()
    planned(stage)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), stage.model.state_dict().values(), strict=True)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in stage.model.parameters())


def test_a_slow_model_is_measured_on_two_images_and_few_steps(stage, monkeypatch):
    monkeypatch.setattr(Trial, "step", slow := slow_step(10.0))
    measured = planned(stage, seconds=4.0)["measured"]
    assert slow.sizes == [2, 2]  # the warm-up, and one to go by
    assert (measured["batch_size"], measured["steps"], measured["seconds_a_step"]) == (2, 1, 10.0)


def test_a_fast_model_is_measured_on_a_whole_batch(stage, monkeypatch):
    monkeypatch.setattr(Trial, "step", slow_step(1e-4))
    measured = planned(stage, seconds=4.0)["measured"]
    assert (measured["batch_size"], measured["steps"]) == (16, STEPS)


def test_a_first_step_that_is_slow_does_not_decide(stage, monkeypatch):
    """Kernels are chosen in it."""
    first = [1.0]
    quick = slow_step(1e-4)
    monkeypatch.setattr(Trial, "step", lambda self: max(quick(self), first.pop() if first else 0))
    assert planned(stage, seconds=4.0)["measured"]["batch_size"] == 16


def test_a_large_batch_repeats_a_few_images(monkeypatch):
    monkeypatch.setattr("recipes.trial.READ", 3)
    images = feed(1)
    trial = Trial(plan.Stage(convolution(), images, SCHEDULE, cross_entropy), CPU)
    trial.read(8)
    assert images.dataset.read == [3]
    assert trial.images.shape == (8, 3, SIDE, SIDE)
    assert torch.equal(trial.images[:3], trial.images[3:6])
    assert trial.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_device_that_is_full_gets_half_the_batch(stage, monkeypatch):
    """As on CUDA, whose allocator is stood in for."""
    tried = []

    def step(self):
        tried.append(len(self.images))
        if len(self.images) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 0.25

    monkeypatch.setattr(Trial, "step", step)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    trial = Trial(stage, CPU)
    assert _largest_that_fits(trial, 16, 1.0)[::2] == (4, 0.25)
    assert tried == [16, 8, 4, 4]


def test_a_device_that_holds_nothing_is_an_error(stage, monkeypatch):
    def step(self):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trial, "step", step)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(TrainingError, match=r"a step of 2 images does not fit on the device.*--encoder"):
        _largest_that_fits(Trial(stage, CPU), 16, 1.0)


@pytest.mark.parametrize(("size", "world"), [(41, 1), (1, 1), (6, 4)])
def test_batches_that_cannot_be(stage, size, world):
    stage = stage._replace(schedule=SCHEDULE._replace(batch_size=size))
    with pytest.raises(TrainingError, match=rf"between {2 * world} and the 40 training images, got {size}"):
        planned(stage, world=world)


def test_a_stage_in_several_chains_is_measured_once(stage, monkeypatch):
    monkeypatch.setattr(Trial, "step", slow := slow_step(1.0))
    chains = {"simclr": {"finetune": stage}, "bern": {"finetune": stage}}
    found = plan.make(chains, CPU, seconds=0.1)
    assert found["models"]["simclr"]["finetune"] == found["models"]["bern"]["finetune"]
    assert slow.sizes == [2, 2]  # for both chains together
    assert found["hours"] == pytest.approx(2 * found["models"]["bern"]["finetune"]["hours"])
    assert found["hardware"] == {**CPU._asdict(), "processes": 1}
    assert json.loads(json.dumps(found)) == found


# ---- committed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["resnet50", "resnet200"])
@pytest.mark.parametrize(
    ("data", "script", "side"), [("cifar10", cifar10_full, 32), ("imagenet", imagenet_full, 224)]
)
def test_the_committed_plans_are_of_the_paper_preset(data, script, side, encoder):
    """What the documentation's hours follow from."""
    content = json.loads((PLANS / f"{data}_{encoder}.json").read_text())
    preset = {**script.PRESETS["paper"], "encoder": encoder}
    decisive = (
        "epochs",
        "batch_size",
        "encoder",
        "dim",
        "norm",
        "symmetric",
        "ema",
    )  # for the work and the memory
    keys = {key for key in preset if key.endswith(decisive) and "warmup" not in key}
    assert {"epochs", "finetune_epochs", "supervised_batch_size", "projection_dim"} <= keys
    assert {key: content["config"][key] for key in keys} == {key: preset[key] for key in keys}
    models = content["plan"]["models"]
    assert list(models) == ["simclr", "bern", "gauss", "supervised"]
    for chain in models.values():
        for stage in chain.values():
            assert stage["image_shape"] == [3, side, side]
            assert stage["memory"]["activations"] > 0


# ---- in words -------------------------------------------------------------------------------------------------


def test_the_rows():
    assert dict(zip(plan_table.COLUMNS, plan_table.rows(PLAN)[0], strict=True)) == {
        "model": "StochCon Bern",
        "part": "pretraining",
        "parameters": "1.3 M",
        "FLOP an image": "2 G",
        "FLOP a step": "32 G",
        "steps": "6",
        "images/s": "8",
        "time": "12 s",
    }
    assert dict(zip(plan_table.MEMORY_COLUMNS, plan_table.memory_rows(PLAN)[2], strict=True)) == {
        "model": "Supervised",
        "part": "training",
        "batch a device": "16",
        "weights": "3.91 KiB",
        "gradients": "3.91 KiB",
        "optimizer": "3.91 KiB",
        "average": "0 B",
        "activations": "3 MiB",
        "sum": "3.01 MiB",
    }


def test_it_says_what_was_counted_estimated_and_measured():
    said = plan_table.sentences(PLAN)
    assert said[0].startswith("In all 36 s on 1 x cpu in bfloat16.")
    assert [sentence.split()[0] for sentence in said] == [
        "In",
        "Counted:",
        "Estimated:",
        "Measured",
        "Parameters",
        "Parameters",
    ]
    assert "Batches of 4 images were measured instead of 16" in said[3]
    assert said[4] == "Parameters of StochCon Bern: encoder 1.2 M, bottleneck 66 k, head 34 k."
    assert "waited" not in said[3]
    assert "compiled" not in said[3]


def test_it_says_what_the_machine_adds():
    told = copy.deepcopy(PLAN)
    told["hardware"] |= {"processes": 8, "compile": True, "device": "cuda"}
    told["models"]["bern"]["pretrain"]["measured"]["peak_bytes"] = 5 * 2**30
    said = plan_table.sentences(told)
    assert "on 8 x cuda in bfloat16" in said[0]
    assert "waited for another" in said[3]
    assert "compiled" in said[3]
    assert said[4].endswith("a step of 4 images reached 5 GiB on the device (measured).")


def test_it_is_shown_on_80_columns(monkeypatch):
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(plan, "console", console)
    plan.show(PLAN)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    for row in (*plan_table.rows(PLAN), *plan_table.memory_rows(PLAN)):
        assert row[0] in shown
        (line,) = {line for line in shown.splitlines() if line.split() == " ".join(row[1:]).split()}
        assert line.startswith("   ")
    words = " ".join(shown.split())
    assert all(sentence in words for sentence in plan_table.sentences(PLAN))


AMOUNTS = {
    0: "0",
    999: "999",
    1000: "1 k",
    999_600: "1 M",
    23_500_000: "23.5 M",
    4.86e10: "48.6 G",
    2e14: "200 T",
    3e15: "3 P",
    1.26e19: "12.6 E",
}
SIZES = {
    12: "12 B",
    2048: "2 KiB",
    88_432_462: "84.3 MiB",
    45 * 2**30: "45 GiB",
    1_500 * 2**30: "1,500 GiB",
}
DURATIONS = {
    10 / 3600: "10 s",
    0.5: "30 min",
    1.25: "1.2 h",
    47: "47.0 h",
    50: "2.1 days",
    240_000: "10,000 days",
}


@pytest.mark.parametrize(("number", "said"), AMOUNTS.items())
def test_amounts(number, said):
    assert plan_table.amount(number) == said


@pytest.mark.parametrize(("number", "said"), SIZES.items())
def test_sizes(number, said):
    assert plan_table.size(number) == said


@pytest.mark.parametrize(("hours", "said"), DURATIONS.items())
def test_durations(hours, said):
    assert plan_table.duration(hours) == said
