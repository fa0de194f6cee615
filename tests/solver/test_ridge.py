"""Ridge regression for every λ: four ways to solve it, λ chosen as brute force would, the fit of a full model."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import Identity as IdentityMap, make_feature_map
from kernel_distill.solver.fit import fit_full_model, full_model_from_statistics
from kernel_distill.solver.ridge import Ridge, RidgePath
from kernel_distill.solver.source import as_source, row_keys
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Identity

from ..cases import EPS, D, K, condition, one_hot, problem, relative, rounding, train

GRID = [1e-8, 1e-4, 1e-2, 1.0, 30.0, 1e4]


def weights_for(n, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 3.0, n)


@dataclasses.dataclass(frozen=True)
class Case:
    n: int
    p: int = D
    rank: int | None = None
    intercept: bool = False
    weighted: bool = False

    def data(self):
        rng = np.random.default_rng(0)
        F = rng.normal(size=(self.n, self.p)) + 0.3
        if self.rank is not None:
            F = rng.normal(size=(self.n, self.rank)) @ rng.normal(size=(self.rank, self.p))
        return F, rng.normal(size=(self.n, K)), weights_for(self.n) if self.weighted else None

    def centred(self):
        F, _, w = self.data()
        w = np.ones(self.n) if w is None else w
        return np.sqrt(w)[:, None] * (F - (w @ F / w.sum() if self.intercept else 0))


CASES = [
    pytest.param(
        Case(n, p, rank, intercept, weighted), id=name + "-intercept" * intercept + "-weights" * weighted
    )
    for name, n, p, rank in [
        ("n>p", 60, D, None),
        ("n=p", D, D, None),
        ("n<p", 7, D, None),
        ("deficient", 60, D, 5),
    ]
    for intercept in (False, True)
    for weighted in (False, True)
]


def tensors(F, Y, w):
    return torch.from_numpy(F), torch.from_numpy(Y), None if w is None else torch.from_numpy(w)


def paths(case):
    F, Y, w = tensors(*case.data())
    statistics = Statistics(case.p, K).add(F, Y, w)
    return {
        "statistics": RidgePath.from_statistics(statistics, intercept=case.intercept),
        "rows": RidgePath.from_rows(F, Y, w, intercept=case.intercept),
    }


# --- One path, many solvers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_path_equals_direct_solutions(case, route):
    """eigh or SVD path = singular value filter = augmented least squares = Cholesky = dual, for every λ."""
    path = paths(case)[route]
    F, Y, w = case.data()
    root = np.sqrt(np.ones(case.n) if w is None else w)[:, None]
    A = case.centred()
    B = root * (Y - ((w @ Y / w.sum() if w is not None else Y.mean(axis=0)) if case.intercept else 0))
    largest = np.linalg.norm(A, 2) ** 2
    for ridge in GRID:
        found, bias = path.weights(ridge)
        wanted, wanted_bias = train(F, Y, ridge, w, intercept=case.intercept)
        # Rounding of G (60 terms) reaches directions that hold no data only through 1 / λ.
        smallest = np.linalg.svd(A, compute_uv=False)[-1] ** 2 if A.shape[0] >= A.shape[1] else 0.0
        limit = rounding((largest + ridge) / (smallest + ridge), size=60)
        assert relative(found, wanted) < limit
        assert bias.numpy() == pytest.approx(wanted_bias, abs=limit * max(1, np.linalg.norm(wanted)))
        if limit < 0.01:
            normal = scipy.linalg.cho_solve(
                scipy.linalg.cho_factor(A.T @ A + ridge * np.eye(case.p)), A.T @ B
            )
            dual = A.T @ np.linalg.solve(A @ A.T + ridge * np.eye(case.n), B)
            assert relative(found, normal) < limit
            # An augmented least-squares problem has the root of this condition, squared by its residual.
            augmented = np.linalg.lstsq(
                np.concatenate([A, ridge**0.5 * np.eye(case.p)]),
                np.concatenate([B, np.zeros((case.p, K))]),
                rcond=None,
            )[0]
            assert relative(found, augmented) < limit
            # The dual's own system has the condition of AAᵀ, at best that of the primal.
            assert relative(found, dual) < limit + rounding((largest + ridge) / ridge, size=60)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_zero_ridge_is_the_pseudo_inverse(case, route):
    path = paths(case)[route]
    A = case.centred()
    rank = min(case.n - case.intercept, case.p, case.rank or case.p)
    assert path.rank == rank
    F, Y, w = case.data()
    found, bias = path.weights(0.0)
    wanted, wanted_bias = train(F, Y, 0.0, w, intercept=case.intercept)
    # From G the condition is squared.
    kappa = condition(A) ** (2 if route == "statistics" else 1)
    assert relative(found, wanted) < rounding(kappa, size=60)
    assert bias.numpy() == pytest.approx(
        wanted_bias, abs=rounding(kappa, size=60) * max(1, np.linalg.norm(wanted))
    )
    missing = min(case.n - case.intercept, case.p) - rank
    assert path.notes == (
        ()
        if not missing
        else (
            f"features have rank {rank} of {rank + missing}: {missing} directions without data were left out",
        )
    )


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n", [200, 20_000])
def test_directions_without_data_are_found_at_any_size(n, intercept):
    """The rounding of a sum of n terms is not data, for large n and large means either."""
    rng = np.random.default_rng(0)
    F = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 8)) + (10.0 if intercept else 0.0)
    Y = rng.normal(size=(n, K))
    path = RidgePath.from_statistics(
        Statistics(8, K).add(torch.from_numpy(F), torch.from_numpy(Y)), intercept=intercept
    )
    assert path.rank == 3
    wanted, _ = train(F, Y, intercept=intercept)
    # G holds squares, and with an intercept the mean's square beside the variance.
    C = F - (F.mean(axis=0) if intercept else 0)
    kappa = np.linalg.norm(F, 2) / np.linalg.svd(C, compute_uv=False)[2]
    assert relative(path.weights(0.0)[0], wanted) < rounding(kappa**2, np.sqrt(n))


@pytest.mark.parametrize("offset", [1.0, 100.0])
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_constant_column_beside_an_intercept_gets_no_weight(route, offset):
    """A constant feature holds no data once there is an intercept: λ = 0 leaves it out."""
    rng = np.random.default_rng(0)
    F, Y = np.column_stack([rng.normal(size=(200, 5)), np.full(200, offset)]), rng.normal(size=(200, K))
    F_, Y_ = torch.from_numpy(F), torch.from_numpy(Y)
    path = (
        RidgePath.from_rows(F_, Y_, intercept=True)
        if route == "rows"
        else RidgePath.from_statistics(Statistics(6, K).add(F_, Y_), intercept=True)
    )
    assert path.rank == 5
    found, _ = path.weights(0.0)
    wanted, _ = train(F[:, :5], Y, intercept=True)
    limit = rounding(condition(F[:, :5]) ** 2, (1 + offset) ** 2)
    assert relative(found[:5], wanted) < limit
    assert np.abs(found[5].numpy()).max() < limit


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e8])
def test_rows_about_their_mean_never_have_full_rank(offset):
    """n < p rows with an intercept span n - 1 directions, however far from zero they lie."""
    rng = np.random.default_rng(0)
    F, Y = rng.normal(size=(7, D)), rng.normal(size=(7, K))
    path = RidgePath.from_rows(torch.from_numpy(F + offset), torch.from_numpy(Y), intercept=True)
    assert path.rank == 6
    wanted, _ = train(F, Y, intercept=True)
    assert relative(path.weights(0.0)[0], wanted) < rounding(condition(F) ** 2, 1 + offset)


def test_path_parts_agree_with_their_names():
    case = Case(60, intercept=True)
    path, A = paths(case)["statistics"], case.centred()
    values = np.sort(np.linalg.eigvalsh(A.T @ A))[::-1]
    assert path.values.numpy() == pytest.approx(values, rel=rounding(condition(A) ** 2, size=60))
    assert path.trace == pytest.approx(np.trace(A.T @ A), rel=rounding(size=60))
    torch.testing.assert_close(
        path.vectors.T @ path.vectors, torch.eye(D, dtype=torch.float64), rtol=0, atol=rounding()
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix(case, route):
    path, A = paths(case)[route], case.centred()
    for ridge in (1e-2, 1.0, 30.0):
        hat = A @ np.linalg.solve(A.T @ A + ridge * np.eye(case.p), A.T)
        kappa = (np.linalg.norm(A, 2) ** 2 + ridge) / ridge
        assert path.degrees_of_freedom(ridge) == pytest.approx(
            np.trace(hat) + case.intercept, rel=rounding(kappa, size=60)
        )


def test_scores_are_predictions_of_every_model():
    case = Case(60, intercept=True)
    path, F = paths(case)["statistics"], torch.from_numpy(case.data()[0])
    scores = path.scores(F, GRID)
    assert scores.shape == (len(GRID), 60, K)
    for ridge, predicted in zip(GRID, scores, strict=True):
        W, b = path.weights(ridge)
        assert relative(predicted, F.numpy() @ W.numpy() + b.numpy()) < rounding()


# --- Choosing λ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_gcv_equals_its_definition(case, route):
    """n⁻¹ RSS / (1 - tr H / n)², with the hat matrix made by NumPy."""
    path = paths(case)[route]
    F, Y, w = case.data()
    A = case.centred()
    n = case.n
    ridges = [1e-2, 1.0, 30.0]
    for ridge, found in zip(ridges, path.gcv(ridges), strict=True):
        W, b = train(F, Y, ridge, w, intercept=case.intercept)
        rss = (np.ones(n) if w is None else w) @ ((Y - F @ W - b) ** 2).sum(axis=1)
        df = np.trace(A @ np.linalg.solve(A.T @ A + ridge * np.eye(case.p), A.T)) + case.intercept
        # RSS is found as a difference of sums of squares; 1 - df / n enters squared.
        lost = (Y**2).sum() * 3 / rss / (1 - df / n) ** 2
        kappa = (np.linalg.norm(A, 2) ** 2 + ridge) / ridge
        assert found == pytest.approx(rss / n / (1 - df / n) ** 2, rel=rounding(lost, kappa, size=60))


def test_gcv_of_a_saturated_model_is_infinite():
    assert paths(Case(7))["rows"].gcv([0.0]) == [float("inf")]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Case(n, D, rank, intercept, weighted), id=name + "-intercept" * intercept + "-weights" * weighted
        )
        for name, n, rank in [("n>p", 25, None), ("n<p", 9, None), ("deficient", 25, 5)]
        for intercept in (False, True)
        for weighted in (False, True)
    ],
)
@pytest.mark.parametrize("route", ["statistics", "rows"])
def test_leave_one_out_equals_refitting(case, route):
    path = paths(case)[route]
    F, Y, w = case.data()
    ridges = [1e-2, 1.0, 30.0]
    found = path.leave_one_out(
        *tensors(F, Y, w)[:2], ridges, None if w is None else torch.from_numpy(w)
    ).numpy()
    A = case.centred()
    for ridge, predicted in zip(ridges, found, strict=True):
        kappa = (np.linalg.norm(A, 2) ** 2 + ridge) / ridge
        for i in range(case.n):
            rest = np.arange(case.n) != i
            W, b = train(F[rest], Y[rest], ridge, None if w is None else w[rest], intercept=case.intercept)
            # Leverages here stay below 1 - ridge / (‖A‖² + ridge), which divides the residual.
            assert predicted[i] == pytest.approx(F[i] @ W + b, rel=0, abs=rounding(kappa**2, size=60))


def test_leave_one_out_in_parts_equals_the_whole():
    case = Case(25, intercept=True, weighted=True)
    path = paths(case)["statistics"]
    F, Y, w = tensors(*case.data())
    whole = path.leave_one_out(F, Y, [0.1], w)
    parts = [path.leave_one_out(F[i : i + 4], Y[i : i + 4], [0.1], w[i : i + 4]) for i in range(0, 25, 4)]
    assert relative(torch.cat(parts, dim=1), whole) < rounding()


def test_a_row_that_decides_its_own_prediction_has_no_leave_one_out():
    F = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 2]]
    Y = torch.arange(5.0, dtype=torch.float64)[:, None]
    found = RidgePath.from_rows(F, Y).leave_one_out(F, Y, [0.0])[0, :, 0]
    # The mean of the other row of the same kind; the last row has none.
    assert found[:4].tolist() == pytest.approx([1, 0, 3, 2])
    assert torch.isnan(found[4])


@pytest.mark.parametrize("rule", ["gcv", "loo"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
def test_rows_of_weight_zero_are_absent(rule, intercept):
    F, Y, _ = Case(25).data()
    w = np.ones(25)
    w[[3, 8, 9]] = 0
    some = w > 0
    all_rows = RidgePath.from_statistics(Statistics(D, K).add(*tensors(F, Y, w)), intercept=intercept)
    fewer = RidgePath.from_statistics(
        Statistics(D, K).add(*tensors(F[some], Y[some], None)), intercept=intercept
    )
    if rule == "gcv":
        assert all_rows.gcv(GRID) == pytest.approx(fewer.gcv(GRID), rel=1e-9)
    else:
        found = all_rows.leave_one_out(*tensors(F[some], Y[some], None)[:2], [0.1])
        wanted = fewer.leave_one_out(*tensors(F[some], Y[some], None)[:2], [0.1])
        assert relative(found, wanted) < 1e-9


def test_grid_is_half_decades_and_follows_the_scale_of_the_data():
    F, Y, _ = Case(60).data()

    def grid(c, **rest):
        return RidgePath.from_rows(*tensors(c * F, Y, None)[:2]).grid(**rest)

    base = grid(1.0)
    assert len(base) == 24
    assert base[0] == pytest.approx(1e-11 * (F**2).sum() / D)
    assert np.divide(base[1:], base[:-1]) == pytest.approx(np.full(23, 10**0.5))
    assert grid(1e3) == pytest.approx([1e6 * ridge for ridge in base])
    assert len(grid(1.0, size=5)) == 5
    assert grid(0.0) == [1.0]


# --- Scales --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "wanted"),
    [
        pytest.param("absolute", 0.2, id="absolute"),
        pytest.param("trace", 0.2 * 60 / 20, id="trace"),
        pytest.param("per-sample", 0.2 * 20, id="per-sample"),
    ],
)
def test_ridge_scales(scale, wanted):
    assert Ridge(0.2, scale).absolute(trace=60.0, n=20.0) == pytest.approx(wanted, rel=2 * EPS)


@pytest.mark.parametrize("scale", ["trace", "per-sample"])
def test_relative_ridges_are_what_published_codes_add(scale):
    """KIP, RFAD, FRePo: K + λ tr(K)/n I. A mean loss: G + λ n I."""
    X, y = problem(60)
    full = fit(X, y, ridge=Ridge(0.05, scale))
    added = 0.05 * {"trace": np.trace(X @ X.T) / 60, "per-sample": 60}[scale]
    dual = X.T @ np.linalg.solve(X @ X.T + added * np.eye(60), one_hot(y))
    assert full.ridge == pytest.approx(added, rel=rounding())
    assert relative(full.model.weights, dual) < rounding(condition(X) ** 2, size=60)


@pytest.mark.parametrize("c", [1e-3, 1e3])
def test_scaled_data_with_a_relative_ridge_give_the_same_predictions(c):
    """C-13's direction: features times c scale the model by 1 / c and change nothing else."""
    X, y = problem()
    base, scaled = (fit(factor * X, y, ridge=Ridge(0.1, "trace"), intercept=True) for factor in (1.0, c))
    limit = rounding(condition(X) ** 2)
    assert scaled.ridge == pytest.approx(c**2 * base.ridge, rel=limit)
    assert relative(c * scaled.model.weights, base.model.weights) < limit
    assert relative(scaled.model.decision_function(c * X), base.model.decision_function(X)) < limit


