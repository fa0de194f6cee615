"""Products with kernel matrices that are never stored: values, tiles, memory, derivatives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernel_distill.kernels import _tiled
from kernel_distill.kernels.kernel_matmul import kernel_matmul, kernel_row_sums
from kernel_distill.kernels.kernel_matrix import kernel_matrix
from kernel_distill.kernels.radial import Gaussian

from .peak import PeakMemory
from .places import SIZES, places
from .radial_cases import KERNELS, normals, oracle, rounding
from .transforms import check_derivatives

PLACES = pytest.mark.parametrize("place", places("kernel_matmul"))


def skip_what_triton_leaves(case, backend):
    if backend == "triton" and case.name == "laplacian":
        pytest.skip("Triton leaves 1-norm distances to torch")


@PLACES
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("columns", [None, 1, 10, 17])
def test_values(case, columns, place):
    backend, device = place
    skip_what_triton_leaves(case, backend)
    X, Y = normals(65, 5).astype(np.float32), normals(130, 5, seed=1).astype(np.float32)
    V = np.ones((130, 1)) if columns is None else normals(130, columns, seed=2)
    V = V.astype(np.float32)
    x, y, v = (torch.from_numpy(a).to(device) for a in (X, Y, V))
    kernel = case.make(1.3)
    if columns is None:
        found = kernel_row_sums(kernel, x, y, backend=backend)[:, None]
    else:
        found = kernel_matmul(kernel, x, y, v, backend=backend)
        assert torch.equal(kernel_matmul(kernel, x, y, v[:, 0], backend=backend), found[:, 0]) or columns > 1
    wanted = oracle(case, X, Y, 1.3) @ V
    # Errors of the entries, weighted, and of sums of 130 terms.
    eps = np.finfo(np.float32).eps
    allowed = rounding(case, X, Y, 1.3, np.float32) @ np.abs(V) + 130 * eps * (
        oracle(case, X, Y, 1.3) @ np.abs(V)
    )
    assert (np.abs(found.cpu().numpy() - wanted) <= allowed).all()


@PLACES
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_of_a_set_with_itself(n, leave_one_out, place):
    backend, device = place
    X, V = normals(n, 17).astype(np.float32), normals(n, 3, seed=1).astype(np.float32)
    x, v = torch.from_numpy(X).to(device), torch.from_numpy(V).to(device)
    case = KERNELS[0].values[0]
    K = oracle(case, X, X, 4.0)
    if leave_one_out:
        np.fill_diagonal(K, 0)
    options = dict(leave_one_out=leave_one_out, backend=backend)
    product = kernel_matmul(Gaussian(4.0), x, None, v, **options)
    sums = kernel_row_sums(Gaussian(4.0), x, **options)
    allowed = (
        n * (rounding(case, X, X, 4.0, np.float32).max() + n * np.finfo(np.float32).eps) * np.abs(V).max()
    )
    assert np.abs(product.cpu().numpy() - K @ V).max() <= allowed
    assert np.abs(sums.cpu().numpy() - K.sum(1)).max() <= allowed
    if leave_one_out and n == 1:
        assert torch.equal(sums.cpu(), torch.zeros(1))  # no term at all, not a rounded 1 - 1


@pytest.mark.parametrize("least", [1, 2, 5, 64])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_tiles_do_not_matter(least, leave_one_out, monkeypatch):
    """Down to tiles of one pair: the same numbers, for Y = X (half the tiles) and for two sets."""
    X, Y, V = (torch.from_numpy(normals(k, 3, seed=k)) for k in (23, 11, 11))
    whole = kernel_matmul(Gaussian(), X, Y, V)
    itself = kernel_matmul(Gaussian(), X, None, X, leave_one_out=leave_one_out)
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", least)
    torch.testing.assert_close(
        kernel_matmul(Gaussian(), X, Y, V, memory_budget=1), whole, rtol=1e-13, atol=1e-13
    )
    again = kernel_matmul(Gaussian(), X, None, X, leave_one_out=leave_one_out, memory_budget=1)
    torch.testing.assert_close(again, itself, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", KERNELS)
def test_derivatives(case, monkeypatch):
    """Over several tiles, so that sums over rows, columns and both are put together from parts."""
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", 2)
    X, Y, V, b = normals(3, 2), normals(3, 2, seed=1), normals(3, 2, seed=2), np.array(1.3)
    budget = dict(memory_budget=1)
    check_derivatives(lambda X, Y, V, b: kernel_matmul(case.make(b), X, Y, V, **budget), X, Y, V, b)
    check_derivatives(
        lambda X, V, b: kernel_matmul(case.make(b), X, None, V, leave_one_out=True, **budget), X, V, b
    )


def test_derivatives_of_row_sums(monkeypatch):
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", 2)
    check_derivatives(
        lambda X, b: kernel_row_sums(Gaussian(b), X, memory_budget=1), normals(3, 2), np.array(1.3)
    )


@PLACES
def test_float32_gradients_are_those_of_float64(place):
    backend, device = place
    X, Y, V = normals(70, 20), normals(90, 20, seed=1), normals(90, 4, seed=2)
    G = normals(70, 4, seed=3)

    def gradients(dtype, backend, device):
        x, y, v = (torch.tensor(a, dtype=dtype, device=device, requires_grad=True) for a in (X, Y, V))
        b = torch.tensor(4.0, dtype=dtype, device=device, requires_grad=True)
        out = kernel_matmul(Gaussian(b), x, y, v, backend=backend)
        return torch.autograd.grad(out, (x, y, v, b), torch.tensor(G, dtype=dtype, device=device))

    exact = gradients(torch.float64, None, "cpu")
    for found, wanted in zip(gradients(torch.float32, backend, device), exact, strict=True):
        # Sums of 90 products, each right to the rounding of s (20 terms) times the slope.
        error = (found.cpu().double() - wanted).norm() / wanted.norm()
        assert error < 100 * torch.finfo(torch.float32).eps


def test_against_the_stored_matrix_and_its_gradient():
    X, Y, V = (torch.from_numpy(normals(k, 4, seed=k)) for k in (30, 20, 20))
    X.requires_grad_()
    kernel = Gaussian(2.0)
    wanted = kernel_matrix(kernel, X, Y) @ V
    found = kernel_matmul(kernel, X, Y, V, memory_budget=4096)
    torch.testing.assert_close(found, wanted)
    for power in (wanted, found):
        X.grad = None
        power.square().sum().backward()
        torch.testing.assert_close(
            X.grad, torch.autograd.grad(kernel_matrix(kernel, X, Y) @ V, X, 2 * wanted.detach())[0]
        )


@pytest.mark.slow
def test_memory_stays_within_its_budget():
    """20,000 x 20,000 pairs, 1.6 GB stored: value and gradient stay below 64 MiB."""
    code = """
