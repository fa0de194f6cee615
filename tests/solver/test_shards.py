"""Rows come out of shards as they went in, whatever they lie in and however they are cut."""

import io
import itertools
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernel_distill.solver.shard import Look
from kernel_distill.solver.shard_arrays import MappedArray
from kernel_distill.solver.shard_tables import choose_columns
from kernel_distill.solver.shards import Shards

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

N, D = 137, 5


def rows(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)).astype(np.float32), rng.integers(0, 4, n)


def parquet(path, X, y, *, form="vectors", group=20):
    """A parquet file of these rows."""
    if form == "vectors":
        columns = {"x": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])}
    elif form == "lists":
        columns = {"x": pa.array(list(X))}
    else:
        columns = {f"c{i}": X[:, i] for i in range(X.shape[1])}
    pq.write_table(pa.table({**columns, "label": y, "note": ["text"] * len(y)}), path, row_group_size=group)
    return path


def in_memory(X, y, folder):
    return Shards.of(X, y, tile_rows=30)


def of_torch(X, y, folder):
    return Shards.of(torch.from_numpy(X), torch.from_numpy(y), tile_rows=30)


def npy(X, y, folder):
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", y)
    return Shards.of(folder / "x.npy", folder / "y.npy", tile_rows=30)


def npy_and_labels(X, y, folder):
    np.save(folder / "x.npy", X)
    return Shards.of([folder / "x.npy"], [y], tile_rows=30)


def pairs(X, y, folder):
    np.save(folder / "x.npy", X[50:])
    return Shards.of([(X[:50], y[:50]), (folder / "x.npy", y[50:])], tile_rows=30)


def memmap(X, y, folder):
    """A view into the middle of a file that begins with something else."""
    with (folder / "raw.f32").open("wb") as file:
        file.write(b"\0" * 5000)
        np.concatenate([X[:3], X, X[:2]]).tofile(file)
    whole = np.memmap(folder / "raw.f32", np.float32, "r", 5000, (N + 5, D))
    return Shards.of(whole[3 : 3 + N], y, tile_rows=30)


def npz(X, y, folder):
    np.savez(folder / "a.npz", x=X[:60], y=y[:60])
    np.savez_compressed(folder / "b.npz", x_train=X[60:], y_train=y[60:])
    return Shards.of([folder / "a.npz", folder / "b.npz"])


def in_parquet(form):
    def of(X, y, folder):
        files = [parquet(folder / "a.parquet", X[:80], y[:80], form=form)]
        files.append(parquet(folder / "b.parquet", X[80:], y[80:], form=form))
        return Shards.of(files, columns=[f"c{i}" for i in range(D)] if form == "named" else (), tile_rows=30)

    return of


KINDS = {
    "arrays": in_memory,
    "torch": of_torch,
    "npy": npy,
    "npy-labels": npy_and_labels,
    "pairs": pairs,
    "memmap": memmap,
    "npz": npz,
    "parquet-vectors": in_parquet("vectors"),
    "parquet-lists": in_parquet("lists"),
    "parquet-columns": in_parquet("columns"),
    "parquet-named": in_parquet("named"),
}


def opened(shards):
    """Its tiles."""
    return shards.tiles([shard.look() for shard in shards.shards], frozenset())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_out_as_they_went_in(kind, tmp_path):
    X, y = rows()
    shards = KINDS[kind](X, y, tmp_path)
    shards = pickle.loads(pickle.dumps(shards))  # as a worker has them
    found_x, found_y, first = [], [], 0
    for tile in opened(shards):
        shard = shards.shards[tile.shard]
        assert tile.first == first
        at = tile.start
        for batch in shard.batches(7, tile.start, tile.stop):
            assert batch.start == at
            at += len(batch)
            found_x.append(batch.X.numpy())
            found_y.append(np.asarray(batch.y))
        assert at == tile.stop
        assert np.array_equal(
            np.concatenate(found_y)[first:], np.asarray(shard.labels(tile.start, tile.stop))
        )
        some = np.arange(tile.start, tile.stop, 3)
        assert np.array_equal(
            shard.rows(some, tile.start, tile.stop).numpy(), X[first : tile.stop - tile.start + first : 3]
        )
        first += tile.stop - tile.start
    assert np.array_equal(np.concatenate(found_x), X)
    assert np.array_equal(np.concatenate(found_y), y)
    assert shards.in_memory == (kind in ("arrays", "torch"))


