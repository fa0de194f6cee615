"""Kernel matrices against direct differences in float64; exactness on the diagonal; derivatives of every family."""

import numpy as np
import pytest
import torch

from kernel_distill.kernels.kernel_matrix import kernel_matrix, squared_distances
from kernel_distill.kernels.radial import Gaussian

from .places import SIZES, places
from .radial_cases import KERNELS, distance_rounding, normals, oracle, rounding
from .transforms import check_derivatives

PLACES = pytest.mark.parametrize("place", places("kernel_matrix"))
DTYPES = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]


@PLACES
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(case, dtype, place):
    backend, device = place
    if backend == "triton" and (dtype == np.float64 or case.name == "laplacian"):
        pytest.skip("Triton leaves float64 and 1-norm distances to torch")
    X, Y = normals(33, 5).astype(dtype), normals(31, 5, seed=1).astype(dtype)
    K = kernel_matrix(
        case.make(1.3), torch.from_numpy(X).to(device), torch.from_numpy(Y).to(device), backend=backend
    )
    assert K.dtype == torch.from_numpy(X).dtype
    assert (np.abs(K.cpu().numpy() - oracle(case, X, Y, 1.3)) <= rounding(case, X, Y, 1.3, dtype)).all()


@PLACES
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", [1, 16, 130])
def test_awkward_sizes(n, d, place):
    backend, device = place
    X, Y = normals(n, d).astype(np.float32), normals(65, d, seed=1).astype(np.float32)
    for a, b in ((X, Y), (Y, X), (X, X)):
        s = squared_distances(torch.from_numpy(a).to(device), torch.from_numpy(b).to(device), backend=backend)
        wanted = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)
        assert (np.abs(s.cpu().numpy() - wanted) <= distance_rounding(a, b, np.float32)).all()


@PLACES
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("n", [1, 33, 129, 1000])
def test_of_a_set_with_itself(case, n, place):
    """Exactly symmetric, and exactly k(0) on the diagonal, whatever the rows; the rest as for two sets."""
    backend, device = place
    if backend == "triton" and (case.name == "laplacian" or n == 1000):
        pytest.skip("not a case for this backend")
    X = torch.from_numpy((normals(n, 7) + 3).astype(np.float32)).to(device)
    K = kernel_matrix(case.make(2.0), X, backend=backend)
    assert torch.equal(K, K.T)
    at_zero = float(case.formula(np.zeros(()), np.zeros(()), 2.0))
    assert (K.diagonal() == torch.tensor(at_zero, dtype=torch.float32, device=device)).all()
    x = X.cpu().numpy()
    off = ~np.eye(n, dtype=bool)
    centred = x - x.mean(0)
    error = np.abs(K.cpu().numpy() - oracle(case, x, x, 2.0))
    assert (error <= rounding(case, centred, centred, 2.0, np.float32))[off].all()


@PLACES
def test_offset_costs_no_digits(place):
    """Rows far from the origin: centring makes the error that of centred rows plus the rounding of the input."""
    backend, device = place
    X = (normals(40, 12) + 1e4).astype(np.float32)
    Y = (normals(30, 12, seed=1) + 1e4).astype(np.float32)
    s = squared_distances(torch.from_numpy(X).to(device), torch.from_numpy(Y).to(device), backend=backend)
    wanted = ((X[:, None].astype(np.float64) - Y[None]) ** 2).sum(-1)
    # The mean is rounded once, at 1e4: both sets move by it together, so distances feel only their own rounding.
    assert np.abs(s.cpu().numpy() - wanted).max() < 1e-3
    plain = squared_distances(X, Y, centre=False)
    assert np.abs(plain.numpy() - wanted).max() > 1  # what centring is for


@pytest.mark.parametrize("place", [p for p in places("kernel_matrix") if p.values[0][0] == "torch"])
def test_one_far_row_spoils_nobody_else(place):
    """A mean would follow it, and take every other row's digits along. (Triton brings all rows to one power of two.)"""
    backend, device = place
    X = normals(200, 8).astype(np.float32)
    X[0] = 1e6
    precision = "high" if device == "cpu" else "exact"  # three float16 products share a power of two as well
    found = kernel_matrix(Gaussian(4.0), torch.from_numpy(X).to(device), precision=precision, backend=backend)
    wanted = oracle(KERNELS[0].values[0], X[1:], X[1:], 4.0)
    assert np.abs(found.cpu().numpy()[1:, 1:] - wanted).max() < 1e-6


@PLACES
def test_near_duplicates_are_not_negative(place):
    backend, device = place
    X = torch.from_numpy(normals(64, 200).astype(np.float32)).to(device)
    Y = X + 1e-4
    s = squared_distances(X, Y, backend=backend)
    assert (s >= 0).all()
    assert (kernel_matrix(Gaussian(5.0), X, Y, backend=backend) <= 1).all()


