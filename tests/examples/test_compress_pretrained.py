"""Codes for a frozen encoder: what a run measures and leaves, that it continues exactly, and its errors."""

import json
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import compress_pretrained
import faiss
import image_codes
import image_search
import numpy as np
import pretrained_features
import pytest
import timm
import torch
import torchvision
from image_files import read_image
from PIL import Image
from pretrained_features import Encoding, load_encoder
from safetensors.torch import save_file
from small_images import CLASSES, picture, write_folder

from stochastic_bottleneck.codes import unpack_bits
from stochastic_bottleneck.evaluation import retrieval_scores
from stochastic_bottleneck.hub import HubModel, preprocessing

BITS = ["16", "20", "72"]
METHODS = ["bern", "bern_asymmetric", "itq", "pq", "rabitq", "float"]
SMALL = ["--encoder", "timm:test_resnet", "--size", 32, "--precision", "32-true", "--views", 2, "--epochs", 2]
SMALL += ["--seeds", 0, "--bits", *BITS, "--methods", *METHODS]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of three classes, next to weights of a small encoder."""
    folder = tmp_path_factory.mktemp("compress")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), folder / "encoder.safetensors")
    return write_folder(folder / "images", train=110, test=10)


def run(images, out, *more):
    """Exit code and output of a tiny run."""
    given = ["--data", images, "--out", out, "--weights", images.parent / "encoder.safetensors", *SMALL, *more]
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        code = compress_pretrained.main([str(argument) for argument in given])
    return code, printed.getvalue()


def measured(out):
    """Values by method, bits, seed and metric."""
    header, *lines = (line.split(",") for line in (out / "images.csv").read_text().splitlines())
    assert header == ["method", "bits", "seed", "metric", "value"]
    return {tuple(key): float(value) for *key, value in lines}


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """Folder and output of a run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, printed = run(images, out)
    assert code == 0, printed
    return out, printed


