"""The search example from the command line: built, asked, compared, gone on with and refused."""

import json
import shlex
import shutil

import image_search
import numpy as np
import pytest
from recipes import encoding, search
from small_images import write_folder
from small_search import write_run

from stochastic_bottleneck import codes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model, images and their index."""
    where = tmp_path_factory.mktemp("search")
    write_folder(where / "colours", 6, 3)
    write_run(where / "run")
    arguments = ["--images", where / "colours", "--model", where / "run" / "bern", "--index", where / "index"]
    assert image_search.main(["build", *map(str, arguments)]) == 0
    return where


@pytest.fixture
def call(capsys):
    def called(*arguments):
        try:
            code = image_search.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's way out
            code = stop.code
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return called


def test_a_build_leaves_a_finished_index_and_no_parts(run):
    left = {path.name for path in (run / "index").iterdir() if path.is_file()}
    assert {"index.json", "images.csv", "float.faiss", "flat.faiss", "hnsw.faiss"} <= left
    assert not (run / "index" / "parts").exists()
    about = json.loads((run / "index" / "index.json").read_text())
    assert shlex.split(about["command"])[:3] == ["python", "examples/image_search.py", "build"]
    assert about["images"]["count"] == 27
    assert about["images"]["classes"] == ["blue", "green", "red"]


def test_a_query_finds_itself_first_and_then_what_brute_force_finds(run, call, tmp_path):
    path = run / "colours" / "test" / "red" / "0007.png"
    code, said = call("query", "--index", run / "index", "--k", 5, "--figure", tmp_path / "q.png", path)
    assert code == 0
    trained = encoding.read_model(run / "run" / "bern")
    index = search.load(run / "index", ["flat"])
    bits = index.by_kind["flat"].reconstruct_n(0, 27)
    every = codes.hamming_distance(encoding.encode_files(trained, [path])[0], bits)
    assert every[index.names.index("test/red/0007.png")] == 0
    for distance in np.sort(every)[:5]:
        assert f"{distance} of 20 bits" in said
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    assert call("query", "--index", run / "index", "--kind", "hnsw", path, path)[0] == 0
    assert (run / "index" / "query.png").exists()


def test_a_comparison_leaves_table_numbers_and_figure(run, call, tmp_path):
    code, said = call("compare", "--index", run / "index", "--k", 1, 4, "--out", tmp_path)
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["index"] for row in results["rows"]] == ["h, exact", "bits, exact", "bits, HNSW"]
    assert results["queries"]["left_out_of_their_own_neighbours"]
    assert results["queries"]["count"] == 27
    assert results["environment"]["packages"]["torch"]
    assert results["index"]["model"]["sha256"]
    assert "100 million images would take 300,000,000 bytes of bits (3 each)" in said
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].endswith("| recall@1 % | recall@4 % | precision@1 % | precision@4 % |")
    assert len(lines) == 5
    assert (tmp_path / "neighbours.png").read_bytes().startswith(b"\x89PNG")


def test_queries_from_elsewhere_find_the_same_image_and_class(run, call, tmp_path):
    assert (
        call("compare", "--index", run / "index", "--queries", run / "colours", "--out", tmp_path / "a")[0]
        == 0
    )
    row = json.loads((tmp_path / "a" / "results.json").read_text())["rows"][0]
    assert row["precision"]["1"] == 1.0  # itself
    other = shutil.copytree(run / "colours" / "test", tmp_path / "other")
    (other / "red").rename(other / "crimson")  # a class that the index has not
    (other / "blue" / "damaged.png").write_bytes(b"no image")
    code, said = call(
        "compare",
        "--index",
        run / "index",
        "--queries",
        other,
        "--count",
        5,
        "--k",
        2,
        "--out",
        tmp_path / "b",
    )
    assert code == 0
    assert "left out: cannot read the image" in said
    assert "1 image left out" in said
    assert json.loads((tmp_path / "b" / "results.json").read_text())["queries"]["count"] == 5


def test_a_stopped_build_goes_on(run, call, tmp_path, monkeypatch):
    arguments = ["build", "--images", run / "colours", "--model", run / "run" / "bern", "--index", tmp_path]
    monkeypatch.setattr(encoding, "BATCH", 10)
    monkeypatch.setattr(encoding, "PART", 10)
    plain, seen = encoding.encode_pixels, []

    def stops(trained, images):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return plain(trained, images)

    monkeypatch.setattr(encoding, "encode_pixels", stops)
    code, said = call(*arguments)
    assert code == 130
    assert "the same command goes on from there" in said
    assert "holds no finished index" in call("compare", "--index", tmp_path)[1]
    seen.clear()
    assert call(*arguments)[0] == 0
    assert seen == [7]  # what was left
    one, other = search.load(run / "index"), search.load(tmp_path)
    queries = one.by_kind["flat"].reconstruct_n(0, 27)
    assert np.array_equal(queries, other.by_kind["flat"].reconstruct_n(0, 27))
    assert one.names == other.names


def test_what_the_user_can_mend_is_said(run, call, tmp_path):
    index, model = run / "index", run / "run" / "bern"
    for arguments, said in (
        (
            ["build", "--images", run / "colours", "--model", model, "--index", index],
            "holds an index already",
        ),
        (["build", "--images", tmp_path / "no", "--model", model, "--index", tmp_path / "i"], "no images at"),
        (
            ["build", "--images", run, "--model", run / "no", "--index", tmp_path / "i"],
            "holds no trained model",
        ),
        (["query", "--index", index, tmp_path / "no.png"], "cannot read"),
        (["query", "--index", index, "--images", run / "run", run / "colours"], "cannot read"),
        (["compare", "--index", index, "--images", run / "colours" / "test"], "is not in"),
        (["compare", "--index", index, "--k", 27], "between 1 and the 26 other images"),
        (["compare", "--index", tmp_path], "holds no finished index"),
    ):
        code, printed = call(*arguments)
        assert code == 2, arguments
        assert "stopped:" in printed
        assert said in printed
    other = write_run(tmp_path / "other", seed=1)
    image = run / "colours" / "test" / "red" / "0007.png"
    code, printed = call("query", "--index", index, "--model", other, image)
    assert code == 2
    assert "the index was made by the model in" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "--index", "x"], "--images and --model must be given"),
        (["compare", "--index", "x", "--k", 0], "--k must be at least 1, got [0]"),
        (["compare", "--index", "x", "--count", 0], "--count must be at least 1, got 0"),
        (["query", "--index", "x", "--ef-search", 0, "a.png"], "--ef-search must be at least 1, got 0"),
        (["compare", "--index", "x", "--workers", -1], "--workers must not be below 0, got -1"),
        ([], "required"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, said, call):
    code, printed = call(*arguments)
    assert code == 2
    assert said in printed
