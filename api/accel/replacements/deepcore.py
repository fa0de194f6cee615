r"""Greedy selection of rows as DeepCore calls it, with one running number for each row.

**k-center greedy** (Sener & Savarese, ICLR 2018; behaviour of `methods/kcentergreedy.py` of PatrickZH/DeepCore). The
original keeps a distance of every row to every centre and copies all rows that are left for each pick; only
:math:`m_i = \min_c \|x_i - x_c\|` matters, which `kernels.k_center_greedy` keeps.

**Herding** (Welling, ICML 2009; interface of `methods/herding.py` of the same repository). With mean :math:`\mu` the
t-th pick minimises :math:`\|t\mu - \sum_{s<t} x_s - x_i\|`; the original maximises it. `solver.coresets.herding` keeps
the scores of all rows and adds one product with the last pick, where the original sums all picks again.

Both return the picks sorted by position, as the original's mask of rows does.
"""

import functools
import numbers
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import k_center_greedy as farthest_first
from ...solver.coresets.herding import herding as nearest_means
from .._call import Settings
from .._fingerprint import fingerprint_of

_EUCLIDEAN = ("a4c85799fa95ffae",)  # methods_utils/euclidean.py: euclidean_dist
# Smallest largest entry: the original cuts distances off at 1e-6, far below those of such rows.
_SMALL = 1e-3
# Largest squared norm, in mean squared distances from the mean. The original's squared distances are off by some 8
# units of 2^-24 of that norm, here 1.5e-5 of the spread, where the farthest rows are usually told apart by far more. Of
# 15 sets of 60 to 150 picks among normal rows none differed at 32, one at 110, and nine at 10,000.
_FAR = 32
# Numbers of the sample of entries for each different one, from which they are taken to be steps of a scale.
_QUANTISED, _SAMPLE = 8, 1 << 15


def k_center_greedy(
    matrix: Any,
    budget: int,
    metric: Any,
    device: Any,
    random_seed: Any = None,
    index: Any = None,
    already_selected: Any = None,
    print_freq: int = 20,
) -> np.ndarray:
    """Pick rows, each the farthest from those before; the first at random, unless some are given.

    Form, draw and lines printed are the original's, and so are the picks unless two of them are as far to its rounding.
    At most 2 n d operations a pick (on a CPU
    usually a small part of them) and O(n) memory, where the original takes 2 n d, a copy of the rows, and k n numbers.
    """
    rows = _on(matrix, device)
    n = len(rows)
    budget = min(budget, n)
    index = np.arange(n) if index is None else index
    np.random.seed(random_seed)  # the generator that the original seeds
    selected = _selected(index, already_selected)
    if not selected.any():
        first = np.random.randint(0, n)
        selected[first] = True
        budget -= 1
        _print_progress(budget, print_freq)
        picks = farthest_first(rows, budget + 1, first=first).indices
    else:
        _print_progress(budget, print_freq)
        given = np.flatnonzero(selected)
        new = min(budget, n - len(given))
        picks = farthest_first(rows, new, initial=given).indices if new else given
    selected[np.asarray(torch.as_tensor(picks).cpu())] = True
    return index[selected]


def why_not_k_center_greedy(
    matrix: Any,
    budget: int,
    metric: Any,
    device: Any,
    random_seed: Any = None,
    index: Any = None,
    already_selected: Any = None,
    print_freq: int = 20,
) -> str | None:
    """What the original raises for, other metrics and dtypes, and rows among which rounding often decides."""
    if type(matrix) is np.ndarray:
        if matrix.dtype != np.float32:
            return "the matrix is not float32"
        if not matrix.flags.writeable:
            return "the matrix is read-only"
        matrix = torch.from_numpy(matrix) if min(matrix.strides, default=0) > 0 else None
    elif not (type(matrix) is Tensor and matrix.layout == torch.strided and _is_place(matrix, device)):
        return "the matrix is not an array, or not on the device that is named"
    if matrix is None or matrix.ndim != 2 or not matrix.numel() or matrix.dtype != torch.float32:
        return "the matrix is not a table of float32 numbers with rows and columns"
    if not isinstance(budget, numbers.Integral) or not isinstance(
        already_selected, (list, tuple, np.ndarray)
    ):
        return "the budget is not a whole number, or `already_selected` is not a sequence"
    if not (index is None or (type(index) is np.ndarray and index.shape == (len(matrix),))):
        return "`index` is not an array with an entry for each row"
    if not is_euclidean(metric):
        return "the metric is not DeepCore's euclidean_dist"
    known = len(already_selected) > 0
    if known and not _selected(np.arange(len(matrix)) if index is None else index, already_selected).any():
        return "no row of `already_selected` is among these"
    if min(budget, len(matrix)) < (1 if known else 2):
        return "the budget leaves no row to pick"
    if not known and random_seed is None and Settings.verify:
        return "without a seed the original begins elsewhere each time, which cannot be verified"
    return _why_rounding_decides(matrix)


