"""Which terms of the loss, and which settings of the fit, give better codes: each is changed alone.

    python examples/compare_objectives.py runs/compress --seeds 0 1 2

Reads the features of a run of `compress_pretrained.py` on labelled images. Fits on four fifths of its training images,
without their labels, and searches them with the others as queries; the test images are not used.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import image_codes
import numpy as np
import torch
import tyro
from pretrained_features import refuse_changes
from provenance import provenance, write
from torch import Tensor

from stochastic_bottleneck import StochConLoss, fit_bottleneck
from stochastic_bottleneck.codes import pack_bits
from stochastic_bottleneck.evaluation import knn_accuracy, retrieval_scores


class ViewDivergence(StochConLoss):
    """With the symmetric KL divergence between both views' posteriors, per bit (CIBHash)."""

    def terms(self, *output: Any) -> dict[str, Tensor]:
        """All terms."""
        a, b = output[2].logits.float()
        self.weights["views"] = 0.1
        return super().terms(*output) | {"views": ((a.sigmoid() - b.sigmoid()) * (a - b)).mean()}


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without InfoNCE on codes": {"loss": StochConLoss(codes=0)},
    "without the deterministic term": {"loss": StochConLoss(deterministic=0)},
    "InfoNCE on codes alone": {"loss": StochConLoss(stochastic=0, deterministic=0)},
    "codes x 3": {"loss": StochConLoss(codes=3)},
    "+ covariance, weight 0.1": {"loss": StochConLoss(covariance=0.1)},
    "+ KL, weight 0.01": {"loss": StochConLoss(kl=0.01)},
    "+ coding rate, weight 0.5": {"loss": StochConLoss(coding_rate=0.5)},
    "+ KL between views, weight 0.1": {"loss": ViewDivergence()},
    "+ prefixes of 16 and 32 bits": {"loss": StochConLoss(prefixes=(16, 32))},
    "without noise": {"samples": 0},
    "two samples": {"samples": 2},
    "without neighbours": {"neighbours": 0},
    "20 neighbours": {"neighbours": 20},
    "linear projector": {"projector": "linear"},
    "location_std 2": {"location_std": 2.0},
    "10 epochs": {"epochs": 10},
    "whitened logits": {"normalization": "whiten"},
    "without the plain image": {"plain": False},
}


@dataclass(kw_only=True)
class Compare:
    """Compare objectives on held-out training images."""

    run_folder: tyro.conf.Positional[Path]  # Of compress_pretrained.py
    bits: int = 64  # Of the codes
    seeds: tuple[int, ...] = (0,)  # Of the fits
    variants: tuple[Literal[tuple(VARIANTS)], ...] = tuple(VARIANTS)  # To compare
    out: Path = Path("runs/objective.json")  # File of the results; what it has is not measured again

    def run(self) -> None:
        """Fit and measure each, and write the file after each."""
        features = self.run_folder / "features"
        labels = np.load(features / "labels.npy")
        train, held_out = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) * 4 // 5])
        database = np.load(features / "database.npy")
        views = [view[train] for view in (database, *np.load(features / "views.npy", mmap_mode="r"))]
        x = torch.from_numpy(database.astype(np.float32))
        settings = {"bits": self.bits, "features": image_codes.digest(features / "database.npy")}
        saved = json.loads(self.out.read_text()) if self.out.exists() else settings | {"measured": {}}
        refuse_changes(self.out, saved, settings)
        found = saved["measured"]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for seed, name in product(self.seeds, self.variants):
            if str(seed) in found.setdefault(name, {}):
                continue
            options = {"epochs": 20, "plain": True} | VARIANTS[name]
            pairs = views if options.pop("plain") else views[1:]
            bottleneck = fit_bottleneck(pairs, "bern", self.bits, seed=seed, progress=True, **options)
            with torch.inference_mode():
                z = torch.cat([bottleneck(part).z for part in x.split(4096)]).numpy()
            knn = knn_accuracy(z[train], labels[train], z[held_out], labels[held_out], k=20, metric="hamming")
            packed = pack_bits(z)
            scores = retrieval_scores(packed[held_out], labels[held_out], packed[train], labels[train])
            found[name][str(seed)] = {"map": 100 * scores.map, "knn": 100 * knn, "ones": 100 * float(z.mean())}
            print(name, found[name][str(seed)])
            rows = [[name, *([run[k] for run in of.values()] for k in ("map", "knn"))] for name, of in found.items()]
            table = {"columns": ["changed", "mAP@1000 %", "kNN %"], "formats": ["", ".1f", ".1f"], "rows": rows}
            about = provenance() | settings | {"fitted on": len(train), "queries": len(held_out)}
            write(self.out, json.dumps(about | {"table": table, "measured": found}, indent=1))


if __name__ == "__main__":
    sys.exit(image_codes.main(Compare, __doc__))
