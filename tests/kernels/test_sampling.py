"""`weighted_sample`, `WeightedSampler` and `sample_by_loss`: one result for every chunk, shard, thread and device."""

import itertools
import json
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels import (
    _first_arrivals,
    _philox,
    _race,
    random_bits,
    weighted_sampler,
)
from kernel_distill.kernels.loss_sampling import row_losses, sample_by_loss
from kernel_distill.kernels.sampling import METHODS, weighted_sample
from kernel_distill.kernels.weighted_sampler import WeightedSampler

from .places import places

RACES = ("without-replacement", "with-replacement")
TABLE = {  # name: (weights, k)
    "uniform": (np.ones(100), 10),
    "skewed": (np.random.default_rng(0).pareto(0.5, 500), 20),
    "half-zero": (np.where(np.arange(301) % 2, np.random.default_rng(1).random(301), 0.0), 40),
    "one-holds-nearly-all": (np.array([1e-6, 1e6, 1e-6, 1e-5]), 3),
    "more-draws-than-chunks": (np.random.default_rng(2).random(64), 60),
    "one-item": (np.array([3.0]), 1),
    "from-1e-300-to-1e300": (10.0 ** np.linspace(-300, 300, 61), 20),
    "subnormal": (np.arange(1, 50) * 5e-324, 10),
}
CASES = [pytest.param(*case, id=name) for name, case in TABLE.items()]


def same(found, wanted, rtol=0.0):
    """Equal draws, and estimates equal to `rtol`: they contain sums, which are rounded chunk by chunk."""
    assert torch.equal(found.indices.cpu(), wanted.indices.cpu())
    assert torch.equal(found.values.cpu(), wanted.values.cpu())
    torch.testing.assert_close(found.weights.cpu(), wanted.weights.cpu(), rtol=rtol, atol=0)
    torch.testing.assert_close(
        found.inclusion_probabilities.cpu(), wanted.inclusion_probabilities.cpu(), rtol=rtol, atol=0
    )
    assert found.total == pytest.approx(wanted.total, rel=rtol, abs=0)
    assert found.threshold == wanted.threshold or (
        math.isnan(found.threshold) and math.isnan(wanted.threshold)
    )


# --------------------------------------------------------------------------------------- the definition, in Python


def word(seed, stream, index):
    return int(random_bits(seed, stream, 1, index)[0])


