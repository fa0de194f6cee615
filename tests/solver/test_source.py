"""Rows from anywhere come out as one stream of equal batches, whatever they came in as."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.kernels import uniform
from kernel_distill.solver.source import (
    ArraySource,
    Batch,
    Reservoir,
    StreamSource,
    as_source,
    batch_rows,
    check_weights,
    row_keys,
    to_tensor,
)

from ..cases import D, problem


def joined(batches):
    """Whole X, y and weights of a list of batches, after checking their starts."""
    batches = list(batches)
    start = 0
    for batch in batches:
        assert batch.start == start
        start += len(batch)
    weights = [batch.weight for batch in batches]
    return (
        torch.cat([batch.X for batch in batches]).numpy(),
        np.concatenate([np.asarray(batch.y) for batch in batches]),
        None if weights[0] is None else torch.cat(weights).numpy(),
    )


# --- Batches -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(sum),
    rows=st.integers(1, 30),
    weighted=st.booleans(),
)
def test_pieces_of_any_size_become_equal_batches(sizes, rows, weighted):
    n = sum(sizes)
    X, y, w = np.arange(2.0 * n).reshape(n, 2), np.arange(n), np.arange(n) + 1.0
    edges = np.cumsum([0, *sizes])
    pieces = [
        (X[a:b], y[a:b], w[a:b])[: 3 if weighted else 2]
        for a, b in itertools.pairwise(edges)
        if not weighted or b > a  # no weights at all are refused
    ]
    source = StreamSource(pieces)
    for _ in range(2):  # a list may be read again
        batches = list(source.batches(rows))
        assert [len(batch) for batch in batches] == [rows] * (n // rows) + [n % rows] * (n % rows > 0)
        found = joined(batches)
        assert np.array_equal(found[0], X)
        assert np.array_equal(found[1], y)
        assert (found[2] is None) if not weighted else np.array_equal(found[2], w)


@pytest.mark.parametrize("rows", [1, 7, 64, 200, 1000])
def test_batches_of_arrays(rows):
    X, y = problem()
    source = ArraySource(X, y, np.ones(len(X)))
    assert source.n_rows == len(X)
    for _ in range(2):
        batches = list(source.batches(rows))
        assert all(len(batch) == rows for batch in batches[:-1])
        found = joined(batches)
        assert np.array_equal(found[0], X)
        assert np.array_equal(found[1], y)
        assert (found[2] == 1).all()


def test_loaders_and_lists_and_text_labels():
    X, y = problem(50)
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    found = joined(as_source(torch.utils.data.DataLoader(data, batch_size=7)).batches(64))
    assert np.array_equal(found[0], X)
    assert np.array_equal(found[1], y)
    names = np.array(["a", "longer", "b"])[y % 3]
    found = joined(as_source([(X[:20], names[:20]), (X[20:], names[20:])]).batches(16))
    assert np.array_equal(found[1], names)
    assert np.array_equal(joined(as_source(X.tolist(), y.tolist()).batches(64))[0], X)


@pytest.mark.parametrize("make", [ArraySource, lambda X, y: StreamSource([(X, y)])], ids=["array", "stream"])
def test_grey_images_gain_their_channel(make):
    source = make(np.zeros((5, 4, 3)), np.arange(5))
    assert source.input_shape == (1, 4, 3)
    assert next(source.batches(5)).X.shape == (5, 1, 4, 3)


@pytest.mark.parametrize(
    ("p", "d", "size", "rows"), [(1000, 10, 8000 * 100, 100), (10, 1000, 8000 * 100, 100), (10, 10, 1, 64)]
)
def test_batches_hold_the_bytes_asked_for(p, d, size, rows):
    assert batch_rows(p, d, size) == rows


# --- Streams that can be read once ---------------------------------------------------------------------------


def test_a_generator_is_read_once_and_then_says_so():
    X, y = problem(50)
    source = as_source((X[i : i + 7], y[i : i + 7]) for i in range(0, 50, 7))
    assert source.input_shape == (D,)
    assert np.array_equal(joined(source.batches(20))[0], X)
    with pytest.raises(
        ValueError, match="can be read once, and another pass is needed: pass arrays or a DataLoader"
    ):
        next(source.batches(20))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        pytest.param([], "the stream is empty: there are no rows", id="empty"),
        pytest.param(
            [np.zeros((3, 2))], r"must give \(X, y\) or \(X, y, weight\) pieces, got ndarray", id="no-labels"
        ),
        pytest.param([(np.zeros((3, 2)),)], r"must give \(X, y\)", id="one-item"),
        pytest.param(
            [(np.zeros((3, 2)), np.zeros(4))],
            r"a piece has X of shape \(3, 2\) and y of shape \(4,\)",
            id="lengths",
        ),
        pytest.param([(np.zeros(3), np.zeros(3))], r"a piece has X of shape \(3,\)", id="no-columns"),
        pytest.param(
            [(np.zeros((3, 2)), np.zeros(3)), (np.zeros((3, 5)), np.zeros(3))],
            r"rows of shape \(5,\) after rows of \(2,\)",
            id="widths",
        ),
        pytest.param(
            [(np.zeros((3, 2)), np.zeros(3), np.ones(3)), (np.zeros((3, 2)), np.zeros(3))],
            "some pieces of the stream have weights",
            id="weights",
        ),
        pytest.param(
            [(np.zeros((3, 2)), np.zeros(3)), (np.full((3, 2), np.nan), np.zeros(3))],
            "`X` holds NaN in row 3 ",
            id="nan",
        ),
    ],
)
def test_bad_streams_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        list(StreamSource(pieces).batches(4))


# --- Arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        pytest.param(
            np.empty((0, 3)), np.empty(0), "`X` is empty: there are no rows to distil", id="no-rows"
        ),
        pytest.param(
            np.empty((3, 0)), np.arange(3), r"`X` has no values: its shape is \(3, 0\)", id="no-columns"
        ),
        pytest.param(
            np.ones(3), np.arange(3), r"must have shape \(n, ...\), got \(3,\): reshape", id="vector"
        ),
        pytest.param(
            np.ones((3, 2)), np.arange(4), "`X` has 3 rows but `y` has 4: they must pair up", id="lengths"
        ),
        pytest.param(
            np.ones((3, 2), object),
            np.arange(3),
            "`X` is an object array: convert it to numbers",
            id="objects",
        ),
        pytest.param(
            np.ones((3, 2)), np.array([1, "a", None], object), "`y` is an object array", id="object-labels"
        ),
        pytest.param(
            np.ones((3, 2), complex),
            np.arange(3),
            "Complex data not supported: `X` is complex128",
            id="complex",
        ),
        pytest.param(
            torch.ones((3, 2), dtype=torch.complex128),
            np.arange(3),
            "Complex data not supported",
            id="complex-torch",
        ),
        pytest.param([[1.0, 2.0], [3.0]], [0, 1], "`X` is not a rectangular array", id="ragged"),
        pytest.param("data.csv", [0, 1], "`X` must be an array, got str", id="path"),
        pytest.param(np.array([["a", "b"]]), [0], "expected an array of numbers, got dtype <U1", id="text"),
    ],
)
def test_bad_arrays_are_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        as_source(X, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((np.ones((3, 2)),), "`y` is missing: pass labels or values", id="no-labels"),
        pytest.param((torch.ones(3, 2),), "`y` is missing", id="no-labels-torch"),
        pytest.param((7,), "`y` is missing", id="not-iterable"),
        pytest.param(("a.npz",), "the path 'a.npz': load the file", id="path"),
        pytest.param((Path("a.npz"),), "the path 'a.npz': load the file", id="path-object"),
        pytest.param(
            ([], None, np.ones(3)),
            "weights of a stream are the third item of its pieces",
            id="stream-weights",
        ),
    ],
)
def test_what_is_no_source_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_source(*arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        pytest.param(np.ones(4), r"`sample_weight` must have shape \(3,\), got \(4,\)", id="length"),
        pytest.param(np.ones((3, 1)), r"must have shape \(3,\), got \(3, 1\)", id="column"),
        pytest.param([1.0, np.nan, 1.0], "`sample_weight` holds NaN in row 1", id="nan"),
        pytest.param([1.0, np.inf, 1.0], "`sample_weight` holds infinity in row 1", id="inf"),
        pytest.param([1.0, -1.0, 1.0], "must not be negative", id="negative"),
        pytest.param(np.zeros(3), "must not be zero throughout", id="zero"),
    ],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weight, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("row", [0, 63, 64, 199])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_that_are_not_finite_are_named(value, row, dtype):
    X, y = problem()
    X = X.astype(dtype)
    X[row, 5] = value
    kind = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(
        ValueError, match=rf"`X` holds {kind} in row {row} \(1 bad rows seen so far\): remove or impute"
    ):
        list(ArraySource(X, y).batches(64))


def test_sums_that_overflow_are_finite_rows():
    X = np.full((4, 3), 3e38, dtype=np.float32)  # their sum is infinite, they are not
    assert np.array_equal(joined(ArraySource(X, np.arange(4)).batches(4))[0], X)


# --- Memory maps and awkward arrays --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_are_read_and_left_as_they_are(mode, tmp_path):
    """Pages are let go of behind the batches: never those that exist nowhere else."""
    X = np.random.default_rng(0).normal(size=(3000, 17))
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode == "c":
        mapped[100:200] = 7.0  # lives in memory only
        X[100:200] = 7.0
    source = ArraySource(mapped, np.arange(3000))
    for _ in range(2):
        assert np.array_equal(joined(source.batches(64))[0], X)
    assert np.array_equal(mapped, X)


def test_memory_map_slices_and_offsets(tmp_path):
    X = np.arange(5000, dtype=np.uint8).reshape(1000, 5)
    (tmp_path / "raw").write_bytes(b"header!" + X.tobytes())
    mapped = np.memmap(tmp_path / "raw", dtype=np.uint8, mode="r", offset=7, shape=(1000, 5))
    for view, wanted in ((mapped[300:], X[300:]), (mapped[::3], X[::3]), (mapped[:, ::-1], X[:, ::-1])):
        source = ArraySource(view, np.arange(len(view)))
        assert source.dtype == torch.uint8
        assert np.array_equal(joined(source.batches(64))[0], wanted)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12.0).reshape(4, 3)[::-1], id="negative-strides"),
        pytest.param(np.arange(12.0).reshape(3, 4).T, id="fortran"),
        pytest.param(np.arange(12, dtype=">i4").reshape(4, 3), id="big-endian"),
        pytest.param(np.arange(12, dtype=np.uint16).reshape(4, 3) + 60000, id="uint16"),
        pytest.param(np.arange(12, dtype=np.uint32).reshape(4, 3) + 2**31, id="uint32"),
        pytest.param(np.arange(12).reshape(4, 3) % 2 == 0, id="bool"),
        pytest.param(np.arange(12, dtype=np.float16).reshape(4, 3), id="float16"),
        pytest.param(np.broadcast_to(np.arange(3.0), (4, 3)), id="read-only"),
    ],
)
def test_awkward_arrays_keep_their_values(array):
    found = to_tensor(array)
    assert np.array_equal(found.double().numpy(), array.astype(np.float64))
    assert np.array_equal(
        joined(ArraySource(array, np.arange(4)).batches(3))[0].astype(float), array.astype(float)
    )


def test_tensors_that_require_gradients_are_data():
    X = torch.ones(4, 3, requires_grad=True)
    assert not ArraySource(X, np.arange(4)).X.requires_grad


# --- Random choices of rows ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 5000), count=st.integers(0, 100), seed=st.integers(0, 2**63))
def test_row_keys_depend_on_the_row_alone(start, count, seed):
    whole = row_keys(seed, "holdout", 0, start + count)
    assert torch.equal(row_keys(seed, "holdout", start, count), whole[start:])
    assert torch.equal(whole, uniform(seed, "rows.holdout", start + count))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 90), size=st.integers(1, 30), groups=st.integers(1, 4), seed=st.integers(0, 1000))
def test_reservoir_keeps_the_smallest_keys_of_each_group(rows, size, groups, seed):
    n = 80
    X = torch.arange(n, dtype=torch.float64)[:, None]
    member = torch.from_numpy(np.random.default_rng(seed).integers(0, groups, n))
    reservoir = Reservoir(seed, "near", size, groups + 1)
    for batch in ArraySource(X, member).batches(rows):
        reservoir.offer(batch, torch.as_tensor(batch.y))
    keys = uniform(seed, "rows.near", n).numpy()
    for group in range(groups):
        wanted = sorted((row for row in range(n) if member[row] == group), key=lambda row: keys[row])[:size]
        assert reservoir.rows(group).flatten().tolist() == wanted
    assert reservoir.rows(groups) is None


def test_reservoir_is_a_uniform_sample():
    """Over 400 seeds each of 20 rows is among 5 about 100 times: a binomial of standard deviation 8.7."""
    batch = Batch(0, torch.arange(20.0)[:, None], None, None)
    counts = np.zeros(20)
    for seed in range(400):
        reservoir = Reservoir(seed, "sample", 5)
        reservoir.offer(batch)
        counts[reservoir.rows().flatten().long().numpy()] += 1
    assert counts.sum() == 2000
    assert np.abs(counts - 100).max() < 4.5 * (400 * 0.25 * 0.75) ** 0.5


def test_reservoir_rows_outlive_their_batch():
    X = torch.zeros(10, 2)
    reservoir = Reservoir(0, "sample", 4)
    reservoir.offer(Batch(0, X, None, None))
    X += 1
    assert (reservoir.rows() == 0).all()
