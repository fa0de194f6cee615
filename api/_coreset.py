"""`coreset`: rows of a data set that stand for all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._inputs import prepare_rows, unpack
from .solver._check import check_count, check_name
from .solver.coresets import CORESETS, Coreset, coreset_rows
from .solver.learners.rows import TrainingRows
from .solver.reference import nominal_classes
from .solver.source import ArraySource, as_array
from .solver.transforms import Transform


def coreset(
    X: Any,
    y: Any = None,
    *,
    per_class: int | None = None,
    n_points: int | None = None,
    method: str = "k-means",
    transform: str | Transform = "auto",
    embedding: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    **params: Any,
) -> Coreset:
    """Choose rows of a data set that stand for all of them.

    Parameters
    ----------
    X : array, shape (n, d), (n, h, w) or (n, c, h, w), or Data
        Raw inputs of NumPy, torch or CuPy; of a `Data`, the training split with its labels.
    y : array, shape (n,), optional
        Class labels, integers or strings. Without them there is one budget over all rows.
    per_class : int, optional
        Rows of each class; needs labels.
    n_points : int, optional
        Number of rows instead; with labels, spread over the classes as evenly as can be.
    method : str, default "k-means"
        "random"; "k-means" (the row in the middle of each cluster); "k-center" (farthest first); "herding" and
        "kernel-herding" (the mean of the rows, or of a kernel's features, is matched); drawn at random, favouring rows
        that matter to a family of functions: "lightweight" (k-means costs), "kernel-density" (densities), "rbf"
        (radial functions of all scales), "leverage" (kernel ridge regression).
    transform : str or Transform, default "auto"
        What rows are compared after, as for `distill`; images are flattened then.
    embedding : callable, optional
        Maps transformed inputs, float32 (float64 where the data are) torch tensors (b, *input_shape), to what is
        compared instead of them: the features of a network, or ``feature_map.features``.
    seed : int, default 0
    **params
        Options of the method: ``kernel``, ``bandwidth``, ``ridge``, ``n_features``, ``max_iterations``,
        ``batch_size``; see `solver.coresets.select`.

    Returns
    -------
    Coreset
        ``indices, weights = coreset(...)``, or by attribute, with inclusion probabilities where rows were drawn.
        Torch tensors on the CPU; index NumPy arrays by ``indices.numpy()``.

    Raises
    ------
    ValueError
        If a class has fewer rows than asked for, rows are not finite, or a name or option is unknown.

    Notes
    -----
    Holds the rows of one class at a time (all, without labels) in floating point; `solver.coresets.select` has the
    cost of each method.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> indices, weights = kd.coreset(data.x_train, data.y_train, per_class=2, method="k-means")
    >>> data.y_train[indices.numpy()][:6].tolist(), float(weights.sum()) == len(data.y_train)
    ([0, 0, 1, 1, 2, 2], True)
    """
    check_name(method, CORESETS, "coreset")
    if (per_class is None) == (n_points is None):
        raise ValueError("say how many rows: either `per_class` or `n_points`")
    X, y, task, _, _, _ = unpack(X, y, "auto", None, None)
    if y is None or task == "regression":
        y, task = np.zeros(len(as_array(X, "X"))), "regression"
    source, fitted, coding = prepare_rows(
        X, y, transform=transform, task=task, targets="one-hot", n_classes=None
    )
    assert isinstance(source, ArraySource)
    if not coding.is_classes:
        if n_points is None:
            raise ValueError("`per_class` needs labels: pass `y`, or `n_points` for one budget over all rows")
        counts: int | list[int] = check_count(n_points, "n_points")
    elif per_class is not None:
        counts = [check_count(per_class, "per_class")] * coding.n_outputs
    else:
        nominal = nominal_classes(check_count(n_points, "n_points"), coding)
        assert nominal is not None
        counts = nominal.bincount(minlength=coding.n_outputs).tolist()
    dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
    # Every row is looked at once: there is nothing to keep.
    rows = TrainingRows(source, fitted, coding, seed=seed, holdout=0.0, dtype=dtype, cache_bytes=0)
    return coreset_rows(rows, method, counts, seed=seed, embedding=embedding, **params)
