"""Metrics of a run: right by plain formulas, the same over kills, and read no more often than said."""

import csv
import math
import signal
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from oracles import bernoulli_kl, gaussian_kl
from recipes import readings, track
from recipes.checkpoints import Checkpoints
from recipes.classify import supervise
from recipes.online_knn import OnlineKNN
from recipes.pretrain import TrainingOptions, pretrain
from recipes.screen import RunProgress
from recipes.track import COLUMNS, Track, table
from recipes.training import Hardware, Schedule
from small_run import BATCH, DIM, EPOCHS, STEPS, TOTAL, Small, encoder, fit, images, make_model, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

ROWS = [2, 4, 5, 6, 8, 10, 12, 14, 15]  # every second step, and the last one of every epoch
NO_TIMES = ("images_per_second",)


def metrics(folder):
    """Rows of metrics.csv as numbers, without empty cells."""
    with (folder / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def events(folder):
    """What TensorBoard shows of a run: steps and values by name."""
    shown = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in NO_TIMES} for row in rows]


def assert_shown(folder, rows):
    """Both files show these rows, each step once."""
    assert metrics(folder) == rows
    expected = {}
    for row in rows:
        for name in row.keys() - {"step", "epoch"}:
            expected.setdefault(name, []).append((row["step"], pytest.approx(row[name], rel=1e-6)))
    assert events(folder) == expected


def stop_before(step):
    def before_step(n):
        if n == step:
            raise KeyboardInterrupt

    return before_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and rows of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    tracked = Track(folder, every=2)
    fit(Small(), folder, [tracked])
    return folder, tracked.rows


# ---- values -------------------------------------------------------------------------------------------------


class Recorder(L.Callback):
    """Learning rate and gradients as the optimizer finds them."""

    def __init__(self):
        self.rates, self.norms = {}, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        squares = [p.grad.double().square().sum().item() for p in module.parameters()]
        self.norms[trainer.global_step + 1] = math.sqrt(sum(squares))
        self.rates[trainer.global_step + 1] = optimizer.param_groups[0]["lr"]


def expected_row(kind, seen):
    """The latent's columns from one step's outputs, a bit at a time."""
    z = seen["z"].double().reshape(-1, DIM)
    row = {"latent_variance": sum(column.var(unbiased=False).item() for column in z.T) / DIM}
    first, second = (x.double() for x in seen["posterior"])
    if kind == "gauss":
        mean, log_std = first.reshape(-1, DIM), second.reshape(-1, DIM)
        row["posterior_variance"] = (2 * log_std).exp().mean().item()
        row["kl"] = gaussian_kl(mean, log_std).sum(dim=-1).mean().item()
        return row
    bits = (first.reshape(-1, DIM) > 0).tolist()
    shares = [sum(bit) / len(bits) for bit in zip(*bits, strict=True)]
    entropies = [-sum(p * math.log2(p) for p in (share, 1 - share) if p > 0) for share in shares]
    row |= {"share_of_ones": sum(shares) / DIM, "bit_entropy": sum(entropies) / DIM}
    row |= {
        "temperature": second.mean().item(),
        "kl": bernoulli_kl(first.reshape(-1, DIM)).sum(dim=-1).mean().item(),
    }
    return row


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bern", {}),
        ("gauss", {}),
        ("bern", {"symmetric": True}),
        ("gauss", {"symmetric": True}),
        ("simclr", {}),
    ],
)
def test_rows_hold_what_plain_formulas_give(tmp_path, kind, options):
    module, tracked, recorder = Small(kind, **options), Track(tmp_path, every=2), Recorder()
    fit(module, tmp_path, [tracked, recorder], epochs=2)
    assert [row["step"] for row in tracked.rows] == [2, 4, 5, 6, 8, 10]
    for row in tracked.rows:
        step, seen = row["step"], module.seen[row["step"]]
        expected = {
            "step": step,
            "epoch": 1 if step <= STEPS else 2,
            "loss": seen["loss"].item(),
            "learning_rate": recorder.rates[step],
            "gradient_norm": recorder.norms[step],
            **(expected_row(kind, seen) if kind != "simclr" else {}),
        }
        assert untimed([row]) == [pytest.approx(expected, rel=1e-5, abs=1e-7)]
        assert row["images_per_second"] > 0
    assert_shown(tmp_path, tracked.rows)


