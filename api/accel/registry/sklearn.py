"""scikit-learn 1.6 to 1.9: kernel matrices and kernel ridge regression; feature maps and seeding are beside.

Fingerprints of one definition differ between these versions by array namespaces, private helpers that were renamed,
the way they are imported, and parameters that were deprecated, none of which concerns dense NumPy rows.
"""

from .._target import Target
from ._sklearn_approximations import APPROXIMATIONS as _APPROXIMATIONS

_PAIRWISE = "sklearn.metrics.pairwise"
_CHECKS = {
    "check_pairwise_arrays": ("eb9fbf43803ca6d6", "41d90121bf951a28"),
    "_return_float_dtype": ("2e1969a6216019d4", "734e53c327691d25"),
}
_RIDGE = {
    "KernelRidge._get_kernel": ("f0cd346aa356499d",),
    "_solve_cholesky_kernel": ("5715b3be2f86ab66",),
    "pairwise_kernels": ("e8b80bb1c968bd34", "e1ea49665f7e52e8"),
}

_KERNELS: tuple[Target, ...] = (
    Target(
        name="sklearn.rbf_kernel",
        qualname="rbf_kernel",
        module=_PAIRWISE,
        hashes=("8f2a99c8be08671f",),
        requires={
            "euclidean_distances": ("9546f1ccff142aca",),
            "_euclidean_distances": ("0689c0ac78c6342d", "fedf620ef1570cee"),
            "_euclidean_distances_upcast": ("7513dc2be6e9af6c", "ba912b8683d12a1b"),
            **_CHECKS,
        },
        replacement="sklearn_kernels:rbf_kernel",
        guard="sklearn_kernels:unfit_rbf",
        equivalence="exact",
        tolerance=4e-6,  # twice what float32 products may be off by where they are used, 32 units of 2^-24
        summary="Gaussian kernel matrix of dense rows, by products in their own dtype where those are accurate enough",
        changes="float32 values by 2e-6 of one at most (4e-6 for rows of signs) and 2e-7 usually, float64 ones"
        " by their rounding; float32 rows are copied where gamma times the largest squared norm is above 1",
        identical="shape, dtype, order, errors of bad input; of one set of rows symmetry and ones on the diagonal",
    ),
    Target(
        name="sklearn.laplacian_kernel",
        qualname="laplacian_kernel",
        module=_PAIRWISE,
        hashes=("084f8619bb1b71e6", "b9c2385003b267d2"),
        requires={
            "manhattan_distances": ("2aca4488a9e2b8e5", "ad3799442ef0a497", "09ca79653d3bdd54"),
            **_CHECKS,
        },
        replacement="sklearn_kernels:laplacian_kernel",
        guard="sklearn_kernels:unfit_laplacian",
        equivalence="exact",
        tolerance=1e-15,
        summary="Laplacian kernel matrix of dense rows by all cores, and half of it for one set of rows",
        changes="nothing",
        identical="every bit",
    ),
    Target(
        name="sklearn.KernelRidge.fit",
        qualname="KernelRidge.fit",
        module="sklearn.kernel_ridge",
        hashes=("0d0275f11d659809",),
        requires=_RIDGE,
        replacement="kernel_ridge:fit",
        guard="kernel_ridge:unfit_fit",
        compare="kernel_ridge:difference_of_fits",
        mutates=("self",),
        equivalence="exact",
        tolerance=1e-12,  # some thousand units of float64, relative to the sums of magnitudes that are rounded
        summary="Kernel ridge regression with distances kept between fits and a system that is factored in place",
        measure="of the magnitudes that fitted values are sums of (5e-4 of them for float32 systems)",
        changes="dual coefficients by the rounding of a solver, which the condition number magnifies; a matrix of"
        " distances (or inner products) of all n distinct rows seen, 8 n^2 bytes in float64, stays in the cache, within"
        " its budget, until uninstall",
        identical="validation, attributes but for dual_coef_, dtypes, warnings, what is done with singular systems",
    ),
    Target(
        name="sklearn.KernelRidge.predict",
        qualname="KernelRidge.predict",
        module="sklearn.kernel_ridge",
        hashes=("5d6f9ee3afb0d122",),
        requires=_RIDGE,
        replacement="kernel_ridge:predict",
        guard="kernel_ridge:unfit_predict",
        equivalence="exact",
        # Kernel values are off by some 1e-15; their sum with coefficients of a small penalty, up to 1e9 times the
        # predictions, by as much more.
        tolerance=1e-6,
        summary="Predictions of kernel ridge regression with distances of rows that were fitted before",
        changes="rounding of kernel values, times the ratio of coefficients to predictions",
        identical="validation, shape, dtype, warnings",
    ),
)

TARGETS: tuple[Target, ...] = (*_KERNELS, *_APPROXIMATIONS)
