"""Sensitivity scores against their formulas in float64, the sensitivities they bound, and their symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog

from kernel_distill.kernels.sensitivity import (
    kernel_density_sensitivity,
    lightweight_sensitivity,
    rbf_sensitivity,
)

from .peak import PeakMemory
from .places import SIZES, places

PLACES = places("lightweight_sensitivity")
# Sums of 130 terms and of 129 rows in float64, whose relative errors add.
CLOSE = {"rtol": 1e-12, "atol": 0}


def rows(n, d, seed=0, dtype=torch.float32):
    """Heavy tails, so that rows matter unequally."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, size=(n, d))).to(dtype)


def some_weights(n, seed=9):
    weights = np.random.default_rng(seed).exponential(size=n)
    weights[1::7] = 0
    return torch.from_numpy(weights)


def lightweight(place, X, weights=None, **options):
    backend, device = place
    given = None if weights is None else weights.to(device)
    return lightweight_sensitivity(X.to(device), given, backend=backend, **options).cpu()


def oracle(X, weights=None):
    x = X.double().numpy()
    w = np.ones(len(x)) if weights is None else weights.double().numpy()
    spread = w * ((x - w @ x / w.sum()) ** 2).sum(1)
    return torch.from_numpy(w / w.sum() / 2 + spread / spread.sum() / 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", SIZES[1:])
def test_lightweight_is_the_formula(place, n, weighted):
    for d in (1, 17, 130):
        X, weights = rows(n, d), some_weights(n) if weighted else None
        found = lightweight(place, X, weights)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, oracle(X, weights), **CLOSE)
        assert abs(float(found.sum()) - 1) < 1e-14


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_sums_over_many_spans_of_rows(place):
    X = rows(2100, 3)
    torch.testing.assert_close(lightweight(place, X), oracle(X), **CLOSE)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lightweight_of_a_dtype_is_that_of_its_numbers(place, dtype):
    X = rows(33, 17).to(dtype)
    torch.testing.assert_close(lightweight(place, X), oracle(X), **CLOSE)


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_does_not_see_a_large_offset(place):
    X = torch.from_numpy(np.random.default_rng(0).integers(-9, 9, size=(129, 17))).float()
    moved = X + 2.0**20  # exact in float32; |x|² - 2x·mean + |mean|² would lose all but one digit
    torch.testing.assert_close(lightweight(place, moved), oracle(X), **CLOSE)


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_of_strided_rows(place):
    X = rows(66, 34)
    for view in (X[::2, ::2], X[::2, :17].T.contiguous().T):
        torch.testing.assert_close(lightweight(place, view), oracle(view), **CLOSE)


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_of_equal_rows_is_the_share_of_weight(place):
    X = torch.full((33, 17), 0.1)
    assert torch.equal(lightweight(place, X), torch.full((33,), 1 / 33, dtype=torch.float64))
    weights = some_weights(33)
    torch.testing.assert_close(lightweight(place, X, weights), weights / weights.sum(), **CLOSE)
    X[1] = 7.0  # of weight zero: what is left is equal
    assert weights[1] == 0
    torch.testing.assert_close(lightweight(place, X, weights), weights / weights.sum(), **CLOSE)
    assert lightweight(place, X[:1]).tolist() == [1.0]


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_weight_is_multiplicity(place):
    X, counts = rows(31, 17), torch.arange(31) % 4
    of_copies = lightweight(place, X.repeat_interleave(counts, 0))
    merged = torch.zeros(31, dtype=torch.float64).index_add_(
        0, torch.arange(31).repeat_interleave(counts), of_copies
    )
    found = lightweight(place, X, counts)
    torch.testing.assert_close(found, merged, **CLOSE)
    assert (found[counts == 0] == 0).all()


@pytest.mark.parametrize("place", PLACES)
def test_lightweight_bounds_the_share_of_a_row_in_any_clustering(place):
    """d(x, Q)² <= 16 q (cost(Q) + cost(mean)) / 2 (Bachem et al., lemma 1), and no constant below 1/16 would do."""
    X = rows(129, 5)
    q, x = lightweight(place, X).numpy(), X.double().numpy()
    rng, largest = np.random.default_rng(1), 0.0
    to_mean = ((x - x.mean(0)) ** 2).sum()
    for scale in (0.1, 1, 10, 100):
        for _ in range(20):
            Q = scale * rng.standard_t(3, size=(rng.integers(1, 5), 5))
            cost = ((x[:, None] - Q) ** 2).sum(2).min(1)
            largest = max(largest, (cost / (q * (cost.sum() + to_mean) / 2)).max())
    assert 1 < largest <= 16


