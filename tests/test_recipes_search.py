"""Folders read in order, encoded in parts, indexed, kept and searched; each beside a plain way to the same answer."""

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import encoding, folders, pairs, search, search_measures
from recipes.batches import DataError
from recipes.data import load
from recipes.models import WeightsError
from small_images import encoded, photograph, write_folder, write_photographs, write_tar
from small_search import CONFIG, write_run

from stochastic_bottleneck import codes

SEEN = 18  # images of `folder`


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "colours", 4, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return encoding.read_model(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def found(folder, trained, tmp_path_factory):
    collection = folders.read_collection(folder)
    return collection, encoding.encode(collection, trained, tmp_path_factory.mktemp("parts"))


@pytest.fixture
def kept(found, trained, tmp_path):
    collection, made = found
    search.save(tmp_path / "index", collection, trained, made, "python build")
    return tmp_path / "index"


def random_codes(rows=200, width=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, width)).astype(np.uint8)


# ---- folders --------------------------------------------------------------------------------------------------


def test_images_are_read_by_name_from_a_folder_and_a_tar_alike(folder, tmp_path):
    (folder / "notes.txt").write_text("no image")
    tar = write_tar(folder, tmp_path / "colours.tar", reverse=True)
    expected = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    for source in (folder, tar):
        collection = folders.read_collection(source)
        assert collection.names == expected
        assert collection.classes == ("blue", "green", "red")
        of_image = [collection.classes[label] for label in collection.images.labels]
        assert of_image == [name.split("/")[1] for name in expected]
        assert all(collection.images.read(i) == (folder / n).read_bytes() for i, n in enumerate(expected))


def test_flat_folders_and_a_single_class_have_no_classes(tmp_path):
    for name in ("b.JPG", "a.png"):
        photograph(1).save(tmp_path / name, "PNG")
    flat = folders.read_collection(tmp_path)
    assert flat.names == ["a.png", "b.JPG"]
    assert flat.classes == ()
    assert flat.images.labels.tolist() == [-1, -1]
    (tmp_path / "below").mkdir()
    for name in ("b.JPG", "a.png"):
        (tmp_path / name).rename(tmp_path / "below" / name)
    assert folders.read_collection(tmp_path).classes == ()


def test_odd_names_are_kept(tmp_path):
    names = [b'with "quotes", and\nlines.png', b"latin-\xe9.png"]
    for name in names:
        photograph(1, 40, 40).save(io.BytesIO(), "PNG")
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(encoded(photograph(1, 40, 40), "PNG"))
    assert sorted(map(os.fsencode, folders.read_collection(tmp_path).names)) == sorted(names)


