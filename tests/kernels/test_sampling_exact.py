"""The distributions of the samples, against exact probabilities: chi-square, enumeration, unbiasedness, large n."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from kernel_distill.kernels import _first_arrivals, _race, random_bits, systematic
from kernel_distill.kernels.sampling import METHODS, weighted_sample
from kernel_distill.kernels.weighted_sampler import WeightedSampler

# Seeds are fixed, so a test passes always or never. A correct sampler fails one of about thirty chi-square tests at
# this level in a tenth of a percent of all choices of seeds.
LEVEL = 3e-5
WEIGHTS = {
    2: [3.0, 1.0],
    3: [1.0, 1.0, 1.0],
    4: [0.5, 4.0, 1.0, 0.1],
    5: [1e-3, 1.0, 2.0, 3.0, 4.0],
    6: [5.0, 0.0, 1.0, 1.0, 0.25, 10.0],
}


def chi_square(counts, probabilities):
    """p-value; outcomes of probability zero must not occur."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities)
    assert (counts[probabilities == 0] == 0).all()
    counts, probabilities = counts[probabilities > 0], probabilities[probabilities > 0]
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    order = np.argsort(probabilities)
    rare = (
        np.cumsum(probabilities[order]) * counts.sum() < 10
    )  # cells too rare for the approximation become one
    few, many = order[rare], order[~rare]
    found = np.append(counts[many], counts[few].sum())
    wanted = np.append(probabilities[many], probabilities[few].sum()) * counts.sum()
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    return scipy.stats.chisquare(found, wanted).pvalue if len(found) > 1 else 1.0


def races(weights, count, seed):
    """Items of `count` independent races, each in order of arrival; zero weights are last. Shape (count, n)."""
    n = len(weights)
    tiled = torch.tensor(weights, dtype=torch.float64).repeat(count)
    found = _first_arrivals.first_arrivals(
        tiled, len(tiled) + 1, seed=seed, stream="weighted_sample", start=0, replacement=False
    )
    keys = np.full(len(tiled), _race.NEVER)
    keys[found.items] = found.keys
    return np.argsort(keys.reshape(count, n), axis=1, kind="stable"), np.sort(keys.reshape(count, n), axis=1)


def probability(weights, order):
    """Of drawing these items one after the other, each in proportion to the weights that are left."""
    left, product = sum(weights), 1.0
    for i in order:
        product *= weights[i] / left if weights[i] else 0.0
        left -= weights[i]
    return product


@pytest.mark.parametrize("n", WEIGHTS)
def test_races_are_the_samples_of_weighted_sample(n):
    """What the next tests count is what users get."""
    weights = WEIGHTS[n]
    k = sum(w > 0 for w in weights) - 1
    orders, _ = races(weights, 20, seed=2)
    for race in range(20):
        drawn = weighted_sample(weights, k, seed=2, start=race * n)
        assert (drawn.indices - race * n).tolist() == orders[race, :k].tolist()


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in WEIGHTS for k in (1, 2, 3) if k <= n])
def test_ordered_samples_without_replacement(n, k):
    weights = WEIGHTS[n]
    orders, _ = races(weights, 40_000, seed=10 * n + k)
    outcomes = list(itertools.permutations(range(n), k))
    code = orders[:, :k] @ n ** np.arange(k)
    counts = [np.sum(code == np.dot(outcome, n ** np.arange(k))) for outcome in outcomes]
    assert chi_square(counts, [probability(weights, outcome) for outcome in outcomes]) > LEVEL


@pytest.mark.parametrize("n", WEIGHTS)
def test_inclusion_probabilities_are_those_of_enumeration(n):
    """The mean of the conditional probabilities 1 - exp(-w tau) over all samples is the probability of inclusion."""
    weights, count = WEIGHTS[n], 40_000
    positive = sum(w > 0 for w in weights)
    for k in range(1, positive):
        orders, keys = races(weights, count, seed=n)
        exact = np.zeros(n)
        for outcome in itertools.permutations(range(n), k):
            exact[list(outcome)] += probability(weights, outcome)
        drawn = np.zeros(n)
        np.add.at(drawn, orders[:, :k].ravel(), 1 / count)
        # Five standard deviations of a mean of `count` indicators; a weight of zero is never drawn.
        assert (np.abs(drawn - exact) <= 5 * np.sqrt(exact * (1 - exact) / count)).all()
        # Horvitz-Thompson with the conditional probabilities: each item's mean of [drawn]/pi is one.
        after = [_race.time_of(int(key)) for key in keys[:, k]]
        for i in np.flatnonzero(weights):
            terms = (orders[:, :k] == i).any(1) / -np.expm1(-weights[i] * np.array(after))
            assert abs(terms.mean() - 1) <= 5 * terms.std() / math.sqrt(count)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", WEIGHTS)
