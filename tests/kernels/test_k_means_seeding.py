"""D² seeding: its distribution against exact enumeration, rows that must never be drawn, and the potential reached."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.cluster import kmeans_plusplus

from kernel_distill.kernels import k_means_seeding
from kernel_distill.kernels.k_means_seeding import k_means_parallel, k_means_plus_plus

from .peak import PeakMemory
from .places import SIZES, places

PLACES = places("k_means_plus_plus")


def rows(n, d, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).to(dtype)


def some_weights(n, seed=9):
    weights = np.random.default_rng(seed).exponential(size=n)
    weights[1::7] = 0
    return torch.from_numpy(weights)


def seeds(place, X, k, weights=None, **options):
    backend, device = place
    given = None if weights is None else weights.to(device)
    found = k_means_plus_plus(X.to(device), k, weights=given, backend=backend, **options)
    return [part.cpu() for part in found]


def squared(X, picks):
    x = X.double().numpy()
    return ((x[:, None] - x[np.asarray(picks)]) ** 2).sum(2)


def draw_probabilities(X, w, picks):
    mass = w * (squared(X, picks).min(1) if picks else 1.0)
    return mass / mass.sum()


def chi_square(counts, probabilities, draws):
    """Statistic over outcomes of positive probability, and a bound that it passes once in a million times."""
    outcomes = [o for o, p in probabilities.items() if p > 0]
    assert set(counts) <= set(outcomes)  # what has no probability is never drawn
    assert draws * min(probabilities[o] for o in outcomes) > 4  # or the limit distribution says nothing
    value = sum(
        (counts.get(o, 0) - draws * probabilities[o]) ** 2 / (draws * probabilities[o]) for o in outcomes
    )
    freedom, normal = len(outcomes) - 1, 4.75
    return value, freedom * (1 - 2 / (9 * freedom) + normal * math.sqrt(2 / (9 * freedom))) ** 3


# The fourth row equals the first, the fifth has no weight.
FEW = torch.tensor([[0.0, 0], [1, 0], [0, 2], [0, 0], [3, 3]])
FEW_WEIGHTS = np.array([1.0, 2.0, 1.0, 0.5, 0.0])


def test_distribution_of_plain_sampling():
    draws, counts = 2500, {}
    for seed in range(draws):
        found, _ = k_means_plus_plus(FEW, 3, weights=torch.from_numpy(FEW_WEIGHTS), trials=1, seed=seed)
        counts[tuple(found.tolist())] = counts.get(tuple(found.tolist()), 0) + 1
    probabilities = {}
    for picks in itertools.permutations(range(5), 3):
        p = 1.0
        for j in range(3):
            p *= draw_probabilities(FEW, FEW_WEIGHTS, list(picks[:j]))[picks[j]] if p else 0
        probabilities[picks] = p
    value, limit = chi_square(counts, probabilities, draws)
    assert value < limit


def test_distribution_of_the_better_of_two():
    X, w = rows(5, 2), np.ones(5)
    draws, counts = 2500, {}
    for seed in range(draws):
        found, _ = k_means_plus_plus(X, 2, trials=2, seed=seed)
        counts[tuple(found.tolist())] = counts.get(tuple(found.tolist()), 0) + 1
    probabilities = dict.fromkeys(itertools.permutations(range(5), 2), 0.0)
    for first in range(5):
        p = draw_probabilities(X, w, [first])
        left = [np.minimum(squared(X, [first])[:, 0], squared(X, [c])[:, 0]).sum() for c in range(5)]
        for a, b in itertools.product(range(5), repeat=2):
            if p[a] * p[b] > 0:
                probabilities[first, a if left[a] <= left[b] else b] += p[a] * p[b] / 5
    likely = {o: p for o, p in probabilities.items() if p * draws > 4 or p == 0}
    rest = sum(probabilities.values()) - sum(likely.values())
    counts = {o if o in likely else "rest": c for o, c in counts.items()}
    value, limit = chi_square(counts, likely | ({"rest": rest} if rest * draws > 4 else {}), draws)
    assert value < limit


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_every_backend_follows_the_same_numbers(place, n, weighted):
    """Picks are those of inverse sampling in float64 with the same uniform numbers."""
    for d, trials in ((1, 1), (17, 3), (130, None)):
        X, weights = rows(n, d), some_weights(n) if weighted else None
        k = min(n, 7)
        w = np.ones(n) if weights is None else weights.numpy()
        picks, count = [], 2 + int(math.log(k)) if trials is None else trials
        first = k_means_seeding.uniform(5, "k-means++.first", 1).numpy()
        later = k_means_seeding.uniform(5, "k-means++", (k - 1, count)).numpy()
        for u in (first, *later):
            upto = np.cumsum(draw_probabilities(X, w, picks))
            candidates = np.searchsorted(upto, u * upto[-1], side="right")
            closest = squared(X, picks).min(1) if picks else np.inf
            left = [(w * np.minimum(closest, squared(X, [c])[:, 0])).sum() for c in candidates]
            picks.append(int(candidates[np.argmin(left)]))
        indices, found = seeds(place, X, k, weights, trials=trials, seed=5)
        assert indices.dtype == torch.int64
        assert indices.tolist() == picks
        # A sum of d squares in float32, of differences or expanded where that is 64 times less accurate at worst.
        np.testing.assert_allclose(found.numpy(), squared(X, picks).min(1), rtol=64 * (d + 4) * 2.0**-23)
        assert (found[indices] == 0).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tiles", [1, 4])
def test_rows_of_many_programs(place, tiles, monkeypatch):
    """A program of millions of rows sums several tiles."""
    if place[0] == "triton":
        from kernel_distill.kernels._triton import k_center

        monkeypatch.setattr(k_center, "tiles_of_a_program", lambda n, BN: tiles)
    X, weights = rows(1300, 3), some_weights(1300)
    found, wanted = seeds(place, X, 5, weights, seed=2), seeds(("torch", "cpu"), X, 5, weights, seed=2)
    assert found[0].tolist() == wanted[0].tolist()
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trials", [1, 4])
def test_equal_rows_and_rows_without_weight_are_never_drawn(place, trials):
    """Twelve places, each in several copies a float32 spacing from the next, and rows of weight zero far away."""
    near = 1e4 + torch.arange(12)[:, None] * 2.0**-10
    X = torch.cat([near.repeat(5, 2), torch.full((4, 2), -1e4) * torch.arange(1, 5)[:, None]]).float()
    weights = torch.cat([torch.full((60,), 0.3), torch.zeros(4)])
    for seed in range(3):
        indices, found = seeds(place, X, 12, weights, trials=trials, seed=seed)
        assert len(X[indices].unique(dim=0)) == 12
        assert (indices < 60).all()
        assert (found[:60] == 0).all()
        with pytest.raises(
            ValueError, match="`k` is 13, but only 12 distinct rows of `X` have a positive weight"
        ):
            seeds(place, X, 13, weights, trials=trials, seed=seed)


def test_a_draw_at_either_end_has_mass():
    mass = torch.tensor([0.0, 1e-300, 0.0, 1.0, 0.0], dtype=torch.float64)
    u = torch.tensor([2.0**-1074, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert k_means_seeding._draw(mass, u).tolist() == [1, 3, 3]
    assert k_means_seeding._draw(torch.zeros(3, dtype=torch.float64), u).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("place", PLACES)
def test_only_proportions_of_weights_count(place):
    X, weights = rows(33, 5), some_weights(33)
    wanted = seeds(place, X, 6, weights, seed=1)[0]
    assert seeds(place, X, 6, weights * 2.0**-40, seed=1)[0].tolist() == wanted.tolist()
    assert seeds(place, X, 6, weights.float().double(), seed=1)[0].tolist() == wanted.tolist()
    plain = seeds(place, X, 6, seed=1)[0]
    assert seeds(place, X, 6, torch.ones(33, dtype=torch.int64), seed=1)[0].tolist() == plain.tolist()


@pytest.mark.parametrize("place", PLACES)
def test_strided_and_half_rows(place):
    X = rows(66, 34)
    views = (X[::2, ::2], X[::2, :17].T.contiguous().T, X[:33].half(), X[:33].bfloat16())
    for view in views:
        found, wanted = seeds(place, view, 6), seeds(("torch", "cpu"), view.float().clone(), 6)
        assert found[0].tolist() == wanted[0].tolist()
        assert found[1].dtype == torch.float32


def test_float64_is_computed_in_float64():
    X = 1 + 1e-9 * rows(60, 5, dtype=torch.float64)  # equal in float32
    indices, found = k_means_plus_plus(X, 9)
    np.testing.assert_allclose(
        found.numpy(), squared(X, indices.numpy()).min(1), rtol=1e-5
    )  # X is rounded at 1e-7


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), budget=st.integers(1, 9000))
def test_chunks_do_not_matter(seed, n, budget):
    X, k = rows(n, 3, seed), (n + 2) // 3
    for run in (k_means_plus_plus, k_means_parallel):
        found, wanted = run(X, k, seed=seed, memory_budget=budget), run(X, k, seed=seed)
        assert found.indices.tolist() == wanted.indices.tolist()
        torch.testing.assert_close(found.squared_distances, wanted.squared_distances, rtol=1e-4, atol=0)


def clusters(seed):
    rng = np.random.default_rng(seed)
    return (4 * rng.normal(size=(20, 5))[rng.integers(0, 20, 600)] + rng.normal(size=(600, 5))).astype(
        np.float32
    )


def test_potential_is_that_of_scikit_learn():
    """The mean over 30 data sets, each of whose ratios varies by about a tenth."""
    ratios = {run: [] for run in (k_means_plus_plus, k_means_parallel)}
    for seed in range(30):
        x = clusters(seed)
        centres, _ = kmeans_plusplus(x, 20, random_state=seed)
        theirs = ((x[:, None] - centres) ** 2).sum(2).min(1).sum()
        for run, found in ratios.items():
            found.append(float(run(x, 20, seed=seed).squared_distances.double().sum()) / theirs)
    assert 0.93 < np.mean(ratios[k_means_plus_plus]) < 1.07
    assert np.mean(ratios[k_means_parallel]) < 1.07


@pytest.mark.parametrize("weighted", [False, True])
def test_rounds_of_k_means_parallel(monkeypatch, weighted):
    """Every row joins by itself with its probability; a candidate weighs what is nearest to it."""
    n, k, repeats = 40, 2, 400
    X, w = rows(n, 3), some_weights(n).numpy() if weighted else np.ones(n)
    seen = {}
    whole = k_means_plus_plus

    def watched(candidates, k, weights, **options):
        where = (squared(torch.cat([X, candidates]), range(n))[n:] == 0).argmax(1)
        near = squared(X, where).argmin(1)
        np.testing.assert_allclose(weights, np.bincount(near, w, minlength=len(where)), rtol=1e-12)
        seen["rows"] = where
        return whole(candidates, k, weights=weights, **options)

    monkeypatch.setattr(k_means_seeding, "k_means_plus_plus", watched)
    wanted, joined = np.zeros(n), np.zeros(n)
    for seed in range(repeats):
        options = {"weights": torch.from_numpy(w), "rounds": 1, "oversampling": 3.0, "seed": seed}
        found = k_means_parallel(X, k, **options)
        assert set(found.indices.tolist()) <= set(seen["rows"].tolist())
        np.testing.assert_allclose(
            found.squared_distances.numpy(), squared(X, found.indices.numpy()).min(1), rtol=1e-4
        )
        wanted += np.minimum(1, 3 * k * draw_probabilities(X, w, [seen["rows"][0]]))
        joined += np.isin(np.arange(n), seen["rows"][1:])
    # Five standard deviations, and the few repeats in which nothing joined and there was another round.
    assert (np.abs(joined - wanted) < 5 * np.sqrt(np.maximum(wanted, 1)) + 0.005 * repeats).all()
    assert (joined[w == 0] == 0).all()


def test_k_means_parallel_finds_every_place():
    """More rounds are made until there are enough distinct candidates, and fewer do not pass as k."""
    X = torch.arange(7.0)[:, None].repeat(4, 2)
    for seed in range(5):
        found = k_means_parallel(X, 7, rounds=0, oversampling=0.5, seed=seed)
        assert sorted(X[found.indices, 0].tolist()) == list(range(7))
        assert (found.squared_distances == 0).all()
    with pytest.raises(ValueError, match="`k` is 8, but only 7 distinct rows"):
        k_means_parallel(X, 8)
    weights = torch.ones(28)
    weights[6::7] = 0
    with pytest.raises(ValueError, match="`k` is 7, but only 6 distinct rows"):
        k_means_parallel(X, 7, weights=weights)
    assert 6 not in X[k_means_parallel(X, 6, weights=weights).indices, 0].tolist()


def test_memory_stays_within_the_budget():
    n, d, k, budget = 4000, 100, 10, 256 << 10
    X = rows(n, d)
    X[1000:3000] = X[:1000].repeat(2, 1) + 2.0**-12  # many distances are recomputed
    for run in (k_means_plus_plus, k_means_parallel):
        with PeakMemory() as memory:
            run(X, k, trials=4, memory_budget=budget)
        # Minima of the trials, some vectors of length n, and the candidates.
        assert memory.peak < budget + 4 * 4 * n + 8 * 8 * n + 4 * 12 * k * d < 4 * n * d / 2


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
    found, wanted = seeds(place, X, 3), seeds(("torch", "cpu"), X.cpu().clone(), 3)
    assert found[0].tolist() == wanted[0].tolist()


# The interpreter computes in NumPy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_numbers_that_are_not_finite_are_refused(place, value):
    X = rows(33, 3)
    X[2, 1] = value
    for seed in range(3):
        with pytest.raises(ValueError, match=r"NaN or infinite values, or values whose squares overflow"):
            seeds(place, X, 4, seed=seed)
        with pytest.raises(ValueError, match=r"NaN or infinite values, or values whose squares overflow"):
            k_means_parallel(X, 4, seed=seed)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param([1.0, -1.0, 1.0, 1.0], "smallest is -1", id="negative"),
        pytest.param([1.0, torch.nan, 1.0, 1.0], "negative or NaN", id="NaN"),
        pytest.param([1.0, torch.inf, 1.0, 1.0], "finite sum, got inf", id="inf"),
        pytest.param([0.0, 0.0, 0.0, 0.0], "positive, finite sum, got 0", id="zero"),
        pytest.param([1.0, 1.0], r"`weights` must be \(4,\)", id="few"),
    ],
)
def test_bad_weights_are_refused(place, weights, message):
    with pytest.raises(ValueError, match=message):
        seeds(place, rows(4, 2), 2, torch.tensor(weights))
    with pytest.raises(ValueError, match=message):
        k_means_parallel(rows(4, 2), 2, weights=torch.tensor(weights))


@pytest.mark.parametrize(
    ("run", "k", "options", "message"),
    [
        pytest.param(k_means_plus_plus, 0, {}, "between 1 and the 5 rows", id="none"),
        pytest.param(k_means_plus_plus, 6, {}, "between 1 and the 5 rows", id="too many"),
        pytest.param(k_means_plus_plus, 2, {"trials": 0}, "`trials` positive, got 2 and 0", id="no trial"),
        pytest.param(k_means_parallel, 6, {}, "between 1 and the 5 rows", id="too many in rounds"),
        pytest.param(k_means_parallel, 2, {"rounds": -1}, "`rounds` not negative", id="rounds"),
        pytest.param(
            k_means_parallel, 2, {"oversampling": 0.4}, "`oversampling` at least 1/k", id="sampling"
        ),
    ],
)
def test_bad_counts_are_refused(run, k, options, message):
    with pytest.raises(ValueError, match=message):
        run(rows(5, 2), k, **options)


def test_float64_is_refused_by_name_in_triton():
    with pytest.raises(ValueError, match=r"backend 'triton' was asked for, but k_means_plus_plus"):
        k_means_plus_plus(rows(5, 2, dtype=torch.float64), 2, backend="triton")
