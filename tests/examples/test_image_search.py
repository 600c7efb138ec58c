"""The search example from the command line: build, query, compare, and errors; names and terminals of any encoding."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import image_codes
import image_search
import numpy as np
import pytest
from PIL import Image
from small_images import photograph, write_folder, write_model

from stochastic_bottleneck import codes
from stochastic_bottleneck.hub import HubModel, preprocessing

EXAMPLE = Path(image_search.__file__)
COMMANDS = image_search.Build | image_search.Query | image_search.Compare


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model, images and their index."""
    where = tmp_path_factory.mktemp("search")
    write_folder(where / "colours", 6, 3)
    write_model(where / "model")
    arguments = ["--images", where / "colours", "--model", where / "model", "--index", where / "index"]
    assert image_codes.main(COMMANDS, "", ["build", *map(str, arguments)]) == 0
    return where


@pytest.fixture
def call(capsys):
    def called(*arguments):
        code = image_codes.main(COMMANDS, "", [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return called


def test_build_writes_indexes_and_their_description(run):
    about = json.loads((run / "index" / "index.json").read_text())
    assert shlex.split(about["command"])[0] == "python"
    assert about["environment"]["packages"]["faiss-cpu"]
    assert len(about["names"]) == 27
    assert about["sha256"]["model.safetensors"] == image_codes.digest(run / "model" / "model.safetensors")


def test_a_query_finds_itself_first_and_then_what_brute_force_finds(run, call, tmp_path):
    path = run / "colours" / "test" / "red" / "0007.png"
    code, printed = call("query", "--index", run / "index", "--k", 5, "--figure", tmp_path / "q.png", path)
    assert code == 0
    model = HubModel.from_pretrained(run / "model")
    names = json.loads((run / "index" / "index.json").read_text())["names"]
    images = [preprocessing(model)(Image.open(run / "colours" / name)) for name in names]
    bits = np.stack([model.encode(image[None], "bits")[0].numpy() for image in images])
    distances = codes.hamming_distance(bits[names.index("test/red/0007.png")], bits)
    assert f"{path} 0 bits test/red/0007.png" in printed
    for distance in np.sort(distances)[:5]:
        assert f" {distance} bits " in printed
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    assert call("query", "--index", run / "index", "--kind", "hnsw", path, path)[0] == 0
    assert (run / "index" / "query.png").exists()


def test_the_figure_shows_a_few_of_many_neighbours_or_is_left_out(run, call, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(image_codes, "draw_images", lambda path, lines: drawn.append(lines))
    path = run / "colours" / "test" / "red" / "0007.png"
    _, printed = call("query", "--index", run / "index", "--k", 27, path)
    assert printed.count(" bits ") == 27
    assert [len(cells) for _, cells in drawn.pop()] == [1 + image_search.SHOWN]
    call("query", "--index", run / "index", "--shown", 0, path)
    assert not drawn


def test_a_comparison_writes_table_numbers_and_figure(run, call, tmp_path):
    code, printed = call("compare", "--index", run / "index", "--k", 1, 4, "--out", tmp_path)
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    float_, flat, hnsw = results["rows"]
    assert [row["index"] for row in (float_, flat, hnsw)] == ["h, exact", "bits, exact", "bits, HNSW"]
    assert (float_["recall @4 %"], flat["bytes an image"], float_["bytes an image"]) == (100, 3, 4 * 48)
    assert flat["GB per 100 million"] == 0.3
    assert hnsw["bytes an image"] == (run / "index" / "hnsw.faiss").stat().st_size / 27
    assert all(0 <= row[key] <= 100 for row in results["rows"] for key in row if key.endswith("%"))
    assert results["own_left_out"]
    assert results["queries"] == 27
    assert "| bits, exact | 3 |" in printed
    assert "| recall @1 % | recall @4 % | precision @1 % | precision @4 % |" in printed
    assert (tmp_path / "neighbours.png").read_bytes().startswith(b"\x89PNG")


def test_recall_and_precision_equal_slow_counts(run, call, tmp_path):
    assert call("compare", "--index", run / "index", "--k", 3, "--out", tmp_path)[0] == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    index = image_search.Compare(index=run / "index")
    classes = image_search.class_names(index.names)
    found = {}
    for kind in ("float", "flat"):
        vectors = index.faiss[kind].reconstruct_n(0, 27)
        found[kind] = index.nearest(kind, vectors, 3, np.arange(27))[1]
        assert not (found[kind] == np.arange(27)[:, None]).any()
    shared = np.mean([len({*a} & {*b}) / 3 for a, b in zip(found["float"], found["flat"], strict=True)])
    right = np.mean([[classes[n] == classes[i] for n in near] for i, near in enumerate(found["flat"])])
    assert rows[1]["recall @3 %"] == pytest.approx(100 * shared)
    assert rows[1]["precision @3 %"] == pytest.approx(100 * right)


def test_queries_from_another_folder(run, call, tmp_path):
    arguments = "compare", "--index", run / "index", "--queries"
    assert call(*arguments, run / "colours", "--out", tmp_path / "a")[0] == 0
    row = json.loads((tmp_path / "a" / "results.json").read_text())["rows"][0]
    assert row["precision @1 %"] == 100  # itself
    other = shutil.copytree(run / "colours" / "test", tmp_path / "other")
    (other / "red").rename(other / "crimson")  # a class that the index does not have
    (other / "blue" / "damaged.png").write_bytes(b"no image")
    code, printed = call(*arguments, other, "--count", 5, "--k", 2, "--out", tmp_path / "b")
    assert code == 0
    assert "damaged.png" in printed
    assert "1 of 10 images left out" in printed
    assert json.loads((tmp_path / "b" / "results.json").read_text())["queries"] == 5


def test_a_flat_folder_has_no_classes(run, call, tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(4):
        photograph(i, 40, 30).save(tmp_path / "flat" / f"{i}.jpg")
    arguments = "--images", tmp_path / "flat", "--model", run / "model", "--index", tmp_path / "index"
    assert call("build", *arguments)[0] == 0
    assert call("compare", "--index", tmp_path / "index", "--k", 2)[0] == 0
    row = json.loads((tmp_path / "index" / "compare" / "results.json").read_text())["rows"][0]
    assert not any("precision" in key for key in row)


def test_file_names_and_terminals_of_any_encoding(run, tmp_path):
    """Dollar signs that matplotlib would read as mathematics, and names that are not UTF-8, on an ASCII terminal."""
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    names = [b"a$_$b.png", b"caf\xe9.png", "\N{SNOWMAN}.png".encode()]
    for i, name in enumerate(names):
        with open(folder + b"/" + name, "wb") as file:
            photograph(i, 32, 32).save(file, "PNG")
    with open(folder + b"/bad\xff.png", "wb") as file:
        file.write(b"no image")
    commands = f"""
        import sys; sys.path[:0] = [{str(EXAMPLE.parent)!r}, {str(EXAMPLE.parents[1])!r}]
        import image_codes, image_search as s, os
        folder, model, index = os.fsencode(sys.argv[1]), sys.argv[2], sys.argv[3]
        images = [os.fsdecode(folder + b"/" + name) for name in {names!r}]
        for arguments in (
            ["build", "--images", sys.argv[1], "--model", model, "--index", index],
            ["query", "--index", index, "--k", "3", *images],
            ["compare", "--index", index, "--k", "1"],
        ):
            assert image_codes.main(s.Build | s.Query | s.Compare, "", arguments) == 0
    """
    ascii_terminal = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", textwrap.dedent(commands), folder, run / "model", tmp_path / "index"]
    done = subprocess.run(command, env=os.environ | ascii_terminal, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii()
    for text in (rb"bad\udcff.png: not an image", rb"bits  a$_$b.png", rb"bits  caf\udce9.png", b"bits, exact"):
        assert text in done.stdout
    assert (tmp_path / "index" / "query.png").exists()


def test_errors_name_the_argument_and_the_fix(run, call, tmp_path):
    index, model, colours = run / "index", run / "model", run / "colours"
    new = ["--index", tmp_path / "new"]
    damaged = shutil.copytree(index, tmp_path / "damaged")
    (damaged / "flat.faiss").write_bytes((damaged / "flat.faiss").read_bytes()[:-1])
    gauss = write_model(tmp_path / "gauss", kind="gauss")
    unknown = write_model(tmp_path / "unknown", pretrained_cfg=None)
    (tmp_path / "empty").mkdir()
    image = colours / "test" / "red" / "0007.png"
    for arguments, message in (
        (["build", "--images", colours, "--model", model, "--index", index], "has an index already"),
        (["build", "--images", tmp_path / "empty", "--model", model, *new], "no images in"),
        (["build", "--images", colours, "--model", run / "no", *new], "there is no folder"),
        (["build", "--images", colours, "--model", colours, *new], "no folder that HubModel.save_pretrained wrote"),
        (["build", "--images", colours, "--model", gauss, *new], "--model must have bits"),
        (["build", "--images", colours, "--model", unknown, *new], "must have a pretrained_cfg"),
        (["query", "--index", index, tmp_path / "no.png"], "no such file"),
        (["query", "--index", index], "query needs at least one image"),
        (["query", "--index", index, "--images", colours / "test", image], "no such file"),
        (["query", "--index", index, "--model", write_model(tmp_path / "m", seed=1), image], "not as it was"),
        (["query", "--index", damaged, image], "flat.faiss is missing or not as it was"),
        (["compare", "--index", index, "--k", 27], "--k must be between 1 and the 26 other images"),
        (["compare", "--index", index, "--k", 0], "--k must be between 1 and the 26 other images"),
        (["compare", "--index", tmp_path], "has no complete index"),
    ):
        code, printed = call(*arguments)
        assert (code, message in printed, "Traceback" in printed) == (2, True, False), (arguments, printed)


def test_a_moved_index_takes_its_model_and_images_from_where_they_are_now(run, call, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    about = json.loads((moved / "index" / "index.json").read_text()) | {"model": "gone", "images": "gone"}
    (moved / "index" / "index.json").write_text(json.dumps(about))
    image = moved / "colours" / "test" / "red" / "0007.png"
    given = "--model", moved / "model", "--images", moved / "colours"
    assert call("query", "--index", moved / "index", *given, image)[0] == 0
