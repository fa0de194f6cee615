"""Farthest-first traversal against the plain greedy in float64, its guarantee, and rows that are equal or nearly so."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels.k_center import k_center_greedy

from .peak import PeakMemory
from .places import SIZES, places

PLACES = places("k_center_greedy")


def rows(n, d, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).to(dtype)


def pick(place, X, k, **options):
    backend, device = place
    return [part.cpu() for part in k_center_greedy(X.to(device), k, backend=backend, **options)]


def plain_greedy(X, k, first):
    """Picks, radii and distances from all distances in float64."""
    x, picks, radii = X.double().numpy(), [first], []
    distances = np.full(len(x), np.inf)
    while True:
        distances = np.minimum(distances, np.sqrt(((x - x[picks[-1]]) ** 2).sum(1)))
        radii.append(distances.max())
        if len(picks) == k:
            return picks, np.array(radii), distances
        left = distances.copy()
        left[picks] = -1
        picks.append(int(left.argmax()))


def assert_is_plain_greedy(found, X, first, eps=2.0**-23):
    indices, radii, distances = found
    picks, wanted_radii, wanted = plain_greedy(X, len(indices), first)
    assert indices.tolist() == picks
    # A sum of d squares in `eps` has d eps relative error, its root half that, and expanded squares 64 times more.
    rtol = 64 * (X.shape[1] + 4) * eps
    np.testing.assert_allclose(radii.double().numpy(), wanted_radii, rtol=rtol)
    np.testing.assert_allclose(distances.double().numpy(), wanted, rtol=rtol)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n", SIZES)
def test_picks_are_those_of_the_plain_greedy(place, n):
    for d in (1, 17, 130):
        X = rows(n, d)
        found = pick(place, X, min(n, 20), first=n // 2)
        assert found[0].dtype == torch.int64
        assert_is_plain_greedy(found, X, n // 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_rows_of_many_blocks(place, order):
    """Clusters of unequal width, so that blocks of rows are brought up to date unequally."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 8, 1300) if order == "shuffled" else np.arange(1300) // 170
    X = torch.from_numpy(
        9 * rng.normal(size=(8, 5))[label] + label[:, None] * rng.normal(size=(1300, 5))
    ).float()
    assert_is_plain_greedy(pick(place, X, 30, first=1299), X, 1299)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(place, dtype):
    X = rows(33, 17).to(dtype)
    found = pick(place, X, 10, first=0)
    assert found[2].dtype == torch.float32
    assert_is_plain_greedy(found, X, 0)


def test_float64_is_computed_in_float64():
    X = 1 + 1e-9 * rows(600, 17, dtype=torch.float64)  # equal in float32
    found = pick(("torch", "cpu"), X, 10, first=0)
    assert found[2].dtype == torch.float64
    assert_is_plain_greedy(found, X, 0, eps=2.0**-52)


@pytest.mark.parametrize("place", PLACES)
def test_strided_rows(place):
    X = rows(66, 34)
    for view in (X[::2, ::2], X[::2, :17].T.contiguous().T):
        assert_is_plain_greedy(pick(place, view, 10, first=3), view, 3)


