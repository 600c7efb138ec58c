"""Logistic regression whose loss and gradient are computed on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck.evaluation._inputs import scipy

TOLERANCE = 1e-4  # scikit-learn's, on the gradient's largest entry
MAX_LINE_SEARCH_STEPS = 50  # scikit-learn's


class DeviceLogisticRegression:
    """Multinomial logistic regression with an L2 penalty: scikit-learn's objective and solver (scipy's L-BFGS).

    The weights stay on the host; loss and gradient, which are sums over all images, are computed on the device.

    Args:
        max_iter: iterations per fit.
        device: holds the features during the fit.
    """

    def __init__(self, max_iter: int, device: torch.device | str) -> None:
        self.max_iter, self.device, self.c = max_iter, torch.device(device), 1.0
        self.classes: NDArray[Any] = np.empty(0)
        self.weights = torch.empty(0)  # Shape: (classes, F + 1), the intercept last

    def set_params(self, *, C: float) -> DeviceLogisticRegression:  # noqa: N803, scikit-learn's name
        """Set the inverse strength of the penalty."""
        self.c = C
        return self

    def fit(self, features: NDArray[np.float32], labels: NDArray[Any]) -> DeviceLogisticRegression:
        """Fit to features. Shapes: (N, F) and (N,)."""
        self.classes, indices = np.unique(labels, return_inverse=True)
        x = torch.from_numpy(features).to(self.device)
        y = torch.from_numpy(indices).to(self.device)[:, None]
        shape = (len(self.classes), x.shape[1] + 1)
        # For two classes scikit-learn has one row, the difference of our two, so its penalty is twice as large.
        penalty = (2 if len(self.classes) == 2 else 1) / (self.c * len(x))

        def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            found = _loss_and_gradient(self._on_device(flat, shape), x, y, penalty).cpu().numpy()
            return float(found[0]), found[1:]

        options = {
            "maxiter": self.max_iter,
            "maxls": MAX_LINE_SEARCH_STEPS,
            "gtol": TOLERANCE,
            "ftol": 64 * np.finfo(float).eps,
        }
        start = np.zeros(shape[0] * shape[1])
        with torch.autocast(self.device.type, enabled=False):
            found = scipy("optimize").minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
        self.weights = self._on_device(found.x, shape)
        return self

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Most probable classes. Shape: (N,)."""
        with torch.autocast(self.device.type, enabled=False):
            logits = _logits(self.weights, torch.from_numpy(features).to(self.device))
        predicted: NDArray[Any] = self.classes[logits.argmax(1).cpu().numpy()]
        return predicted

    def score(self, features: NDArray[np.float32], labels: NDArray[Any]) -> float:
        """Accuracy, between 0 and 1."""
        return float(np.mean(self.predict(features) == labels))

    def _on_device(self, flat: NDArray[np.float64], shape: tuple[int, int]) -> Tensor:
        return torch.from_numpy(flat).to(self.device, torch.float32).view(shape)


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(weights[:, -1], x, weights[:, :-1].T)


def _loss_and_gradient(weights: Tensor, x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Mean cross-entropy plus penalty, followed by the gradient of all weights, as one float64 vector."""
    log_p = _logits(weights, x).log_softmax(1)
    penalized = weights[:, :-1]  # all but the intercepts
    loss = penalty / 2 * penalized.double().square().sum() - log_p.gather(1, y).mean(dtype=torch.float64)
    error = log_p.exp().scatter_add_(1, y, torch.full_like(y, -1, dtype=log_p.dtype)) / len(x)
    gradient = torch.cat([error.T @ x + penalty * penalized, error.sum(0)[:, None]], dim=1)
    return torch.cat([loss[None], gradient.flatten().double()])
