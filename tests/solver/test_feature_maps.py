"""Laws of every feature map: preimages, homogeneity, dtypes, derivatives, files; kernels in the mean."""

import json
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from kernel_distill.solver.feature_maps import (
    FEATURE_MAPS,
    DeepLinear,
    Dense,
    Identity,
    RandomFourier,
    make_feature_map,
    restore_feature_map,
)
from kernel_distill.solver.feature_maps.linear_system import LinearSystem

from ..cases import EPS, INVERTIBLE, WIDE, D, MapCase, condition, map_condition, params_of, relative, rounding

EVERY = params_of(INVERTIBLE) + params_of(WIDE)
ONTO_A_SUBSPACE = ("deep-linear-bottleneck", "deep-linear-wide")


def points(n=9, seed=0, shape=(D,)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *shape)))


# --- Preimages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "anywhere"),
    [
        pytest.param(case, anywhere, id=f"{name}-{'anywhere' if anywhere else 'range'}")
        for name, case in INVERTIBLE.items()
        for anywhere in (False, True)
        if not anywhere or name not in ONTO_A_SUBSPACE
    ],
)
@pytest.mark.parametrize("near", [False, True], ids=["least-norm", "near"])
def test_features_of_a_preimage_are_the_features(case, near, anywhere):
    feature_map = case.make()
    assert feature_map.has_preimage
    assert feature_map.surjective or not anywhere
    F = feature_map.features(points(shape=case.input_shape))
    if anywhere:
        F = points(shape=(feature_map.n_features,))
        if (bound := feature_map.feature_bound) is not None:
            F = 0.98 * bound * F / F.abs().max()
    before = F.clone()
    reference = points(seed=1, shape=case.input_shape) if near else None
    x = feature_map.preimage(F, near=reference)
    assert torch.equal(F, before)
    assert (x.shape, x.dtype) == ((9, *case.input_shape), torch.float64)
    # Each layer is solved with one step of refinement, which leaves a residual of rounding in each system; the
    # layers after it and rounding in x itself enlarge that by at most the condition of the map.
    assert relative(feature_map.features(x), F) < rounding(map_condition(feature_map, x))


@pytest.mark.parametrize("case", params_of(INVERTIBLE))
def test_preimage_near_the_answer_is_the_answer(case):
    """Where many points have the same features, the reference decides among them."""
    feature_map = case.make()
    X = points(shape=case.input_shape)
    found = feature_map.preimage(feature_map.features(X), near=X)
    assert relative(found, X) < rounding(map_condition(feature_map, X) ** 2)


@pytest.mark.parametrize(
    "case",
    [
        *params_of(INVERTIBLE, "fourier-laplacian", "fourier-cauchy", "deep-linear-bottleneck", "fcnn-steep"),
        pytest.param(MapCase("conv", {"channels": 9}, (3, 2, 2)), id="conv-narrow"),
    ],
)
def test_a_reference_brings_the_preimage_nearer(case):
    # One system to solve: the preimages are a plane, of which the point nearest to the reference is taken.
    feature_map = case.make()
    X = points(shape=case.input_shape)
    close = X + 0.05 * points(seed=1, shape=case.input_shape)
    F = feature_map.features(X)
    with_reference, without = (feature_map.preimage(F, near=reference) for reference in (close, None))
    assert (with_reference - close).norm() <= (X - close).norm() * (
        1 + rounding(map_condition(feature_map, X) ** 2)
    )
    assert (with_reference - close).norm() < (without - close).norm()


@pytest.mark.parametrize("case", params_of(WIDE))
def test_maps_without_preimage_say_what_to_do(case):
    feature_map = case.make()
    assert not feature_map.has_preimage
    with pytest.raises(
        NotImplementedError,
        match=rf"'{case.name}' map \(12 inputs, {feature_map.n_features} features\) has no",
    ):
        feature_map.preimage(points(shape=(feature_map.n_features,)))


@pytest.mark.parametrize("case", params_of(INVERTIBLE))
def test_features_of_another_length_have_no_preimage(case):
    feature_map = case.make()
    p = feature_map.n_features
    for wrong in (torch.ones(3, p + 1), torch.ones(p)):
        with pytest.raises(ValueError, match=rf"`F` must have shape \(n, {p}\)"):
            feature_map.preimage(wrong.double())