def first_time(seed, item):
    """-log(1 - u) by Python's own logarithm."""
    field = word(seed, "weighted_sample.first", item // 4) >> 16 * (item % 4) & 0xFFFF
    u = Fraction((field << 52) + (word(seed, "weighted_sample.rest", item) >> 12), 2**68) + Fraction(1, 2**69)
    return -math.log1p(-float(u)) if u < Fraction(1, 2) else -math.log(1 - u)


def later_times(seed, item):
    time = first_time(seed, item)
    for j in itertools.count():
        yield time
        bits = word(seed, "weighted_sample.again", (item << 66) + j)
        time += -math.log1p(-(bits + 0.5) / 2**64)


def oracle(weights, k, seed, replacement, start=0):
    """The k first arrivals: items in order, by one list of all of them."""
    arrivals = []
    for i, w in enumerate(weights):
        if w > 0:
            times = itertools.islice(later_times(seed, start + i), k if replacement else 1)
            arrivals += [(Fraction(time) / Fraction(float(w)), start + i) for time in times]
    return [item for _, item in sorted(arrivals)[:k]]


@pytest.mark.parametrize("method", RACES)
@pytest.mark.parametrize("start", [0, 5, 2**24 - 3, 2**40 - 3])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_draws_are_the_first_arrivals(method, start, seed):
    weights = np.random.default_rng(seed % 97).pareto(1.0, 40)
    weights[::7] = 0
    drawn = weighted_sample(weights, 12, method=method, seed=seed, start=start)
    assert drawn.indices.tolist() == oracle(weights, 12, seed, method == "with-replacement", start)


def test_many_arrivals_of_one_item():
    """An item that is drawn hundreds of times passes through many Philox blocks."""
    weights = np.array([1.0, 1e4, 0.0, 30.0])
    drawn = weighted_sample(weights, 300, method="with-replacement", seed=3)
    assert drawn.indices.tolist() == oracle(weights, 300, 3, True)


def test_exponential_is_accurate_to_three_units_in_the_last_place():
    edges = [0, 1, 19194, 19195, 32767, 32768, 65534, 65535]
    rests = [0, 1, 2**51, 2**52 - 1, *np.random.default_rng(0).integers(0, 2**52, 20).tolist()]
    fields, rest = (
        np.array(column, dtype=np.uint64) for column in zip(*itertools.product(edges, rests), strict=True)
    )
    found = _race.exponential(fields, rest)
    with localcontext() as context:
        context.prec = 60
        # Half a unit each from u, 2 + f, the quotient, the series and the products.
        for field, bits, value in zip(fields.tolist(), rest.tolist(), found.tolist(), strict=True):
            u = (Decimal((field << 52) + bits) + Decimal("0.5")) / Decimal(2**68)
            assert abs(Decimal(value) + (1 - u).ln()) <= 3 * Decimal(math.ulp(value))


@given(
    times=st.lists(st.floats(1e-21, 50), min_size=2, max_size=2),
    weights=st.lists(st.floats(5e-324, 1.7e308), min_size=2, max_size=2),
)
def test_keys_are_in_the_order_of_exact_quotients(times, weights):
    keys = _race.arrival_keys(np.array(times), np.array(weights)).tolist()
    exact = [Fraction(t) / Fraction(w) for t, w in zip(times, weights, strict=True)]
    if keys[0] != keys[1]:
        assert (keys[0] < keys[1]) == (exact[0] < exact[1])
    else:  # both rounded to the same 53 bits
        assert abs(exact[0] - exact[1]) <= min(exact) * Fraction(1, 2**52)
    for key, quotient in zip(keys, exact, strict=True):
        if Fraction(2) ** -1000 < quotient < Fraction(2) ** 1000:
            assert _race.time_of(key) == pytest.approx(float(quotient), rel=2**-52)


@pytest.mark.parametrize("step", [1, 40, 60, 10**9])
def test_words_of_scattered_items_are_those_of_the_stream(step):
    """Dense and sparse indices take different routes."""
    index = 2**40 - 7 + step * np.arange(50)
    found = _philox.words_at(11, "x", index)
    assert found.tolist() == [word(11, "x", int(i)) for i in index]
    blocks = _philox.philox_blocks(2**64 - 1, "y", index % 5, index)
    assert blocks.T.ravel().tolist() == [
        word(2**64 - 1, "y", (int(i) << 66) + 4 * int(i % 5) + j) for i in index for j in range(4)
    ]


# ----------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize(("weights", "k"), CASES)
@pytest.mark.parametrize("method", RACES)
def test_chunks_and_threads_change_nothing(weights, k, method, monkeypatch):
    wanted = weighted_sample(weights, k, method=method, seed=1)
    threads = torch.get_num_threads()
    for chunk, workers in ((2, 1), (3, 3), (7, 2), (64, 2)):
        monkeypatch.setattr(_first_arrivals, "_CHUNK", chunk)
        torch.set_num_threads(workers)
        found = weighted_sample(weights, k, method=method, seed=1)
        torch.set_num_threads(threads)
        same(found, wanted, rtol=1e-13)  # two sums of at most 500 terms


@pytest.mark.parametrize(("weights", "k"), CASES)
def test_systematic_chunks_change_nothing(weights, k, monkeypatch):
    wanted = weighted_sample(weights, k, method="systematic", seed=1)
    for chunk in (2, 3, 64):
        monkeypatch.setattr("kernel_distill.kernels.sampling.CHUNK", chunk)
        same(weighted_sample(weights, k, method="systematic", seed=1), wanted)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), replacement=st.booleans(), start=st.sampled_from([0, 3, 2**24 - 40, 2**40 - 40]))
def test_any_shards_in_any_order_give_the_same_sample(data, replacement, start):
    weights = np.random.default_rng(5).pareto(1.0, 80)
    weights[10:20] = 0
    method = RACES[replacement]
    wanted = weighted_sample(weights, 15, method=method, seed=8, start=start)
    cuts = sorted({0, 80, *data.draw(st.lists(st.integers(0, 80), max_size=6))})
    parts = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    workers = [WeightedSampler(15, seed=8, replacement=replacement) for _ in range(3)]
    for turn, (low, high) in enumerate(parts):
        workers[turn % 3].update(weights[low:high], start + low)
    same(workers[1].merge(workers[0]).merge(workers[2]).result(), wanted, rtol=1e-14)