def test_draws_with_replacement(n, seed):
    """k draws of one call: each distributed as the weights, and each pair of successors as if independent."""
    p = np.array(WEIGHTS[n]) / sum(WEIGHTS[n])
    drawn = weighted_sample(WEIGHTS[n], 30_000, method="with-replacement", seed=seed).indices.numpy()
    assert chi_square(np.bincount(drawn, minlength=n), p) > LEVEL
    pairs = drawn[:-1:2] * n + drawn[1::2]
    assert chi_square(np.bincount(pairs, minlength=n * n), np.outer(p, p).ravel()) > LEVEL


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("n", WEIGHTS)
def test_systematic_start_is_uniform(n, k):
    """Each start is a sample; items are drawn in proportion to how many starts lead to them."""
    p = np.array(WEIGHTS[n]) / sum(WEIGHTS[n])
    counts = np.zeros(n)
    for seed in range(1500):
        drawn = weighted_sample(WEIGHTS[n], k, method="systematic", seed=seed)
        counts += np.bincount(drawn.indices, minlength=n)
    floor = np.floor(k * p)
    extra = k * p - floor  # beyond its whole draws an item is drawn once more with this probability
    spread = np.sqrt(1500 * extra * (1 - extra))
    assert (np.abs(counts - 1500 * k * p) <= 5 * spread + 1e-6).all()