@pytest.mark.parametrize(
    ("value", "scale", "message"),
    [
        pytest.param(-1.0, "absolute", "`ridge` must be finite and not negative, got -1.0", id="negative"),
        pytest.param(float("nan"), "absolute", "must be finite", id="nan"),
        pytest.param(float("inf"), "absolute", "must be finite", id="inf"),
        pytest.param("much", "absolute", "must be a number, got 'much'", id="text"),
        pytest.param(1.0, "tracee", "unknown ridge scale 'tracee'; did you mean 'trace'", id="scale"),
    ],
)
def test_bad_ridges_are_refused(value, scale, message):
    with pytest.raises(ValueError, match=message):
        Ridge(value, scale)


# --- The full model ------------------------------------------------------------------------------------------


def coding(kind="one-hot"):
    return Targets("one-hot" if kind == "one-hot" else kind, K, tuple(range(K)))


def fit(X, y, weight=None, *, feature_map=None, targets=None, **rest):
    source = as_source(X, y, weight)
    shape = source.input_shape
    encoder = Encoder(Identity(shape), feature_map or IdentityMap(shape))
    return fit_full_model(source, encoder, targets or coding(), progress=False, **rest)


def held_out(n, seed=0):
    return row_keys(seed, "holdout", 0, n).numpy() < 0.05


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("ridge", [0.0, 0.3, "holdout", "loo", "gcv", [0.1, 1.0, 10.0]], ids=str)
@pytest.mark.parametrize("n", [200, 9], ids=["primal", "dual"])
def test_full_model_is_ridge_regression_on_all_rows(n, ridge, weighted, intercept):
    X, y = problem(n)
    weight = weights_for(n) if weighted else None
    seed = next(s for s in range(1000) if held_out(n, s).any())
    full = fit(X, y, weight, ridge=ridge, intercept=intercept, seed=seed)
    wanted, bias = train(X, one_hot(y), full.ridge, weight, intercept=intercept)
    largest = 3 * np.linalg.norm(X, 2) ** 2
    kappa = condition(X) ** 2 if n > D or not full.ridge else (largest + full.ridge) / full.ridge
    # Leave-one-out and cross-validation may choose a λ near zero for n < p, where the dual is a pseudo-inverse.
    kappa = min(kappa, condition(X - X.mean(axis=0) if intercept else X) ** 2)
    assert relative(full.model.weights, wanted) < rounding(kappa, size=60)
    assert full.model.bias.numpy() == pytest.approx(bias, abs=rounding(kappa, size=60))
    assert full.n_rows == n
    if isinstance(ridge, list):
        assert full.ridge in ridge
        assert [value for value, _ in full.scores] == ridge


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n", [600, 38], ids=["primal", "dual"])
def test_holdout_scores_are_accuracies_on_rows_left_out(n, intercept, weighted):
    """Models of the other rows, judged on 5 % of the rows; the largest of the best λ is taken."""
    feature_map = make_feature_map("fourier", (D,), params={"length_scale": 5.0, "n_features": 40})
    X, y = problem(n, seed=3)
    weight = weights_for(n) if weighted else None
    seed = next(seed for seed in range(10_000) if held_out(n, seed).sum() >= 6)
    aside = held_out(n, seed)
    full = fit(X, y, weight, ridge="holdout", feature_map=feature_map, intercept=intercept, seed=seed)
    F, w = feature_map.features(torch.from_numpy(X)).numpy(), np.ones(n) if weight is None else weight
    assert full.ridge_rule == "holdout"
    for ridge, score in full.scores:
        W, b = train(F[~aside], one_hot(y)[~aside], ridge, w[~aside], intercept=intercept)
        right = (F[aside] @ W + b).argmax(axis=1) == y[aside]
        # Two scores of one row may be too close to call at the smallest λ; then one row may flip.
        flip = w[aside].max() / w[aside].sum() if ridge < 1e-6 else 1e-12
        assert score == pytest.approx(w[aside] @ right / w[aside].sum(), abs=flip)
    best = max(score for _, score in full.scores)
    assert full.ridge == max(ridge for ridge, score in full.scores if score == best)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
