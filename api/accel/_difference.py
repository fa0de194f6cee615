"""How far two results are apart: what `--verify` prints."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever installs targets decides when NumPy is loaded
    import numpy as np


def difference(original: Any, replacement: Any) -> float:
    """Largest difference of two results of the same form.

    Parameters
    ----------
    original, replacement
        Numbers, arrays of NumPy, torch or CuPy, networks (their states), estimators (their fitted attributes), or
        sequences and mappings of these.

    Returns
    -------
    float
        Of floating point numbers, relative to the largest finite entry of the original's array; infinite where kinds,
        shapes, dtypes, devices, places of NaN and infinity, or whether it has a gradient differ. Gradients themselves
        are not compared. Of whole numbers and truth values, absolute.
    """
    if original is replacement:
        return 0.0
    import numpy as np

    if all(isinstance(result, (bool, int, float, complex)) for result in (original, replacement)):
        return _of_arrays(np.asarray(original), np.asarray(replacement))
    if type(original) is not type(replacement):
        return math.inf
    if isinstance(original, dict):
        if original.keys() != replacement.keys():
            return math.inf
        return _largest((original[key], replacement[key]) for key in original)
    if isinstance(original, (list, tuple)):
        if len(original) != len(replacement):
            return math.inf
        return _largest(zip(original, replacement, strict=True))
    if hasattr(original, "dtype") and hasattr(original, "shape"):
        same = original.dtype == replacement.dtype and original.shape == replacement.shape
        for name in ("device", "requires_grad"):
            same = same and getattr(original, name, None) == getattr(replacement, name, None)
        return _of_arrays(_on_host(original), _on_host(replacement)) if same else math.inf
    if hasattr(original, "state_dict"):
        return difference(dict(original.state_dict()), dict(replacement.state_dict()))
    if hasattr(original, "get_params"):
        return difference(_fitted(original), _fitted(replacement))
    return 0.0 if original == replacement else math.inf


def _largest(pairs: Any) -> float:
    return max((difference(a, b) for a, b in pairs), default=0.0)


def _on_host(array: Any) -> "np.ndarray":
    import numpy as np

    if hasattr(array, "detach"):
        array = array.detach().cpu()
        return (array.double() if array.dtype.itemsize < 4 and array.is_floating_point() else array).numpy()
    return array.get() if hasattr(array, "get") else np.asarray(array)


def _of_arrays(a: "np.ndarray", b: "np.ndarray") -> float:
    import numpy as np

    if not a.size:
        return 0.0
    if a.dtype.kind not in "fc" and b.dtype.kind not in "fc":
        if a.dtype.kind not in "biu":
            return 0.0 if np.array_equal(a, b) else math.inf
        return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    scale = np.abs(a[finite]).max()
    gap = np.abs(a[finite] - b[finite]).max()
    return float(gap / scale) if scale > 0 else float(gap)


def _fitted(estimator: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(estimator).items() if name.endswith("_")}
