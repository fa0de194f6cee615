r"""Squared maximum mean discrepancy of two samples, or of many pairs of samples at once.

.. math:: \mathrm{MMD}^2(P, Q) = \mathbb{E}\,k(x,x') + \mathbb{E}\,k(y,y') - 2\,\mathbb{E}\,k(x,y)
          = \|\mu_P - \mu_Q\|^2_{\mathcal H}

with x, x' from P and y, y' from Q, independent (Gretton et al., JMLR 2012, lemma 6). From n and m samples, the
unbiased estimate (their eq. 3) averages over pairs of different rows and can be negative; the biased one (eq. 5)
includes pairs of a row with itself, is the squared distance of the two means in feature space, and is never negative
but for rounding.

The three averages nearly cancel where the samples are alike: they are taken in float64, and the result is float64.
With float32 kernel values, a result below about :math:`10^{-7} k(0)` is noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._check import as_rows, as_tensor, check_budget, check_columns, check_together, is_wrapped
from ._dispatch import choose, implement
from ._mmd import Sums, mmd_with_gradient
from ._mmd_batches import Counts, group_of_row
from ._precision import working_dtype
from ._recompute import recomputed
from .kernel_matrix import triton_rejects
from .radial import MixtureOfGaussians, RadialKernel
from .random import random_bits

DEFAULT_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
_MOST_GROUPS = 1 << 24
_LEADING = 32  # rows of a group from which its middle is estimated


def mmd2(
    X: Any,
    Y: Any,
    kernel: RadialKernel | None = None,
    *,
    biased: bool = False,
    groups: tuple[Any, Any] | None = None,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between X and Y, of all rows or group by group.

    Parameters
    ----------
    X : array of shape (n, d), or (C, n, d)
        Samples; three axes are C groups of n rows, compared with the group of Y of the same number.
    Y : array of shape (m, d), or (C, m, d)
        n and m need not be equal.
    kernel : RadialKernel, optional
        Default ``MixtureOfGaussians(median_bandwidth(X, Y), ratios=(1/4, 1/2, 1, 2, 4))``, of the rows of all groups
        and taken as a constant. It changes with the data: for a loss that is one function throughout, compute the
        bandwidth once. Fixed lists like the 1, 2, 4, 8, 16 of published code suit data of their own scale: for 2,048
        features of unit variance even the widest gives :math:`k \approx e^{-8}`, and gradients vanish.
    biased : bool, default False
        Include the pairs of a row with itself.
    groups : pair of integer arrays of shapes (n,) and (m,), optional
        Group of every row of X and of Y, numbered from 0, in any order; then X and Y have two axes. Groups may
        differ in size. Labels on a GPU are copied to the host, which waits for them.
    precision : {"exact", "high", "medium", "low"}, default "high"
        Of the kernel values; see `_precision`.
    memory_budget : int, optional
        Bytes that temporaries may take beyond copies of the arguments and gradients; default 32 MiB on a CPU
        (about its last-level cache) and 512 MiB on a GPU.
    backend : {"triton", "torch"}, optional
        Use this one or raise.

    Returns
    -------
    Tensor of float64, shape (), or (C,) for groups
        Differentiable in X, Y and the kernel's numbers, to any order, in forward mode and under vmap. In plain torch
        the biased value for Y equal to X is exactly zero.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not agree, or a group has fewer rows than the estimate needs: two in X and
        two in Y, or one each if biased.

    Notes
    -----
    :math:`(n^2 + m^2)d + 2nmd` operations, three times as many with the gradient, which is computed along with the
    value where X, Y or a bandwidth requires it; further derivatives form all tiles. O((n + m) d) memory: no array of
    n m numbers is ever held. Groups of one size are computed side by side.
    """
    x, y, counts, single = _by_group(X, Y, groups)
    least = 1 if biased else 2
    for name, sizes in zip("XY", counts, strict=True):
        if min(sizes) < least:
            raise ValueError(
                f"the {'biased' if biased else 'unbiased'} estimate needs {least} row{'s' * (least > 1)} in every"
                f" group, but group {sizes.index(min(sizes))} of `{name}` has {min(sizes)}"
            )
    check_budget(memory_budget)
    dtype = working_dtype(x.dtype, precision)
    x, y = x.to(dtype), y.to(dtype)
    if kernel is None:
        kernel = MixtureOfGaussians(_usable(median_bandwidth(x.detach(), y.detach())), DEFAULT_RATIOS)
    if not isinstance(kernel, RadialKernel):
        raise ValueError(f"`kernel` must be a kernel such as Gaussian(1.0), got {kernel!r}")
    x, y = _centred(x, y, counts)
    sums = Sums(kernel, counts, biased, memory_budget)
    tensors = (x, y, *kernel.parameters(x))
    run = choose("mmd2", x, y, sums, precision, backend=backend)
    if run is _torch and _wants_gradient(tensors):
        values = mmd_with_gradient(sums, *tensors)
    else:
        values = recomputed(lambda *tensors: run(sums, precision, *tensors), sums.definition, *tensors)
    return values[0] if single else values


