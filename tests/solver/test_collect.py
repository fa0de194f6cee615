"""Statistics over shards: the sums of one pass, for any cut, order and executor, without what is poisoned."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from kernel_distill import collect_statistics, distill, distill_statistics
from kernel_distill.solver.executors import SerialExecutor
from kernel_distill.solver.shard_source import ShardSource
from kernel_distill.solver.shards import Shards
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.transforms import Standardize

from . import ray_cluster as fixtures

ray_cluster, ray_executor = fixtures.ray_cluster, fixtures.ray_executor

SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")
CLOSE = 1e-12
N, D, K = 400, 5, 4
FOURIER = {"feature_map": "fourier", "feature_params": {"n_features": 24}, "progress": False}
# What must be learned from the rows before they can be summed.
FITS = {
    "nothing": {
        "transform": "none",
        "feature_params": {"n_features": 24, "length_scale": 2.0},
        "n_classes": K,
    },
    "length-scale": {"transform": "none", "n_classes": K},
    "classes": {"transform": "none", "feature_params": {"n_features": 24, "length_scale": 2.0}},
    "moments": {"transform": "standardize", "n_classes": K},
    "whitening": {"transform": "zca-rfad"},
    "regression": {"transform": "standardize", "task": "regression"},
}


def rows(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), rng.integers(0, K, N - K)])
    return (rng.normal(size=(N, D)) * [1, 2, 0.5, 3, 1] + [0, 5, 0, -20, 1e3]).astype(dtype), y


def collected(X, y=None, **options):
    return collect_statistics(X, y, **FOURIER | {"batch_bytes": 24 * 8 * 64} | options)


def distance(a, b):
    """Largest error of a sum, relative to the largest entry of that sum."""
    assert (a.count, a.targets) == (b.count, b.targets)
    errors = [
        float((getattr(a, name) - getattr(b, name)).abs().max() / getattr(b, name).abs().max())
        for name in SUMS
    ]
    return max(*errors, abs(a.weight - b.weight) / b.weight)


def same(a, b):
    """Whether two statistics are the same bits, of the same encoder."""
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in SUMS)
        and (a.weight, a.count, a.left_out) == (b.weight, b.count, b.left_out)
        and a.encoder.digest() == b.encoder.digest()
        and a.targets == b.targets
    )


def npy_files(folder, X, y, cuts):
    """The rows in .npy files that end at `cuts`."""
    edges = [0, *cuts, len(X)]
    files = []
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        np.save(folder / f"x_{i}.npy", X[a:b])
        np.save(folder / f"y_{i}.npy", y[a:b])
        files.append((folder / f"x_{i}.npy", folder / f"y_{i}.npy"))
    return files


def archives(folder, X, y, size=50):
    """The rows in .npz files of `size` rows each."""
    files = [folder / f"s{i}.npz" for i in range(len(X) // size)]
    for i, file in enumerate(files):
        np.savez(file, x=X[i * size : (i + 1) * size], y=y[i * size : (i + 1) * size])
    return files


# --- One pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_sums_are_those_of_one_pass(fit, dtype):
    X, y = rows(dtype)
    once = collected(X, y, **FITS[fit])
    tiled = collected(Shards.of(X, y, tile_rows=70), **FITS[fit])
    assert distance(tiled, once) < CLOSE
    if "length_scale" in FITS[fit].get("feature_params", {}) or fit == "length-scale":
        assert tiled.encoder.digest() == once.encoder.digest()


@pytest.mark.parametrize("cuts", [(), (200,), (63, 64, 130, 399), (16, 390)], ids=str)
@pytest.mark.parametrize("tile_rows", [50, 64, 1000])
def test_sums_depend_on_no_cut(cuts, tile_rows, tmp_path):
    X, y = rows()
    once = collected(X, y, transform="standardize")
    files = collected(
        Shards.of(npy_files(tmp_path, X, y, cuts), tile_rows=tile_rows), transform="standardize"
    )
    assert distance(files, once) < CLOSE
    # Rows are numbered through all shards, so the sample that sets the length scale is the same.
    scales = [s.encoder.feature_map.length_scale for s in (files, once)]
    assert scales[0] == pytest.approx(scales[1], rel=CLOSE)


def test_sums_depend_on_no_order(tmp_path):
    X, y = rows()
    files = npy_files(tmp_path, X, y, (63, 130, 399))
    first = collected(Shards.of(files, tile_rows=50))
    last = collected(Shards.of(files[::-1], tile_rows=50), like=first)
    assert distance(last, first) < CLOSE


def test_weights_count_in_every_tile():
    X, y = rows()
    w = np.random.default_rng(1).uniform(0, 2, N)
    w[:150] = 0  # tiles without any weight
    once = collected(X, y, sample_weight=w, n_classes=K)
    tiled = collected(Shards.of(X, y, sample_weight=w, tile_rows=50), n_classes=K)
    assert distance(tiled, once) < CLOSE
    assert tiled.count == 250


@pytest.mark.parametrize("executor", ["serial", SerialExecutor()], ids=["name", "object"])
def test_arrays_with_an_executor_are_shards(executor):
    X, y = rows()
    w = np.random.default_rng(1).uniform(0, 2, N)
    found = collected(X, y, sample_weight=w, executor=executor)
    assert same(found, collected(Shards.of(X, y, sample_weight=w)))
    assert distance(found, collected(X, y, sample_weight=w)) < CLOSE


def test_parts_add_up_to_the_whole(tmp_path):
    X, y = rows()
    shards = Shards.of(npy_files(tmp_path, X, y, (63, 130, 399)), tile_rows=50)
    whole = collected(shards, transform="standardize")
    for count, kept_whole in ((2, False), (3, False), (2, True), (7, True)):
        parts = [
            collected(shards.part(i, count, whole=kept_whole), transform="standardize") for i in range(count)
        ]
        assert {part.encoder.digest() for part in parts} == {whole.encoder.digest()}
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert distance(total, whole) < CLOSE
        assert max(part.count for part in parts) < N


def test_a_source_of_shards_is_that_of_its_rows(tmp_path):
    X, y = rows()
    shards = Shards.of(npy_files(tmp_path, X, y * 2, (63, 130, 399)), tile_rows=50)
    source, whole = ShardSource(shards, SerialExecutor()), ArraySource(X, y * 2)
    batches = list(source.batches(30))
    starts = [batch.start for batch in batches]
    assert starts == [0, *np.cumsum([len(batch) for batch in batches])[:-1]]
    assert np.array_equal(torch.cat([batch.X for batch in batches]).numpy(), X)
    for size in (1, 37, 1000):
        assert torch.equal(source.sample(3, "map", size), whole.sample(3, "map", size))
    assert source.first_y.tolist() == [0, 2, 4, 6]
    assert (source.n_rows, source.input_shape, source.dtype) == (N, (D,), torch.float64)


def test_whitening_leaves_out_what_is_poisoned(tmp_path):
    X, y = rows()
    X[[210, 320]] = np.nan
    files = archives(tmp_path, X, y)
    found = collected(Shards.of(files), on_bad="skip", **FITS["whitening"])
    rest = collected(Shards.of([*files[:4], files[5], files[7]]), **FITS["whitening"])
    assert same(dataclasses.replace(found, left_out=()).with_sums(found.sums()), rest)
    assert [entry.partition(" ")[0] for entry in found.left_out] == ["s4.npz", "s6.npz"]


def test_moments_keep_their_digits_far_from_zero():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 2)) * [1, 1e-3] + [1e8, 1.0]
    found = ShardSource(Shards.of(X, np.arange(N) % 2, tile_rows=30), SerialExecutor()).standardize()
    whole = Standardize.fit(lambda: [torch.from_numpy(X)], (2,))
    assert torch.allclose(found.mean, whole.mean, rtol=1e-15)
    assert torch.allclose(found.std, whole.std, rtol=1e-8, atol=0)  # the mean itself is rounded to 1e-8


# --- A cluster -----------------------------------------------------------------------------------------------


def test_ray_gives_the_same_bits(ray_executor, tmp_path):
    X, y = rows(np.float32)
    arrays = Shards.of(X, y, tile_rows=70)
    options = {"transform": "standardize"}
    assert same(collected(arrays, **options, executor=ray_executor), collected(arrays, **options))
    files = archives(tmp_path, X, y)
    files[2].write_bytes(files[2].read_bytes()[:-20])
    bad = [collected(Shards.of(files), **options, on_bad="skip", executor=e) for e in (ray_executor, None)]
    assert same(*bad)
    assert len(bad[0].left_out) == 1
    with pytest.raises(ValueError, match=r"s2\.npz"):
        collected(Shards.of(files), **options, executor=ray_executor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_blocks_of_ray_data_are_shards(ray_cluster):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    import ray.data

    X, y = rows()
    dataset = ray.data.from_numpy([X[:150], X[150:]]).rename_columns({"data": "x"})
    dataset = dataset.zip(ray.data.from_numpy([y[:150], y[150:]]).rename_columns({"data": "label"}))
    shards = Shards.of(dataset)
    assert distance(collected(shards, executor="ray"), collected(X, y)) < CLOSE
    with pytest.raises(ValueError, match="have no name that lasts"):
        collected(shards, checkpoint="somewhere")


# --- Poison --------------------------------------------------------------------------------------------------


def with_value(value):
    def spoil(file, X, y):
        X[17, 2] = value
        np.savez(file, x=X, y=y)

    return spoil


def truncated(file, X, y):
    file.write_bytes(file.read_bytes()[:-30])


def missing(file, X, y):
    file.unlink()


def other_shape(file, X, y):
    np.savez(file, x=X[:, :-1], y=y)


def unknown_label(file, X, y):
    y[17] = 9
    np.savez(file, x=X, y=y)


def float_labels(file, X, y):
    np.savez(file, x=X, y=y + 0.5)


POISON = {
    "nan": (with_value(np.nan), r"s3\.npz rows 0\.\.50: `X` holds NaN in row 17"),
    "inf": (with_value(np.inf), r"s3\.npz rows 0\.\.50: `X` holds infinity in row 17"),
    "truncated": (truncated, r"s3\.npz: .*s3\.npz is not a readable \.npz file"),
    "missing": (missing, r"s3\.npz: there is no file .*s3\.npz"),
    "shape": (other_shape, r"s3\.npz: rows of shape \(4,\), expected \(5,\)"),
    "label": (unknown_label, r"s3\.npz rows 0\.\.50: label 9 in row 17 is outside the 4 known classes"),
    "labels": (float_labels, r"s3\.npz rows 0\.\.50: labels are float64"),
}


@pytest.mark.parametrize("fit", ["nothing", "length-scale", "moments"])
@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_shard_is_named_or_left_out(poison, fit, tmp_path):
    X, y = rows()
    files = archives(tmp_path, X, y)
    spoil, message = POISON[poison]
    spoil(files[3], X[150:200].copy(), y[150:200].copy())
    with pytest.raises(ValueError, match=message):
        collected(Shards.of(files), **FITS[fit])
    found = collected(Shards.of(files), on_bad="skip", **FITS[fit])
    [entry] = found.left_out
    assert re.match(message, entry)
    assert found.count == N - 50
    if "label" in poison:  # its rows are good: what is fitted to rows has seen them
        rest = collected(Shards.of(files[:3] + files[4:]), like=found)
    else:
        rest = collected(Shards.of(files[:3] + files[4:]), **FITS[fit])
        assert rest.encoder.digest() == found.encoder.digest()
    assert distance(found, rest) < CLOSE
    assert rest.left_out == ()


@pytest.mark.parametrize(
    "spoil", [lambda y: y + 0.5, lambda y: y.astype(str), lambda y: np.eye(K, dtype=int)[y]]
)
def test_labels_of_another_kind_are_bad_where_classes_are_looked_for(spoil, tmp_path):
    """They would turn all labels into text, or numbers, and every other file into a bad one."""
    X, y = rows()
    files = archives(tmp_path, X, y)
    np.savez(files[3], x=X[150:200], y=spoil(y[150:200]))
    with pytest.raises(ValueError, match=r"s3\.npz rows 0\.\.50: labels are"):
        collected(Shards.of(files), **FITS["classes"])
    found = collected(Shards.of(files), on_bad="skip", **FITS["classes"])
    assert [entry.partition(" ")[0] for entry in found.left_out] == ["s3.npz"]
    assert found.count == N - 50
    assert found.targets.classes == (0, 1, 2, 3)


def test_values_may_be_whole_numbers_in_one_file_and_not_in_the_next(tmp_path):
    X, y = rows()
    files = archives(tmp_path, X, y)
    np.savez(files[3], x=X[150:200], y=y[150:200] + 0.5)
    values = y + np.where((np.arange(N) >= 150) & (np.arange(N) < 200), 0.5, 0)
    assert (
        distance(collected(Shards.of(files), task="regression"), collected(X, values, task="regression"))
        < CLOSE
    )


@pytest.mark.parametrize("names", [("c", "a", "b"), ("a", "b", "z")], ids="".join)
def test_columns_of_another_file_are_not_taken_for_those_of_the_first(names, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    X, y = rows()
    X = X[:, :3]
    for file, columns, part in (("a", "abc", slice(0, 200)), ("b", names, slice(200, N))):
        at = {"a": 0, "b": 1, "c": 2, "z": 2}
        table = {name: X[part, at[name]] for name in columns} | {"label": y[part]}
        pq.write_table(pa.table(table), tmp_path / f"{file}.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(
        ValueError, match=rf"b\.parquet: columns {', '.join(names)}, label, before it a, b, c, label"
    ):
        collected(Shards.of(files))
    found = collected(Shards.of(files), on_bad="skip")
    assert (found.count, len(found.left_out)) == (200, 1)
    if "z" not in names:
        assert distance(collected(Shards.of(files, columns=list("abc"))), collected(X, y)) < CLOSE


def test_nothing_stays_of_a_file_that_is_bad_in_one_tile(tmp_path):
    """The first tiles of the second file are good and are summed before the last shows what it holds."""
    X, y = rows()
    X[310, 0] = np.nan
    files = npy_files(tmp_path, X, y, (100, 330))
    shards = Shards.of(files, tile_rows=40)
    for fit in ("nothing", "moments"):
        found = collected(shards, on_bad="skip", **FITS[fit])
        rest = collected(Shards.of([files[0], files[2]], tile_rows=40), **FITS[fit])
        assert found.count == 170
        assert all(torch.equal(getattr(found, name), getattr(rest, name)) for name in SUMS)
        assert found.encoder.digest() == rest.encoder.digest()
        assert len(found.left_out) == 1
        assert "x_1.npy rows 191..230" in found.left_out[0]
        assert "row 210" in found.left_out[0]


def test_of_an_array_the_tile_is_left_out():
    X, y = rows()
    X[[110, 390], 0] = np.nan
    with pytest.raises(ValueError, match=r"X rows 100\.\.150: `X` holds NaN in row 110"):
        collected(Shards.of(X, y, tile_rows=50), transform="standardize")
    found = collected(Shards.of(X, y, tile_rows=50), transform="standardize", on_bad="skip")
    rest = np.r_[0:100, 150:350]
    assert distance(found, collected(X[rest], y[rest], transform="standardize")) < CLOSE
    assert [entry.partition(":")[0] for entry in found.left_out] == ["X rows 100..150", "X rows 350..400"]


def test_skipping_nothing_changes_nothing():
    X, y = rows()
    shards = Shards.of(X, y, tile_rows=50)
    options = {"transform": "standardize"}
    assert same(collected(shards, on_bad="skip", **options), collected(shards, **options))


def test_features_that_overflow_are_named_by_row():
    X, y = rows()
    X[120, 1] = 1e300
    with pytest.raises(ValueError, match=r"X rows 100\.\.150: `features` holds .* in row 120"):
        collected(Shards.of(X, y, tile_rows=50), precision="high", **FITS["nothing"])


def test_no_good_shard_is_an_error(tmp_path):
    X, y = rows()
    files = archives(tmp_path, X * np.nan, y)
    for fit in ("nothing", "moments"):
        with pytest.raises(
            ValueError, match=r"no shard is left: s0\.npz rows 0\.\.50: `X` holds NaN in row 0"
        ):
            collected(Shards.of(files), on_bad="skip", **FITS[fit])


def test_a_part_that_cuts_files_leaves_none_out(tmp_path):
    X, y = rows()
    files = archives(tmp_path, X, y)
    with pytest.raises(ValueError, match="whole=True"):
        collected(Shards.of(files).part(0, 2), on_bad="skip")
    truncated(files[3], X, y)
    parts = [collected(Shards.of(files).part(i, 2, whole=True), on_bad="skip") for i in range(2)]
    assert sum(part.count for part in parts) == N - 50
    assert parts[0].left_out == parts[1].left_out
    assert len(parts[0].left_out) == 1


def test_what_was_left_out_stands_in_the_certificate(tmp_path):
    X, y = rows()
    files = archives(tmp_path, X, y)
    missing(files[3], X, y)
    found = collected(Shards.of(files), on_bad="skip", feature_params={"n_features": 5})
    made = distill_statistics(found, ridge=0.1)
    assert [note for note in made.certificate.notes if "s3.npz: there is no file" in note]
    assert not [
        note for note in distill_statistics(collected(X, y), ridge=0.1).certificate.notes if "left" in note
    ]


# --- Checkpoints ---------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    X, y = rows()
    shards = Shards.of(npy_files(tmp_path, X, y, (100,)), tile_rows=50)
    folder = tmp_path / "work"
    once = collected(shards)
    seen, add = [], Statistics.add

    def stopping(self, F, Y, weight=None, **options):
        seen.append(len(F))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return add(self, F, Y, weight, **options)

    monkeypatch.setattr(Statistics, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        collected(shards, checkpoint=folder)
    again = collected(shards, checkpoint=folder)
    assert same(again, once)
    assert sum(seen[5:]) == N - 200  # four tiles were there
    assert same(collected(shards, checkpoint=folder), once)
    assert sum(seen[5:]) == N - 200


@pytest.mark.parametrize("change", ["options", "labels", "rows", "tiles", "part", "weight"])
def test_a_checkpoint_of_other_work_is_refused(change, tmp_path):
    X, y = rows()
    fit = FITS["nothing"]
    collected(Shards.of(X, y, tile_rows=50), checkpoint=tmp_path, **fit)
    options, weight, tile_rows, part = {}, None, 50, (0, 1)
    if change == "options":
        options = {"seed": 1}
    elif change == "labels":
        y[7] = (y[7] + 1) % K
    elif change == "rows":
        X[7, 0] += 1
    elif change == "tiles":
        tile_rows = 51
    elif change == "part":
        part = (0, 2)
    else:
        weight = np.ones(N)
    shards = Shards.of(X, y, sample_weight=weight, tile_rows=tile_rows).part(*part)
    with pytest.raises(ValueError, match="other work"):
        collected(shards, checkpoint=tmp_path, **fit | options)


def test_a_checkpoint_keeps_what_was_left_out(tmp_path):
    X, y = rows()
    X[310, 0] = np.nan
    shards = Shards.of(npy_files(tmp_path, X, y, (100, 330)), tile_rows=40)
    first, second = (
        collected(shards, on_bad="skip", checkpoint=tmp_path / "work", **FITS["nothing"]) for _ in range(2)
    )
    assert same(first, second)
    with pytest.raises(ValueError, match="row 210"):  # what was allowed then is not allowed now
        collected(shards, checkpoint=tmp_path / "work", **FITS["nothing"])


def test_a_checkpoint_looks_again_at_what_was_bad(tmp_path, monkeypatch):
    """A file that could not be read for a while is there again, unchanged."""
    X, y = rows()
    files = archives(tmp_path, X, y)
    shards, work = Shards.of(files), tmp_path / "work"
    add = Statistics.add

    def losing(self, F, Y, weight=None, **options):
        if files[3].exists():
            files[3].rename(tmp_path / "away")
        return add(self, F, Y, weight, **options)

    monkeypatch.setattr(Statistics, "add", losing)
    first = collected(shards, on_bad="skip", checkpoint=work, **FITS["nothing"])
    assert len(first.left_out) == 1
    assert "s3.npz rows 0..50: there is no file" in first.left_out[0]
    monkeypatch.undo()
    (tmp_path / "away").rename(files[3])
    again = collected(shards, on_bad="skip", checkpoint=work, **FITS["nothing"])
    assert same(again, collected(shards, **FITS["nothing"]))


def test_rows_that_were_changed_in_place_are_other_work(tmp_path):
    X, y = rows()
    [(x_file, y_file)] = npy_files(tmp_path, X, y, ())
    work = tmp_path / "work"
    collected(Shards.of(x_file, y_file), checkpoint=work, **FITS["nothing"])
    time = x_file.stat().st_mtime_ns
    changed = np.load(x_file, mmap_mode="r+")
    changed[7, 0] += 1
    changed.flush()
    os.utime(x_file, ns=(time, time + 10**6))  # clocks of file systems are coarse
    with pytest.raises(ValueError, match="other work"):
        collected(Shards.of(x_file, y_file), checkpoint=work, **FITS["nothing"])


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda X, y: collected(iter([(X, y)]), executor="serial"), "stream is read by one", id="stream"
        ),
        pytest.param(lambda X, y: collected(X, executor="serial"), "`y` is missing", id="no-y"),
        pytest.param(lambda X, y: collected(X, y, executor="dask"), "unknown executor 'dask'", id="executor"),
        pytest.param(lambda X, y: collected(X, y, on_bad="ignore"), "unknown on_bad 'ignore'", id="on-bad"),
        pytest.param(
            lambda X, y: distill(Shards.of(X, y)), "distil from those, distill_statistics", id="distill"
        ),
        pytest.param(lambda X, y: collected(Shards.of(X, y), y), "have their own targets", id="targets"),
        pytest.param(
            lambda X, y: collected(Shards.of(X, y), like=collected(X[:, 1:], y)),
            r"rows of shape \(5,\), expected \(4,\)",
            id="like",
        ),
        pytest.param(
            lambda X, y: collected(
                Shards.of(X, y), like=collected(X, y, n_classes=9), n_classes=4, on_bad="x"
            ),
            "unknown on_bad",
            id="like-on-bad",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(call, message):
    X, y = rows()
    with pytest.raises(ValueError, match=message):
        call(X, y)


# --- Memory --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_memory_map_in_tiles_is_not_loaded(tmp_path):
    """Five times the rows leave the peak where it is."""
    code = """
