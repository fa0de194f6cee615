"""The two-level bootstrap: its exact distribution on tiny cases, its variance, its coverage, what it refuses."""

import itertools
import math

import numpy as np
import pytest

from kernel_distill.nn_baselines import bootstrap
from kernel_distill.nn_baselines.bootstrap import bootstrap_interval, resampled_means


def every_mean(values):
    """Means of all resamples, each as likely as any other."""
    n_sets, n_networks = values.shape
    networks = list(itertools.product(range(n_networks), repeat=n_networks))
    for sets in itertools.product(range(n_sets), repeat=n_sets):
        for drawn in itertools.product(networks, repeat=n_sets):
            yield np.mean([values[s, list(t)].mean() for s, t in zip(sets, drawn, strict=True)])


@pytest.mark.parametrize(
    "values",
    [
        [[0.1, 0.4]],
        [[0.1], [0.4], [0.45]],
        [[0.1, 0.4], [0.6, 0.61]],
        [[0.1, 0.2, 0.9], [0.3, 0.5, 0.4]],
    ],
)
def test_distribution_is_that_of_all_resamples(values):
    values = np.array(values)
    exact = np.sort(list(every_mean(values)))
    n = 20_000
    found = np.sort(resampled_means(values, draws=n, seed=5))
    # Dvoretzky-Kiefer-Wolfowitz: further apart with a probability of 1e-6; ties are told apart by a hair.
    bound = math.sqrt(math.log(2 / 1e-6) / (2 * n))
    for place in np.unique(exact.round(9)) + 1e-7:
        ours, theirs = (np.searchsorted(each, place) / len(each) for each in (found, exact))
        assert abs(ours - theirs) < bound


def test_interval_is_between_percentiles_of_all_resamples():
    values = np.array([[0.2, 0.3], [0.5, 0.6]])
    exact = np.sort(list(every_mean(values)))
    # Of 64 equally likely means, one or two lie beyond the ends for 94 %: the ends are the third, or next to it.
    low, high = bootstrap_interval(values, confidence=0.94, seed=1)
    assert exact[0] < low < np.median(exact) < high < exact[-1]
    cover = np.mean((exact >= low - 1e-9) & (exact <= high + 1e-9))
    assert 0.93 < cover < 0.98
    narrow = bootstrap_interval(values, confidence=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(("n_sets", "n_networks"), [(1, 6), (5, 1), (4, 3)])
def test_variance_is_that_of_both_levels(n_sets, n_networks):
    values = np.random.default_rng(n_sets).uniform(size=(n_sets, n_networks))
    between, within = values.mean(axis=1).var(), values.var(axis=1).mean()
    n = 50_000
    means = resampled_means(values, draws=n)
    expected = (between + within / n_networks) / n_sets
    # Six standard errors of a variance and of a mean (kurtosis of sums of uniforms: below that of a normal).
    assert means.var() == pytest.approx(expected, rel=6 * math.sqrt(2 / n))
    assert means.mean() == pytest.approx(values.mean(), abs=6 * math.sqrt(expected / n))


def test_two_levels_cover_where_one_does_not():
    """90 % intervals of ten sets that differ: near nominal on both levels, far below it on one."""
    rng = np.random.default_rng(0)
    truth, hits = 0.5, np.zeros(2)
    trials = 200
    for trial in range(trials):
        sets = truth + 0.05 * rng.normal(size=(10, 1))
        values = sets + 0.02 * rng.normal(size=(10, 5))
        for kind, table in enumerate((values, values.reshape(1, -1))):
            low, high = bootstrap_interval(table, confidence=0.9, draws=400, seed=trial)
            hits[kind] += low <= truth <= high
    two, one = hits / trials
    # Standard error of a share of 0.85 in 200 trials: 0.025.
    assert 0.78 < two < 0.95
    assert one < 0.7


def test_draws_depend_on_seed_and_number_alone(monkeypatch):
    values = np.random.default_rng(0).uniform(size=(3, 4))
    whole = resampled_means(values, draws=50, seed=3)
    np.testing.assert_array_equal(whole[:20], resampled_means(values, draws=20, seed=3))
    assert not np.array_equal(whole, resampled_means(values, draws=50, seed=4))
    monkeypatch.setattr(bootstrap, "_BLOCK", 3 * 5 * 7)
    np.testing.assert_array_equal(whole, resampled_means(values, draws=50, seed=3))


def test_equal_accuracies_have_no_width():
    assert bootstrap_interval([[0.25, 0.25], [0.25, 0.25]], draws=10) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.1, 0.2], {}, r"shape \(sets, networks\), got \(2,\)"),
        (np.ones((0, 3)), {}, r"shape \(sets, networks\)"),
        ([[0.1, math.nan]], {}, "NaN or infinity"),
        ([[0.1]], {"draws": 0}, "`draws` must be an integer of at least 1"),
        ([[0.1]], {"confidence": 95}, "`confidence` must lie between 0 and 1, got 95"),
    ],
)
def test_refusals(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)
