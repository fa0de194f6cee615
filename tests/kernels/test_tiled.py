"""Sums over tiles: outputs of every kind, whatever the tiles, and their derivatives."""

import pytest
import torch

from kernel_distill.kernels import _tiled
from kernel_distill.kernels._tiled import sum_over_tiles, tile_sides

from .radial_cases import normals
from .transforms import check_derivatives


def everything(x, u, y, theta, *, offset):
    """A row, a column and a shared output; rows and columns of rank 2 and 1; the diagonal counts twice."""
    k = torch.tanh(theta * x @ y.mT + u[:, None])
    a = torch.arange(x.shape[0])[:, None] + offset == torch.arange(y.shape[0])
    k = torch.where(a, 2 * k, k)
    return k @ y, k.sum(0), (k * k).sum()


def summed(x, u, y, theta, budget=1, fast=None):
    return sum_over_tiles(
        everything,
        (x, u),
        (y,),
        (theta,),
        ("row", "column", "shared"),
        bytes_per_pair=8,
        memory_budget=budget,
        fast=fast,
    )


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("least", [1, 2, 3, 100])
def test_tiles_do_not_matter(n, m, least, monkeypatch):
    x, u, y, theta = (torch.from_numpy(normals(*shape)) for shape in ((n, 2), (n,), (m, 2), ()))
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", least)
    found = summed(x, u, y, theta)
    wanted = everything(x, u, y, theta, offset=0)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty_sides(n, m):
    x, u, y, theta = (torch.from_numpy(normals(*shape)) for shape in ((n, 2), (n,), (m, 2), ()))
    rows, columns, shared = summed(x, u, y, theta)
    assert torch.equal(rows, torch.zeros(n, 2, dtype=torch.float64))
    assert torch.equal(columns, torch.zeros(m, dtype=torch.float64))
    assert float(shared) == 0


@pytest.mark.parametrize("output", [0, 1, 2])
def test_derivatives(output, monkeypatch):
    monkeypatch.setattr(_tiled, "_LEAST_SIDE", 2)
    check_derivatives(
        lambda x, u, y, theta: summed(x, u, y, theta)[output],
        normals(3, 2),
        normals(3, seed=1),
        normals(3, 2, seed=2),
        normals(seed=3),
    )


def test_the_fast_path_gives_the_value_and_the_definition_its_derivatives():
    x, u, y, theta = (
        torch.from_numpy(normals(*shape)).requires_grad_() for shape in ((4, 2), (4,), (3, 2), ())
    )
    called = []

    def fast(*tensors):
        called.append(len(tensors))
        return everything(*tensors, offset=0)

    outputs = summed(x, u, y, theta, fast=fast)
    assert called == [4]
    found = torch.autograd.grad(outputs[0].sum() + outputs[2], (x, y, theta))
    wanted = everything(x, u, y, theta, offset=0)
    torch.testing.assert_close(found, torch.autograd.grad(wanted[0].sum() + wanted[2], (x, y, theta)))
    assert called == [4]


@pytest.mark.parametrize("n", [1, 100, 10**6, 2**40])
@pytest.mark.parametrize("m", [1, 100, 10**6])
@pytest.mark.parametrize("budget", [1, 1 << 20, 32 << 20])
def test_sides_fit_the_budget(n, m, budget):
    high, wide = tile_sides(n, m, 12, budget)
    assert 1 <= high <= n
    assert 1 <= wide <= m
    assert high * wide * 12 <= max(budget, 64 * 64 * 12)
    assert high * wide == n * m or high * wide * 12 > min(budget, n * m * 12) / 4  # and use it
