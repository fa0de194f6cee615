"""Every source becomes the same kind of data; what cannot is refused with a reason."""

import dataclasses
import hashlib
import io
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from kernel_distill.solver.data import Data, load_data

RNG = np.random.Generator(np.random.Philox(0))
GREY = RNG.integers(0, 256, (6, 7, 5), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 7, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def png(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write_shard(path, images, labels, names=None, image="image", label="label", struct=True):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": data, "path": None} for data in images] if struct else images)
    table = pa.table({image: column, label: pa.array(labels)})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        meta = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": meta})
    pyarrow.parquet.write_table(table, path, row_group_size=4)


def write_tree(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


# ------------------------------------------------------------------ layout and labels


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 7), (6, 7)),
        ((6, 4, 5), (6, 1, 4, 5)),
        ((6, 7, 5, 1), (6, 1, 7, 5)),
        ((6, 7, 5, 3), (6, 3, 7, 5)),
        ((6, 7, 5, 4), (6, 4, 7, 5)),
        ((6, 4, 5, 4), (6, 4, 5, 4)),
        ((6, 3, 4, 5), (6, 3, 4, 5)),
        ((6, 3, 4, 3), (6, 3, 4, 3)),
        ((6, 8, 4, 5), (6, 8, 4, 5)),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_images_are_channels_first(tmp_path, shape, expected):
    x = RNG.integers(0, 256, shape, np.uint8)
    data = load_data(write_npz(tmp_path / "a.npz", x_train=x, y_train=LABELS))
    assert data.x_train.shape == expected
    assert data.x_train.flags.c_contiguous
    moved = np.moveaxis(x, -1, 1) if x.ndim == 4 and expected != shape else x.reshape(expected)
    np.testing.assert_array_equal(data.x_train, moved)


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        ("uint8", "uint8"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
        (">f4", "float32"),
        ("int64", "int64"),
        ("uint16", "int32"),
        ("bool", "uint8"),
    ],
)
def test_values_are_kept_raw(tmp_path, stored, loaded):
    x = RNG.integers(0, 2, (6, 3)).astype(stored)
    data = load_data(write_npz(tmp_path / "a.npz", x_train=x, y_train=LABELS))
    assert data.x_train.dtype == np.dtype(loaded)
    np.testing.assert_array_equal(data.x_train, x)


@pytest.mark.parametrize(
    ("stored", "expected", "names"),
    [
        (LABELS.astype(np.uint8), LABELS, ("0", "1", "2")),
        (LABELS[:, None], LABELS, ("0", "1", "2")),
        (LABELS == 1, (LABELS == 1).astype(int), ("0", "1")),
        (np.array(list("bcabca")), np.array([1, 2, 0, 1, 2, 0]), ("a", "b", "c")),
        (LABELS * 0.5, LABELS * 0.5, ()),
        (np.eye(3, dtype=np.float32)[LABELS], np.eye(3)[LABELS], ()),
    ],
    ids=["uint8", "column", "bool", "strings", "floats", "soft"],
)
def test_labels_become_class_numbers_and_float_targets_stay(tmp_path, stored, expected, names):
    x = np.ones((6, 2))
    path = write_npz(tmp_path / "a.npz", x_train=x, y_train=stored, x_test=x[3:], y_test=stored[3:])
    data = load_data(path)
    assert data.class_names == names
    assert data.y_train.dtype == (np.int64 if names else stored.dtype)
    np.testing.assert_array_equal(data.y_train, expected)
    np.testing.assert_array_equal(data.y_test, expected[3:])