def test_loo_scores_are_accuracies_of_refitted_models(intercept, weighted):
    X, y = problem(50, seed=3)
    w = weights_for(50) if weighted else np.ones(50)
    ridges = [0.1, 3.0, 100.0]
    full = fit(X, y, w if weighted else None, ridge=ridges, intercept=intercept)
    assert full.ridge_rule == "loo"
    for ridge, score in full.scores:
        right = []
        for i in range(50):
            rest = np.arange(50) != i
            W, b = train(X[rest], one_hot(y)[rest], ridge, w[rest], intercept=intercept)
            right.append((X[i] @ W + b).argmax() == y[i])
        assert score == pytest.approx(w @ np.array(right) / w.sum(), rel=1e-12)


def test_regression_is_scored_by_squared_error():
    X, _ = problem(50)
    Y = np.random.default_rng(1).normal(size=(50, 2))
    full = fit(X, Y, ridge="loo", targets=Targets.from_values(2))
    ridge, score = full.scores[15]
    errors = []
    for i in range(50):
        rest = np.arange(50) != i
        W, _ = train(X[rest], Y[rest], ridge)
        errors.append(((Y[i] - X[i] @ W) ** 2).sum())
    assert score == pytest.approx(-np.mean(errors), rel=1e-9)
    assert fit(X, Y, ridge="auto", targets=Targets.from_values(2)).ridge_rule == "gcv"