import re, sys
import numpy as np, kernel_distill as kd
from kernel_distill.solver.shards import Shards
X = np.memmap(sys.argv[1], dtype=np.float32, mode="r").reshape(-1, 784)[: int(sys.argv[2])]
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def collect(X):
    shards = Shards.of(X, np.arange(len(X)) % 10, tile_rows=8192)
    kd.collect_statistics(shards, feature_map="identity", transform="standardize", progress=False)
collect(X[:100])
before = peak()
collect(X)
print((peak() - before) / 2**10)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    path = tmp_path / "rows.f32"
    block = np.random.default_rng(0).standard_normal((8192, 784), dtype=np.float32)
    with path.open("wb") as file:
        for _ in range(20):
            block.tofile(file)

    def peak_mib(count):
        arguments = [sys.executable, "-c", code, str(path), str(count)]
        return json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)

    small, large = peak_mib(4 * 8192), peak_mib(20 * 8192)
    assert small > 1  # or nothing was measured
    assert large < small + 150  # 131,072 more rows are 392 MiB


def test_partial_sums_travel_without_the_encoder_and_working_memory(tmp_path):
    X, y = rows(np.float32)
    collected(Shards.of(X, y, tile_rows=100), checkpoint=tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        with safetensors.safe_open(file, framework="pt") as stored:
            assert set(stored.keys()) == set(SUMS)
