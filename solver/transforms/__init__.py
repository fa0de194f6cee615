"""Input transforms: fitted in a stream, stored with the set, inverted when points are handed out."""

import inspect
from typing import Any

from torch import Tensor

from .._check import check_name
from .base import Chunks, Transform, check_shape
from .identity import Identity
from .standardize import Standardize
from .zca import ZCA, ZCAKip, ZCAKornia, ZCARfad

__all__ = [
    "TRANSFORMS",
    "ZCA",
    "Chunks",
    "Identity",
    "Standardize",
    "Transform",
    "ZCAKip",
    "ZCAKornia",
    "ZCARfad",
    "make_transform",
    "restore_transform",
]

TRANSFORMS: dict[str, type[Transform]] = {
    kind.name: kind for kind in (Identity, Standardize, ZCAKip, ZCARfad, ZCAKornia)
}


def make_transform(name: str, chunks: Chunks, input_shape: tuple[int, ...], **params: Any) -> Transform:
    """Fit a transform by name.

    Parameters
    ----------
    name : {"none", "standardize", "zca-kip", "zca-rfad", "zca-kornia"}
        Kind of transform.
    chunks : callable
        Starts a new pass over the raw training rows, each item a Tensor (rows, *input_shape).
    input_shape : tuple of int
        Shape of one raw input: ``(d,)`` or ``(c, h, w)``.
    **params
        Of the kind: ``reg`` (zca-kip, zca-rfad), ``per_sample`` (zca-rfad), ``eps``, ``scale`` (zca-kornia).

    Raises
    ------
    ValueError
        If the name or a parameter is unknown, or the rows cannot be used.
    """
    kind = TRANSFORMS[check_name(name, TRANSFORMS, "transform")]
    known = [key for key in inspect.signature(kind.fit).parameters if key not in ("chunks", "input_shape")]
    for key in params:
        if not known:
            raise ValueError(f"the transform {name!r} takes no parameters, got {key!r}")
        check_name(key, known, f"parameter of the transform {name!r}:")
    return kind.fit(chunks, check_shape(input_shape), **params)


def restore_transform(name: str, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Transform:
    """Make a stored transform again, bit for bit, from its `name`, `parameters()` and `tensors()`."""
    return TRANSFORMS[check_name(name, TRANSFORMS, "transform")].restore(parameters, tensors)