def test_auto_rule_depends_on_the_number_of_rows():
    assert fit(*problem(200)).ridge_rule == "loo"
    assert fit(*problem(2000)).ridge_rule == "holdout"


BATCHES = [pytest.param(size, id=f"batch-{size}") for size in (1, 8 * D * 77, None)]


@pytest.mark.parametrize("batch_bytes", BATCHES)
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        pytest.param(kind, rule, id=f"{kind}-{rule}")
        for kind in ("array", "torch", "memmap", "generator", "loader", "ragged")
        for rule in ("holdout", "loo", "gcv")
        if (kind, rule) != ("generator", "loo")  # a second pass, which a generator does not have
    ],
)
def test_result_depends_on_neither_source_nor_batches(kind, rule, batch_bytes, tmp_path):
    n = 500
    X, y = problem(n)
    whole = fit(X, y, ridge=rule, seed=1)
    if kind == "array":
        source = as_source(X, y)
    elif kind == "torch":
        source = as_source(torch.from_numpy(X), torch.from_numpy(y))
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", X)
        source = as_source(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
    elif kind == "generator":
        source = as_source((X[i : i + 30], y[i : i + 30]) for i in range(0, n, 30))
    elif kind == "loader":
        data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
        source = as_source(torch.utils.data.DataLoader(data, batch_size=37))
    else:
        edges = [0, 1, 3, 3, 200, 201, n]
        source = as_source([(X[a:b], y[a:b]) for a, b in itertools.pairwise(edges)])
    encoder = Encoder(Identity((D,)), IdentityMap((D,)))
    full = fit_full_model(
        source, encoder, coding(), ridge=rule, seed=1, batch_bytes=batch_bytes, progress=False
    )
    assert full.n_rows == n
    # Scores are counts of held-out rows, or sums: the same rows were held out.
    assert [score for _, score in full.scores] == pytest.approx(
        [score for _, score in whole.scores], rel=1e-9
    )
    assert full.ridge == pytest.approx(whole.ridge, rel=rounding(size=n))
    assert relative(full.model.weights, train(X, one_hot(y), whole.ridge)[0]) < rounding(
        condition(X) ** 2, size=n
    )
    assert full.data_range == (X.min(), X.max())
    assert torch.equal(full.sample, whole.sample)


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
def test_dual_equals_primal(intercept):
    """Rows of known number below p are factored themselves; a stream of the same rows through G."""
    feature_map = make_feature_map("fourier", (D,), params={"length_scale": 5.0, "n_features": 60})
    X, y = problem(40)
    encoder = Encoder(Identity((D,)), feature_map)
    ridges = [1e-2, 1e-1, 1.0]
    arguments = {"ridge": ridges, "intercept": intercept, "seed": 2, "progress": False}
    dual = fit_full_model(as_source(X, y), encoder, coding(), **arguments)
    primal = fit_full_model(as_source([(X, y)]), encoder, coding(), **{**arguments, "ridge": dual.ridge})
    assert (type(dual.data).__name__, type(primal.data).__name__) == ("RowData", "GramData")
    F = feature_map.features(torch.from_numpy(X)).numpy()
    kappa = np.linalg.norm(F, 2) ** 2 / dual.ridge
    assert relative(dual.model.weights, primal.model.weights) < rounding(kappa, size=60)
    probe = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 60)))
    assert relative(dual.data.gram_times(probe), primal.data.gram_times(probe)) < rounding(size=60)


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=40, max_size=40).filter(lambda c: sum(c) > 20),
    intercept=st.booleans(),
    n=st.sampled_from([40, 10]),
)
def test_integer_weights_are_repeated_rows(counts, intercept, n):
    X, y = problem(n)
    counts = np.array(counts[:n])
    if not counts.any():
        counts[0] = 1
    repeated = np.repeat(np.arange(n), counts)
    a = fit(X, y, counts.astype(float), ridge=0.5, intercept=intercept)
    b = fit(X[repeated], y[repeated], ridge=0.5, intercept=intercept)
    kappa = (3 * np.linalg.norm(X, 2) ** 2 + 0.5) / 0.5
    assert relative(a.model.weights, b.model.weights) < rounding(kappa, size=n)
    assert a.model.bias.numpy() == pytest.approx(b.model.bias.numpy(), abs=rounding(kappa, size=n))


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n", [200, 9], ids=["primal", "dual"])
def test_duplicated_rows_with_doubled_ridge_leave_the_model(n, intercept):
    X, y = problem(n)
    once = fit(X, y, ridge=0.7, intercept=intercept)
    twice = fit(np.tile(X, (2, 1)), np.tile(y, 2), ridge=1.4, intercept=intercept)
    per_row = fit(np.tile(X, (2, 1)), np.tile(y, 2), ridge=Ridge(0.7 / n, "per-sample"), intercept=intercept)
    kappa = (np.linalg.norm(X, 2) ** 2 + 0.7) / 0.7
    for other in (twice, per_row):
        assert relative(other.model.weights, once.model.weights) < rounding(kappa)
        assert relative(other.model.bias + 1, once.model.bias + 1) < rounding(kappa)


