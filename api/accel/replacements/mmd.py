r"""The MMD loss that is copied from repository to repository, without its array of all differences.

With Z the rows of source and target together, N of them, squared distances :math:`D_{ij}` and numbers q and a,

.. math:: k(z_i, z_j) = \sum_{p=0}^{q-1} e^{-D_{ij} / b a^p}, \qquad
          b = a^{-\lfloor q/2 \rfloor} \frac{1}{N^2 - N} \sum_{ij} D_{ij},

which is differentiated with b a constant: a sum, not a mean, of q Gaussians about the mean distance of the rows at
hand. The behaviour is that of ``guassian_kernel`` and ``MMD_loss`` in ZongxianLee/MMD_Loss.Pytorch
(``mmd_loss.py``), jindongwang/transferlearning (``loss_funcs/mmd.py``) and easezyc/deep-transfer-learning
(``DAN/mmd.py``), which subtract all rows from all rows in an array (N, N, d), and keep it for the backward pass.

Here distances come from a matrix product of centred rows, and b from

.. math:: \sum_{ij} D_{ij} = 2N \sum_i \|z_i\|^2 - 2 \Big\| \sum_i z_i \Big\|^2.

A product rounds squared distances by units u in the last place of squared norms: measured on pairs of nearly equal
rows, by up to 30 u of the larger norm, usually below 20, and by 7 u of the mean norm on average. A value k is off by
:math:`\sum_p b^{-1} a^{-p}` times as much. Without `fix_sigma` the mean norm is about half of b in the middle, and this
is some 1e-6; where norms are far above the narrowest bandwidth it is not small, and the guards leave such rows alone.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ...kernels import kernel_matrix, mmd2
from ...kernels._check import is_wrapped
from ...kernels._distances import pairwise_squared
from ...kernels._pairs import set_diagonal
from ...kernels.radial import MixtureOfGaussians
from .._difference import difference

# Numbers in the array of all differences: where making it takes no longer than calls here.
_SMALL = 1 << 18
# Up to which the matrix k is formed with its graph: fewer calls than `mmd2` makes, which has half the arithmetic.
_MEDIUM = 1 << 27
# Rows of a matrix k that may have a graph of some ten like it.
_MOST_ROWS = 1 << 11
# What the registry promises, and units in the last place by which a distance may be off: one of the few of largest
# norms, and on average.
_TOLERANCE = 1e-5
_OF_ENTRY, _ON_AVERAGE = 20, 16
# Squared bandwidths within these bounds, and a spread of them that fits float32.
_LEAST, _SPREAD = 1e-24, 1e12


def guassian_kernel(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: float | None = None,
) -> Tensor:
    """The matrix k of all rows in O(N^2 + N d) memory, not O(N^2 d), and one matrix product.

    Identical: shape, dtype, exact symmetry, a diagonal of `kernel_num`, no gradient in b. Differentiable to any order.
    """
    kernel = _kernel(source, target, kernel_mul, kernel_num, fix_sigma)
    rows = torch.cat([source, target])
    rows = rows - rows.detach().mean(0)
    if len(rows) > _MOST_ROWS:
        return kernel_matrix(kernel, rows, centre=False)
    squared = set_diagonal(pairwise_squared(rows, rows), 0.0, 0)
    return kernel.profile(squared, *kernel.parameters(rows))


def guassian_kernel_method(
    self: Any,
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: Any = None,
) -> Tensor:
    """`guassian_kernel`, as a method."""
    del self
    return guassian_kernel(source, target, kernel_mul, kernel_num, fix_sigma)


def mmd(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: float | None = None,
) -> Tensor:
    """The means of k in XX and YY less those in XY and YX; at large sizes by `mmd2`, in O(N d) memory.

    Identical: shape, dtype, and what is differentiated: source and target to any order, b not.
    """
    n = len(source)
    if _differences(source, target) <= _MEDIUM and n + len(target) <= _MOST_ROWS:
        k = guassian_kernel(source, target, kernel_mul, kernel_num, fix_sigma)
        return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()
    kernel = _kernel(source, target, kernel_mul, kernel_num, fix_sigma)
    return mmd2(source, target, kernel, biased=True).to(source.dtype)


def mmd_method(self: Any, source: Tensor, target: Tensor) -> Tensor:
    """`mmd` with the numbers of the loss object: its ``forward``."""
    return mmd(source, target, self.kernel_mul, self.kernel_num, self.fix_sigma)


def mmd_linear_time(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: float | None = None,
) -> Tensor:
    """The mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) with the next row primed, after the last one the first.

    Identical: as `mmd`. Only the 4 n distances that are summed are formed, from differences: O(N d) in all.
    """
    kernel = _kernel(source, target, kernel_mul, kernel_num, fix_sigma)
    parameters = kernel.parameters(source)
    x, y = source, target
    next_x, next_y = x.roll(-1, 0), y.roll(-1, 0)
    terms = [
        kernel.profile((a - b).square().sum(1), *parameters)
        for a, b in ((x, next_x), (y, next_y), (x, next_y), (next_x, y))
    ]
    return (terms[0] + terms[1] - terms[2] - terms[3]).mean()


def unfit(
    source: Any, target: Any, kernel_mul: Any = 2.0, kernel_num: Any = 5, fix_sigma: Any = None
) -> str | None:
    """Guard: anything but two float matrices and plain numbers for which each entry of k is found."""
    reason = _unlike(source, target, kernel_mul, kernel_num, fix_sigma)
    if reason is not None:
        return reason
    allowed = _TOLERANCE * kernel_num / _OF_ENTRY  # `kernel_num` is the largest entry
    return _too_far(source, target, kernel_mul, kernel_num, fix_sigma, of_largest=allowed)


def unfit_loss(
    source: Any, target: Any, kernel_mul: Any = 2.0, kernel_num: Any = 5, fix_sigma: Any = None
) -> str | None:
    """Guard: as `unfit`, for means of k, or of two sizes, which copies of the loss treat differently, if at all."""
    reason = _unlike_or_two_sizes(source, target, kernel_mul, kernel_num, fix_sigma)
    if reason is not None:
        return reason
    return _too_far(source, target, kernel_mul, kernel_num, fix_sigma, of_mean=_TOLERANCE / _ON_AVERAGE)


def unfit_linear_time(
    source: Any, target: Any, kernel_mul: Any = 2.0, kernel_num: Any = 5, fix_sigma: Any = None
) -> str | None:
    """Guard: `unfit_loss`, with rows however far, since distances are formed from differences."""
    reason = _unlike_or_two_sizes(source, target, kernel_mul, kernel_num, fix_sigma)
    return reason or _too_far(source, target, kernel_mul, kernel_num, fix_sigma)


def unfit_method(
    self: Any, source: Any, target: Any, kernel_mul: Any = 2.0, kernel_num: Any = 5, fix_sigma: Any = None
) -> str | None:
    """Guard: `unfit`, of the kernel as a method."""
    del self
    return unfit(source, target, kernel_mul, kernel_num, fix_sigma)


def unfit_loss_method(self: Any, source: Any, target: Any) -> str | None:
    """Guard: `unfit_loss`, or an object with another kernel or hooks of its own."""
    if getattr(self, "kernel_type", "rbf") != "rbf":
        return "the kernel is not of type rbf"
    holders = [cls for cls in type(self).__mro__ if "guassian_kernel" in vars(cls) or "forward" in vars(cls)]
    if "guassian_kernel" in vars(self) or not {"guassian_kernel", "forward"} <= vars(holders[0]).keys():
        return "the kernel or the loss is that of a subclass"
    return unfit_loss(source, target, self.kernel_mul, self.kernel_num, self.fix_sigma)


def absolute_difference(original: Any, replacement: Any) -> float:
    """Difference of two losses, which may be any part of the kernel values that cancel in them."""
    gap = difference(original, replacement)
    return gap * (abs(float(original.detach())) or 1.0) if 0 < gap < math.inf else gap


def _unlike(source: Any, target: Any, kernel_mul: Any, kernel_num: Any, fix_sigma: Any) -> str | None:
    """Why the arguments are not of the kind that is known, whatever is in the rows."""
    tensors = (torch.Tensor, torch.nn.Parameter)
    if type(source) not in tensors or type(target) not in tensors or is_wrapped(source) or is_wrapped(target):
        return "source or target is no plain tensor"
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        return "source and target are not matrices of the same columns"
    if source.dtype not in (torch.float32, torch.float64):
        return "the rows are neither float32 nor float64"
    if target.dtype != source.dtype or target.device != source.device:
        return "source and target differ in dtype or device"
    if not len(source) or not len(target):
        return "source or target has no rows"
    if torch.is_autocast_enabled(source.device.type):
        return "autocast would make the matrix product one of half precision"
    if torch.get_float32_matmul_precision() != "highest":
        return "matrix products are allowed less than the precision of float32"
    if type(kernel_mul) not in (int, float) or type(kernel_num) is not int or kernel_num < 1:
        return "the number of kernels or their ratio is no plain number"
    if not 1 <= kernel_mul <= _SPREAD or kernel_num * math.log(kernel_mul) > math.log(_SPREAD):
        return "the bandwidths decrease, or differ by too much"
    if fix_sigma is not None and type(fix_sigma) not in (int, float):
        return "`fix_sigma` is no plain number"  # of a tensor the original divides what the caller holds
    if fix_sigma and not _LEAST <= fix_sigma <= 1 / _LEAST:
        return "`fix_sigma` is negative, or too small or large"
    if _differences(source, target) <= _SMALL:
        return "the original takes no longer at this size"
    if source.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a graph is being captured, in which the rows cannot be looked at"
    return None


def _unlike_or_two_sizes(
    source: Any, target: Any, kernel_mul: Any, kernel_num: Any, fix_sigma: Any
) -> str | None:
    reason = _unlike(source, target, kernel_mul, kernel_num, fix_sigma)
    if reason is None and len(source) != len(target):
        return "source and target have different numbers of rows"
    return reason


def _too_far(
    source: Tensor,
    target: Tensor,
    kernel_mul: float,
    kernel_num: int,
    fix_sigma: float | None,
    *,
    of_mean: float = math.inf,
    of_largest: float = math.inf,
) -> str | None:
    """Why the rows do not do: not finite, or too far from their mean; at most so much, in units u, for either norm.

    One pass over the rows. On a GPU it waits for them.
    """
    rows = torch.cat([source.detach(), target.detach()])
    norms = torch.linalg.vector_norm(rows - rows.mean(0), dim=1).square()
    mean, largest = torch.stack([norms.mean(), norms.amax()]).tolist()
    if not math.isfinite(largest):
        return "some rows are not finite, or too large"
    middle = float(fix_sigma) if fix_sigma else 2 * mean * len(rows) / (len(rows) - 1)
    if not _LEAST <= middle <= 1 / _LEAST:
        return "all rows are equal, or they are too small or large"
    steepest = sum(kernel_mul ** (kernel_num // 2 - p) for p in range(kernel_num)) / middle
    unit = steepest * torch.finfo(rows.dtype).eps / 2
    if unit * mean > of_mean or unit * largest > of_largest:
        return "the narrowest bandwidth is far below the squared norms of rows, of which distances cancel"
    return None


def _differences(source: Tensor, target: Tensor) -> int:
    return (len(source) + len(target)) ** 2 * source.shape[1]


def _mean_distance(source: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of two different rows, a constant."""
    rows = torch.cat([source.detach(), target.detach()])
    n = len(rows)
    rows -= rows.mean(0)
    total = 2 * n * torch.linalg.vector_norm(rows).square() - 2 * rows.sum(0).square().sum()
    return total / (n * n - n)


def _kernel(
    source: Tensor, target: Tensor, kernel_mul: float, kernel_num: int, fix_sigma: float | None
) -> MixtureOfGaussians:
    """exp(-D / b a^p) as Gaussians exp(-D / 2 sigma^2), the narrowest one first."""
    middle = float(fix_sigma) if fix_sigma else _mean_distance(source, target)
    bandwidth = (middle / (2 * kernel_mul ** (kernel_num // 2))) ** 0.5
    return MixtureOfGaussians(bandwidth, [kernel_mul ** (p / 2) for p in range(kernel_num)])
