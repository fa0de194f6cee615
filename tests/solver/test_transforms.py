"""Laws of the input transforms, and the three published whitenings against their formulae."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.solver.transforms import (
    TRANSFORMS,
    Identity,
    Standardize,
    Transform,
    make_transform,
    restore_transform,
)

IMAGE, VECTOR = (3, 4, 5), (7,)
CASES = [
    pytest.param(name, params, shape, dtype, id=f"{name}{suffix}-{'x'.join(map(str, shape))}-{kind}")
    for name, params, suffix in [
        ("none", {}, ""),
        ("standardize", {}, ""),
        ("zca-kip", {}, ""),
        ("zca-rfad", {}, ""),
        ("zca-rfad", {"per_sample": True}, "-svhn"),
        ("zca-kornia", {}, ""),
    ]
    for shape in (IMAGE, VECTOR)
    for dtype, kind in ((torch.uint8, "uint8"), (torch.float64, "float64"))
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads gain nothing on matrices this small, and spin for seconds where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(n, shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return 3.0 + 2.0 * torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)


def stream(X, size=17):
    return lambda: X.split(size)


def fitted(name, params, shape, dtype, n=83):
    X = rows(n, shape, dtype)
    return make_transform(name, stream(X), shape, **params), X


@pytest.mark.parametrize(("name", "params", "shape", "dtype"), CASES)
def test_inverse_undoes_forward(name, params, shape, dtype):
    transform, X = fitted(name, params, shape, dtype)
    Z = transform.forward(X)
    if transform.bijective:
        torch.testing.assert_close(transform.inverse(Z), X.double(), rtol=0, atol=1e-10)
    else:
        # What is left of a row after normalisation is all there: its transform is the same.
        torch.testing.assert_close(transform.forward(transform.inverse(Z)), Z, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "params", "shape", "dtype"), CASES)
def test_forward_undoes_inverse_where_bijective(name, params, shape, dtype):
    transform, _ = fitted(name, params, shape, dtype)
    Z = rows(9, shape, seed=1)
    back = transform.forward(transform.inverse(Z))
    assert transform.bijective == torch.allclose(back, Z, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "params", "shape", "dtype"), CASES)
def test_restored_transform_is_bit_identical(name, params, shape, dtype):
    transform, X = fitted(name, params, shape, dtype)
    parameters = json.loads(json.dumps(transform.parameters()))
    tensors = {key: value.clone() for key, value in transform.tensors().items()}
    again = restore_transform(name, parameters, tensors)
    Z = rows(5, shape, seed=1)
    for real in (torch.float32, torch.float64):
        assert torch.equal(again.forward(X, real), transform.forward(X, real))
    assert torch.equal(again.inverse(Z), transform.inverse(Z))
    assert again.bijective == transform.bijective
    assert again.parameters() == transform.parameters()


@pytest.mark.parametrize(("name", "params", "shape", "dtype"), CASES)
def test_forward_keeps_shape_input_and_dtype(name, params, shape, dtype):
    transform, X = fitted(name, params, shape, dtype)
    before = X.clone()
    for real in (torch.float32, torch.float64):
        Z = transform.forward(X, real)
        assert (Z.shape, Z.dtype) == (X.shape, real)
    assert torch.equal(X, before)
    float32, float64 = transform.forward(X, torch.float32), transform.forward(X)
    scale = float(float64.abs().max())
    torch.testing.assert_close(float32.double(), float64, rtol=0, atol=2e-5 * scale)
    assert transform.inverse(float64.flatten(1)).shape == X.shape


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 60), data=st.data())
def test_fit_does_not_depend_on_chunks(name, size, data):
    X = rows(60, (2, 3, 2), torch.uint8)
    cuts = data.draw(st.lists(st.integers(1, size), min_size=60, max_size=60))
    sizes = np.minimum(np.cumsum(cuts), len(X))
    parts = torch.tensor_split(X, torch.from_numpy(sizes))  # some of them empty
    whole = make_transform(name, lambda: [X], (2, 3, 2))
    pieces = make_transform(name, lambda: parts, (2, 3, 2))
    torch.testing.assert_close(pieces.forward(X), whole.forward(X), rtol=0, atol=1e-12)


def test_forward_is_differentiable():
    for name in TRANSFORMS:
        transform = make_transform(name, stream(rows(40, (2, 2, 2))), (2, 2, 2))
        X = rows(2, (2, 2, 2), seed=2).requires_grad_()
        assert torch.autograd.gradcheck(transform.forward, X)


def test_identity_reads_no_data():
    transform = make_transform("none", lambda: pytest.fail("read"), VECTOR)
    assert isinstance(transform, Identity)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR], ids=["image", "vector"])
def test_standardize_gives_zero_mean_and_unit_population_deviation(shape):
    X = rows(83, shape, torch.float32)
    Z = make_transform("standardize", stream(X), shape).forward(X)
    axes = tuple(i for i in range(Z.ndim) if i != 1)
    torch.testing.assert_close(Z.mean(dim=axes), torch.zeros(shape[0]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(Z.std(dim=axes, correction=0), torch.ones(shape[0]).double())


@pytest.mark.parametrize("offset", [1e3, 1e9, -1e12], ids="{:g}".format)
def test_standardize_keeps_precision_under_large_offsets(offset):
    small = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X = small + offset
    exact = X - offset  # no rounding here: both are near each other
    found = Standardize.fit(stream(X, 7), (4,))
    torch.testing.assert_close(found.std, exact.std(dim=0, correction=0), rtol=1e-12, atol=0)
    expected = (exact - exact.mean(dim=0)) / exact.std(dim=0, correction=0)
    tolerance = 1e-6 + 2**-52 * abs(offset)  # rounding of the stored mean
    torch.testing.assert_close(found.forward(X, torch.float32).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, 1e8 + 0.1], ids=str)
def test_constant_column_becomes_zero(value):
    X = rows(50, (3,))
    X[:, 1] = value
    transform = Standardize.fit(stream(X, 7), (3,))
    assert transform.std[1] == 1
    assert transform.forward(X)[:, 1].abs().max() <= 1e-7
    assert torch.isfinite(transform.forward(X)).all()


def test_published_constants_are_in_their_own_units():
    X = rows(5, (3, 2, 2), torch.uint8)
    transform = Standardize.from_values((3, 2, 2), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), unit=255)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    expected = (X / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(transform.forward(X, torch.float32), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(Standardize.from_values((4,), 1.0, 2.0).mean, torch.ones(4).double())


def inverse_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors / np.sqrt(values)) @ vectors.T


def published(name, X, per_sample=False):
    """Whitened rows by the formulae of the published code, in NumPy, all rows at once."""
    flat = X.numpy().astype(np.float64).reshape(len(X), -1)
    n, d = flat.shape
    if name == "zca-kornia":
        flat = flat / 255
        centred = flat - flat.mean(axis=0)
        return centred @ inverse_root(np.cov(flat, rowvar=False) + 0.1 * np.eye(d))
    ddof = {"zca-kip": 0, "zca-rfad": 1}[name]
    images = X.numpy().astype(np.float64)
    axes = (0, 2, 3)
    images = (images - images.mean(axes, keepdims=True)) / images.std(axes, ddof=ddof, keepdims=True)
    flat = images.reshape(n, d)
    if per_sample:
        flat = flat - flat.mean(axis=1, keepdims=True)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    second = flat.T @ flat / n
    u, s, _ = np.linalg.svd(second + 0.1 * np.trace(second) / d * np.eye(d))
    roots = s**-0.5
    if name == "zca-kip" and n < d:
        roots[n:] = 1
    return flat @ ((u * roots) @ u.T)


@pytest.mark.parametrize("n", [400, 31], ids=["n>d", "n<d"])
@pytest.mark.parametrize(
    ("name", "per_sample"),
    [("zca-kip", True), ("zca-rfad", False), ("zca-rfad", True), ("zca-kornia", False)],
    ids=["kip", "rfad", "rfad-svhn", "kornia"],
)
def test_whitening_equals_the_published_formula(name, per_sample, n):
    X = rows(n, IMAGE, torch.uint8)
    params = {"per_sample": True} if name == "zca-rfad" and per_sample else {}
    Z = make_transform(name, stream(X), IMAGE, **params).forward(X).flatten(1).numpy()
    np.testing.assert_allclose(Z, published(name, X, per_sample), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "params"),
    [("zca-kip", {"reg": 1e-12}), ("zca-rfad", {"reg": 0.0}), ("zca-kornia", {"eps": 0.0})],
    ids=["kip", "rfad", "kornia"],
)
def test_without_regulariser_the_second_moment_becomes_the_identity(name, params):
    X = rows(500, IMAGE, torch.uint8)
    Z = make_transform(name, stream(X), IMAGE, **params).forward(X).flatten(1)
    divisor = len(X) - 1 if name == "zca-kornia" else len(X)
    expected = torch.eye(Z.shape[1], dtype=torch.float64)
    if name == "zca-kip":  # centred rows have nothing along (1, ..., 1)
        expected -= 1 / Z.shape[1]
    torch.testing.assert_close(Z.T @ Z / divisor, expected, rtol=0, atol=1e-9)


def test_kornia_scale_is_255_for_bytes_and_1_for_floats():
    X = rows(200, VECTOR, torch.uint8)
    of_bytes = make_transform("zca-kornia", stream(X), VECTOR)
    of_unit = make_transform("zca-kornia", stream(X / 255.0), VECTOR)
    told = make_transform("zca-kornia", stream(X.double()), VECTOR, scale=255)
    torch.testing.assert_close(of_bytes.forward(X), of_unit.forward(X.double() / 255), rtol=0, atol=1e-5)
    torch.testing.assert_close(of_bytes.forward(X), told.forward(X), rtol=0, atol=1e-12)


def test_a_constant_row_stays_finite_under_per_sample_normalisation():
    X = rows(50, (1, 3, 3), torch.uint8)
    X[7] = 9
    Z = make_transform("zca-kip", stream(X), (1, 3, 3)).forward(X)
    assert torch.isfinite(Z).all()
    assert Z[7].abs().max() == 0


ERRORS = {
    "unknown name": (
        lambda: make_transform("zca", stream(rows(5, VECTOR)), VECTOR),
        "unknown transform 'zca'",
    ),
    "unknown parameter": (
        lambda: make_transform("zca-kip", stream(rows(5, VECTOR)), VECTOR, rge=1),
        "did you mean 'reg'",
    ),
    "parameter of none": (
        lambda: make_transform("none", stream(rows(5, VECTOR)), VECTOR, eps=1),
        "takes no parameters, got 'eps'",
    ),
    "no rows": (lambda: make_transform("standardize", lambda: [], VECTOR), "no rows"),
    "empty chunks": (lambda: make_transform("zca-kornia", lambda: [rows(0, VECTOR)], VECTOR), "no rows"),
    "wrong rows": (lambda: make_transform("zca-kornia", stream(rows(5, IMAGE)), VECTOR), "rows of shape"),
    "one row": (lambda: make_transform("zca-kornia", stream(rows(1, VECTOR)), VECTOR), "at least 2 rows"),
    "one value": (lambda: make_transform("zca-rfad", stream(rows(1, VECTOR)), VECTOR), "more than 1 values"),
    "NaN": (
        lambda: make_transform("standardize", stream(torch.full((30, 7), float("nan"))), VECTOR),
        "NaN in row 0",
    ),
    "infinity": (
        lambda: make_transform(
            "zca-kip", stream(torch.ones(30, 7).index_fill(0, torch.tensor(20), torch.inf)), VECTOR
        ),
        "infinity in row 20",
    ),
    "overflow": (lambda: make_transform("standardize", stream(1e300 * rows(9, VECTOR)), VECTOR), "overflows"),
    "constant data": (lambda: make_transform("zca-rfad", stream(torch.ones(9, 7)), VECTOR), "singular"),
    "singular": (lambda: make_transform("zca-kornia", stream(rows(5, VECTOR)), VECTOR, eps=0), "singular"),
    "negative reg": (
        lambda: make_transform("zca-kip", stream(rows(9, VECTOR)), VECTOR, reg=-1),
        "not negative",
    ),
    "zero scale": (
        lambda: make_transform("zca-kornia", stream(rows(9, VECTOR)), VECTOR, scale=0),
        "positive",
    ),
    "other data": (lambda: Identity((3,)).forward(torch.ones(2, 4)), "belongs to other data"),
    "half precision": (
        lambda: Identity((3,)).forward(torch.ones(2, 3), torch.float16),
        "float32 or torch.float64",
    ),
    "empty shape": (lambda: Identity(()), "is empty"),
    "fit of empty shape": (lambda: make_transform("standardize", stream(torch.ones(5)), ()), "is empty"),
    "zero deviation": (lambda: Standardize.from_values((3,), 0, 0), "finite and positive"),
    "two constants of three": (lambda: Standardize.from_values((3,), (0, 0), 1), "one value or 3"),
    "missing tensor": (
        lambda: restore_transform("standardize", {"input_shape": [3]}, {"mean": torch.zeros(3).double()}),
        "needs 'std'",
    ),
    "wrong tensor": (
        lambda: restore_transform(
            "standardize", {"input_shape": [3]}, dict.fromkeys(("mean", "std"), torch.ones(2))
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_misuse_is_refused_with_a_reason(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_every_kind_is_registered_under_its_own_name():
    assert list(TRANSFORMS) == ["none", "standardize", "zca-kip", "zca-rfad", "zca-kornia"]
    assert all(issubclass(kind, Transform) for kind in TRANSFORMS.values())
