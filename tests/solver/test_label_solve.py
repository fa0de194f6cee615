"""Label Solve: the projection that it promises, and what it says of points that are no help."""

import numpy as np
import pytest
import torch

from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learners.kernel_ridge import absolute_ridge
from kernel_distill.solver.learners.label_solve import solve_batch, solve_labels
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import D, K, condition, one_hot, problem, relative, rounding, train

KERNELS = {
    "ntk": {},
    "nngp": {"depth": 2},
    "gaussian": {"bandwidth": 3.0},
    "matern": {"bandwidth": 3.0},
    "fourier": {"n_features": 40, "length_scale": 5.0},
}


def case(name="ntk", n=150, m=12, *, values=False, dtype=torch.float64):
    """Training rows, a kernel, and points away from them."""
    X, y = problem(n)
    Y = np.random.default_rng(2).normal(size=(n, 2)) + X[:, :2]
    targets = Targets.from_values(2) if values else Targets.from_labels(y, "centred")
    source = ArraySource(X, Y if values else y)
    transform = make_transform("none", lambda: [], (D,))
    rows = TrainingRows(source, transform, targets, seed=0, holdout=0.1, dtype=dtype)
    kernel = make_kernel_function(name, (D,), params=KERNELS[name])
    points = torch.from_numpy(problem(m, seed=7)[0])
    return rows, kernel, points


def matrices(rows, kernel, points):
    """K_TS, Y_T and K_SS over all training rows."""
    index = torch.arange(rows.n)
    K_TS = kernel.matrix(rows.inputs(index).double(), points)
    return K_TS.numpy(), rows.outputs(index).numpy(), kernel.matrix(points).numpy()


def retrained(K_SS, K_TS, labels, ridge):
    """Predictions of the set that is trained on the labels, by NumPy."""
    return K_TS @ np.linalg.solve(K_SS + ridge * np.eye(len(K_SS)), np.asarray(labels))


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_predictions_are_the_projection_on_the_range_of_the_kernel(name, values):
    rows, kernel, points = case(name, values=values)
    solved = solve_labels(rows, kernel, points)
    K_TS, Y, K_SS = matrices(rows, kernel, points)
    Q = np.linalg.qr(K_TS)[0]
    wanted = Q @ (Q.T @ Y)
    cond = condition(K_TS)
    assert relative(K_TS @ solved.coefficients.numpy(), wanted) <= rounding(cond, size=rows.n)
    ridge = float(absolute_ridge(torch.from_numpy(K_SS), 1e-6))
    assert relative(retrained(K_SS, K_TS, solved.labels, ridge), wanted) <= rounding(
        cond, condition(K_SS), size=rows.n
    )
    assert solved.loss == pytest.approx(0.5 * np.mean((wanted - Y) ** 2), rel=1e-9)
    assert (solved.rank, solved.lost) == (len(points), 0.0)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2, 10.0])
def test_predictions_do_not_depend_on_the_ridge(ridge):
    rows, kernel, points = case()
    K_TS, _, K_SS = matrices(rows, kernel, points)
    solved = solve_labels(rows, kernel, points, ridge=ridge)
    found = retrained(K_SS, K_TS, solved.labels, float(absolute_ridge(torch.from_numpy(K_SS), ridge)))
    wanted = K_TS @ solve_labels(rows, kernel, points).coefficients.numpy()
    assert relative(found, wanted) <= rounding(condition(K_SS), condition(K_TS))


def test_the_published_formula_gives_the_same_labels_up_to_its_regularisation():
    rows, kernel, points = case()
    K_TS, Y, K_SS = matrices(rows, kernel, points)
    m, M, r = len(points), K_TS.T @ K_TS, 1e-6
    # r / m is added to M, whose smallest eigenvalue it moves by this share.
    share = r / m / np.linalg.eigvalsh(M)[0]
    wanted = (K_SS + r / m * np.eye(m)) @ np.linalg.solve(M + r / m * np.eye(m), K_TS.T @ Y)
    found = solve_labels(rows, kernel, points, ridge=r / m / (np.trace(K_SS) / m))
    assert relative(found.labels, wanted) <= 2 * share * condition(K_SS) * condition(K_TS)
    assert share < 1e-4


def test_no_labels_are_better():
    rows, kernel, points = case()
    K_TS, Y, _ = matrices(rows, kernel, points)
    solved = solve_labels(rows, kernel, points)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1):
        moved = solved.coefficients.numpy() * (1 + size * rng.normal(size=(len(points), K)))
        assert 0.5 * np.mean((K_TS @ moved - Y) ** 2) > solved.loss


def test_enough_points_of_a_feature_map_give_its_full_model():
    # Theorem 4.2 of Chen, Huang and Weng: exact for m >= p.
    rows, _, points = case(m=20)
    feature_map = make_feature_map("fourier", (D,), params={"n_features": 15, "length_scale": 5.0})
    kernel = make_kernel_function(feature_map, (D,))
    solved = solve_labels(rows, kernel, points)
    index = torch.arange(rows.n)
    F = feature_map.features(rows.inputs(index)).numpy()
    W, _ = train(F, rows.outputs(index).numpy())
    F_S = feature_map.features(points).numpy()
    assert solved.rank == 15
    assert relative(F @ F_S.T @ solved.coefficients.numpy(), F @ W) <= rounding(
        condition(F), condition(F_S), condition(F_S), size=rows.n
    )


