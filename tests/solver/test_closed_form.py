"""The closed forms as algebra: Theorems 4.1 to 6.1 of Chen, Huang and Weng (2024), and the nearest exact set.

Rows are samples: W is (p, k), features (m, p), labels (m, k). C-1 to C-14 are the numbers of the statements in
the notes that the library was written from.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.solver.closed_form import (
    best_rank,
    gram_set,
    nearest_features,
    theorem_features,
    theorem_noise,
    theorem_reference,
)
from kernel_distill.solver.ridge import RidgePath
from kernel_distill.solver.set_factor import SetFactor

from ..cases import EPS, condition, one_hot, relative, rounding, train

K = 3
# (m, p): fewer points than features, as many, more; one a class and several.
SHAPES = [
    pytest.param(3, 12, id="m=k"),
    pytest.param(6, 12, id="m<p"),
    pytest.param(12, 12, id="m=p"),
    pytest.param(21, 12, id="m>p"),
    pytest.param(3, 3, id="m=k=p"),
]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape))


def repeated(m, k=K):
    """One-hot labels, classes interleaved as in the published code."""
    return torch.from_numpy(one_hot(np.arange(m) % k, k))


def bound(W, Y, Z):
    """1 / (4 s_max²) of D, by NumPy, and D itself."""
    pinv = np.linalg.pinv(Y.numpy())
    D = pinv.T @ W.numpy().T + Z.numpy() - Y.numpy() @ pinv @ Z.numpy()
    return 1 / (4 * np.linalg.norm(D, 2) ** 2), D


def span_error(W, F, *, intercept=False):
    """Share of the columns of W outside the row space of the (centred) features: 0 iff some labels give W."""
    C = F.numpy() - (F.numpy().mean(axis=0) if intercept else 0)
    coefficients = np.linalg.lstsq(C.T, W.numpy(), rcond=max(C.shape) * EPS)[0]
    return relative(C.T @ coefficients, W)


# --- Theorem 4.1 and 5.1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "p"), SHAPES)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 100.0])
def test_any_z_is_exact_without_ridge(m, p, scale):
    """C-1."""
    W, Y = random(p, K), repeated(m)
    made = theorem_features(W, Y, scale * random(m, p, seed=1))
    assert torch.equal(made.labels, Y)
    assert made.notes == ()
    found, _ = train(made.features, made.labels)
    assert relative(found, W) < rounding(condition(made.features), size=max(m, p))


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(2, 9),
    p=st.integers(2, 9),
    k=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.0]),
    seed=st.integers(0, 2**31),
)
def test_any_labels_any_z_any_ridge(m, p, k, share, seed):
    """C-1, C-2 and label scaling, for labels that are not one-hot."""
    k = min(k, m, p)
    W, Y, Z = random(p, k, seed=seed), random(m, k, seed=seed + 1), random(m, p, seed=seed + 2)
    limit, D = bound(W, Y, Z)
    made = theorem_features(W, Y, Z, share * limit)
    found, _ = train(made.features, made.labels, share * limit)
    # Labels meet W through their own pseudo-inverse, features through D's.
    assert relative(found, W) < rounding(condition(made.features), condition(Y), condition(W), condition(D))


@pytest.mark.parametrize(("m", "p"), SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0, 1.0 + 1e-9, 2.0, 1e6])
def test_every_ridge_is_exact_and_finite(m, p, share):
    """C-2 below the bound of Theorem 4.1, C-4 at it; C-3 and label scaling above."""
    W, Y, Z = random(p, K), repeated(m), 0.3 * random(m, p, seed=1)
    limit, _ = bound(W, Y, Z)
    made = theorem_features(W, Y, Z, share * limit)
    assert torch.isfinite(made.features).all()
    assert torch.isfinite(made.labels).all()
    found, _ = train(made.features, made.labels, share * limit)
    assert relative(found, W) < rounding(condition(made.features), size=max(m, p))
    if share <= 1:
        # The bound was computed twice, so at equality the scale may be 1 + 1e-6.
        torch.testing.assert_close(made.labels, Y, rtol=0, atol=2e-6 if share == 1 else 0)
    else:
        # Labels times c raise the bound to c² times itself, and they are scaled just enough.
        torch.testing.assert_close(made.labels, Y * share**0.5, rtol=2e-6, atol=0)
        assert "labels were scaled" in made.notes[0]


@pytest.mark.parametrize(("m", "p"), SHAPES)
def test_root_at_the_bound(m, p):
    """C-4: at equality the largest direction has the double root 1 / (2 s) = sqrt(ridge)."""
    W, Y, Z = random(p, K), repeated(m), 0.3 * random(m, p, seed=1)
    limit, D = bound(W, Y, Z)
    U, _, Vh = np.linalg.svd(D)
    made = theorem_features(W, Y, Z, limit)
    # Near a double root an error of eps moves it by sqrt(eps); the scaling of labels by 1 + 1e-6 by its root.
    assert U[:, 0] @ made.features.numpy() @ Vh[0] == pytest.approx(limit**0.5, rel=3e-3)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_singular_values_solve_the_quadratic(share):
    """C-2: with s of D, each σ of the set is the larger root of λ_S s - σ + s σ² = 0."""
    W, Y, Z = random(12, K), repeated(6), random(6, 12, seed=1)
    limit, D = bound(W, Y, Z)
    made = theorem_features(W, Y, Z, share * limit)
    s = np.linalg.svd(D, compute_uv=False)
    wanted = (1 + np.sqrt(1 - 4 * share * limit * s**2)) / (2 * s)
    # sqrt(1 - share) stays above 0.3, so the root is as accurate as s.
    assert np.linalg.svd(made.features.numpy(), compute_uv=False) == pytest.approx(
        np.sort(wanted)[::-1], rel=rounding(condition(D))
    )


@pytest.mark.parametrize("m", [1, 2])
def test_too_few_points_for_given_labels_are_refused(m):
    """C-5: with m < k labels, no features can carry a model of rank k."""
    with pytest.raises(
        ValueError, match=rf"labels of rank {m} cannot carry a model of rank 3: use more points"
    ):
        theorem_features(random(12, K), repeated(m))


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_fewer_points_than_the_rank_lose_the_tail(rank):
    """C-5: the least ‖W_S - W‖_F of m points is the root of the tail of squared singular values."""
    W = random(12, 4)
    s = np.linalg.svd(W.numpy(), compute_uv=False)
    tail = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
    kept, Q, lost = best_rank(W, rank)
    assert lost == pytest.approx(tail, abs=rounding())
    assert relative(kept, W) == pytest.approx(tail, abs=rounding())
    assert Q.shape == (12, rank)
    torch.testing.assert_close(Q.T @ Q, torch.eye(rank, dtype=torch.float64), rtol=0, atol=rounding())
    # And it is attained: labels from the right singular vectors make a set of `rank` points.
    if rank:
        Vh = torch.linalg.svd(kept, full_matrices=False)[2][:rank]
        made = theorem_features(kept, Vh, ridge=1e-3)
        found, _ = train(made.features, made.labels, 1e-3)
        assert relative(found, W) == pytest.approx(tail, abs=rounding(condition(made.features)))


def test_rank_below_k_needs_no_more_points():
    """The rank of W counts, not the number of outputs: centred one-hot targets are spanned by k - 1 points."""
    W = random(12, K) @ (torch.eye(K, dtype=torch.float64) - 1 / K)
    kept, Q, lost = best_rank(W, K - 1)
    assert torch.equal(kept, W)
    assert Q.shape == (12, K - 1)
    assert lost == 0.0


@pytest.mark.parametrize("small", [True, False], ids=["all-plus-is-the-data", "all-plus-is-another-set"])
def test_the_data_themselves_are_one_solution(small):
    """C-6: Z = Φ_λ^+ and all labels give back Φ exactly where σ_i >= sqrt(λ) for all i, and W in any case."""
    F, Y = random(9, 12), random(9, K, seed=1)
    s = np.linalg.svd(F.numpy(), compute_uv=False)
    ridge = (0.5 * s[-1]) ** 2 if small else s[4] ** 2
    W = torch.from_numpy(train(F, Y, ridge)[0])
    made = theorem_features(W, Y, theorem_reference(W, Y, F, ridge), ridge)
    found, _ = train(made.features, made.labels, ridge)
    assert relative(found, W) < rounding(condition(made.features), condition(Y))
    if small:
        # The discriminant at the smallest σ is ((σ² - λ) / (σ² + λ))² = 0.36: no digits are lost.
        assert relative(made.features, F) < rounding(condition(F) ** 2, condition(Y))
    else:
        # Directions below sqrt(λ) are reflected to λ / σ, as the "+" root says.
        assert relative(made.features, F) > 0.02
        reflected = np.sort(np.maximum(s, ridge / s))
        found = np.linalg.svd(made.features.numpy(), compute_uv=False)[::-1]
        # At σ = sqrt(λ) the two roots meet, where an error of eps costs sqrt(eps).
        assert found == pytest.approx(reflected, rel=1e-5)


@pytest.mark.parametrize(("m", "p"), SHAPES)
def test_random_z_has_full_rank(m, p):
    """C-7."""
    made = theorem_features(random(p, K), repeated(m), random(m, p, seed=1))
    assert np.linalg.matrix_rank(made.features.numpy()) == min(m, p)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_nearest_pseudo_inverse_to_a_reference(ridge):
    """C-8: the distance of D to F_λ^+ is ‖Y^+ (Y F_λ^+ - W)‖_F, and no other Z comes nearer."""
    W, Y, F = random(12, K), repeated(7), random(7, 12, seed=1)
    filtered = np.linalg.solve(F.numpy() @ F.numpy().T + ridge * np.eye(7), F.numpy())  # (F_λ^+)ᵀ
    pinv = np.linalg.pinv(Y.numpy())
    wanted = np.linalg.norm(pinv.T @ (Y.numpy().T @ filtered - W.numpy().T))

    def distance(Z):
        return np.linalg.norm(bound(W, Y, Z)[1] - filtered)

    best = theorem_reference(W, Y, F, ridge)
    assert distance(best) == pytest.approx(wanted, rel=rounding(condition(F) ** 2))
    for seed in range(20):
        assert distance(best + 0.1 * random(7, 12, seed=seed)) > wanted
    # A direction inside the range of Y is removed again, so it changes nothing.
    assert distance(best + Y @ random(K, 12)) == pytest.approx(wanted, rel=rounding(condition(F) ** 2))


def test_pseudo_inverse_free_form():
    """C-11: Y W^+ + (I - Y Y^+) Z (I - W W^+) gives W as well (Theorem C.2)."""
    W, Y, Z = random(12, K), repeated(7), random(7, 12, seed=1)
    inside = np.eye(7) - Y.numpy() @ np.linalg.pinv(Y.numpy())
    outside = np.eye(12) - W.numpy() @ np.linalg.pinv(W.numpy())
    F = torch.from_numpy(Y.numpy() @ np.linalg.pinv(W.numpy()) + inside @ Z.numpy() @ outside)
    found, _ = SetFactor(F).weights(Y)
    assert relative(found, W) < rounding(condition(F))
    assert span_error(W, F) < rounding(condition(F))


@pytest.mark.parametrize("c", [1e-3, 17.0])
def test_scaled_labels_scale_points_inversely(c):
    """Y -> cY with Z -> Z/c gives the features times c, at a bound c² times as high."""
    W, Y, Z = random(12, K), repeated(6), random(6, 12, seed=1)
    plain = theorem_features(W, Y, Z, 0.0).features
    tolerance = rounding(condition(plain))
    assert relative(theorem_features(W, c * Y, Z / c).features, c * plain) < tolerance
    assert relative(theorem_features(W / c, Y, Z / c).features, c * plain) < tolerance
    ridge = 0.5 * bound(W, Y, Z)[0]
    base = theorem_features(W, Y, Z, ridge).features
    assert relative(theorem_features(W, c * Y, Z / c, c**2 * ridge).features, c * base) < tolerance


def test_the_set_depends_on_the_data_through_the_model_alone():
    """C-14: two data sets with one model (rows rotated) have the same exact set; W comes back from it, Φ cannot."""
    F, Y = random(40, 12), random(40, K, seed=1)
    Q = torch.linalg.qr(random(40, 40, seed=2))[0]
    models = [torch.from_numpy(train(a, b, 0.3)[0]) for a, b in ((F, Y), (Q @ F, Q @ Y))]
    assert relative(Q @ F, F) > 0.5
    sets = [theorem_features(W, repeated(6), random(6, 12, seed=3)).features for W in models]
    assert relative(sets[0], sets[1]) < rounding(condition(sets[0]), condition(F) ** 2, condition(models[0]))


def test_published_noise_scale():
    W, Y, noise = random(12, K), repeated(6), random(6, 12, seed=1)
    scale = 0.1 * (np.linalg.pinv(Y.numpy()).T @ W.numpy().T).std(ddof=1)
    assert relative(theorem_noise(W, Y, noise), scale * noise) < rounding()


# --- Labels for given points ---------------------------------------------------------------------------------

LAMBDAS = [0.0, 1e-3, 1.0, 1e4]


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("m", [13, 30])
def test_solved_labels_are_exact_from_p_points_on(m, ridge, intercept):
    """C-9, for every λ_S: m >= p points of full rank (one more with an intercept) carry any model."""
    F, W, b = random(m, 12), random(12, K, seed=1), random(K, seed=2)
    factor = SetFactor(F, ridge, intercept=intercept)
    found, bias = train(F, factor.labels(W, b), ridge, intercept=intercept)
    # Labels hold λ_S / S, which training divides out again.
    assert relative(found, W) < rounding(factor.condition**2, size=m)
    if intercept:
        assert bias == pytest.approx(b.numpy(), abs=rounding(factor.condition**2, 1 + ridge, size=m))
    assert factor.residual(W) < rounding(factor.condition, size=m)


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("m", [1, 5, 11])
def test_solved_labels_give_the_projection_below_p_points(m, ridge):
    """C-9: otherwise the model is W projected on the row space, and the residual is what is lost."""
    F, W = random(m, 12), random(12, K, seed=1)
    P = np.linalg.pinv(F.numpy()) @ F.numpy()
    factor = SetFactor(F, ridge)
    found, _ = train(F, factor.labels(W), ridge)
    assert relative(found, P @ W.numpy()) < rounding(factor.condition**2)
    assert factor.residual(W) == pytest.approx(relative(P @ W.numpy(), W), abs=rounding(factor.condition))
    assert factor.rank == m
    assert factor.condition == pytest.approx(condition(F), rel=rounding(condition(F)))


@pytest.mark.parametrize("ridge", LAMBDAS)
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize(("m", "p"), SHAPES)
def test_set_weights_are_ridge_regression(m, p, ridge, intercept):
    F, Y = random(m, p), random(m, K, seed=1)
    factor = SetFactor(F, ridge, intercept=intercept)
    W, b = factor.weights(Y)
    wanted, bias = train(F, Y, ridge, intercept=intercept)
    assert relative(W, wanted) < rounding(factor.condition**2, size=max(m, p))
    assert b.numpy() == pytest.approx(
        bias, abs=rounding(factor.condition**2, size=max(m, p)) * max(1, abs(wanted).max())
    )


@pytest.mark.parametrize("share", [0.2, 1.0, 5.0])
def test_stationarity(share):
    """C-10: λ_S W = Φ_Sᵀ (Y_S - Φ_S W)."""
    W, Y, Z = random(12, K), repeated(6), random(6, 12, seed=1)
    ridge = share * bound(W, Y, Z)[0]
    made = theorem_features(W, Y, Z, ridge)
    F, labels = made.features.numpy(), made.labels.numpy()
    right = F.T @ (labels - F @ W.numpy())
    # Both terms of the right side are of size ‖F‖² ‖W‖.
    assert np.linalg.norm(ridge * W.numpy() - right) < rounding() * np.linalg.norm(F) ** 2 * np.linalg.norm(W)


@pytest.mark.parametrize("share", [0.0, 0.5, 3.0])
def test_kip_loss_vanishes_where_the_data_can_be_interpolated(share):
    """C-12 (Theorem 6.1): λ = 0, Φ of full row rank, n <= p: the loss that KIP minimises is zero at the set."""
    F, Y = random(10, 12), random(10, K, seed=1)
    W = torch.from_numpy(train(F, Y)[0])
    labels = repeated(6)
    ridge = share * bound(W, labels, 0 * random(6, 12))[0]
    made = theorem_features(W, labels, 0.1 * random(6, 12, seed=2), ridge)
    S, YS = made.features.numpy(), made.labels.numpy()
    # KIP's own form: kernel matrices, dual solve.
    kernel = S @ S.T + ridge * np.eye(6)
    loss = ((Y.numpy() - F.numpy() @ S.T @ np.linalg.solve(kernel, YS)) ** 2).sum()
    assert loss < 1e-20


def test_kip_loss_stays_positive_where_it_cannot():
    """C-12: n > p leaves a residual that no set removes, and the exact set has just that."""
    F, Y = random(40, 12), random(40, K, seed=1)
    W = train(F, Y)[0]
    made = theorem_features(torch.from_numpy(W), repeated(6), 0.1 * random(6, 12, seed=2))
    found, _ = train(made.features, made.labels)
    residual = ((Y.numpy() - F.numpy() @ W) ** 2).sum()
    assert residual > 1
    assert ((Y.numpy() - F.numpy() @ found) ** 2).sum() == pytest.approx(
        residual, rel=rounding(condition(made.features))
    )


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e8])
def test_centred_points_never_have_full_rank(offset):
    """m points about their mean span at most m - 1 directions, however far from zero they lie."""
    F = random(6, 12)
    centred = np.linalg.svd((F - F.mean(dim=0)).numpy(), compute_uv=False)
    factor = SetFactor(F + offset, intercept=True)
    assert factor.rank == 5
    assert factor.condition == pytest.approx(centred[0] / centred[4], rel=rounding(1 + offset))
    W, Y = random(12, K, seed=1), repeated(6)
    found, bias = factor.weights(Y)
    wanted, _ = train(F, Y, intercept=True)
    assert relative(found, wanted) < rounding(factor.condition**2, 1 + offset)
    # Six points of a model with an intercept pass through their labels.
    predicted = (F + offset).numpy() @ found.numpy() + bias.numpy()
    assert predicted == pytest.approx(Y.numpy(), abs=rounding(factor.condition**2, 1 + offset))
    trained, _ = factor.weights(factor.labels(W))
    P = np.linalg.pinv((F - F.mean(dim=0)).numpy(), rcond=1e-12) @ (F - F.mean(dim=0)).numpy()
    assert relative(trained, P @ W.numpy()) < rounding(factor.condition**2, 1 + offset)


def test_no_features_at_all():
    factor = SetFactor(torch.zeros(3, 12, dtype=torch.float64), 1.0)
    assert factor.rank == 0
    assert factor.condition >= 1
    assert (factor.weights(repeated(3))[0] == 0).all()


# --- The exact set nearest to reference points ----------------------------------------------------------------

NEAREST = [
    pytest.param(m, intercept, id=f"m={m}{'-intercept' if intercept else ''}")
    for m, intercept in [
        (3, False),
        (5, False),
        (12, False),
        (20, False),
        (4, True),
        (6, True),
        (12, True),
        (20, True),
    ]
]


def expected_distance(W, F, *, intercept):
    """By NumPy: the root of the r smallest squared singular values outside col(W), and what the floor adds."""
    Q = np.linalg.svd(W.numpy(), full_matrices=False)[0]
    # Points about their mean are combinations orthogonal to the vector of ones.
    basis = np.linalg.svd(np.ones((1, len(F))))[2][1:].T if intercept else np.eye(len(F))
    C = basis.T @ F.numpy()
    U, s, _ = np.linalg.svd(C - C @ Q @ Q.T)
    r = Q.shape[1]
    inside = np.linalg.svd(U[:, -r:].T @ C @ Q, compute_uv=False)
    lift = np.maximum(0.25 * np.sqrt((inside**2).mean()) - inside, 0)
    return np.sqrt((s[-r:] ** 2).sum() + lift @ lift)


@pytest.mark.parametrize(("m", "intercept"), NEAREST)
@pytest.mark.parametrize("wanted", ["reference", "one-hot"])
def test_nearest_set_is_exact(m, intercept, wanted):
    W, F, b = random(12, K), random(m, 12, seed=1) + 0.5, random(K, seed=2)
    labels = repeated(m) if wanted == "one-hot" else None
    if intercept and labels is not None:
        # A model of one-hot targets with an intercept has outputs that sum to zero.
        W = W - W.mean(dim=1, keepdim=True)
    found = nearest_features(W, F, labels=labels, intercept=intercept)
    factor = SetFactor(found, 0.1, intercept=intercept)
    assert span_error(W, found, intercept=intercept) < rounding(factor.condition, size=max(m, 12))
    trained, bias = train(found, factor.labels(W, b), 0.1, intercept=intercept)
    assert relative(trained, W) < rounding(factor.condition**2, size=max(m, 12))
    if intercept:
        assert bias == pytest.approx(b.numpy(), abs=rounding(factor.condition**2, size=max(m, 12)))
        assert found.mean(dim=0).numpy() == pytest.approx(F.mean(dim=0).numpy(), abs=rounding())


@pytest.mark.parametrize(
    ("m", "intercept"),
    [pytest.param(m, i, id=f"m={m}{'-intercept' if i else ''}") for m in (4, 6, 9) for i in (0, 1)],
)
def test_distance_of_the_nearest_set(m, intercept):
    W, F = random(12, K), random(m, 12, seed=1) + 0.5
    found = nearest_features(W, F, intercept=bool(intercept))
    wanted = expected_distance(W, F, intercept=bool(intercept))
    # The library squares singular values: those of these sets are not small, so it loses no more than their ratio.
    assert float((found - F).norm()) == pytest.approx(wanted, rel=rounding(condition(F) ** 2))


@pytest.mark.parametrize(("m", "intercept"), NEAREST)
def test_no_exact_set_is_nearer(m, intercept):
    """Every exact set has r combinations of points in col(W): take random ones, near the best and far."""
    W, F = random(12, K), random(m, 12, seed=1) + 0.5
    Q = np.linalg.svd(W.numpy(), full_matrices=False)[0]
    C = F.numpy() - (F.numpy().mean(axis=0) if intercept else 0)
    outside = C - C @ Q @ Q.T
    basis = np.linalg.svd(np.ones((1, m)))[2][1:].T if intercept else np.eye(m)
    best = np.linalg.svd(basis.T @ outside)[0][:, -K:]
    nearest = float((nearest_features(W, F, intercept=intercept) - F).norm())
    # The floor moves the answer inside col(W), which keeps it exact but not nearest: take that part off.
    tail = np.linalg.norm(best.T @ basis.T @ outside)
    assert nearest >= tail - 1e-9
    rng = np.random.default_rng(0)
    for spread in (1e-6, 1e-3, 0.1, 10.0):
        for _ in range(20):
            left = basis @ np.linalg.qr(best + spread * rng.normal(size=best.shape))[0]
            noise = spread * rng.normal(size=(m, K))
            other = C - left @ left.T @ outside + noise @ Q.T
            assert span_error(W, torch.from_numpy(other)) < 1e-6
            assert np.linalg.norm(other - C) >= tail - 1e-9


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
def test_nearest_set_keeps_reference_predictions_or_takes_labels(intercept):
    W, F = random(12, K), random(8, 12, seed=1)
    if intercept:
        W = W - W.mean(dim=1, keepdim=True)

    def centred(values):
        return values - values.mean(dim=0) if intercept else values

    labels = repeated(8)
    found = nearest_features(W, F, labels=labels, intercept=intercept)
    # With an intercept the model explains labels less their part along its missing output.
    wanted = centred(labels) @ torch.linalg.pinv(W) @ W
    assert relative(centred(found) @ W, wanted) < rounding(condition(W.numpy()))
    inside = centred(F) @ W
    moved = centred(nearest_features(W, F, intercept=intercept)) @ W
    change = np.linalg.svd((moved - inside).numpy(), compute_uv=False)
    # Only the few directions that the floor lifts may move, and each by less than the floor.
    assert (change > rounding() * change.max() + 1e-12).sum() <= K
    assert change.max() < 0.25 * np.linalg.norm(F.numpy(), 2) * np.linalg.norm(W.numpy(), 2)


def test_a_set_that_is_exact_already_does_not_move():
    """With W in the row space, and well inside it, there is nothing to do."""
    W, F = random(12, K), random(6, 12, seed=1)
    Q, left = np.linalg.qr(W.numpy())[0], np.linalg.qr(random(6, K, seed=2).numpy())[0]
    outside = F.numpy() - F.numpy() @ Q @ Q.T
    exact = torch.from_numpy(outside - left @ left.T @ outside + 3 * left @ Q.T)
    assert span_error(W, exact) < rounding(condition(exact))
    # The zero singular values are found through squares: to the root of rounding, in units of the largest.
    assert relative(nearest_features(W, exact), exact) < np.sqrt(rounding())


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("m", [14, 20, 60])
def test_enough_points_do_not_move(m, intercept):
    """From p points on (one more with an intercept) any set in general position is exact: the distance is zero."""
    W, F = random(12, K), random(m, 12, seed=1) + 0.5
    assert relative(nearest_features(W, F, intercept=intercept), F) < np.sqrt(rounding(size=m))


@pytest.mark.parametrize("c", [1e-6, 1e6])
def test_nearest_set_scales_and_rotates_with_its_reference(c):
    W, F = random(12, K), random(6, 12, seed=1)
    R = torch.linalg.qr(random(12, 12, seed=3))[0]
    base = nearest_features(W, F)
    gaps = 1e4  # of the eigenvectors; those of this instance are well apart
    assert relative(nearest_features(c * W, F), base) < rounding(gaps)
    assert relative(nearest_features(W, c * F), c * base) < rounding(gaps)
    assert relative(nearest_features(R @ W, F @ R.T), base @ R.T) < rounding(gaps)


@pytest.mark.parametrize(
    ("m", "intercept", "least"), [(2, False, 3), (3, True, 4)], ids=["plain", "intercept"]
)
def test_nearest_set_needs_as_many_points_as_the_rank(m, intercept, least):
    with pytest.raises(ValueError, match=rf"a model of rank 3 needs at least {least} points, got {m}"):
        nearest_features(random(12, K), random(m, 12), intercept=intercept)


def test_conditioning_floor_saves_an_unlucky_direction():
    """A reference that nearly lacks one direction of W would give points of condition 1e9."""
    W, F = random(12, K), random(3, 12, seed=1)
    Q = torch.linalg.qr(W)[0]
    F = F - F @ Q[:, :1] @ Q[:, :1].T * (1 - 1e-9)
    found = nearest_features(W, F)
    assert span_error(W, found) < rounding(condition(found))
    # Singular values lie between a quarter of their root mean square and sqrt(r) times it.
    assert condition(found) < 4 * np.sqrt(K)


# --- One set for every ridge ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 12, 60])
@pytest.mark.parametrize("source", ["statistics", "rows"])
def test_all_ridges_set_has_the_ridge_path_of_the_data(n, source):
    F, Y = random(n, 12), random(n, K, seed=1)
    path = RidgePath.from_rows(F, Y)
    if source == "statistics":
        from kernel_distill.solver.statistics import Statistics

        path = RidgePath.from_statistics(Statistics(12, K).add(F, Y))
    made = gram_set(path)
    assert len(made.features) == min(n, 12)
    squared = condition(F) ** 2
    assert relative(made.features.T @ made.features, F.T @ F) < rounding(size=n)
    assert relative(made.features.T @ made.labels, F.T @ Y) < rounding(squared, size=n)
    for ridge in np.logspace(-6, 4, 11):
        found, _ = train(made.features, made.labels, ridge)
        assert relative(found, train(F, Y, ridge)[0]) < rounding(squared, size=max(n, 12))


def test_all_ridges_set_has_no_intercept():
    with pytest.raises(ValueError, match="exact for every ridge has no intercept: centre the targets"):
        gram_set(RidgePath.from_rows(random(20, 12), random(20, K), intercept=True))
