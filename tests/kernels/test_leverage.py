"""Ridge leverage scores against their kernel form, and Lewis weights against what defines and follows from them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog

from kernel_distill.kernels.leverage import lewis_weights, ridge_leverage_scores

from .peak import PeakMemory
from .places import SIZES


def rows(n, p, seed=0, dtype=torch.float64):
    """Heavy tails, so that rows matter unequally."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, size=(n, p))).to(dtype)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_scores_are_those_of_the_kernel_matrix(n, dtype):
    for p in (1, 17, 65):
        F, ridge = rows(n, p, dtype=dtype), 0.3
        K = (F.double() @ F.double().T).numpy()
        wanted = np.diag(np.linalg.solve(K + ridge * np.eye(n), K))
        found = ridge_leverage_scores(F, ridge)
        assert found.status == "ok"
        assert found.scores.dtype == torch.float64
        # Both solve systems of condition |K|/ridge in float64, the oracle's the larger.
        allowed = 10 * 2.3e-16 * (1 + np.linalg.norm(K, 2) / ridge) + 1e-15
        assert np.abs(found.scores.numpy() - wanted).max() <= allowed
        assert float(found.scores.min()) >= 0
        assert float(found.scores.max()) <= 1 + allowed


@pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e6])
def test_sum_is_the_effective_dimension(ridge):
    F = rows(129, 17)
    values = np.linalg.svd(F.numpy(), compute_uv=False) ** 2
    found = ridge_leverage_scores(F, ridge)
    assert found.effective_dimension == pytest.approx((values / (values + ridge)).sum(), rel=1e-12)
    assert found.effective_dimension == float(found.scores.sum())


def test_without_a_ridge_the_sum_is_the_rank():
    assert ridge_leverage_scores(rows(129, 17), 0.0).effective_dimension == pytest.approx(17, rel=1e-12)
    scores = ridge_leverage_scores(rows(17, 17), 0.0).scores
    torch.testing.assert_close(scores, torch.ones(17, dtype=torch.float64), rtol=1e-9, atol=0)


def test_chunks_with_a_gram_matrix_are_the_whole():
    F = rows(129, 17, dtype=torch.float32)
    whole = ridge_leverage_scores(F, 0.5)
    gram = F.double().T @ F.double()
    kept = gram.clone()
    found = ridge_leverage_scores((F[start : start + 50] for start in range(0, 129, 50)), 0.5, gram=gram)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-12, atol=0)
    part = ridge_leverage_scores(F[7:30].numpy(), 0.5, gram=gram)
    torch.testing.assert_close(part.scores, whole.scores[7:30], rtol=1e-12, atol=0)
    assert torch.equal(gram, kept)
    assert ridge_leverage_scores([], 0.5, gram=gram).scores.shape == (0,)


def test_a_copy_shares_the_score_of_the_row():
    """k equal rows count as one that is √k times as long."""
    F, copies = rows(31, 5), torch.arange(1, 32) % 3 + 1
    merged = ridge_leverage_scores(F * copies[:, None].double().sqrt(), 0.5).scores
    found = ridge_leverage_scores(F.repeat_interleave(copies, 0), 0.5).scores
    torch.testing.assert_close(found, (merged / copies).repeat_interleave(copies), rtol=1e-11, atol=0)


def test_a_singular_system_is_reported():
    F = torch.ones(5, 3)
    found = ridge_leverage_scores(F, 0.0)
    assert "not positive definite" in found.status
    assert "leading minor 2 of 3" in found.status
    assert found.scores.isnan().all()
    assert found.scores.shape == (5,)
    assert ridge_leverage_scores(F, 0.1).status == "ok"


@pytest.mark.parametrize(
    ("features", "ridge", "gram", "message"),
    [
        pytest.param(
            torch.ones(3, 2), -1.0, None, "`ridge` must be a non-negative number, got -1", id="negative"
        ),
        pytest.param(torch.ones(3, 2), float("nan"), None, "`ridge` must be", id="NaN ridge"),
        pytest.param(torch.ones(3), 1.0, None, "`features` must be a matrix", id="vector"),
        pytest.param([torch.ones(3, 2)], 1.0, None, "pass their Gram matrix", id="chunks alone"),
        pytest.param(torch.ones(3, 2), 1.0, torch.ones(2, 3), r"`gram` must be \(p, p\)", id="not square"),
        pytest.param(torch.ones(3, 2), 1.0, torch.eye(3), r"`gram` is \(3, 3\) but", id="other width"),
        pytest.param(torch.ones(3, 2, device="meta"), 1.0, torch.eye(2), "move one of them", id="devices"),
        pytest.param(torch.full((3, 2), torch.nan), 1.0, None, "NaN or infinite", id="NaN"),
    ],
)
def test_bad_input_is_refused(features, ridge, gram, message):
    with pytest.raises(ValueError, match=message):
        ridge_leverage_scores(features, ridge, gram=gram)