@pytest.mark.parametrize("variant", ["plain", "orthogonal"])
def test_fourier_features_beyond_the_bound_are_refused(variant):
    feature_map = RandomFourier((D,), length_scale=3.0, variant=variant)
    assert feature_map.feature_bound == math.sqrt(2 / D)
    F = torch.full((2, D), feature_map.feature_bound, dtype=torch.float64)
    # At the bound itself cosines are ±1: an error of eps in them is one of sqrt(eps) in the angle, and back.
    assert relative(feature_map.features(feature_map.preimage(F)), F) < rounding(
        map_condition(feature_map, points()) ** 2
    )
    with pytest.raises(
        ValueError, match=r"features reach 1.5 times the bound of this map: scale them \(and the labels\)"
    ):
        feature_map.preimage(1.5 * F)


@pytest.mark.parametrize("slope", [-0.5, -1.0])
def test_slopes_without_inverse_are_refused_or_not_called_invertible(slope):
    """max(t, s t) with s < 0 is never negative: most feature vectors have no preimage."""
    try:
        feature_map = Dense((D,), slope=slope)
    except ValueError:
        return
    assert not feature_map.surjective


@pytest.mark.parametrize("slope", [0.1, 0.9, 1.0, 2.0, 10.0])
def test_preimages_leave_their_features_alone(slope):
    """Also for slopes above one, whose inverse is a LeakyReLU that could be applied in place."""
    feature_map, F = Dense((D,), slope=slope), points()
    before = F.clone()
    x = feature_map.preimage(F)
    assert torch.equal(F, before)
    assert relative(feature_map.features(x), before) < rounding(map_condition(feature_map, x))


# --- Laws of features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EVERY)
def test_homogeneous_is_what_it_says(case):
    feature_map, X = case.make(), points(shape=case.input_shape)
    for c in (1e-3, 7.0):
        equal = relative(feature_map.features(c * X), c * feature_map.features(X)) < rounding()
        assert equal == feature_map.homogeneous


@pytest.mark.parametrize("case", EVERY)
def test_rows_are_mapped_one_by_one_in_any_shape(case):
    feature_map, X = case.make(), points(shape=case.input_shape)
    F = feature_map.features(X)
    assert F.shape == (9, feature_map.n_features)
    assert relative(torch.cat([feature_map.features(row[None]) for row in X]), F) < rounding()
    assert torch.equal(feature_map.features(X.flatten(1)), F)
    assert feature_map.features(X[:0]).shape == (0, feature_map.n_features)


@pytest.mark.parametrize("case", EVERY)
def test_features_leave_their_inputs_alone(case):
    feature_map, X = case.make(), points(shape=case.input_shape)
    before = X.clone()
    feature_map.features(X)
    assert torch.equal(X, before)


