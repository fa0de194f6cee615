"""RFAD (Loo et al. 2022): what it makes of images and kernels before it learns."""

from .._target import Target

PARTS: tuple[Target, ...] = (
    Target(
        name="rfad.get_random_features",
        qualname="get_random_features",
        hashes=("4df5b6c7d005f47c",),
        replacement="rfad_features:get_random_features",
        guard="rfad_features:why_not_random_features",
        equivalence="exact",
        # Four layers, each a sum of at most 9,216 products: sqrt(4 x 9216) 2^-24, times eight.
        tolerance=1e-4,
        summary="outputs of RFAD's random networks on data sets, for its validation and its coresets",
        changes="features by float32 rounding of convolutions that are summed in another order",
        identical="weights, networks returned, numbers drawn from torch's generator, shapes and dtypes",
    ),
    Target(
        name="rfad.get_zca_matrix",
        qualname="get_zca_matrix",
        hashes=("8148a1dc4b1b29c1",),
        replacement="rfad_features:get_zca_matrix",
        guard="rfad_features:why_not_zca",
        equivalence="exact",
        # Derived at the top of the replacement: 8e-4 for each of two float32 decompositions, times three.
        tolerance=5e-3,
        summary="whitening matrix of images (also in the published provable-KRR code)",
        changes=(
            "the original's rounding, up to 2e-3 of the largest entry on CIFAR-10, is about halved; without a GPU it is"
            " computed on the CPU, where the original raises"
        ),
        identical="nothing but shape and dtype; the result is exactly symmetric",
    ),
    Target(
        name="rfad.get_mmd_coreset",
        qualname="get_mmd_coreset",
        hashes=("560f8153b2ee9040",),
        replacement="rfad_coresets:get_mmd_coreset",
        guard="rfad_coresets:why_not_mmd",
        equivalence="exact",
        tolerance=0.0,
        summary="rows whose kernel mean follows that of all",
        changes="nothing",
        identical="the picks and their order: scores have the same bits",
    ),
    Target(
        name="rfad.get_var_reduc_coreset",
        qualname="get_var_reduc_coreset",
        hashes=("7c3502a52d4b55fe",),
        replacement="rfad_coresets:get_var_reduc_coreset",
        guard="rfad_coresets:why_not_variance",
        equivalence="exact",
        tolerance=0.0,
        summary="rows that explain most of the variance of the others under a kernel",
        changes="nothing",
        identical="the picks and their order: scores have the same bits",
    ),
)
