"""What is particular to the Triton kernels on pairs of rows: precision modes, scales, halves of the tiles, bands."""

import math

import pytest
import torch

from kernel_distill.kernels.radial import (
    Cauchy,
    Gaussian,
    Matern,
    MixtureOfGaussians,
    RationalQuadratic,
    SquaredDistance,
)

from .places import INTERPRETED, places

pytest.importorskip("triton")

from kernel_distill.kernels._triton import _tiles
from kernel_distill.kernels._triton._tiles import tl, triton
from kernel_distill.kernels._triton.kernel_logsumexp import kernel_logsumexp
from kernel_distill.kernels._triton.kernel_matmul import kernel_matmul
from kernel_distill.kernels._triton.kernel_matrix import kernel_matrix

DEVICE = pytest.mark.parametrize(
    "device",
    [
        pytest.param(place.values[0][1], id=place.id, marks=place.marks)
        for place in places("kernel_matrix")
        if place.values[0][0] == "triton"
    ],
)
PRECISION = pytest.mark.parametrize("precision", ["high", "medium"])
KERNELS = [
    pytest.param(kernel, id=name)
    for name, kernel in {
        "gaussian": Gaussian(2.0),
        "cauchy": Cauchy(2.0),
        "matern-1/2": Matern(2.0, 0.5),
        "matern-3/2": Matern(2.0, 1.5),
        "matern-5/2": Matern(2.0, 2.5),
        "rational-quadratic": RationalQuadratic(2.0, 2000.0),
        "ladder": MixtureOfGaussians(1.0),
        "ladder-weighted": MixtureOfGaussians(1.0, (2.0, 4.0, 8.0, 8.0), (0.5, 0.0, 2.0, 1.0)),
        "mixture": MixtureOfGaussians(1.0, (1.0, 1.7, 5.0), (3.0, 0.0, 1.0)),
    }.items()
]
# The tiles of the interpreter are 32 x 32 and hold rows of up to 32 columns (16 in two halves); those of a GPU 128.
SIZES = [(1, 31, 3), (97, 33, 33)]
MORE = [(33, 129, 16), (65, 96, 130)]
if not INTERPRETED:
    SIZES += [*MORE, (1025, 2049, 100), (2047, 1100, 300), (513, 700, 3072)]


def rows(n, d, seed=0, device="cpu"):
    # Most distances are near the bandwidths, some are small.
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * (2.5 / math.sqrt(2 * d))
    values[1::5] = values[: len(values[1::5])] + 0.01 * values[1::5]
    return values.to(device)


def distances(X, Y):
    """Squared, by direct differences in float64."""
    return ((X.double().cpu()[:, None] - Y.double().cpu()[None]) ** 2).sum(-1)


def allowed_distance(X, Y, precision):
    """How far a squared distance may be off.

    "high": products are right to 2^-21 |x||y|, norms and sums to as much again. Else both factors of 2 x.y are off by
    at most half a unit of float16 each, 2^-11.
    """
    size = X.double().cpu().square().sum(1)[:, None] + Y.double().cpu().square().sum(1)
    return (2.0**-21 if precision == "high" else 2 * 2.0**-11) * size


def bounds(kernel, X, Y, precision, same, leave_one_out=False, log=False):
    """The least and the largest value that rounding allows each entry of K: profiles fall with the distance.

    Beside that of the distance, a few units of float32; but a ladder of squarings, of lower precisions, multiplies one
    unit by up to 256.
    """
    s, wrong = distances(X, Y), allowed_distance(X, Y, precision)
    near, far = (s - wrong).clamp(min=0), s + wrong
    if same:
        near.fill_diagonal_(0)
        far.fill_diagonal_(0)
    f = kernel.log_profile if log else kernel.profile
    slack = 3e-6 if precision == "high" else 1e-4
    low, high = (f(t, *kernel.parameters(s)) for t in (far, near))
    low, high = (low - slack, high + slack) if log else (low * (1 - slack), high * (1 + slack) + 1e-37)
    if leave_one_out:
        low.fill_diagonal_(-math.inf if log else 0.0)
        high.fill_diagonal_(-math.inf if log else 0.0)
    return low, high