import json, re, torch
from kernel_distill.kernels.kernel_matmul import kernel_matmul
from kernel_distill.kernels.radial import Gaussian
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
X, V = torch.randn(20_000, 8), torch.randn(20_000, 2)
X.requires_grad_()
def run(n):
    kernel_matmul(Gaussian(3.0), X[:n], X[:n].detach(), V[:n], memory_budget=32 << 20).sum().backward()
run(200)
before = peak()
run(20_000)
print(json.dumps((peak() - before) / 2**10))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 1 < json.loads(done.stdout) < 64


@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("gradient", [False, True])
def test_temporaries_of_every_kernel_fit_the_budget(case, gradient):
    n, d, budget = 700, 3, 1 << 20  # K itself would be 1.9 MiB, and is cut in tiles of at most 1 MiB
    X = torch.from_numpy(normals(n, d).astype(np.float32)).requires_grad_(gradient)
    Y, V = torch.from_numpy(normals(n, d, seed=1).astype(np.float32)), torch.ones(n, 2)

    def run():
        out = kernel_matmul(case.make(1.3), X, Y, V, memory_budget=budget)
        if gradient:
            out.sum().backward()

    run()
    X.grad = None
    with PeakMemory() as memory:
        run()
    slack = 40 * n * (d + 4) * 4  # copies of rows, totals and their gradients
    assert memory.peak <= budget + slack


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kernel_matmul(Gaussian(), np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((3, 1))),
            r"`V` must be \(4, t\)",
        ),
        (
            lambda: kernel_matmul(Gaussian(), np.zeros((3, 2)), None, np.zeros((4, 1))),
            "a row for each row of `X`",
        ),
        (
            lambda: kernel_matmul(
                Gaussian(), np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(3), leave_one_out=True
            ),
            "call it with `Y=None`",
        ),
        (
            lambda: kernel_matmul(Gaussian(), np.zeros((3, 2), np.float32), None, np.ones(3)),
            "cast one of them",
        ),
        (
            lambda: kernel_row_sums(Gaussian(), np.zeros((3, 2)), memory_budget="1G"),
            "positive number of bytes",
        ),
        (lambda: kernel_row_sums(Gaussian(), np.zeros((3, 2)), memory_budget=0), "positive number of bytes"),
        (
            lambda: kernel_row_sums(Gaussian(), np.zeros((3, 2)), backend="triton"),
            "asked for, but kernel_matmul",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