def test_measurements_are_those_of_saved_codes_and_cached_features(whole):
    found = measured(whole[0])
    x, x_query = (np.load(whole[0] / "features" / f"{name}.npy").astype(np.float32) for name in ("database", "queries"))
    y, y_query = np.repeat(np.arange(3), 110), np.repeat(np.arange(3), 10)
    codes = [HubModel.from_pretrained(whole[0] / "bern-16-seed0").bottleneck(torch.tensor(h)).z for h in (x, x_query)]
    database, queries = (np.packbits(z.detach().numpy() > 0.5, axis=1) for z in codes)
    scores = retrieval_scores(queries, y_query, database, y, r=330, k=10)
    assert found["bern", "16", "0", "map_1000"] == pytest.approx(scores.map, rel=1e-4)
    assert found["bern", "16", "0", "precision_10"] == pytest.approx(scores.precision, rel=1e-4)
    cosine = x_query @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    votes = np.eye(3)[y[np.argsort(-cosine, axis=1)[:, :20]]].sum(axis=1)
    width = str(32 * x.shape[1])
    assert found["float", width, "0", "knn"] == pytest.approx((votes.argmax(axis=1) == y_query).mean(), abs=0.04)
    assert found["float", width, "0", "recall_10"] == 1
    sizes = {key[:2]: value for key, value in found.items() if key[3] == "bytes"}
    ours = {(method, bits): -(-int(bits) // 8) for method in ("bern", "bern_asymmetric", "itq") for bits in BITS}
    assert sizes == ours | {("pq", "16"): 2, ("rabitq", "72"): 9, ("float", width): 4 * x.shape[1]}
    assert "pq at 20 bits is left out: bits must be" in whole[1]
    assert (whole[0] / "images.png").stat().st_size > 10_000
    assert len(json.loads((whole[0] / "results.json").read_text())["rows"]) == len({method for method, _ in sizes})


def test_product_quantization_is_searched_as_by_its_decoded_floats(whole):
    x = np.load(whole[0] / "features" / "database.npy").astype(np.float32)
    codec = compress_pretrained.METHODS["pq"](x, 16, 0)
    distances = ((codec.query(x[:20])[:, None] - codec.decode(codec.encode(x))) ** 2).sum(axis=2)
    rows = compress_pretrained.search(codec, codec.encode(x), codec.query(x[:20]), 5)[1]
    np.testing.assert_allclose(np.take_along_axis(distances, rows, 1), np.sort(distances)[:, :5], rtol=1e-3)


def test_the_printed_command_searches_the_saved_codes(whole, images, capsys):
    _, script, *arguments = shlex.split(whole[1].rpartition("to search by these codes: ")[2])
    assert script.endswith("image_search.py")
    commands = image_search.Build | image_search.Query | image_search.Compare
    assert image_codes.main(commands, "", [*arguments, "--k", "3", "--shown", "0"]) == 0
    assert capsys.readouterr().out.count(".png") == 4  # the query and three images
    index, model = whole[0] / "index-bern-20-seed0", HubModel.from_pretrained(whole[0] / "bern-20-seed0")
    prepare, names = preprocessing(model), image_search.Search(index=index).names
    pixels = torch.stack([prepare(read_image(images / "train" / name)) for name in names[::30]])
    flat = faiss.read_index_binary(str(index / "flat.faiss")).reconstruct_n(0, len(names))
    bits = unpack_bits(flat[::30], 20), unpack_bits(model.encode(pixels, "bits").numpy(), 20)
    assert (bits[0] == bits[1]).mean() > 0.95  # the cache is in half precision


def test_encoding_that_is_stopped_continues_to_the_bit(images, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_features, "BLOCK", 50)
    assert run(images, tmp_path / "one", "--encode-only")[0] == 0
    read, blocks = pretrained_features.read_block, iter(range(100))

    def stopping(*arguments):
        if next(blocks) % 3 == 2:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(pretrained_features, "read_block", stopping)
    codes = []
    while 0 not in codes:
        codes.append(run(images, tmp_path / "two", "--encode-only")[0])
    assert codes == [130] * 3 + [0]
    for name in ("queries", "database", "views"):
        one, two = (np.load(tmp_path / out / "features" / f"{name}.npy") for out in ("one", "two"))
        np.testing.assert_array_equal(one, two)
        assert (one != 0).any(axis=-1).all()
    assert not np.array_equal(one[0], one[1])  # views differ


def test_images_without_labels_are_compared_by_their_neighbours(images, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(images.parent / "encoder.safetensors", tmp_path)
    for i in range(340):
        Image.fromarray(picture(CLASSES[i % 3], i, (40, 36))).save(tmp_path / "images" / f"{i}.png")
    code, printed = run(tmp_path / "images", tmp_path / "run", "--bits", 16, "--methods", "bern", "pq", "float")
    assert code == 0, printed
    assert {key[3] for key in measured(tmp_path / "run")} == {
        "bytes", "encode_seconds", "fit_seconds", "recall_10", "search_seconds", "unit_length",
    }  # fmt: skip
    assert np.load(tmp_path / "run" / "features" / "queries.npy").shape[0] == 34


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data", "nowhere"], "--data must be a folder or a tar of images, got nowhere"),
        (["--data", "empty"], "no images in"),
        (["--encoder", "timm:resnet5"], "--encoder must be lite0, timm:NAME or torchvision:NAME"),
        (["--encoder", "timm:test_efficientnet"], "size mismatch for"),
        (["--size", "-1"], "; give --weights FILE.safetensors, another --size, or --encoder lite0"),
        (["--views", "1"], "--views must be at least 2"),
        (["--views", "3"], "features is of another views; give another --out"),
        (["--epochs", "3"], "is of another epochs"),
    ],
)
def test_errors_name_the_fix(more, words, whole, images, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, printed = run(images, whole[0], *more)
    assert (code, words in printed) == (2, True), printed


def test_encoders_of_torchvision_and_lite0_load_with_their_preprocessing(tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), file)
    settings = Encoding(data=tmp_path, encoder="torchvision:shufflenet_v2_x0_5", weights=file)
    encoder, config = load_encoder(settings)
    assert (encoder.feature_dim, config["input_size"], config["mean"][0]) == (1024, (3, 224, 224), 0.485)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
        with pytest.raises(ValueError, match=r'pip install "stochastic-bottleneck\[pretrained\]"'):
            load_encoder(Encoding(data=tmp_path))
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder, config = load_encoder(Encoding(data=tmp_path))
    model = HubModel(encoder, dim=16, pretrained_cfg=config).eval()
    model.save_pretrained(tmp_path / "model")
    loaded, x = image_codes.load_model(tmp_path / "model", "cpu"), torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(loaded.encode(x), model.encode(x))
    assert loaded.encode(x).shape == (2, 1280)
