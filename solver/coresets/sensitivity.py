r"""Rows drawn by how little the set could do without them: importance sampling by sensitivities.

Rows are drawn without replacement in proportion to scores :math:`s_i` and weighted by :math:`1/\pi_i`. Any sum
over the set is then estimated without bias, and with little variance for the family of sums that the scores were made
for (`kernels.sensitivity`, `kernels.leverage`):

=================  =============================================  ==========================================
name               :math:`s_i`                                    sums that it is made for
=================  =============================================  ==========================================
"lightweight"      1/2n plus half the share in :math:`\sum_j      k-means costs, whatever the centres
                   \|x_j-\mu\|^2`                                 (Bachem, Lucic & Krause, KDD 2018)
"kernel-density"   :math:`k(0)/\sum_j k(x_i,x_j)`                 kernel densities at one bandwidth: lone rows
                                                                  weigh as much as whole clusters
"rbf"              ℓ1 Lewis weight of :math:`(\|x\|^2,x,1)`       :math:`1+\gamma\|x-c\|^2` for all γ and c at
                                                                  once (after Tukan et al., ICML 2023)
"leverage"         :math:`\phi_i^\top(\Phi^\top\Phi+n\lambda      kernel ridge regression with ridge nλ
                   I)^{-1}\phi_i`                                 (Alaoui & Mahoney, NeurIPS 2015)
=================  =============================================  ==========================================

The published samplers draw i.i.d. with weights :math:`1/(m s_i)`; two equal rows waste a point, so rows here are
distinct, with the weights that are right for that. (The published code for RBF coresets draws without replacement and
keeps the weights of draws with replacement, which then sum to more than n: twice n for 200 rows of 2000.)

Gaussian densities as a start for kernel methods leave other shift-invariant kernels as an open question:
"kernel-density" takes any radial kernel, since a row's share in the density at its own place is a lower bound of its
sensitivity for each of them, and "leverage" any kernel whose spectral density can be drawn from. With more columns
than rows all Lewis weights are equal, and "rbf" draws as "random" does.
"""

from torch import Tensor

from ...kernels import (
    fourier_features,
    fourier_frequencies,
    kernel_row_sums,
    lightweight_sensitivity,
    rbf_sensitivity,
    ridge_leverage_scores,
)
from ...kernels.frequencies import FOURIER_KERNELS
from ...kernels.radial import RadialKernel
from .._check import check_count, check_name, check_non_negative
from .choice import Choice, drawn
from .radial import radial_kernel, sigma_of

# Bytes of a block of Fourier features.
_BLOCK_BYTES = 32 * 2**20


def lightweight(X: Tensor, m: int, seed: int) -> Choice:
    """Lightweight coreset for k-means; two passes over the rows."""
    return drawn(lightweight_sensitivity(X), m, seed)


def kernel_density(
    X: Tensor,
    m: int,
    seed: int,
    *,
    kernel: str | RadialKernel = "gaussian",
    bandwidth: str | float = "median",
) -> Choice:
    """Rows in inverse proportion to their kernel density; n² kernel values, never stored.

    `kernel` is "gaussian", "laplacian", "cauchy", "matern-1/2", "matern-3/2", "matern-5/2", "rational-quadratic", or
    a kernel of `kernels`. `bandwidth` is its σ in units of the rows, by default their median distance.
    """
    function, notes = radial_kernel(kernel, bandwidth, X, seed)
    zero = X.new_zeros(())
    own = function.profile(zero, *function.parameters(zero)).double()
    # A row's own term is added in float64, so that no density is zero.
    others = kernel_row_sums(function, X, leave_one_out=True).double()
    return drawn(own / (others + own), m, seed, *notes)


def rbf(X: Tensor, m: int, seed: int) -> Choice:
    """Rows in proportion to their ℓ1 Lewis weights: sensitivities for all scales at once; some 10 n d² products."""
    return drawn(rbf_sensitivity(X).scores, m, seed)


def leverage(
    X: Tensor,
    m: int,
    seed: int,
    *,
    kernel: str = "gaussian",
    bandwidth: str | float = "median",
    ridge: float = 1e-3,
    n_features: int = 512,
) -> Choice:
    """Rows in proportion to their ridge leverage scores, in paired Fourier features; 2 n p² products.

    `kernel` and `bandwidth` (ℓ there) are those of `kernels.fourier_frequencies`; `ridge` is λ for one row, nλ for the
    system, and `n_features` is p, an even number.
    """
    check_name(kernel, FOURIER_KERNELS, "kernel")
    ridge = check_non_negative(ridge, "ridge")
    p = check_count(n_features, "n_features", 2)
    sigma, notes = sigma_of(bandwidth, X, seed, "manhattan" if kernel == "laplacian" else "squared")
    frequencies, _ = fourier_frequencies(
        kernel, X.shape[1], p, length_scale=sigma, seed=seed, variant="paired"
    )
    features = X.new_empty(len(X), p)
    frequencies = frequencies.to(X)
    step = max(1, _BLOCK_BYTES // (X.element_size() * max(p, X.shape[1])))
    for start in range(0, len(X), step):
        features[start : start + step] = fourier_features(X[start : start + step], frequencies, paired=True)
    found = ridge_leverage_scores(features, ridge * len(X))
    if found.status != "ok":
        raise ValueError(f"leverage scores: {found.status}")
    return drawn(found.scores, m, seed, *notes)
