"""What the benchmarks' results become: targets, tables, figures, the README's section."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from stand_in_benchmark import BENCHMARK, measure

import benchmarks
from benchmarks import figures, harness, publish, tables, targets

RESULTS = Path(benchmarks.__file__).parent / "results"


@pytest.fixture(scope="module")
def measured():
    """The stand-in benchmark, measured for real."""
    return measure()


# ---- targets -----------------------------------------------------------------------------------------------


def test_targets_are_reached_missed_or_not_measured(measured):
    found = {o.text: o for o in tables.outcomes(BENCHMARK, measured)}
    states = {text: o.state for text, o in found.items()}
    assert states == {
        "short over long": "reached",
        "long over short": "missed",
        "long over raises": "not measured",  # a peer's failure says nothing about ours
        "raises over long": "missed",
        "wrong over long": "missed",
        "holds": "reached",
        "elsewhere": "not measured",
    }
    assert found["raises over long"].measured == "RuntimeError: out of luck"
    assert found["wrong over long"].measured == "its result does not agree with the oracle"


def fake(contender, samples, **more):
    size = more.pop("size", {"n": 1})
    return {
        "case": f"n = {size['n']}",
        "contender": contender,
        "label": contender,
        "size": size,
        "error": None,
        "agreement": None,
        "samples_s": samples,
        "median_s": sorted(samples)[len(samples) // 2],
        "parts_s": {},
        **more,
    }


def test_ratios_are_of_the_same_round():
    """A machine that slows down tenfold changes no ratio; medians of each apart would say otherwise."""
    results = {"rows": [fake("a", [1.0, 10.0, 10.0]), fake("b", [2.0, 20.0])]}
    ratio = targets.Ratio("", "a", 0.5, "n = 1", "b")
    assert ratio.measure(results) == 0.5
    assert ratio.outcome(results).state == "reached"
    assert targets.Ratio("", "a", 0.49, "n = 1", "b").outcome(results).state == "missed"


def test_floor_exponent_and_parts():
    rows = [fake("a", [n * n / 2.0], size={"n": n}, peak_bytes=3e6 * n) for n in (2, 4, 8)]
    rows[1] |= {"flop": 40.0, "parts_s": {"half": [4.0]}}
    rows.append(fake("product", [0.5], size={"n": 4}, amount=10.0))
    results, cases = {"rows": rows}, ("n = 2", "n = 4", "n = 8")
    # 40 operations at 20 a second take 2 s of the 8.
    floor = targets.FloorShare("", "a", 0.25, case="n = 4", floor="product")
    assert floor.measure(results) == 0.25
    assert floor.outcome(results).state == "reached"
    assert targets.FloorShare("", "a", 0.3, case="n = 4", floor="product").outcome(results).state == "missed"
    assert targets.Exponent("", "a", 2.1, cases).measure(results) == pytest.approx(2)
    assert targets.Exponent("", "a", 1.1, cases, metric="memory").measure(results) == pytest.approx(1)
    assert targets.PartShare("", "a", 0.5, "n = 4", "half").measure(results) == 0.5
    assert targets.Memory("", "a", 11, "n = 4").outcome(results).state == "missed"
    rows[1]["peak_bytes"] = None
    assert targets.Memory("", "a", 11, "n = 4").outcome(results).state == "not measured"


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_targets_name_what_is_measured(name):
    benchmark = tables.benchmark_of(name)
    assert benchmark.name == name
    assert benchmark.targets
    cases, contenders = {c.name: c for c in benchmark.cases}, {c.name: c for c in benchmark.contenders}
    for target in benchmark.targets:
        named = (getattr(target, key, None) or target.contender for key in ("contender", "peer", "floor"))
        for case in getattr(target, "cases", None) or (target.case,):
            assert all(contenders[contender].takes(cases[case]) for contender in named), target
    for view in benchmark.views:
        assert set(view.contenders) <= set(contenders)
        assert view.metric in ("time", "first call", "memory", "rate")


# ---- what is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.0, "2.00 s"), (0.684, "684 ms"), (0.01234, "12.3 ms"), (3e-6, "3.00 µs"), (1e-8, "0.01 µs")],
)
def test_seconds(value, shown):
    assert tables.seconds(value) == shown


def test_a_table_in_three_forms():
    table = tables.Table("Title", ("", "a"), (("x|y", tables.NOTHING), ("z_", "1")))
    assert table.text().splitlines() == ["Title", "", "     a", "---  -", "x|y  -", "z_   1"]
    assert table.markdown().splitlines()[2] == r"| x\|y | - |"
    assert r"* - x\|y" in table.rst()
    assert r"  - \-" in table.rst()
    assert r"* - z\_" in table.rst()


def test_tables_show_failures(measured):
    text = "\n".join(table.text() for table in tables.tables(BENCHMARK, measured))
    for words in (
        "out of luck",
        "fails",
        "off the oracle by more than 1e-05: value 2.5e-01",
        "half",
        "missed",
    ):
        assert words in text
    assert "skips" not in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_whole(path):
    results = json.loads(path.read_text())
    benchmark = tables.benchmark_of(path.stem)
    assert not results["options"]["quick"]
    assert not results["environment"]["dirty"]
    assert {row["case"] for row in results["rows"]} == {case.name for case in benchmark.cases}
    assert any(table.title == "Targets" for table in tables.tables(benchmark, results))
    assert len(tables.outcomes(benchmark, results)) == len(benchmark.targets)
    for stem in figures.draw(benchmark, results):
        assert (RESULTS / f"{stem}.svg").is_file()


def test_the_committed_summary_is_what_the_results_say():
    assert (RESULTS / publish.SUMMARY).read_text() == publish.summary(publish.load(RESULTS))


def growing(name, sizes):
    """Results of a benchmark of lines, made up."""
    benchmark = tables.benchmark_of(name)
    rows = []
    for case in benchmark.cases:
        for i, contender in enumerate(benchmark.contenders):
            if contender.takes(case) and case.size["n"] in sizes:
                made = harness._empty_row(case, contender)
                samples = [1e-7 * (i + 1) * case.size["n"] ** 2] * 2
                made |= {
                    "samples_s": samples,
                    "median_s": samples[0],
                    "quartiles_s": samples,
                    "peak_bytes": 10**6,
                }
                made["amount"] = 1e9
                rows.append(made)
    return {"rows": rows}


def test_lines_are_drawn_with_the_floor():
    benchmark = tables.benchmark_of("info_nce")
    results = growing("info_nce", {256, 512, 8192})
    with mpl.rc_context(figures.STYLE):
        figure = figures.lines(benchmark, results, "time")
        axes = figure.axes[0]
    shown = {line.get_label(): line for line in axes.lines}
    assert set(shown) == {c.label for c in benchmark.contenders if c.name != "product"} | {
        "floor of matrix products"
    }
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert list(shown["ours"].get_xdata()) == [256, 512, 8192]
    assert list(shown["lightly"].get_xdata()) == [256, 512]
    rate = 1e9 / targets.find(results, "N = 512", "product")["median_s"]
    floor = dict(zip(*shown["floor of matrix products"].get_data(), strict=True))
    assert floor[512] == pytest.approx(2 * 2 * 1024**2 * 128 / rate)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names.index("lightly") < names.index("plain formula") < names.index("ours")


def test_figures_do_not_depend_on_when_they_are_drawn(measured):
    once, again = (figures.draw(BENCHMARK, measured) for _ in range(2))
    assert once == again
    assert set(once) == {"stand_in_benchmark"}
    assert "<svg" in once["stand_in_benchmark"]


def test_publishing_fills_the_readme(tmp_path, measured):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    made = {"environment": measured["environment"], "date": "2030-01-02T03:04:05Z"}
    for name, sizes in (("info_nce", {1024, 4096}), ("bernoulli", {4096})):
        (results / f"{name}.json").write_text(json.dumps({**growing(name, sizes), **made}))
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table: benchmarks/results/table.md -->\nold\n<!-- end of table -->\nb\n")
    publish.publish(tmp_path)
    text = readme.read_text()
    assert text.startswith("a\n<!-- table")
    assert text.endswith("<!-- end of table -->\nb\n")
    assert "old" not in text
    assert (results / publish.SUMMARY).read_text() in text
    assert "| N = 4096 | 1.68 s |" in text
    assert "4096 x 2048 | 1.68 s | 5.03 s, torch.distributions | 0.333x | at most 0.333x |" in text
    assert "2030-01-02." in text
    assert "](benchmarks/results/info_nce_time.svg)" in text
    assert "Not measured yet: `gather`, `gaussian`, `step`, `augment`." in text
    assert (results / "info_nce_memory.svg").read_text().startswith("<?xml")
    publish.publish(tmp_path)
    assert readme.read_text() == text
