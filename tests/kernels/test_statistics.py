"""Sums of products of features against float64 and exact numbers, at sizes around panels and tiles."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels import gram_add_, mirror_upper_
from kernel_distill.kernels.statistics import statistics_add_

from .peak import PeakMemory
from .places import INTERPRETED, SIZES, places

PLACES = places("statistics_add_")
# Around one panel and around two; 800 has a narrow third panel.
PANELS = (1, 31, 383, 384, 385, 800)
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


# --- gram_add_ and mirror_upper_


@pytest.mark.parametrize("p", PANELS)
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


@pytest.mark.parametrize("p", PANELS)
def test_mirror_reads_the_upper_triangle_only(p):
    gram = poisoned(p)
    assert np.array_equal(mirror_upper_(gram.clone()).numpy(), from_upper(gram))


@pytest.mark.parametrize("p", PANELS)
def test_mirror_twice_is_mirror_once(p):
    once = mirror_upper_(poisoned(p))
    assert torch.equal(mirror_upper_(once.clone()), once)


@pytest.mark.parametrize("p", PANELS)
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
def test_shapes_of_gram_add_are_checked(gram, features):
    with pytest.raises(ValueError, match=r"`gram` must be \(p, p\) and `features` \(n, p\), got"):
        gram_add_(torch.zeros(gram), torch.zeros(features))


def test_dtypes_of_gram_add_are_checked():
    with pytest.raises(ValueError, match=r"torch.float64 but `features` are torch.float32: cast"):
        gram_add_(torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 4))


# --- statistics_add_

# Of a product both of whose factors are rounded, relative to it. The interpreter truncates to bfloat16.
ROUNDING = {
    "high": 0.0,
    "medium": (1 + 2.0**-11) ** 2 - 1,
    "low": (1 + 2.0 ** (-7 if INTERPRETED else -8)) ** 2 - 1,
}


def problem(n, p, k, weighted=False, dtype=torch.float32):
    """F, Y and w: float64 numbers that `dtype` holds."""
    w = rows(n, 1, 5, dtype).double()[:, 0].abs() if weighted else None
    return rows(n, p, 3, dtype).double(), rows(n, k, 4, dtype).double(), w


def sums(F, Y, w=None):
    w = torch.ones(len(F), dtype=torch.float64) if w is None else w
    return (F.T * w) @ F, (F.T * w) @ Y


def run(place, F, Y, w=None, *, dtype=torch.float32, totals=None, **options):
    """Statistics added to `totals`, or to zeros; G with NaN below its diagonal until it is mirrored."""
    backend, device = place
    p, k = F.shape[1], Y.shape[1]
    gram, cross = totals or (torch.zeros(p, p).double(), torch.zeros(p, k).double())
    gram = (gram.triu() + torch.tril(torch.full_like(gram, torch.nan), -1)).to(device)
    cross = cross.clone().to(device)
    arguments = [None if x is None else x.to(device, dtype) for x in (F, Y, w)]
    found = statistics_add_(gram, cross, *arguments, backend=backend, **options)
    assert found[0] is gram
    assert found[1] is cross
    return mirror_upper_(gram).cpu(), cross.cpu()


def check(found, F, Y, w=None, *, most=8192, rounding=0.0):
    """The bound of `kernels.statistics`."""
    factor = (min(len(F), most) + 8) * 2.0**-23 + rounding
    for a, b, size in zip(found, sums(F, Y, w), sums(F.abs(), Y.abs(), w), strict=True):
        assert ((a - b).abs() <= factor * size).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("n", "p", "k"), [*zip(SIZES, (33, 127, 129, 31, 1), (1, 3, 17, 70, 2), strict=True), (64, 96, 16)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_error_is_within_the_bound(place, n, p, k, weighted):
    F, Y, w = problem(n, p, k, weighted)
    for precision in ROUNDING:
        rounding = ROUNDING[precision] if place[0] == "triton" else 0.0  # plain torch runs all as "high"
        check(run(place, F, Y, w, precision=precision), F, Y, w, rounding=rounding)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_half_precision_lose_nothing(place, dtype, weighted):
    """Their products fit float32, and weights are applied in float32."""
    F, Y, w = problem(40, 35, 3, weighted, dtype)
    check(run(place, F, Y, w, dtype=dtype), F, Y, w)


@pytest.mark.parametrize("place", PLACES)
def test_precisions_differ_where_they_are_meant_to(place):
    F, Y, _ = problem(40, 33, 2)
    errors = {
        name: float((run(place, F, Y, precision=name)[0] / sums(F, Y)[0] - 1).diag().abs().max())
        for name in ROUNDING
    }
    assert errors["high"] < 1e-6
    if place[0] == "triton":
        assert 1e-5 < errors["medium"] < 1e-3 < errors["low"]
    else:
        assert errors["medium"] == errors["low"] == errors["high"]


@pytest.mark.parametrize("k", [1, 3, 70])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["exact", "high"])
def test_float64_is_the_separate_products_bit_for_bit(weighted, precision, k):
    F, Y, w = problem(50, 800, k, weighted, torch.float64)
    gram, cross = run(("torch", "cpu"), F, Y, w, dtype=torch.float64, precision=precision)
    if w is None:
        w = torch.ones(50, dtype=torch.float64)
    separate = gram_add_(torch.zeros(800, 800, dtype=torch.float64), F * w.sqrt()[:, None])
    assert torch.equal(gram, mirror_upper_(separate))
    WY = Y * w[:, None]
    narrow = (WY.T @ F).T  # the faster order, where there are few targets and more than one
    product = narrow if k == 3 else torch.zeros(800, k, dtype=torch.float64).addmm_(F.T, WY)
    assert torch.equal(cross, product)


def test_exact_multiplies_float32_features_in_float64():
    F, Y, w = problem(50, 30, 3, weighted=True)
    found = run(("torch", "cpu"), F, Y, w, precision="exact")
    for a, b, size in zip(found, sums(F, Y, w), sums(F.abs(), Y.abs(), w), strict=True):
        assert ((a - b).abs() <= 2 * 54 * 2.0**-53 * size).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("p", [1, 32, 33, 96, 513, 550 if INTERPRETED else 3000])
def test_every_entry_is_added_once(place, p):
    """Around tiles and bands of tiles, even and odd numbers of them: exact numbers, so no entry hides."""
    F, Y = torch.arange(1.0, p + 1, dtype=torch.float64)[None], torch.full((1, 1), 3.0, dtype=torch.float64)
    gram, cross = run(place, F, Y)
    assert torch.equal(gram, F.T @ F)
    assert torch.equal(cross, 3 * F.T)


@pytest.mark.parametrize("place", PLACES)
def test_one_pass_is_the_gram_of_both(place):
    """F'Y is the corner of [F Y]'[F Y]."""
    F, Y, w = problem(70, 40, 5, weighted=True)
    _, cross = run(place, F, Y, w)
    both, _ = run(place, torch.cat([F, Y], dim=1), Y, w)
    _, size = sums(F.abs(), Y.abs(), w)
    assert ((both[:40, 40:] - cross).abs() <= 2 * 78 * 2.0**-23 * size).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_totals_are_kept_in_float64(place, dtype):
    """Sums of 512 squares of 181 are float32 numbers, that of 2001 is not; nor is what was there before."""
    F, Y = torch.full((2001, 3), 181.0).double(), torch.full((2001, 1), -181.0).double()
    totals = torch.full((3, 3), 2.0**40 + 1, dtype=torch.float64), torch.full((3, 1), 0.5).double()
    gram, cross = run(place, F, Y, dtype=dtype, totals=totals, rows=512)
    assert (gram == 2.0**40 + 1 + 2001 * 181**2).all()
    assert (cross == 0.5 - 2001 * 181**2).all()


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=6, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 50), max_size=3), most=st.integers(10, 60), budget=st.integers(9000, 20_000)
)
def test_any_cut_of_the_rows_gives_the_same_statistics(place, cuts, most, budget):
    F, Y, w = problem(50, 35, 2, weighted=True)
    totals = None
    for start, stop in itertools.pairwise([0, *sorted(cuts), 50]):
        part = slice(start, stop)
        totals = run(place, F[part], Y[part], w[part], totals=totals, rows=most, memory_budget=budget)
    check(totals, F, Y, w, most=most)


@pytest.mark.parametrize("place", PLACES)
def test_whole_weights_repeat_rows(place):
    F, Y, _ = problem(20, 33, 2)
    w = torch.arange(20.0, dtype=torch.float64) % 4
    found = run(place, F, Y, w)
    check(found, *(x.repeat_interleave(w.long(), dim=0) for x in (F, Y)))


@pytest.mark.parametrize("place", PLACES)
def test_columns_of_any_size_keep_their_accuracy(place):
    F, Y, _ = problem(40, 20, 2)
    F = F * 2.0 ** torch.linspace(-60, 60, 20, dtype=torch.float64).round()
    found = run(place, F, Y)
    allowed = sums(F.abs(), Y.abs())
    fits = allowed[0] < 1e38  # float32 holds the products
    error = (found[0] - sums(F, Y)[0]).abs()
    assert (error <= 48 * 2.0**-23 * allowed[0])[fits].all()
    assert fits.float().mean() > 0.9
    assert ((found[1] - sums(F, Y)[1]).abs() <= 48 * 2.0**-23 * allowed[1]).all()


@pytest.mark.parametrize("place", PLACES)
def test_statistics_repeat_bit_for_bit_and_strides_do_not_matter(place):
    F, Y, w = problem(33, 35, 3, weighted=True)
    first, again = run(place, F, Y, w), run(place, F, Y, w)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for view in (F.T.contiguous().T, torch.cat([F, F], dim=1)[:, :35], F.repeat_interleave(2, dim=0)[::2]):
        check(run(place, view, Y.T.contiguous().T, w), F, Y, w)


@pytest.mark.parametrize("place", PLACES)
def test_offsets_beyond_32_bits(place):
    """Rows 2^30 numbers apart, of which memory is only ever touched where they lie."""
    F, Y, _ = problem(3, 16, 2, dtype=torch.float16)
    device = place[1]
    if device == "cpu":
        store = torch.from_numpy(np.zeros(2 * 2**30 + 16, dtype=np.float16))
    else:
        store = torch.zeros(2 * 2**30 + 16, dtype=torch.float16, device=device)
    far = store.as_strided((3, 16), (2**30, 1))
    far.copy_(F)
    gram, cross = (torch.zeros(16, size, dtype=torch.float64, device=device) for size in (16, 2))
    statistics_add_(gram, cross, far, Y.to(device).half(), backend=place[0])
    check((mirror_upper_(gram).cpu(), cross.cpu()), F, Y)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("n", "p", "k"), [(0, 3, 2), (3, 0, 2), (3, 4, 0)])
def test_empty(place, n, p, k):
    F, Y, _ = problem(n, p, k)
    check(run(place, F, Y), F, Y)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("weighted", [False, True])
def test_temporaries_stay_within_the_budget(place, weighted):
    small = INTERPRETED  # where tiles are slow
    n, p, k = (200, 40, 2) if small else (3000, 500, 5)
    backend, device = place
    panel = 384 * p * 4  # the float32 product of plain torch
    budget = (24 << 10) if backend == "triton" else panel + n * p  # of 4 n p or more at once
    arguments = [x if x is None else x.to(device, torch.float32) for x in problem(n, p, k, weighted)]
    gram, cross = (torch.zeros(p, size, dtype=torch.float64, device=device) for size in (p, k))
    with PeakMemory() as memory:
        statistics_add_(gram, cross, *arguments, memory_budget=budget, backend=backend)
    kept = 12 << 10 if INTERPRETED else 0  # the interpreter holds the arguments of its last launch
    assert memory.peak <= budget + kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gram": torch.zeros(4, 3).double()},
            r"must be \(p, p\), \(p, k\), \(n, p\), \(n, k\) .* got \(4, 3\)",
        ),
        ({"cross": torch.zeros(3, 2).double()}, r"got \(4, 4\), \(3, 2\), \(5, 4\), \(5, 2\)"),
        ({"targets": torch.zeros(5)}, r"got \(4, 4\), \(4, 2\), \(5, 4\), \(5,\)"),
        ({"weights": torch.zeros(4)}, r"\(5, 2\) and \(4,\)"),
        ({"gram": torch.zeros(4, 4)}, "totals are kept in float64: `gram` is torch.float32"),
        ({"cross": torch.zeros(4, 2)}, "`gram` is torch.float64 but `cross` is torch.float32"),
        (
            {"targets": torch.zeros(5, 2).double()},
            "`features` is torch.float32 but `targets` is torch.float64",
        ),
        ({"weights": torch.zeros(5).double()}, "`features` is torch.float32 but `weights` is torch.float64"),
        ({"features": torch.zeros(5, 4, device="meta")}, "is on"),
        ({"weights": torch.tensor([1.0, 2, -3, 4, 5])}, "`weights` must not be negative, got -3"),
        ({"precision": "half"}, "`precision` must be one of 'exact', .*, got 'half'"),
        ({"rows": 0}, "`rows` and `memory_budget` must be positive, got 0"),
        ({"backend": "cuda"}, "statistics_add_ is not implemented in cuda"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        **{"gram": torch.zeros(4, 4).double(), "cross": torch.zeros(4, 2).double()},
        **{"features": torch.zeros(5, 4), "targets": torch.zeros(5, 2)},
        **change,
    }
    with pytest.raises(ValueError, match=message):
        statistics_add_(**arguments)


@pytest.mark.skipif(not INTERPRETED, reason="Triton is not interpreted")
def test_triton_says_what_it_cannot_do():
    F, Y = torch.zeros(5, 4), torch.zeros(5, 2)
    gram, cross = torch.zeros(4, 4).double(), torch.zeros(4, 2).double()
    with pytest.raises(ValueError, match="multiplies float32 or less"):
        statistics_add_(gram, cross, F, Y, precision="exact", backend="triton")
    with pytest.raises(ValueError, match="needs contiguous totals"):
        statistics_add_(torch.zeros(4, 8).double()[:, ::2], cross, F, Y, backend="triton")