def test_rotated_features_rotate_the_model():
    X, y = problem()
    R = np.linalg.qr(np.random.default_rng(7).normal(size=(D, D)))[0]
    a, b = fit(X, y, ridge=0.3), fit(X @ R, y, ridge=0.3)
    assert relative(R @ b.model.weights.numpy(), a.model.weights) < rounding(condition(X) ** 2)


def test_order_of_rows_does_not_matter():
    X, y = problem()
    order = np.random.default_rng(7).permutation(len(X))
    a, b = fit(X, y, ridge="gcv"), fit(X[order], y[order], ridge="gcv")
    assert relative(b.model.weights, a.model.weights) < rounding(condition(X) ** 2)


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize(
    "ridge", ["gcv", 0.3, Ridge(0.1, "trace"), [0.1, 1.0]], ids=["gcv", "number", "trace", "list"]
)
def test_statistics_alone_give_the_same_model(ridge, intercept):
    X, y = problem()
    encoder = Encoder(Identity((D,)), IdentityMap((D,)))
    statistics = Statistics(D, K, encoder, coding()).add(torch.from_numpy(X), coding().encode(y))
    found = full_model_from_statistics(statistics, ridge=ridge, intercept=intercept)
    wanted, bias = train(X, one_hot(y), found.ridge, intercept=intercept)
    assert relative(found.model.weights, wanted) < rounding(condition(X) ** 2)
    assert found.model.bias.numpy() == pytest.approx(bias, abs=rounding(condition(X) ** 2))
    if not isinstance(ridge, list):
        assert found.ridge == pytest.approx(
            fit(X, y, ridge=ridge, intercept=intercept).ridge, rel=rounding(size=200)
        )


