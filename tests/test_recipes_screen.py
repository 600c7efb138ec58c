"""What a run shows: bars on a terminal, lines elsewhere, right in the middle of an epoch too."""

import io
import re

import lightning as L
import pytest
import torch
from recipes import screen
from recipes.screen import RunProgress, passing_bar
from recipes.track import tell
from rich.console import Console
from small_run import BATCH, EPOCHS, STEPS, TOTAL, Small, fit, start

LINE = re.compile(
    r"(?P<name>\S+)  epoch (?P<epoch>\d+/\d+)(?:, step (?P<step>\d+/\d+))?  loss (?P<loss>\d+\.\d{3})"
    r"(?:  kNN (?P<knn>[\d.]+) %)?  (?P<speed>[\d,]+) images/s  left (?P<left>\d+:\d\d:\d\d)"
)


@pytest.fixture
def shown(monkeypatch):
    """Put a console of the wanted kind in place; call the result for what it has shown."""

    def put(terminal=False, width=150):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
        monkeypatch.setattr(screen, "console", console)
        return console.file.getvalue

    return put


def lines(text):
    return [LINE.fullmatch(line).groupdict() for line in text.splitlines()]


class Clock(L.Callback):
    """Makes a step take so many seconds; stands before the progress among the callbacks."""

    def __init__(self, monkeypatch, step=2.0):
        self.now, self.step = 0.0, step
        monkeypatch.setattr(screen.time, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.now += self.step


class Neighbours(L.Callback):
    """Tells an accuracy at the end of the second epoch."""

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == 2 * STEPS:
            tell(trainer, {"knn": 0.612})


def stopping(step):
    def before_step(n):
        if n == step:
            raise KeyboardInterrupt

    return before_step


# ---- lines --------------------------------------------------------------------------------------------------


def test_a_line_an_epoch_without_a_terminal(tmp_path, monkeypatch, shown):
    text, module = shown(), Small()
    fit(module, tmp_path, [Clock(monkeypatch), RunProgress("SimCLR", BATCH)])
    found = lines(text())
    assert [line["name"] for line in found] == ["SimCLR"] * EPOCHS
    assert [line["epoch"] for line in found] == ["1/3", "2/3", "3/3"]
    assert [line["step"] for line in found] == [None] * EPOCHS
    assert [line["loss"] for line in found] == [
        f"{module.seen[e * STEPS]['loss'].item():.3f}" for e in (1, 2, 3)
    ]
    assert [line["speed"] for line in found] == ["4"] * EPOCHS  # 8 images in 2 s
    assert [line["left"] for line in found] == ["0:00:20", "0:00:10", "0:00:00"]


@pytest.mark.parametrize("first", [True, False], ids=["before the progress", "after it"])
def test_neighbours_stand_in_the_line_of_their_epoch_wherever_they_are_measured(tmp_path, shown, first):
    text, callbacks = shown(), [Neighbours(), RunProgress("bern", BATCH)]
    fit(Small(), tmp_path, callbacks if first else callbacks[::-1])
    assert [line["knn"] for line in lines(text())] == [None, "61.2", "61.2"]


def test_long_epochs_have_a_line_every_few_minutes(tmp_path, monkeypatch, shown):
    text = shown()
    fit(Small(), tmp_path, [Clock(monkeypatch, step=120), RunProgress("bern", BATCH)], epochs=2)
    found = lines(text())
    assert [line["epoch"] for line in found] == ["1/2", "1/2", "2/2", "2/2"]
    assert [line["step"] for line in found] == ["3/5", None, "3/5", None]
    assert [line["left"] for line in found] == ["0:14:00", "0:10:00", "0:04:00", "0:00:00"]


@pytest.mark.parametrize(
    "stop", [8, 10, 11], ids=["mid-epoch", "before the last step", "at an epoch's start"]
)
def test_a_resumed_run_counts_on_from_its_checkpoint(tmp_path, monkeypatch, shown, stop):
    shown()
    with pytest.raises(SystemExit):
        fit(Small(before_step=stopping(stop)), tmp_path, [RunProgress("bern", BATCH)], every_steps=1)
    text = shown()
    fit(Small(), tmp_path, [Clock(monkeypatch), RunProgress("bern", BATCH)], every_steps=1)
    found = lines(text())
    epochs = ["3/3"] if stop == 11 else ["2/3", "3/3"]
    assert [line["epoch"] for line in found] == epochs
    assert [line["speed"] for line in found] == ["4"] * len(epochs)
    assert [line["left"] for line in found] == ["0:00:10", "0:00:00"][-len(epochs) :]


def test_a_stopped_run_owes_no_line(tmp_path, shown):
    text = shown()
    with pytest.raises(SystemExit):
        fit(Small(before_step=stopping(6)), tmp_path, [RunProgress("bern", BATCH)])
    assert [line["epoch"] for line in lines(text())] == ["1/3"]


class Classifier(Small):
    """Returns what probe, fine-tuning and supervised training do."""

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)["loss"]}


