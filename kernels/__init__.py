"""Arrays in, arrays out: the numerical operations that everything else is built on.

This layer knows arrays of torch, NumPy and CuPy; it knows no data sets or files.
"""

from ._dispatch import explain, use_backend
from .arc_cosine import arc_cosine_kernel
from .arc_cosine_conv import conv_arc_cosine_kernel
from .augmentation import Augmentation, augment_images, draw_augmentation
from .fourier import fourier_features
from .frequencies import fourier_frequencies
from .k_center import k_center_greedy
from .k_means_seeding import k_means_parallel, k_means_plus_plus
from .kernel_logsumexp import kernel_logsumexp
from .kernel_matmul import kernel_matmul, kernel_row_sums
from .kernel_matrix import kernel_matrix, squared_distances
from .leverage import lewis_weights, ridge_leverage_scores
from .loss_sampling import row_losses, sample_by_loss
from .mmd import median_bandwidth, mmd2
from .radial import Cauchy, Gaussian, Laplacian, Matern, MixtureOfGaussians, RationalQuadratic
from .random import normal, random_bits, uniform
from .sample import Sample
from .sampling import weighted_sample
from .sensitivity import kernel_density_sensitivity, lightweight_sensitivity, rbf_sensitivity
from .statistics import gram_add_, mirror_upper_, statistics_add_
from .weighted_sampler import WeightedSampler

__all__ = [
    "Augmentation",
    "Cauchy",
    "Gaussian",
    "Laplacian",
    "Matern",
    "MixtureOfGaussians",
    "RationalQuadratic",
    "Sample",
    "WeightedSampler",
    "arc_cosine_kernel",
    "augment_images",
    "conv_arc_cosine_kernel",
    "draw_augmentation",
    "explain",
    "fourier_features",
    "fourier_frequencies",
    "gram_add_",
    "k_center_greedy",
    "k_means_parallel",
    "k_means_plus_plus",
    "kernel_density_sensitivity",
    "kernel_logsumexp",
    "kernel_matmul",
    "kernel_matrix",
    "kernel_row_sums",
    "lewis_weights",
    "lightweight_sensitivity",
    "median_bandwidth",
    "mirror_upper_",
    "mmd2",
    "normal",
    "random_bits",
    "rbf_sensitivity",
    "ridge_leverage_scores",
    "row_losses",
    "sample_by_loss",
    "squared_distances",
    "statistics_add_",
    "uniform",
    "use_backend",
    "weighted_sample",
]