def test_statistics_cannot_hold_rows_out():
    encoder = Encoder(Identity((D,)), IdentityMap((D,)))
    statistics = Statistics(D, K, encoder, coding()).add(
        *(torch.ones(5, size, dtype=torch.float64) for size in (D, K))
    )
    for rule in ("holdout", "loo"):
        with pytest.raises(
            ValueError, match=rf"ridge='{rule}' needs the rows, which statistics do not hold: use 'gcv'"
        ):
            full_model_from_statistics(statistics, ridge=rule)
    with pytest.raises(ValueError, match="empty or do not know their encoder"):
        full_model_from_statistics(Statistics(D, K))


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n", [60, 9], ids=["primal", "dual"])
def test_second_moments_are_those_of_the_rows(n, intercept):
    X, y = problem(n)
    w = weights_for(n)
    data = fit(X, y, w, ridge=0.1, intercept=intercept).data
    C = np.sqrt(w)[:, None] * (X - (w @ X / w.sum() if intercept else 0))
    probe = np.random.default_rng(5).normal(size=(3, D))
    assert relative(data.gram_times(torch.from_numpy(probe)), probe @ C.T @ C) < rounding(size=60)
    assert (data.count, data.weight) == (n, pytest.approx(w.sum()))
    assert relative(data.means[0], w @ X / w.sum()) < rounding(size=60)
    assert relative(data.means[1], w @ one_hot(y) / w.sum()) < rounding(size=60)


