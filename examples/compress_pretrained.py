"""Codes of a few bytes for the encoder you already have, compared with ITQ, PQ, OPQ and RaBitQ.

    python examples/compress_pretrained.py --quick                     # images that ship here; 2 minutes, 2 cores
    python examples/compress_pretrained.py --data FOLDER_OR_TAR        # train/CLASS/* and test/CLASS/*, or any images
    python examples/compress_pretrained.py --data FOLDER --encoder timm:vit_small_patch16_224.dino

The encoder stays as it is. Features of random views of each image are cached once and train the codes, without labels;
labels, where there are any, are for evaluation only. The same command resumes a run.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import faiss
import image_codes
import numpy as np
import torch
from filelock import FileLock
from image_codes import load_model
from image_files import SAMPLE, ImageFiles
from image_search import write_index
from matplotlib.figure import Figure
from other_codes import METHODS, Codec
from pretrained_features import Encoding, cache_features, find_splits, load_encoder, refuse_changes
from provenance import DEVICE, write
from sklearn.preprocessing import normalize
from torch import nn

from stochastic_bottleneck import StochConWrapper, fit_bottleneck
from stochastic_bottleneck.codes import pack_bits, unpack_bits
from stochastic_bottleneck.evaluation import asymmetric_topk, linear_probe, neighbour_recall, retrieval_scores
from stochastic_bottleneck.hub import HubModel

NEIGHBOURS, RANKED = 20, 1000  # that vote for a class, and that mAP looks at
ITQ_STARTS = 3  # rotations to start from, of which the best is taken
UNSEEDED = ("float", "pca_sign", "bern_logits")  # measured for the first seed only
PROBE = {"regularisations": (1e-3, 1e-2), "max_iter": 50, "device": DEVICE}
STYLES = {  # name, and in the figure colour, marker and width
    "bern": ("StochCon Bern (ours)", "#D55E00", "o", 3), "bern_asymmetric": ("ours, float query", "#E69F00", "*", 2),
    "bern_logits": ("ours, float logits",), "opq": ("OPQ", "#0072B2", "s", 1.5), "pq": ("PQ", "#56B4E9", "^", 1.5),
    "itq": ("ITQ", "#009E73", "D", 1.5), "rabitq": ("RaBitQ", "#CC79A7", "v", 1.5),
    "pca_sign": ("PCA, signs", "#888888", "P", 1.5), "random_sign": ("random projection, signs", "#BBBBBB", "X", 1.5),
    "float": ("float features",),
}  # fmt: skip
PERCENT = {
    "map_1000": "mAP @1000", "knn": "kNN", "probe": "probe", "precision_10": "precision @10",
    "recall_10": "float neighbours @10",
}  # fmt: skip
Method = Literal[tuple(STYLES)]


# ---- settings -------------------------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class Compress(Encoding):
    """Fit codes to features of a frozen encoder, and compare them with other codes of the same bytes."""

    name: str | None = None  # Of the data, in titles and file names; that of --data if not given
    bits: tuple[int, ...] = (16, 32, 64, 128, 256)  # Of the codes
    epochs: int = 20  # Of our fit
    seeds: tuple[int, ...] = (0, 1, 2)  # Of all fits
    methods: tuple[Method, ...] = tuple(STYLES)  # Codes to compare
    encode_only: bool = False  # Stop when the features are cached
    quick: bool = False  # Small settings, for the images that ship with the examples

    def run(self) -> None:
        """Encode, fit, measure; skip what an earlier run in this folder has done."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.name = self.name or self.data.name.partition(".")[0]
        with FileLock(self.out / ".lock", timeout=0):
            train, queries = find_splits(self)
            if self.views < 2:
                raise ValueError(f"--views must be at least 2, since codes learn what views share, got {self.views}")
            encoder, config = load_encoder(self)
            cache_features(self, train, queries, encoder, config)
            if not self.encode_only:
                compare(self, train, queries, encoder, config)


