"""What a run leaves for its reader, from results made by hand."""

import copy
import io
from importlib import metadata

import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from recipes import report
from rich.console import Console

COUNTS = [1, 2, 5, 11, 16]


def scores(dim, probe, knn):
    return {"dim": dim, "probe": probe, "probe_f1": probe, "probe_c": 0.01, "knn": knn}


def latent(f1):
    return {"counts": COUNTS, "f1": [f1 * i / 5 for i in range(1, 6)], "ranking": list(range(16))}


RESULTS = {
    "config": {"encoder": "small", "epochs": 3, "seed": 4},
    "data": {"name": "colours", "train": 5000, "test": 1000, "classes": 10, "sha256": "0"},
    "baselines": {
        "pixels": {"h": scores(3072, 0.372, 0.281)},
        "untrained": {"h": scores(256, 0.401, 0.302)},
    },
    "models": {
        "simclr": {"h": scores(256, 0.514, 0.4567), "epoch_losses": [4.0, 3.5, 3.25]},
        "bern": {
            "h": scores(256, 0.3871, 0.41),
            "z": scores(16, 0.25, 0.2),
            "forest": latent(0.2345),
            "bits": {
                "share_of_ones": 0.4812,
                "share_of_ones_by_bit": [0.9] * 8 + [0.0624] * 8,
                "entropy": 0.4,
                "correlation": 0.125,
                "compression_ratio": 1536.0,
            },
            "epoch_losses": [4.1, 3.9, 3.8],
        },
        "gauss": {
            "h": scores(256, 0.401, 0.4),
            "z": scores(16, 0.31, 0.3),
            "forest": latent(0.3),
            "epoch_losses": [4.2, 4.0, 3.7],
        },
    },
}
ROWS = [
    ("raw pixels", "pixels", "3072", "37.2", "28.1", "-", "-", "-"),
    ("untrained encoder", "h", "256", "40.1", "30.2", "-", "-", "-"),
    ("SimCLR", "h", "256", "51.4", "45.7", "-", "-", "-"),
    ("StochCon Bern", "h", "256", "38.7", "41.0", "-", "-", "-"),
    ("StochCon Bern", "z, bits", "16", "25.0", "20.0", "23.4", "48.1", "1536x"),
    ("StochCon Gauss", "h", "256", "40.1", "40.0", "-", "-", "-"),
    ("StochCon Gauss", "z, mean", "16", "31.0", "30.0", "30.0", "-", "-"),
]


@pytest.fixture
def results():
    return copy.deepcopy(RESULTS)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert not plt.get_fignums()


def only(results, *names):
    """Results of a run of these models alone."""
    return {**results, "models": {name: results["models"][name] for name in names}}


def test_rows(results):
    assert report.rows(results) == ROWS
    assert all(len(row) == 1 + len(report.COLUMNS) for row in ROWS)


def test_rows_of_a_run_of_simclr_alone(results):
    assert report.rows(only(results, "simclr")) == ROWS[:3]


def test_a_missing_score_is_a_dash(results):
    del results["baselines"]["pixels"]["h"]["knn"]
    assert report.rows(results)[0][4] == "-"


@pytest.mark.parametrize(("ratio", "said"), [(12.0, "12x"), (24.576, "24.576x"), (192.0, "192x")])
def test_the_compression_ratio_is_said_in_full(results, ratio, said):
    results["models"]["bern"]["bits"]["compression_ratio"] = ratio
    assert report.rows(results)[4][-1] == said