@pytest.mark.parametrize(
    ("ridge", "message"),
    [
        pytest.param(-1.0, "`ridge` must be finite and not negative, got -1.0", id="negative"),
        pytest.param([1.0, -2.0], "`ridge` must be finite and not negative, got -2.0", id="negative-in-list"),
        pytest.param([], "`ridge` is an empty sequence", id="empty"),
        pytest.param("holdut", "unknown ridge rule 'holdut'; did you mean 'holdout'", id="name"),
        pytest.param(None, "`ridge` must be a number, got None", id="none"),
        pytest.param([0.0], "no ridge candidate could be scored", id="no-candidate-scored"),
    ],
)
def test_bad_ridge_arguments_are_refused(ridge, message):
    X, y = problem(6 if ridge == [0.0] else 100)
    with pytest.raises(ValueError, match=message):
        fit(X, y, ridge=ridge)


@pytest.mark.parametrize("kind", [np.array, np.float32, torch.tensor], ids=["array", "float32", "torch"])
def test_a_number_in_an_array_is_a_number(kind):
    assert fit(*problem(100), ridge=kind(0.5)).ridge == 0.5


def test_holdout_of_no_rows_is_refused():
    seed = next(seed for seed in range(1000) if not held_out(8, seed).any())
    with pytest.raises(ValueError, match="no rows were held out: use ridge='loo', 'gcv' or a number"):
        fit(*problem(8), ridge="holdout", seed=seed)
