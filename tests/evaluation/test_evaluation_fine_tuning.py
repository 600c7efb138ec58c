"""Fine-tuning, against a slow training loop."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from test_evaluation import without_scikit_learn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stochastic_bottleneck import StochConWrapper
from stochastic_bottleneck.evaluation import FineTuned, fine_tune

CLASSES = 3
LABELS = torch.arange(48) % CLASSES
IMAGES = torch.randn(48, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1, 1, 1)
BATCHES = list(zip(IMAGES.split(20), LABELS.split(20), strict=True))


def small_encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())


def recorded(made):
    return lambda parameters, lr: made.append(torch.optim.AdamW(parameters, lr)) or made[-1]


def slow_fine_tune(seed, epochs, lr, weight_decay, warmup):
    """SGD with momentum for softmax regression from torch's initial weights, gradient and rate as formulas."""
    steps = epochs * len(BATCHES)
    torch.manual_seed(seed)
    head = nn.Linear(18, CLASSES).double()
    w = torch.cat([head.weight.detach(), head.bias.detach()[:, None]], dim=1)
    velocity, step, losses = torch.zeros_like(w), 0, []
    for _ in range(epochs):
        epoch = []
        for x, y in BATCHES:
            rows = torch.cat([x.flatten(1).double(), torch.ones(len(x), 1)], dim=1)
            p = (rows @ w.T).softmax(dim=1)
            epoch.append(-p[torch.arange(len(y)), y].log().mean().item())
            gradient = (p - torch.eye(CLASSES)[y]).T @ rows / len(y)
            gradient[:, :-1] += weight_decay * w[:, :-1]  # not on the bias
            velocity = 0.9 * velocity + gradient
            rate = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
            w = w - lr * ((step + 1) / (warmup + 1) if step < warmup else rate) * velocity
            step += 1
        losses.append(np.mean(epoch))
    return w, losses


@pytest.mark.parametrize(("weight_decay", "warmup_epochs"), [(0, 0), (0.3, 1.5)])
def test_it_is_sgd_with_warm_up_and_cosine(weight_decay, warmup_epochs):
    options = {"weight_decay": weight_decay, "warmup_epochs": warmup_epochs}
    result = fine_tune(nn.Flatten(), BATCHES, BATCHES, CLASSES, epochs=4, lr=0.02, seed=5, **options)
    assert isinstance(result, FineTuned)
    w, losses = slow_fine_tune(5, 4, 0.02, weight_decay, round(warmup_epochs * len(BATCHES)))
    head = result.classifier[1]
    found = torch.cat([head.weight, head.bias[:, None]], dim=1).detach()
    assert found.numpy() == pytest.approx(w.numpy(), abs=1e-5)
    assert result.losses == pytest.approx(losses, rel=1e-5)


def test_scores_are_those_of_the_classifier_on_the_test_set():
    test = [(IMAGES[:7] - 0.5, LABELS[:7]), (IMAGES[7:30] - 0.5, LABELS[7:30])]
    result = fine_tune(small_encoder(), BATCHES, test, CLASSES, epochs=10)
    assert not any(module.training for module in result.classifier.modules())
    with torch.no_grad():
        predicted = result.classifier(IMAGES[:30] - 0.5).argmax(dim=1)
    assert result.accuracy == pytest.approx((predicted == LABELS[:30]).float().mean().item())
    assert result.f1 == pytest.approx(f1_score(LABELS[:30], predicted, average="macro"))
    assert 1 / CLASSES < result.accuracy < 1
    assert result.top5 == 1.0


def test_top_5_are_the_five_largest_logits():
    labels = torch.arange(48) % 8
    result = fine_tune(nn.Flatten(), [(IMAGES, labels)], [(IMAGES, labels)], 8, epochs=3)
    with torch.no_grad():
        ranks = (result.classifier(IMAGES).argsort(dim=1, descending=True) == labels[:, None]).int().argmax(dim=1)
    assert result.top5 == pytest.approx((ranks < 5).float().mean().item())
    assert result.accuracy < result.top5 < 1


