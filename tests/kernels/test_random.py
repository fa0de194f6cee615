"""Random numbers are a function of (seed, stream, index), for ever: an independent Philox and pinned values."""

import hashlib

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels import normal, random, random_bits, uniform

WORD = 2**64 - 1


def philox(seed, stream, block):
    """Four words of Philox-4x64-10 (Salmon et al. 2011, with their constants), in Python's integers."""
    key = [seed, int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")]
    counter = [block, 0, 0, 0]
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) & WORD, (key[1] + 0xBB67AE8584CAA73B) & WORD]
    return counter


@pytest.mark.parametrize(
    ("seed", "stream"),
    [
        pytest.param(0, "a", id="zero"),
        pytest.param(123456789, "fcnn.0", id="usual"),
        pytest.param(WORD, "", id="last"),
    ],
)
def test_bits_are_philox(seed, stream):
    # NumPy's generator steps its counter before the first block, so item i comes from block i // 4 + 1.
    wanted = [word for block in range(1, 6) for word in philox(seed, stream, block)]
    assert random_bits(seed, stream, 20).tolist() == wanted


# Written down once: a change here makes every stored seed mean another map.
@pytest.mark.parametrize(
    ("seed", "stream", "bits", "normals"),
    [
        pytest.param(
            0,
            "rows.holdout",
            [0x21D83909B6F3E8E3, 0xABC5C920E180CFFD, 0x2A392228B6C58BED],
            [-1.1160258054733276, 0.44263944029808044, -0.9743786454200745],
            id="holdout",
        ),
        pytest.param(
            1,
            "fcnn.0",
            [0x0D773ADEFB4509A9, 0x87D73E9CB468CB1B, 0x27BF5641C58F163F],
            [-1.6201450824737549, 0.07684888690710068, -1.0141175985336304],
            id="weights",
        ),
        pytest.param(
            WORD,
            "",
            [0xB842678484C2FFBB, 0x3C4162BFCCF91B97, 0xBA0D663E21E16E34],
            [0.5821383595466614, -0.7212667465209961, 0.6030640602111816],
            id="last-seed",
        ),
    ],
)
def test_pinned_values(seed, stream, bits, normals):
    assert random_bits(seed, stream, 3).tolist() == bits
    assert normal(seed, stream, 3).tolist() == normals
    # A word is a fraction of 2**64; cutting it to a float64 moves it by at most 2**-52.
    assert uniform(seed, stream, 3).tolist() == pytest.approx(
        [word / 2**64 for word in bits], rel=0, abs=2.0**-52
    )


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 10_000), count=st.integers(0, 40), seed=st.integers(0, WORD))
def test_any_slice_equals_the_whole(start, count, seed):
    whole = random_bits(seed, "slices", start + count)
    assert np.array_equal(random_bits(seed, "slices", count, start), whole[start:])
    assert torch.equal(uniform(seed, "slices", count, start), uniform(seed, "slices", start + count)[start:])
    assert torch.equal(normal(seed, "slices", count, start), normal(seed, "slices", start + count)[start:])


@pytest.mark.parametrize("draw", [pytest.param(uniform, id="uniform"), pytest.param(normal, id="normal")])
def test_items_are_numbered_in_c_order(draw):
    assert torch.equal(draw(3, "shape", (4, 5, 6)).flatten(), draw(3, "shape", 120))
    assert draw(3, "shape", (4, 0)).shape == (4, 0)
    assert draw(3, "shape", (4, 5)).dtype == torch.float64


def test_far_slices_need_no_numbers_before_them():
    far = 2**50 + 3
    # Block far // 4 + 1, from its word far % 4 on.
    wanted = [*philox(0, "far", far // 4 + 1)[far % 4 :], *philox(0, "far", far // 4 + 2)]
    assert random_bits(0, "far", 5, far).tolist() == wanted[:5]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((0, "a"), (0, "b"), id="streams"),
        pytest.param((0, "a"), (1, "a"), id="seeds"),
        pytest.param((0, "fcnn.1"), (0, "fcnn.11"), id="similar-names"),
    ],
)
def test_streams_are_unrelated(first, second):
    a, b = (normal(*key, 4000).numpy() for key in (first, second))
    assert not np.isin(random_bits(*first, 4000), random_bits(*second, 4000)).any()
    # The correlation of 4000 independent pairs has standard deviation 4000**-0.5.
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 * 4000**-0.5


def test_uniform_distribution():
    u = uniform(0, "distribution", 100_000).numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / len(u)) ** 0.5
    # Neighbours, and words of one block, are not related either.
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 * len(u) ** -0.5


def test_normal_distribution():
    z = normal(0, "distribution", 100_000).numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    # Standard deviations of the first four sample moments: 1, 2, 15, 96 over n (moments 2, 4, 6, 8 of a normal).
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * (variance / len(z)) ** 0.5


def test_normals_are_float32_numbers():
    z = normal(0, "weights", 1000)
    assert z.dtype == torch.float64
    assert torch.equal(z, z.float().double())


@pytest.mark.parametrize(
    "word",
    [pytest.param(0, id="smallest"), pytest.param(WORD, id="largest"), pytest.param(WORD >> 1, id="middle")],
)
def test_interval_is_open_at_the_extreme_words(word, monkeypatch):
    monkeypatch.setattr(random, "random_bits", lambda *args, **kwargs: np.array([word], dtype=np.uint64))
    u, z = random.uniform(0, "extreme", 1), random.normal(0, "extreme", 1)
    assert 0 < float(u) < 1
    assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(-1, id="negative"),
        pytest.param(2**64, id="too-large"),
        pytest.param(1.0, id="float"),
        pytest.param("1", id="text"),
        pytest.param(True, id="bool"),
        pytest.param(None, id="none"),
    ],
)
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\*\*64\)"):
        random_bits(seed, "a", 1)


def test_numpy_integers_are_seeds():
    assert np.array_equal(random_bits(np.int64(5), "a", 3), random_bits(5, "a", 3))