def options(precision, same=False, leave_one_out=False, memory_budget=None):
    return {
        "same": same,
        "leave_one_out": leave_one_out,
        "precision": precision,
        "memory_budget": memory_budget,
    }


@DEVICE
@PRECISION
@pytest.mark.parametrize("kernel", KERNELS)
def test_matrix(kernel, precision, device):
    for n, m, d in SIZES:
        X, Y = rows(n, d, device=device), rows(m, d, seed=1, device=device)
        for same in (False, True):
            K = kernel_matrix(
                kernel, X, X if same else Y, same=same, precision=precision, psd_safe=False
            ).cpu()
            low, high = bounds(kernel, X, X if same else Y, precision, same)
            assert (low <= K).all()
            assert (high >= K).all()
            assert not same or torch.equal(K, K.T)


@DEVICE
@PRECISION
@pytest.mark.parametrize(("n", "m", "d"), SIZES + MORE if INTERPRETED else SIZES)
def test_squared_distances(n, m, d, precision, device):
    X, Y = rows(n, d, device=device), rows(m, d, seed=1, device=device)
    s = kernel_matrix(SquaredDistance(), X, Y, same=False, precision=precision, psd_safe=False).cpu()
    assert ((s - distances(X, Y)).abs() <= allowed_distance(X, Y, precision)).all()


@DEVICE
def test_low_is_medium(device):
    X, V = rows(40, 20, device=device), rows(40, 2, seed=1, device=device)
    for run in (
        lambda precision: kernel_matrix(Gaussian(), X, X, same=True, precision=precision, psd_safe=True),
        lambda precision: kernel_matmul(Gaussian(), X, X, V, **options(precision)),
        lambda precision: kernel_logsumexp(Gaussian(), X, X, None, **options(precision)),
    ):
        assert torch.equal(run("low"), run("medium"))


@DEVICE
@PRECISION
@pytest.mark.parametrize("kernel", [KERNELS[4], KERNELS[7]])
@pytest.mark.parametrize("columns", [0, 1, 3, 20])
def test_products(kernel, columns, precision, device):
    for n, m, d in SIZES:
        X, Y = rows(n, d, device=device), rows(m, d, seed=1, device=device)
        for same, left_out in ((False, False), (True, False), (True, True)):
            V = rows(n if same else m, columns, seed=2, device=device) if columns else None
            found = kernel_matmul(
                kernel, X, X if same else Y, V, **options(precision, same, left_out, 1 << 12)
            ).cpu()
            low, high = bounds(kernel, X, X if same else Y, precision, same, left_out)
            v = torch.ones(low.shape[1], 1) if V is None else V.cpu()
            up, down = v.double().clamp(min=0), v.double().clamp(max=0)
            # Beside the bounds: sums of m float32 terms, and for several columns rounding of both factors to float16.
            rounding = (1e-6 if precision == "high" or columns < 2 else 2 * 2.0**-11) * (
                high @ v.double().abs()
            )
            assert (found >= low @ up + high @ down - rounding).all()
            assert (found <= high @ up + low @ down + rounding).all()


@DEVICE
@PRECISION
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3], KERNELS[5], KERNELS[8]])
def test_logsumexp(kernel, precision, device):
    for n, m, d in SIZES[1:]:
        X, Y = (
            20 * rows(n, d, device=device),
            20 * rows(m, d, seed=1, device=device),
        )  # where sums would underflow
        for same, left_out, weighted in ((False, False, True), (True, False, False), (True, True, True)):
            weights = rows(n if same else m, 1, seed=2, device=device)[:, 0]
            weights[::3] = -math.inf
            found = kernel_logsumexp(
                *(kernel, X, X if same else Y, weights if weighted else None),
                **options(precision, same, left_out, 1 << 12),
            ).cpu()
            least, most = bounds(kernel, X, X if same else Y, precision, same, left_out, log=True)
            a = weights.double().cpu() if weighted else 0.0
            low, high = torch.logsumexp(least + a, 1), torch.logsumexp(most + a, 1)
            slack = 2e-6 * (1 + high.abs())
            assert (found >= low - slack).all()
            assert (found <= high + slack).all()