@pytest.mark.parametrize("place", PLACES)
def test_ties_go_to_the_lowest_index(place):
    X = torch.tensor([0.0, 3, -3, 3, -3, 1, -1])[:, None]  # of mean zero: all is exact
    indices, radii, _ = pick(place, X, 7, first=0)
    assert indices.tolist() == [0, 1, 2, 5, 6, 3, 4]
    assert radii.tolist() == [3, 3, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_rows_are_picked_last(place, offset):
    """Rows a spacing of float32 apart, twice each, beside far ones: |x|² + |c|² - 2x·c cannot tell them apart."""
    near = torch.from_numpy(np.random.default_rng(0).permutation(40))[:, None] * 2.0**-10
    X = torch.cat([offset + near, torch.tensor([[offset + 9.0], [offset - 9.0]])]).float().repeat(2, 1)
    assert len(X.unique(dim=0)) == 42
    indices, radii, distances = pick(place, X, 84, first=5)
    assert len(X[indices[:42]].unique(dim=0)) == 42
    assert radii[40] > 0
    assert (radii[41:] == 0).all()
    assert sorted(indices.tolist()) == list(range(84))
    assert (distances == 0).all()
    assert_is_plain_greedy(pick(place, X, 4, first=5), X, 5)


@pytest.mark.parametrize("place", PLACES)
def test_going_on_from_centres_is_going_on(place):
    X = rows(129, 17)
    whole = pick(place, X, 12, first=7)
    rest = pick(place, X, 7, initial=whole[0][:5])
    assert rest[0].tolist() == whole[0][5:].tolist()
    torch.testing.assert_close(rest[1], whole[1][5:], rtol=1e-4, atol=0)
    torch.testing.assert_close(rest[2], whole[2], rtol=1e-4, atol=0)
    backwards = pick(place, X, 7, initial=whole[0][:5].flip(0).tolist())
    assert backwards[0].tolist() == rest[0].tolist()


@pytest.mark.parametrize("place", PLACES)
def test_the_seed_draws_the_first_pick(place):
    X = rows(33, 3)
    first = [int(pick(place, X, 3, seed=seed)[0][0]) for seed in range(12)]
    assert first == [int(pick(place, X, 1, seed=seed)[0][0]) for seed in range(12)]
    assert len(set(first)) > 6
    assert_is_plain_greedy(pick(place, X, 5, seed=4), X, first[4])


@pytest.mark.parametrize("place", PLACES)
def test_the_radius_is_at_most_twice_the_best(place):
    for seed in range(5):
        X = rows(12, 2, seed)
        D = torch.cdist(X.double(), X.double())
        best = min(float(D[:, list(c)].amin(1).max()) for c in itertools.combinations(range(12), 3))
        _, radii, distances = pick(place, X, 3, seed=seed)
        assert best * (1 - 1e-6) <= float(radii[-1]) <= 2 * best
        assert float(distances.max()) == float(radii[-1])
        assert (radii.diff() <= 0).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 60), levels=st.integers(1, 4), budget=st.integers(1, 9000)
)
def test_every_pick_is_a_farthest_row(seed, n, levels, budget):
    """On grids full of ties and equal rows, for blocks of any size."""
    X = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (n, 3))).float()
    k = (n + 1) // 2
    indices, radii, distances = k_center_greedy(X, k, seed=seed, memory_budget=budget, backend="torch")
    picks = indices.numpy()
    D = torch.cdist(X.double(), X.double()).numpy()
    assert len(set(picks.tolist())) == k
    for j in range(1, k):
        to_centre = D[:, picks[:j]].min(1)
        assert to_centre.max() == pytest.approx(float(radii[j - 1]), rel=1e-5)
        assert to_centre[picks[j]] == pytest.approx(float(radii[j - 1]), rel=1e-5)
    np.testing.assert_allclose(distances.numpy(), D[:, picks].min(1), rtol=1e-5)


def test_memory_stays_within_the_budget():
    X, budget = rows(4000, 100), 256 << 10
    X[1000:3000] = X[:1000].repeat(2, 1) + 2.0**-12  # many distances are recomputed
    with PeakMemory() as memory:
        k_center_greedy(X, 200, first=0, memory_budget=budget, backend="torch")
    # Numbers of rows and blocks; the published code keeps 200 · 4000 distances.
    assert memory.peak < budget + 4 * 4 * 4000 < 4 * 200 * 4000 / 8


@pytest.mark.parametrize("place", PLACES)
def test_offsets_beyond_32_bits(place, tmp_path):
    """The last row begins 3·2³⁰ numbers after the first: on a CPU in a file that is a hole."""
    stride, size = 3 * 2**29, 3 * 2**30 + 8
    if place[1] == "cpu":
        memory = torch.from_numpy(np.memmap(tmp_path / "hole", np.float16, "w+", shape=(size,)))
    else:
        memory = torch.zeros(size, dtype=torch.float16, device=place[1])
    X = memory.as_strided((3, 5), (stride, 1))
    X[:] = rows(3, 5).to(X)
    assert_is_plain_greedy(pick(place, X, 3, first=1), X.cpu().clone(), 1)


# The interpreter computes in NumPy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("first", [0, 2])
def test_numbers_that_are_not_finite_are_refused(place, value, first):
    X = rows(33, 3)
    X[2, 1] = value
    with pytest.raises(ValueError, match=r"NaN or infinite values, or values whose squares overflow"):
        pick(place, X, 4, first=first)


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        pytest.param(0, {}, "between 1 and the 5 rows to pick from, got 0", id="none"),
        pytest.param(6, {}, "between 1 and the 5 rows to pick from, got 6", id="too many"),
        pytest.param(4, {"initial": [0, 1]}, "between 1 and the 3 rows", id="too many more"),
        pytest.param(2, {"first": 5}, "`first` must be the index of one of 5 rows, got 5", id="first"),
        pytest.param(2, {"first": -1}, "`first` must be", id="negative first"),
        pytest.param(2, {"first": 1, "initial": [0]}, "leave it out with `initial`", id="both"),
        pytest.param(2, {"initial": []}, "at least one", id="no centre"),
        pytest.param(2, {"initial": [1, 1]}, "distinct indices of the 5 rows", id="twice"),
        pytest.param(2, {"initial": [5]}, "distinct indices of the 5 rows", id="outside"),
    ],
)
def test_bad_counts_are_refused(k, options, message):
    with pytest.raises(ValueError, match=message):
        k_center_greedy(rows(5, 2), k, **options)


@pytest.mark.parametrize("place", PLACES)
def test_arguments_are_left_as_they_were(place):
    X = rows(33, 5)
    kept = X.clone()
    pick(place, X, 5)
    assert torch.equal(X, kept)
