"""Distil a training set into a handful of points on which the same model is trained.

>>> import kernel_distill as kd
>>> data = kd.load_data("digits")
>>> ds = kd.distill(data.x_train, data.y_train, per_class=1, feature_map="fcnn")
>>> ds.certificate.stored_error < 1e-10, ds.score(data.x_test, data.y_test) > 0.9
(True, True)
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Certificate": "solver.certificate",
    "Data": "solver.data",
    "DistilledSet": "solver.distilled_set",
    "KernelDistiller": "estimators",
    "KernelDistillerRegressor": "estimators",
    "Ridge": "solver.ridge",
    "RidgeModel": "solver.model",
    "Statistics": "solver.statistics",
    "Status": "solver.certificate",
    "collect_statistics": "_distill",
    "distill": "_distill",
    "distill_statistics": "_distill",
    "evaluate": "_evaluate",
    "feature_maps": "solver.feature_maps",
    "kernels": "kernels",
    "load": "_distill",
    "load_data": "solver.data",
    "transforms": "solver.transforms",
}
_MODULES = ("feature_maps", "kernels", "transforms")

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "Data",
    "DistilledSet",
    "KernelDistiller",
    "KernelDistillerRegressor",
    "Ridge",
    "RidgeModel",
    "Statistics",
    "Status",
    "__version__",
    "collect_statistics",
    "distill",
    "distill_statistics",
    "evaluate",
    "feature_maps",
    "kernels",
    "load",
    "load_data",
    "transforms",
]

if TYPE_CHECKING:
    from . import kernels
    from ._distill import collect_statistics, distill, distill_statistics, load
    from ._evaluate import evaluate
    from .estimators import KernelDistiller, KernelDistillerRegressor
    from .solver import feature_maps, transforms
    from .solver.certificate import Certificate, Status
    from .solver.data import Data, load_data
    from .solver.distilled_set import DistilledSet
    from .solver.model import RidgeModel
    from .solver.ridge import Ridge
    from .solver.statistics import Statistics


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import kernel_distill` alone loads no torch and no scikit-learn."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_PUBLIC[name]}", __name__)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