def test_sources_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no images at .*nowhere; give a folder or a tar"):
        folders.read_collection(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no images; they must end in \.jpg"):
        folders.read_collection(tmp_path)
    with pytest.raises(DataError, match="damaged, compressed or not a tar"):
        folders.read_collection(tmp_path / "a.txt")


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_small_images_are_fitted_as_the_training_data_are(size, tmp_path):
    where = write_folder(tmp_path / "data", 1, 1, size=size)
    expected = {tuple(x.flatten().tolist()) for x in load(where).train.images.permute(0, 2, 3, 1)}
    paths = sorted((where / "train").rglob("*.png"))
    got = {tuple(folders.fitted(p.read_bytes(), "a", 32).flatten().tolist()) for p in paths}
    assert got == expected


def test_sideways_photographs_are_turned_upright():
    upright = photograph(2, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    content = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert np.array_equal(folders.decode(content, "a"), upright)


# ---- the model ------------------------------------------------------------------------------------------------


def test_the_model_is_that_of_the_run(tmp_path):
    where = write_run(tmp_path)
    trained = encoding.read_model(where)
    assert trained.identity == {
        "folder": str(where),
        "encoder": "small",
        "dim": CONFIG["dim"],
        "size": 32,
        "sha256": trained.identity["sha256"],
    }
    assert re.fullmatch("[0-9a-f]{64}", trained.identity["sha256"])
    assert not trained.model.training
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    images = trained.normalize(pixels)
    bits, h = encoding.encode_pixels(trained, pixels)
    assert np.array_equal(bits, trained.model.encode(images, "bits").numpy())
    expected = torch.nn.functional.normalize(trained.model.encode(images), dim=1)
    np.testing.assert_allclose(h, expected.numpy(), rtol=1e-6, atol=1e-7)


def test_an_imagenet_run_gets_the_middle_of_photographs(tmp_path):
    trained = encoding.read_model(write_run(tmp_path, size=48))
    assert trained.identity["size"] == 48
    assert trained.prepare(encoded(photograph(0)), "a").shape == (48, 48, 3)
    assert trained.normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_anything_but_a_trained_model_with_bits_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no trained model .* is missing\).*cifar10_full\.py"):
        encoding.read_model(tmp_path)
    where = write_run(tmp_path / "run", name="gauss")
    with pytest.raises(WeightsError, match='must be a run\'s "bern", the model that has bits, got "gauss"'):
        encoding.read_model(where)
    where = where.rename(where.with_name("bern"))
    weights = where / "pretrain" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    with pytest.raises(WeightsError, match="cannot read weights from"):
        encoding.read_model(where)
    weights.write_bytes(content)
    settings = where.parent / "config.json"
    settings.write_text(json.dumps({**CONFIG, "dim": 21}))
    with pytest.raises(WeightsError, match="is of another model"):
        encoding.read_model(where)
    settings.write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is damaged or not of such a run"):
        encoding.read_model(where)
    weights.rename(where / "pretrain" / "step=0001.ckpt")
    with pytest.raises(WeightsError, match="is still being trained; finish the run with --resume"):
        encoding.read_model(where)


# ---- encoding -------------------------------------------------------------------------------------------------


def test_encoding_is_the_models_own(found, folder, trained):
    collection, made = found
    assert made.numbers.tolist() == list(range(SEEN))
    assert made.skipped == []
    paths = [folder / name for name in collection.names]
    bits, h = encoding.encode_files(trained, paths)
    assert np.array_equal(made.codes, bits)
    assert made.codes.shape == (SEEN, 3)
    np.testing.assert_allclose(made.h, h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made.h, axis=1), 1, rtol=1e-5)
    assert codes.distinct_codes(codes.unpack_bits(made.codes, CONFIG["dim"])) > 3


def test_a_stopped_encoding_goes_on_with_the_part_that_is_missing(folder, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 4)
    monkeypatch.setattr(encoding, "PART", 8)
    collection = folders.read_collection(folder)
    whole = encoding.encode(collection, trained, tmp_path / "parts")
    files = sorted((tmp_path / "parts").glob("*.npz"))
    assert [int(path.stem) for path in files] == [0, 8, 16]
    files[1].unlink()
    seen = []
    plain = encoding.encode_pixels
    monkeypatch.setattr(encoding, "encode_pixels", lambda model, x: seen.append(len(x)) or plain(model, x))
    again = encoding.encode(collection, trained, tmp_path / "parts")
    assert seen == [4, 4]
    for one, other in zip(whole[:3], again[:3], strict=True):
        assert np.array_equal(one, other)
    files[0].write_bytes(files[0].read_bytes()[:50])
    with pytest.raises(DataError, match=r"000000000\.npz is damaged .* delete it"):
        encoding.encode(collection, trained, tmp_path / "parts")