def test_bfloat16_runs_under_autocast():
    dtypes = []
    encoder, copied = small_encoder(), small_encoder()
    encoder.register_forward_hook(lambda module, _, h: dtypes.append((module.training, h.dtype)))
    result = fine_tune(encoder, BATCHES, BATCHES, CLASSES, epochs=3, precision="bf16-mixed")
    assert (True, torch.bfloat16) in dtypes
    assert dtypes[-1] == (False, torch.bfloat16)
    assert {weight.dtype for weight in result.classifier.parameters()} == {torch.float32}
    full = fine_tune(small_encoder(), BATCHES, BATCHES, CLASSES, epochs=3)
    assert result.losses == pytest.approx(full.losses, rel=0.05)
    assert result.losses != full.losses
    for mode in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):  # the caller's
        with mode:
            batches = [(images.clone(), labels) for images, labels in BATCHES]
            for expected, precision in ((result, "bf16-mixed"), (full, "32-true")):
                again = fine_tune(copied, batches, batches, CLASSES, epochs=3, precision=precision)
                assert again.losses == expected.losses


def test_all_weights_of_a_copy_are_trained_and_the_model_is_not_changed():
    model = StochConWrapper(small_encoder(), dim=4, feature_dim=8).eval()
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    result = fine_tune(model, BATCHES, BATCHES, CLASSES, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.encoder.parameters())
    trained = result.classifier[0].state_dict()
    assert trained.keys() == model.encoder.state_dict().keys()
    for name, value in model.encoder.state_dict().items():
        assert not torch.equal(trained[name], value), name


@pytest.mark.parametrize(
    "around", [lambda m: m, lambda m: torch.compile(m, backend="eager"), lambda m: nn.DataParallel(m)]
)
def test_the_encoder_of_a_wrapper_is_taken_also_if_compiled_or_parallel(around):
    plain, model = small_encoder(), around(StochConWrapper(small_encoder(), dim=4, feature_dim=8))
    results = [fine_tune(m, BATCHES, BATCHES, CLASSES, epochs=2) for m in (plain, model, around(plain))]
    assert results[0][:3] == results[1][:3] == results[2][:3]


def test_a_single_last_image_is_joined_to_the_batch_before():
    nine = list(zip(IMAGES[:9].split(4), LABELS[:9].split(4), strict=True))
    joined = list(zip(IMAGES[:9].split((4, 5)), LABELS[:9].split((4, 5)), strict=True))
    alone, expected = (
        fine_tune(small_encoder(), batches, BATCHES, CLASSES, epochs=1, optimizer=torch.optim.SGD)
        for batches in (nine, [*joined, (IMAGES[:0], LABELS[:0])])  # as many batches, for the schedule
    )
    assert alone[:3] == expected[:3]
    assert np.isfinite(alone.losses).all()
    made = []
    fine_tune(small_encoder(), nine, BATCHES, CLASSES, epochs=3, optimizer=recorded(made))
    assert made[0].param_groups[0]["lr"] < 1e-12  # the end of the cosine


def test_a_frozen_encoder_inside_another_module_is_trained():
    model = StochConWrapper(small_encoder(), dim=4, feature_dim=8).freeze_encoder()
    inside = nn.Sequential(model.encoder, nn.Identity())
    trained = fine_tune(inside, BATCHES, BATCHES, CLASSES, epochs=1).classifier[0]
    before = inside.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert model.encoder.frozen


def test_batches_of_one_image_train_a_model_without_batch_norm():
    ones = list(zip(IMAGES[:5].split(1), LABELS[:5].split(1), strict=True))
    seen = []
    encoder = nn.Flatten()
    encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    fine_tune(encoder, ones, BATCHES[:1], CLASSES, epochs=1)
    assert seen == [1, 20, *[1] * 5, 20]  # checked first, trained, tested
    with pytest.raises(ValueError, match="more than one image for a model with batch normalization, got one"):
        fine_tune(small_encoder(), ones, BATCHES, CLASSES)


def test_double_precision():
    doubles = [(x.double(), y) for x, y in BATCHES]
    result = fine_tune(small_encoder().double(), doubles, doubles, CLASSES, epochs=2)
    single = fine_tune(small_encoder(), BATCHES, BATCHES, CLASSES, epochs=2)
    assert result.losses[0] == pytest.approx(single.losses[0], rel=0.2)
    assert {weight.dtype for weight in result.classifier.parameters()} == {torch.float64}