@pytest.mark.parametrize("kind", ["npy", "memmap", "npz", "parquet-vectors"])
def test_shards_of_files_pickle_without_their_rows(kind, tmp_path):
    X, _ = rows()
    shards = KINDS[kind](X, np.zeros(N, np.int8), tmp_path)
    assert len(pickle.dumps(shards)) < X.nbytes / 2


def test_strings_and_vectors_are_targets_too(tmp_path):
    X, _ = rows(20)
    names = np.array(["a", "bc", "d", "e"] * 5)
    parquet(tmp_path / "a.parquet", X, names)
    [shard] = Shards.of(tmp_path / "a.parquet").shards
    assert list(shard.labels(0, 20)) == list(names)
    values = np.random.default_rng(0).normal(size=(20, 3))
    parquet(tmp_path / "b.parquet", X, pa.array(list(values)))
    [shard] = Shards.of(tmp_path / "b.parquet").shards
    assert np.array_equal(shard.labels(0, 20), values)


# --- Images ------------------------------------------------------------------------------------------------


def images(path, modes, label=None, size=(6, 4), columns=("image", "label"), form=None):
    pixels = np.random.default_rng(0).integers(0, 255, (len(modes), size[1], size[0], 3), np.uint8)
    encoded = []
    for picture, mode in zip(pixels, modes, strict=True):
        stream = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    column = pa.array(encoded) if form is None else pa.array([one["bytes"] for one in encoded], form)
    table = pa.table([column, label or list(range(len(modes)))], names=columns)
    pq.write_table(table, path, row_group_size=4)
    return pixels.transpose(0, 3, 1, 2)


def test_images_of_parquet_files_are_read_by_row_groups(tmp_path):
    pixels = images(tmp_path / "a.parquet", ["RGB"] * 7 + ["L"] * 2)
    shards = Shards.of(tmp_path / "a.parquet", tile_rows=4)
    [shard], tiles = shards.shards, opened(shards)
    assert [(tile.start, tile.stop) for tile in tiles] == [(0, 4), (4, 9)]  # one row is too few
    assert shard.look().input_shape == (3, 4, 6)
    found = torch.cat([batch.X for batch in shard.batches(3, 4, 9)]).numpy()
    assert np.array_equal(found[:3], pixels[4:7])
    assert found.shape == (5, 3, 4, 6)
    assert np.array_equal(found[3:, 0], found[3:, 2])
    [small] = Shards.of(tmp_path / "a.parquet", size=(2, 3)).shards
    assert small.look().input_shape == (3, 2, 3)


def test_colour_after_grey_is_refused_unless_channels_are_given(tmp_path):
    images(tmp_path / "a.parquet", ["L"] * 6 + ["RGB"])
    [shard] = Shards.of(tmp_path / "a.parquet").shards
    assert shard.look().input_shape == (1, 4, 6)
    with pytest.raises(ValueError, match="pass channels=3"):
        list(shard.batches(100, 0, 7))
    [shard] = Shards.of(tmp_path / "a.parquet", channels=3).shards
    assert shard.look().input_shape == (3, 4, 6)
    assert next(shard.batches(100, 0, 7)).X.shape == (7, 3, 4, 6)


