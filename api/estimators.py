"""scikit-learn estimators: `fit` distils, `predict` uses nothing but the distilled points.

Because the set is exact, `KernelDistiller` is the ridge classifier of the whole training set (one-hot
targets) that happens to keep k points instead of n rows, and `KernelDistillerRegressor` is ridge
regression that keeps as many points as it has outputs. What is lost, if anything, is in `certificate_`.
"""

from ._classifier import KernelDistiller
from ._regressor import KernelDistillerRegressor

__all__ = ["KernelDistiller", "KernelDistillerRegressor"]