def test_classification_has_its_lines(tmp_path, shown):
    text = shown()
    fit(Classifier("simclr"), tmp_path, [RunProgress("probe", BATCH)])
    assert [line["epoch"] for line in lines(text())] == ["1/3", "2/3", "3/3"]


def test_the_loss_is_not_read_at_every_step(tmp_path, monkeypatch, shown):
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append(self) or item(self))
    monkeypatch.setattr(RunProgress, "READ_EVERY", 3)
    shown()
    counts = []
    for callbacks in ([], [RunProgress("bern", BATCH)]):
        reads.clear()
        fit(Small(), tmp_path / str(len(callbacks)), callbacks)
        counts.append(len(reads))
    assert counts[1] - counts[0] == len({3, 5, 6, 9, 10, 12, 15})


@pytest.mark.distributed
def test_of_several_processes_one_shows(tmp_path):
    done, _ = start(tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "epoch" in line]
    assert [line["epoch"] for line in lines("\n".join(said))] == ["1/3", "2/3", "3/3"]


# ---- bars ---------------------------------------------------------------------------------------------------


def test_a_bar_on_a_terminal(tmp_path, shown):
    text, module = shown(terminal=True), Small()
    fit(module, tmp_path, [Neighbours(), RunProgress("[bern]", BATCH)])
    last = [line for line in re.split(r"[\r\n]", text()) if "epoch" in line][-1]
    assert "[bern]" in last
    loss = f"{module.seen[TOTAL]['loss'].item():.3f}"
    assert re.search(rf"epoch 3/3  loss {loss}  kNN 61\.2 %  [\d,]+ images/s", last)
    assert text().count("\n") < TOTAL  # drawn in place
    assert text().endswith("\x1b[?25h")  # the cursor is back


def test_a_resumed_bar_starts_where_the_run_stands(tmp_path, monkeypatch, shown):
    shown(terminal=True)
    with pytest.raises(SystemExit):
        fit(Small(before_step=stopping(9)), tmp_path, [RunProgress("bern", BATCH)], every_steps=1)
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, *args):
            task = progress.bar.tasks[0]
            seen.append((task.completed, task.total, task.fields["said"].split("  ")[0]))

    progress = RunProgress("bern", BATCH)
    fit(Small(), tmp_path, [progress, Look()], every_steps=1)
    assert seen[0] == (8, TOTAL, "epoch 2/3")
    assert [completed for completed, *_ in seen] == list(range(8, TOTAL))


@pytest.mark.parametrize("stops", [True, False])
def test_the_terminal_is_given_back(tmp_path, shown, stops):
    text = shown(terminal=True)
    progress = RunProgress("bern", BATCH)
    if stops:
        with pytest.raises(SystemExit):
            fit(Small(before_step=stopping(3)), tmp_path, [progress])
    else:
        fit(Small(), tmp_path, [progress])
    assert progress.bar is None
    assert text().count("\x1b[?25l") == text().count("\x1b[?25h") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_passing_bar_gives_every_item_and_leaves_nothing(shown, terminal):
    text = shown(terminal)
    assert list(passing_bar(range(5), "[reading]")) == [0, 1, 2, 3, 4]
    assert ("[reading]" in text()) == terminal
    assert terminal or text() == ""
