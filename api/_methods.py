"""The learned methods by name: their options, which say everything that a run depends on besides the data."""

import importlib
from typing import TYPE_CHECKING, Any, Union

from .solver._check import check_name

if TYPE_CHECKING:
    from .nn_baselines.d3_options import D3
    from .nn_baselines.gradient_matching import DC, DSA
    from .nn_baselines.trajectory_matching import MTT
    from .solver.learners.class_gaussians import ClassGaussians
    from .solver.learners.dkkt_options import DKKT, DKKTDM
    from .solver.learners.dm import DM
    from .solver.learners.frepo import FRePo
    from .solver.learners.full_kip import FullKIP
    from .solver.learners.kip import KIP
    from .solver.learners.rfad import RFAD

MethodOptions = Union[
    "KIP", "FullKIP", "RFAD", "FRePo", "DM", "DKKT", "DKKTDM", "DC", "DSA", "MTT", "D3", "ClassGaussians"
]

# Tag of a method to the module and the class of its options.
KERNEL_METHODS = {
    "kip": ("solver.learners.kip", "KIP"),
    "full-kip": ("solver.learners.full_kip", "FullKIP"),
    "rfad": ("solver.learners.rfad", "RFAD"),
    "frepo": ("solver.learners.frepo", "FRePo"),
}
# Those whose sets networks are to be trained on.
NETWORK_METHODS = {
    "dm": ("solver.learners.dm", "DM"),
    "dkkt": ("solver.learners.dkkt_options", "DKKT"),
    "dkkt+dm": ("solver.learners.dkkt_options", "DKKTDM"),
    "dc": ("nn_baselines.gradient_matching", "DC"),
    "dsa": ("nn_baselines.gradient_matching", "DSA"),
    "mtt": ("nn_baselines.trajectory_matching", "MTT"),
    "d3": ("nn_baselines.d3_options", "D3"),
}
# Fitted to the data at once: there are no steps.
FITTED_METHODS = {"class-gaussians": ("solver.learners.class_gaussians", "ClassGaussians")}
LEARNED = {**KERNEL_METHODS, **NETWORK_METHODS, **FITTED_METHODS}


def options_class(name: str) -> type:
    """The class of options of a learned method."""
    module, cls = LEARNED[check_name(name, LEARNED, "learned method")]
    return getattr(importlib.import_module(f".{module}", __package__), cls)


def method_options(method: str | MethodOptions) -> Any:
    """Options of a learned method: the defaults of a name, or those given; None for other names.

    Raises
    ------
    ValueError
        If `method` is neither a name nor options.
    """
    if isinstance(method, str):
        return options_class(method)() if method in LEARNED else None
    name = getattr(method, "method", None)
    if name not in LEARNED or not isinstance(method, options_class(name)):
        names = dict.fromkeys(cls for _, cls in LEARNED.values())
        raise ValueError(
            f"`method` must be a name or the options of a method ({', '.join(names)}), got {type(method).__name__}"
        )
    return method
