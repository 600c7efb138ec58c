"""Training in two processes that torchrun has started, on one machine and on two, against training in one."""

import contextlib
import socket
import sys

import pytest
import torch
from recipes.checkpoints import newest_whole
from small_training import BATCH, EPOCHS, STEPS, TOTAL, Seen, launch, train, wait

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

GROUP = {
    "name": "simclr",
    "norm": "group",
}  # no statistics over the batch, which processes on CPUs do not share
LATENT = {
    "norm": "group",
    "latent": {"location_std": None},
    "precision": "bf16",
    "ema": 0.8,
    "every_steps": 1,
}
ALIKE = {
    "sgd": GROUP,
    "lars": {**GROUP, "optimizer": "lars", "learning_rate": 0.3, "ema": 0.8},
    "micro batches": {**GROUP, "optimizer": "adamw", "learning_rate": 0.01, "micro_batch": 3},
}
OTHERS = {
    "latent": LATENT,
    "latent, micro batches": {**LATENT, "micro_batch": 3},
    "gauss": {**LATENT, "name": "gauss", "epochs": 1},
    "batch norm": {"name": "simclr", "epochs": 1},
    "diverged": {**GROUP, "every_steps": 1, "spoil_at": 6},
    "uneven": {**GROUP, "batch_size": 9},
    "sgd again": GROUP,
}
ROUNDING = 1e-5  # float32's is 6e-8; this is what twelve steps may make of it (they make a tenth)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TOGETHER = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]


def left_in(folder):
    """What each of the two processes left."""
    return [torch.load(folder / f"end{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder of all runs in two processes, and what they said."""
    folder = tmp_path_factory.mktemp("together")
    code, said, errors = wait(launch(TOGETHER, folder, {**ALIKE, **OTHERS}))
    assert code == 0, errors
    return folder, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs in this process: what came out, and what was seen."""
    found = {}
    for name, words in ALIKE.items():
        seen = Seen()
        end = train(tmp_path_factory.mktemp("alone"), **words, callbacks=[seen])
        found[name] = end.losses, dict(end.model.state_dict()), seen
    return found


# ---- the steps of one process on the whole batch --------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_take_the_steps_of_one(together, alone, name):
    """Equal up to the rounding of float32 sums in another order, over twelve steps that move all weights."""
    losses, weights, seen = alone[name]
    ends = left_in(together[0] / name)
    for end in ends:
        assert end["losses"] == pytest.approx(losses, rel=ROUNDING)
        for place, value in weights.items():
            assert (end["weights"][place] - value).abs().max() <= ROUNDING * value.abs().max(), place
        assert end["steps"] == list(range(1, TOTAL + 1))
    share = BATCH // 2
    parts = [torch.tensor(end["labels"]).view(TOTAL, share) for end in ends]
    assert torch.cat(parts, dim=1).flatten().tolist() == seen.labels
    assert max(losses) - min(losses) > 0.1  # there is a curve to compare


@pytest.mark.parametrize("name", ["sgd", "lars", "micro batches", "latent", "gauss"])
def test_processes_end_with_the_same_weights_and_losses(together, name):
    first, second = left_in(together[0] / name)
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


def test_processes_draw_noise_of_their_own(together):
    first, second = left_in(together[0] / "latent")
    assert len({*first["noise"], *second["noise"]}) == 2 * TOTAL


def test_a_second_training_in_the_same_processes_is_as_the_first(together):
    for first, again in zip(left_in(together[0] / "sgd"), left_in(together[0] / "sgd again"), strict=True):
        assert first["losses"] == again["losses"]
        torch.testing.assert_close(first["weights"], again["weights"], rtol=0, atol=0)


# ---- what is told ---------------------------------------------------------------------------------------------


def test_batch_norm_without_a_gpu_is_told_once(together):
    told = "batch norm: each of the 2 processes normalises its own 4 images"
    assert together[1].count(told) == 1
    assert len(left_in(together[0] / "batch norm")[0]["losses"]) == STEPS


def test_a_divergence_in_one_process_ends_all_with_the_checkpoint_before_it(together):
    folder = together[0] / "diverged"
    for end in left_in(folder):
        assert end["error"].startswith("TrainingError: the loss became nan at step 6; ")
        assert f"{folder / 'step=0000005.ckpt'} is kept" in end["error"]
    assert newest_whole(folder).name == "step=0000005.ckpt"


def test_a_batch_that_processes_cannot_share_is_refused_by_all(together):
    for end in left_in(together[0] / "uneven"):
        assert end["error"].startswith("DataError: --batch-size ")
        assert "must be a multiple of their number, got 9; give 10" in end["error"]


# ---- stopped, and elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stop", "kept"), [("latent", "kill_at", 6), ("latent, micro batches", "terminate_second_at", 7)]
)
def test_stopped_processes_go_on_to_the_bit(together, tmp_path, name, stop, kept):
    code, _, errors = wait(launch(TOGETHER, tmp_path, {name: {**OTHERS[name], stop: 7}}))
    assert code != 0
    assert ("SIGKILL" if stop == "kill_at" else "exitcode  : 143") in errors
    assert newest_whole(tmp_path / name).name == f"step=000000{kept}.ckpt"
    code, _, errors = wait(launch(TOGETHER, tmp_path, {name: OTHERS[name]}))
    assert code == 0, errors
    for expected, end in zip(left_in(together[0] / name), left_in(tmp_path / name), strict=True):
        assert end["steps"] == list(range(kept + 1, TOTAL + 1))
        assert end["noise"] == expected["noise"][kept:]
        assert end["losses"] == expected["losses"]
        torch.testing.assert_close(end["weights"], expected["weights"], rtol=0, atol=0)


def test_two_machines_are_as_one(together, tmp_path):
    """Two torchruns that meet over a port, as on two machines: both processes have local rank 0."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
    ]
    children = [
        launch([*TORCHRUN, *meeting, "--node-rank", str(node)], tmp_path, {"sgd": GROUP}) for node in (0, 1)
    ]
    for code, _, errors in map(wait, children):
        assert code == 0, errors
    for expected, end in zip(left_in(together[0] / "sgd"), left_in(tmp_path / "sgd"), strict=True):
        assert len(end["losses"]) == EPOCHS * STEPS
        assert end["losses"] == expected["losses"]
        torch.testing.assert_close(end["weights"], expected["weights"], rtol=0, atol=0)