@pytest.mark.parametrize("form", [None, pa.binary(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("columns", [("image", "digit"), ("scan", "y"), ("scan", "label")], ids="-".join)
def test_columns_of_images_have_any_name(columns, form, tmp_path):
    pixels = images(tmp_path / "a.parquet", ["RGB"] * 5, columns=columns, form=form)
    for options in ({"label": columns[1]}, {"label": columns[1], "columns": columns[0]}):
        [shard] = Shards.of(tmp_path / "a.parquet", **options).shards
        assert shard.look().columns == columns
        assert np.array_equal(next(shard.batches(9, 0, 5)).X.numpy(), pixels)
        assert shard.labels(0, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sizes", [(0, 9), (9, 0), (4, 0, 0, 5), (0, 1, 0)], ids=str)
def test_row_groups_may_be_empty(sizes, tmp_path):
    X, y = rows(sum(sizes))
    schema = pa.schema([*((f"c{i}", pa.float32()) for i in range(D)), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for stop, size in zip(itertools.accumulate(sizes), sizes, strict=True):
            part = slice(stop - size, stop)
            table = {f"c{i}": X[part, i] for i in range(D)} | {"label": y[part]}
            writer.write_table(pa.table(table, schema=schema))
    shards = Shards.of(tmp_path / "a.parquet", tile_rows=3)
    [shard], tiles = shards.shards, opened(shards)
    found = [batch for tile in tiles for batch in shard.batches(99, tile.start, tile.stop)]
    assert np.array_equal(torch.cat([batch.X for batch in found]).numpy(), X)
    assert np.array_equal(np.concatenate([shard.labels(tile.start, tile.stop) for tile in tiles]), y)


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "images"])
def test_damage_anywhere_is_bad_input(kind, tmp_path):
    """Whatever the libraries raise for it: nothing but ValueError says that a file is bad and not the machine."""
    X, y = rows(40)
    path = tmp_path / f"a.{kind.replace('images', 'parquet')}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, x=X, y=y)
    elif kind == "parquet":
        parquet(path, X, y)
    else:
        images(path, ["RGB"] * 12)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    [shard] = Shards.of(path, y if kind == "npy" else None).shards
    refused = 0
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + whole[at + int(rng.integers(1, 50)) :])
        try:
            stop = shard.look().n_rows
            shard.labels(0, stop)
            list(shard.batches(16, 0, stop))
        except ValueError:
            refused += 1
    assert refused > 20


# --- Tiles -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 500), tile_rows=st.integers(1, 200))
def test_arrays_are_cut_into_the_fewest_equal_pieces(n, tile_rows):
    tiles = opened(Shards.of(np.zeros((n, 1)), np.zeros(n, int), tile_rows=tile_rows))
    sizes = [tile.stop - tile.start for tile in tiles]
    assert len(sizes) == -(-n // tile_rows)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= tile_rows
    assert [tile.start for tile in tiles] == [0, *itertools.accumulate(sizes[:-1])]
    assert sum(sizes) == n


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.integers(1, 60), min_size=1, max_size=30), tile_rows=st.integers(1, 200))
def test_row_groups_stay_whole(groups, tile_rows):
    edges = (0, *itertools.accumulate(groups))
    shards = Shards.of("a.parquet", tile_rows=tile_rows)
    tiles = shards.tiles([Look(edges[-1], (D,), torch.float32, edges)], frozenset())
    assert {tile.start for tile in tiles} | {tile.stop for tile in tiles} <= set(edges)
    assert [tile.stop for tile in tiles[:-1]] == [tile.start for tile in tiles[1:]]
    assert (tiles[0].start, tiles[-1].stop) == (0, edges[-1])
    sizes = [tile.stop - tile.start for tile in tiles]
    assert all(size >= tile_rows for size in sizes[:-1])
    assert len(sizes) == 1 or sizes[-1] >= tile_rows / 2


def test_units_that_are_left_out_do_not_count():
    X, y = rows(40)
    shards = Shards.of([(X[:20], y[:20]), (X[20:], y[20:])], tile_rows=10)
    looks = [shard.look() for shard in shards.shards]
    rest = shards.tiles(looks, frozenset({(0, 10)}))
    assert [(tile.shard, tile.start, tile.first) for tile in rest] == [(0, 0, 0), (1, 0, 10), (1, 10, 20)]
    rest = shards.tiles([None, looks[1]], frozenset())
    assert [(tile.shard, tile.start, tile.first) for tile in rest] == [(1, 0, 0), (1, 10, 10)]


def test_files_of_one_name_are_called_by_their_paths(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", x=np.zeros((2, 1)), y=[0, 1])
    shards = Shards.of([tmp_path / "a" / "x.npz", tmp_path / "b" / "x.npz"])
    assert [shard.name for shard in shards.shards] == [str(tmp_path / name / "x.npz") for name in ("a", "b")]


# --- Maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda X: X, id="whole"),
        pytest.param(lambda X: X[7:20], id="slice"),
        pytest.param(lambda X: X[7:].reshape(-1, 1), id="reshaped"),
        pytest.param(lambda X: X[3:][5:9], id="slice-of-slice"),
        pytest.param(lambda X: X.T, id="columns"),
        pytest.param(lambda X: X[3:9].T, id="slice-of-columns"),
    ],
)
@pytest.mark.parametrize("offset", [0, 8, 4096, 5000, 70000])
def test_the_place_of_a_map_is_found(view, offset, tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.write(b"\1" * offset)
        np.arange(30 * 4, dtype=np.float64).tofile(file)
    part = view(np.memmap(tmp_path / "a", np.float64, "r", offset, (30, 4)))
    mapped = MappedArray.of(part)
    assert mapped is not None
    again = pickle.loads(pickle.dumps(mapped)).open()
    assert np.array_equal(again, part)
    assert isinstance(again, np.memmap)


def test_maps_that_no_file_holds_travel_as_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[0, 0] = 7
    assert MappedArray.of(changed) is None
    strided = np.load(tmp_path / "x.npy", mmap_mode="r")[::2]
    assert MappedArray.of(strided) is None
    for X in (changed, strided):
        [shard] = Shards.of(X, np.zeros(len(X), int)).shards
        assert np.array_equal(next(shard.batches(99, 0, len(X))).X.numpy(), X)


def test_a_fingerprint_tells_a_file_from_itself_before_a_change(tmp_path):
    X, y = rows()
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", x=X, y=y)
    parquet(tmp_path / "x.parquet", X, y)
    for name in ("x.npy", "x.npz", "x.parquet"):
        [shard] = Shards.of(tmp_path / name, y if name == "x.npy" else None).shards
        before = shard.fingerprint()
        assert shard.fingerprint() == before
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        state = (tmp_path / name).stat()
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(state.st_atime_ns, state.st_mtime_ns + 10**6))
        assert shard.fingerprint() != before


def test_a_fingerprint_tells_data_apart(tmp_path):
    X, y = rows()
    prints = []
    Y = y.copy()
    Y[-1] += 1
    Z = X.copy()
    Z[100, 3] += 1
    for inputs, targets in ((X, y), (X, Y), (Z, y), (X[:-1], y[:-1]), (X.astype(float), y)):
        [shard] = Shards.of(inputs, targets).shards
        prints.append(str(shard.fingerprint()))
    [shard] = Shards.of(torch.from_numpy(X), torch.from_numpy(y)).shards
    assert len(set(prints)) == 5
    assert str(shard.fingerprint()) == prints[0]
    [shard] = Shards.of(X, y, sample_weight=np.ones(N)).shards
    assert str(shard.fingerprint()) not in prints


# --- Refusals ----------------------------------------------------------------------------------------------


def broken_npy(folder):
    np.save(folder / "x.npy", rows()[0])
    (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-100])
    return Shards.of(folder / "x.npy", rows()[1])


