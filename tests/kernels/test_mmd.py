"""MMD² against direct differences in float64, its laws, its derivatives, groups, and memory."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from kernel_distill.kernels.kernel_matmul import kernel_row_sums
from kernel_distill.kernels.mmd import DEFAULT_RATIOS, _slower, median_bandwidth, mmd2
from kernel_distill.kernels.radial import (
    Gaussian,
    Laplacian,
    Matern,
    MixtureOfGaussians,
    RationalQuadratic,
    SquaredDistance,
)

from .peak import PeakMemory
from .places import SIZES, places
from .radial_cases import CASES, KERNELS, normals, oracle, rounding
from .transforms import check_derivatives

PLACES = pytest.mark.parametrize("place", places("mmd2"))
BIASED = pytest.mark.parametrize(
    "biased", [pytest.param(False, id="unbiased"), pytest.param(True, id="biased")]
)
DTYPES = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
GAUSSIAN = CASES[0]
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def direct(case, X, Y, bandwidth, biased):
    """The definition, from all pairs, in float64."""
    xx, yy, xy = (oracle(case, a, b, bandwidth) for a, b in ((X, X), (Y, Y), (X, Y)))
    n, m = len(X), len(Y)
    if biased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    return (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * xy.mean()


def allowed(case, X, Y, bandwidth, dtype):
    """Four averages of values that are off by `rounding`, and by (n + 1) units when rows of them are added up."""
    rows = max(len(X), len(Y))
    worst = max(rounding(case, a, b, bandwidth, dtype).max() for a, b in ((X, X), (Y, Y), (X, Y)))
    at_zero = float(case.formula(np.zeros(()), np.zeros(()), bandwidth))
    return 4 * (worst + (rows + 1) * UNIT[dtype] * at_zero) + 1e-14


def tensors(place, *arrays):
    return [torch.from_numpy(a).to(place[1]) for a in arrays]


@PLACES
@BIASED
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(case, dtype, biased, place):
    if place[0] == "triton" and (dtype == np.float64 or case.name == "laplacian"):
        pytest.skip("Triton leaves float64 and 1-norm distances to torch")
    X, Y = normals(33, 5).astype(dtype), (normals(31, 5, seed=1) + 0.3).astype(dtype)
    found = mmd2(*tensors(place, X, Y), case.make(1.3), biased=biased, backend=place[0])
    assert found.shape == ()
    assert found.dtype == torch.float64
    assert abs(found.item() - direct(case, X, Y, 1.3, biased)) <= allowed(case, X, Y, 1.3, dtype)


@PLACES
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", [1, 16, 70])
def test_awkward_sizes(n, d, place):
    X, Y = normals(n, d).astype(np.float32), normals(65, d, seed=1).astype(np.float32)
    b = float(np.sqrt(d))
    for biased in (True, False)[: 1 + (n > 1)]:
        found = mmd2(*tensors(place, X, Y), Gaussian(b), biased=biased, backend=place[0])
        assert abs(found.item() - direct(GAUSSIAN, X, Y, b, biased)) <= allowed(GAUSSIAN, X, Y, b, np.float32)


@PLACES
def test_many_tiles(place):
    """More than one tile on every side, in torch by the budget; "medium" has rows of eleven bits."""
    X, Y = normals(100, 33).astype(np.float32), normals(150, 33, seed=1).astype(np.float32)
    for precision, unit in (("high", 1), ("medium", 2.0**13 if place[0] == "triton" else 1)):
        found = mmd2(
            *tensors(place, X, Y), Gaussian(6.0), precision=precision, memory_budget=1 << 16, backend=place[0]
        )
        error = abs(found.item() - direct(GAUSSIAN, X, Y, 6.0, False))
        assert error <= unit * allowed(GAUSSIAN, X, Y, 6.0, np.float32)


@PLACES
@BIASED
@pytest.mark.parametrize("case", KERNELS)
def test_equal_samples(case, biased, place):
    """Exactly zero in torch, where the three sums are one computation; else to rounding."""
    if place[0] == "triton" and case.name == "laplacian":
        pytest.skip("not a case for Triton")
    for n in (33, 150 if place[0] == "torch" else 70):
        X = (normals(n, 7) + 3).astype(np.float32)
        found = mmd2(
            *tensors(place, X, X.copy()),
            case.make(2.0),
            biased=biased,
            memory_budget=1 << 16,
            backend=place[0],
        )
        if not biased:
            assert found < 0  # (mean over different pairs) - (mean over all pairs), twice
        elif place[0] == "torch":
            assert found == 0
        else:
            centred = X - X.mean(0)
            assert abs(found.item()) <= allowed(case, centred, centred, 2.0, np.float32)


@PLACES
@BIASED
def test_order_of_rows_and_of_samples_does_not_matter(biased, place):
    X, Y = normals(70, 9).astype(np.float32), normals(41, 9, seed=1).astype(np.float32)
    shuffled = np.random.default_rng(2).permutation(70)
    kernel = RationalQuadratic(2.0, 0.7)
    one, *others = (
        mmd2(*tensors(place, a, b), kernel, biased=biased, backend=place[0]).item()
        for a, b in ((X, Y), (Y, X), (X[shuffled], Y))
    )
    case = next(case for case in CASES if case.name == "rational-quadratic")
    assert max(abs(one - other) for other in others) <= 2 * allowed(case, X, Y, 2.0, np.float32)


def test_of_squared_distances_it_is_that_of_the_means():
    """k = -|x - y|²/2 has the same MMD as the inner product, whose features are the rows themselves."""
    X, Y = torch.from_numpy(normals(80, 6)), torch.from_numpy(normals(50, 6, seed=1) + 1)
    wanted = (X.mean(0) - Y.mean(0)).square().sum()
    torch.testing.assert_close(-mmd2(X, Y, SquaredDistance(), biased=True) / 2, wanted, rtol=1e-13, atol=0)


@PLACES
def test_a_change_of_variance_is_seen(place):
    half = normals(60, 3).astype(np.float32)
    X = np.concatenate([half, -half])
    assert mmd2(*tensors(place, X, 2 * X), Gaussian(2.0), backend=place[0]) > 0.02
    assert abs(mmd2(X, 2 * X, SquaredDistance(), biased=True)) < 1e-6  # the means are equal


def test_biased_from_unbiased():
    """biased = (1 - 1/n) unbiased + (2/n)(k(0) - mean k(x, y)) for n = m."""
    X, Y = normals(300, 4), normals(300, 4, seed=1)
    for kernel in (Gaussian(1.5), Laplacian(3.0), MixtureOfGaussians(0.7)):
        unbiased, biased = (mmd2(X, Y, kernel, biased=biased).item() for biased in (False, True))
        mean = kernel_row_sums(kernel, X, Y).mean().item() / 300
        at_zero = 5.0 if isinstance(kernel, MixtureOfGaussians) else 1.0
        assert biased == pytest.approx((1 - 1 / 300) * unbiased + (at_zero - mean) / 150, rel=0, abs=1e-13)
        assert biased > 0


@PLACES
def test_unbiased_is_zero_on_average_over_all_splits(place):
    """Exactly so over the 70 ways to split eight points, done in one call."""
    Z = normals(8, 3).astype(np.float32)
    splits = [list(chosen) for chosen in itertools.combinations(range(8), 4)]
    others = [sorted(set(range(8)) - set(chosen)) for chosen in splits]
    found = mmd2(*tensors(place, Z[splits], Z[others]), Gaussian(1.0), backend=place[0])
    assert found.shape == (70,)
    assert found.abs().max() > 0.05
    assert abs(found.mean().item()) <= allowed(GAUSSIAN, Z, Z, 1.0, np.float32)


@PLACES
def test_offset_costs_no_digits(place):
    """Rows far from the origin, each group elsewhere: as exact as the rows themselves."""
    far = np.array([1e4, -3e4], np.float32)[:, None, None]
    X = (normals(2, 40, 12) + far).astype(np.float32)
    Y = (normals(2, 30, 12, seed=1) + far).astype(np.float32)
    found = mmd2(*tensors(place, X, Y), Gaussian(3.0), backend=place[0]).tolist()
    for value, x, y in zip(found, X, Y, strict=True):
        middle = x.astype(np.float64).mean(0)
        # A middle rounded at 3e4 moves both sides alike; distances are exact to the rounding of centred rows.
        bound = allowed(GAUSSIAN, x - middle, y - middle, 3.0, np.float32)
        assert abs(value - direct(GAUSSIAN, x, y, 3.0, False)) <= bound


@PLACES
@BIASED
def test_groups_are_a_loop(biased, place):
    """Equal and ragged groups, rows in any order, more kinds of size than one."""
    kernel = Matern(2.0, 1.5)
    X, Y = normals(190, 6).astype(np.float32), normals(101, 6, seed=1).astype(np.float32)
    generator = np.random.default_rng(3)
    of_x = generator.permutation(np.repeat([0, 1, 2, 3], [2, 33, 5, 150]))
    of_y = generator.permutation(np.repeat([0, 1, 2, 3], [40, 2, 50, 9]))
    found = mmd2(*tensors(place, X, Y), kernel, biased=biased, groups=(of_x, of_y), backend=place[0])
    case = next(case for case in CASES if case.name == "matern-3/2")
    for c, value in enumerate(found.tolist()):
        x, y = X[of_x == c], Y[of_y == c]
        assert abs(value - direct(case, x, y, 2.0, biased)) <= allowed(case, x, y, 2.0, np.float32)
    equal = mmd2(
        *tensors(place, X.reshape(5, 38, 6), Y[:100].reshape(5, 20, 6)),
        kernel,
        biased=biased,
        backend=place[0],
    )
    for c, value in enumerate(equal.tolist()):
        x, y = X[38 * c : 38 * c + 38], Y[20 * c : 20 * c + 20]
        assert abs(value - direct(case, x, y, 2.0, biased)) <= allowed(case, x, y, 2.0, np.float32)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 70), st.integers(2, 40)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
@example(sizes=[(3, 3), (40, 3), (3, 3), (4, 5)], seed=0)  # two kinds of size, whose order is no exchange
def test_any_groups_and_their_gradients_are_a_loop(sizes, seed):
    generator = np.random.default_rng(seed)
    of_x, of_y = (
        torch.from_numpy(generator.permutation(np.repeat(range(len(sizes)), [pair[k] for pair in sizes])))
        for k in (0, 1)
    )
    X, Y = (
        torch.from_numpy(generator.normal(size=(len(labels), 3))).requires_grad_() for labels in (of_x, of_y)
    )
    factors = torch.from_numpy(generator.normal(size=len(sizes)))
    sigma = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    together = mmd2(X, Y, Gaussian(sigma), groups=(of_x, of_y), memory_budget=1 << 18)
    apart = torch.stack([mmd2(X[of_x == c], Y[of_y == c], Gaussian(sigma)) for c in range(len(sizes))])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-13)
    inputs = (X, Y, sigma)
    one_by_one = torch.autograd.grad((factors * apart).sum(), inputs)
    for by_definition in (False, True):
        found = torch.autograd.grad(
            (factors * together).sum(), inputs, retain_graph=True, create_graph=by_definition
        )
        for one, other in zip(found, one_by_one, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_a_group_that_is_not_finite_spoils_no_other():
    X, Y = normals(3, 10, 4), normals(3, 12, 4, seed=1)
    clean = mmd2(X, Y, Gaussian(1.0))
    X[1, 3, 2] = np.nan
    found = mmd2(X, Y, Gaussian(1.0))
    assert found[1].isnan()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def by_differences(case, biased):
    """The definition as a function of rows and bandwidth that torch differentiates, without a matrix product."""

    def function(x, y, b):
        kernel = case.make(b)

        def values(a, c):
            difference = a[:, None] - c
            s = difference.abs().sum(-1) if kernel.metric == "manhattan" else difference.square().sum(-1)
            return kernel.profile(s, *kernel.parameters(s))

        xx, yy, xy = values(x, x), values(y, y), values(x, y)
        (n, m), skipped = (len(x), len(y)), 0 if biased else 1
        if not biased:
            xx, yy = xx - xx.diag().diag(), yy - yy.diag().diag()
        return xx.sum() / (n * (n - skipped)) + yy.sum() / (m * (m - skipped)) - 2 * xy.mean()

    return function


@PLACES
@pytest.mark.parametrize("case", KERNELS)
@BIASED
def test_gradient_against_direct_differences(case, biased, place):
    """Of tiles on and off the diagonal, in rows and bandwidth, in the same pass and by the definition."""
    device, float64 = place[1], torch.float64
    X, Y = (
        torch.from_numpy(normals(150, 3)).to(device),
        torch.from_numpy(normals(70, 3, seed=1) + 0.2).to(device),
    )
    sigma = torch.tensor(1.3, dtype=float64, device=device)
    inputs = [t.requires_grad_() for t in (X, Y, sigma)]

    value = mmd2(X, Y, case.make(sigma), biased=biased, memory_budget=1 << 20)
    wanted = torch.autograd.grad(by_differences(case, biased)(*inputs), inputs)
    at_once = torch.autograd.grad(3 * value, inputs, retain_graph=True)
    by_definition = torch.autograd.grad(3 * value, inputs, create_graph=True)
    for one, other, exact in zip(at_once, by_definition, wanted, strict=True):
        # Sums of 220 terms below 1/70, with 1 / (distance of two rows) before them at worst.
        torch.testing.assert_close(one, 3 * exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other, 3 * exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", KERNELS)
def test_gradient_of_equal_samples_is_zero(case):
    X, Y = (torch.from_numpy(normals(150, 3)).requires_grad_() for _ in range(2))
    value = mmd2(X, Y, case.make(1.3), biased=True, memory_budget=1 << 20)
    assert value == 0
    for gradient in torch.autograd.grad(value, (X, Y)):
        # Terms of size 1/150² and less, 600 of them for a row, cancel to their rounding.
        assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize(
    "case", [case for case in KERNELS if case.id not in ("cauchy", "rational-quadratic")]
)
def test_rows_far_apart_have_no_gradient(case):
    """Where every value but k(0) underflows, nothing pulls, and rounding must not either."""
    X, Y = (
        torch.from_numpy(normals(40, 3, seed=k).astype(np.float32) * 1e4).requires_grad_() for k in (0, 1)
    )
    value = mmd2(X, Y, case.make(0.1), biased=True)
    at_zero = float(case.formula(np.zeros(()), np.zeros(()), 0.1))
    assert value.item() == pytest.approx(at_zero * 2 / 40, rel=1e-7)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(value, (X, Y)))


@pytest.mark.parametrize("which", range(3))
def test_only_what_requires_a_gradient_gets_one(which):
    values = [
        *map(torch.from_numpy, (normals(40, 3), normals(30, 3, seed=1))),
        torch.tensor(1.3, dtype=torch.float64),
    ]
    every = [v.clone().requires_grad_() for v in values]
    some = [v.clone().requires_grad_(i == which) for i, v in enumerate(values)]
    all_three = torch.autograd.grad(mmd2(*every[:2], MixtureOfGaussians(every[2])), every)
    (found,) = torch.autograd.grad(mmd2(*some[:2], MixtureOfGaussians(some[2])), some[which])
    torch.testing.assert_close(found, all_three[which], rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", KERNELS)
@BIASED
def test_second_derivatives_and_forward_mode(case, biased):
    inputs = [
        torch.from_numpy(normals(70, 2)),
        torch.from_numpy(normals(40, 2, seed=1)),
        torch.tensor(1.3, dtype=torch.float64),
    ]
    directions = tuple(torch.from_numpy(normals(*t.shape, seed=2)) for t in inputs)

    def both(function):
        slopes = torch.func.jvp(function, tuple(inputs), directions)[1]
        return slopes, *torch.func.grad(
            lambda *t: sum(
                (g * v).sum()
                for g, v in zip(torch.func.grad(function, (0, 1, 2))(*t), directions, strict=True)
            ),
            (0, 1, 2),
        )(*inputs)

    found = both(lambda x, y, b: mmd2(x, y, case.make(b), biased=biased, memory_budget=1 << 18))
    for one, exact in zip(found, both(by_differences(case, biased)), strict=True):
        # Sums of 110 terms below 1/40 over the square of the distance of two rows, 0.01 at the least.
        torch.testing.assert_close(one, exact, rtol=1e-9, atol=1e-10)


def test_every_derivative():
    groups = (np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]))
    check_derivatives(
        lambda x, y, b: mmd2(x, y, MixtureOfGaussians(b, (1.0, 2.0)), groups=groups),
        *(normals(4, 1), normals(4, 1, seed=1), np.array(1.1)),
    )


def test_without_gradients_nothing_is_differentiated():
    X, Y, sigma = (
        torch.from_numpy(a).requires_grad_() for a in (normals(40, 3), normals(30, 3, seed=1), np.array(1.3))
    )
    with torch.no_grad():
        plain = mmd2(X, Y, Gaussian(sigma))
    assert not plain.requires_grad
    assert plain == mmd2(X, Y, Gaussian(sigma))


@PLACES
def test_derivatives_beside_a_kernel_without_them(place):
    """The value from the backend asked for, the gradient from the definition."""
    X, Y = (t.requires_grad_() for t in tensors(place, *(normals(2, 40, 5).astype(np.float32))))
    found = torch.autograd.grad(mmd2(X, Y, Gaussian(2.0), backend=place[0]), (X, Y))
    exact = torch.autograd.grad(mmd2(X, Y, Gaussian(2.0), precision="exact", backend="torch"), (X, Y))
    for one, other in zip(found, exact, strict=True):
        # Terms (x - y) k'(s) / 40, each relative to (|x| + |y|)² of about 20, summed over 80.
        torch.testing.assert_close(one, other, rtol=0, atol=80 * 20 * 2.0**-24 / 40)


def test_gradients_decide_the_backend():
    from kernel_distill.kernels._mmd import Sums

    X, Y = torch.zeros(3, 2), torch.zeros(3, 2, requires_grad=True)
    sums = Sums(Gaussian(), ((3,), (3,)), False, None)
    assert "gradient in the same pass" in _slower(X, Y, sums, "high")
    with torch.no_grad():
        assert _slower(X, Y, sums, "high") is None


@pytest.mark.parametrize("case", [KERNELS[0], KERNELS[7]])
def test_memory_of_value_and_gradient(case):
    """Within the budget, beside arrays of the size of the rows: no (n, m) array, which would be eleven budgets."""
    X, Y = (torch.from_numpy(normals(1200, 4, seed=k).astype(np.float32)).requires_grad_() for k in (0, 1))
    budget = 1 << 19
    with PeakMemory() as memory:
        mmd2(X, Y, case.make(1.0), memory_budget=budget).backward()
    assert budget / 8 < memory.peak < budget + 16 * X.nbytes < 4 * 1200 * 1200


def test_memory_of_further_derivatives():
    X, Y = (torch.from_numpy(normals(500, 2, seed=k).astype(np.float32)).requires_grad_() for k in (0, 1))
    with PeakMemory() as memory:
        value = mmd2(X, Y, Gaussian(1.0), memory_budget=1 << 16)
        (gradient,) = torch.autograd.grad(value, X, create_graph=True)
        gradient.square().sum().backward()
    assert memory.peak < 500 * 500 * 4


def test_the_budget_does_not_change_the_result():
    X, Y = normals(3, 130, 4), normals(3, 70, 4, seed=1)
    one, other = (mmd2(X, Y, memory_budget=budget) for budget in (1 << 16, 1 << 30))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_half_precision_is_summed_in_float32():
    X, Y = (torch.from_numpy(normals(40, 5, seed=k)).half() for k in (0, 1))
    assert mmd2(X, Y, Gaussian(2.0)) == mmd2(X.float(), Y.float(), Gaussian(2.0))


def test_default_kernel():
    X, Y = normals(40, 5), normals(30, 5, seed=1)
    kernel = MixtureOfGaussians(median_bandwidth(X, Y), DEFAULT_RATIOS)
    assert mmd2(X, Y) == mmd2(X, Y, kernel)
    sample = torch.from_numpy(X).requires_grad_()
    torch.testing.assert_close(
        *(torch.autograd.grad(mmd2(sample, Y, k), sample)[0] for k in (None, kernel)), rtol=0, atol=1e-16
    )


def test_median_bandwidth_is_the_median_distance():
    X, Y = normals(12, 5) + 1e3, normals(10, 5, seed=1) + 1e3
    Z = np.concatenate([X, Y])
    distances = np.linalg.norm(Z[:, None] - Z, axis=-1)[np.triu_indices(22, 1)]
    assert len(distances) % 2 == 1
    for found in (median_bandwidth(X, Y), median_bandwidth(Z)):
        assert found.item() == pytest.approx(np.median(distances), rel=1e-9)
    assert median_bandwidth(torch.from_numpy(Z).half() - 1000).dtype == torch.float32


def test_median_bandwidth_of_a_sample():
    Z = normals(3000, 8)
    whole, found = median_bandwidth(Z, sample=3000).item(), median_bandwidth(Z).item()
    assert found == pytest.approx(median_bandwidth(Z[:1000], Z[1000:]).item(), rel=1e-14)
    assert found != median_bandwidth(Z, seed=1).item()
    # Distances of 8-d normals: mean 3.94, deviation 0.97; their median over 500 rows is good to 0.97 / sqrt(500).
    assert abs(found - whole) < 4 * 0.97 / np.sqrt(500)


def test_programs_cover_every_pair_once():
    """Each pair of different rows of a group, on the upper side, in one strip of one program."""
    pytest.importorskip("triton")
    from kernel_distill.kernels._triton._tiles import KNOWN
    from kernel_distill.kernels._triton.mmd import jobs

    counts = ((5, 300, 64), (70, 1, 129))
    total = sum(map(sum, counts))
    starts = [
        np.cumsum((base, *of_side)).tolist()
        for base, of_side in zip((0, sum(counts[0])), counts, strict=True)
    ]
    for on, (BN, BM) in itertools.product(KNOWN, ((64, 128), (128, 64), (32, 32))):
        table, lengths = jobs(counts, BN, BM, on)
        seen = np.zeros((total, total), int)
        assert lengths.sum() == len(table)
        for segment, (top, bottom, left, end) in zip(np.repeat(range(9), lengths), table, strict=True):
            group, part = divmod(segment, 3)
            rows, columns = starts[int(part == 1)], starts[int(part > 0)]
            assert rows[group] <= top < bottom == rows[group + 1]
            assert columns[group] <= left < end <= columns[group + 1]
            seen[top : min(top + BN, bottom), left:end] += 1
        wanted = np.zeros_like(seen)
        for group in range(3):
            x, y = (slice(of_side[group], of_side[group + 1]) for of_side in starts)
            wanted[x, x] = wanted[y, y] = wanted[x, y] = 1
        assert (np.triu(seen, 1) == np.triu(wanted, 1)).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"X": np.zeros((1, 3))}, "needs 2 rows in every group, but group 0 of `X` has 1", id="one-row"
        ),
        pytest.param(
            {"Y": np.zeros((0, 3)), "biased": True}, "needs 1 row in every group, but .* `Y`", id="none"
        ),
        pytest.param({"Y": np.zeros((4, 2))}, "as many columns", id="columns"),
        pytest.param({"X": np.zeros(3)}, "`X` must be a matrix", id="one-axis"),
        pytest.param({"X": np.zeros((2, 4, 3))}, r"`X` must be \(C, n, d\) and `Y` \(C, m, d\)", id="axes"),
        pytest.param({"Y": np.zeros((4, 3), np.float32)}, "`Y` is torch.float32: cast", id="dtype"),
        pytest.param({"groups": (np.zeros(5, int), np.zeros(3, int))}, "`Y` must be 4 integers", id="labels"),
        pytest.param(
            {"groups": (np.zeros(5), np.zeros(4, int))}, "`X` must be 5 integers", id="float-labels"
        ),
        pytest.param(
            {"groups": (np.arange(5) - 1, np.zeros(4, int))}, "numbered from 0, got -1", id="negative"
        ),
        pytest.param(
            {"groups": (np.array([0, 0, 2, 2, 2]), np.array([0, 0, 2, 2]))},
            "group 1 of `X` has 0",
            id="empty-group",
        ),
        pytest.param({"memory_budget": 0}, "`memory_budget` must be a positive", id="budget"),
        pytest.param({"precision": "tf32"}, "`precision` must be one of", id="precision"),
        pytest.param({"backend": "cuda"}, "mmd2 is not implemented in cuda", id="backend"),
    ],
)
def test_bad_input(change, match):
    given = {"X": normals(5, 3), "Y": normals(4, 3), "kernel": Gaussian(), **change}
    with pytest.raises(ValueError, match=match):
        mmd2(given.pop("X"), given.pop("Y"), **given)


def test_bad_input_with_three_axes():
    X = normals(2, 5, 3)
    with pytest.raises(ValueError, match="three axes say what belongs together already"):
        mmd2(X, X, Gaussian(), groups=([0], [0]))
    with pytest.raises(ValueError, match="two rows, got 1 rows"):
        median_bandwidth(X[0, :1])
    with pytest.raises(ValueError, match="no bandwidth: most rows are equal"):
        mmd2(np.ones((3, 2)), np.ones((3, 2)))  # no distance to take a median of