def test_a_seed_repeats_a_shuffling_loader_and_the_global_generator_is_restored():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=20, shuffle=True)
    state = torch.get_rng_state()
    first, again, other = (
        fine_tune(small, loader, loader, CLASSES, epochs=2, seed=seed)
        for small, seed in ((nn.Flatten(), 0), (nn.Flatten(), 0), (nn.Flatten(), 1))
    )
    assert first[:3] == again[:3]
    assert first.losses != other.losses
    assert torch.equal(torch.get_rng_state(), state)


def test_a_custom_optimizer_is_used():
    made = []
    found = fine_tune(nn.Flatten(), BATCHES, BATCHES, CLASSES, epochs=2, lr=0.01, optimizer=recorded(made))
    assert len(made) == 1
    assert made[0].param_groups[0]["initial_lr"] == 0.01
    assert made[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)  # the end of the cosine
    assert found.losses != fine_tune(nn.Flatten(), BATCHES, BATCHES, CLASSES, epochs=2, lr=0.01).losses


def test_a_progress_bar_changes_no_number(capsys):
    shown, plain = (
        fine_tune(nn.Flatten(), BATCHES, BATCHES, CLASSES, epochs=2, progress=progress) for progress in (True, False)
    )
    assert shown[:3] == plain[:3]
    assert "fine-tuning" in capsys.readouterr().out


V, T = ValueError, TypeError
REFUSED = [  # more of them: tests/bad_calls.py
    ({"model": nn.Identity()}, V, r"features of shape \(N, F\), got shape \(20, 2, 3, 3\)"),
    ({"train": [(IMAGES, [*LABELS.tolist()[:-1], None])]}, V, "in train must be .* 1 of 48 missing"),
    ({"train": [(IMAGES / 0, LABELS)]}, V, "model must give finite features"),
    ({"test": [(IMAGES, torch.eye(3)[LABELS])]}, V, r"test must give one label .* \(48, 3\)"),
    ({"test": [(IMAGES[:0], LABELS[:0])]}, V, "test is empty"),
    ({"optimizer": lambda p, lr: None}, T, "optimizer must give an optimizer, got NoneType"),
    ({"weight_decay": 0.1, "optimizer": torch.optim.AdamW}, V, "weight_decay must be 0 for .*, got 0.1; set it"),
    ({"warmup_epochs": 2}, V, "warmup_epochs must be .* at least 0 and below 2, got 2"),
    ({"lr": 1e38}, V, r"loss to stay finite, got (nan|inf) in epoch \d with lr=1e\+38; lower it"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(changes, error, message):
    options = {"model": nn.Flatten(), "train": BATCHES, "test": BATCHES, "classes": CLASSES, "epochs": 2}
    with pytest.raises(error, match=message):
        fine_tune(**options | changes)


def test_test_labels_are_checked_before_training():
    trained = []
    encoder = nn.Flatten()
    encoder.register_forward_hook(lambda *_: trained.append(1))
    with pytest.raises(ValueError, match="test must give labels from 0 to 1"):
        fine_tune(encoder, BATCHES, BATCHES, 2)
    assert not trained


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    without_scikit_learn(monkeypatch)
    with pytest.raises(ModuleNotFoundError, match=r'"stochastic-bottleneck\[evaluation\]"'):
        fine_tune(nn.Flatten(), BATCHES, BATCHES, CLASSES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_learns_and_restores_the_generators():
    encoder = small_encoder()
    cpu = fine_tune(encoder, BATCHES, BATCHES, CLASSES, epochs=3, lr=0.01)
    state = torch.cuda.get_rng_state()
    gpu = fine_tune(encoder, BATCHES, BATCHES, CLASSES, epochs=3, lr=0.01, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert {weight.device.type for weight in gpu.classifier.parameters()} == {"cuda"}
    assert {weight.device.type for weight in encoder.parameters()} == {"cpu"}
    assert len(gpu.losses) == len(cpu.losses)
    assert gpu.losses[-1] < gpu.losses[0]
