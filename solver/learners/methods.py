"""The learned methods by name: their options, which say everything that a run depends on besides the data."""

import importlib
from typing import TYPE_CHECKING, Union

from .._check import check_name

if TYPE_CHECKING:
    from .frepo import FRePo
    from .full_kip import FullKIP
    from .kip import KIP
    from .rfad import RFAD

MethodOptions = Union["KIP", "FullKIP", "RFAD", "FRePo"]
LEARNED = {"kip": "KIP", "full-kip": "FullKIP", "rfad": "RFAD", "frepo": "FRePo"}


def options_class(name: str) -> type:
    """The class of options of a learned method."""
    check_name(name, LEARNED, "learned method")
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    return getattr(module, LEARNED[name])


def method_options(method: "str | MethodOptions") -> "MethodOptions | None":
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
        raise ValueError(
            f"`method` must be a name or the options of a method ({', '.join(LEARNED.values())}), got"
            f" {type(method).__name__}"
        )
    return method
