"""The page on stores: its blocks find the neighbours of a slow search, and its formats are those of the vendors."""

import re
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from stochastic_bottleneck import StochasticBottleneck
from stochastic_bottleneck.codes import pack_bits, unpack_bits

PAGE = (Path(__file__).parents[2] / "docs" / "stores.rst").read_text()
_, *PARTS = re.split(r"^(.+)\n[=-]{3,}\n", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
K = 10


def run(section, **names):
    """Names after the Python of a section."""
    blocks = re.findall(r"^\.\. testcode::\n(?:   :.+\n)*\n((?:(?:   .*)?\n)+)", SECTIONS[section], re.MULTILINE)
    exec(compile("".join(map(textwrap.dedent, blocks)), f"stores.rst, {section}", "exec"), names)
    return names


@pytest.fixture(params=[64, 12, 136])
def names(request, tmp_path, monkeypatch):
    """Names that the introduction defines, for codes of several widths, one of them padded."""
    monkeypatch.chdir(tmp_path)
    features, bottleneck = torch.randn(300, 32), StochasticBottleneck("bern", request.param, in_features=32).eval()
    near = {"features": features, "query_features": features[:5] + 0.5 * torch.randn(5, 32)}
    return run("Store codes", dim=request.param, bottleneck=bottleneck, **near)


def differing(a, b):
    """Bits that differ between all rows of a and b, by the definition."""
    return (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]).sum(axis=2)


ROWS = {
    "faiss": lambda names: names["ids"],
    "usearch": lambda names: names["matches"].keys.astype(int),
    "Qdrant": lambda names: np.array([[point.id for point in row] for row in names["points"]]),
    "DuckDB": lambda names: names["found"][..., 1],
    "SQLite": lambda names: names["found"][..., 1],
}


@pytest.mark.parametrize("store", ROWS)
def test_a_store_finds_the_nearest_codes(store, names):
    rows = ROWS[store](run(store, **names))  # where the page asserts that the distances it reports are right
    actual = np.take_along_axis(differing(names["queries"], names["codes"]), rows, axis=1)
    assert (actual == names["distances"]).all()
    assert all(len(set(row)) == K for row in rows.tolist())


def test_every_code_within_a_distance_is_found(names):
    limits = run("faiss", **names)["limits"].astype(int)
    assert np.diff(limits).tolist() == (differing(names["queries"], names["codes"]) < 8).sum(axis=1).tolist()


def test_sentence_transformers_packs_logits_alike(names):
    pytest.importorskip("sentence_transformers.util.quantization")
    run("sentence-transformers", **names)


def test_postgresql_literals_are_the_bits_first_bit_first(names):
    short = run("PostgreSQL", codes=pack_bits(np.array([[1, 0, 1]])), unpack_bits=unpack_bits, dim=3)
    assert short["literals"] == ["101"]
    a, b = run("PostgreSQL", **names)["literals"][:2]
    assert a == "".join("01"[int(bit)] for bit in names["bottleneck"](names["features"][:1]).z[0])
    [(distance,)] = duckdb.execute("SELECT bit_count(xor(?::BIT, ?::BIT))", [a, b]).fetchall()  # takes them too
    assert distance == differing(names["codes"][:1], names["codes"][1:2])


def test_elasticsearch_takes_the_documented_bytes_and_scores():
    bits = ["1000000100000000000000010010101001111111", "0111111110000001000000000000000100101010"]
    codes = pack_bits(np.array([list(map(int, row)) for row in bits]))
    found = run("Elasticsearch", codes=codes, queries=codes[1:], np=np, k=1)
    assert found["field"]["dims"] == 40
    assert found["documents"][0] == {"code": "8100012a7f"}
    assert found["searches"][0]["knn"]["query_vector"] == [127, -127, 0, 1, 42]
    assert 1 - differing(codes[:1], codes[1:]).item() / 40 == 0.55


def test_vespa_takes_the_documented_bytes():
    codes = np.array([[-1, 0, 17, -128, 34, -2]], np.int8).view(np.uint8)
    assert run("Vespa", codes=codes)["documents"] == [{"fields": {"code": {"values": "FF00118022FE"}}}]
    packed = pack_bits(np.array([[1] * 8, [1] + [0] * 7, [1] + [0] * 6 + [1]])).view(np.int8)
    assert packed.ravel().tolist() == [-1, -128, -127]


def test_floats_rank_by_their_inner_product_with_the_bits(names):
    found = run("Rescore with floats", **names)
    products = found["logits"] @ (2.0 * unpack_bits(names["codes"], names["dim"]) - 1).T
    assert found["all_scores"] == pytest.approx(-np.sort(-products, axis=1)[:, :K], abs=1e-4)
    among_candidates = np.take_along_axis(products, found["candidates"], axis=1)
    assert found["scores"] == pytest.approx(-np.sort(-among_candidates, axis=1)[:, :K], abs=1e-4)