@DEVICE
def test_logsumexp_without_a_term(device):
    X = rows(1, 4, device=device)
    left_out = kernel_logsumexp(Matern(), X, X, None, **options("high", same=True, leave_one_out=True))
    weightless = kernel_logsumexp(
        Matern(), X, X, torch.full((1,), -math.inf, device=device), **options("high")
    )
    assert left_out.tolist() == weightless.tolist() == [-math.inf]


@DEVICE
@PRECISION
@pytest.mark.parametrize("power", [-30, 30])
def test_units_do_not_matter(power, precision, device):
    """Rows and bandwidth times a power of two: every step scales exactly, so the values are the same bits."""
    X, Y = rows(33, 40, device=device), rows(40, 40, seed=1, device=device)
    plain, scaled = (
        kernel_matrix(Matern(b, 1.5), c * X, c * Y, same=False, precision=precision, psd_safe=False)
        for c, b in ((1.0, 2.0), (2.0**power, 2.0 ** (1 + power)))
    )
    assert torch.equal(plain, scaled)


@DEVICE
def test_small_rows_beside_large_ones(device):
    """One scale serves all rows: tiny ones lose what is below 2^-39 of the largest entry, and no more."""
    X = rows(40, 20, device=device)
    X[0] *= 2.0**12
    X[1:20] *= 2.0**-8
    s = kernel_matrix(SquaredDistance(), X, X, same=True, precision="high", psd_safe=False).cpu()
    lost = 2.0**-39 * X.abs().max().cpu() * X.abs().sum(1).cpu()
    allowed = allowed_distance(X, X, "high") + 4 * (lost[:, None] + lost)
    assert allowed[1, 2] < 1e-4 * s[1, 2]  # there is something to see
    assert ((s - distances(X, X)).abs() <= allowed).all()


@DEVICE
@PRECISION
def test_psd_safe_distances_are_those_of_rounded_rows(precision, device):
    X = rows(50, 70, device=device)
    power = 2.0 ** (15 - torch.frexp(X.abs().max()).exponent)
    seen = (X * power).half().double()
    if precision == "high":
        seen += ((X * power).double() - seen).half().double()
    seen = (seen / power).cpu()
    s = kernel_matrix(SquaredDistance(), X, X, same=True, precision=precision, psd_safe=True).cpu()
    wanted = ((seen[:, None] - seen[None]) ** 2).sum(-1)
    # "medium" products of the rounded rows are exact but for float32 sums; "high" leaves out 2^-22 of each.
    assert ((s - wanted).abs() <= allowed_distance(X, X, "high")).all()


@DEVICE
@pytest.mark.filterwarnings("ignore:invalid value|All-NaN:RuntimeWarning")  # of the interpreter
def test_bad_rows_spoil_their_own_entries_only(device):
    X = rows(70, 40, device=device)
    X[3, 5], X[40, 0] = math.nan, math.inf
    good = torch.ones(70, dtype=torch.bool)
    good[[3, 40]] = False
    K = kernel_matrix(Gaussian(2.0), X, X, same=True, precision="high", psd_safe=False).cpu()
    low, high = bounds(Gaussian(2.0), X[good], X[good], "high", True)
    clean = K[good][:, good]
    assert ((low <= clean) & (clean <= high)).all()
    assert K[3, good].isnan().all()
    sums = kernel_matmul(Gaussian(2.0), X[good], X, None, **options("high")).cpu()
    assert sums.isnan().all()  # nothing is hidden
    logs = kernel_logsumexp(Gaussian(2.0), X, X[good], None, **options("high")).cpu()
    assert logs[3].isnan()
    assert logs[good].isfinite().all()


@DEVICE
@pytest.mark.parametrize("columns", [0, 1, 3])
def test_bands_and_runs_change_nothing(columns, device):
    """A band as small as one row of tiles, or all at once: sums over columns are the same, in the same order."""
    n, d = (97, 40) if INTERPRETED else (3000, 400)
    X = rows(n, d, device=device)
    V = rows(n, columns, seed=1, device=device) if columns else None
    once = kernel_matmul(Gaussian(2.0), X, X, V, **options("medium", same=True))
    again = kernel_matmul(Gaussian(2.0), X, X, V, **options("medium", same=True))
    banded = kernel_matmul(Gaussian(2.0), X, X, V, **options("medium", same=True, memory_budget=1))
    assert torch.equal(once, again)
    # The same float32 partial sums, added up in float64 and rounded once.
    assert (once - banded).abs().max() <= 2.0**-23 * once.abs().max()