@pytest.mark.parametrize("method", RACES)
def test_weights_elsewhere_do_not_move_an_item(method):
    """A vector of zeros before, of any length, is the same as a later start."""
    weights = np.random.default_rng(0).random(50)
    for before in (1, 15, 16, 17, 1000):
        padded = weighted_sample(np.concatenate([np.zeros(before), weights]), 9, method=method, seed=2)
        same(weighted_sample(weights, 9, method=method, seed=2, start=before), padded, rtol=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [-900, -1, 1, 900])
def test_a_power_of_two_times_the_weights_changes_nothing(method, power):
    weights = np.random.default_rng(0).random(50)
    wanted = weighted_sample(weights, 9, method=method, seed=2)
    found = weighted_sample(weights * 2.0**power, 9, method=method, seed=2)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.weights, wanted.weights)
    assert found.total == wanted.total * 2.0**power


@pytest.mark.parametrize("method", RACES)
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(method):
    weights = np.random.default_rng(0).random(300)
    large = weighted_sample(weights, 100, method=method, seed=4)
    for k in (1, 2, 50, 99):
        assert torch.equal(weighted_sample(weights, k, method=method, seed=4).indices, large.indices[:k])


@pytest.mark.parametrize("place", places("weighted_sample"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", RACES)
def test_every_backend_draws_the_same(place, dtype, method):
    backend, device = place
    for n, k, start in ((1, 1, 0), (31, 5, 3), (129, 100, 2**40 - 64), (70_000, 1000, 16), (70_000, 3, 5)):
        weights = torch.from_numpy(np.random.default_rng(n).pareto(1.0, n) + 0.01).to(dtype)
        wanted = weighted_sample(weights.double(), k, method=method, seed=7, start=start, backend="torch")
        found = weighted_sample(weights.to(device), k, method=method, seed=7, start=start, backend=backend)
        assert found.indices.device.type == device
        same(found, wanted, rtol=1e-12)  # sums of 70,000 terms in different orders


def test_arrays_of_all_kinds(monkeypatch):
    weights = np.random.default_rng(0).integers(1, 100, 40)
    wanted = weighted_sample(weights.astype(np.float64), 6, seed=0)
    frozen = weights.astype(np.float32)
    frozen.flags.writeable = False
    strided = torch.from_numpy(np.repeat(weights, 3).astype(np.float32))[1::3]
    monkeypatch.setattr(weighted_sampler, "PIECE", 7)  # read-only arrays are copied in parts
    for other in (
        weights.tolist(),
        weights.astype(np.uint8),
        frozen,
        strided,
        strided.half(),
        frozen[::-1][::-1],
    ):
        same(weighted_sample(other, 6, seed=0), wanted, rtol=1e-15)


def test_streams_and_seeds_are_independent_draws():
    weights = np.ones(10_000)
    sets = [
        set(weighted_sample(weights, 1000, seed=seed, stream=stream).indices.tolist())
        for seed, stream in ((0, "a"), (1, "a"), (0, "b"))
    ]
    for one, other in itertools.combinations(sets, 2):
        # Hypergeometric: 100 in common on average, standard deviation 9.
        assert 55 < len(one & other) < 145


# ------------------------------------------------------------------------------------------------- what comes back


def test_all_positive_weights_drawn():
    weights = np.array([0.0, 3.0, 0.0, 1e-300, 5.0, -0.0])
    drawn = weighted_sample(weights, 3, seed=0)
    assert sorted(drawn.indices.tolist()) == [1, 3, 4]
    assert drawn.inclusion_probabilities.tolist() == [1, 1, 1]
    assert drawn.weights.tolist() == [1, 1, 1]
    assert drawn.threshold == math.inf
    assert drawn.total == 8.0


@pytest.mark.parametrize("method", METHODS)
def test_zero_is_never_drawn(method):
    """Not even where the sixteen bits are zero, which pass any filter."""
    bits = random_bits(0, "weighted_sample.first", 2**15).view(np.uint16)
    weights = np.ones(2**17)
    assert (bits == 0).any()
    weights[bits == 0] = 0
    drawn = weighted_sample(weights, int(weights.sum()) - 5, method=method, seed=0)
    assert (weights[drawn.indices.numpy()] > 0).all()


@pytest.mark.parametrize(("weights", "k"), CASES)
def test_inclusion_probabilities_follow_their_formulas(weights, k):
    drawn = weighted_sample(weights, k, seed=0)
    scale = (
        2.0**1000 if weights.max() < 1e-300 else 1.0
    )  # where the arrival times themselves are beyond float64
    tau = weighted_sample(weights * scale, k, seed=0).threshold
    exact = [
        float(Fraction(v * scale) * Fraction(tau)) if tau < math.inf else tau for v in drawn.values.tolist()
    ]
    # One rounding each of the threshold, the product and the difference.
    np.testing.assert_allclose(drawn.inclusion_probabilities.numpy(), -np.expm1(-np.array(exact)), rtol=1e-14)
    again = weighted_sample(weights, k, method="with-replacement", seed=0)
    shares = k * weights[again.indices.numpy()] / weights.sum()
    np.testing.assert_allclose(again.inclusion_probabilities.numpy(), shares, rtol=1e-13)
    np.testing.assert_allclose(again.weights.numpy(), 1 / shares, rtol=1e-13)


@pytest.mark.parametrize(("weights", "k"), CASES)
def test_systematic_counts_are_the_shares_rounded_up_or_down(weights, k):
    shares = k * (weights / weights.max()) / (weights / weights.max()).sum()
    for seed in range(20):
        drawn = weighted_sample(weights, k, method="systematic", seed=seed)
        assert len(drawn.indices) == k
        assert torch.equal(drawn.indices, drawn.indices.sort().values)
        counts = np.bincount(drawn.indices, minlength=len(weights))
        # Weights are rounded to 2^-60 of the largest or better; a share that is an integer may be missed by that.
        assert (np.abs(counts - shares) < 1 + 1e-12).all()
        np.testing.assert_allclose(
            drawn.inclusion_probabilities.numpy(), shares[drawn.indices.numpy()], rtol=1e-9, atol=1e-15
        )


@pytest.mark.parametrize("place", places("weighted_sample"))
@pytest.mark.parametrize(
    ("weights", "k", "message"),
    [
        pytest.param([1.0, np.nan], 1, r"finite and non-negative: item 8 is nan", id="nan"),
        pytest.param([1.0, 2.0, np.inf], 1, r"item 9 is inf", id="infinite"),
        pytest.param([1.0, -2.0], 1, r"item 8 is -2", id="negative"),
        pytest.param([-np.inf, np.inf], 1, r"item 7 is -inf", id="both-infinities"),
        pytest.param([0.0, 0.0], 1, r"all weights are zero", id="all-zero"),
        pytest.param([], 1, r"all weights are zero", id="empty"),
        pytest.param([1.0, 0.0, 2.0], 3, r"k = 3 draws .* only 2 are positive", id="too-few-positive"),
        pytest.param([1.5e308, 1.5e308], 1, r"sum to more than float64", id="sum-overflows"),
    ],
)
def test_bad_weights(place, weights, k, message):
    backend, device = place
    tensor = torch.tensor(weights, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=message):
        weighted_sample(tensor, k, seed=0, start=7, backend=backend)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param([1.0, np.nan], r"item 8 is nan", id="nan"),
        pytest.param([1.0, -2.0], r"item 8 is -2", id="negative"),
        pytest.param([0.0, 0.0], r"all weights are zero", id="all-zero"),
        pytest.param([], r"all weights are zero", id="empty"),
    ],
)
def test_bad_weights_systematically(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_sample(weights, 1, method="systematic", seed=0, start=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"k": 0}, r"`k` must be an integer of at least 1, got 0", id="k-zero"),
        pytest.param({"k": 1.0}, r"`k` must be an integer of at least 1, got 1.0", id="k-float"),
        pytest.param({"k": True}, r"`k` must be an integer", id="k-bool"),
        pytest.param({"method": "alias"}, r"`method` must be one of", id="method"),
        pytest.param({"seed": -1}, r"`seed` must be an integer in", id="seed"),
        pytest.param({"start": -1}, r"`start` must be an integer in", id="start-negative"),
        pytest.param({"start": 2**62}, r"`start` must be an integer in", id="start-too-far"),
        pytest.param({"weights": np.ones((2, 2))}, r"must be a vector, got shape \(2, 2\)", id="matrix"),
        pytest.param({"weights": [1j]}, r"must be real", id="complex"),
        pytest.param({"weights": ["a"]}, r"must be an array of numbers", id="text"),
        pytest.param({"backend": "triton"}, r"'triton' was asked for", id="backend"),
        pytest.param({"backend": "cuda"}, r"'cuda' was asked for", id="backend-cuda"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments(change, message, method):
    arguments = {"weights": np.ones(3), "k": 1, "seed": 0, "method": method, **change}
    with pytest.raises(ValueError, match=message):
        weighted_sample(arguments.pop("weights"), arguments.pop("k"), **arguments)


def test_systematic_samples_have_a_largest_size():
    with pytest.raises(ValueError, match="at most 2147483647 draws"):
        weighted_sample([1.0], 2**31, method="systematic", seed=0)


def test_items_are_seen_once():
    sampler = WeightedSampler(1, seed=0).update([1.0, 2.0]).update([3.0])  # 0, 1 and 2
    sampler.update([1.0], 10)
    for start, length in ((0, 1), (2, 1), (1, 4), (9, 2), (10, 1)):
        with pytest.raises(ValueError, match=r"overlap with .* seen before: number them with `start`"):
            sampler.update(np.ones(length), start)
    with pytest.raises(ValueError, match="overlap"):
        sampler.merge(WeightedSampler(1, seed=0).update([1.0]))
    same(
        sampler.update(np.ones(7), 3).result(),
        weighted_sample([1.0, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1], 1, seed=0),
    )


@pytest.mark.parametrize(
    "change", [{"k": 3}, {"seed": 1}, {"replacement": True}, {"stream": "other"}], ids=str
)
def test_samplers_that_differ_are_not_merged(change):
    (name,) = change
    other = WeightedSampler(**{"k": 2, "seed": 0, **change})
    with pytest.raises(ValueError, match=f"must agree: `{name}` is"):
        WeightedSampler(2, seed=0).merge(other)


def test_nothing_seen():
    with pytest.raises(ValueError, match="all weights are zero"):
        WeightedSampler(1, seed=0).update([]).result()


# ----------------------------------------------------------------------------------------------------------- losses

n, c = 131, 10
LOGITS = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (n, c)))
CLASSES = torch.from_numpy(np.random.default_rng(1).integers(0, c, n))
SOFT = torch.softmax(torch.from_numpy(np.random.default_rng(2).normal(size=(n, c))), 1)
LOSSES = [
    pytest.param("cross-entropy", CLASSES, id="classes"),
    pytest.param("cross-entropy", SOFT, id="soft"),
    pytest.param("squared", SOFT, id="squared"),
]


