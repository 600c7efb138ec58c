"""Evaluation of representations and of their uncertainty.

`encode` converts images, in a tensor or a loader, to arrays; `fine_tune` trains on loaders; `StochConTransformer` makes
a model a step of a scikit-learn pipeline, `BottleneckTransformer` a latent on features. Everything else takes arrays or
tensors: a frozen linear probe, nearest neighbours, a random forest against the number of bits, search by codes and its
quality, statistics of bits, and rejection, detection and calibration for uncertainty. Lists and data frames of numbers
are accepted too, except for bits. Labels are integers; none may be missing. scikit-learn is imported where it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stochastic_bottleneck.evaluation.bits import BitStatistics, bit_statistics
from stochastic_bottleneck.evaluation.encoding import Encoded, encode
from stochastic_bottleneck.evaluation.fine_tuning import FineTuned, fine_tune
from stochastic_bottleneck.evaluation.forest import ForestCurve, forest_curve
from stochastic_bottleneck.evaluation.probes import ProbeResult, knn_accuracy, linear_probe
from stochastic_bottleneck.evaluation.retrieval import (
    RetrievalScores,
    asymmetric_topk,
    hamming_topk,
    neighbour_recall,
    rescore,
    retrieval_scores,
)
from stochastic_bottleneck.evaluation.uncertainty import (
    RejectionCurve,
    auroc,
    expected_calibration_error,
    rejection_curve,
)

if TYPE_CHECKING:
    from stochastic_bottleneck.evaluation.transformer import BottleneckTransformer, StochConTransformer

__all__ = [
    "BitStatistics",
    "BottleneckTransformer",
    "Encoded",
    "FineTuned",
    "ForestCurve",
    "ProbeResult",
    "RejectionCurve",
    "RetrievalScores",
    "StochConTransformer",
    "asymmetric_topk",
    "auroc",
    "bit_statistics",
    "encode",
    "expected_calibration_error",
    "fine_tune",
    "forest_curve",
    "hamming_topk",
    "knn_accuracy",
    "linear_probe",
    "neighbour_recall",
    "rejection_curve",
    "rescore",
    "retrieval_scores",
]


def __getattr__(name: str) -> Any:
    """Import a transformer, whose base classes are scikit-learn's, when it is first accessed."""
    if name in ("BottleneckTransformer", "StochConTransformer"):
        return getattr(import_module(f"{__name__}.transformer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