@PLACES
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_psd_safe_matrices_have_no_negative_eigenvalue(precision, place):
    """512 rows, each with a near twin: the case in which mixed norms give eigenvalues of -3e-4."""
    backend, device = place
    n = 64 if place == ("triton", "cpu") else 256
    X = normals(n, 64).astype(np.float32)
    X = np.concatenate([X, X + 1e-3 * normals(n, 64, seed=1).astype(np.float32)])
    K = kernel_matrix(
        Gaussian(8.0), torch.from_numpy(X).to(device), precision=precision, psd_safe=True, backend=backend
    )
    # Entries are right to 2e-6 for the moved points, so the smallest eigenvalue is above -2n times that.
    assert torch.linalg.eigvalsh(K.cpu().double())[0] > -2 * n * 2e-6


def test_rows_may_be_any_array():
    X = np.random.default_rng(0).integers(0, 255, (5, 4))
    wanted = squared_distances(X.astype(np.float64))
    assert wanted.dtype == torch.float64
    assert torch.equal(squared_distances(X), wanted)
    assert torch.equal(squared_distances(X.tolist()), wanted)
    assert squared_distances(X.astype(np.uint8)).dtype == torch.float32
    torch.testing.assert_close(squared_distances(X.astype(np.uint8)), wanted.float())
    assert squared_distances(torch.from_numpy(X).half()).dtype == torch.float32
    assert squared_distances(X.astype(np.float32), precision="exact").dtype == torch.float64
    assert torch.allclose(squared_distances(X[::-1]), wanted.flip(0, 1))


def test_no_rows_and_no_columns():
    X = torch.zeros(0, 3)
    assert kernel_matrix(Gaussian(), X).shape == (0, 0)
    assert kernel_matrix(Gaussian(), X, torch.zeros(2, 3)).shape == (0, 2)
    assert kernel_matrix(Gaussian(), torch.zeros(2, 3), X).shape == (2, 0)
    assert torch.equal(kernel_matrix(Gaussian(), torch.zeros(2, 0)), torch.ones(2, 2))


def test_bad_rows_spoil_their_own_entries_only():
    X = normals(6, 3)
    X[2, 1] = np.nan
    K = kernel_matrix(Gaussian(), X, normals(4, 3, seed=1))
    assert K[2].isnan().all()
    assert K[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("case", KERNELS)
def test_derivatives(case):
    """X, Y and the bandwidth: first and second order, forward mode, vmap, all against finite differences."""
    X, Y, b = normals(4, 2), normals(3, 2, seed=1), np.array(1.3)
    check_derivatives(lambda X, Y, b: kernel_matrix(case.make(b), X, Y), X, Y, b)
    check_derivatives(lambda X, b: kernel_matrix(case.make(b), X), X, b)


def test_second_derivatives_at_coincident_rows():
    """d²k/dx² of a kernel smooth in s is 2 k'(0) I at x = y; the root in a Matern must not spoil it."""
    from kernel_distill.kernels.radial import Matern

    y = torch.zeros(1, 3, dtype=torch.float64)
    for kernel, slope in ((Gaussian(1.0), -0.5), (Matern(1.0, 1.5), -1.5), (Matern(1.0, 2.5), -5 / 6)):
        hessian = torch.func.hessian(lambda x, k=kernel: kernel_matrix(k, x[None], y)[0, 0])(y[0])
        assert torch.allclose(hessian, 2 * slope * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_matrix(Gaussian(), np.zeros(3)), "must be a matrix"),
        (lambda: kernel_matrix(Gaussian(), np.zeros((3, 2)), np.zeros((3, 4))), "as many columns"),
        (
            lambda: kernel_matrix(Gaussian(), np.zeros((3, 2)), np.zeros((3, 2), np.float32)),
            "cast one of them",
        ),
        (lambda: kernel_matrix(Gaussian(), np.zeros((3, 2)), precision="tf32"), "must be one of 'exact'"),
        (lambda: kernel_matrix(Gaussian(), np.zeros((3, 2)), backend="cudnn"), "unknown backend 'cudnn'"),
        (lambda: kernel_matrix(Gaussian(), np.zeros((3, 2), complex)), "must be real"),
        (lambda: kernel_matrix(Gaussian(), [["a", "b"]]), "array of numbers"),
        (lambda: kernel_matrix("gaussian", np.zeros((3, 2))), "must be a kernel such as Gaussian"),
        (lambda: kernel_matrix(Gaussian(1e-23), np.zeros((3, 2), np.float32)), "use float64"),
        (lambda: kernel_matrix(Gaussian("wide"), np.zeros((3, 2))), "must be a number"),
        (lambda: kernel_matrix(Gaussian(), np.zeros((3, 2), np.longdouble)), "array of numbers"),
        (lambda: kernel_matrix(Gaussian(0.0), np.zeros((3, 2))), "`bandwidth` must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
