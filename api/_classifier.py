"""`KernelDistiller`: a scikit-learn classifier that keeps a handful of points."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from ._estimator import Distiller, portable
from ._methods import MethodOptions
from .solver.feature_maps import FeatureMap
from .solver.loop import Loop
from .solver.transforms import Transform


class KernelDistiller(ClassifierMixin, Distiller):
    """Classifier that keeps a handful of distilled points instead of its training set.

    With the default parameters this is the ridge classifier on one-hot targets, held by one point a class:
    scores equal those of ``sklearn.linear_model.Ridge(alpha=ridge).fit(X, one_hot(y))`` up to rounding.

    Parameters
    ----------
    per_class : int, default=1
        Points a class.
    n_points : int, default=None
        Number of points instead. k points lose nothing for k classes; fewer give the nearest model of lower
        rank.
    feature_map : str, FeatureMap or torch.nn.Module, default="identity"
        What the model is linear in: "identity", "fourier", "fcnn", "deep-linear", "conv", "coupling",
        "patches", a map that is already made, or a frozen network. The default is the linear model: it is
        exact for every table, its points are rows like those of X, and nothing about it is random or needs a
        length scale. Random maps are stronger only with many more features than columns, and then have no
        preimage, so that their points live in feature space.
    feature_params : dict, default=None
        Arguments of the map, for instance ``{"n_features": 1024}``.
    input_transform : str or Transform, default="auto"
        "auto" standardises images by channel and leaves columns of tables alone (put a scaler before this
        estimator); "none", "standardize", "zca-kip", "zca-rfad", "zca-kornia".
    ridge : str, float, Ridge or sequence of float, default="auto"
        λ, or how to choose it: "loo", "holdout", "gcv"; candidates as a sequence. "auto" is "loo" below
        2000 rows and "holdout" above.
    distilled_ridge : float, default=0.0
        λ with which the set itself is to be trained; any value is exact.
    near : str or array of shape (m, *input_shape), default="auto"
        What points are placed near, or start from: "noise" (the default of closed forms), "data", the name of a
        coreset, or given points.
    labels : {"auto", "one-hot", "solved"}, default="auto"
        Labels that the points are made for. "auto" is "one-hot" near noise and "solved" otherwise.
    method : str or options of a learned method, default="closed-form"
        As in `distill`. "theorem" and "all-ridges" need ``fit_intercept=False``. Learned methods
        other than "full-kip" have no feature map, ridge or intercept of their own to choose here.
    loop : Loop, optional
        Steps, budget and checkpoint of a learned method.
    storage : {"float64", "float32", "float16", "uint8"}, default="float64"
        Type of the points; labels are solved again after rounding.
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
        The set, with `save`. It predicts labels as `predict` does where they are integers or strings, and
        indices into `classes_` otherwise.
    x_ : ndarray, shape (m, ...)
        Points, in the units and shape of rows of X, or where ``distilled_.space`` says that the set lives.
    y_ : ndarray, shape (m, k)
        Soft labels.
    labels_ : ndarray, shape (m,), or None
        Class of each point; None where points belong to no class (method "all-ridges").
    certificate_ : Certificate
        What is guaranteed of the set.
    classes_ : ndarray, shape (k,)
    n_features_in_ : int
        Columns of X; values of one image.
    feature_names_in_ : ndarray, shape (n_features_in_,)
        Only where X has column names that are all strings.

    Notes
    -----
    X is a table (n, d) or images (n, h, w) or (n, c, h, w). Rows of weight zero are left out before anything
    else, so a class that has no other rows is not among `classes_`.

    Integer weights are repeated rows, for a given λ and a map and transform that take nothing from the rows;
    "loo", "holdout" and "gcv" count rows, so they may choose another λ.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = kd.KernelDistiller().fit(X, y)
    >>> model.x_.shape, round(model.score(X, y), 2)
    ((3, 4), 0.86)
    """

    def __init__(
        self,
        *,
        per_class: int = 1,
        n_points: int | None = None,
        feature_map: str | FeatureMap | torch.nn.Module = "identity",
        feature_params: Mapping[str, Any] | None = None,
        input_transform: str | Transform = "auto",
        ridge: Any = "auto",
        distilled_ridge: float = 0.0,
        near: Any = "auto",
        labels: str = "auto",
        method: str | MethodOptions = "closed-form",
        loop: Loop | None = None,
        storage: str = "float64",
        fit_intercept: bool = True,
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        progress: bool | None = False,
    ) -> None:
        super().__init__(
            n_points=n_points,
            feature_map=feature_map,
            feature_params=feature_params,
            input_transform=input_transform,
            ridge=ridge,
            distilled_ridge=distilled_ridge,
            near=near,
            method=method,
            loop=loop,
            storage=storage,
            fit_intercept=fit_intercept,
            precision=precision,
            random_state=random_state,
            progress=progress,
        )
        self.per_class = per_class
        self.labels = labels

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Distil a training set.

        Parameters
        ----------
        X : array-like, shape (n, d), (n, h, w) or (n, c, h, w)
        y : array-like, shape (n,)
            Labels of any dtype.
        sample_weight : array-like, shape (n,), default=None

        Returns
        -------
        self
        """
        X, y, weight = self._check_fit(X, y, sample_weight)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"found one class only ({self.classes_[0]!r}): a classifier needs at least two")
        known = portable(self.classes_)
        names = None if known is not None else tuple(map(str, self.classes_))
        ds = self._distill(
            X,
            indices if known is None else known[indices],
            weight,
            per_class=self.per_class,
            labels=self.labels,
            class_names=names,
        )
        self.labels_ = None if ds.labels is None else self.classes_[ds.labels.numpy()]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of rows, by the model trained on the points alone.

        Parameters
        ----------
        X : array-like, shape (n, ...)

        Returns
        -------
        ndarray, shape (n, k), or (n,) for two classes
            One column a class. For two classes, the score of ``classes_[1]`` minus that of ``classes_[0]``,
            which is what `sklearn.linear_model.RidgeClassifier` calls its decision function.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Labels of rows, by the model trained on the points alone.

        Parameters
        ----------
        X : array-like, shape (n, ...)

        Returns
        -------
        ndarray, shape (n,), of the dtype of `classes_`
        """
        scores = self._scores(X)
        return self.classes_[scores.argmax(axis=1)]

    def fit_resample(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Distil, and return the points with their classes: a small training set for any other classifier.

        The name and the result are those of imbalanced-learn's samplers, so that this is a step of its
        pipelines. Only soft labels (`y_`) are exact; classes are what most classifiers take.

        Parameters
        ----------
        X : array-like, shape (n, ...)
        y : array-like, shape (n,)
        sample_weight : array-like, shape (n,), default=None

        Returns
        -------
        X_s : ndarray, shape (m, ...)
        y_s : ndarray, shape (m,), of the dtype of `y`

        Raises
        ------
        ValueError
            If the points are not in the units of X, or belong to no class.
        """
        self.fit(X, y, sample_weight)
        points = self._raw_points()
        if self.labels_ is None:
            raise ValueError(
                f"points of method {self.method!r} belong to no class: train on `x_` and `y_`, or use another"
                " method"
            )
        return points, self.labels_.copy()
