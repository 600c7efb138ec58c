"""What a run leaves for its reader, from results made by hand."""

import copy
import io
from importlib import metadata

import pytest
import torch
from matplotlib.patches import StepPatch
from PIL import Image
from publish import publish
from recipes import figures, paper, report
from recipes.files import write_json
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
HEADER = ("model", "features", "width", "probe %", "kNN %", "forest F1 %", "ones %", "compression")
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


@pytest.fixture
def labelled(results):
    """Results of a run of all four models, fine-tuned and tracked."""
    for i, name in enumerate(("simclr", "bern", "gauss")):
        model = results["models"][name]
        of_labels = {
            "accuracy": 0.9 + i / 100,
            "top5": 0.99,
            "seconds": 3.0,
            "epoch_losses": [2.0, 1.0 - i / 10],
        }
        model["finetuned"] = of_labels
        model["metrics"] = {
            "step": [2, 4, 6],
            "epoch": [1, 2, 3],
            "loss": [4.0, 3.5, 3.25],
            "knn": [None, 0.2, 0.3 + i / 10],
        }
    results["models"]["bern"]["metrics"] |= {
        "share_of_ones": [0.4, 0.45, 0.5],
        "bit_entropy": [0.9, 0.95, 1.0],
        "latent_variance": [0.2, 0.22, 0.25],
        "kl": [9.0, 7.0, 5.0],
    }
    results["models"]["gauss"]["metrics"] |= {
        "posterior_variance": [0.5, 0.25, 0.125],
        "latent_variance": [1.0, 1.1, 1.2],
        "kl": [3.0, 2.0, None],
    }
    trained = {"accuracy": 0.8765, "top5": 0.98, "seconds": 9.0, "epoch_losses": [2.2, 2.0, 1.5]}
    results["models"]["supervised"] = {
        "trained": trained,
        "training_seconds": 9.0,
        "epoch_losses": [2.2, 2.0, 1.5],
    }
    return results


def only(results, *names):
    """Results of a run of these models alone."""
    return {**results, "models": {name: results["models"][name] for name in names}}


def column(results, name):
    """A column of the table, its rows' models and features before it."""
    header, *rows = report.table(results)
    return {row[:2]: row[header.index(name)] for row in rows}


# ---- table ----------------------------------------------------------------------------------------------------


def test_the_table(results):
    assert report.table(results) == [HEADER, *ROWS]


def test_columns_that_no_row_fills_are_left_out(results):
    assert report.table(only(results, "simclr")) == [HEADER[:5], *(row[:5] for row in ROWS[:3])]


def test_a_missing_score_is_a_dash(results):
    del results["baselines"]["pixels"]["h"]["knn"]
    assert report.table(results)[1][4] == "-"


def test_fine_tuning_stands_beside_h_and_the_supervised_model_has_a_row(labelled):
    assert column(labelled, "fine-tuned %") == {
        ("raw pixels", "pixels"): "-",
        ("untrained encoder", "h"): "-",
        ("SimCLR", "h"): "90.0",
        ("StochCon Bern", "h"): "91.0",
        ("StochCon Bern", "z, bits"): "-",
        ("StochCon Gauss", "h"): "92.0",
        ("StochCon Gauss", "z, mean"): "-",
        ("Supervised", "h"): "87.6",
    }
    assert column(labelled, "probe %")["Supervised", "h"] == "-"
    assert column(labelled, "width")["Supervised", "h"] == "-"


def test_the_top_5_where_it_is_there_and_says_something(labelled):
    labelled["models"]["bern"]["z"]["probe_top5"] = 0.7654
    assert not any("top-5" in column for column in report.table(labelled)[0])
    labelled["data"]["classes"] = 11
    assert column(labelled, "fine-tuned top-5 %")["Supervised", "h"] == "98.0"
    shown = column(labelled, "probe top-5 %")
    assert shown["StochCon Bern", "z, bits"] == "76.5"
    assert set(shown.values()) == {"-", "76.5"}


def test_a_run_without_baselines_and_forests(labelled):
    labelled["baselines"] = {}
    for model in labelled["models"].values():
        model.pop("forest", None)
    header, *rows = report.table(labelled)
    assert "forest F1 %" not in header
    assert [row[0] for row in rows] == [
        "SimCLR",
        "StochCon Bern",
        "StochCon Bern",
        "StochCon Gauss",
        "StochCon Gauss",
        "Supervised",
    ]
    assert report.against_baselines(labelled) == []


@pytest.mark.parametrize(
    ("ratio", "said"), [(12.0, "12x"), (24.576, "24.576x"), (192.0, "192x"), (587.99999999, "588.00x")]
)
def test_the_compression_ratio_is_said_in_full(results, ratio, said):
    results["models"]["bern"]["bits"]["compression_ratio"] = ratio
    assert column(results, "compression")["StochCon Bern", "z, bits"] == said


