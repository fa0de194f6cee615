"""`gram_add_` and `mirror_upper_` against the full product, at sizes around the panels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels import gram_add_, mirror_upper_

# Around one panel and around two; 800 has a narrow third panel.
SIZES = (1, 31, 383, 384, 385, 800)
DTYPES = [pytest.param(torch.float64, id="float64"), pytest.param(torch.float32, id="float32")]


def rows(n, p, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, p))).to(dtype)


def poisoned(p, dtype=torch.float64):
    """Random on and above the diagonal, NaN below it: nothing there may ever be read."""
    upper = rows(p, p, seed=1, dtype=dtype)
    return torch.triu(upper) + torch.tril(torch.full((p, p), torch.nan, dtype=dtype), -1)


def from_upper(gram):
    upper = np.triu(np.nan_to_num(gram.double().numpy()))
    return upper + np.triu(upper, 1).T


@pytest.mark.parametrize("p", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_products_with_poisoned_lower_triangle(p, dtype):
    gram, first, second = poisoned(p, dtype), rows(57, p, 2, dtype), rows(3, p, 3, dtype)
    F = torch.cat([first, second]).double().numpy()
    wanted = from_upper(gram) + F.T @ F
    # Each entry is a sum of 61 terms: |error| <= 61 eps times the sum of their absolute values (Higham 3.5).
    allowed = 61 * torch.finfo(dtype).eps * (np.abs(from_upper(gram)) + np.abs(F).T @ np.abs(F))
    assert gram_add_(gram, first) is gram
    gram_add_(gram, second)
    assert mirror_upper_(gram) is gram
    assert torch.equal(gram, gram.T)
    assert (np.abs(gram.double().numpy() - wanted) <= allowed).all()


@pytest.mark.parametrize("p", SIZES)
def test_mirror_reads_the_upper_triangle_only(p):
    gram = poisoned(p)
    assert np.array_equal(mirror_upper_(gram.clone()).numpy(), from_upper(gram))


@pytest.mark.parametrize("p", SIZES)
def test_mirror_twice_is_mirror_once(p):
    once = mirror_upper_(poisoned(p))
    assert torch.equal(mirror_upper_(once.clone()), once)


@pytest.mark.parametrize("p", SIZES)
def test_no_rows_add_nothing(p):
    gram = rows(p, p)
    assert torch.equal(gram_add_(gram.clone(), torch.empty(0, p, dtype=torch.float64)), gram)


def test_blocks_below_the_block_diagonal_are_untouched():
    gram = torch.full((800, 800), 7.0, dtype=torch.float64)
    gram_add_(gram, rows(5, 800))
    assert (gram[384:, :384] == 7.0).all()
    assert (gram[768:, :768] == 7.0).all()


def test_strided_features():
    F = rows(800, 40)
    wanted = mirror_upper_(gram_add_(torch.zeros(40, 40, dtype=torch.float64), F[::2].contiguous()))
    for view in (F[::2], F.T.contiguous().T[::2]):
        found = mirror_upper_(gram_add_(torch.zeros(40, 40, dtype=torch.float64), view))
        # Two summation orders of 400 terms of size one.
        torch.testing.assert_close(found, wanted, rtol=0, atol=400 * 2.3e-16 * 400)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=4), p=st.sampled_from([1, 7, 385]))
def test_any_cut_of_the_rows_gives_the_same_sum(cuts, p):
    F = rows(50, p)
    gram = torch.zeros(p, p, dtype=torch.float64)
    edges = [0, *sorted(cuts), 50]
    for start, stop in itertools.pairwise(edges):
        gram_add_(gram, F[start:stop])
    allowed = 51 * 2.3e-16 * (F.abs().T @ F.abs())
    assert ((mirror_upper_(gram) - F.T @ F).abs() <= 2 * allowed).all()


@pytest.mark.parametrize(
    ("gram", "features"),
    [
        pytest.param((4, 5), (3, 4), id="not-square"),
        pytest.param((4, 4), (3, 5), id="other-width"),
        pytest.param((4, 4), (4,), id="one-row"),
        pytest.param((4, 4), (2, 3, 4), id="three-axes"),
    ],
)
def test_shapes_are_checked(gram, features):
    with pytest.raises(ValueError, match=r"`gram` must be \(p, p\) and `features` \(n, p\), got"):
        gram_add_(torch.zeros(gram), torch.zeros(features))


def test_dtypes_are_checked():
    with pytest.raises(ValueError, match=r"torch.float64 but `features` are torch.float32: cast"):
        gram_add_(torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 4))