def test_npz_round_trip_with_names_and_checksum(tmp_path):
    arrays = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:3], "y_test": LABELS[:3]}
    path = write_npz(tmp_path / "tiny.npz", **arrays, class_names=np.array(["a", "b", "c"]), other=np.ones(3))
    data = load_data(str(path))
    assert data.name == "tiny"
    assert data.class_names == ("a", "b", "c")
    assert data.checksums == {"tiny.npz": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert repr(data) == "Data('tiny': 6 training rows, 3 test, 1x7x5 uint8, 3 classes)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_no_test_split_is_none_and_can_be_held_out(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=np.arange(40.0).reshape(20, 2), y_train=np.arange(20) % 2)
    data = load_data(path)
    assert data.x_test is None
    assert data.y_test is None
    assert "no test split" in repr(data)
    halves = load_data(path, test=0.5)
    assert np.bincount(halves.y_test).tolist() == [5, 5]
    together = np.concatenate([halves.x_train, halves.x_test])
    np.testing.assert_array_equal(together[np.argsort(together[:, 0])], data.x_train)


# ------------------------------------------------------------------ digits and splits


def test_digits_are_raw_stratified_and_always_the_same():
    data = load_data("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (data.x_train.dtype, data.x_train.min(), data.x_train.max()) == (np.float64, 0, 16)
    assert data.class_names == tuple("0123456789")
    share = np.bincount(data.y_test) / (np.bincount(data.y_test) + np.bincount(data.y_train))
    assert abs(share - 0.2).max() < 0.005
    # Known answers: these rows are drawn on every machine and by every version.
    assert data.checksums == {"digits": DIGITS_SHA256}
    assert hashlib.sha256(data.x_test.tobytes()).hexdigest() == DIGITS_TEST_SHA256


DIGITS_SHA256 = "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443"
DIGITS_TEST_SHA256 = "29e4e8f21ef4e4b50483c6276964b986e64e4e0bc3910870b7f076fd5e9908d0"


def test_other_seed_other_rows_same_sizes():
    zero, again, one = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(zero.x_test, again.x_test)
    assert one.x_test.shape == zero.x_test.shape
    assert not np.array_equal(one.x_test, zero.x_test)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=4, max_size=60),
    fraction=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**64 - 1),
)
def test_held_out_split_is_a_stratified_partition(labels, fraction, seed):
    from kernel_distill.solver.data.base import make_data
    from kernel_distill.solver.data.split import hold_out

    y = np.sort(np.unique(labels, return_inverse=True)[1])
    whole = make_data("x", (np.arange(len(y))[:, None], y), None)
    counts = np.bincount(y)
    expected = np.minimum(np.round(fraction * counts), counts - 1).astype(int)
    if not expected.any():
        with pytest.raises(ValueError, match="holds out none"):
            hold_out(whole, fraction, seed)
        return
    split = hold_out(whole, fraction, seed)
    np.testing.assert_array_equal(np.bincount(split.y_test, minlength=len(counts)), expected)
    rows = np.concatenate([split.x_train, split.x_test]).ravel()
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(y)))


# ------------------------------------------------------------------ image files