@pytest.mark.parametrize(
    ("image", "code", "said"),
    [
        (224 * 224 * 3, 256, "588x"),
        (32 * 32 * 3, 16, "192x"),
        (32 * 32 * 3, 2, "1536x"),
        (150_527, 256, "588.00x"),
    ],
)
def test_compression_follows_from_the_bytes_of_the_tensors(results, image, code, said):
    bits = results["models"]["bern"]["bits"]
    bits |= {"image_bytes": image, "code_bytes": code, "compression_ratio": 1.0}
    assert column(results, "compression")["StochCon Bern", "z, bits"] == said


def test_markdown(results):
    lines = report.markdown_table(results).splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == HEADER
    assert set(cells[1]) == {"---"}
    assert cells[2:] == ROWS
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_the_title_says_what_was_trained_on_what(results):
    assert report.title(results) == (
        "colours: small encoder, 3 epochs on 5,000 images, seed 4, evaluated on 1,000"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_shows_every_cell(labelled, width):
    labelled["data"]["classes"] = 1000
    for model in labelled["models"].values():
        if "h" in model:
            model["h"]["probe_top5"] = 0.75
    console = Console(file=io.StringIO(), width=width)
    console.print(report.terminal_table(labelled))
    shown = console.file.getvalue()
    assert "…" not in shown
    header, *rows = report.table(labelled)
    for row in rows:
        for name, cell in zip(header, row, strict=True):
            assert cell in shown or name == "width"
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


# ---- beside the paper -----------------------------------------------------------------------------------------


def of_data(labelled, **changes):
    return {**labelled, "data": {**labelled["data"], **changes}}


def test_our_figures_and_the_papers_are_told_apart(labelled):
    rows = paper.beside(of_data(labelled, name="CIFAR-10 (JPEG copy)", test=10_000))
    assert [dict(zip(paper.COLUMNS, row, strict=True)) for row in rows[1:]] == [
        {
            "model": "StochCon Bern",
            "fine-tuned": "91.00",
            "paper's fine-tuned": "96.42",
            "frozen, h": "38.71",
            "frozen, z": "25.00",
            "paper's frozen": "91.96",
        },
        {
            "model": "StochCon Gauss",
            "fine-tuned": "92.00",
            "paper's fine-tuned": "96.08",
            "frozen, h": "40.10",
            "frozen, z": "31.00",
            "paper's frozen": "92.40",
        },
        {
            "model": "Supervised",
            "fine-tuned": "87.65",
            "paper's fine-tuned": "95.00",
            "frozen, h": "-",
            "frozen, z": "-",
            "paper's frozen": "-",
        },
    ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"name": "CIFAR-10", "test": 10_000}, "CIFAR-10"),
        ({"name": "cifar10-jpeg.tar.gz", "test": 10_000}, "CIFAR-10"),
        ({"name": "CIFAR-100", "test": 10_000}, None),
        ({"name": "colours", "test": 10_000}, None),
        ({"name": "CIFAR-10 sample (JPEG copy)"}, None),  # a thousand of its images
        ({"name": "ILSVRC", "test": 50_000, "classes": 1000}, "ImageNet"),
        ({"name": "imagenet, evaluated on its training images", "classes": 1000}, None),
    ],
)
def test_only_a_whole_test_set_is_compared_on(labelled, changes, found):
    results = of_data(labelled, **changes)
    assert paper.data_set(results["data"]) == found
    assert bool(paper.beside(results)) is (found is not None)


# ---- figures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("simclr", "bern", "gauss"), ["loss", "f1_against_bits", "bit_usage"]),
        (("simclr",), ["loss"]),
        (("gauss",), ["loss", "f1_against_bits"]),
        (("bern",), ["loss", "f1_against_bits", "bit_usage"]),
    ],
)
def test_the_figures_that_the_models_allow_are_drawn(results, tmp_path, models, names):
    pictures = figures.draw(only(results, *models))
    paths = figures.save(pictures, tmp_path / "below")
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert sorted(path.stem for path in (tmp_path / "below").iterdir()) == sorted(names)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (900, 540)
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("supervised",), ["classification"]),
        (("simclr", "supervised"), ["loss", "knn", "classification"]),
        (("gauss",), ["loss", "knn", "f1_against_bits", "latent", "classification"]),
        (
            ("simclr", "bern", "gauss", "supervised"),
            ["loss", "knn", "f1_against_bits", "bit_usage", "latent", "classification"],
        ),
    ],
)
def test_figures_of_what_was_tracked_and_trained_on_labels(labelled, models, names):
    pictures = figures.draw(only(labelled, *models))
    assert [picture.name for picture in pictures] == names
    for picture in pictures:
        assert picture.caption
        assert len(picture.alt) > 20


