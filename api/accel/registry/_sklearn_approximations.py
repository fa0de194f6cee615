"""scikit-learn 1.6 to 1.9: kernel approximations, and the seeds of k-means."""

from .._target import Region, Target

APPROXIMATIONS: tuple[Target, ...] = (
    Target(
        name="sklearn.RBFSampler.transform",
        qualname="RBFSampler.transform",
        module="sklearn.kernel_approximation",
        hashes=("aaf17764e581d57e",),  # 1.6 to 1.9
        replacement="sklearn_approximations:rbf_sampler_transform",
        guard="sklearn_approximations:why_not_transform",
        compare="sklearn_approximations:features_difference",
        equivalence="exact",
        # A cosine moves with its phase, which in float32 is off by some 2^-24 of itself times the root of d: room for
        # phases of a thousand radians.
        tolerance=1e-3,
        summary="random Fourier features of an RBF kernel",
        changes="rounding of the phases and cosines",
        identical="frequencies, offsets, random numbers, dtype and container; validation and its errors, but not the"
        " warning of cosines of infinite numbers, which only assume_finite lets pass",
    ),
    Region(
        name="sklearn.Nystroem.fit",
        qualname="Nystroem.fit",
        module="sklearn.kernel_approximation",
        # The decomposition: SciPy's in 1.6 to 1.8, the array namespace's in 1.9.
        hashes=("e46ca2f9d2dbe920", "371b6ab59e8d6b24"),
        requires={"Nystroem.fit": ("84a28dff62f98c1b", "6f28632ebffbf6f8")},
        length=1,
        inputs=("basis_kernel",),
        outputs=("U", "S", "V"),
        replacement="sklearn_approximations:symmetric_svd",
        guard="sklearn_approximations:why_not_symmetric",
        compare="sklearn_approximations:normalization_difference",
        equivalence="exact",
        tolerance=1e-7,  # float64's 2.2e-16 times the condition of 1e6, and room
        measure="of the largest entry of the normalisation that U, S and V give",
        summary="inverse root of the kernel matrix of the Nystroem basis, by eigenvectors",
        changes="rounding of `normalization_`, up to the condition number times that of float64",
        identical="basis, random numbers, kernel matrices; everything where the matrix is ill-conditioned or float32",
    ),
    Target(
        name="sklearn.kmeans_plusplus",
        qualname="_kmeans_plusplus",
        module="sklearn.cluster._kmeans",
        hashes=("eedfae942713fdee", "aaeea4c02c001604"),  # 1.6 and 1.7, 1.8 and 1.9
        replacement="k_means_seeding:greedy_seeds",
        guard="k_means_seeding:why_not",
        equivalence="exact",
        tolerance=0.0,
        mutates=("random_state",),
        summary="greedy k-means++ seeds, for kmeans_plusplus, KMeans, MiniBatchKMeans and GaussianMixture",
        changes="nothing, but for a pick with a chance of about 1e-9: float64 products of a few rows may round in their"
        " last bit unlike those of all rows at once",
        identical="the picks, the centres, and the random numbers drawn",
    ),
)