def median_bandwidth(X: Any, Y: Any = None, *, sample: int = 500, seed: int = 0) -> Tensor:
    r"""Median distance of two different rows of X and Y together: a bandwidth of the scale of the data.

    :math:`\sigma^2 = \operatorname{med}_{i<j}\|z_i-z_j\|^2`: the Gaussian kernel is :math:`e^{-1/2}` at the median
    distance. Others take half that median (both are in Garreau, Jitkrittum and Kanagawa, "Large sample
    analysis of the median heuristic", 2017): divide by :math:`\sqrt 2`.

    Parameters
    ----------
    X, Y : array of shapes (n, d) and (m, d)
        Y may be left out.
    sample : int, default 500
        Rows drawn without replacement, if there are more. The median of their distances differs from that of all by
        a few per cent.
    seed : int, default 0
        Of the draw, which is the same on every device.

    Returns
    -------
    Tensor, shape ()
        In the units, on the device and of the dtype (float32 at least) of the data; not differentiable. Of two middle
        distances the lower one.

    Raises
    ------
    ValueError
        If there are fewer than two rows, or `sample` is below two.

    Notes
    -----
    `sample`² d operations, and one random number for every row. No wait for the device.
    """
    x = as_rows(X, "X").detach()
    y = x[:0] if Y is None else as_rows(Y, "Y").detach()
    check_together(X=x, Y=y)
    check_columns(x, y)
    n, m = len(x), len(y)
    if n + m < 2 or sample < 2:
        raise ValueError(f"a distance needs two rows, got {n + m} rows and a `sample` of {sample}")
    if n + m > sample:
        bits = random_bits(seed, "median bandwidth", n + m)
        drawn = torch.from_numpy(np.sort(np.argpartition(bits, sample)[:sample]))
        x, y = x[drawn[drawn < n].to(x.device)], y[(drawn[drawn >= n] - n).to(x.device)]
    rows = torch.cat([x, y]).to(working_dtype(x.dtype, "high"))
    distances = torch.nn.functional.pdist(rows - rows.mean(dim=0))
    return distances.median()


def _usable(bandwidth: Tensor) -> Tensor:
    if bandwidth.device.type == "cpu" and not is_wrapped(bandwidth) and not bandwidth > 0:
        raise ValueError(
            f"the median distance of the rows of `X` and `Y` is {float(bandwidth)}, no bandwidth: most rows are equal,"
            " or some are NaN; name a `kernel`"
        )
    return bandwidth