def test_figures_of_the_same_results_are_the_same_files(labelled):
    once, again = (
        [draw(copy.deepcopy(labelled)) for draw in (figures.bit_usage, figures.latent)] for _ in range(2)
    )
    assert [picture.png() for picture in once] == [picture.png() for picture in again]
    assert [picture.svg() for picture in once] == [picture.svg() for picture in again]


def axes_of(picture):
    return picture.figure.axes[0]


def lines_of(axes):
    """Label of each line with a label of its own: its points."""
    return {
        line.get_label(): [tuple(point) for point in line.get_xydata().tolist()]
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_the_loss_curve(labelled):
    drawn = axes_of(figures.loss(labelled))
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


def test_colours_and_dashes_tell_all_models_apart():
    assert set(figures.STYLES) == {"simclr", "bern", "gauss", "supervised"}
    for part in zip(*figures.STYLES.values(), strict=True):
        assert len(set(part)) == 4


def test_the_loss_on_labels(labelled):
    assert lines_of(axes_of(figures.classification(labelled))) == {
        "SimCLR": [(1, 2.0), (2, 1.0)],
        "StochCon Bern": [(1, 2.0), (2, 0.9)],
        "StochCon Gauss": [(1, 2.0), (2, 0.8)],
        "Supervised": [(1, 2.2), (2, 2.0), (3, 1.5)],
    }


def test_a_single_epoch_is_a_point_that_can_be_seen(labelled):
    labelled["models"]["supervised"]["trained"]["epoch_losses"] = [2.0]
    lines = {line.get_label(): line for line in axes_of(figures.classification(labelled)).lines}
    assert lines["Supervised"].get_marker() == "o"
    assert lines["SimCLR"].get_marker() == ""


def test_neighbours_by_epoch_without_the_empty_cells(labelled):
    picture = figures.knn(labelled)
    assert lines_of(axes_of(picture))["StochCon Bern"] == [(2, 20.0), (3, 40.0)]
    assert "SimCLR 30%, StochCon Bern 40%, StochCon Gauss 50%" in picture.alt


def test_the_latent_over_training(labelled):
    picture = figures.latent(labelled)
    panels = {axes.get_ylabel(): lines_of(axes) for axes in picture.figure.axes if axes.get_ylabel()}
    assert panels == {
        "ones (%)": {"StochCon Bern": [(2, 40.0), (4, 45.0), (6, 50.0)]},
        "entropy a bit (bits)": {"StochCon Bern": [(2, 0.9), (4, 0.95), (6, 1.0)]},
        "posterior's variance": {"StochCon Gauss": [(2, 0.5), (4, 0.25), (6, 0.125)]},
        "variance of z": {
            "StochCon Bern": [(2, 0.2), (4, 0.22), (6, 0.25)],
            "StochCon Gauss": [(2, 1.0), (4, 1.1), (6, 1.2)],
        },
        "KL (nats an image)": {
            "StochCon Bern": [(2, 9.0), (4, 7.0), (6, 5.0)],
            "StochCon Gauss": [(2, 3.0), (4, 2.0)],
        },
    }
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["StochCon Bern", "StochCon Gauss"]


def test_f1_against_bits(results):
    drawn = axes_of(figures.f1_against_bits(results))
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


def test_bit_usage(results):
    drawn = axes_of(figures.bit_usage(results))
    (steps,) = (patch for patch in drawn.patches if isinstance(patch, StepPatch))
    assert steps.get_data().values == pytest.approx([6.24] * 8 + [90.0] * 8)
    assert drawn.get_ylim() == (0, 100)
    assert drawn.get_title() == ("mean 48.1 % ones, 0.400 bits of entropy a bit, mean |correlation| 0.12")


# ---- what is left ---------------------------------------------------------------------------------------------


def test_a_run_leaves_table_figures_and_page(labelled, tmp_path):
    paths = report.write(labelled, tmp_path)
    assert [path.name for path in paths] == [
        "table.md",
        "loss.png",
        "knn.png",
        "f1_against_bits.png",
        "bit_usage.png",
        "latent.png",
        "classification.png",
        "report.html",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert report.markdown_table(labelled) in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("name", "passed_on"), [("CIFAR-10 (JPEG copy)", True), ("ILSVRC2012", False)])
def test_images_are_published_only_where_they_may_be(labelled, tmp_path, name, passed_on):
    run, target = tmp_path / "run", tmp_path / "results" / "of_it"
    write_json(run / "results.json", of_data(only(labelled, "supervised"), name=name))
    Image.new("RGB", (4, 4)).save(run / "views.png")
    publish(run, target)
    assert (target / "views.png").exists() is passed_on
    assert ("image/png" in (target / "report.html").read_text()) is passed_on
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    publish(target, target)  # in place, after a change of tables or figures
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


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