@dataclass(kw_only=True)
class Quick(Compress):
    """The same for 6,000 images that ship with the examples."""

    data: Path = SAMPLE
    name: str = "cifar10_sample"
    size: int | None = 80
    views: int = 2
    bits: tuple[int, ...] = (64,)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[Method, ...] = ("bern", "bern_asymmetric", "pq", "itq", "pca_sign", "random_sign", "float")
    out: Path = Path("runs/compress-quick")


# ---- codes ----------------------------------------------------------------------------------------------------------
@dataclass(eq=False)
class Data:
    """Features to search, which are also trained on, and queries; both with labels or None."""

    x: np.ndarray
    y: np.ndarray | None
    x_query: np.ndarray
    y_query: np.ndarray | None

    @cached_property
    def near(self) -> np.ndarray:
        """Rows of the nearest by cosine. Shape: (Q, 10)."""
        return search(FLOAT, self.x, self.x_query, 10)[1]


FLOAT = Codec(np.asarray, np.asarray, np.asarray, "cosine")


def fit_ours(s: Compress, bits: int, seed: int, encoder: nn.Module, config: dict[str, Any]) -> None:
    """Fit a bottleneck to the cached views, and save it with its encoder as a folder that `HubModel` loads."""
    plain, views = (np.load(s.out / "features" / f"{name}.npy", mmap_mode="r") for name in ("database", "views"))
    views = [plain, *views]  # the images as they are searched are a view too
    options = {"epochs": s.epochs, "batch_size": min(512, len(plain)), "seed": seed, "progress": True}
    model = StochConWrapper(encoder, bottleneck=fit_bottleneck(views, "bern", bits, **options)).eval()
    options = {"num_classes": 0} if s.encoder.startswith("timm:") else None
    named = {} if s.encoder == "lite0" else {"encoder_name": s.encoder, "encoder_options": options}
    HubModel.from_wrapper(model, pretrained_cfg=config, **named).save_pretrained(s.out / f"bern-{bits}-seed{seed}")


def our_codec(method: str, bottleneck: nn.Module) -> Codec:
    """Bits searched by bits, bits searched by logits, which know how sure each bit is, or logits by logits."""

    @torch.inference_mode()
    def logits(x: np.ndarray) -> np.ndarray:
        parts = [bottleneck.posterior(part.to(DEVICE)).logits.cpu() for part in torch.from_numpy(x).split(4096)]
        return torch.cat(parts).numpy()

    def encode(x: np.ndarray) -> np.ndarray:
        return pack_bits(logits(x) > 0)

    if method == "bern_logits":
        return Codec(logits, np.asarray, logits, "cosine")
    query, metric = (encode, "hamming") if method == "bern" else (logits, "asymmetric")
    return Codec(encode, lambda codes: unpack_bits(codes, bottleneck.dim).astype(np.float32), query, metric)