def test_parquet_shards_are_read_in_order_with_their_names(tmp_path):
    encoded = [png(pixels) for pixels in COLOUR]
    write_shard(tmp_path / "train-00000-of-00002.parquet", encoded[:4], LABELS[:4], ["cat", "dog", "eel"])
    write_shard(tmp_path / "train-00001-of-00002.parquet", encoded[4:], LABELS[4:], ["cat", "dog", "eel"])
    write_shard(tmp_path / "test-00000-of-00001.parquet", encoded[:2], LABELS[:2], ["cat", "dog", "eel"])
    data = load_data(tmp_path)
    np.testing.assert_array_equal(data.x_train, COLOUR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.x_test, data.x_train[:2])
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.class_names == ("cat", "dog", "eel")
    assert data.name == tmp_path.name
    assert sorted(data.checksums) == sorted(path.name for path in tmp_path.iterdir())
    for name, digest in data.checksums.items():
        assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_parquet_dialects_of_the_hub_are_understood(tmp_path):
    encoded = [png(pixels) for pixels in GREY]
    write_shard(
        tmp_path / "data" / "train-00000-of-00001.parquet", encoded, LABELS, None, "img", "fine_label"
    )
    write_shard(
        tmp_path / "data" / "validation-00000-of-00001.parquet",
        encoded,
        LABELS,
        None,
        "img",
        "fine_label",
        False,
    )
    data = load_data(tmp_path)
    np.testing.assert_array_equal(data.x_train, GREY[:, None])
    np.testing.assert_array_equal(data.x_test, GREY[:, None])
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("first", ["grey", "colour"])
def test_grey_among_colour_becomes_colour(tmp_path, first):
    mixed = [png(COLOUR[0]), png(GREY[1]), png(COLOUR[2])]
    mixed = mixed if first == "colour" else [mixed[1], mixed[0], mixed[2]]
    write_shard(tmp_path / "train.parquet", mixed, [0, 1, 0])
    write_shard(tmp_path / "test.parquet", [png(GREY[3])], [0])
    data = load_data(tmp_path)
    assert (data.x_train.shape, data.x_test.shape) == ((3, 3, 7, 5), (1, 3, 7, 5))
    at = {"colour": 1, "grey": 0}[first]
    np.testing.assert_array_equal(data.x_train[at], np.repeat(GREY[1][None], 3, axis=0))
    np.testing.assert_array_equal(data.x_train[1 - at], COLOUR[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(data.x_test[0], np.repeat(GREY[3][None], 3, axis=0))


def test_image_folder_sorts_classes_by_name(tmp_path):
    files = {
        "train/dog/b.png": png(GREY[1]),
        "train/dog/a.PNG": png(GREY[0]),
        "train/cat/images/z.bmp": png(GREY[2], "BMP"),
        "train/cat/.hidden.png": b"",
        "train/cat/notes.txt": b"",
        "val/dog/1.png": png(GREY[3]),
    }
    data = load_data(write_tree(tmp_path, files))
    np.testing.assert_array_equal(data.x_train, GREY[[2, 0, 1]][:, None])
    np.testing.assert_array_equal(data.y_train, [0, 1, 1])
    np.testing.assert_array_equal(data.x_test, GREY[3][None, None])
    assert (data.y_test.tolist(), data.class_names) == ([1], ("cat", "dog"))
    line = f"{hashlib.sha256(files['val/dog/1.png']).hexdigest()}  val/dog/1.png\n"
    assert data.checksums["val"] == hashlib.sha256(line.encode()).hexdigest()


def test_jpeg_and_palette_with_transparency_are_decoded_without_warnings(tmp_path):
    smooth = np.full((8, 8, 3), 90, np.uint8)
    palette = io.BytesIO()
    Image.fromarray(smooth).quantize(4).save(palette, "PNG", transparency=b"\x00\x80\xff\xff")
    files = {"train/a/1.jpg": png(smooth, "JPEG", quality=95), "train/b/2.png": palette.getvalue()}
    data = load_data(write_tree(tmp_path, files))
    assert abs(data.x_train.astype(int) - 90).max() <= 1


def test_size_resizes_image_files(tmp_path):
    write_tree(tmp_path, {"train/a/1.png": png(GREY[0]), "train/b/2.png": png(np.full((9, 7), 50, np.uint8))})
    data = load_data(tmp_path, size=(3, 2))
    assert data.x_train.shape == (2, 1, 3, 2)
    assert (data.x_train[1] == 50).all()


# ------------------------------------------------------------------ libraries, faked


def fake_torchvision(monkeypatch, fail=None):
    seen = []

    class Fake:
        classes = ("zero", "one", "two")

        def __init__(self, root, download, train=None, split=None):
            seen.append({"root": root, "download": download, "train": train, "split": split})
            if fail is not None and not (fail == "cache" and download):
                raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
            self.data, self.targets = (COLOUR, LABELS.tolist()) if train else (COLOUR[:3], [0, 1, 2])

    class FakeSvhn(Fake):
        def __init__(self, root, download, split):
            super().__init__(root, download, split=split)
            del self.targets
            self.data, self.labels = np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)), LABELS

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR10=Fake, MNIST=Fake, SVHN=FakeSvhn)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return seen


@pytest.mark.parametrize("source", ["torchvision:CIFAR10", "torchvision:cifar10", "CIFAR10", "cifar-10"])
def test_torchvision_names_and_spellings(monkeypatch, tmp_path, source):
    seen = fake_torchvision(monkeypatch)
    data = load_data(source, root=tmp_path)
    assert (data.name, data.class_names) == ("torchvision:CIFAR10", ("zero", "one", "two"))
    np.testing.assert_array_equal(data.x_train, COLOUR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])
    assert sorted(data.checksums) == ["x_test, y_test", "x_train, y_train"]
    assert {call["root"] for call in seen} == {str(tmp_path)}
    assert not any(call["download"] for call in seen)


