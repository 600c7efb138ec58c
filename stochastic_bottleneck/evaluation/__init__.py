"""How good a representation is: frozen linear probe, nearest neighbours, and a forest against bits kept.

Everything works on arrays of features; scikit-learn does the fitting and is imported where it is used.
"""

from stochastic_bottleneck.evaluation.forest import ForestCurve, forest_curve
from stochastic_bottleneck.evaluation.probes import ProbeResult, knn_accuracy, linear_probe

__all__ = ["ForestCurve", "ProbeResult", "forest_curve", "knn_accuracy", "linear_probe"]