@cache
def best_variant(method: str, data: Data, bits: int) -> tuple[Any, int]:
    """Features as they are or of length one, and for ITQ one of several starts.

    Which one finds the class (or float neighbours) of left-out training images best decides.
    """
    n = min(1000, len(data.x) // 10)
    out, rest = slice(0, n), slice(n, n + 10_000)
    y, y_query = (None, None) if data.y is None else (data.y[rest], data.y[out])
    held_out = Data(data.x[rest], y, data.x[out], y_query)

    def score(variant: tuple[Any, int]) -> float:
        found = evaluate(fitted(method, held_out.x, bits, *variant), held_out, probe=False)
        return found.get("map_1000", found["recall_10"])

    return max(product((np.asarray, normalize), range(ITQ_STARTS if method == "itq" else 1)), key=score)


def fitted(method: str, x: np.ndarray, bits: int, prepare: Any, start: int) -> Codec:
    """Another code of features that `prepare` makes ready."""
    codec = METHODS[method](prepare(x), bits, start)
    return codec._replace(encode=lambda x: codec.encode(prepare(x)), query=lambda x: codec.query(prepare(x)))


# ---- evaluation -----------------------------------------------------------------------------------------------------
def search(codec: Codec, codes: np.ndarray, queries: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """Seconds of an exact search on one device, and the rows that are nearest. Shape: (Q, k)."""
    if codec.metric == "hamming":
        index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        index.add(codes)
    elif codec.metric == "euclidean":  # PQ and OPQ look up distances in tables
        index = faiss.clone_index(codec.index)
        index.add_sa_codes(codes)
    elif codec.metric != "asymmetric":
        prepare = normalize if codec.metric == "cosine" else np.asarray
        database, queries = prepare(codec.decode(codes)), prepare(queries)
        index = faiss.IndexFlatIP(database.shape[1])
        index.add(database)
    start = time.perf_counter()
    rows = (asymmetric_topk(queries, codes, k) if codec.metric == "asymmetric" else index.search(queries, k))[1]
    return time.perf_counter() - start, rows


def evaluate(codec: Codec, data: Data, *, probe: bool = True) -> dict[str, float]:
    """Everything measured of a code, all as shares of one."""
    start = time.perf_counter()
    codes, queries = codec.encode(data.x), codec.query(data.x_query)
    found = {"bytes": codes[0].nbytes, "encode_seconds": time.perf_counter() - start}
    seconds, rows = search(codec, codes, queries, min(NEIGHBOURS, len(codes)))
    found["recall_10"] = neighbour_recall(rows[:, :10], data.near)
    if data.y is not None:
        target = codes if codec.metric in ("hamming", "asymmetric") else codec.decode(codes)
        most = {"r": min(RANKED, len(codes)), "k": 10}
        scores = retrieval_scores(queries, data.y_query, target, data.y, metric=codec.metric, device=DEVICE, **most)
        votes = np.eye(1 + data.y.max())[data.y[rows]].sum(axis=1)
        found |= {"map_1000": scores.map, "precision_10": scores.precision}
        found["knn"] = (votes.argmax(axis=1) == data.y_query).mean()
        if probe and codec.metric != "asymmetric":
            x, x_query = codec.decode(codes), codec.decode(codec.encode(data.x_query))
            found["probe"] = linear_probe(x, data.y, x_query, data.y_query, **PROBE).accuracy
    return found | {"search_seconds": seconds}


def compare(s: Compress, train: ImageFiles, queries: ImageFiles, encoder: nn.Module, config: dict[str, Any]) -> None:
    """Fit and measure what the folder does not have yet, then write table, figure and an index to search."""
    asked, settings, path = {"epochs": s.epochs}, s.out / "settings.json", s.out / f"{s.name}.csv"
    refuse_changes(s.out, json.loads(settings.read_text()) if settings.exists() else asked, asked)
    write(settings, json.dumps(asked))
    order = np.random.default_rng(0).permutation(len(train.paths))  # ties are then not in the order of classes
    x, x_query = (np.load(s.out / "features" / f"{name}.npy").astype(np.float32) for name in ("database", "queries"))
    data = Data(x[order], None, x_query, None)
    if train.labels is not None:
        data.y, data.y_query = np.array(train.labels)[order], np.array(queries.labels)
        np.save(s.out / "features" / "labels.npy", np.array(train.labels))
    results = read_results(path)
    for seed, bits, method in product(s.seeds, s.bits, s.methods):
        key, model = (method, str(bits), str(seed)), s.out / f"bern-{bits}-seed{seed}"
        if method == "float":
            key = method, str(32 * x.shape[1]), str(seed)
        if key in results or (method in UNSEEDED and seed != s.seeds[0]):
            continue
        start, found, codec = time.perf_counter(), {}, FLOAT
        print(f"{method}, {key[1]} bits, seed {seed}")
        if method in METHODS:
            try:
                size = bits if x.shape[1] % 128 else 128  # if every method takes that, one choice serves all sizes
                prepare, first = best_variant(method, data, size)
                start = time.perf_counter()
                codec = fitted(method, data.x, bits, prepare, seed * ITQ_STARTS + first)
            except ValueError as error:
                print(f"{method} at {bits} bits is left out: {error}")
                continue
            found = {"fit_seconds": time.perf_counter() - start, "unit_length": prepare is normalize}
        elif method != "float":
            if method == "bern" or not (model / "config.json").exists():
                fit_ours(s, bits, seed, encoder, config)
                found["fit_seconds"] = time.perf_counter() - start
            codec = our_codec(method, load_model(model).bottleneck)
        results[key] = {metric: f"{value:.6g}" for metric, value in (found | evaluate(codec, data)).items()}
        lines = (f"{','.join(key)},{metric},{value}\n" for key in results for metric, value in results[key].items())
        write(path, "".join(["method,bits,seed,metric,value\n", *lines]))
    if not results:
        raise ValueError(f"none of --methods can code these {len(train.paths)} images; give others, or more images")
    report(s, results, len(train.paths), len(queries.paths))
    if "bern" in s.methods:
        model = s.out / f"bern-{s.bits[len(s.bits) // 2]}-seed{s.seeds[0]}"
        index, root = s.out / f"index-{model.name}", Path(os.path.commonpath(train.paths))
        if not (index / "index.json").exists():
            codes = our_codec("bern", load_model(model).bottleneck).encode(x)
            write_index(index, model, root, [os.path.relpath(path, root) for path in train.paths], codes, normalize(x))
        script = Path(__file__).with_name("image_search.py")
        command = shlex.join(["python", str(script), "query", "--index", str(index), queries.paths[0]])
        print(f"to search by these codes: {command}")


# ---- table and figure -----------------------------------------------------------------------------------------------
def read_results(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Values by metric of the measurements in a file, by method, bits and seed."""
    found = defaultdict(dict)
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        *key, metric, value = line.split(",")
        found[tuple(key)][metric] = value
    return found


def report(s: Compress, results: dict[tuple[str, ...], dict[str, str]], images: int, queries: int) -> None:
    """Print and write the table, with what made it, and draw the figure."""
    values = defaultdict(list)
    for (method, bits, _), metrics in results.items():
        for metric, value in metrics.items():
            values[method, int(bits), metric].append(float(value) * (100 if metric in PERCENT else 1))
    codes = sorted({key[:2] for key in values}, key=lambda code: (code[1], [*STYLES].index(code[0])))
    measured = [metric for metric in PERCENT if any(key[2] == metric for key in values)]

    def cell(*key: Any) -> str:
        found = values.get(key, [])
        return (f"{np.mean(found):.1f}" if found else "-") + (f" ± {np.std(found):.1f}" if len(found) > 1 else "")

    sizes, first, table = sorted(s.bits), measured[0], []
    middle = sizes[len(sizes) // 2]
    for method in sorted({code[0] for code in codes}, key=[*STYLES].index):
        width = {bits: codes[-1][1] if method == "float" else bits for bits in sizes}  # floats have one size
        row = {"codes": STYLES[method][0]}
        row |= {f"{PERCENT[first]} %, {bits // 8} bytes": cell(method, width[bits], first) for bits in sizes}
        row |= {f"{PERCENT[m]} %, {middle // 8} bytes": cell(method, width[middle], m) for m in measured[1:]}
        table.append(row | {"fit, s": cell(method, width[middle], "fit_seconds")})
    title = f"{s.name}: {queries:,} queries, {images:,} images to search, {s.encoder} frozen"
    settings = json.loads(json.dumps(asdict(s), default=str))
    image_codes.write_results(s.out, {"data": title, "settings": settings}, table)
    shown = [metric for metric in measured if metric in ("map_1000", "knn")] or ["recall_10"]
    figure = Figure(figsize=(4.6 * len(shown) + 0.4, 4.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for method, (name, *style) in STYLES.items():
            of = [code for code in codes if code[0] == method]
            points = [(values[(*code, "bytes")][0], np.mean(values[(*code, metric)])) for code in of]
            if style and points:
                line = dict(zip(("color", "marker", "linewidth", "zorder"), (*style, style[2]), strict=True))
                axes.plot(*zip(*points, strict=True), label=name, **line)
            elif method == "float" and points:
                axes.axhline(points[0][1], color="black", ls="--", label=f"{name}, {points[0][0]:,.0f} bytes")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("bytes an image")
        axes.set_title(f"{PERCENT[metric]}, %", loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#EEEEEE")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(s.out / f"{s.name}.png", dpi=150)
    print(s.out / f"{s.name}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line."""
    given = sys.argv[1:] if arguments is None else arguments
    return image_codes.main(Quick if "--quick" in given else Compress, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