@pytest.mark.parametrize(("whole", "k"), [(37, 5), (5, 37), (36, 6), (1, 4), (7, 1), (2**61 - 3, 1000)])
def test_systematic_points_hit_every_unit_equally_often(whole, k):
    """Over all starts U = 0 ... Q - 1 each of the Q units holds k points: the exact law behind k q / Q."""
    if whole > 1000:  # too many starts to list: the points of the last one, in Python's integers
        points = systematic._points(whole, k, np.array([2**64 - 1, 2**64 - 1], dtype=np.uint64))
        assert points.tolist() == [(whole - 1 + j * whole) // k for j in range(k)]
        return
    hits = np.zeros(whole, dtype=int)
    for start in range(whole):
        word = -(-start * 2**128 // whole)  # the first 128 bits that lead to this start
        bits = np.array([word >> 64, word % 2**64], dtype=np.uint64)
        points = systematic._points(whole, k, bits)
        assert points.tolist() == [(start + j * whole) // k for j in range(k)]
        np.add.at(hits, points, 1)
    assert (hits == k).all()


@pytest.mark.parametrize("method", METHODS)
def test_weighted_totals_are_unbiased(method):
    """The mean estimate over 1500 seeds, of a total that has little to do with the weights."""
    weights = np.random.default_rng(0).pareto(1.2, 60)
    f = np.random.default_rng(1).normal(1, 2, 60)
    f_mean = np.zeros(60)
    estimates = np.empty(1500)
    for seed in range(1500):
        drawn = weighted_sample(weights, 12, method=method, seed=seed)
        estimates[seed] = drawn.weights.numpy() @ f[drawn.indices]
        np.add.at(f_mean, drawn.indices, drawn.weights.numpy() / 1500)
    # Five standard errors, estimated from the same 1500 values.
    assert abs(estimates.mean() - f.sum()) <= 5 * estimates.std() / math.sqrt(1500)
    common = weights > np.median(weights)  # each item's own total is one; rare ones would need more seeds
    assert abs(f_mean[common] - 1).max() < 0.5


def test_total_weight_estimated_without_error_with_replacement():
    """sum w_i / (k p_i) is the total itself, whatever is drawn."""
    weights = np.random.default_rng(0).pareto(1.0, 1000)
    drawn = weighted_sample(weights, 50, method="with-replacement", seed=0)
    assert float(drawn.weights @ drawn.values) == pytest.approx(weights.sum(), rel=1e-13)


def test_times_are_exponential():
    fields = random_bits(0, "a", 25_000).view(np.uint16)
    times = _race.exponential(fields, random_bits(0, "b", 100_000) >> np.uint64(12))
    assert scipy.stats.kstest(times, "expon").pvalue > LEVEL
    # The smallest of many, which decide: below u = 2^-16 only the 52 further bits tell items apart.
    small = _race.exponential(np.zeros(100_000, np.uint16), random_bits(0, "c", 100_000) >> np.uint64(12))
    assert scipy.stats.kstest(-np.expm1(-small) * 2**16, "uniform").pvalue > LEVEL
    assert len(np.unique(small)) == 100_000


# ---------------------------------------------------------------------------------------------------------- large n


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_of_two_to_the_24th(method, monkeypatch):
    """`torch.multinomial` gives the item at 2**24 no mass: it refuses longer vectors, for the same reason."""
    middle = 2**24
    weights = torch.zeros(middle + 2)
    weights[middle - 1 :] = 1
    whole = weighted_sample(weights, 2, method=method, seed=1)
    assert set(whole.indices.tolist()) <= {middle - 1, middle, middle + 1}
    monkeypatch.setattr(_first_arrivals, "_CHUNK", 2)
    monkeypatch.setattr("kernel_distill.kernels.sampling.CHUNK", 2)
    short = weights[middle - 5 :]
    counts = np.zeros(3)
    for seed in range(900):
        drawn = weighted_sample(short, 1, method=method, seed=seed, start=middle - 5)
        counts += np.bincount(drawn.indices - (middle - 1), minlength=3)
    assert chi_square(counts, np.full(3, 1 / 3)) > LEVEL
    if method != "systematic":  # whose resolution depends on n
        assert torch.equal(
            weighted_sample(short, 2, method=method, seed=1, start=middle - 5).indices, whole.indices
        )


@pytest.mark.parametrize("replacement", [False, True])
def test_shards_up_to_two_to_the_40th(replacement):
    """Workers that hold distant shards of 2**40 items agree with one that holds all of them."""
    ends = [0, 2**24 - 50, 2**31 - 50, 2**32 - 50, 2**40 - 100]
    weights = np.random.default_rng(0).random((5, 100)) + 0.1
    workers = [
        WeightedSampler(200, seed=0, replacement=replacement).update(row, end)
        for row, end in zip(weights, ends, strict=True)
    ]
    one = WeightedSampler(200, seed=0, replacement=replacement)
    for row, end in zip(weights, ends, strict=True):
        one.update(row, end)
    merged = workers[4]
    for worker in workers[:4]:
        merged.merge(worker)
    assert torch.equal(merged.result().indices, one.result().indices)
    shares = weights.sum(1) / weights.sum()
    if replacement:
        counts = [((one.result().indices >= end) & (one.result().indices < end + 100)).sum() for end in ends]
        assert chi_square(counts, shares) > LEVEL


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("method", METHODS)
def test_a_hundred_million_weights(method):
    """In 1.5 GiB beside the weights, and right: the estimates of known totals are within five standard errors."""
    code = """
import json, re, sys, torch
from kernel_distill.kernels.sampling import weighted_sample
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
n = 10**8
w = torch.empty(n).uniform_(generator=torch.Generator().manual_seed(0))
before = peak()
drawn = weighted_sample(w, 10**5, method=sys.argv[1], seed=0)
held = (peak() - before) / 2**20
assert torch.equal(drawn.values.float(), w[drawn.indices])
thirds = [drawn.weights[drawn.indices * 3 // n == part] for part in range(3)]
print(json.dumps({
    "held": held, "distinct": len(drawn.indices.unique()), "relative": drawn.total / (n / 2),
    "estimates": [float(part.sum()) * 3 / n for part in thirds],
    "errors": [float(part.square().sum().sqrt()) * 3 / n for part in thirds],
}))
"""
    done = subprocess.run([sys.executable, "-c", code, method], capture_output=True, check=True, text=True)
    found = json.loads(done.stdout)
    assert found["held"] < 1.5
    # A sum of 1e8 uniforms has standard deviation 2.9e3 of 5e7.
    assert found["relative"] == pytest.approx(1, abs=5 * 5.8e-5)
    if method == "without-replacement":
        assert found["distinct"] == 10**5
    for estimate, error in zip(found["estimates"], found["errors"], strict=True):
        assert abs(estimate - 1) < 5 * error
