"""What the operations accept: arrays of NumPy, torch and CuPy in, torch tensors inside; checked on metadata only."""

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_tensor(values: Any, name: str) -> Tensor:
    """A torch tensor over the same memory where the library allows it (NumPy, CuPy, anything with DLPack).

    Integers and booleans become floats that hold them: uint8, int8 and bool float32, wider ones float64.
    """
    if isinstance(values, Tensor):
        tensor = values
    elif hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        tensor = torch.from_dlpack(values)
    else:
        try:
            tensor = _from_numpy(np.asarray(values))
        except (TypeError, ValueError) as error:
            kind = getattr(values, "dtype", type(values).__name__)
            raise ValueError(f"`{name}` must be an array of numbers, got {kind} ({error})") from None
    if tensor.dtype in FLOATS:
        return tensor
    if tensor.is_complex():
        raise ValueError(f"`{name}` must be real, got {tensor.dtype}")
    narrow = tensor.dtype in (torch.uint8, torch.int8, torch.bool)
    return tensor.to(torch.float32 if narrow else torch.float64)


def _from_numpy(array: np.ndarray) -> Tensor:
    """The same memory, or a copy where torch cannot hold it: read-only, backwards, byte-swapped or unaligned."""
    backwards = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if not array.flags.writeable or not array.dtype.isnative or backwards:
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(array)


def as_rows(values: Any, name: str) -> Tensor:
    """A floating-point matrix whose rows are samples."""
    rows = as_tensor(values, name)
    if rows.ndim != 2:
        raise ValueError(
            f"`{name}` must be a matrix with samples as rows, got shape {tuple(rows.shape)};"
            " flatten images first, and turn a single column into (n, 1)"
        )
    return rows


def check_together(**tensors: Tensor | None) -> None:
    """Raise unless all tensors given lie on one device and have one dtype."""
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = given[0]
    for name, tensor in given[1:]:
        if tensor.device != first.device:
            raise ValueError(
                f"`{first_name}` is on {first.device} but `{name}` is on {tensor.device}: move one of them"
            )
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"`{first_name}` is {first.dtype} but `{name}` is {tensor.dtype}: cast one of them"
            )


def check_columns(X: Tensor, Y: Tensor, names: str = "`X` and `Y`") -> None:
    """Raise unless two matrices have as many columns."""
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"{names} must have as many columns, got {tuple(X.shape)} and {tuple(Y.shape)}")


def check_option(value: object, known: tuple[str, ...], name: str) -> str:
    """Return `value` if it is one of `known`."""
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}")
    return str(value)


def check_positive(value: float | Tensor, name: str) -> float:
    """Raise unless a number is positive and finite; tensors on a GPU are only checked for their shape."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(f"`{name}` must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
        if value.device.type != "cpu" or is_wrapped(value):
            return math.nan
        value = value.detach()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a number or a 0-d tensor, got {value!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {number!r}")
    return number


def check_whole(value: Any, name: str) -> int:
    """An integer; booleans and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"`{name}` must be an integer, got {value!r}")
    return int(value)


def check_budget(memory_budget: Any) -> None:
    """Raise unless a byte budget is None or a positive number."""
    usable = memory_budget is None or (isinstance(memory_budget, (int, float)) and memory_budget >= 1)
    if not usable:
        raise ValueError(f"`memory_budget` must be a positive number of bytes, got {memory_budget!r}")


def is_wrapped(value: Tensor) -> bool:
    """Whether a function transform holds the tensor: its value cannot be read then."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
