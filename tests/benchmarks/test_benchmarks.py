"""The benchmarks: measuring, the command line, and the targets, tables and figures made of the results."""

import json
import math
import re
import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import pytest
import torch
from oracles import nt_xent
from stand_in_benchmark import BENCHMARK, HELD, LIMIT, measure

import benchmarks
from benchmarks import __main__ as command
from benchmarks import environment, figures, losses, publish, runner, tables, targets
from benchmarks.worker import compare

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def row(contender, case="first"):
    return targets.find(measure(), case, contender)


def test_results_describe_machine_and_samples():
    rows, machine = measure()["rows"], measure()["environment"]
    assert {r["contender"] for r in rows} == {c.name for c in BENCHMARK.contenders} - {"skips", "compiled"}
    assert {"cpu", "cores", "memory_bytes", "python", "commit", "dirty", "threads"} <= machine.keys()
    assert machine["packages"]["torch"]
    assert measure()["command"] == "a test"
    json.dumps(measure(), allow_nan=False)
    short, long = row("short"), row("long")
    assert len(short["samples_s"]) == len(long["samples_s"]) == 3
    assert 0.002 <= short["median_s"] < 0.008 <= long["median_s"]
    assert short["quartiles_s"][0] <= short["median_s"] <= short["quartiles_s"][1]
    assert short["calls"] > long["calls"] > 1  # so that samples of both last equally long
    assert short["first_call_s"] >= 0.002


def test_contenders_take_turns():
    """No two run at the same time; each round has a sample of each and starts with another contender."""
    running = [r for r in measure()["rows"] if r["case"] == "second" and r["samples_s"]]
    spans = sorted((*span, r["contender"]) for r in running for span in r["spans_s"])
    for (_, end, _), (start, _, _) in pairwise(spans):
        assert end + runner.PAUSE <= start + 1e-3
    rounds = [[name for *_, name in spans[i : i + len(running)]] for i in range(0, len(spans), len(running))]
    assert [len(set(one)) for one in rounds] == 3 * [len(running)]
    assert len({one[0] for one in rounds}) == 3


def test_a_failing_contender_is_a_row_with_an_error():
    for case in ("first", "second"):
        assert row("raises", case)["error"] == "RuntimeError: out of luck"
        assert row("raises", case)["median_s"] is None
    assert row("hangs")["error"] == f"no answer after {LIMIT:g} s"
    assert row("dies")["error"] == "its process ended with signal SIGKILL"
    assert row("dies", "second")["error"] is None
    assert len(row("dies", "second")["samples_s"]) == 3  # restarted