@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
def test_pieces_of_rows_do_not_matter(chunk):
    rows, kernel, points = case()
    wanted = solve_labels(rows, kernel, points)
    rows.chunk = chunk
    found = solve_labels(rows, kernel, points)
    K_TS = matrices(rows, kernel, points)[0]
    assert relative(found.labels, wanted.labels) <= rounding(condition(K_TS), size=rows.n)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)


def test_points_that_coincide_count_once():
    rows, kernel, points = case(m=6)
    twice = torch.cat([points, points[:2]])
    once, found = solve_labels(rows, kernel, points), solve_labels(rows, kernel, twice)
    assert (once.rank, found.rank) == (6, 6)
    K_TS = matrices(rows, kernel, points)[0]
    assert found.loss == pytest.approx(once.loss, rel=1e-12)
    assert relative(found.labels[6:], found.labels[:2]) <= rounding(condition(K_TS), size=rows.n)
    assert relative(found.labels[:6], once.labels) <= 1e-6 + rounding(condition(K_TS), size=rows.n)


def test_what_is_left_out_is_said():
    # Two points so near that the kernel cannot tell them apart in float32: their difference is a direction of its
    # own in float64, and what it could add to the fit is not more than what it does add when it is kept.
    rows, kernel, points = case("gaussian", m=6)
    near = torch.cat([points, points[:1] + 1e-9])
    found, without = solve_labels(rows, kernel, near), solve_labels(rows, kernel, points)
    K_TS, Y, _ = matrices(rows, kernel, near)
    Q = np.linalg.qr(K_TS)[0]
    kept = 0.5 * np.mean((Y - Q @ (Q.T @ Y)) ** 2)
    assert found.rank == 6
    assert solve_labels(rows, kernel, torch.cat([points, points[:1] + 1e-5])).rank == 7
    assert found.loss == pytest.approx(without.loss, rel=1e-5)
    assert found.lost == pytest.approx(found.loss - kept, rel=1e-2)
    assert found.lost > 0


def test_more_points_than_rows_fit_all_rows():
    rows, kernel, points = case("matern", n=20, m=30)
    solved = solve_labels(rows, kernel, points)
    K_TS, Y, K_SS = matrices(rows, kernel, points)
    assert solved.rank == rows.n == 18
    assert solved.loss <= (rounding(condition(K_TS), size=30)) ** 2
    assert relative(K_TS @ solved.coefficients.numpy(), Y) <= rounding(condition(K_TS), size=30)
    assert np.isfinite(solved.labels.numpy()).all()
    assert relative(solved.labels, K_SS @ np.linalg.pinv(K_TS) @ Y) <= 1e-5


def test_float32_rows_are_solved_for_in_float64():
    narrow, wide = case(dtype=torch.float32), case(dtype=torch.float64)
    found, wanted = solve_labels(*narrow), solve_labels(*wide)
    cond = condition(matrices(*wide)[0])
    assert found.labels.dtype == torch.float64
    assert 0 < relative(found.labels, wanted.labels) <= 10 * 2.0**-24 * cond


def test_points_that_are_not_finite_give_nan():
    rows, kernel, points = case()
    points[3, 1] = torch.nan
    solved = solve_labels(rows, kernel, points)
    assert solved.labels.isnan().all()
    assert np.isnan(solved.loss)
    assert solved.rank == 0


# --- One batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("b", "m", "k"), [(40, 5, 3), (6, 6, 1), (200, 30, 4)])
def test_a_batch_is_fitted_best_by_weight(b, m, k, dtype):
    rng = np.random.default_rng(b)
    K_TS, Y = (
        torch.from_numpy(rng.normal(size=(b, m)) * 10.0 ** rng.integers(-3, 3, m)).to(dtype),
        one_hot(rng.integers(0, k, b), k),
    )
    weights = rng.uniform(0.1, 3, b)
    found = solve_batch(K_TS, torch.from_numpy(Y), torch.from_numpy(weights))
    root, A = np.sqrt(weights)[:, None], K_TS.double().numpy()
    wanted = np.linalg.lstsq(root * A, root * Y, rcond=None)[0]
    scaled = condition(root * A / np.linalg.norm(root * A, axis=0))
    assert relative(A @ found.numpy(), A @ wanted) <= 10 * (1e-10 + rounding(size=b)) * scaled**2
    assert found.dtype == torch.float64


def test_coinciding_and_empty_columns_of_a_batch_are_no_obstacle():
    A = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
    Y, weights = A @ torch.ones(4, 2).double(), torch.ones(50).double()
    K_TS = torch.cat([A, A[:, :2], torch.zeros(50, 1).double()], dim=1)
    found = solve_batch(K_TS, Y, weights)
    assert relative(K_TS @ found, Y) <= 1e-8
    assert float(found.abs().max()) < 2


def test_a_batch_that_is_not_finite_gives_nan():
    A = torch.ones(5, 2).double()
    A[3, 1] = torch.nan
    assert solve_batch(A, torch.ones(5, 1).double(), torch.ones(5).double()).isnan().all()
