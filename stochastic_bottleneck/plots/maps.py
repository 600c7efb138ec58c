"""Two-dimensional map of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stochastic_bottleneck._arrays import array, class_labels
from stochastic_bottleneck._checks import choice, seed_of
from stochastic_bottleneck.evaluation._inputs import check_finite_rows, sklearn
from stochastic_bottleneck.plots._style import check_axes, lines, new_axes, point_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["code_map"]

MapMethod = Literal["pca", "tsne"]


def code_map(
    codes: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    method: MapMethod = "pca",
    seed: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """Scatter plot of codes projected to two dimensions, with classes as colours and markers.

    Args:
        codes: bits, latents or features. Shape: (N, D)
        labels: integer classes. Shape: (N,)
        names: class names for the legend, in ascending order of the labels; None for the labels themselves.
        method: "pca", the two directions of largest variance, exact and fast; or "tsne", which preserves
            neighbourhoods but not distances between groups, and is slow above a few thousand images.
        seed: of the method.
        axes: to draw in; None for a new figure.

    Returns:
        The axes; with "pca" their labels give the share of variance of each direction.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, missing labels, an unknown method, too few
            images, one code for all of them, or more classes than there are styles.
        TypeError: for codes that are not real numbers, labels that are not integers, or axes that are not matplotlib's.
        ModuleNotFoundError: without matplotlib or scikit-learn.

    Example:
        >>> import numpy as np
        >>> bits = np.random.default_rng(0).integers(0, 2, (60, 16))
        >>> axes = code_map(bits, np.arange(60) % 3, names=["cat", "dog", "ship"])
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['cat', 'dog', 'ship']

    Source:
        t-SNE: van der Maaten and Hinton, JMLR 9 (2008).
    """
    choice("method", method, get_args(MapMethod))
    seed = seed_of(seed)
    check_axes(axes)
    x = array(codes, "codes")
    _check(x)
    y = class_labels(labels, len(x), "labels")
    classes = np.unique(y)
    styles = point_styles()
    if len(classes) > len(styles):
        raise ValueError(
            f"labels must hold at most {len(styles)} classes, one style each, got {len(classes)}; choose some, as in "
            "labels[np.isin(labels, [3, 5])]"
        )
    titles = lines(classes if names is None else names, "names", len(classes), "for each class in labels")
    points, x_label, y_label = _project(x.astype(np.float64), method, seed)
    axes = new_axes(axes, x_label, y_label)
    for label, name, style in zip(classes, titles, styles, strict=False):
        members = points[y == label]
        axes.scatter(members[:, 0], members[:, 1], s=14, linewidths=0, alpha=0.8, label=name, **style)
    axes.set(xticks=[], yticks=[])
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return axes


def _check(x: NDArray[Any]) -> None:
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"codes must have shape (N, D) with D at least 2, got {x.shape}; unpack packed codes first")
    if len(x) < 3:
        raise ValueError(f"codes must hold at least 3 images, got {len(x)}")
    check_finite_rows(np.isfinite(x), "codes")
    if (x == x[0]).all():
        raise ValueError("codes must differ between images, got one code for all of them; the latent has collapsed")


def _project(x: NDArray[Any], method: str, seed: int) -> tuple[NDArray[Any], str, str]:
    """Points in two dimensions and the labels of the axes."""
    if method == "pca":
        model = sklearn("decomposition").PCA(2, random_state=seed)
        points = model.fit_transform(x)
        first, second = (f"direction {i + 1}" for i in range(2))
        shares = [f" ({100 * share:.0f} % of the variance)" for share in model.explained_variance_ratio_]
        return points, first + shares[0], second + shares[1]
    # scikit-learn's default perplexity, which must be below the number of images.
    perplexity = min(30.0, (len(x) - 1) / 3)
    model = sklearn("manifold").TSNE(2, perplexity=perplexity, random_state=seed)
    return model.fit_transform(x), "t-SNE 1", "t-SNE 2"
