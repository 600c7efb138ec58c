"""How good a representation is, and what its uncertainty is worth.

`encode` turns images, in a tensor or a loader, into arrays; `fine_tune` trains on loaders; `StochConTransformer` is a
model as a step of a scikit-learn pipeline. Everything else works on arrays or tensors: a frozen linear probe, nearest
neighbours, a forest against bits kept, the use of the bits, and rejection, detection and calibration for uncertainty.
Lists and data frames of numbers do as well, but for bits. Labels are integers; none may be missing. scikit-learn is
imported where it is used.
"""

from typing import TYPE_CHECKING, Any

from stochastic_bottleneck.evaluation.bits import BitStatistics, bit_statistics
from stochastic_bottleneck.evaluation.encoding import Encoded, encode
from stochastic_bottleneck.evaluation.fine_tuning import FineTuned, fine_tune
from stochastic_bottleneck.evaluation.forest import ForestCurve, forest_curve
from stochastic_bottleneck.evaluation.probes import ProbeResult, knn_accuracy, linear_probe
from stochastic_bottleneck.evaluation.uncertainty import (
    RejectionCurve,
    auroc,
    expected_calibration_error,
    rejection_curve,
)

if TYPE_CHECKING:
    from stochastic_bottleneck.evaluation.transformer import StochConTransformer

__all__ = [
    "BitStatistics",
    "Encoded",
    "FineTuned",
    "ForestCurve",
    "ProbeResult",
    "RejectionCurve",
    "StochConTransformer",
    "auroc",
    "bit_statistics",
    "encode",
    "expected_calibration_error",
    "fine_tune",
    "forest_curve",
    "knn_accuracy",
    "linear_probe",
    "rejection_curve",
]


def __getattr__(name: str) -> Any:
    """The transformer, whose base classes are scikit-learn's, imported when it is asked for."""
    if name == "StochConTransformer":
        from stochastic_bottleneck.evaluation.transformer import StochConTransformer

        return StochConTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