def l1_sensitivities(A):
    """sup |a_i·v| / sum_j |a_j·v| of every row, by linear programming."""
    n, p = A.shape
    limits = np.block([[A, -np.eye(n)], [-A, -np.eye(n)], [np.zeros((1, p)), np.ones((1, n))]])
    bounds = [(None, None)] * p + [(0, None)] * n
    found = [linprog(np.r_[-a, np.zeros(n)], limits, np.r_[np.zeros(2 * n), 1], bounds=bounds).fun for a in A]
    return -np.array(found)


def test_lewis_weights_solve_their_equation_and_sum_to_the_rank():
    A = rows(60, 5)
    u, rank, distortion = lewis_weights(A, tolerance=1e-12)
    M = A.T @ (A / u[:, None])
    torch.testing.assert_close((A * torch.linalg.solve(M, A.T).T).sum(1), u**2, rtol=1e-10, atol=0)
    assert rank == 5
    assert float(u.sum()) == pytest.approx(5, rel=1e-11)
    assert distortion == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("iterations", [1, 2, 60])
def test_lewis_weights_bound_sensitivities_however_few_the_passes(iterations):
    for n, p in ((6, 1), (15, 3), (30, 4)):
        A = rows(n, p)
        u, _, distortion = lewis_weights(A, iterations=iterations)
        true = l1_sensitivities(A.numpy())
        bound = distortion * u.numpy()
        assert (bound >= true * (1 - 1e-7)).all()  # to the tolerance of the linear programs
        if iterations == 60:
            assert (bound <= 3 * true).all()


def test_lewis_weights_see_the_range_only():
    A = rows(40, 4)
    wanted = lewis_weights(A, tolerance=1e-12)
    mixed = A @ (rows(4, 6, 1) * torch.tensor([1e-6, 1.0, 1e3, 1.0, 0.0, 1.0], dtype=torch.float64))
    found = lewis_weights(torch.cat([mixed, torch.zeros(40, 1)], 1), tolerance=1e-12)
    assert found.rank == wanted.rank == 4
    torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-9, atol=0)


def test_lewis_weights_of_equal_rows_add():
    """In ℓ1 a row twice as long is two rows."""
    A, copies = rows(31, 4), torch.arange(31) % 3
    merged = lewis_weights(A * copies[:, None], tolerance=1e-12)
    assert (merged.weights[copies == 0] == 0).all()
    found = lewis_weights(A.repeat_interleave(copies, 0), tolerance=1e-12).weights
    wanted = (merged.weights / copies).repeat_interleave(copies)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_lewis_weights_of_nothing():
    assert lewis_weights(torch.zeros(3, 2)).weights.tolist() == [0, 0, 0]
    assert lewis_weights(torch.zeros(3, 2)).rank == 0
    assert lewis_weights(torch.zeros(0, 2)).weights.shape == (0,)
    with pytest.raises(ValueError, match="NaN or infinite"):
        lewis_weights(torch.full((3, 2), torch.inf))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(6, 40), budget=st.integers(1, 4000))
def test_chunks_do_not_matter(seed, n, budget):
    A = rows(n, 3, seed)
    for found, whole in (
        (ridge_leverage_scores(A, 1.0, memory_budget=budget), ridge_leverage_scores(A, 1.0)),
        (lewis_weights(A, memory_budget=budget), lewis_weights(A)),
    ):
        torch.testing.assert_close(found[0], whole[0], rtol=1e-9, atol=0)


def test_memory_stays_within_the_budget():
    F, budget = rows(5000, 32, dtype=torch.float32), 64 << 10
    for run in (ridge_leverage_scores, lambda A, _, **options: lewis_weights(A, iterations=3, **options)):
        with PeakMemory() as memory:
            run(F, 1.0, memory_budget=budget)
        # Vectors of length n (the Lewis weights of two passes), and (p, p) matrices.
        assert memory.peak < budget + 6 * 8 * 5000 + 10 * 8 * 32 * 32


def test_arguments_are_left_as_they_were():
    A = rows(33, 5)
    kept = A.clone()
    ridge_leverage_scores(A, 1.0)
    lewis_weights(A)
    assert torch.equal(A, kept)