def test_parts_of_other_images_or_another_model_are_refused(folder, trained, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    parts = tmp_path / "parts"
    encoding.encode(folders.read_collection(copy), trained, parts)
    next(copy.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="holds codes of other images; delete it"):
        encoding.encode(folders.read_collection(copy), trained, parts)
    other = encoding.read_model(write_run(tmp_path / "other", seed=1))
    with pytest.raises(DataError, match="holds codes of other images and another model; delete it"):
        encoding.encode(folders.read_collection(copy), other, parts)
    (parts / "parts.json").write_text("{")
    with pytest.raises(DataError, match=r"parts\.json is damaged"):
        encoding.encode(folders.read_collection(copy), trained, parts)


def test_unreadable_images_are_left_out_and_named(folder, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 4)
    monkeypatch.setattr(encoding, "PART", 4)
    copy = shutil.copytree(folder, tmp_path / "copy")
    collection = folders.read_collection(copy)
    damaged = [0, *range(4, 8)]  # one, and the whole of a part
    for number in damaged:
        (copy / collection.names[number]).write_bytes(b"no image")
    collection = folders.read_collection(copy)
    made = encoding.encode(collection, trained, tmp_path / "parts")
    assert made.numbers.tolist() == [i for i in range(SEEN) if i not in damaged]
    assert len(made.skipped) == len(damaged)
    assert re.search(rf"cannot read the image \S*{re.escape(collection.names[0])} \(", made.skipped[0])
    for name in collection.names:
        (copy / name).write_bytes(b"no image")
    with pytest.raises(
        DataError, match=f"none of the {SEEN} images of .* can be read: cannot read the image"
    ):
        encoding.encode(folders.read_collection(copy), trained, tmp_path / "none")


def test_files_that_cannot_be_read_are_refused_as_queries(trained, tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*a\.png \(No such file"):
        encoding.encode_files(trained, [tmp_path / "a.png"])
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png"):
        encoding.encode_files(trained, [tmp_path / "a.png"])


# ---- the index ------------------------------------------------------------------------------------------------


def test_a_kept_index_answers_as_before(kept, found):
    collection, made = found
    index = search.load(kept)
    assert index.names == collection.names
    assert np.array_equal(index.labels, collection.images.labels.numpy())
    fresh = search.make(made)
    for kind, queries in (("float", made.h), ("flat", made.codes), ("hnsw", made.codes)):
        for one, other in zip(
            fresh[kind].search(queries, 5), index.by_kind[kind].search(queries, 5), strict=True
        ):
            assert np.array_equal(one, other)
    assert index.about["bytes_an_image"] == {"h": 4 * made.h.shape[1], "bits": 3}
    sizes = {name: file["bytes"] for name, file in index.about["files"].items()}
    assert sizes == {p.name: p.stat().st_size for p in kept.iterdir() if p.name != "index.json"}
    assert index.about["environment"]["packages"]["faiss"]


def test_names_with_quotes_lines_and_bytes_survive(found, trained, tmp_path):
    names = ['a "b", c\n.png', os.fsdecode(b"latin-\xe9.png")]
    for name in names:
        (tmp_path / name).write_bytes(encoded(photograph(1, 40, 40), "PNG"))
    collection = folders.read_collection(tmp_path)
    made = encoding.encode(collection, trained, tmp_path / "parts")
    search.save(tmp_path / "index", collection, trained, made, "")
    assert search.load(tmp_path / "index").names == collection.names


def test_damaged_and_unfinished_indexes_are_refused(kept):
    for name in ("flat.faiss", "images.csv"):
        content = (kept / name).read_bytes()
        (kept / name).write_bytes(content[:-1])
        said = rf"{name} has {len(content) - 1:,} of {len(content):,} bytes; copy it again"
        with pytest.raises(search.SearchError, match=said):
            search.load(kept)
        (kept / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(search.SearchError, match=f"{name} is not as it was written"):
            search.load(kept)
        (kept / name).unlink()
        with pytest.raises(search.SearchError, match=rf"cannot read .*{name} \(No such file"):
            search.load(kept)
        (kept / name).write_bytes(content)
    told = json.loads((kept / "index.json").read_text())
    (kept / "index.json").write_text(json.dumps({**told, "form": 0}))
    with pytest.raises(search.SearchError, match="has form 0, this version reads 1; build the index anew"):
        search.load(kept)
    for damaged in ("{", "[]", '{"form": 1}'):
        (kept / "index.json").write_text(damaged)
        with pytest.raises(search.SearchError, match=r"index\.json is damaged"):
            search.load(kept)
    (kept / "index.json").unlink()
    with pytest.raises(search.SearchError, match="holds no finished index; make one with"):
        search.load(kept)


def test_only_what_is_asked_for_is_read(kept):
    (kept / "float.faiss").unlink()
    assert set(search.load(kept, ["flat"]).by_kind) == {"flat"}


def test_another_models_index_is_refused(kept, trained, tmp_path):
    index = search.load(kept, ["flat"])
    search.check_model(index, trained)
    other = encoding.read_model(write_run(tmp_path / "other", seed=1))
    with pytest.raises(
        search.SearchError, match=r"was made by the model in .*got the one in .*give the first"
    ):
        search.check_model(index, other)


# ---- searching ------------------------------------------------------------------------------------------------


def indexes(bits, h):
    return search.make(encoding.Encoded(np.arange(len(bits)), bits, h, []))


def features(rows=200, width=16, seed=1):
    h = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def test_exact_search_by_bits_is_brute_force():
    bits, queries = random_codes(), random_codes(20, seed=1)
    distances, found = search.neighbours(indexes(bits, features())["flat"], queries, 7)
    every = codes.hamming_distance(queries[:, None], bits[None])
    assert np.array_equal(distances, np.sort(every, axis=1)[:, :7])
    assert np.array_equal(np.take_along_axis(every, found, axis=1), distances)


def test_exact_search_by_features_is_brute_force():
    h, queries = features(), features(20, seed=2)
    found = search.neighbours(indexes(random_codes(), h)["float"], queries, 7)[1]
    assert np.array_equal(found, np.argsort(-queries @ h.T, axis=1)[:, :7])


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_query_is_left_out_of_its_own_neighbours_even_among_copies(kind):
    bits = np.repeat(
        random_codes(4), 50, axis=0
    )  # fifty at distance zero, of which a query may not see itself
    own = np.arange(0, 200, 7)
    distances, found = search.neighbours(indexes(bits, features())[kind], bits[own], 5, own)
    assert found.shape == distances.shape == (len(own), 5)
    assert not (found == own[:, None]).any()
    if kind == "flat":
        assert (distances == 0).all()


@pytest.mark.parametrize(("k", "own", "most"), [(0, None, 200), (201, None, 200), (200, np.arange(2), 199)])
def test_more_neighbours_than_there_are_are_refused(k, own, most):
    with pytest.raises(
        search.SearchError, match=f"between 1 and the {most} other images of the index, got {k}"
    ):
        search.neighbours(indexes(random_codes(), features())["flat"], random_codes(2), k, own)


def test_recall_and_precision_are_counted_as_defined():
    found, true = np.array([[0, 1, 2], [3, -1, -1]]), np.array([[2, 0, 5], [4, 5, 6]])
    assert search_measures.recall(found, true) == pytest.approx(2 / 6)
    labels, of_queries = np.array([0, 0, 1, 1, 0, 0, 1]), np.array([0, 1])
    assert search_measures.precision(found, labels, of_queries) == pytest.approx(3 / 6)


def test_a_comparison_is_what_numpy_makes_of_it(kept, found):
    _, made = found
    index = search.load(kept)
    own = np.arange(SEEN)
    queries = {"float": made.h, "flat": made.codes, "hnsw": made.codes}
    rows = {row["faiss"]: row for row in search_measures.compare(index, queries, index.labels, own, [1, 5])}
    assert list(rows) == ["IndexFlatIP", "IndexBinaryFlat", "IndexBinaryHNSW"]
    similar = made.h @ made.h.T
    np.fill_diagonal(similar, -np.inf)
    true = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    by_bits = search.neighbours(index.by_kind["flat"], made.codes, 5, own)[1]
    exact, flat, hnsw = rows.values()
    assert exact["recall"] == {"1": 1.0, "5": 1.0}
    assert exact["precision"]["5"] == pytest.approx((index.labels[true] == index.labels[:, None]).mean())
    share = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(by_bits, true, strict=True)])
    assert flat["recall"]["5"] == pytest.approx(share)
    assert flat["bytes_an_image"] == 3
    assert flat["bytes_of_100_million"] == 300_000_000
    assert exact["bytes_of_100_million"] == 100_000_000 * made.h.shape[1] * 4
    assert hnsw["bytes_an_image"] == (kept / "hnsw.faiss").stat().st_size / SEEN
    assert all(row["queries_per_second"] > 0 for row in rows.values())
    header, *cells = search_measures.table(list(rows.values()))
    assert header[-2:] == ("precision@1 %", "precision@5 %")
    assert cells[1][:2] == ("bits, exact", "3")


def test_precision_is_of_queries_whose_class_can_be_found(kept, found):
    _, made = found
    index = search.load(kept)
    alone = index._replace(labels=np.arange(SEEN))
    queries = {"float": made.h, "flat": made.codes, "hnsw": made.codes}
    for labels, own in ((np.arange(SEEN), np.arange(SEEN)), (np.full(SEEN, -1), None)):
        rows = search_measures.compare(alone, queries, labels, own, [2])
        assert [row["precision"] for row in rows] == [{"2": None}] * 3
        assert not any("precision" in column for column in search_measures.table(rows)[0])
    rows = search_measures.compare(alone, queries, np.arange(SEEN), None, [1])
    assert rows[0]["precision"]["1"] == 1.0  # each finds itself


# ---- pairs ----------------------------------------------------------------------------------------------------


def as_set(found):
    return set(zip(found.first.tolist(), found.second.tolist(), found.hamming.tolist(), strict=True))


@pytest.mark.parametrize("radius", [0, 3, 8])
def test_candidates_are_all_pairs_within_the_radius(radius, monkeypatch):
    monkeypatch.setattr(pairs, "AT_ONCE", 7)
    a, b = random_codes(60), random_codes(50, seed=1)
    b[3] = a[5]
    every = codes.hamming_distance(a[:, None], b[None])
    expected = {(i, j, int(every[i, j])) for i, j in zip(*np.nonzero(every <= radius), strict=True)}
    assert as_set(pairs.candidates(a, b, radius)) == expected
    assert (5, 3, 0) in expected
    a[9] = a[2]
    every = codes.hamming_distance(a[:, None], a[None])
    rows, columns = np.nonzero(np.triu(every <= radius, k=1))
    expected = {(i, j, int(every[i, j])) for i, j in zip(rows, columns, strict=True)}
    assert as_set(pairs.candidates(a, None, radius)) == expected


def test_too_many_candidates_end_in_a_message(monkeypatch):
    monkeypatch.setattr(pairs, "MOST", 100)
    with pytest.raises(
        search.SearchError, match=r"--radius 23 gives more than 100 pairs .*; give a smaller one"
    ):
        pairs.candidates(random_codes(), None, 23)


def test_groups_are_linked_confirmed_pairs():
    first, second = np.array([0, 1, 4, 2]), np.array([1, 2, 5, 6])
    confirmed = np.array([True, True, True, False])
    found = pairs.Pairs(first, second, np.zeros(4, int), confirmed=confirmed)
    assert pairs.group(found, 7, within=True).tolist() == [1, 1, 2, 0]
    # of two folders, image 1 of the first and image 1 of the second are not the same
    assert len(set(pairs.group(found, 7, within=False)[:3].tolist())) == 3
    assert pairs.group(found._replace(confirmed=~confirmed & False), 7, within=True).tolist() == [0] * 4


def test_a_photograph_and_its_mirror_correlate_and_two_do_not(trained, tmp_path):
    where = write_photographs(tmp_path / "data", 4, 0) / "train"
    original = photograph(77)
    original.save(where / "original.png")
    original.resize((200, 150)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        where / "turned.jpg", quality=70
    )
    collection = folders.read_collection(where)
    side = pairs.Side(collection, encoding.encode(collection, trained, tmp_path / "parts"))
    a, b = (collection.names.index(name) for name in ("original.png", "turned.jpg"))
    rows = np.array([a, 0]), np.array([b, 1])
    checked = pairs.check(side, side, pairs.Pairs(*rows, np.zeros(2, int)), pairs.LEAST)
    assert checked.confirmed.tolist() == [True, False]
    assert checked.mirrored[0]
    np.testing.assert_allclose(
        checked.cosine, (side.encoded.h[rows[0]] * side.encoded.h[rows[1]]).sum(1), rtol=1e-5
    )


def test_random_pairs_are_of_two_images(found):
    side = pairs.Side(*found)
    drawn = pairs.at_random(side, side, 500, 0, within=True)
    assert (drawn.first != drawn.second).all()
    bits = side.encoded.codes
    assert np.array_equal(drawn.hamming, codes.hamming_distance(bits[drawn.first], bits[drawn.second]))
