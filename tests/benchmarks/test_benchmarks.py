"""The benchmarks' machinery: isolation, turns, memory, failures, the oracle, the command."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from stand_in_benchmark import BENCHMARK, HELD, LIMIT, measure

import benchmarks
from benchmarks import __main__ as command
from benchmarks import files, formulas, harness, tables, targets

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def measured():
    """The stand-in benchmark, measured for real."""
    return measure()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A cheap benchmark in its quick form, through the command line; its folder and exit code."""
    folder = tmp_path_factory.mktemp("results")
    return folder, command.main(["bernoulli", "--quick", "--threads", "1", "--output", str(folder)])


def row(results, contender, case="first"):
    return targets.find(results, case, contender)


# ---- measuring ---------------------------------------------------------------------------------------------


def test_every_row_says_where_it_was_measured(measured):
    assert {r["contender"] for r in measured["rows"]} == {c.name for c in BENCHMARK.contenders} - {
        "skips",
        "compiled",
    }
    for r in measured["rows"]:
        assert f"torch {measured['environment']['packages']['torch']}" in r["measured_on"]
        assert "core" in r["measured_on"]
    header = measured["environment"]
    assert {
        "cpu",
        "cores",
        "memory_bytes",
        "python",
        "packages",
        "commit",
        "dirty",
        "threads",
    } <= header.keys()
    assert measured["command"] == "a test"
    json.dumps(measured, allow_nan=False)


def test_samples_are_summed_up(measured):
    short, long = row(measured, "short"), row(measured, "long")
    assert len(short["samples_s"]) == len(long["samples_s"]) == 3
    assert 0.002 <= short["median_s"] < 0.008 <= long["median_s"]
    assert short["quartiles_s"][0] <= short["median_s"] <= short["quartiles_s"][1]
    assert short["calls"] > long["calls"] > 1  # both samples last about as long
    assert short["first_call_s"] >= 0.002
    assert (short["amount"], short["unit"]) == (8, "naps")
    assert targets.part_share(short, "half") == pytest.approx(0.5, abs=0.15)


def test_contenders_take_turns(measured):
    """Nobody works in another's turn, and each round holds one sample of each, begun by another contender."""
    alive = [r for r in measured["rows"] if r["case"] == "second" and r["samples_s"]]
    spans = sorted((*span, r["contender"]) for r in alive for span in r["spans_s"])
    for (_, end, _), (start, _, _) in pairwise(spans):
        assert end + harness.PAUSE <= start + 1e-3
    names = [name for *_, name in spans]
    rounds = [names[i : i + len(alive)] for i in range(0, len(names), len(alive))]
    assert len(rounds) == 3
    assert all(len(set(held)) == len(alive) for held in rounds)
    assert len({held[0] for held in rounds}) == 3