@pytest.mark.parametrize("case", EVERY)
def test_single_precision_agrees_with_double(case):
    """Weights are float32 numbers in both, so that only arithmetic differs."""
    feature_map, X = case.make(), points(shape=case.input_shape).float()
    single, double = feature_map.features(X), feature_map.features(X.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    # Four layers of products of twelve terms; phases of a cosine reach twenty times its period.
    largest = max(1.0, 20.0 if case.name == "fourier" else 1.0)
    assert relative(single, double) < 10 * D * np.finfo(np.float32).eps * largest


@pytest.mark.parametrize("case", EVERY)
def test_derivatives(case):
    """By finite differences, away from the kinks of LeakyReLU and ReLU, which random points are."""
    feature_map = case.make()
    X = points(2, shape=case.input_shape).requires_grad_()
    assert torch.autograd.gradcheck(feature_map.features, (X,), eps=1e-7, atol=1e-5)
    plain = feature_map.features(X.detach())
    assert relative(feature_map.features(X).detach(), plain) < rounding()


@pytest.mark.parametrize("case", EVERY)
def test_seed_decides_the_map(case):
    first, again, other = case.make(0), case.make(0), case.make(1)
    X = points(shape=case.input_shape)
    assert torch.equal(first.features(X), again.features(X))
    assert torch.equal(first.features(X), other.features(X)) == (case.name == "identity")


@pytest.mark.parametrize("case", EVERY)
def test_wrong_inputs_are_refused(case):
    feature_map = case.make()
    with pytest.raises(
        ValueError, match=r"must be float32 or float64, got torch\.uint8: apply the transform first"
    ):
        feature_map.features(torch.ones(2, D, dtype=torch.uint8))
    for shape in ((2, D + 1), (2, 3, 4), (D,)):
        with pytest.raises(
            ValueError, match=r"takes inputs of shape .*, got rows of shape .*: was it made for other data"
        ):
            feature_map.features(torch.ones(shape))


# --- Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EVERY)
def test_a_map_is_made_again_from_what_it_says(case):
    first = case.make(3)
    parameters = json.loads(json.dumps(first.parameters()))
    again = restore_feature_map(first.name, parameters, first.tensors())
    X = points(shape=case.input_shape)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(again.features(X.to(dtype)), first.features(X.to(dtype)))
    assert again.fingerprint() == first.fingerprint()
    assert 1 <= len(first.fingerprint()) <= 32
    assert all(math.isfinite(value) for value in first.fingerprint())


@pytest.mark.parametrize("case", params_of(INVERTIBLE, *(name for name in INVERTIBLE if name != "identity")))
def test_fingerprints_tell_maps_apart(case):
    first = case.make(0)
    others = [case.make(1), *(other.make(0) for other in INVERTIBLE.values() if other != case)]
    for other in others:
        a, b = np.array(first.fingerprint()), np.array(other.fingerprint())
        assert a.shape != b.shape or not np.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", EVERY)
def test_arrays_that_a_map_does_not_store_are_refused(case):
    first = case.make()
    assert first.tensors() == {}
    with pytest.raises(ValueError, match=rf"a '{case.name}' map stores no arrays, found \['extra'\]"):
        restore_feature_map(first.name, first.parameters(), {"extra": torch.ones(1)})


# --- Making maps by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "name"), [("linear", "identity"), ("rff", "fourier")])
def test_aliases(alias, name):
    params = {"length_scale": 1.0} if name == "fourier" else {}
    assert make_feature_map(alias, (D,), params=params).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("fourrier", {}), "unknown feature map 'fourrier'; did you mean 'fourier'", id="name"),
        pytest.param((None, {}), "unknown feature map None", id="none"),
        pytest.param(("fcnn", {"width": 3}), "the 'fcnn' map cannot be made with .*width", id="parameter"),
        pytest.param(("identity", {"widths": 3}), "the 'identity' map cannot be made", id="identity"),
        pytest.param(("fcnn", {"widths": ()}), "`widths` is empty", id="no-layers"),
        pytest.param(
            ("fcnn", {"widths": (3, 0)}), "`widths` must be an integer of at least 1, got 0", id="zero-width"
        ),
        pytest.param(("fcnn", {"slope": 0}), "`slope` must be finite and (not|above) zero", id="relu"),
        pytest.param(
            ("fourier", {"length_scale": 0}), "`length_scale` must be positive and finite", id="length"
        ),
        pytest.param(
            ("fourier", {"length_scale": 1, "kernel": "gausian"}),
            "unknown kernel 'gausian'; did you mean 'gaussian'",
            id="kernel",
        ),
        pytest.param(
            ("fourier", {"length_scale": 1, "variant": "pair"}),
            "unknown variant 'pair'; did you mean 'paired'",
            id="variant",
        ),
        pytest.param(
            ("fourier", {"length_scale": 1, "kernel": "laplacian", "variant": "orthogonal"}),
            "need a rotation-invariant kernel",
            id="orthogonal",
        ),
        pytest.param(
            ("fourier", {"length_scale": 1, "n_features": 7, "variant": "paired"}),
            "must be even, got 7",
            id="odd",
        ),
        pytest.param(("fourier", {}), "`length_scale` is not set and there is no sample", id="no-sample"),
        pytest.param(
            (Identity((D,)), {"a": 1}),
            r"the feature map is already made: drop its parameters \['a'\]",
            id="made",
        ),
        pytest.param(
            (Identity((D + 1,)), {}), r"takes \(13,\), the data have shape \(12,\)", id="other-shape"
        ),
        pytest.param(("conv", {}), r"takes images .*, got inputs of shape \(12,\)", id="conv-vector"),
    ],
)
def test_maps_that_cannot_be_made_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_feature_map(arguments[0], (D,), params=arguments[1])