def as_type(targets, dtype):
    return targets.to(dtype) if targets.is_floating_point() else targets


@pytest.mark.parametrize(("loss", "targets"), LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_losses(loss, targets, dtype):
    z, t = LOGITS.to(dtype), as_type(targets, dtype)
    found = row_losses(z, t, loss=loss)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    z, t = z.double().numpy().astype(np.longdouble), t.double().numpy().astype(np.longdouble)
    if loss == "squared":
        wanted = 0.5 * np.square(z - t).sum(1)
    elif targets is SOFT:
        wanted = (t * (np.log(np.exp(z).sum(1, keepdims=True)) - z)).sum(1)
    else:
        others = np.exp(z - np.take_along_axis(z, CLASSES[:, None].numpy(), 1)).sum(1) - 1
        wanted = np.log1p(others)
    wanted = torch.from_numpy(wanted.astype(np.float64))
    # Ten terms; logits up to 15 are rounded, and so is their exponent: 32 eps relative to the loss and to the logits.
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=32 * eps, atol=32 * eps if targets is SOFT else 0)


def test_small_losses_keep_their_digits():
    z = torch.tensor([[80.0, 0.0, 0.0], [40.0, 0.0, -torch.inf], [30.0, 0.0, 1.0]])
    wanted = [2 * math.exp(-80), math.exp(-40), math.exp(-30) + math.exp(-29)]
    torch.testing.assert_close(
        row_losses(z, torch.zeros(3, dtype=torch.int64)).double(),
        torch.tensor(wanted).double(),
        rtol=1e-6,
        atol=0,
    )
    assert row_losses(torch.ones(2, 1), torch.zeros(2, dtype=torch.int32)).tolist() == [
        0,
        0,
    ]  # a single class