def test_lightweight_keeps_to_its_budget():
    X = rows(4096, 257)
    budget = 64 << 10
    with PeakMemory() as memory:
        found = lightweight_sensitivity(X, memory_budget=budget, backend="torch")
    assert memory.peak < budget + 4 * 8 * (4096 + 257)
    torch.testing.assert_close(found, oracle(X), **CLOSE)


def l1_sensitivities(A):
    """sup |a_i·v| / sum_j |a_j·v| of every row, by linear programming."""
    n, p = A.shape
    limits = np.block([[A, -np.eye(n)], [-A, -np.eye(n)], [np.zeros((1, p)), np.ones((1, n))]])
    bounds = [(None, None)] * p + [(0, None)] * n
    found = [linprog(np.r_[-a, np.zeros(n)], limits, np.r_[np.zeros(2 * n), 1], bounds=bounds).fun for a in A]
    return -np.array(found)


def lift(x):
    x = x - x.mean(0)
    return np.concatenate([(x**2).sum(1, keepdims=True), x, np.ones((len(x), 1))], 1)


@pytest.mark.parametrize(("n", "d"), [(5, 1), (14, 2), (25, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_rbf_bounds_the_sensitivities_of_squared_distances(n, d, weighted):
    X, weights = rows(n, d, dtype=torch.float64), some_weights(n) if weighted else None
    w = np.ones(n) if weights is None else weights.numpy()
    scores, total = rbf_sensitivity(X, weights)
    true = l1_sensitivities(w[:, None] * lift(X.numpy()))
    bound = total * scores.numpy()
    assert (bound >= true * (1 - 1e-7)).all()  # to the tolerance of the linear programs
    assert (bound <= 3 * true + 1e-7).all()  # and not by being large
    assert scores.dtype == torch.float64
    assert float(scores.sum()) == pytest.approx(1, abs=1e-14)


def test_rbf_bounds_gaussian_sensitivities_up_to_its_constant():
    X = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, size=(12, 2)))
    scores, total = rbf_sensitivity(X)
    axis = np.linspace(-1, 1, 21)
    centres = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2)
    for gamma in (0.01, 0.3, 1.0):
        t = gamma * ((X.numpy() - centres) ** 2).sum(2)
        for values, constant in ((np.exp(-t), (1 + t.max()) * np.exp(t.max())), (1 + t, 1)):
            true = (values / values.sum(1, keepdims=True)).max(0)
            assert (true <= constant * total * scores.numpy()).all()


def test_rbf_of_few_rows_in_general_position_is_uniform():
    """As many rows as the lift has dimensions: a function vanishes on all of them but one."""
    scores, total = rbf_sensitivity(rows(6, 4, dtype=torch.float64))
    torch.testing.assert_close(scores, torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-9, atol=0)
    assert total == pytest.approx(6)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x + 1000.0, id="moved"),
        pytest.param(lambda x: x * 1e-3, id="scaled"),
        pytest.param(lambda x: x @ np.linalg.qr(rows(3, 3, 5).double().numpy())[0], id="rotated"),
        pytest.param(lambda x: np.concatenate([x, np.full((len(x), 2), 4.0)], 1), id="constant columns"),
        pytest.param(lambda x: x.astype(np.float32).astype(np.float64), id="float32"),
    ],
)
def test_rbf_is_invariant_under_similarities(change):
    x = rows(40, 3).double().numpy()
    wanted, found = (rbf_sensitivity(torch.from_numpy(v), tolerance=1e-12).scores for v in (x, change(x)))
    # Moving by 1000 rounds the rows at 1e-13 of their size, which the squares double.
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_rbf_weight_is_multiplicity():
    X, counts = rows(31, 3), torch.arange(31) % 4
    found = rbf_sensitivity(X, counts, tolerance=1e-12).scores
    of_copies = rbf_sensitivity(X.repeat_interleave(counts, 0), tolerance=1e-12).scores
    merged = torch.zeros(31, dtype=torch.float64).index_add_(
        0, torch.arange(31).repeat_interleave(counts), of_copies
    )
    torch.testing.assert_close(found, merged, rtol=1e-9, atol=0)
    assert (found[counts == 0] == 0).all()


def test_rbf_of_equal_rows_is_the_share_of_weight():
    weights = some_weights(9)
    scores, total = rbf_sensitivity(torch.full((9, 4), 0.1), weights)
    torch.testing.assert_close(scores, weights / weights.sum(), **CLOSE)
    assert total == pytest.approx(1)


