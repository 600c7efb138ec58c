"""How sure a model is of each image: its posterior's entropy or variance, and the softmax of a probe on its h."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from recipes import evaluate
from recipes.claims.chain import Subject
from recipes.classifier import Representations
from recipes.data import Images
from recipes.training import Hardware
from stochastic_bottleneck import BernoulliPosterior, StochConWrapper

Scores = dict[str, NDArray[np.float64]]


class Doubt(nn.Module):
    """Images to one number each: the posterior's entropy (bits), or its mean variance (Gaussian)."""

    def __init__(self, model: StochConWrapper) -> None:
        super().__init__()
        self.encoder, self.bottleneck = model.encoder, model.bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, H, W) -> (N, 1)."""
        posterior = self.bottleneck.posterior(self.encoder(x))
        if isinstance(posterior, BernoulliPosterior):
            return posterior.entropy().unsqueeze(1)
        return posterior.std.square().mean(dim=1, keepdim=True)


class Judge(NamedTuple):
    """A model with a linear probe on its features.

    Args:
        subject: the model.
        encode: images to features, and the posterior's uncertainty where there is one.
        probe: of scikit-learn.
    """

    subject: Subject
    encode: Representations
    probe: Any

    def rows(self, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """Features "h", and "posterior". uint8, Shape: (N, 3, H, W) -> (N, F), (N, 1)."""
        held = Images(images, torch.zeros(len(images), dtype=torch.int64))
        feed = self.subject.images._replace(test=held).evaluation("test")
        return evaluate.extract(self.encode, feed, exactly(self.subject), "uncertainty")

    def doubt(self, rows: dict[str, NDArray[np.float32]]) -> Scores:
        """Each kind of uncertainty of each image; higher is less certain. Shape: (N,)."""
        p = self.probe.predict_proba(rows["h"].astype(np.float64))
        found = {"softmax": -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=1)}
        if "posterior" in rows:
            found["posterior"] = rows["posterior"][:, 0].astype(np.float64)
        return found


def exactly(subject: Subject) -> Hardware:
    """The machine without the rounding of 16 bits, in which many uncertainties would be equal."""
    return subject.machine._replace(precision="32")


@lru_cache(maxsize=1)
def judge_of(subject: Subject) -> Judge:
    """Fit the probe with the penalty that the frozen evaluation chose on training images."""
    parts: dict[str, nn.Module] = {"h": subject.model.encoder}
    if isinstance(subject.model, StochConWrapper):
        parts["posterior"] = Doubt(subject.model)
    encode = Representations(parts).eval().to(subject.machine.device)
    train = evaluate.extract(encode, subject.images.evaluation("train"), exactly(subject), "features")["h"]
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=subject.scores["h"]["probe_c"], max_iter=200)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe stopped there is a probe all the same
        probe.fit(train.astype(np.float64), subject.images.train_labels.numpy())
    return Judge(subject, encode, probe)
