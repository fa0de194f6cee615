"""Closed forms of the KKT conditions, against solutions of this library, of scikit-learn, and of broken ones."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from kernel_distill import distill
from kernel_distill.solver.kkt import (
    KKTResiduals,
    TrainedModel,
    cross_entropy,
    logistic_duals,
    logistic_residuals,
    ridge_duals,
    ridge_residual,
    stationarity_residual,
    svm_residuals,
)
from kernel_distill.solver.learners.kip import KIP

from ..cases import EPS, INVERTIBLE, WIDE, D, params_of, problem, relative, rounding


def affine(parameters, X):
    return X @ parameters["W"] + parameters["b"]


def generic(X, Y, W, b, losses, duals, decay):
    """Residuals of W and b by the residual of networks."""
    model = TrainedModel(affine, {"W": W, "b": b}, losses, {"W": decay, "b": 0.0})
    residual, _ = stationarity_residual(model, X, Y, duals)
    return residual["W"], residual["b"]


def pair(flip=0.0, n=60):
    """Rows of two classes, and their signs; with a share of wrong labels they cannot be told apart without errors."""
    X, y = problem(n, k=2)
    X[y == 1] += 3.0
    wrong = np.random.default_rng(1).random(n) < flip
    return torch.from_numpy(X), torch.from_numpy(np.where(wrong, 1 - y, y))


# --- Ridge regression ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("case", params_of(INVERTIBLE | WIDE))
def test_closed_form_sets_are_stationary_at_the_model_of_all_the_data(case, ridge, intercept):
    X, y = problem()
    ds = distill(
        case.inputs(X),
        y,
        per_class=2,
        feature_map=case.name,
        feature_params=case.params,
        transform="none",
        ridge=1e-2,
        distilled_ridge=ridge,
        intercept=intercept,
        progress=False,
    )
    # The map's own rounding beside its features, which for three layers are at most 5e-4; elsewhere nothing.
    tolerance = max(1e-12, rounding(1 / float(ds.features().abs().max())))
    for model in (ds.full_model, None):
        assert ridge_residual(ds, model).largest <= tolerance
    moved = dataclasses.replace(ds, x=ds.x * (1 + 1e-3 * torch.rand(ds.x.shape).to(ds.x)))
    assert ridge_residual(moved, ds.full_model).stationarity > 1e-8


def small_set(**options):
    X, y = problem()
    params = {"n_features": 20, "length_scale": 5.0}
    return distill(
        X,
        y,
        per_class=2,
        feature_map="fourier",
        feature_params=params,
        transform="none",
        ridge=1e-2,
        distilled_ridge=0.1,
        space="features",
        progress=False,
        **options,
    )


@pytest.mark.parametrize("intercept", [False, True])
def test_duals_of_ridge_regression_make_its_weights(intercept):
    ds = small_set(intercept=intercept)
    F, Y, model = ds.features(), ds.y.double(), ds.model
    duals = ridge_duals(F, Y, model.weights, model.bias, ds.distilled_ridge)
    assert relative(F.T @ duals, model.weights) < 1e-10
    if intercept:
        assert duals.sum(0).abs().max() < 1e-10 * duals.abs().sum()


def test_the_residual_of_networks_is_that_of_ridge_regression():
    ds = small_set(intercept=True)
    F, Y = ds.features(), ds.y.double()
    for model in (ds.model, dataclasses.replace(ds.model, weights=1.1 * ds.model.weights)):
        W, b = model.weights, model.bias
        found, bias = generic(
            F,
            Y,
            W,
            b,
            lambda scores, Y: 0.5 * (scores - Y).square().sum(1),
            torch.ones(len(F), dtype=torch.float64),
            ds.distilled_ridge,
        )
        Fc, Yc = F - F.mean(0), Y - Y.mean(0)
        wanted = ridge_residual(ds, model).stationarity
        assert float(found.norm() / (Fc.T @ Yc).norm()) == pytest.approx(wanted, rel=1e-9, abs=1e-14)
        E = Y - F @ W - b
        assert torch.allclose(bias, -E.sum(0), atol=1e-13)
    assert wanted > 1e-3


# --- Linear SVM ----------------------------------------------------------------------------------------------


def svm_solution(C, flip):
    X, y = pair(flip)
    signs = 2.0 * y.double() - 1
    fitted = SVC(kernel="linear", C=C, tol=1e-8).fit(X.numpy(), y.numpy())
    duals = torch.zeros(len(X), dtype=torch.float64)
    duals[torch.from_numpy(fitted.support_).long()] = torch.from_numpy(np.abs(fitted.dual_coef_[0]))
    return X, signs, torch.from_numpy(fitted.coef_[0].copy()), float(fitted.intercept_[0]), duals


@pytest.mark.parametrize(("C", "flip"), [(1.0, 0.1), (0.01, 0.1), (1.0, 0.0), (1e6, 0.0)])
def test_solutions_of_an_svm_satisfy_its_conditions_to_their_tolerance(C, flip):
    X, signs, w, b, duals = svm_solution(C, flip)
    found = svm_residuals(X, signs, w, b, duals, C)
    assert found.stationarity < 1e-12
    assert found.intercept < 1e-12
    assert found.dual < 1e-12
    # The tolerance of libsvm is on margins, which it makes of kernel values in float32.
    tolerance = 2e-8 + 2.0**-24 * float(duals.sum() * X.square().sum(1).max())
    assert max(found.primal, found.complementarity) < tolerance < 1e-3
    if C == 1e6:  # separable: that is the hard margin, every dual below C
        assert svm_residuals(X, signs, w, b, duals).largest < tolerance


def test_each_broken_condition_of_an_svm_is_seen():
    X, signs, w, b, duals = svm_solution(1.0, 0.1)
    inside = int(((duals > 0.01) & (duals < 0.99)).nonzero()[0])
    idle = int((duals == 0).nonzero()[0])
    more, less = duals.clone(), duals.clone()
    more[inside], less[idle] = 1.5, -0.5
    assert svm_residuals(X, signs, w, b, more, 1.0).dual == pytest.approx(0.5)
    assert svm_residuals(X, signs, w, b, less, 1.0).dual == pytest.approx(0.5)
    assert svm_residuals(X, signs, w, b, more, 1.0).intercept > 1e-3
    margin = float(signs[idle] * (X[idle] @ w + b))
    used = duals.clone()
    used[idle] = 0.25
    assert svm_residuals(X, signs, w, b, used, 1.0).complementarity == pytest.approx(0.25 * (margin - 1))
    moved = X.clone()
    moved[idle] -= (
        (margin * signs[idle]) * w / w.square().sum()
    )  # now on the boundary, and nothing paid for it
    assert svm_residuals(moved, signs, w, b, duals, 1.0).primal == pytest.approx(1.0)
    assert svm_residuals(X + 0.01, signs, 1.1 * w, b, duals, 1.0).stationarity == pytest.approx(
        0.1 / 1.1, rel=0.1
    )


def test_the_residual_of_networks_is_that_of_an_svm():
    X, signs, w, b, duals = svm_solution(1.0, 0.1)
    for weights in (w, 1.1 * w):
        # At λ = α the hinge is its linear part: rows beyond the margin have no dual.
        found, bias = generic(
            X,
            signs,
            weights[:, None],
            torch.tensor([b], dtype=torch.float64),
            lambda scores, y: 1 - y * scores[:, 0],
            duals,
            1.0,
        )
        wanted = svm_residuals(X, signs, weights, b, duals, 1.0)
        size = float(weights.norm())
        assert float(found.norm()) / size == pytest.approx(wanted.stationarity, abs=1e3 * EPS)
        assert float(bias.norm() / duals.sum()) == pytest.approx(wanted.intercept, abs=1e3 * EPS)
    assert wanted.stationarity == pytest.approx(0.1 / 1.1)


# --- Logistic regression -------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.1, 10.0])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("intercept", [False, True])
def test_solutions_of_logistic_regression_satisfy_its_conditions(classes, C, intercept):
    X, y = problem(k=classes)
    options = {"C": C, "tol": 1e-12, "fit_intercept": intercept, "solver": "newton-cholesky"}
    fitted = LogisticRegression(**options).fit(X, y)
    W, b = torch.from_numpy(fitted.coef_.T.copy()), torch.from_numpy(np.atleast_1d(fitted.intercept_).copy())
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    found = logistic_residuals(X, y, W, b, C, intercept=intercept)
    assert found.largest < 1e-8
    duals = logistic_duals(X, y, W, b, C)
    truth = y.double()[:, None] if classes == 2 else torch.eye(classes, dtype=torch.float64)[y]
    signed = torch.where(truth > 0.5, duals, -duals)
    assert ((signed >= 0) & (signed <= C)).all()
    assert logistic_residuals(X + 0.1, y, 1.1 * W, b, C).stationarity > 1e-3
    if intercept:
        assert logistic_residuals(X, y, W, b + 0.1 * (1 + torch.arange(len(b))), C).intercept > 1e-3


@pytest.mark.parametrize("classes", [2, 4])
def test_the_residual_of_networks_is_that_of_logistic_regression(classes):
    X, y = (torch.from_numpy(value) for value in problem(k=classes))
    rng = np.random.default_rng(0)
    outputs = 1 if classes == 2 else classes
    W, b = torch.from_numpy(rng.normal(size=(D, outputs))), torch.from_numpy(rng.normal(size=outputs))
    losses = cross_entropy
    if classes == 2:

        def losses(scores, y):
            return torch.nn.functional.softplus((1 - 2.0 * y) * scores[:, 0])

    C = 0.5
    residual, bias = generic(X, y, W, b, losses, torch.full((len(X),), C, dtype=torch.float64), 1.0)
    wanted, duals = logistic_residuals(X, y, W, b, C), logistic_duals(X, y, W, b, C)
    assert float(residual.norm() / W.norm()) == pytest.approx(wanted.stationarity, rel=1e-12)
    assert float(bias.norm() / duals.norm(dim=1).sum()) == pytest.approx(wanted.intercept, rel=1e-12)


# --- Bad inputs ----------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused():
    X, signs, w, b, duals = svm_solution(1.0, 0.0)
    for values in ((signs[:, None], w, duals), (signs, w[None], duals), (signs, w, duals[:5])):
        with pytest.raises(ValueError, match=r"must fit, got .*: flatten weights and duals"):
            svm_residuals(X, *values[:2], b, values[2])
    with pytest.raises(ValueError, match="`signs` must be -1 or 1"):
        svm_residuals(X, (signs + 1) / 2, w, b, duals)
    with pytest.raises(ValueError, match="`C` must be above 0"):
        svm_residuals(X, signs, w, b, duals, 0.0)
    with pytest.raises(ValueError, match="`duals` holds NaN"):
        svm_residuals(X, signs, w, b, duals * torch.nan)
    W = torch.zeros(D, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="`classes` must be 60 numbers from 0 to 2"):
        logistic_residuals(X, torch.full((60,), 3), W, W[0])
    with pytest.raises(ValueError, match="λ must be above 0"):
        ridge_duals(X, X[:, :3], W, W[0], 0.0)
    ds = small_set()
    with pytest.raises(
        ValueError, match=r"the model has weights \(20, 3\), the set 20 features and 4 labels"
    ):
        ridge_residual(ds, dataclasses.replace(ds.model, weights=ds.model.weights[:, :3]))


def test_a_set_with_a_kernel_has_no_finite_weights():
    X, y = problem(40)
    method = KIP(kernel="gaussian", kernel_params={"bandwidth": 4.0}, steps=0)
    ds = distill(X, y, method=method, per_class=1, transform="none", progress=False)
    with pytest.raises(ValueError, match="its model has no finite weights"):
        ridge_residual(ds)


def test_the_largest_residual_is_that_of_all():
    assert KKTResiduals(0.1, dual=0.3, complementarity=0.2).largest == 0.3