def test_every_registered_map_is_in_the_table_or_has_tests_of_its_own():
    others = {"patches", "module", "random-conv", "conv-network"}
    assert set(FEATURE_MAPS) == {case.name for case in INVERTIBLE.values()} | others


# --- Dense networks and linear systems -----------------------------------------------------------------------


def test_dense_network_is_its_definition():
    feature_map, X = Dense((D,), (10, 7), slope=0.2, seed=4), points().numpy()
    weights = [weight.numpy() for weight in feature_map._weights]
    assert [weight.shape for weight in weights] == [(10, 12), (7, 10)]
    for weight in weights:
        X = X @ weight.T
        X = np.where(X > 0, X, 0.2 * X)
    assert relative(feature_map.features(points()), X) < rounding()
    # 120 and 70 entries of variance 1 / fan-in: relative standard deviations sqrt(2 / entries).
    for weight, fan_in in zip(weights, (12, 10), strict=True):
        assert weight.var() * fan_in == pytest.approx(1, abs=4 * (2 / weight.size) ** 0.5)


def test_deep_linear_network_is_a_product():
    feature_map = DeepLinear((D,), (5, 20))
    product = feature_map._weights[1].numpy() @ feature_map._weights[0].numpy()
    assert relative(feature_map.features(points()), points().numpy() @ product.T) < rounding()
    # Least squares outside its range: the nearest features that any point has.
    F = points(shape=(20,)).numpy()
    nearest = F @ np.linalg.pinv(product.T, rcond=1e-10) @ product.T
    found = feature_map.features(feature_map.preimage(torch.from_numpy(F)))
    assert relative(found, nearest) < rounding(condition(product))


@pytest.mark.parametrize(
    "shape", [(6, 6), (4, 9), (9, 4), (9, 4, 2)], ids=["square", "wide", "tall", "tall-and-singular"]
)
@pytest.mark.parametrize("near", [False, True], ids=["least-norm", "near"])
def test_linear_systems(shape, near):
    rng = np.random.default_rng(0)
    W = rng.normal(size=shape[:2])
    if len(shape) == 3:
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        W = (U[:, : shape[2]] * s[: shape[2]]) @ Vh[: shape[2]]
    start = rng.normal(size=(3, shape[1])) if near else np.zeros((3, shape[1]))
    z = rng.normal(size=(3, shape[1])) @ W.T
    found = LinearSystem(torch.from_numpy(W)).solve(
        torch.from_numpy(z), torch.from_numpy(start) if near else None
    )
    wanted = start + (z - start @ W.T) @ np.linalg.pinv(W.T, rcond=1e-12)
    assert relative(found.numpy() @ W.T, z) < rounding(condition(W))
    assert relative(found, wanted) < rounding(condition(W) ** 2)


# --- Kernels -------------------------------------------------------------------------------------------------

SCALE = 1.7


def matern(nu):
    """By Bessel functions, unlike the half-integer formulae one would write in code."""

    def kernel(r):
        s = np.sqrt(2 * nu) * np.linalg.norm(r) / SCALE
        return 2 ** (1 - nu) / scipy.special.gamma(nu) * s**nu * scipy.special.kv(nu, s)

    return kernel


KERNELS = {
    "gaussian": lambda r: np.exp(-(r @ r) / 2 / SCALE**2),
    "laplacian": lambda r: np.exp(-np.abs(r).sum() / SCALE),
    "cauchy": lambda r: np.prod(1 / (1 + r**2 / SCALE**2)),
    "matern-1/2": matern(0.5),
    "matern-3/2": matern(1.5),
    "matern-5/2": matern(2.5),
}
VARIANTS = [
    pytest.param(kernel, variant, id=f"{kernel}-{variant}")
    for kernel in KERNELS
    for variant in ("plain", "orthogonal", "paired")
    if variant != "orthogonal" or kernel not in ("laplacian", "cauchy")
]


