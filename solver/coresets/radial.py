"""The radial kernel that an option names, and a bandwidth from the data."""

from typing import Any

import torch
from torch import Tensor

from ...kernels import Cauchy, Gaussian, Laplacian, Matern, RationalQuadratic, uniform
from ...kernels.radial import RadialKernel
from .._check import check_name, check_non_negative

RADIAL: dict[str, Any] = {
    "gaussian": Gaussian,
    "laplacian": Laplacian,
    "cauchy": Cauchy,
    "matern-1/2": lambda bandwidth: Matern(bandwidth, nu=0.5),
    "matern-3/2": lambda bandwidth: Matern(bandwidth, nu=1.5),
    "matern-5/2": lambda bandwidth: Matern(bandwidth, nu=2.5),
    "rational-quadratic": RationalQuadratic,
}
# Rows from whose distances a bandwidth is taken: their median is that of all rows within a few per cent.
_SAMPLE_ROWS = 500


def radial_kernel(
    kernel: str | RadialKernel, bandwidth: str | float, X: Tensor, seed: int
) -> tuple[RadialKernel, tuple[str, ...]]:
    """The kernel of an option, for rows X (n, d), and notes.

    Parameters
    ----------
    kernel : str or RadialKernel
        A name of `RADIAL`; or a kernel of `kernels`, which has its bandwidth already.
    bandwidth : "median" or float
        σ of `kernels.radial`, in units of the rows; "median" is `median_distance` in the kernel's own norm.
    """
    if isinstance(kernel, RadialKernel):
        if bandwidth != "median":
            raise ValueError(f"{kernel!r} has a bandwidth: leave `bandwidth` out, or name the kernel")
        return kernel, ()
    make = RADIAL[check_name(kernel, RADIAL, "kernel")]
    metric = "manhattan" if kernel == "laplacian" else "squared"
    sigma, notes = sigma_of(bandwidth, X, seed, metric)
    return make(sigma), notes


def sigma_of(
    bandwidth: str | float, X: Tensor, seed: int, metric: str = "squared"
) -> tuple[float, tuple[str, ...]]:
    """A bandwidth as given, or "median", with notes."""
    if isinstance(bandwidth, str):
        check_name(bandwidth, ("median",), "bandwidth")
        sigma = median_distance(X, seed, metric)
        if sigma > 0:
            return sigma, ()
        return 1.0, ("all rows looked at are equal: the bandwidth is 1 and says nothing",)
    sigma = check_non_negative(bandwidth, "bandwidth")
    if sigma == 0:
        raise ValueError("`bandwidth` must be positive: use 'median' to take it from the data")
    return sigma, ()


def median_distance(X: Tensor, seed: int, metric: str = "squared") -> float:
    """Median of the positive distances within 500 random rows; 0 if there is none.

    Equal rows say nothing of the scale of the data, and where they are many they would make it zero. Distances are
    those of a kernel's `metric`: Euclidean ("squared"), or sums of absolute differences ("manhattan"), which grow
    faster with the number of columns.
    """
    chosen = uniform(seed, "coreset.bandwidth", len(X)).argsort()[:_SAMPLE_ROWS]
    distances = torch.nn.functional.pdist(X[chosen.to(X.device)], 1.0 if metric == "manhattan" else 2.0)
    positive = distances[distances > 0]
    return float(positive.median()) if len(positive) else 0.0
