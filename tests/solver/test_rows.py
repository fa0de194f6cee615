"""Training rows by index: what is handed out, what is held out, and what is refused."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.solver.learners.rows import HOLDOUT_ROWS, TrainingRows, _preferred
from kernel_distill.solver.source import ArraySource, StreamSource, row_keys
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform
from kernel_distill.solver.transforms.standardize import Standardize

from ..cases import EPS, K, one_hot, problem


def rows_of(X, y, *, kind="centred", transform="none", seed=0, **options):
    """Training rows of arrays, with everything made for them."""
    source = ArraySource(X, y)
    if kind == "values":
        targets = Targets.from_values(1 if y.ndim == 1 else y.shape[1])
    else:
        targets = Targets.from_labels(y, kind)
    made = make_transform(transform, lambda: [torch.from_numpy(X)], source.input_shape)
    return TrainingRows(source, made, targets, seed=seed, **options)


def numbered(n, k=K):
    """Rows that say their number, and labels that follow from it."""
    X = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.float64)
    return X, np.arange(n) % k


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_rows_are_those_of_the_source_transformed(shape, cache_bytes):
    X, y = problem(90)
    X = X.reshape(-1, *shape)
    rows = rows_of(X, y, transform="standardize", dtype=torch.float64, cache_bytes=cache_bytes)
    index = torch.tensor([5, 0, 84, 5])
    raw = rows.raw(index)
    assert torch.equal(rows.inputs(index), rows.transform.forward(raw))
    position = [int(np.flatnonzero((row.numpy() == X).reshape(90, -1).all(1))[0]) for row in raw]
    assert np.array_equal(rows.outputs(index), one_hot(y[position]) - 1 / K)
    assert rows.classes is not None
    assert np.array_equal(rows.classes[index], y[position])
    assert rows.inputs(index).dtype == rows.outputs(index).dtype == torch.float64


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16"])
def test_raw_rows_keep_their_dtype(dtype, cache_bytes):
    X, y = numbered(40)
    rows = rows_of(X.astype(dtype), y, cache_bytes=cache_bytes)
    found = rows.raw(torch.tensor([3, 2]))
    assert found.dtype == getattr(torch, dtype)
    assert rows.inputs(torch.tensor([3, 2])).dtype == torch.float32
    assert torch.equal(found.float(), rows.inputs(torch.tensor([3, 2])))


@pytest.mark.parametrize("dtype", ["one-hot", "centred"])
def test_targets_are_those_of_the_coding(dtype):
    X, y = problem(50)
    rows = rows_of(X, np.array(["d", "a", "c", "b"])[y], kind=dtype, holdout=0)
    wanted = rows.targets.encode(np.array(["d", "a", "c", "b"])[y])
    assert torch.equal(rows.outputs(torch.arange(50)), wanted)


@pytest.mark.parametrize("k", [1, 3])
def test_values_are_given_back(k):
    X, _ = problem(50)
    Y = np.random.default_rng(1).normal(size=(50, k) if k > 1 else 50)
    rows = rows_of(X, Y, kind="values", holdout=0)
    assert rows.classes is None
    assert np.array_equal(rows.outputs(torch.arange(50)), Y.reshape(50, k))


@pytest.mark.parametrize(
    ("n", "holdout", "held"), [(200, 0.05, 10), (200, 0.0, 0), (30, 0.01, 0), (31, 0.5, 16), (5, 0.2, 1)]
)
def test_a_share_is_held_out_and_every_row_is_in_one_part(n, holdout, held):
    X, y = numbered(n, 2)
    rows = rows_of(X, y, holdout=holdout)
    train = torch.cat([X[:, 0] for _, X, _ in rows.chunks()])
    aside = torch.cat([X[:, 0] for X, _ in rows.held_out()])
    assert (rows.n, rows.n_held_out) == (n - held, held)
    assert torch.equal(train, train.sort().values)
    if held:
        assert len(aside) == held
        assert torch.equal(torch.cat([train, aside]).sort().values, torch.arange(n).float())
    else:
        assert torch.equal(aside, torch.arange(n).float())


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_data():
    def held(seed, scale):
        X, y = numbered(300)
        return torch.cat([X[:, 0] for X, _ in rows_of(scale * X, y, seed=seed).held_out()]) / scale

    assert torch.equal(held(0, 1.0), held(0, 2.0))
    assert not torch.equal(held(0, 1.0), held(1, 1.0))


def test_no_more_than_the_limit_is_held_out():
    X, y = numbered(2 * HOLDOUT_ROWS + 10)
    assert rows_of(X, y, holdout=0.9).n_held_out == HOLDOUT_ROWS


def test_without_rows_held_out_those_to_choose_by_are_a_mixture_of_all():
    # Sorted by class, as many files are: the first rows would all be of one class.
    n = 3 * HOLDOUT_ROWS
    X, y = numbered(n)
    rows = rows_of(X, np.sort(y), holdout=0)
    assert rows.n == n
    Y = torch.cat([Y for _, Y in rows.held_out()])
    assert len(Y) == HOLDOUT_ROWS
    # Of 5000 draws without replacement, a class of a quarter has 1250 with a deviation below 31.
    assert (Y > 0).sum(dim=0).sub(HOLDOUT_ROWS / K).abs().max() < 6 * 31


def test_pieces_cover_all_rows_in_order():
    X, y = numbered(500)
    rows = rows_of(X, y)
    rows.chunk = 64
    pieces = list(rows.chunks())
    assert [len(index) for index, _, _ in pieces] == [64] * 7 + [27]
    index, inputs, outputs = (torch.cat(part) for part in zip(*pieces, strict=True))
    assert torch.equal(index, torch.arange(475))
    assert torch.equal(inputs, rows.inputs(index))
    assert torch.equal(outputs, rows.outputs(index))
    rows.chunk = 7
    assert [len(Y) for _, Y in rows.held_out()] == [7, 7, 7, 4]


def test_memory_maps_and_torch_tensors_are_rows_too(tmp_path):
    X, y = problem(60)
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    targets = Targets.from_labels(y)
    transform = make_transform("none", lambda: [], (12,))
    index = torch.tensor([50, 3])
    wanted = TrainingRows(ArraySource(X.astype(np.float32), y), transform, targets, seed=0).inputs(index)
    for source in (ArraySource(mapped, y), ArraySource(torch.from_numpy(X).float(), torch.from_numpy(y))):
        for cache_bytes in (0, 2**20):
            rows = TrainingRows(source, transform, targets, seed=0, cache_bytes=cache_bytes)
            assert torch.equal(rows.inputs(index), wanted)


def test_rows_are_transformed_once_where_they_fit():
    X, y = problem(60)
    needed = 60 * 12 * 4
    for cache_bytes, calls_later in ((needed, 0), (needed - 1, 2)):
        source, targets = ArraySource(X, y), Targets.from_labels(y)
        transform, calls = make_transform("none", lambda: [], (12,)), []
        forward = transform.forward
        transform.forward = lambda *a, forward=forward, calls=calls: calls.append(1) or forward(*a)
        rows = TrainingRows(source, transform, targets, seed=0, cache_bytes=cache_bytes)
        calls.clear()
        rows.inputs(torch.tensor([1]))
        list(rows.held_out())
        assert len(calls) == calls_later


@pytest.mark.parametrize("transform", ["none", "standardize"])
def test_bytes_that_are_kept_give_the_same_bits_as_transformed_rows(transform):
    X, y = np.random.default_rng(0).integers(0, 256, (90, 3, 4, 5), dtype=np.uint8), np.arange(90) % K
    wide, index = 90 * 60 * 4, torch.tensor([5, 0, 80, 5])
    found = []
    for cache_bytes, kept in ((wide, torch.float32), (wide - 1, torch.uint8), (90 * 60 - 1, None)):
        rows = rows_of(X, y, transform=transform, cache_bytes=cache_bytes)
        assert (rows._cache.dtype if rows._cache is not None else None) == kept
        held = torch.cat([Z for Z, _ in rows.held_out()])
        found.append(
            [rows.inputs(index), held, *(torch.cat(part) for part in zip(*rows.chunks(), strict=True))]
        )
        assert found[-1][0].dtype == torch.float32
        assert torch.equal(rows.raw(index).float(), torch.from_numpy(X)[rows._train[index]].float())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_bytes_are_kept_of_bytes_alone_and_of_transforms_of_single_values():
    X, y = np.random.default_rng(0).integers(0, 256, (90, 12)), np.arange(90) % K
    for dtype, transform in (("int16", "none"), ("float32", "standardize"), ("uint8", "zca-kip")):
        assert rows_of(X.astype(dtype), y, transform=transform, cache_bytes=90 * 12)._cache is None
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for dtype in (torch.float32, torch.float64):
        assert _preferred(dtype, True, cpu) == [dtype, torch.uint8]
        assert _preferred(dtype, True, cuda) == [torch.uint8, dtype]
        assert _preferred(dtype, False, cuda) == [dtype]


@pytest.mark.parametrize("holdout", [0.0, 0.1])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_share_is_of_every_class_and_of_the_same_rows(holdout, cache_bytes):
    X, y = numbered(200)
    y[y == K - 1] = 0
    y[[3, 50, 70]] = K - 1
    rows = rows_of(X, y, holdout=holdout, cache_bytes=cache_bytes)
    sizes = rows.classes.bincount().tolist()
    before = None
    for fraction in (0.01, 0.2, 0.5, 0.9):
        part = rows.share(fraction, 4)
        index = torch.arange(part.n)
        numbers = part.inputs(index)[:, 0].long()
        assert torch.equal(numbers, numbers.sort().values)
        assert part.classes.bincount().tolist() == [max(1, round(fraction * size)) for size in sizes]
        assert np.array_equal(y[numbers], part.classes)
        assert np.array_equal(part.outputs(index), one_hot(y[numbers]) - 1 / K)
        assert torch.equal(torch.cat([Z for _, Z, _ in part.chunks()])[:, 0].long(), numbers)
        if before is not None:
            assert set(before) <= set(numbers.tolist())
        before = numbers.tolist()
        held = torch.cat([Z for Z, _ in part.held_out()])[:, 0]
        if holdout:
            assert torch.equal(held, torch.cat([Z for Z, _ in rows.held_out()])[:, 0])
        else:
            assert torch.equal(held.long(), numbers)
        assert part.identity != rows.identity
        assert part.identity["digest"] == rows.digest
    assert rows.share(1, 4) is rows
    assert rows.share(0.5, 4).identity == rows.share(0.5, 4).identity != rows.share(0.5, 5).identity
    assert not torch.equal(*(rows.share(0.5, seed).inputs(torch.arange(90)) for seed in (4, 5)))
    assert (rows.n, len(rows.classes)) == (sum(sizes), sum(sizes))


def test_a_share_knows_its_own_range_and_of_values_it_is_a_share_of_all():
    X, _ = numbered(100)
    rows = rows_of(X, np.arange(100.0), kind="values", holdout=0)
    assert rows.data_range == (0, 99)
    part = rows.share(0.1, 1)
    numbers = part.inputs(torch.arange(part.n))[:, 0]
    assert part.n == 10
    assert numbers.max() < 99  # or the range would be that of all
    assert part.data_range == (0, numbers.max())
    assert part.classes is None


def test_the_range_is_that_of_the_raw_training_rows():
    X, y = problem(60)
    rows = rows_of(X, y, transform="standardize", cache_bytes=0)
    train = rows.raw(torch.arange(rows.n))
    assert rows.data_range == (float(train.min()), float(train.max()))
    rows = rows_of(X, y)
    rows.chunk = 7
    assert rows.data_range == (float(train.min()), float(train.max()))
    assert rows_of(np.abs(X).astype(np.uint8), y).data_range == (0, 255)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float64"])
def test_a_digest_tells_data_apart(dtype):
    X, y = np.ones((60, 12), dtype), np.arange(60) % K
    rows = rows_of(X, y)
    digest = rows.digest
    other, turned = X.copy(), y.copy()
    other[59, 11], turned[59] = 0, 0
    assert len({digest, rows_of(other, y).digest, rows_of(X, turned).digest}) == 3
    assert rows_of(X.reshape(60, 3, 2, 2), y).digest != digest
    assert rows_of(X, y, seed=1, holdout=0.2, cache_bytes=0).digest == digest
    assert rows_of(np.asfortranarray(X), y).digest == digest
    rows = rows_of(X, y)
    rows.chunk = 7
    assert rows.digest == digest


@pytest.mark.parametrize("mean", [(1, 2, 3), (2, 1, 3.5), (2, 3, 1)])
def test_rows_know_what_their_transform_was_fitted_on(mean):
    X, y = problem(60)
    source, targets = ArraySource(X.reshape(60, 3, 2, 2), y), Targets.from_labels(y)

    def identity(mean):
        transform = Standardize.from_values((3, 2, 2), mean, 1.0)
        return TrainingRows(source, transform, targets, seed=0).identity

    assert identity(mean) == identity(mean) == json.loads(json.dumps(identity(mean)))
    assert identity(mean) != identity((2, 1, 3))


def test_a_digest_tells_values_apart():
    X, _ = problem(20)
    Y = np.arange(20.0)
    digest = rows_of(X, Y, kind="values").digest
    Y[3] += 1e-9
    assert rows_of(X, Y, kind="values").digest != digest


def test_float32_rows_are_the_rounding_of_float64_ones():
    X, y = problem(60)
    narrow, wide = (
        rows_of(X, y, transform="standardize", dtype=dtype).inputs(torch.arange(50))
        for dtype in (torch.float32, torch.float64)
    )
    assert (narrow.double() - wide).abs().max() <= 2.0**-24 * wide.abs().max() + EPS


# --- Bad inputs ----------------------------------------------------------------------------------------------


def test_streams_and_weights_are_refused():
    X, y = problem(60)
    targets, transform = Targets.from_labels(y), make_transform("none", lambda: [], (12,))
    with pytest.raises(ValueError, match="which a stream cannot give: pass arrays"):
        TrainingRows(StreamSource([(X, y)]), transform, targets, seed=0)
    with pytest.raises(ValueError, match="take no sample_weight: leave it out"):
        TrainingRows(ArraySource(X, y, np.ones(60)), transform, targets, seed=0)


@pytest.mark.parametrize("holdout", [1, 1.5, -0.1, float("nan"), "half"])
def test_a_holdout_that_is_no_share_is_refused(holdout):
    X, y = problem(60)
    with pytest.raises(ValueError, match="`holdout` must be"):
        rows_of(X, y, holdout=holdout)


@pytest.mark.parametrize("seed", range(6))
def test_every_class_keeps_a_training_row(seed):
    X, _ = problem(40)
    keys = row_keys(seed, "holdout", 0, 40)
    y = np.zeros(40, dtype=int)
    pair = keys.argsort()[[3, 11]].tolist()  # both would be held out
    y[pair] = 1
    rows = rows_of(X, y, seed=seed, holdout=0.5)
    assert (rows.n, rows.n_held_out) == (21, 19)
    assert rows.classes.bincount().tolist() == [20, 1]
    kept = rows.raw(rows.classes.argmax()[None])
    assert np.array_equal(kept[0].numpy(), X[pair[1]])
    assert sum(len(Z) for Z, _ in rows.held_out()) == 19
    whole = rows_of(X, y, seed=seed, holdout=0)
    assert (whole.n, whole.n_held_out) == (40, 0)


def test_holding_out_everything_is_refused():
    with pytest.raises(ValueError, match="holding out 2 of 2 rows leaves no training rows: give more"):
        rows_of(np.zeros((2, 3)), np.zeros(2), kind="values", holdout=0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    X, y = problem(60)
    X[17, 3] = bad
    with pytest.raises(ValueError, match=r"`X` holds (NaN|infinity) in row 17"):
        rows_of(X, y)
    rows = rows_of(X, y, cache_bytes=0)
    with pytest.raises(ValueError, match=r"`X` holds (NaN|infinity) in row 17"):
        rows.inputs(torch.arange(rows.n).flip(0))
    X[17, 3] = 1e308  # a sum that overflows is no value that is not finite
    X[18, 3] = 1e308
    assert torch.isfinite(rows_of(X, y, dtype=torch.float64).inputs(torch.arange(50))).all()
    clean, _ = problem(60)
    values = y.astype(float)
    values[5] = bad
    with pytest.raises(ValueError, match=r"`y` holds (NaN|infinity) in row 5"):
        rows_of(clean, values, kind="values")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan"), "half"])
def test_a_fraction_that_is_no_share_is_refused(fraction):
    X, y = problem(60)
    with pytest.raises(ValueError, match="`fraction` must be"):
        rows_of(X, y).share(fraction, 0)