def test_a_contender_that_raises_is_a_row(measured):
    for case in ("first", "second"):
        failed = row(measured, "raises", case)
        assert failed["error"] == "RuntimeError: out of luck"
        assert failed["median_s"] is None
        assert failed["samples_s"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_one_that_asks_for_too_much_is_stopped_before_the_kernel_is(measured):
    failed = row(measured, "greedy")
    assert "tried to allocate" in failed["error"]
    shown = tables.memory_cell(failed)
    assert shown.startswith("asks for ")
    assert shown.endswith(" GB")


def test_one_that_dies_comes_back_for_the_next_case(measured):
    assert row(measured, "dies")["error"] == "its process ended with signal SIGKILL"
    assert row(measured, "dies", "second")["error"] is None
    assert len(row(measured, "dies", "second")["samples_s"]) == 3


def test_one_that_hangs_is_given_up(measured):
    assert row(measured, "hangs")["error"] == f"no answer after {LIMIT:g} s"


def test_one_that_is_given_up_is_ended(tmp_path):
    process = harness._Process(BENCHMARK, "hangs", harness.Options(), str(tmp_path))
    assert "threads" in process.ask("describe")
    process.limit = 0.1
    assert process.ask("prepare", BENCHMARK.cases[0], None) == {"error": "no answer after 0.1 s"}
    assert not process.process.is_alive()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
def test_memory_is_the_peak_of_one_call(measured):
    for case, held in (("first", HELD), ("second", HELD // 2)):
        # The kernel counts pages in batches, each thread its own; malloc keeps some.
        assert 0.95 * held < row(measured, "holds", case)["peak_bytes"] < 1.25 * held
    assert row(measured, "short")["peak_bytes"] < HELD / 16


def test_agreement_is_recorded(measured):
    right, wrong = row(measured, "right")["agreement"], row(measured, "wrong")["agreement"]
    assert right == {"relative_errors": {"value": 0.0}, "tolerance": 1e-5, "agrees": True}
    assert wrong == {"relative_errors": {"value": 0.25}, "tolerance": 1e-5, "agrees": False}


def test_an_error_that_is_not_a_number_disagrees(tmp_path):
    from benchmarks.worker import _agreement

    assert _agreement({"value": math.nan}, 1.0) == {
        "relative_errors": {"value": None},
        "tolerance": 1.0,
        "agrees": False,
    }


def test_slow_contenders_get_fewer_rounds():
    assert harness._rounds(7, 0.05) == 7
    assert harness._rounds(7, 5) == 6
    assert harness._rounds(7, 9) == 3
    assert harness._rounds(7, 100) == 1
    assert harness._rounds(2, 9) == 2


def test_unknown_cases_are_refused():
    with pytest.raises(
        ValueError, match=r"nothing to measure in stand_in_benchmark.*'first'.*got \('ninth',\)"
    ):
        harness.measure(BENCHMARK, harness.Options(cases=("ninth",)), "")


RESTS = """
import time
from pathlib import Path
from benchmarks.images import PILImages, RestingLoader
import torch

def state(worker):
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]

if __name__ == "__main__":
    loader = RestingLoader(PILImages(lambda image: torch.tensor(image.size)), 4, 2)
    for _ in range(3):
        with loader.turn():
            sizes, labels = loader.take()
            assert sizes.tolist() == [[32, 32]] * 4, sizes
            assert {state(worker) for worker in loader.workers} <= {"R", "S"}
        time.sleep(0.1)
        assert [state(worker) for worker in loader.workers] == ["T", "T"]
    loader.close()
    for worker in loader.workers:
        worker.join(20)
        assert worker.exitcode == 0, worker.exitcode
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loader_works_in_its_turns_alone(tmp_path):
    script = tmp_path / "rests.py"
    script.write_text(RESTS)
    told = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr


# ---- the formulas that judge and are judged ----------------------------------------------------------------


def test_the_oracle_agrees_with_the_formulas_and_with_the_loop():
    import torch
    from oracles import nt_xent

    v, v_prime = (x.double() for x in formulas.views(5, 4, "float32"))
    truth = formulas.oracle(v, v_prime)
    slow = nt_xent(v, v_prime, formulas.TEMPERATURE).mean()
    assert truth["value"].item() == pytest.approx(slow.item(), rel=1e-12)
    for formula in (formulas.plain, formulas.unshifted):
        leaves = [x.clone().requires_grad_() for x in (v, v_prime)]
        value = formula(*leaves)
        value.backward()
        assert value.detach().item() == pytest.approx(slow.item(), rel=1e-12)
        for leaf, key in zip(leaves, ("gradient", "gradient_prime"), strict=True):
            torch.testing.assert_close(leaf.grad, truth[key], rtol=1e-10, atol=1e-12)


def test_the_oracle_needs_no_whole_matrix(monkeypatch):
    whole = formulas.oracle(*formulas.views(20, 4, "float32"))
    monkeypatch.setattr(formulas, "BLOCK", 7)
    blocks = formulas.oracle(*formulas.views(20, 4, "float32"))
    for key, value in whole.items():
        assert formulas.relative_error(blocks[key], value) < 1e-12


# ---- the command -------------------------------------------------------------------------------------------


def test_the_quick_form_runs(quick, capsys):
    folder, code = quick
    assert code == 0
    results = json.loads((folder / "bernoulli.json").read_text())
    assert results["options"]["quick"] is True
    assert [r["contender"] for r in results["rows"]] == ["ours", "distributions"]
    assert all(r["error"] is None and r["agreement"]["agrees"] for r in results["rows"])
    assert command.main(["bernoulli", "--show", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    for words in ("Relaxed Bernoulli", "torch.distributions", "not part of this run", "says that it runs"):
        assert words in printed


def test_quick_fails_where_a_contender_does(monkeypatch, tmp_path, capsys, measured):
    monkeypatch.setattr(benchmarks, "NAMES", ("stand_in",))
    monkeypatch.setattr(tables, "benchmark_of", lambda name: BENCHMARK)
    monkeypatch.setattr(harness, "measure", lambda *_: measured)
    folder = str(tmp_path)
    assert command.main(["stand_in", "--quick", "--output", folder]) == 1
    assert "stand_in, first, raises, RuntimeError: out of luck" in capsys.readouterr().out
    assert command.main(["stand_in", "--rounds", "3", "--output", folder]) == 0
    assert command.main(["stand_in", "--rounds", "3", "--check", "--output", folder]) == 1
    assert "long over short: at most 1x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [["--quick"], ["--rounds", "9"], ["--case", "N = 32"], ["--contender", "ours"]]
)
def test_shortened_runs_do_not_replace_results_for_the_record(option, capsys):
    with pytest.raises(SystemExit):
        command.main(["info_nce", *option, "--output", str(RESULTS)])
    assert "replaced by whole runs only" in capsys.readouterr().err


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["infonce"])
    assert "no benchmark infonce; there are info_nce, " in capsys.readouterr().err


def test_resume_keeps_what_this_commit_measured(quick, monkeypatch):
    folder, _ = quick
    path = folder / "bernoulli.json"
    options = harness.Options(quick=True)
    assert command._is_current(path, options)
    assert not command._is_current(path, harness.Options())
    assert not command._is_current(folder / "gaussian.json", options)
    now = command.provenance.environment()
    monkeypatch.setattr(command.provenance, "environment", lambda: {**now, "commit": "another"})
    assert not command._is_current(path, options)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"value": 1 / 3})
    assert json.loads(path.read_text()) == {"value": 0.333333}
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"value": math.inf})
    assert json.loads(path.read_text()) == {"value": 0.333333}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