@pytest.mark.parametrize(("loss", "targets"), LOSSES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_sampling_by_loss_is_sampling_by_the_losses(loss, targets, method, dtype):
    z, t = LOGITS.to(dtype), as_type(targets, dtype)
    options = {"method": method, "seed": 6, "start": 2**40 - 100}
    wanted = weighted_sample(row_losses(z, t, loss=loss), 20, stream="sample_by_loss", **options)
    for budget in (1, 16 * c * 7, 2**20):
        same(sample_by_loss(z, t, 20, loss=loss, memory_budget=budget, **options), wanted, rtol=1e-14)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_a_lone_row_is_summed_like_the_others(loss):
    """Threads would share its sum, in another order."""
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (3, 40_000))).float()
    t = torch.softmax(torch.from_numpy(np.random.default_rng(1).normal(size=(3, 40_000))), 1).float()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    whole = row_losses(z, t, loss=loss)
    parts = torch.cat([row_losses(z[i : i + 1], t[i : i + 1], loss=loss) for i in range(3)])
    torch.set_num_threads(threads)
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("place", places("sample_by_loss"))
@pytest.mark.parametrize(("loss", "targets"), LOSSES)
def test_every_backend_samples_by_loss(place, loss, targets):
    """Losses differ in their last digits between devices, so draws are compared by what they estimate."""
    backend, device = place
    if backend == "cuda" and targets.ndim == 2 and loss == "cross-entropy":
        pytest.skip("the fused kernel takes no soft targets")
    z, t = LOGITS.float().to(device), as_type(targets, torch.float32).to(device)
    found = sample_by_loss(z, t, n // 2, loss=loss, seed=0, backend=backend)
    losses = row_losses(z, t, loss=loss)
    torch.testing.assert_close(found.values.float(), losses[found.indices], rtol=1e-5, atol=1e-6)
    assert found.total == pytest.approx(float(losses.double().sum()), rel=1e-5)
    assert len(set(found.indices.tolist())) == n // 2


@pytest.mark.parametrize(
    ("outputs", "targets", "options", "message"),
    [
        pytest.param(LOGITS, CLASSES[:5], {}, r"must be 131 classes, .* got 5", id="too-few-classes"),
        pytest.param(
            LOGITS, SOFT[:, :5], {}, r"must be \(131, 10\) or 131 integer classes", id="other-width"
        ),
        pytest.param(LOGITS, CLASSES.double(), {}, r"integer classes, got torch.float64", id="float-classes"),
        pytest.param(LOGITS, CLASSES, {"loss": "squared"}, r"must be \(131, 10\), got", id="classes-squared"),
        pytest.param(LOGITS, SOFT.float(), {}, r"cast one of them", id="dtypes"),
        pytest.param(
            LOGITS, CLASSES + 1, {}, r"classes must be 0 ... 9, but `targets` go from 1 to 10", id="class"
        ),
        pytest.param(LOGITS, CLASSES - 1, {}, r"go from -1 to 8", id="negative-class"),
        pytest.param(LOGITS, -SOFT, {}, r"some are negative", id="negative-probability"),
        pytest.param(LOGITS, CLASSES, {"loss": "hinge"}, r"`loss` must be one of", id="loss"),
        pytest.param(LOGITS, CLASSES, {"method": "alias"}, r"`method` must be one of", id="method"),
        pytest.param(LOGITS, CLASSES, {"backend": "cuda"}, r"'cuda' was asked for", id="backend"),
        pytest.param(LOGITS[:, 0], CLASSES, {}, r"must be a matrix with samples as rows", id="vector"),
        pytest.param(LOGITS[:, :0], CLASSES, {}, r"have no columns", id="no-columns"),
        pytest.param(LOGITS * torch.nan, CLASSES, {}, r"item 0 is nan", id="nan"),
        pytest.param(
            LOGITS.masked_fill(LOGITS > 8, torch.inf), CLASSES, {}, r"finite and non-negative", id="inf"
        ),
    ],
)
def test_bad_losses(outputs, targets, options, message):
    with pytest.raises(ValueError, match=message):
        sample_by_loss(outputs, targets, 3, seed=0, **options)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_losses_stay_within_their_budget():
    code = """
import json, re, sys, torch
from kernel_distill.kernels.loss_sampling import sample_by_loss
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
z, y = torch.empty(1_000_000, 100).normal_(), torch.arange(1_000_000) % 100
before = peak()
sample_by_loss(z, y, 1000, seed=0, memory_budget=int(sys.argv[1]))
print(json.dumps((peak() - before) / 2**10))
"""

    def peak_mib(budget):
        done = subprocess.run([sys.executable, "-c", code, str(budget)], capture_output=True, check=True)
        return json.loads(done.stdout)

    # Beside the budget: libraries loaded on first use, and the race's 10 MB.
    assert peak_mib(16 * 2**20) < 16 + 64
    assert peak_mib(2**30) > 200  # or the budget means nothing
