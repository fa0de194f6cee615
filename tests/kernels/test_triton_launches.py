"""How problems are cut into launches: tiles that fit, strips, bands, kernels as constants."""

import itertools
import math

import pytest
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels.radial import Cauchy, Gaussian, MixtureOfGaussians

pytest.importorskip("triton")

from kernel_distill.kernels._triton import _products, _sums, _tiles, radial
from kernel_distill.kernels._triton._tiles import triton


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 10_000), budget=st.integers(1, 1 << 20), row_bytes=st.integers(1, 1 << 14))
def test_bands_cover_the_rows_within_the_budget(n, budget, row_bytes):
    end = 0
    for first, high, top, bottom in _tiles.bands(n, 64, row_bytes, budget):
        assert (top, first) == (end, end // 64)
        assert bottom == min(n, (first + high) * 64)
        assert high == 1 or high * row_bytes <= budget
        end = bottom
    assert end == n


GPUS = [*_tiles.KNOWN, _tiles.Gpu(89, 99 << 10, 128), _tiles.Gpu(120, 99 << 10, 170)]


@pytest.mark.parametrize("on", GPUS, ids=lambda on: f"sm_{on.capability}")
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kernel", [Gaussian(), Cauchy()])
def test_tiles_fit_into_shared_memory(kernel, split, on):
    """Stages of the tiles that are loaded, and whatever stays."""
    form, number = radial.form(kernel, split), 4 if split else 2  # bytes, of one or two halves
    for d, t in itertools.product((1, 16, 64, 65, 128, 129, 512, 3072), (2, 16, 17, 1000)):
        for launch in (
            _tiles.tile(d, split, radial.crowding(form), on),
            _sums.tile(form, d, split, True, on),
            _products.tile(form, d, split, t, True, on),
        ):
            x, y = (number * launch[side] * launch["BK"] for side in ("BN", "BM"))
            v = number * launch["BM"] * launch.get("BT", 0)
            moving, still = (y + v, x) if launch.get("RESIDENT") else (x + y, v)
            assert launch["num_stages"] * moving + still <= on.shared, (d, t, launch)
            assert launch["BK"] >= 16


def test_strips_are_short_and_enough():
    on = _tiles.KNOWN[1]
    for high, wide in itertools.product((1, 7, 391, 7813), (1, 7, 391, 7813)):
        count = _tiles.strips(high, wide, on)
        assert 1 <= count <= wide
        assert triton.cdiv(wide, count) <= 64  # tiles whose float32 sums are added one after the other
        assert count == wide or high * count >= on.processors


def test_form_of_mixtures():
    """Terms of one ratio are one term, those without weight none; a ladder is squared unless accuracy is meant."""
    kernel = MixtureOfGaussians(1.0, (1.0, 2.0, 2.0, 4.0, 8.0), (1.0, 0.5, 0.25, 0.0, 2.0))
    assert radial.form(kernel, False) == ("gaussian", 8.0, (2.0, 0.75, 1.0), (1.0, 16.0, 64.0), (4, 2))
    assert radial.form(kernel, True)[4] == ()
    assert radial.form(MixtureOfGaussians(1.0, (1.0, 3.0)), False)[4] == ()


def test_powers_of_two_for_values():
    for weights in ((1.0,), (5.0,), (0.3, 0.2), (1e6,), (0.0,)):
        top = _products.largest_power(("gaussian", 1.0, weights, (1.0,), ()))
        assert sum(weights) * top <= 2**13
        assert math.frexp(top)[0] == 0.5
