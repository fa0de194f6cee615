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
    "Ablation": "_ablation_result",
    "Certificate": "solver.certificate",
    "ClassGaussians": "solver.learners.class_gaussians",
    "Coreset": "solver.coresets",
    "D3": "nn_baselines.d3_options",
    "DC": "nn_baselines.gradient_matching",
    "DKKT": "solver.learners.dkkt_options",
    "DKKTDM": "solver.learners.dkkt_options",
    "DM": "solver.learners.dm",
    "DSA": "nn_baselines.gradient_matching",
    "Data": "solver.data",
    "DistilledSet": "solver.distilled_set",
    "DistributionalSet": "solver.distributional_set",
    "FRePo": "solver.learners.frepo",
    "FullKIP": "solver.learners.full_kip",
    "KIP": "solver.learners.kip",
    "KernelDistiller": "estimators",
    "KernelDistillerRegressor": "estimators",
    "Loop": "solver.loop",
    "MTT": "nn_baselines.trajectory_matching",
    "Pick": "solver.learners.pick",
    "RFAD": "solver.learners.rfad",
    "RayExecutor": "solver.executors.ray",
    "Recipe": "_recipe",
    "Ridge": "solver.ridge",
    "RidgeModel": "solver.model",
    "SerialExecutor": "solver.executors",
    "Shards": "solver.shards",
    "Statistics": "solver.statistics",
    "Status": "solver.certificate",
    "TrainedNetwork": "nn_baselines.trained_network",
    "TrainingRecipe": "nn_baselines.training_recipes",
    "ablate": "_ablation",
    "accel": "accel",
    "all_reduce": "solver.all_reduce",
    "callbacks": "solver.callbacks",
    "collect_statistics": "_from_statistics",
    "coreset": "_coreset",
    "distill": "_distill",
    "distill_statistics": "_from_statistics",
    "evaluate": "_evaluate",
    "feature_maps": "solver.feature_maps",
    "kernels": "kernels",
    "list_recipes": "_recipes",
    "load": "_distill",
    "load_data": "solver.data",
    "load_recipe": "_recipes",
    "merge": "_merge",
    "support_vectors": "_support_vectors",
    "sweep": "_sweep",
    "train_network": "_train_network",
    "transforms": "solver.transforms",
}
_MODULES = ("accel", "callbacks", "feature_maps", "kernels", "transforms")

__version__ = "0.1.0"
__all__ = [
    "D3",
    "DC",
    "DKKT",
    "DKKTDM",
    "DM",
    "DSA",
    "KIP",
    "MTT",
    "RFAD",
    "Ablation",
    "Certificate",
    "ClassGaussians",
    "Coreset",
    "Data",
    "DistilledSet",
    "DistributionalSet",
    "FRePo",
    "FullKIP",
    "KernelDistiller",
    "KernelDistillerRegressor",
    "Loop",
    "Pick",
    "RayExecutor",
    "Recipe",
    "Ridge",
    "RidgeModel",
    "SerialExecutor",
    "Shards",
    "Statistics",
    "Status",
    "TrainedNetwork",
    "TrainingRecipe",
    "__version__",
    "ablate",
    "accel",
    "all_reduce",
    "callbacks",
    "collect_statistics",
    "coreset",
    "distill",
    "distill_statistics",
    "evaluate",
    "feature_maps",
    "kernels",
    "list_recipes",
    "load",
    "load_data",
    "load_recipe",
    "merge",
    "support_vectors",
    "sweep",
    "train_network",
    "transforms",
]

if TYPE_CHECKING:
    from . import accel, kernels
    from ._ablation import ablate
    from ._ablation_result import Ablation
    from ._coreset import coreset
    from ._distill import distill, load
    from ._evaluate import evaluate
    from ._from_statistics import collect_statistics, distill_statistics
    from ._merge import merge
    from ._recipe import Recipe
    from ._recipes import list_recipes, load_recipe
    from ._support_vectors import support_vectors
    from ._sweep import sweep
    from ._train_network import train_network
    from .estimators import KernelDistiller, KernelDistillerRegressor
    from .nn_baselines.d3_options import D3
    from .nn_baselines.gradient_matching import DC, DSA
    from .nn_baselines.trained_network import TrainedNetwork
    from .nn_baselines.training_recipes import TrainingRecipe
    from .nn_baselines.trajectory_matching import MTT
    from .solver import callbacks, feature_maps, transforms
    from .solver.all_reduce import all_reduce
    from .solver.certificate import Certificate, Status
    from .solver.coresets import Coreset
    from .solver.data import Data, load_data
    from .solver.distilled_set import DistilledSet
    from .solver.distributional_set import DistributionalSet
    from .solver.executors import SerialExecutor
    from .solver.executors.ray import RayExecutor
    from .solver.learners.class_gaussians import ClassGaussians
    from .solver.learners.dkkt_options import DKKT, DKKTDM
    from .solver.learners.dm import DM
    from .solver.learners.frepo import FRePo
    from .solver.learners.full_kip import FullKIP
    from .solver.learners.kip import KIP
    from .solver.learners.pick import Pick
    from .solver.learners.rfad import RFAD
    from .solver.loop import Loop
    from .solver.model import RidgeModel
    from .solver.ridge import Ridge
    from .solver.shards import Shards
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