def _by_group(X: Any, Y: Any, groups: tuple[Any, Any] | None) -> tuple[Tensor, Tensor, Counts, bool]:
    """Rows of X and Y one group after the other, the sizes of the groups, and whether there are no groups."""
    x, y = as_tensor(X, "X"), as_tensor(Y, "Y")
    single = groups is None and x.ndim == 2
    if x.ndim == 3 or y.ndim == 3:
        if groups is not None:
            raise ValueError(
                "`groups` numbers the rows of matrices; three axes say what belongs together already"
            )
        if x.ndim != y.ndim or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"`X` must be (C, n, d) and `Y` (C, m, d), with C > 0, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        counts = ((x.shape[1],) * len(x), (y.shape[1],) * len(y))
        x, y = x.flatten(0, 1), y.flatten(0, 1)
    else:
        x, y = as_rows(x, "X"), as_rows(y, "Y")
        counts = ((len(x),), (len(y),))
    check_together(X=x, Y=y)
    check_columns(x, y)
    if groups is None:
        return x, y, counts, single
    if len(groups) != 2:
        raise ValueError(f"`groups` must be two sequences, of labels of X and of Y, got {len(groups)}")
    labels = [
        _labels(of_side, len(rows), name) for of_side, rows, name in zip(groups, (x, y), "XY", strict=True)
    ]
    number = 1 + max(int(of_side.max()) if len(of_side) else -1 for of_side in labels)
    if number == 0:
        raise ValueError("`X` and `Y` have no rows")
    counts = tuple(tuple(of_side.bincount(minlength=number).tolist()) for of_side in labels)
    x, y = (
        rows.index_select(0, of_side.argsort(stable=True).to(rows.device))
        for rows, of_side in zip((x, y), labels, strict=True)
    )
    return x, y, counts, single  # type: ignore[return-value]


def _labels(values: Any, length: int, name: str) -> Tensor:
    labels = torch.as_tensor(np.array(values) if not isinstance(values, Tensor) else values).cpu()
    if labels.shape != (length,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"`groups` of `{name}` must be {length} integers, one a row, got {labels.dtype} of shape"
            f" {tuple(labels.shape)}"
        )
    labels = labels.long()
    if length and int(labels.min()) < 0:
        raise ValueError(f"`groups` of `{name}` must be numbered from 0, got {int(labels.min())}")
    if length and int(labels.max()) >= _MOST_GROUPS:
        raise ValueError(
            f"`groups` of `{name}` must be numbered from 0 without gaps, got {int(labels.max())}: use the inverse of"
            " numpy.unique"
        )
    return labels


def _centred(x: Tensor, y: Tensor, counts: Counts) -> tuple[Tensor, Tensor]:
    """Rows of every group moved by about its middle.

    Distances do not change; their rounding errors grow with the squared norms. The middle is that of the first rows
    of X and of Y: any point near the data will do, and this one is the same in every order of summation.
    """
    middles = []
    for rows, sizes in zip((x.detach(), y.detach()), counts, strict=True):
        size = torch.tensor(sizes)[:, None]
        first = size.cumsum(0) - size + torch.arange(_LEADING) % size
        middles.append(rows[first.to(x.device)].median(1).values)  # no far row draws it away
    middle = (middles[0] + middles[1]) / 2
    # Rows that are not finite spoil what they take part in, and that only.
    middle = torch.where(middle.isfinite(), middle, 0)
    if len(middle) == 1:
        return x - middle, y - middle
    return x - middle[group_of_row(counts[0], x.device)], y - middle[group_of_row(counts[1], x.device)]


def _wants_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether backward, and no function transform, may ask for derivatives."""
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and not any(map(is_wrapped, tensors))
    )


def _torch(sums: Sums, precision: str, *tensors: Tensor) -> Tensor:
    return sums.values(*tensors)


def _rejects(x: Tensor, y: Tensor, sums: Sums, precision: str) -> str | None:
    if sums.kernel.name == "squared":
        return "of distances that no profile bounds runs in torch"
    return triton_rejects(x, y, sums.kernel, False, precision)


def _slower(x: Tensor, y: Tensor, sums: Sums, precision: str) -> str | None:
    if _wants_gradient((x, y, *sums.kernel.parameters(x))):
        return "in Triton gives values alone, and torch gives the gradient in the same pass"
    return None


implement("mmd2", "torch", _torch)
implement("mmd2", "triton", "_triton.mmd:mmd2", rejects=_rejects, slower=_slower)