def broken_npz(folder):
    np.savez(folder / "x.npz", x=rows()[0], y=rows()[1])
    (folder / "x.npz").write_bytes((folder / "x.npz").read_bytes()[:-100])
    return Shards.of(folder / "x.npz")


def broken_parquet(folder):
    path = parquet(folder / "x.parquet", *rows())
    path.write_bytes(path.read_bytes()[:-100])
    return Shards.of(path)


def empty(folder):
    (folder / "x.npy").write_bytes(b"")
    return Shards.of(folder / "x.npy", rows()[1])


def pickled(folder):
    np.save(folder / "x.npy", np.array([{}, {}], object), allow_pickle=True)
    return Shards.of(folder / "x.npy", [0, 1])


def other_names(folder):
    np.savez(folder / "x.npz", a=[1], b=[2])
    return Shards.of(folder / "x.npz")


def ragged(folder):
    table = pa.table({"x": [[1.0, 2.0], [3.0]], "label": [0, 1]})
    pq.write_table(table, folder / "x.parquet")
    return Shards.of(folder / "x.parquet")


def unlabelled(folder):
    pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0, 1.0]], "label": [0, None]}), folder / "x.parquet")
    return Shards.of(folder / "x.parquet")


def short(folder):
    np.save(folder / "x.npy", rows()[0])
    return Shards.of(folder / "x.npy", rows()[1][:-1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(broken_npy, ValueError, r"x\.npy cannot be mapped .* truncated", id="npy"),
        pytest.param(broken_npz, ValueError, r"x\.npz is not a readable .* truncated", id="npz"),
        pytest.param(broken_parquet, ValueError, r"x\.parquet is not a readable .* truncated", id="parquet"),
        pytest.param(empty, ValueError, r"x\.npy cannot be mapped", id="empty"),
        pytest.param(pickled, ValueError, r"x\.npy cannot be mapped", id="objects"),
        pytest.param(other_names, ValueError, r"it holds a, b, needed are x and y", id="names"),
        pytest.param(ragged, ValueError, "'x' holds lists of different lengths", id="ragged"),
        pytest.param(unlabelled, ValueError, "'label' lacks values in 1 rows", id="unlabelled"),
        pytest.param(short, ValueError, "`X` has 137 rows but `y` has 136", id="pairs"),
        *(
            pytest.param(
                lambda _, path=path: Shards.of(path, [1] if path.endswith("npy") else None),
                FileNotFoundError,
                rf"there is no file .*{path} on this machine",
                id=f"no-{path}",
            )
            for path in ("a.npy", "a.npz", "a.parquet")
        ),
    ],
)
def test_bad_files_are_found_when_they_are_looked_at(make, error, message, tmp_path):
    [shard] = make(tmp_path).shards
    with pytest.raises(error, match=message):
        shard.look()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Shards.of(rows()[0]), "`y` is missing", id="no-targets"),
        pytest.param(lambda: Shards.of(iter([rows()])), "a stream is read by one process", id="stream"),
        pytest.param(lambda: Shards.of("x.npy"), r"x\.npy holds inputs only: give its targets", id="npy"),
        pytest.param(lambda: Shards.of("x.npz", [1]), "holds its own targets", id="npz-y"),
        pytest.param(lambda: Shards.of("x.csv"), r"no \.npy, \.npz or \.parquet file", id="suffix"),
        pytest.param(
            lambda: Shards.of(["a.npy"], [[1], [2]]), "one path or array for each of the 1", id="ys"
        ),
        pytest.param(lambda: Shards.of(["a.npz", "a.npz"]), "is given 2 times", id="twice"),
        pytest.param(
            lambda: Shards.of("a.npz", sample_weight=[1.0]), "`sample_weight` is for one array", id="weight"
        ),
        pytest.param(lambda: Shards.of("a.npz", tile_rows=0), "`tile_rows` must be an integer", id="tile"),
        pytest.param(lambda: Shards.of("a.parquet", channels=2), "`channels` must be 1 or 3", id="channels"),
        pytest.param(lambda: Shards.of("a.npz").part(2, 2), "`index` counts from 0 to 1, got 2", id="part"),
        pytest.param(
            lambda: Shards.of("a.npz").part(0, 2).part(0, 2), "are a part already", id="part-of-part"
        ),
    ],
)
def test_unclear_shards_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("kinds", "columns", "label", "found"),
    [
        pytest.param({"x": 1, "label": 0}, (), None, (["x"], "label"), id="vectors"),
        pytest.param({"a": 0, "b": 0, "y": 0, "s": None}, (), None, (["a", "b"], "y"), id="numbers"),
        pytest.param({"id": 0, "x": 1, "y": 0}, (), None, (["x"], "y"), id="vectors-first"),
        pytest.param({"a": 0, "b": 0, "c": 0}, ("b", "a"), "c", (["b", "a"], "c"), id="named"),
        pytest.param({"a": 0, "label": 0, "y": 1}, (), "y", (["a", "label"], "y"), id="label-named"),
        pytest.param({"a": 0, "y": 0, "__index_level_0__": 0}, (), None, (["a"], "y"), id="pandas-index"),
    ],
)
def test_columns_are_chosen(kinds, columns, label, found):
    assert choose_columns(kinds, columns, label, "t") == found


@pytest.mark.parametrize(
    ("kinds", "columns", "label", "message"),
    [
        pytest.param({"a": 0}, ("b",), "a", "t has no column 'b': it has a", id="missing"),
        pytest.param({"a": 0, "b": 0}, (), None, "say which holds the targets", id="no-label"),
        pytest.param({"a": 1, "b": 1, "y": 0}, (), None, "several columns of vectors, a, b", id="several"),
        pytest.param({"a": None, "y": 0}, (), None, "none but the targets holds numbers", id="none"),
        pytest.param({"a": None, "y": 0}, ("a",), None, "'a' of t does not hold numbers", id="text"),
    ],
)
def test_columns_that_are_not_clear_are_refused(kinds, columns, label, message):
    with pytest.raises(ValueError, match=message):
        choose_columns(kinds, columns, label, "t")