@linux
def test_memory_is_the_peak_of_one_call_and_limited():
    assert re.fullmatch(r"asks for [\d.]+ GB", tables.cell(row("greedy"), "memory")), row("greedy")["error"]
    for case, held in (("first", HELD), ("second", HELD // 2)):
        # Tolerances: the kernel counts pages in batches, one for each thread; malloc caches some.
        assert 0.95 * held < row("holds", case)["peak_bytes"] < 1.25 * held
    assert row("short")["peak_bytes"] < HELD / 16


def test_results_are_compared_with_the_oracle():
    right, wrong = row("right")["agreement"], row("wrong")["agreement"]
    assert right == {"relative_errors": {"value": 0.0}, "tolerance": 1e-5, "agrees": True}
    assert wrong == {"relative_errors": {"value": 0.25}, "tolerance": 1e-5, "agrees": False}
    undefined = compare({"value": math.nan}, 1.0)
    assert undefined == {"relative_errors": {"value": None}, "tolerance": 1.0, "agrees": False}


def test_an_unknown_case_is_an_error():
    with pytest.raises(ValueError, match=r"stand_in_benchmark must be among .*'first'.*got \('ninth',\)"):
        runner.measure(BENCHMARK, runner.Options(cases=("ninth",)), "")


PAUSED = """
import time, torch
from pathlib import Path
from benchmarks.loader import PILImages, PausedLoader

loader = PausedLoader(PILImages(lambda image: torch.tensor(image.size)), 4, 2)
states = lambda: [Path(f"/proc/{w.pid}/stat").read_text().rpartition(")")[2].split()[0] for w in loader.workers]
for _ in range(3):
    with loader.turn():
        assert loader.next()[0].tolist() == [[32, 32]] * 4
        assert set(states()) <= {"R", "S"}
    time.sleep(0.1)
    assert states() == ["T", "T"]
loader.close()
for worker in loader.workers:
    worker.join(20)
    assert worker.exitcode == 0, worker.exitcode
"""


@linux
def test_loader_processes_are_paused_between_turns():
    subprocess.run([sys.executable, "-c", PAUSED], env={"PYTHONPATH": str(environment.ROOT)}, check=True)


def test_formulas_agree_with_the_oracle(monkeypatch):
    v, v_prime = (x.double() for x in losses.views(5, 4, "float32"))
    slow = nt_xent(v, v_prime, losses.TEMPERATURE).mean()
    monkeypatch.setattr(losses, "BLOCK", 7)  # several blocks, the last one smaller
    truth = losses.oracle(v, v_prime)
    assert truth["value"].item() == pytest.approx(slow.item(), rel=1e-12)
    for formula in (losses.plain, losses.solo_learn):
        leaves = [x.clone().requires_grad_() for x in (v, v_prime)]
        value = formula(*leaves)
        value.backward()
        assert value.item() == pytest.approx(slow.item(), rel=1e-12)
        for leaf, key in zip(leaves, ("gradient", "gradient_prime"), strict=True):
            torch.testing.assert_close(leaf.grad, truth[key], rtol=1e-10, atol=1e-12)


def test_a_quick_run(tmp_path, capsys):
    output = ["--output", str(tmp_path)]
    assert command.main(["bernoulli", "--quick", *output]) == 0
    results = json.loads((tmp_path / "bernoulli.json").read_text())
    assert results["options"]["quick"] is True
    assert [r["contender"] for r in results["rows"]] == ["ours", "distributions"]
    assert all(r["error"] is None and r["agreement"]["agrees"] for r in results["rows"])
    assert command.main(["bernoulli", "gaussian", "--show", *output]) == 0
    printed = capsys.readouterr().out
    for words in ("Relaxed Bernoulli", "torch.distributions", "not part of this run", "gaussian: no results"):
        assert words in printed


def test_exit_code_of_failures_and_missed_targets(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tables, "benchmark_of", lambda name: BENCHMARK)
    monkeypatch.setattr(runner, "measure", lambda *_: measure())
    run = ["step", "--output", str(tmp_path)]
    assert command.main([*run, "--quick"]) == 1
    assert "step, first, raises, RuntimeError: out of luck" in capsys.readouterr().out
    assert command.main([*run, "--rounds", "3"]) == 0
    assert command.main([*run, "--rounds", "3", "--check"]) == 1
    assert "long over short: at most 1x" in capsys.readouterr().out


OTHER_RUNS = ("--quick", "--rounds=9", "--case=N = 32", "--contender=ours", "--device=cuda", "--threads=1")


@pytest.mark.parametrize("option", OTHER_RUNS)
def test_other_runs_do_not_replace_committed_results(option, capsys):
    assert command.main(["info_nce", option, "--output", str(environment.RESULTS)]) == 2
    assert "only runs with default options may write to" in capsys.readouterr().err
    assert command.main([option]) == 2
    assert "name benchmarks (info_nce, " in capsys.readouterr().err


def made_up(name, sizes):
    """Invented results of a benchmark at some sizes: contender i takes 1e-7 i n^2 seconds."""
    benchmark, rows = tables.benchmark_of(name), []
    for i, contender in enumerate(benchmark.contenders, start=1):
        for case in (case for case in benchmark.cases if contender.takes(case) and case.size["n"] in sizes):
            seconds = 1e-7 * i * case.size["n"] ** 2
            times = {"samples_s": 2 * [seconds], "median_s": seconds, "quartiles_s": 2 * [seconds]}
            rows.append(runner.new_row(case, contender) | times | {"peak_bytes": 10**6, "amount": 1e9})
    return {"rows": rows}


def test_targets_are_reached_missed_or_not_measured():
    found = {o.text: o for o in (target.outcome(measure()) for target in BENCHMARK.targets)}
    assert {text: o.state for text, o in found.items()} == {
        "short over long": "reached",
        "long over short": "missed",
        "long over raises": "not measured",  # a failed peer is no failure of ours
        "raises over long": "missed",
        "wrong over long": "missed",
        "holds": "reached",
        "no such case": "not measured",
    }
    assert found["raises over long"].measured == "RuntimeError: out of luck"
    assert found["wrong over long"].measured == "its result does not agree with the oracle"


def fake(contender, samples, n=1, **more):
    found = {"case": f"n = {n}", "contender": contender, "label": contender, "size": {"n": n}, "error": None}
    return found | {"agreement": None, "samples_s": samples, "median_s": samples[0]} | more


def test_ratios_are_medians_over_rounds():
    """A machine that slows down tenfold changes no ratio, although it changes the medians."""
    results = {"rows": [fake("a", [1.0, 10.0, 10.0]), fake("b", [2.0, 20.0])]}
    for limit, state in ((0.5, "reached"), (0.49, "missed")):
        assert targets.Ratio("", "a", limit, "n = 1", "b").outcome(results)[2:] == ("0.5x", state)


def test_floor_exponent_and_memory():
    rows = [fake("a", [n * n / 2.0], n, peak_bytes=3e6 * n, flop=40.0) for n in (2, 4, 8)]
    rows.append(fake("product", [0.5], 4, amount=10.0))
    results, cases = {"rows": rows}, ("n = 2", "n = 4", "n = 8")
    for limit, state in ((0.25, "reached"), (0.3, "missed")):  # 40 operations at 20 a second take 2 s of the 8
        floor = targets.FloorShare("", "a", limit, case="n = 4", floor="product")
        assert floor.outcome(results)[2:] == ("25%", state)
    assert targets.Exponent("", "a", 2.1, cases).measure(results) == pytest.approx(2)
    assert targets.Exponent("", "a", 1.1, cases, metric="memory").measure(results) == pytest.approx(1)
    assert targets.Memory("", "a", 11.9, "n = 4").outcome(results).state == "missed"
    rows[1]["peak_bytes"] = None
    assert targets.Memory("", "a", 11, "n = 4").outcome(results).state == "not measured"


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_targets_refer_to_what_is_measured(name):
    benchmark = tables.benchmark_of(name)
    assert benchmark.name == name
    cases, contenders = {c.name: c for c in benchmark.cases}, {c.name: c for c in benchmark.contenders}
    for target in benchmark.targets:
        named = {target.contender, getattr(target, "peer", target.contender)}
        for case in getattr(target, "cases", None) or (target.case,):
            assert all(contenders[contender].takes(cases[case]) for contender in named), target
    assert {name for view in benchmark.views for name in view.contenders} <= contenders.keys()


def test_a_table_in_markdown_and_rst():
    table = tables.Table("Title", ("", "a"), (("x|y", tables.NOTHING), ("z_", "1")))
    assert table.markdown() == "|      | a   |\n| ---- | --- |\n| x\\|y | -   |\n| z_   | 1   |\n"
    assert all(line in table.rst() for line in (r"* - x\|y", r"  - \-", r"* - z\_"))


def test_tables_show_times_and_failures():
    values = (2.0, 0.684, 0.01234, 1e-8)
    assert [tables.seconds(value) for value in values] == ["2.00 s", "684 ms", "12.3 ms", "0.01 µs"]
    text = "\n".join(table.markdown() for table in tables.tables(BENCHMARK, measure()))
    for words in ("out of luck", "fails", "missed", "the oracle by more than 1e-05: value 2.5e-01"):
        assert words in text
    assert "skips" not in text


def test_lines_are_drawn_with_the_floor():
    benchmark, results = tables.benchmark_of("info_nce"), made_up("info_nce", {256, 512, 8192})
    with mpl.rc_context(figures.STYLE):
        [axes] = figures.lines(benchmark, results, "time").axes
    shown = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
    labels = {c.label for c in benchmark.contenders if c.name != "product"}
    assert shown.keys() == labels | {"floor of matrix products"}
    assert (list(shown["ours"]), list(shown["lightly"])) == ([256, 512, 8192], [256, 512])
    rate = 1e9 / targets.find(results, "N = 512", "product")["median_s"]
    assert shown["floor of matrix products"][512] == pytest.approx(2 * 2 * 1024**2 * 128 / rate)


@pytest.mark.parametrize("path", sorted(environment.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_complete(path):
    results = json.loads(path.read_text())
    benchmark = tables.benchmark_of(path.stem)
    assert not results["options"]["quick"]
    assert results["options"]["device"] == "cpu"
    assert not results["environment"]["dirty"]
    assert {row["case"] for row in results["rows"]} == {case.name for case in benchmark.cases}
    for stem in figures.draw(benchmark, results):
        assert (environment.RESULTS / f"{stem}.svg").is_file()


def test_the_committed_summary_matches_the_results():
    summary = publish.summary(publish.load(environment.RESULTS))
    assert (environment.RESULTS / publish.SUMMARY).read_text() == summary


def test_publishing_updates_the_readme(tmp_path):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    run = {"environment": measure()["environment"], "date": "2030-01-02T03:04:05Z"}
    for name, sizes in (("info_nce", {1024, 4096}), ("bernoulli", {4096})):
        (results / f"{name}.json").write_text(json.dumps({**made_up(name, sizes), **run}))
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table: benchmarks/results/table.md -->\nold\n<!-- end of table -->\nb\n")
    publish.publish(tmp_path)
    table, text = (results / publish.SUMMARY).read_text(), readme.read_text()
    marks = "<!-- table: benchmarks/results/table.md -->", "<!-- end of table -->"
    assert text == f"a\n{marks[0]}\n\n{table}\n{marks[1]}\nb\n"
    cells = " ".join(table.split())
    assert "| N = 4096 | 1.68 s |" in cells
    assert "4096 x 2048 | 1.68 s | 5.03 s, torch.distributions | 0.333x | at most 0.333x |" in cells
    assert "2030-01-02. Not measured yet: `gather`, `gaussian`, `step`." in cells
    figure = (results / "info_nce_memory.svg").read_text()
    assert "<svg" in figure
    publish.publish(tmp_path)
    assert readme.read_text() == text
    assert (results / "info_nce_memory.svg").read_text() == figure  # the same file from the same results
