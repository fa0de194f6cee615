"""Logarithms of kernel sums: values where sums underflow, weights, missing terms, tiles, derivatives."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from kernel_distill.kernels import _tiled
from kernel_distill.kernels.kernel_logsumexp import kernel_logsumexp
from kernel_distill.kernels.radial import Gaussian, Matern

from .places import SIZES, places
from .radial_cases import KERNELS, normals, oracle
from .transforms import check_derivatives

PLACES = pytest.mark.parametrize("place", places("kernel_logsumexp"))


@PLACES
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_values(case, weighted, place):
    backend, device = place
    if backend == "triton" and case.name == "laplacian":
        pytest.skip("Triton leaves 1-norm distances to torch")
    X, Y = normals(33, 5).astype(np.float32), normals(129, 5, seed=1).astype(np.float32)
    b = normals(129, seed=2).astype(np.float32) if weighted else np.zeros(129, np.float32)
    wanted = logsumexp(np.log(oracle(case, X, Y, 1.3)) + b, axis=1)
    x, y, w = (torch.from_numpy(a).to(device) for a in (X, Y, b))
    found = kernel_logsumexp(case.make(1.3), x, y, w if weighted else None, backend=backend)
    # Exponents are at most 40 here, right to (40 + terms) eps and the rounding of s; the sum adds its own.
    assert np.abs(found.cpu().numpy() - wanted).max() < 1e-4


@PLACES
@pytest.mark.parametrize("n", SIZES)
def test_leave_one_out(n, place):
    backend, device = place
    X = normals(n, 3).astype(np.float32)
    logs = -((X[:, None].astype(np.float64) - X[None]) ** 2).sum(-1) / 2
    np.fill_diagonal(logs, -np.inf)
    found = kernel_logsumexp(Gaussian(), torch.from_numpy(X).to(device), leave_one_out=True, backend=backend)
    with np.errstate(divide="ignore"):
        wanted = logsumexp(logs, axis=1)
    if n == 1:
        assert float(found) == -np.inf  # there is no term
    else:
        assert np.abs(found.cpu().numpy() - wanted).max() < 1e-4


@PLACES
def test_far_points_do_not_underflow(place):
    backend, device = place
    X = torch.zeros(3, 2, device=device)
    Y = torch.full((4, 2), 1000.0, device=device)
    found = kernel_logsumexp(Gaussian(), X, Y, backend=backend)
    torch.testing.assert_close(found.cpu(), torch.full((3,), -1e6 + np.log(4.0)))
    found = kernel_logsumexp(Matern(1.0, 2.5), X, Y, backend=backend)
    a = np.sqrt(5 * 2e6)
    torch.testing.assert_close(found.cpu(), torch.full((3,), float(np.log(4 * (1 + a + a * a / 3)) - a)))


def test_terms_of_weight_zero_are_left_out():
    X, Y = normals(5, 2), normals(6, 2, seed=1)
    b = np.where(np.arange(6) < 2, -np.inf, 0.3)
    torch.testing.assert_close(
        kernel_logsumexp(Gaussian(), X, Y, b), kernel_logsumexp(Gaussian(), X, Y[2:], b[2:])
    )
    nothing = kernel_logsumexp(Gaussian(), X, Y, np.full(6, -np.inf))
    assert torch.equal(nothing, torch.full((5,), -torch.inf, dtype=torch.float64))


@pytest.mark.parametrize("least", [1, 3, 64])
def test_tiles_do_not_matter(least, monkeypatch):
    X, Y, b = (
        torch.from_numpy(normals(23, 3)),
        torch.from_numpy(5 * normals(11, 3, seed=1)),
        normals(11, seed=2),
    )
    whole = kernel_logsumexp(Gaussian(), X, Y, b), kernel_logsumexp(Gaussian(), X, leave_one_out=True)
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", least)
    small = dict(memory_budget=1)
    parts = (
        kernel_logsumexp(Gaussian(), X, Y, b, **small),
        kernel_logsumexp(Gaussian(), X, leave_one_out=True, **small),
    )
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", KERNELS)
def test_derivatives(case, monkeypatch):
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", 2)
    X, Y, w, b = normals(3, 2), normals(3, 2, seed=1), normals(3, seed=2), np.array(1.3)
    budget = dict(memory_budget=1)
    check_derivatives(lambda X, Y, w, b: kernel_logsumexp(case.make(b), X, Y, w, **budget), X, Y, w, b)
    check_derivatives(lambda X, b: kernel_logsumexp(case.make(b), X, leave_one_out=True, **budget), X, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kernel_logsumexp(Gaussian(), np.zeros((3, 2)), None, np.zeros(2)),
            r"must have shape \(3,\)",
        ),
        (
            lambda: kernel_logsumexp(Gaussian(), np.zeros((3, 2)), np.zeros((3, 2)), leave_one_out=True),
            "`Y=None`",
        ),
        (
            lambda: kernel_logsumexp(Gaussian(), np.zeros((3, 2)), memory_budget=-1),
            "positive number of bytes",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
