"""What the classifier and the regressor share: checks, the call of `distill`, points in the user's shape."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ._distill import distill
from ._methods import MethodOptions, method_options
from .solver.distilled_set import DistilledSet
from .solver.encoder import Encoder
from .solver.feature_maps import FeatureMap
from .solver.loop import Loop
from .solver.transforms import Transform

# Kept as they are, because `distill` reads them in batches and never copies the whole; any other dtype
# becomes the first of these.
_DTYPES = [np.float64, np.float32, np.float16, np.uint8]


class Distiller(BaseEstimator):
    """What the classifier and the regressor share: parameters, validation, the distilled set."""

    distilled_: DistilledSet
    n_features_in_: int

    def __init__(
        self,
        *,
        n_points: int | None = None,
        feature_map: str | FeatureMap | torch.nn.Module = "identity",
        feature_params: Mapping[str, Any] | None = None,
        input_transform: str | Transform = "auto",
        ridge: Any = "auto",
        distilled_ridge: float = 0.0,
        near: Any = "auto",
        method: str | MethodOptions = "closed-form",
        loop: Loop | None = None,
        storage: str = "float64",
        fit_intercept: bool = True,
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        progress: bool | None = False,
    ) -> None:
        self.n_points = n_points
        self.feature_map = feature_map
        self.feature_params = feature_params
        self.input_transform = input_transform
        self.ridge = ridge
        self.distilled_ridge = distilled_ridge
        self.near = near
        self.method = method
        self.loop = loop
        self.storage = storage
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _check_fit(
        self, X: Any, y: Any, sample_weight: Any, **params: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return validated rows, targets and weights, without rows of weight zero.

        Leaving those out makes "weight zero" mean "not there" for everything that is taken from the rows
        besides the sums: classes, length scales, transforms and the choice of λ.
        """
        table, shape = as_table(X)
        checked: Any = validate_data(self, table, y, dtype=_DTYPES, ensure_min_samples=2, **params)
        table, y = checked
        self._input_shape = table.shape[1:] if shape is None else shape
        X = table.reshape(len(table), *self._input_shape)
        if sample_weight is None:
            return X, y, None
        weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
        kept = weight > 0
        if not kept.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return (X, y, weight) if kept.all() else (X[kept], y[kept], weight[kept])

    def _scores(self, X: Any) -> np.ndarray:
        """Return outputs (n, k) of the model trained on the points, for rows of the shape that was fitted."""
        check_is_fitted(self)
        table, shape = as_table(X)
        table: Any = validate_data(self, table, dtype=_DTYPES, reset=False)
        shape = table.shape[1:] if shape is None else shape
        if shape != self._input_shape:
            raise ValueError(f"this model was fitted on rows of shape {self._input_shape}, got {shape}")
        return self.distilled_.decision_function(table.reshape(len(table), *shape))

    def _distill(
        self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, **options: Any
    ) -> DistilledSet:
        given = dict(
            feature_map=self.feature_map,
            feature_params=self.feature_params,
            ridge=self.ridge,
            distilled_ridge=self.distilled_ridge,
            intercept=self.fit_intercept,
            precision=self.precision,
        )
        learned = method_options(self.method)
        if learned is not None and learned.method != "full-kip":
            # Of no use to these methods: refused if asked for, and not passed on where left at their defaults.
            names = {"intercept": "fit_intercept"}
            defaults = type(self)().get_params()
            given = {name: value for name, value in given.items() if value != defaults[names.get(name, name)]}
        ds = distill(
            X,
            y,
            sample_weight=weight,
            method=self.method,
            n_points=self.n_points,
            transform=self.input_transform,
            near=self.near,
            storage=self.storage,
            loop=self.loop,
            seed=seed_of(self.random_state),
            progress=self.progress,
            **given,
            **options,
        )
        self.distilled_, self.certificate_ = ds, ds.certificate
        x, self.y_ = ds.numpy()
        # `distill` gives (n, h, w) images an axis of one channel; points have the shape of the user's rows.
        self.x_ = x if ds.space == "features" else x.reshape(len(x), *self._input_shape)
        return ds

    def _raw_points(self) -> np.ndarray:
        """Copy the points, if they are in the units of the data."""
        space, encoder = self.distilled_.space, self.distilled_.encoder
        if space == "features":
            assert isinstance(encoder, Encoder)  # only finite maps have a feature space
            feature_map = encoder.feature_map
            raise ValueError(
                f"the set lives in feature space: the {feature_map.name!r} map of {feature_map.n_inputs}"
                f" inputs and {feature_map.n_features} features has no preimage. For points in the units of X"
                f" use 'identity', 'fourier' or 'fcnn' with at most {feature_map.n_inputs} features, or"
                " method='label-solve' or 'full-kip'"
            )
        if space == "transformed":
            raise ValueError(
                f"the set lives in the space of the transform {encoder.transform.name!r}, which cannot be"
                " undone for every point. Use input_transform='standardize' or 'none'"
            )
        return self.x_.copy()


def as_table(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Images as rows of values, and the shape of one; anything else as it is.

    scikit-learn counts the columns of axis 1, which are channels in an image: as a table, `n_features_in_`
    is the number of values and every check of scikit-learn's applies.
    """
    if getattr(X, "ndim", 2) not in (3, 4):
        return X, None
    shape = tuple(int(size) for size in X.shape[1:])
    return X.reshape(len(X), math.prod(shape)), shape


def portable(classes: np.ndarray) -> np.ndarray | None:
    """Classes as int64 or str, the labels that a distilled set and its file can hold; None for others."""
    plain = np.asarray(classes.tolist())
    return plain if plain.dtype.kind in "iU" else None


def seed_of(random_state: Any) -> int:
    """Seed of a `random_state`; a RandomState moves on, as it does in any estimator."""
    if random_state is None:
        return 0
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
