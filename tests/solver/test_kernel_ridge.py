"""The ridge loss of a set: value, precision, derivatives, and what happens where there is none."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score

from kernel_distill.solver.learners.kernel_ridge import (
    absolute_ridge,
    kernel_ridge,
    prediction_figures,
    row_losses,
)
from kernel_distill.solver.targets import Targets

from ..cases import EPS, condition, rounding

SIZES = [(1, 3, 1, 1e-6), (5, 20, 3, 1e-6), (12, 4, 2, 0.1), (30, 50, 4, 1e-3), (7, 1, 1, 2.0)]


def kernel_ridge_predictions(K_SS, K_TS, Y_S, ridge):
    """Predictions as the learners make them."""
    return K_TS.double() @ kernel_ridge(K_SS, Y_S, ridge)


def krr_loss(K_SS, K_TS, Y_S, Y_T, ridge, weights=None):
    """The loss of a batch as the learners make it."""
    losses = row_losses(kernel_ridge_predictions(K_SS, K_TS, Y_S, ridge), Y_T)
    return losses.mean() if weights is None else (weights * losses).sum()


def system(m, b, k, seed=0, shape=()):
    """Gaussian kernel matrices of m points and b rows, labels and targets."""
    rng = np.random.default_rng(seed)
    S, T = rng.normal(size=(*shape, m, 3)), rng.normal(size=(*shape, b, 3))

    def kernel(A, B):
        return np.exp(-((A[..., :, None, :] - B[..., None, :, :]) ** 2).sum(-1) / 2)

    arrays = kernel(S, S), kernel(T, S), rng.normal(size=(*shape, m, k)), rng.normal(size=(*shape, b, k))
    return [torch.from_numpy(array) for array in arrays]


def notebook_loss(K_SS, K_TS, Y_S, Y_T, ridge):
    """As the published notebook has it, by NumPy."""
    m = len(K_SS)
    regularised = K_SS + abs(ridge) * np.trace(K_SS) * np.eye(m) / m
    return 0.5 * np.mean((K_TS @ np.linalg.solve(regularised, Y_S) - Y_T) ** 2), condition(regularised)


@pytest.mark.parametrize(("m", "b", "k", "ridge"), SIZES)
def test_the_loss_is_that_of_the_published_notebook(m, b, k, ridge):
    tensors = system(m, b, k)
    wanted, cond = notebook_loss(*(t.numpy() for t in tensors), ridge)
    found = krr_loss(*tensors, ridge)
    assert found.dtype == torch.float64
    assert found.shape == ()
    assert abs(float(found) - wanted) <= rounding(cond, size=m) * wanted


@pytest.mark.parametrize(("m", "b", "k", "ridge"), SIZES)
def test_weights_are_those_of_rows(m, b, k, ridge):
    K_SS, K_TS, Y_S, Y_T = system(m, b, k)
    weights = torch.rand(b, generator=torch.Generator().manual_seed(0)).double()
    residual = kernel_ridge_predictions(K_SS, K_TS, Y_S, ridge) - Y_T
    wanted = sum(float(w) * float(r.square().mean()) / 2 for w, r in zip(weights, residual, strict=True))
    assert float(krr_loss(K_SS, K_TS, Y_S, Y_T, ridge, weights)) == pytest.approx(wanted, rel=1e-12)
    uniform = torch.full((b,), 1 / b, dtype=torch.float64)
    found = krr_loss(K_SS, K_TS, Y_S, Y_T, ridge, uniform)
    assert float(found) == pytest.approx(float(krr_loss(K_SS, K_TS, Y_S, Y_T, ridge)), rel=1e-12)
    assert row_losses(residual, torch.zeros_like(residual)).shape == (b,)


def test_points_themselves_are_predicted_as_labelled_without_a_ridge():
    K_SS, _, Y_S, _ = system(10, 1, 2)
    found = kernel_ridge_predictions(K_SS, K_SS, Y_S, 0.0)
    assert (found - Y_S).norm() <= rounding(condition(K_SS), size=10) * Y_S.norm()


def test_the_ridge_is_relative_to_the_mean_of_the_diagonal():
    K_SS, _, Y_S, _ = system(6, 1, 2)
    assert float(absolute_ridge(7 * K_SS, 0.5)) == pytest.approx(3.5)  # a Gaussian kernel has k(x, x) = 1
    one, other = kernel_ridge(K_SS, Y_S, 0.1), kernel_ridge(7 * K_SS, Y_S, 0.1)
    assert torch.allclose(one, 7 * other, rtol=1e-12)


def test_systems_come_in_stacks():
    K_SS, _, Y_S, _ = system(6, 1, 2, shape=(4, 3))
    found = kernel_ridge(K_SS, Y_S, 1e-3)
    assert found.shape == (4, 3, 6, 2)
    for i, j in np.ndindex(4, 3):
        assert torch.allclose(found[i, j], kernel_ridge(K_SS[i, j], Y_S[i, j], 1e-3), rtol=1e-9)


@pytest.mark.parametrize(("m", "b", "k", "ridge"), SIZES)
def test_rounding_of_the_batch_block_is_all_that_float32_costs(m, b, k, ridge):
    K_SS, K_TS, Y_S, _ = system(m, b, k)
    found = kernel_ridge_predictions(K_SS, K_TS.float(), Y_S, ridge)
    wanted = kernel_ridge_predictions(K_SS, K_TS, Y_S, ridge)
    bound = 2.0**-24 * (1 + 1e-6) * (K_TS @ kernel_ridge(K_SS, Y_S, ridge).abs())
    assert found.dtype == torch.float64
    assert ((found - wanted).abs() <= bound).all()
    assert not torch.equal(found, wanted)


def test_a_step_of_refinement_leaves_a_residual_of_rounding():
    # Hilbert's matrix: condition number 1e10.
    m = 8
    K = torch.tensor([[1 / (i + j + 1) for j in range(m)] for i in range(m)], dtype=torch.float64)
    Y = torch.ones(m, 1, dtype=torch.float64)
    found = kernel_ridge(K, Y, 0.0)
    assert (K @ found - Y).norm() <= 4 * m * EPS * K.norm() * found.norm()


@pytest.mark.parametrize(("m", "b", "k", "ridge"), [(1, 3, 1, 1e-6), (5, 7, 3, 1e-6), (6, 4, 2, 0.1)])
def test_derivatives_are_those_of_finite_differences(m, b, k, ridge):
    K_SS, K_TS, Y_S, Y_T = system(m, b, k)
    weights = torch.linspace(0.1, 1, b, dtype=torch.float64)

    def loss(half, K_TS, Y_S):
        return krr_loss((half + half.T) / 2, K_TS, Y_S, Y_T, ridge, weights)

    inputs = [t.clone().requires_grad_() for t in (K_SS, K_TS, Y_S)]
    assert torch.autograd.gradcheck(loss, inputs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("fault", ["indefinite", "NaN", "infinity"])
def test_a_system_that_is_not_positive_definite_gives_nan_and_no_error(fault):
    K_SS, K_TS, Y_S, Y_T = system(6, 4, 2)
    if fault == "indefinite":
        K_SS = K_SS - 2 * torch.eye(6, dtype=torch.float64)
    else:
        K_SS[2, 3] = K_SS[3, 2] = float(fault.replace("infinity", "inf"))
    K_TS.requires_grad_()
    loss = krr_loss(K_SS, K_TS, Y_S, Y_T, 1e-6)
    loss.backward()
    assert torch.isnan(loss)


def test_one_bad_system_of_a_stack_leaves_the_others_alone():
    K_SS, _, Y_S, _ = system(4, 1, 2, shape=(3,))
    K_SS[1] *= -1
    assert kernel_ridge(K_SS, Y_S, 1e-3).isnan().flatten(1).all(dim=1).tolist() == [False, True, False]


def test_figures_of_classes_and_of_values():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 50)
    scores = rng.normal(size=(50, 3)) + 2 * np.eye(3)[y]
    targets = Targets.from_labels(y, "centred")
    found = prediction_figures(targets, torch.from_numpy(scores), targets.encode(y))
    assert found["score"] == accuracy_score(y, scores.argmax(1))
    assert found["loss"] == pytest.approx(0.5 * np.mean((scores - np.eye(3)[y] + 1 / 3) ** 2))

    values, near = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    near += 3 * values
    found = prediction_figures(Targets.from_values(3), torch.from_numpy(near), torch.from_numpy(values))
    assert found["score"] == pytest.approx(r2_score(values, near))
    assert found["loss"] == pytest.approx(0.5 * np.mean((near - values) ** 2))