def test_the_first_steps_entropy_and_share_are_not_trivial(whole):
    """So that the comparison above could fail."""
    assert any(0 < row["bit_entropy"] < 1 for row in whole[1])
    assert len({row["share_of_ones"] for row in whole[1]}) > 1


def test_classification_has_its_accuracy_and_no_latent(tmp_path):
    tracked, progress = Track(tmp_path, every=2), RunProgress("supervised", BATCH)
    schedule, hardware = Schedule(2, BATCH, "sgd", 0.1, 1e-4, 0.0), Hardware("cpu", "32", False, 0)
    supervise(encoder(), 8, images(), schedule, hardware, tmp_path, callbacks=[tracked, progress])
    assert {row["accuracy"] * BATCH for row in tracked.rows} <= set(range(BATCH + 1))
    assert len({row["accuracy"] for row in tracked.rows}) > 1
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,epoch,loss,learning_rate,gradient_norm,images_per_second,accuracy"
    assert_shown(tmp_path, tracked.rows)


def test_mixed_precision_gradients_are_unscaled(tmp_path):
    norms = []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for folder, plugins in (("32", ()), ("16", [MixedPrecision("16-mixed", "cpu", scaler)])):
        tracked = Track(tmp_path / folder, every=1)
        fit(Small("simclr"), tmp_path / folder, [tracked], epochs=1, plugins=plugins)
        norms.append(tracked.rows[0]["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    assert norms[0] > 0


def test_a_diverged_step_has_a_row(tmp_path):
    tracked = Track(tmp_path, every=1)
    fit(Small(spoil=3), tmp_path, [tracked], epochs=1)
    assert math.isnan(metrics(tmp_path)[2]["loss"])
    assert math.isnan(tracked.rows[2]["gradient_norm"])


@pytest.mark.parametrize("knn_first", [True, False])
def test_speed_counts_all_images_and_no_pauses(tmp_path, monkeypatch, knn_first):
    """A step takes 2 s here, the first one and the measurements between epochs much longer."""
    now = [0.0]
    monkeypatch.setattr(track.time, "perf_counter", lambda: now[0])

    def before_step(step):
        now[0] += 1000 if step == 1 else 2

    def slow(self, trainer, module):
        now[0] += 500
        return 0.5

    monkeypatch.setattr(OnlineKNN, "measure", slow)
    tracked, knn = Track(tmp_path, every=2), OnlineKNN(images(), bank=20, queries=10)
    fit(Small(before_step=before_step), tmp_path, [knn, tracked] if knn_first else [tracked, knn])
    assert now[0] > 1500
    assert [row["images_per_second"] for row in tracked.rows] == [BATCH / 2] * len(ROWS)


def test_speed_is_left_out_where_nothing_was_timed(tmp_path):
    tracked = Track(tmp_path, every=1)
    fit(Small(), tmp_path, [tracked], epochs=1)
    assert ["images_per_second" in row for row in tracked.rows] == [False, True, True, True, True]


def test_tensors_are_read_at_the_rows_alone(tmp_path, monkeypatch):
    read_at, norms_at = [], []

    def read(trainer, *args):
        read_at.append(trainer.global_step)
        return readings.read(trainer, *args)

    def norm(module):
        norms_at.append(module.global_step + 1)
        return readings.gradient_norm(module)

    monkeypatch.setattr(track, "read", read)
    monkeypatch.setattr(track, "gradient_norm", norm)
    fit(Small(), tmp_path, [Track(tmp_path, every=2)])
    assert read_at == norms_at == ROWS


def test_a_row_is_copied_to_the_host_once(monkeypatch):
    """What is read comes through one reduction; on a GPU anything else would be another wait."""
    packed = []

    class Strategy:
        def reduce(self, tensor, reduce_op):
            packed.append((tensor.dtype, reduce_op))
            return tensor

    class Trainer:
        strategy = Strategy()

    outputs = {"loss": torch.tensor(2.0), "output": _Output()}
    row = readings.read(Trainer(), outputs, torch.tensor(3.0))
    assert packed == [(torch.float64, "sum")]
    assert row["loss"] == 2.0
    assert row["gradient_norm"] == 3.0


class _Output:
    from stochastic_bottleneck import BernoulliPosterior

    z = torch.rand(4, DIM)
    posterior = BernoulliPosterior(torch.randn(4, DIM), 0.5)


# ---- the recipes' own training ------------------------------------------------------------------------------


def pretrained(folder, kind="bern", micro_batch=None, precision="32", stop=None):
    """Rows of a run of `recipes.pretrain`."""
    tracked, progress = Track(folder, every=2), RunProgress(kind, BATCH)
    model = make_model(kind, norm=lambda channels: nn.Identity())  # batch norm sees micro batches
    if stop is not None:
        steps = iter(range(1, TOTAL))
        model.register_forward_pre_hook(lambda *_: stop_before(stop)(next(steps)))
    pretrain(
        model,
        images().pretraining(0.5, 0.5),
        Schedule(EPOCHS, BATCH, "sgd", 0.1, 1e-4, 1.0),
        TrainingOptions(temperature_end=0.5),
        Hardware("cpu", precision, False, 0),
        folder,
        [progress, tracked, OnlineKNN(images(), 2, bank=20, queries=10),
         Checkpoints(folder, every_steps=3)],
        micro_batch,
    )  # fmt: skip
    return tracked.rows


@pytest.mark.parametrize("kind", ["simclr", "bern", "gauss"])
def test_micro_batches_have_the_rows_of_whole_ones(tmp_path, kind):
    whole, parts = (pretrained(tmp_path / str(size), kind, size) for size in (None, 3))
    assert [row["step"] for row in parts] == ROWS
    if kind != "gauss":  # whose noise torch draws otherwise for fewer images
        assert untimed(parts[:1]) == [pytest.approx(untimed(whole[:1])[0], rel=1e-4, abs=1e-6)]
    assert [row.keys() for row in parts] == [row.keys() for row in whole]
    assert [row["epoch"] for row in parts if "knn" in row] == [2, 3]
    assert len({row["gradient_norm"] for row in parts}) == len(ROWS)


def test_the_learning_rate_and_temperature_are_those_of_the_step(tmp_path):
    rows = {row["step"]: row for row in pretrained(tmp_path)}
    assert rows[4]["learning_rate"] == pytest.approx(
        0.001 + (0.1 - 0.001) * 3 / STEPS
    )  # warm-up begins at step 1
    assert rows[6]["learning_rate"] == pytest.approx(0.1)
    assert rows[4]["temperature"] == pytest.approx(0.5 ** (3 / TOTAL))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_stopped_pretraining_has_the_rows_of_a_whole_one(tmp_path, precision):
    whole = pretrained(tmp_path / "whole", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        pretrained(tmp_path / "stopped", precision=precision, stop=9)
    resumed = pretrained(tmp_path / "stopped", precision=precision)
    assert untimed(resumed) == untimed(whole)
    assert_shown(tmp_path / "stopped", resumed)


# ---- over stops and kills -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop", [2, 8, 10, 14], ids=["before any checkpoint", "mid-epoch", "last of an epoch", "late"]
)
def test_a_stopped_run_has_the_rows_of_a_whole_one(whole, tmp_path, stop):
    with pytest.raises(SystemExit):  # what Lightning makes of Ctrl-C
        fit(Small(before_step=stop_before(stop)), tmp_path, [Track(tmp_path, every=2)], every_steps=3)
    assert [row["step"] for row in metrics(tmp_path)] == [step for step in ROWS if step < stop]
    tracked = Track(tmp_path, every=2)
    fit(Small(), tmp_path, [tracked], every_steps=3)
    assert untimed(tracked.rows) == untimed(whole[1])
    assert_shown(tmp_path, tracked.rows)


def test_a_run_stopped_twice_has_the_rows_of_a_whole_one(whole, tmp_path):
    for stop in (8, 11):
        with pytest.raises(SystemExit):
            fit(Small(before_step=stop_before(stop)), tmp_path, [Track(tmp_path, every=2)], every_steps=3)
    tracked = Track(tmp_path, every=2)
    fit(Small(), tmp_path, [tracked], every_steps=3)
    assert untimed(tracked.rows) == untimed(whole[1])
    assert_shown(tmp_path, tracked.rows)


def test_a_killed_run_has_the_rows_of_a_whole_one(whole, tmp_path):
    """Its files show rows that the checkpoint it goes on from does not hold."""
    child, _ = start(tmp_path, "--kill-before", 13)
    assert child.returncode == -signal.SIGKILL, child.stderr
    newest = tmp_path / "step=0000012.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])  # so that four steps are taken again
    assert [row["step"] for row in metrics(tmp_path)][-1] == 12
    tracked = Track(tmp_path, every=2)
    fit(Small(), tmp_path, [tracked], every_steps=4)
    assert untimed(tracked.rows) == untimed(whole[1])
    assert_shown(tmp_path, tracked.rows)


# ---- several processes --------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_processes_share_global_rows_that_one_writes(tmp_path):
    launched, ranks = start(tmp_path, processes=2)
    assert launched.returncode == 0, launched.stderr
    assert untimed(ranks[0]["rows"]) == untimed(ranks[1]["rows"])
    for row in ranks[0]["rows"]:
        parts = [rank["seen"][row["step"]] for rank in ranks]
        assert not torch.equal(parts[0]["z"], parts[1]["z"])
        seen = {"z": torch.cat([part["z"] for part in parts])}
        logits = torch.cat([part["posterior"][0] for part in parts])
        seen["posterior"] = (logits, parts[0]["posterior"][1])
        expected = expected_row("bern", seen) | {"loss": sum(part["loss"].item() for part in parts) / 2}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert [row["step"] for row in ranks[0]["rows"]] == ROWS
    assert_shown(tmp_path, ranks[0]["rows"])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


# ---- files --------------------------------------------------------------------------------------------------


def test_columns_have_their_order_and_may_appear_later():
    rows = [
        {"step": 1, "epoch": 1, "loss": 0.5, "another": 7.0},
        {"epoch": 1, "step": 2, "loss": 0.25, "knn": 0.1, "learning_rate": 1e-5},
    ]
    assert table(rows).decode().splitlines() == [
        "step,epoch,loss,learning_rate,knn,another",
        "1,1,0.5,,,7.0",
        "2,1,0.25,1e-05,0.1,",
    ]
    assert table([]).decode() == "step,epoch\n"
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_metrics_are_there_while_the_run_goes_on(tmp_path, monkeypatch):
    seen = []

    def before_step(step):
        seen.append(len(metrics(tmp_path)))

    monkeypatch.setattr(track, "WRITE_EVERY", 0.0)
    fit(Small(before_step=before_step), tmp_path, [Track(tmp_path, every=2)])
    assert seen == [sum(row < step for row in ROWS) for step in range(1, TOTAL + 1)]
    seen.clear()
    monkeypatch.undo()
    fit(Small(before_step=before_step), tmp_path / "rarely", [Track(tmp_path / "rarely", every=2)], epochs=1)
    assert [len(metrics(tmp_path / "rarely"))] == [3]


def test_a_file_that_cannot_be_written_is_told_and_loses_no_row(whole, tmp_path, monkeypatch, capsys):
    def full_disk(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(track, "write_atomically", full_disk)
    with pytest.raises(SystemExit):
        fit(Small(before_step=stop_before(13)), tmp_path, [Track(tmp_path, every=2)], every_steps=4)
    told = capsys.readouterr().out
    assert "cannot write" in told
    assert "metrics.csv" in told
    assert "No space left on device" in told
    assert not (tmp_path / "metrics.csv").exists()
    monkeypatch.undo()
    tracked = Track(tmp_path, every=2)
    fit(Small(), tmp_path, [tracked])
    assert untimed(tracked.rows) == untimed(whole[1])
    assert_shown(tmp_path, tracked.rows)


@pytest.mark.parametrize("fails", ["add_scalar", "flush", "close", "__init__"])
def test_events_that_cannot_be_written_are_told_once_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys, fails
):
    from torch.utils.tensorboard import SummaryWriter

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, fails, full_disk)
    tracked = Track(tmp_path, every=2)
    fit(Small(), tmp_path, [tracked])
    assert capsys.readouterr().out.count("TensorBoard shows no more of this run") == 1
    assert [row["step"] for row in metrics(tmp_path)] == ROWS


# ---- refusals -----------------------------------------------------------------------------------------------


def test_a_missing_tensorboard_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModuleNotFoundError, match=r'tensorboard .*pip install "stochastic-bottleneck\[examples\]"'
    ):
        Track(tmp_path)


@pytest.mark.parametrize("every", [0, -3])
def test_rows_have_to_be_a_step_apart(tmp_path, every):
    with pytest.raises(ValueError, match=f"every must be at least 1 step, got {every}"):
        Track(tmp_path, every)