def test_markdown(results):
    lines = report.markdown_table(results).splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == ("model", *report.COLUMNS)
    assert set(cells[1]) == {"---"}
    assert cells[2:] == ROWS
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_the_title_says_what_was_trained_on_what(results):
    assert report.title(results) == (
        "colours: small encoder, 3 epochs on 5,000 images, seed 4, evaluated on 1,000"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_shows_every_word(results, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(report.terminal_table(results))
    shown = console.file.getvalue()
    assert "…" not in shown
    for word in " ".join((*report.COLUMNS, *sum(ROWS, ()))).split():
        assert word in shown
    assert max(len(line) for line in shown.splitlines()) <= width


# ---- against the baselines ------------------------------------------------------------------------------------


def test_sentences_say_above_and_below(results):
    assert report.against_baselines(results)[:2] == [
        "SimCLR, linear probe on h: 14.2 points above raw pixels and 11.3 points above untrained encoder",
        "StochCon Bern, linear probe on h: 1.5 points above raw pixels and 1.4 points below untrained encoder",
    ]


def test_a_sentence_for_a_tie_says_neither(results):
    (sentence,) = report.against_baselines(only(results, "gauss"))
    assert sentence.startswith("StochCon Gauss, linear probe on h: 2.9 points above raw pixels and ")
    of_the_tie = sentence.split(" and ")[1]
    assert "untrained encoder" in of_the_tie
    assert "below" not in of_the_tie
    assert "above" not in of_the_tie


def test_a_missing_baseline_is_not_compared_with(results):
    del results["baselines"]["untrained"]
    assert report.against_baselines(only(results, "simclr")) == [
        "SimCLR, linear probe on h: 14.2 points above raw pixels"
    ]


# ---- figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("simclr", "bern", "gauss"), ["loss.png", "f1_against_bits.png", "bit_usage.png"]),
        (("simclr",), ["loss.png"]),
        (("gauss",), ["loss.png", "f1_against_bits.png"]),
        (("bern",), ["loss.png", "f1_against_bits.png", "bit_usage.png"]),
    ],
)
def test_the_figures_that_the_models_allow_are_drawn(results, tmp_path, models, names):
    paths = report.figures(only(results, *models), tmp_path / "below")
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "below").iterdir()) == sorted(names)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (900, 540)
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


def test_figures_of_the_same_results_are_the_same_files(results, tmp_path):
    paths = [report.figures(results, tmp_path / name) for name in ("a", "b")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*paths, strict=True))


@pytest.fixture
def axes():
    """Axes of a figure, closed afterwards."""
    yield lambda figure: figure.axes[0]
    plt.close("all")


def lines_of(axes):
    """Label of each line with a label of its own: its points."""
    return {
        line.get_label(): [tuple(point) for point in line.get_xydata().tolist()]
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_the_loss_curve(results, axes):
    drawn = axes(report.loss_figure(results))
    assert lines_of(drawn) == {
        "SimCLR": [(1, 4.0), (2, 3.5), (3, 3.25)],
        "StochCon Bern": [(1, 4.1), (2, 3.9), (3, 3.8)],
        "StochCon Gauss": [(1, 4.2), (2, 4.0), (3, 3.7)],
    }
    styles = {(line.get_color(), line.get_linestyle()) for line in drawn.lines}
    assert len({colour for colour, _ in styles}) == len({style for _, style in styles}) == 3
    assert [t.get_text() for t in drawn.get_legend().get_texts()] == list(lines_of(drawn))
    assert drawn.get_xlabel() == "epoch"
    assert "nats" in drawn.get_ylabel()


def test_f1_against_bits(results, axes):
    drawn = axes(report.forest_figure(results))
    lines = lines_of(drawn)
    assert list(lines) == ["StochCon Bern (bits)", "StochCon Gauss (real numbers)"]
    for (_, points), name in zip(lines.items(), ("bern", "gauss"), strict=True):
        expected = [100 * f1 for f1 in results["models"][name]["forest"]["f1"]]
        assert [x for x, _ in points] == COUNTS
        assert [y for _, y in points] == pytest.approx(expected)
    (chance,) = (line for line in drawn.lines if line.get_label().startswith("_"))
    assert set(chance.get_ydata()) == {10.0}
    assert [t.get_text() for t in drawn.get_xticklabels()] == [str(count) for count in COUNTS]
    assert drawn.get_ylim()[0] == 0


def test_bit_usage(results, axes):
    drawn = axes(report.usage_figure(results["models"]["bern"]["bits"]))
    assert [bar.get_height() for bar in drawn.patches] == pytest.approx([6.24] * 8 + [90.0] * 8)
    assert drawn.get_ylim() == (0, 100)
    assert drawn.get_title() == ("mean 48.1 % ones, 0.400 bits of entropy a bit, mean |correlation| 0.12")


# ---- conditions -----------------------------------------------------------------------------------------------


def test_the_environment_names_versions_and_hardware(monkeypatch):
    here = report.environment()
    assert here["packages"]["torch"] == metadata.version("torch")
    assert here["packages"]["stochastic-bottleneck"] == metadata.version("stochastic-bottleneck")
    assert f"{torch.get_num_threads()} threads" in here["machine"]
    assert here["gpu"] is None or torch.cuda.is_available()


def test_without_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.environment()["commit"] is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.environment()["commit"] is None