@DEVICE
def test_half_the_tiles_or_all(device):
    """Rows long enough for half the tiles against Y given apart, which takes all of them."""
    n, d = (97, 40) if INTERPRETED else (2100, 600)
    X = rows(n, d, device=device)
    assert _tiles.half_pays(d, _tiles.gpu(X.device))
    for V in (None, rows(n, 1, seed=1, device=device), rows(n, 5, seed=1, device=device)):
        half = kernel_matmul(Gaussian(2.0), X, X, V, **options("high", same=True))
        full = kernel_matmul(Gaussian(2.0), X, X.clone(), V, **options("high"))
        # `full` has no exact zeros on the diagonal: bounds of either are within 3e-6 of the sum of absolute terms.
        terms = kernel_matmul(
            Gaussian(2.0), X, X, None if V is None else V.abs(), **options("high", same=True)
        )
        assert ((half - full).abs() <= 6e-6 * terms).all()


@DEVICE
def test_no_rows_no_columns_no_features(device):
    empty, two = torch.zeros(0, 3, device=device), torch.ones(2, 3, device=device)
    matrix = {"same": False, "precision": "high", "psd_safe": False}
    assert kernel_matrix(Gaussian(), empty, two, **matrix).shape == (0, 2)
    assert torch.equal(
        kernel_matmul(Gaussian(), two, empty, None, **options("high")).cpu(), torch.zeros(2, 1)
    )
    assert kernel_matmul(Gaussian(), two, two, two[:, :0], **options("high")).shape == (2, 0)
    assert (kernel_logsumexp(Gaussian(), two, empty, None, **options("high")) == -math.inf).all()
    flat = torch.zeros(2, 0, device=device)
    assert (kernel_matrix(Gaussian(), flat, flat, **{**matrix, "same": True}) == 1).all()


@DEVICE
def test_sums_of_distances_are_refused(device):
    X = rows(4, 3, device=device)
    for run in (kernel_matmul, kernel_logsumexp):
        with pytest.raises(ValueError, match="use backend 'torch'"):
            run(SquaredDistance(), X, X, None, **options("high", same=True))


@triton.jit
def _triangle_kernel(p_index, p_row, p_column, n, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    row, column = _tiles.triangle(tl.load(p_index + o, mask=o < n, other=0))
    tl.store(p_row + o, row, mask=o < n)
    tl.store(p_column + o, column, mask=o < n)


@DEVICE
def test_triangle(device):
    """Every entry of a small triangle, and the corners of the rows of large ones."""
    index = list(range(100))
    for row in (1000, 4095, 4096, 4097, 46339, 65534):
        index += [row * (row + 1) // 2 + k for k in (-1, 0, 1, row, row + 1)]
    index = torch.tensor([i for i in index if i < 2**31 - 1], dtype=torch.int32)
    row, column = torch.zeros_like(index).to(device), torch.zeros_like(index).to(device)
    _triangle_kernel[(1,)](index.to(device), row, column, len(index), BLOCK=256)
    row, column = row.cpu().long(), column.cpu().long()
    assert torch.equal(row * (row + 1) // 2 + column, index.long())
    assert (column >= 0).all()
    assert (column <= row).all()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_more_entries_than_32_bits_count():
    n = 47_000  # n^2 > 2^31; 8.8 GB
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of GPU memory")
    X = rows(n, 8, device="cuda")
    K = kernel_matrix(Gaussian(2.0), X, X, same=True, precision="high", psd_safe=False)
    low, high = bounds(Gaussian(2.0), X[-50:], X, "high", False)
    for last in (K[-50:], K[:, -50:].T):
        off = torch.arange(n)[None, :] != torch.arange(n - 50, n)[:, None]
        assert (((low <= last.cpu()) & (last.cpu() <= high)) | ~off).all()