@pytest.mark.parametrize(("kernel", "variant"), VARIANTS)
def test_products_of_features_converge_to_the_kernel(kernel, variant):
    """φ(x)·φ(y) is a mean of p bounded terms: within 4.5 standard errors of k(x - y), for many pairs."""
    d, p = 3, 40_000
    feature_map = RandomFourier((d,), p, length_scale=SCALE, kernel=kernel, variant=variant)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, d)) * np.geomspace(0.1, 2, 12)[:, None]
    A, B = (feature_map.features(torch.from_numpy(values)).numpy() for values in (x, y))
    wanted = np.array([KERNELS[kernel](a - b) for a, b in zip(x, y, strict=True)])
    assert wanted.max() > 0.8
    assert wanted.min() < 0.2
    # A term 2 cos cos has variance at most 1/2 + 1; of a pair, one half over p / 2 pairs.
    deviation = math.sqrt(1.5 / p) if variant != "paired" else math.sqrt(0.5 / (p / 2))
    assert np.abs((A * B).sum(axis=1) - wanted).max() < 4.5 * deviation
    if variant == "paired":
        assert (A**2).sum(axis=1) == pytest.approx(np.ones(12), abs=p * EPS)
    else:
        assert np.abs((A**2).sum(axis=1) - 1).max() < 4.5 * math.sqrt(0.5 / p)
        assert np.abs(A).max() <= feature_map.feature_bound


@pytest.mark.parametrize(
    ("kernel", "law"),
    [
        pytest.param("gaussian", "norm", id="gaussian"),
        pytest.param("laplacian", "cauchy", id="laplacian"),
        pytest.param("cauchy", "laplace", id="cauchy"),
        pytest.param("matern-1/2", ("t", (1,)), id="matern-1/2"),
        pytest.param("matern-3/2", ("t", (3,)), id="matern-3/2"),
        pytest.param("matern-5/2", ("t", (5,)), id="matern-5/2"),
    ],
)
def test_frequencies_follow_the_spectral_density(kernel, law):
    """Each entry of A has the one-dimensional marginal: a multivariate t has t marginals."""
    name, arguments = law if isinstance(law, tuple) else (law, ())
    A = RandomFourier((2,), 20_000, length_scale=SCALE, kernel=kernel)._frequencies.numpy()
    for column in A.T:
        assert scipy.stats.kstest(column * SCALE, name, args=arguments).pvalue > 1e-3


def test_orthogonal_frequencies_are_frames_of_gaussian_lengths():
    d = 6
    A = RandomFourier((d,), 4 * d + 2, length_scale=SCALE, variant="orthogonal")._frequencies.numpy()
    for start in range(0, 4 * d, d):
        unit = A[start : start + d] / np.linalg.norm(A[start : start + d], axis=1, keepdims=True)
        # Rounded to float32 after orthogonalisation.
        assert unit @ unit.T == pytest.approx(np.eye(d), abs=float(4 * np.finfo(np.float32).eps))
    lengths = np.linalg.norm(
        RandomFourier((d,), 6000, length_scale=SCALE, variant="orthogonal")._frequencies, axis=1
    )
    assert scipy.stats.kstest(lengths * SCALE, "chi", args=(d,)).pvalue > 1e-3


def test_orthogonal_features_vary_less():
    d, p = 8, 16
    x, y = points(2, shape=(d,)) * 0.5
    wanted = math.exp(-float((x - y).square().sum()) / 2 / 3**2)
    errors = {}
    for variant in ("plain", "orthogonal"):
        maps = [RandomFourier((d,), p, length_scale=3.0, variant=variant, seed=seed) for seed in range(200)]
        found = [float(m.features(x[None])[0] @ m.features(y[None])[0]) for m in maps]
        errors[variant] = np.square(np.array(found) - wanted)
        # Neither is biased: the mean of 200 lies within 4.5 standard errors.
        assert abs(np.mean(found) - wanted) < 4.5 * np.std(found) / 200**0.5
    assert errors["orthogonal"].mean() < errors["plain"].mean()


@pytest.mark.parametrize("c", [1.0, 30.0])
def test_length_scale_from_data_is_the_root_mean_squared_distance(c):
    sample = c * points(50) + 3
    feature_map = make_feature_map("fourier", (D,), sample=lambda: sample)
    pairs = (sample[:, None] - sample[None]).square().sum(dim=2)
    assert feature_map.length_scale == pytest.approx(float(pairs.mean()) ** 0.5, rel=1e-12)
    assert RandomFourier.needs_sample({})
    assert not RandomFourier.needs_sample({"length_scale": 2.0})


def test_constant_data_have_length_scale_one():
    assert make_feature_map("fourier", (D,), sample=lambda: torch.ones(5, D)).length_scale == 1.0
