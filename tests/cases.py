"""Problems, feature maps and oracles that several files of tests share: `from ..cases import ...`.

Oracles are plain NumPy in float64 and share no code with the library.
"""

import dataclasses

import numpy as np
import pytest
import torch

from kernel_distill.solver.feature_maps import FeatureMap, make_feature_map

EPS = np.finfo(np.float64).eps
# d = 12 values, which are also images of both shapes that the convolutional cases take.
D, K = 12, 4


def problem(n=200, d=D, k=K, seed=0):
    """Rows in k clusters that overlap, so that a linear model is neither perfect nor useless."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    centres = rng.normal(size=(k, d))
    return rng.normal(size=(n, d)) + centres[y], y


def one_hot(y, k=K):
    return np.eye(k)[y]


def train(F, Y, ridge=0.0, weight=None, *, intercept=False):
    """Ridge regression by the singular value decomposition of the rows: (W, b). ridge = 0 is the pseudo-inverse."""
    F, Y = np.asarray(F, np.float64), np.asarray(Y, np.float64)
    w = np.ones(len(F)) if weight is None else np.asarray(weight, np.float64)
    mean_F, mean_Y = np.zeros(F.shape[1]), np.zeros(Y.shape[1])
    if intercept:
        mean_F, mean_Y = w @ F / w.sum(), w @ Y / w.sum()
    root = np.sqrt(w)[:, None]
    C = F - mean_F
    if intercept:
        C = C - w @ C / w.sum()  # once more, for the rounding of a mean that is large beside the spread
    U, s, Vh = np.linalg.svd(root * C, full_matrices=False)
    kept = s > (0 if ridge else s[0] * max(F.shape) * EPS)
    kept[len(F) - intercept :] = False  # n rows about their mean span n - 1 directions
    filtered = s[kept] / (s[kept] ** 2 + ridge)
    W = Vh[kept].T @ (filtered[:, None] * (U[:, kept].T @ (root * (Y - mean_Y))))
    return W, mean_Y - mean_F @ W


def relative(found, wanted):
    """Relative Frobenius error."""
    return np.linalg.norm(np.asarray(found) - np.asarray(wanted)) / np.linalg.norm(np.asarray(wanted))


def condition(A):
    """Ratio of the largest to the smallest singular value that is not rounding."""
    s = np.linalg.svd(np.asarray(A), compute_uv=False)
    return s[0] / s[s > s[0] * max(A.shape) * EPS][-1]


def rounding(*factors, size=D):
    """What backward-stable algebra of this size may lose when condition numbers multiply to `factors`.

    A product or factorisation of size s perturbs its input by at most about s eps (Higham 2002, chapters 3
    and 20), and the answer by that times the condition number; 10 stands for the constants.
    """
    return 10 * size * EPS * float(np.prod(factors))


@dataclasses.dataclass(frozen=True)
class MapCase:
    """A feature map by name, with the shape of its inputs."""

    name: str
    params: dict
    input_shape: tuple[int, ...] = (D,)

    def make(self, seed=0) -> FeatureMap:
        return make_feature_map(self.name, self.input_shape, seed=seed, params=self.params)

    def inputs(self, X):
        return X.reshape(len(X), *self.input_shape)


def fourier(**params):
    return MapCase("fourier", {"length_scale": 5.0, **params})


# Maps whose closed-form features have points behind them. p is 8 or more: two points a class fit.
INVERTIBLE = {
    "identity": MapCase("identity", {}),
    "fcnn-1": MapCase("fcnn", {}),
    "fcnn-3": MapCase("fcnn", {"widths": (12, 11, 9)}),
    "fcnn-steep": MapCase("fcnn", {"widths": (10,), "slope": 3.0}),
    "deep-linear": MapCase("deep-linear", {}),
    "deep-linear-bottleneck": MapCase("deep-linear", {"widths": (9, 20)}),
    "deep-linear-wide": MapCase("deep-linear", {"widths": (20,)}),
    "fourier-gaussian": fourier(),
    "fourier-laplacian": fourier(kernel="laplacian", n_features=9, length_scale=20.0),
    "fourier-cauchy": fourier(kernel="cauchy", n_features=10),
    "fourier-matern-3/2": fourier(kernel="matern-3/2", n_features=10),
    "fourier-orthogonal": fourier(variant="orthogonal", n_features=10),
    "conv-1": MapCase("conv", {}, (1, 4, 3)),
    "conv-2": MapCase("conv", {"channels": (11, 9)}, (3, 2, 2)),
    "coupling": MapCase("coupling", {}),
}
# Maps without preimages: more features than inputs, or features on circles.
WIDE = {
    "fourier-wide": fourier(n_features=30),
    "fourier-paired": fourier(n_features=10, variant="paired"),
    "fcnn-wide": MapCase("fcnn", {"widths": (30,)}),
}


def params_of(table, *names):
    """The table, or some names of it, for `pytest.mark.parametrize`."""
    return [pytest.param(table[name], id=name) for name in names or table]


def map_condition(feature_map, Z):
    """Largest ratio of singular values of the map's Jacobian over the points Z: what its inverse loses."""
    worst = 1.0
    for z in Z.double().reshape(len(Z), -1):
        J = torch.autograd.functional.jacobian(lambda v: feature_map.features(v[None])[0], z)
        worst = max(worst, condition(J.numpy()))
    return worst
