"""`KernelDistillerRegressor`: a scikit-learn regressor that keeps a handful of points."""

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import Tags

from ._estimator import Distiller


class KernelDistillerRegressor(RegressorMixin, Distiller):
    """Ridge regression that keeps a handful of distilled points instead of its training set.

    With the default feature map, predictions equal those of ``sklearn.linear_model.Ridge(alpha=ridge)`` up to
    rounding, from two points for one output.

    Parameters
    ----------
    n_points : int, default=None
        Number of points; by default one an output, and one more with `fit_intercept`, which loses nothing.
        Fewer give the nearest model of lower rank.
    feature_map : str, FeatureMap or torch.nn.Module, default="identity"
        What the model is linear in; see `KernelDistiller` for the choices and the reason of the default.
    feature_params : dict, default=None
        Arguments of the map, for instance ``{"n_features": 1024}``.
    input_transform : str or Transform, default="auto"
        "auto" standardises images by channel and leaves columns of tables alone (put a scaler before this
        estimator); "none", "standardize", "zca-kip", "zca-rfad", "zca-kornia".
    ridge : str, float, Ridge or sequence of float, default="auto"
        λ, or how to choose it: "loo", "holdout", "gcv"; candidates as a sequence. "auto" is "gcv".
    distilled_ridge : float, default=0.0
        λ with which the set itself is to be trained; any value is exact.
    near : str or array of shape (m, *input_shape), default="auto"
        What points are placed near, or start from: "noise" (the default of closed forms), "data", the name of a
        coreset, or given points.
    method : str or options of a learned method, default="closed-form"
        As in `distill`. "all-ridges" needs ``fit_intercept=False``. Learned methods
        other than "full-kip" have no feature map, ridge or intercept of their own to choose here.
    loop : Loop, optional
        Steps, budget and checkpoint of a learned method.
    storage : {"float64", "float32", "float16", "uint8"}, default="float64"
        Type of the points; targets are solved again after rounding.
    fit_intercept : bool, default=True
        Unpenalised intercept.
    precision : {"auto", "high", "exact"}, default="auto"
        Arithmetic of features over the training rows: that of X (float32 for uint8 and float16), float32, or
        float64.
    random_state : int, RandomState instance or None, default=None
        Seed of random maps, held-out rows and reference points. None is seed 0: results never change from
        run to run. A RandomState gives a new seed on every `fit`.
    progress : bool or None, default=False
        Show progress: True, False, or after two seconds of work (None).

    Attributes
    ----------
    distilled_ : DistilledSet
        The set, with `save`.
    x_ : ndarray, shape (m, ...)
        Points, in the units and shape of rows of X, or where ``distilled_.space`` says that the set lives.
    y_ : ndarray, shape (m,) or (m, k)
        Targets of the points, of the shape that rows of y had.
    certificate_ : Certificate
        What is guaranteed of the set.
    n_features_in_ : int
        Columns of X; values of one image.
    feature_names_in_ : ndarray, shape (n_features_in_,)
        Only where X has column names that are all strings.

    Notes
    -----
    Rows and weights are treated as in `KernelDistiller`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = kd.KernelDistillerRegressor().fit(X, y)
    >>> model.x_.shape, round(model.score(X, y), 2)
    ((2, 10), 0.52)
    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Distil a training set.

        Parameters
        ----------
        X : array-like, shape (n, d), (n, h, w) or (n, c, h, w)
        y : array-like, shape (n,) or (n, k)
        sample_weight : array-like, shape (n,), default=None

        Returns
        -------
        self
        """
        X, y, weight = self._check_fit(X, y, sample_weight, y_numeric=True, multi_output=True)
        self._distill(X, y.astype(np.float64), weight, task="regression")
        self._target_shape = y.shape[1:]
        self.y_ = self.y_.reshape(len(self.y_), *self._target_shape)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values of rows, by the model trained on the points alone.

        Parameters
        ----------
        X : array-like, shape (n, ...)

        Returns
        -------
        ndarray, shape (n,) or (n, k), as y was
        """
        values = self._scores(X)
        return values.reshape(len(values), *self._target_shape)

    def fit_resample(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Distil, and return the points with their targets: a small training set for other regressors.

        Parameters
        ----------
        X : array-like, shape (n, ...)
        y : array-like, shape (n,) or (n, k)
        sample_weight : array-like, shape (n,), default=None

        Returns
        -------
        X_s : ndarray, shape (m, ...)
        y_s : ndarray, shape (m,) or (m, k)

        Raises
        ------
        ValueError
            If the points are not in the units of X.
        """
        self.fit(X, y, sample_weight)
        return self._raw_points(), self.y_.copy()
