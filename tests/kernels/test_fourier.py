"""Fourier features against float64, their derivatives, and the frequencies that one seed defines."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels.fourier import fourier_features
from kernel_distill.kernels.frequencies import FOURIER_KERNELS, FOURIER_VARIANTS, fourier_frequencies

from .peak import PeakMemory
from .places import INTERPRETED, SIZES, places

PLACES = places("fourier_features")
# Of a product both of whose factors are rounded, relative to it. The interpreter truncates to bfloat16.
ROUNDING = {
    "high": 0.0,
    "medium": (1 + 2.0**-11) ** 2 - 1,
    "low": (1 + 2.0 ** (-7 if INTERPRETED else -8)) ** 2 - 1,
}
OUTPUT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def problem(n, d, p, scale=1.0, seed=0, dtype=torch.float32):
    """X, A and b, float64 numbers that `dtype` holds."""
    rng = np.random.default_rng(seed)
    X, A, b = scale * rng.normal(size=(n, d)), rng.normal(size=(p, d)), rng.uniform(0, 2 * math.pi, p)
    return [torch.from_numpy(values).to(dtype).double() for values in (X, A, b)]


def oracle(X, A, b, paired=False):
    phase = X @ A.T + b
    return torch.cat([phase.cos(), phase.sin()], dim=1) if paired else phase.cos()


def bound(X, A, b, paired=False, rounding=0.0):
    """What `kernels.fourier` promises for float32 at scale 1: the phase, and the rounding of its cosine."""
    size = X.abs() @ A.abs().T
    error = (X.shape[1] + 8) * 2.0**-23 * (size + b.abs()) + rounding * size + 2.0**-22
    return torch.cat([error, error], dim=1) if paired else error


def run(place, X, A, b, dtype=torch.float32, out=None, **options):
    backend, device = place
    X, A = X.to(device, dtype), A.to(device, dtype)
    b = None if b is None else b.to(device, dtype)
    return fourier_features(X, A, b, dtype=out, backend=backend, **options).cpu().double()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("n", "d", "p"), [*zip(SIZES, (1, 129, 31, 33, 127), (33, 1, 127, 129, 31), strict=True), (64, 48, 64)]
)
@pytest.mark.parametrize("paired", [False, True])
def test_error_is_within_the_bound(place, n, d, p, paired):
    for scale, precision in ((1.0, "high"), (1e3, "high"), (10.0, "medium"), (1.0, "low")):
        X, A, b = problem(n, d, p, scale)
        found = run(place, X, A, b, paired=paired, precision=precision, scale=1.0)
        # Plain torch runs every precision as "high".
        rounding = ROUNDING[precision] if place[0] == "triton" else 0.0
        error = (found - oracle(X, A, b, paired)).abs()
        assert (error <= bound(X, A, b, paired, rounding)).all()


@pytest.mark.parametrize("place", PLACES)
def test_precisions_differ_where_they_are_meant_to(place):
    """Half precision is visible at the size of its rounding, and float32 well below it."""
    X, A, b = problem(33, 40, 33)
    errors = {
        name: float((run(place, X, A, b, precision=name, scale=1.0) - oracle(X, A, b)).abs().max())
        for name in ROUNDING
    }
    assert errors["high"] < 1e-5
    if place[0] == "triton":
        assert 1e-4 < errors["medium"] < 1e-2 < errors["low"]
    else:
        assert errors["medium"] == errors["low"] == errors["high"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("out", OUTPUT)
@pytest.mark.parametrize("paired", [False, True])
def test_output_of_half_precision(place, out, paired):
    X, A, b = problem(33, 31, 17)
    found = run(place, X, A, b, out=out, paired=paired, scale=0.5)
    allowed = (
        0.5 * bound(X, A, b, paired) + OUTPUT[out] * 0.5 + 2.0**-25
    )  # the last: below float16's normal numbers
    assert ((found - 0.5 * oracle(X, A, b, paired)).abs() <= allowed).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_of_half_precision_are_multiplied_exactly(place, dtype):
    X, A, b = problem(33, 31, 17, dtype=dtype)
    found = run(place, X, A, b, dtype=dtype, out=torch.float32, scale=1.0)
    assert ((found - oracle(X, A, b)).abs() <= bound(X, A, b)).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("paired", [False, True])
def test_default_scale_and_no_phases(place, paired):
    X, A, _ = problem(5, 3, 14)
    zero = torch.zeros(14, dtype=torch.float64)
    wanted = oracle(X, A, zero, paired) * math.sqrt(2 / (28 if paired else 14))
    found = run(place, X, A, None, paired=paired)
    assert found.shape == wanted.shape
    assert ((found - wanted).abs() <= bound(X, A, zero, paired)).all()


@pytest.mark.parametrize("place", PLACES)
def test_rows_of_any_size_keep_their_accuracy(place):
    """No overflow and no underflow: errors are relative to the phase, at the ends of the range of float32."""
    for exponent in (-60, 0, 40, 100):
        X, A, b = problem(5, 20, 7)
        X, A = X * 2.0**exponent, A * 2.0**-exponent
        found = run(place, X, A, b, scale=1.0)
        assert ((found - oracle(X, A, b)).abs() <= bound(X, A, b)).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("turns", [1, 1e3, 2.0**23, 2.0**30, 1e30])
def test_whole_turns_are_taken_off(place, turns):
    """Phases that are float32 numbers as they stand: nothing is lost but the rounding of the cosine."""
    phases = torch.linspace(-1, 1, 101, dtype=torch.float32).mul(2 * math.pi * turns).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    found = run(place, one, 0 * phases[:, None], phases, scale=1.0)
    # Two parts of the constant leave 2^-45; the interpreter rounds both operations of a fused one.
    allowed = 2.0**-22 + (2.0**-23 if INTERPRETED else 2.0**-45) * phases.abs()
    error = (found[0] - phases.cos()).abs()
    if turns < 1e30:
        assert (error <= allowed).all()
    assert (found.abs() <= 1 + 2.0**-22).all()  # NaN is not


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e8), seed=st.integers(0, 100))
def test_paired_features_have_norm_one_however_wrong_the_phase(place, scale, seed):
    X, A, b = problem(9, 5, 16, scale, seed)
    found = run(place, X, A, b, paired=True)
    # A sum of 32 squares, each off by at most 2^-21 of its share of it.
    assert ((found**2).sum(dim=1) - 1).abs().max() <= 2.0**-20


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("paired", [False, True])
def test_features_do_not_depend_on_the_memory_budget(place, paired):
    X, A, b = problem(21, 20, 33)
    options = {"paired": paired, "scale": 1.0, "out": torch.float16}
    whole = run(place, X, A, b, **options)
    for budget in (1, 3000):
        found = run(place, X, A, b, memory_budget=budget, **options)
        assert ((found - whole).abs() <= 2 * bound(X, A, b, paired) + 2.0**-11).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize("place", PLACES)
def test_a_row_that_is_not_finite_spoils_itself_alone(place):
    X, A, b = problem(40, 20, 33)
    clean = run(place, X, A, b)
    X[7, 3], X[33, 0] = torch.nan, torch.inf
    found = run(place, X, A, b)
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[7, 33]] = True
    assert found[bad].isnan().all()
    assert torch.equal(found[~bad], clean[~bad])


@pytest.mark.parametrize("place", PLACES)
def test_strides_repetition_and_numpy(place):
    X, A, b = problem(33, 20, 17)
    wanted = run(place, X, A, b)
    assert torch.equal(run(place, X, A, b), wanted)
    tall = X.repeat_interleave(2, dim=0)[::2]
    turned, other = X.T.contiguous().T, A.T.contiguous().T
    spaced = torch.stack([b, b], dim=1)[:, 0]
    for rows, frequencies, phases in ((tall, A, b), (turned, other, spaced)):
        found = run(place, rows, frequencies, phases)
        assert ((found - wanted).abs() <= bound(X, A, b)).all()
    if place[1] == "cpu":
        arrays = [values.float().numpy() for values in (X, A, b)]
        assert torch.equal(fourier_features(*arrays, backend=place[0]).double(), wanted)


@pytest.mark.parametrize("place", PLACES)
def test_offsets_beyond_32_bits(place):
    """Rows 2^30 numbers apart, of which memory is only ever touched where they lie."""
    X, A, b = problem(3, 16, 4, dtype=torch.float16)
    if place[1] == "cpu":
        store = torch.from_numpy(np.zeros(2 * 2**30 + 16, dtype=np.float16))
    else:
        store = torch.zeros(2 * 2**30 + 16, dtype=torch.float16, device=place[1])
    far = store.as_strided((3, 16), (2**30, 1))
    far.copy_(X)
    found = fourier_features(far, *(v.to(place[1]).half() for v in (A, b)), scale=1.0, backend=place[0])
    assert ((found.cpu().double() - oracle(X, A, b)).abs() <= bound(X, A, b)).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("n", "d", "p"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(place, n, d, p):
    X, A, b = problem(n, d, p)
    found = run(place, X, A, b, scale=1.0)
    assert found.shape == (n, p)
    assert ((found - oracle(X, A, b)).abs() <= 2.0**-22).all()


def test_exact_is_float64_from_float32():
    X, A, b = problem(20, 30, 40, 1e4)
    found = fourier_features(X.float(), A.float(), b.float(), precision="exact", scale=1.0)
    assert found.dtype == torch.float64
    size = X.abs() @ A.abs().T + b.abs()
    assert ((found - oracle(X, A, b)).abs() <= 2 * 38 * 2.0**-53 * size + 2.0**-51).all()


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_products_estimate_the_kernel(kernel):
    A, b = fourier_frequencies(kernel, 3, 20_000, length_scale=2.0)
    X = problem(6, 3, 1)[0]
    F = fourier_features(X, A, b)
    r = X[:, None] - X[None]
    wanted = (-(r / 2).square().sum(2) / 2).exp() if kernel == "gaussian" else (-r.abs().sum(2) / 2).exp()
    assert (F @ F.T - wanted).abs().max() < 4.5 * math.sqrt(
        1.5 / 20_000
    )  # a term has variance of at most 3/2


# --- derivatives


@pytest.mark.parametrize("budget", [1, 1 << 20])  # 1: one row after the other
@pytest.mark.parametrize("paired", [False, True])
def test_derivatives_of_both_modes_and_orders(paired, budget):
    tensors = [values.requires_grad_() for values in problem(3, 2, 4)]

    def features(*tensors):
        return fourier_features(*tensors, paired=paired, memory_budget=budget)

    assert torch.autograd.gradcheck(features, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(features, tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_derivatives_without_phases_and_through_casts(budget):
    X, A, _ = problem(3, 2, 4)
    for value in (X, A):
        value.requires_grad_()
    options = {"precision": "exact", "dtype": torch.float64, "memory_budget": budget}
    assert torch.autograd.gradcheck(lambda X, A: fourier_features(X, A, **options), (X, A))
    single = [value.detach().float().requires_grad_() for value in (X, A)]
    wanted = torch.autograd.grad(fourier_features(X, A, **options).square().sum(), (X, A))
    found = torch.autograd.grad(fourier_features(*single, **options).square().sum(), single)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=2**-22, atol=2**-22)


@pytest.mark.parametrize("budget", [1, 1 << 20])
@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, 0), (0, 0, None), (1, None, 0)])
@pytest.mark.parametrize("paired", [False, True])
def test_vmap_is_a_loop(in_dims, paired, budget):
    rng = np.random.default_rng(0)
    shapes = [(3, 2), (4, 2), (4,)]
    tensors = [
        torch.from_numpy(rng.normal(size=shape if dim is None else (*shape[:dim], 5, *shape[dim:])))
        for shape, dim in zip(shapes, in_dims, strict=True)
    ]

    def features(*tensors):
        return fourier_features(*tensors, paired=paired, memory_budget=budget)

    found = torch.vmap(features, in_dims)(*tensors)
    for i in range(5):
        item = [x if dim is None else x.select(dim, i) for x, dim in zip(tensors, in_dims, strict=True)]
        torch.testing.assert_close(found[i], features(*item), rtol=0, atol=1e-14)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("paired", [False, True])
def test_derivatives_of_every_backend(place, paired):
    """Float32 gradients against float64 ones; errors as for the features, times the cotangents and factors."""
    values = problem(33, 5, 17)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(33, 34 if paired else 17)))

    def grads(backend, tensors):
        tensors = [x.requires_grad_() for x in tensors]
        features = fourier_features(*tensors, paired=paired, backend=backend)
        first = torch.autograd.grad((features * weights.to(features)).sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        return [g.cpu().double() for g in (*first, *second)]

    backend, device = place
    found = grads(backend, [x.to(device, torch.float32) for x in values])
    for a, b in zip(found, grads("torch", [x.clone() for x in values]), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


# --- what cannot be done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.zeros(3)}, r"`X` must be a matrix with samples as rows"),
        ({"frequencies": torch.zeros(4, 3)}, "`X` and `frequencies` must have as many columns"),
        (
            {"frequencies": torch.zeros(4, 2).double()},
            "`X` is torch.float32 but `frequencies` is torch.float64",
        ),
        ({"phases": torch.zeros(5)}, r"`phases` must have shape \(4,\), one for each frequency, got \(5,\)"),
        ({"phases": torch.zeros(4).half()}, "`phases` is torch.float16: cast"),
        ({"precision": "best"}, "`precision` must be one of 'exact', 'high', 'medium', 'low', got 'best'"),
        ({"dtype": torch.int32}, "`dtype` must be a floating-point type, got torch.int32"),
        ({"memory_budget": 0}, "`memory_budget` must be a positive number of bytes, got 0"),
        ({"backend": "cuda"}, "'cuda' was asked for, but fourier_features is not implemented in cuda"),
        ({"X": "text"}, "`X` must be an array of numbers"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"X": torch.zeros(3, 2), "frequencies": torch.zeros(4, 2), **change}
    with pytest.raises(ValueError, match=message):
        fourier_features(**arguments)


@pytest.mark.skipif(not INTERPRETED, reason="Triton is not interpreted")
@pytest.mark.parametrize("options", [{"precision": "exact"}, {"dtype": torch.float64}])
def test_triton_refuses_float64(options):
    with pytest.raises(ValueError, match="computes and returns float32 or less"):
        fourier_features(torch.zeros(3, 2), torch.zeros(4, 2), backend="triton", **options)


# --- frequencies

DRAWN = [
    (kernel, variant)
    for kernel, variant in itertools.product(FOURIER_KERNELS, FOURIER_VARIANTS)
    if variant != "orthogonal" or kernel not in ("laplacian", "cauchy")
]


@pytest.mark.parametrize(
    ("kernel", "variant", "wanted"),
    [
        ("gaussian", "plain", [0.1378898322582245, 0.8144428730010986]),
        ("laplacian", "plain", [0.17760397493839264, 3.05320143699646]),
        ("cauchy", "paired", [0.12249184399843216, 1.1348788738250732]),
        ("matern-3/2", "orthogonal", [-0.14634716510772705, 0.1377973109483719]),
    ],
)
def test_one_seed_defines_the_frequencies_everywhere(kernel, variant, wanted):
    """Recorded numbers: the same on every machine, but for the last place (tan, log1p, QR)."""
    A, b = fourier_frequencies(kernel, 2, 4, length_scale=2.0, seed=3, variant=variant)
    assert A[0].tolist() == pytest.approx(wanted, rel=2**-23)
    if variant == "paired":
        assert b is None
    else:
        assert b.tolist() == pytest.approx(
            [3.0853688716888428, 0.2438843995332718, 1.1367311477661133, 5.675032615661621], rel=2**-23
        )


@pytest.mark.parametrize(("kernel", "variant"), DRAWN)
def test_frequencies_are_float32_numbers_that_more_features_extend(kernel, variant):
    A, b = fourier_frequencies(kernel, 5, 12, length_scale=0.7, seed=2, variant=variant)
    longer, c = fourier_frequencies(kernel, 5, 20, length_scale=0.7, seed=2, variant=variant)
    assert torch.equal(longer[: len(A)], A)
    assert torch.equal(A.float().double(), A)
    if b is not None:
        assert torch.equal(c[: len(b)], b)
        assert torch.equal(b.float().double(), b)
        assert ((b >= 0) & (b < 6.2831855)).all()


def test_length_scale_divides_and_seed_changes():
    A, b = fourier_frequencies("gaussian", 3, 8, seed=1)
    B, c = fourier_frequencies("gaussian", 3, 8, length_scale=4.0, seed=1)
    assert torch.equal(A / 4, B)
    assert torch.equal(b, c)
    assert not torch.equal(A, fourier_frequencies("gaussian", 3, 8, seed=2)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "gausian"}, "`kernel` must be one of 'gaussian', .*, got 'gausian'"),
        ({"variant": "pair"}, "`variant` must be one of 'plain', .*, got 'pair'"),
        ({"length_scale": 0.0}, "`length_scale` must be positive and finite, got 0.0"),
        ({"length_scale": math.inf}, "`length_scale` must be positive and finite, got inf"),
        ({"kernel": "laplacian", "variant": "orthogonal"}, "need a rotation-invariant kernel"),
        ({"p": 7, "variant": "paired"}, "must be even, got 7"),
        ({"p": 0}, "`d` and `p` must be positive, got 3 and 0"),
    ],
)
def test_bad_frequencies(change, message):
    with pytest.raises(ValueError, match=message):
        fourier_frequencies(**{"kernel": "gaussian", "d": 3, "p": 8, **change})


# --- memory


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "options",
    [
        {"paired": True},
        {"out": torch.float16},
        {"dtype": torch.float16},
        {"precision": "exact"},
        {"precision": "low"},
    ],
)
def test_temporaries_stay_within_the_budget(place, options):
    if place[0] == "triton" and "exact" in options.values():
        pytest.skip("Triton computes no float64")
    small = INTERPRETED  # where tiles are slow
    n, d, p, budget = (200, 6, 40, 6 << 10) if small else (3000, 50, 200, 256 << 10)
    backend, device = place
    dtype = options.get("dtype", torch.float32)
    X, A, b = (x.to(device, dtype) for x in problem(n, d, p))
    options = {
        "dtype" if name == "out" else name: value for name, value in options.items() if name != "dtype"
    }
    fourier_features(X[:3], A, b, backend=backend, **options)
    with PeakMemory() as memory:
        features = fourier_features(X, A, b, backend=backend, memory_budget=budget, **options)
    copy_of_A = 12 * p * (d + 16) if backend == "triton" else 0
    result = features.numel() * features.element_size()
    assert result > 1.5 * budget  # or all rows fit at once and nothing is tested
    assert memory.peak <= result + budget + copy_of_A