def herding(self: Any, matrix: Tensor, budget: int, index: Any = None) -> np.ndarray:
    """Pick rows whose mean follows the mean of all.

    Form of the result and lines printed are the original's, the picks are not: see the top of the module. 2 n d
    operations a pick, and one copy of the rows in all.
    """
    n = len(matrix)
    if budget < 0:
        raise ValueError("Illegal budget size.")
    budget = min(budget, n)
    selected = np.zeros(n, dtype=bool)
    _print_progress(budget, self.args.print_freq if budget else 1)
    if budget:
        with torch.no_grad():
            selected[nearest_means(matrix, budget, 0).indices.cpu().numpy()] = True
    return (np.arange(n) if index is None else index)[selected]


def why_not_herding(self: Any, matrix: Tensor, budget: int, index: Any = None) -> str | None:
    """Other metrics, dtypes, and rows that are not finite."""
    if type(matrix) is not Tensor or matrix.dtype not in (torch.float32, torch.float64) or matrix.ndim != 2:
        return "the matrix is not a tensor of float32 or float64 numbers with rows and columns"
    if not matrix.numel() or not isinstance(budget, numbers.Integral):
        return "the matrix is empty, or the budget is not a whole number"
    if not (index is None or (type(index) is np.ndarray and index.shape == (len(matrix),))):
        return "`index` is not an array with an entry for each row"
    if not is_euclidean(getattr(self, "metric", None)):
        return "the metric is not DeepCore's euclidean_dist"
    return (
        None if _largest(matrix) < _limit(matrix) else "the matrix holds numbers that are not finite, or huge"
    )


def is_euclidean(metric: Any) -> bool:
    """Whether a function is DeepCore's euclidean_dist, by its source."""
    # The source of a wrapper is that of what it wraps.
    return type(metric) is types.FunctionType and not hasattr(metric, "__wrapped__") and _is_known(metric)


@functools.lru_cache(maxsize=16)
def _is_known(metric: types.FunctionType) -> bool:
    return fingerprint_of(metric) in _EUCLIDEAN


def _on(matrix: Any, device: Any) -> Tensor:
    return torch.from_numpy(matrix).to(device) if type(matrix) is np.ndarray else matrix.detach()


def _is_place(matrix: Tensor, device: Any) -> bool:
    if not isinstance(device, (str, torch.device)):
        return False
    place = torch.device(device)
    if place.type != matrix.device.type:
        return False
    return place.type != "cuda" or matrix.get_device() == (
        torch.cuda.current_device() if place.index is None else place.index
    )


def _selected(index: np.ndarray, already_selected: Any) -> np.ndarray:
    return (
        np.isin(index, np.array(already_selected))
        if len(already_selected)
        else np.zeros(len(index), dtype=bool)
    )


def _print_progress(budget: int, print_freq: int) -> None:
    for i in range(budget):
        if i % print_freq == 0:
            print(f"| Selecting [{i + 1:3d}/{budget:3d}]")


def _why_rounding_decides(matrix: Tensor) -> str | None:
    largest = _largest(matrix)
    if not largest < _limit(matrix):
        return "the matrix holds numbers that are not finite, or huge"
    if largest < _SMALL:
        return "the matrix holds nothing but tiny numbers, whose distances the original cuts off"
    some = matrix.detach()[:: max(1, len(matrix) // max(64, _SAMPLE // matrix.shape[1]))]
    if torch.equal(some, some.round()) and torch.equal(matrix, matrix.round()):
        return "the matrix holds whole numbers: many distances are equal, and the original has them exactly"
    entries = some[some != 0]
    if len(entries) >= _QUANTISED * max(2, len(entries.unique())):
        return "the matrix holds few different numbers, so that ties are decided by rounding"
    matrix = matrix.detach().contiguous()  # each row is summed in one order
    norms = torch.linalg.vector_norm(matrix, dim=1)
    if _are_equal_norms(matrix, norms):
        return "rows have equal norms, so that ties are decided by rounding"
    squares = norms.double().square()
    if float(squares.max()) > _FAR * float(squares.mean() - matrix.mean(0).double().square().sum()):
        return "the rows are far from zero beside their spread, so that the original's distances cancel"
    return None


def _are_equal_norms(matrix: Tensor, norms: Tensor) -> bool:
    """Whether any two rows have one norm, in float64; of most rows that in float32 is different already."""
    _, group, counts = norms.unique(return_inverse=True, return_counts=True)
    alike = matrix[counts[group] > 1]
    exact = torch.linalg.vector_norm(alike, dim=1, dtype=torch.float64)
    return len(exact.unique()) < len(exact)


def _largest(matrix: Tensor) -> float:
    """Largest magnitude; NaN if there is one."""
    low, high = torch.aminmax(matrix.detach())
    return float(torch.maximum(-low, high))


def _limit(matrix: Tensor) -> float:
    """Squared distances of smaller numbers do not overflow."""
    return (torch.finfo(matrix.dtype).max / (8 * matrix.shape[1])) ** 0.5