def test_rbf_does_not_depend_on_chunks_and_keeps_to_its_budget():
    X, budget = rows(3000, 30), 64 << 10
    with PeakMemory() as memory:
        found = rbf_sensitivity(X, memory_budget=budget, iterations=3)
    # Vectors of length n, and what makes (d + 2, d + 2) matrices orthonormal.
    assert memory.peak < budget + 6 * 8 * 3000 + 10 * 8 * 32 * 32
    torch.testing.assert_close(found.scores, rbf_sensitivity(X, iterations=3).scores, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_density_is_the_formula(n, weighted):
    X, weights = rows(n, 5, dtype=torch.float64), some_weights(n) if weighted else torch.ones(n)
    x, w = X.numpy(), weights.double().numpy()
    K = np.exp(-((x[:, None] - x) ** 2).sum(2) / (2 * 1.5**2))
    wanted = w / (K @ w)
    found = kernel_density_sensitivity(X, 1.5, weights if weighted else None)
    torch.testing.assert_close(found, torch.from_numpy(wanted / wanted.sum()), rtol=1e-12, atol=0)


def test_kernel_density_counts_clusters():
    X = torch.cat([torch.zeros(8, 3), torch.full((2, 3), 1e4), torch.full((1, 3), -1e4)])
    found = kernel_density_sensitivity(X, 1.0)
    wanted = torch.tensor([1 / 24] * 8 + [1 / 6] * 2 + [1 / 3], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)  # three clusters, float32 kernel values
    # A weight below what float32 holds is no weight of zero.
    faint = torch.tensor([1.0] * 10 + [1e-60], dtype=torch.float64)
    torch.testing.assert_close(kernel_density_sensitivity(X, 1.0, faint), wanted, rtol=1e-6, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), budget=st.integers(1, 4000))
def test_chunks_do_not_matter(seed, n, budget):
    X, weights = rows(n, 3, seed), some_weights(n, seed)
    found = lightweight_sensitivity(X, weights, memory_budget=budget, backend="torch")
    torch.testing.assert_close(found, lightweight_sensitivity(X, weights, backend="torch"), **CLOSE)


SCORES = [
    pytest.param(lightweight_sensitivity, id="lightweight"),
    pytest.param(rbf_sensitivity, id="rbf"),
    pytest.param(lambda X, w=None: kernel_density_sensitivity(X, 1.0, w), id="kernel density"),
]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(
    ("X", "weights", "message"),
    [
        pytest.param(torch.ones(3), None, r"`X` must be a matrix", id="vector"),
        pytest.param(torch.ones(0, 2), None, r"`X` has no rows", id="empty"),
        pytest.param(torch.ones(3, 2), torch.ones(2), r"`weights` must be \(3,\)", id="few weights"),
        pytest.param(torch.ones(3, 2), torch.ones(3, device="meta"), r"move one of them", id="devices"),
        pytest.param(torch.ones(3, 2), torch.tensor([1.0, -1, 1]), r"smallest is -1", id="negative"),
        pytest.param(torch.ones(3, 2), torch.tensor([1, torch.nan, 1]), r"negative or NaN", id="NaN weight"),
        pytest.param(torch.ones(3, 2), torch.zeros(3), r"positive, finite sum, got 0", id="no weight"),
        pytest.param(
            torch.ones(3, 2), torch.tensor([1, torch.inf, 1]), r"finite sum, got inf", id="inf weight"
        ),
        pytest.param(torch.tensor([[1.0], [torch.nan]]), None, r"NaN or infinite", id="NaN"),
        pytest.param(torch.tensor([[1.0], [torch.inf]]), None, r"NaN or infinite", id="inf"),
    ],
)
def test_bad_input_is_refused(scores, X, weights, message):
    with pytest.raises(ValueError, match=message):
        scores(X, weights)


@pytest.mark.parametrize("scores", [lightweight_sensitivity, rbf_sensitivity])
def test_squares_that_overflow_are_refused(scores):
    with pytest.raises(ValueError, match="squares overflow"):
        scores(torch.tensor([[0.0], [1e300]], dtype=torch.float64))


@pytest.mark.parametrize("scores", SCORES)
def test_arguments_are_left_as_they_were(scores):
    X, weights = rows(33, 5, dtype=torch.float64), some_weights(33)
    kept = X.clone(), weights.clone()
    scores(X, weights)
    assert torch.equal(X, kept[0])
    assert torch.equal(weights, kept[1])


@pytest.mark.parametrize("place", PLACES)
def test_bad_numbers_are_refused_everywhere(place):
    with pytest.raises(ValueError, match="NaN or infinite"):
        lightweight(place, torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="smallest is -1"):
        lightweight(place, rows(3, 2), torch.tensor([1.0, -1.0, 1.0]))