def test_torchvision_downloads_only_what_is_not_cached(monkeypatch, tmp_path):
    seen = fake_torchvision(monkeypatch, fail="cache")
    load_data("MNIST", root=tmp_path)
    assert [call["download"] for call in seen] == [False, True, False, True]


def test_torchvision_sets_with_split_and_labels(monkeypatch, tmp_path):
    seen = fake_torchvision(monkeypatch)
    data = load_data("svhn", root=tmp_path)
    assert [call["split"] for call in seen] == ["train", "test"]
    np.testing.assert_array_equal(data.y_train, LABELS)


def fake_datasets(monkeypatch, splits, error=None):
    def load_dataset(name, cache_dir):
        if error is not None:
            raise error
        return {
            key: type("Split", (list,), {"features": features})(rows)
            for key, (rows, features) in splits.items()
        }

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    module.config = types.SimpleNamespace(HF_DATASETS_CACHE="the-cache")
    monkeypatch.setitem(sys.modules, "datasets", module)


def hub_rows(count):
    features = {"img": None, "label": types.SimpleNamespace(names=["a", "b", "c"])}
    rows = [{"img": Image.fromarray(GREY[i]), "label": int(LABELS[i])} for i in range(count)]
    return rows, features


@pytest.mark.parametrize("split", ["test", "validation", None])
def test_huggingface_splits(monkeypatch, split):
    splits = {"train": hub_rows(6)} | ({split: hub_rows(2)} if split else {})
    fake_datasets(monkeypatch, splits)
    data = load_data("hf:someone/something")
    np.testing.assert_array_equal(data.x_train, GREY[:, None])
    assert data.class_names == ("a", "b", "c")
    assert (data.x_test is None) == (split is None)


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("torchvision", "MNIST", "torchvision"), ("datasets", "hf:mnist", "huggingface")],
)
def test_missing_library_names_its_extra(monkeypatch, module, source, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'kernel-distill\[{extra}\]'"):
        load_data(source)


def test_missing_pyarrow_names_its_extra(monkeypatch, tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'kernel-distill\[parquet\]'"):
        load_data(tmp_path)


def test_offline_error_names_the_cache_to_fill(monkeypatch, tmp_path):
    fake_torchvision(monkeypatch, fail="always")
    with pytest.raises(FileNotFoundError, match=f"fill {tmp_path}"):
        load_data("CIFAR10", root=tmp_path)
    fake_datasets(monkeypatch, {}, error=ConnectionError("no network"))
    with pytest.raises(FileNotFoundError, match=r"fill the-cache .*"):
        load_data("hf:mnist")


# ------------------------------------------------------------------ what is refused


def npz(**arrays):
    return lambda root: write_npz(root / "a.npz", **{"x_train": GREY, "y_train": LABELS, **arrays})


def files(**contents):
    def make(root):
        return write_tree(root, {name.replace("__", "/"): data for name, data in contents.items()})

    return make


def shards(*names, images=None, labels=LABELS, **options):
    def make(root):
        for name in names:
            write_shard(root / name, images or [png(pixels) for pixels in GREY], labels, **options)
        return root

    return make


def truncated_npz(root):
    path = npz()(root)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def damaged_npz(root):
    path = npz()(root)
    data = bytearray(path.read_bytes())
    data[250] ^= 1  # inside x_train
    path.write_bytes(data)
    return path


def truncated_shard(root):
    shards("train-00000-of-00001.parquet")(root)
    path = root / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    return root


def differing_names(root):
    shards("train.parquet", names=["a", "b", "c"])(root)
    return shards("test.parquet", names=["c", "b", "a"])(root)


def bare_npz(root):
    return write_npz(root / "a.npz", images=GREY)


TOO_LARGE = LABELS * 1000
GREY16 = (GREY.astype(np.uint16) * 256)[0]
ERRORS = {
    "unknown name": (lambda root: "digit", {}, "did you mean 'digits'"),
    "near torchvision name": (lambda root: "mnits", {}, "did you mean 'mnist'"),
    "unknown torchvision name": (lambda root: "torchvision:CIFAR11", {}, "did you mean 'CIFAR10"),
    "unknown library": (
        lambda root: "tensorflow:mnist",
        {},
        "unknown library of named data sets 'tensorflow'",
    ),
    "other file": (lambda root: write_tree(root, {"a.csv": b""}) / "a.csv", {}, "cannot read .*a.csv"),
    "empty folder": (lambda root: root, {}, "holds nothing"),
    "other folder": (files(README=b"", train=b""), {}, "holds README, train, which is no known layout"),
    "truncated npz": (truncated_npz, {}, "may be truncated"),
    "damaged npz": (damaged_npz, {}, "'x_train' in .* cannot be read"),
    "no zip": (lambda root: write_tree(root, {"a.npz": b"hello"}) / "a.npz", {}, "not a readable .npz"),
    "objects": (npz(x_train=np.array([{}] * 6)), {}, "'x_train' in .* holds Python objects"),
    "missing arrays": (bare_npz, {}, "lacks x_train, y_train; it holds images"),
    "missing y_test": (npz(x_test=GREY), {}, "lacks y_test"),
    "counts": (npz(y_train=LABELS[:4]), {}, "`x_train` has 6 rows but `y_train` has 4"),
    "empty train": (npz(x_train=GREY[:0], y_train=LABELS[:0]), {}, "`x_train` is empty"),
    "empty test": (npz(x_test=GREY[:0], y_test=LABELS[:0]), {}, "`x_test` is empty"),
    "new test label": (npz(x_test=GREY, y_test=LABELS + 1), {}, "never occur in training: 3"),
    "other shape": (npz(x_test=GREY[:, :3], y_test=LABELS), {}, "shape .1, 7, 5. but test rows .1, 3, 5."),
    "other scale": (npz(x_test=GREY / 255, y_test=LABELS), {}, "different scales"),
    "NaN": (npz(x_train=np.full((6, 2), np.nan)), {}, "NaN or infinity in 6 row.* first is row 0"),
    "five axes": (npz(x_train=np.ones((6, 1, 1, 1, 1))), {}, "reshape it"),
    "scalars": (npz(x_train=np.ones(6)), {}, "must be vectors"),
    "text inputs": (npz(x_train=np.array(["a"] * 6)[:, None]), {}, "must be numeric"),
    "negative label": (npz(y_train=LABELS - 1), {}, "must not be negative, found -1"),
    "sparse labels": (npz(y_train=TOO_LARGE), {}, "renumber them"),
    "one-hot integers": (npz(y_train=np.eye(3, dtype=int)[LABELS]), {}, "argmax of one-hot"),
    "NaN target": (npz(y_train=LABELS * np.nan), {}, "`y_train` holds NaN"),
    "complex target": (npz(y_train=LABELS * 1j), {}, "dtype complex128"),
    "mixed targets": (npz(x_test=GREY, y_test=LABELS * 1.0), {}, "must be of one kind"),
    "target widths": (
        npz(y_train=np.ones((6, 2)), x_test=GREY, y_test=np.ones((6, 3))),
        {},
        "have shape .2,. but test targets .3,.",
    ),
    "too few names": (npz(class_names=np.array(["a", "b"])), {}, "label 2 has no name"),
    "second test split": (
        npz(x_test=GREY, y_test=LABELS),
        {"test": 0.5},
        "has a test split of 6 rows already",
    ),
    "fraction": (npz(), {"test": 2}, "between 0 and 1, got 2"),
    "seed": (npz(), {"test": 0.5, "seed": -1}, "`seed` must be"),
    "size of arrays": (npz(), {"size": (4, 4)}, "holds arrays"),
    "size of digits": (lambda root: "digits", {"size": (4, 4)}, "holds arrays"),
    "size": (files(train__a=b""), {"size": 4}, "must be .height, width. in pixels, got 4"),
    "root of a path": (npz(), {"root": "here"}, "is neither"),
    "sizes differ": (
        files(**{"train__a__1.png": png(GREY[0]), "train__b__2.png": png(GREY[1][:3])}),
        {},
        "train/b/2.png is 3x5, train/a/1.png is 7x5 .*size=",
    ),
    "not an image": (files(**{"train__a__1.png": b"text"}), {}, "train/a/1.png cannot be decoded"),
    "truncated image": (
        files(**{"train__a__1.png": png(COLOUR[0])[:-30]}),
        {},
        "train/a/1.png cannot be decoded",
    ),
    "sixteen bits": (files(**{"train__a__1.png": png(GREY16)}), {}, "more than 8 bits"),
    "empty class": (
        files(**{"train__a__1.png": png(GREY[0]), "train__b__note": b""}),
        {},
        "b holds no images",
    ),
    "new test class": (
        files(**{"train__a__1.png": png(GREY[0]), "test__b__1.png": png(GREY[0])}),
        {},
        "classes that .*train lacks: b",
    ),
    "empty test folder": (files(**{"train__a__1.png": png(GREY[0]), "test__x": b""}), {}, "no class folders"),
    "missing shard": (
        shards("train-00000-of-00003.parquet", "train-00001-of-00003.parquet"),
        {},
        r"shard.s. \[2\]",
    ),
    "two shardings": (
        shards("train-00000-of-00001.parquet", "train.parquet"),
        {},
        "mixes different shardings",
    ),
    "truncated shard": (truncated_shard, {}, "train-00000-of-00001.parquet is not a readable parquet"),
    "no image column": (shards("train.parquet", images=["a"] * 6, struct=False), {}, "images need a column"),
    "no label column": (shards("train.parquet", label="target"), {}, "named label, fine_label or labels"),
    "no bytes": (shards("train.parquet", images=[b"", None] * 3), {}, "lacks image bytes"),
    "no label": (shards("train.parquet", labels=[0, 1, None] * 2), {}, "lacks image bytes or labels"),
    "names differ": (differing_names, {}, "name their classes differently"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_misuse_is_refused_with_a_reason(tmp_path, case):
    make, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        load_data(make(tmp_path), **options)


def test_shard_without_rows_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([], image), "label": pa.array([], pa.int64())})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="hold no rows"):
        load_data(tmp_path)


@pytest.mark.parametrize("source", ["nowhere.npz", "no/where", "C:\\no\\where"])
def test_missing_path_says_what_was_looked_for(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist: expected an \.npz file"):
        load_data(source)


def test_hub_data_without_train_or_images_is_refused(monkeypatch):
    fake_datasets(monkeypatch, {"test": hub_rows(2)})
    with pytest.raises(ValueError, match="no split 'train', only test"):
        load_data("hf:x")
    fake_datasets(monkeypatch, {"train": ([], {"text": None})})
    with pytest.raises(ValueError, match="has columns text"):
        load_data("hf:x")


# ------------------------------------------------------------------ real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)],
    ids=["mnist", "fashion"],
)
def test_mnist_has_its_published_moments(data_root, name, mean, std):
    data = load_data(data_root / f"{name}.npz")
    assert (data.x_train.shape, data.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert data.x_train.dtype == np.uint8
    assert abs(data.x_train.mean() / 255 - mean) < 5e-5
    assert abs(data.x_train.std(dtype=np.float32) / 255 - std) < 5e-5


@pytest.mark.data
def test_cifar10_has_its_published_means(data_root):
    data = load_data(data_root / "cifar10_jpeg")
    assert (data.x_train.shape, data.x_test.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 2, 3)) / 255, [0.4914, 0.4822, 0.4465], atol=3e-4)
    assert data.class_names[3] == "cat"
    assert np.bincount(data.y_train).tolist() == [5000] * 10


@pytest.mark.data
def test_tiny_imagenet_mixes_grey_and_colour(data_root, tmp_path):
    shard = data_root / "tiny_imagenet_200" / "test-00000-of-00001.parquet"
    (tmp_path / "train-00000-of-00001.parquet").symlink_to(shard)
    data = load_data(tmp_path)
    assert data.x_train.shape == (10000, 3, 64, 64)
    assert len(data.class_names) == 200
    grey = (data.x_train[:, :1] == data.x_train).all(axis=(1, 2, 3))
    assert 50 < grey.sum() < 500


def test_data_is_public():
    assert isinstance(load_data("digits"), Data)
