"""One file, written whole or not at all, read back bit for bit, and refused with a reason when it is not ours."""

import ast
import dataclasses
import errno
import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import kernel_distill
from kernel_distill import DistilledSet, distill, kernels, load, nn_baselines
from kernel_distill.solver import store
from kernel_distill.solver.store import read_file, write_bytes, write_file
from kernel_distill.solver.targets import Targets

from ..cases import INVERTIBLE, WIDE, D, K, params_of, problem

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


def small_set(**rest):
    X, y = problem()
    return distill(X, y, **{"feature_map": "identity", "ridge": 1.0, **rest})


def rewrite(path, edit, name="kernel_distill"):
    """Change the JSON document in a file's header; `edit` changes it in place or returns another one."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    document = json.loads(header["__metadata__"][name])
    changed = edit(document)
    header["__metadata__"][name] = json.dumps(document if changed is None else changed)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def without(document, name):
    return {key: value for key, value in document.items() if key != name}


# --- Files of tensors ----------------------------------------------------------------------------------------


def test_header_and_tensors_come_back(tmp_path):
    tensors = {
        **TENSORS,
        "strided": torch.arange(12.0).reshape(3, 4).T[::2],
        "shared": TENSORS["a"],
        "empty": torch.empty(0, 3),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.float64),
        **{
            str(dtype): torch.tensor([1, 2, 200]).to(dtype)
            for dtype in (torch.uint8, torch.float16, torch.bool)
        },
    }
    header = {"text": "ü", "number": 0.1 + 0.2, "list": [1, None, {"a": True}]}
    write_file(tmp_path / "f", "test", header, tensors)
    found, again = read_file(tmp_path / "f", "test")
    assert found == header
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize("kind", [str, Path], ids=["str", "path"])
def test_an_existing_path_needs_force(kind, tmp_path):
    path = tmp_path / "f"
    path.write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"f exists: choose another name, or force \(--force\) to replace it"
    ):
        write_file(kind(path), "test", {}, TENSORS)
    assert path.read_text() == "precious"
    write_file(kind(path), "test", {}, TENSORS, force=True)
    assert torch.equal(read_file(kind(path), "test")[1]["a"], TENSORS["a"])


def test_folders_are_not_files(tmp_path):
    for force in (False, True):
        with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
            write_bytes(tmp_path, b"", force=force)
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist: create it first"):
        write_bytes(tmp_path / "missing" / "f", b"")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_file(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        read_file(tmp_path / "nothing", "test")


class _FullDisk(io.BytesIO):
    """A file that takes half of what is written to it."""

    def __init__(self, path):
        super().__init__()
        self._file = open(path, "xb")  # noqa: SIM115 - closed by __exit__, as a real file is

    def write(self, payload):
        self._file.write(payload[: len(payload) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __exit__(self, *error):
        self._file.close()


def fail_write(monkeypatch):
    monkeypatch.setattr(store, "open", lambda path, mode: _FullDisk(path), raising=False)
    return OSError


def fail_flush(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    return OSError


def fail_replace(monkeypatch):
    def denied(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    return PermissionError


def interrupt(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    return KeyboardInterrupt


@pytest.mark.parametrize("failure", [fail_write, fail_flush, fail_replace, interrupt])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
def test_a_write_that_fails_leaves_nothing(failure, existing, tmp_path, monkeypatch):
    path = tmp_path / "f"
    if existing:
        path.write_text("precious")
    with monkeypatch.context() as patch, pytest.raises(failure(patch)):
        write_file(path, "test", {}, TENSORS, force=existing)
    assert sorted(tmp_path.iterdir()) == [path] * existing
    if existing:
        assert path.read_text() == "precious"
    write_file(path, "test", {}, TENSORS, force=existing)
    assert read_file(path, "test")[0] == {}


def test_the_target_is_never_seen_half_written(tmp_path, monkeypatch):
    """Everything is on the disk before the name appears; what a reader opens meanwhile is the old file."""
    path, seen = tmp_path / "f", []
    path.write_text("old")
    flush, replace = os.fsync, os.replace

    def watched_flush(descriptor):
        seen.append(("flush", path.read_bytes()))
        flush(descriptor)

    def watched_replace(source, target):
        seen.append(("replace", path.read_bytes()))
        assert Path(source).parent == path.parent  # a rename across file systems would be a copy
        assert Path(source).stat().st_size > 100
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_flush)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_file(path, "test", {}, TENSORS, force=True)
    assert seen == [("flush", b"old"), ("replace", b"old")]


def valid(tmp_path):
    write_file(tmp_path / "f", "test", {"a": 1}, TENSORS)
    return (tmp_path / "f").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, 100, -1])
def test_truncated_files_are_refused(size, tmp_path):
    data = valid(tmp_path)
    (tmp_path / "f").write_bytes(data[:size])
    with pytest.raises(
        ValueError, match=r"f cannot be read as a safetensors file \(truncated or another format\)"
    ):
        read_file(tmp_path / "f", "test")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pickle.dumps({"x": [1, 2, 3]}), id="pickle"),
        pytest.param(b"x,y\n1,2\n" * 50, id="csv"),
        pytest.param(b"\xff" * 300, id="noise"),
        pytest.param(b"PK\x03\x04" + bytes(200), id="zip"),
    ],
)
def test_other_formats_are_refused_and_never_run(data, tmp_path):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        read_file(tmp_path / "f", "test")


def test_a_torch_pickle_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write(Bomb(), tmp_path / "f")
        with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
            load(tmp_path / "f")
        assert not (tmp_path / "ran").exists()


def test_safetensors_of_others_are_refused(tmp_path):
    import safetensors.torch

    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file(TENSORS, tmp_path / "f", metadata)
        with pytest.raises(ValueError, match="a safetensors file, but not one of kernel-distill: it has no"):
            read_file(tmp_path / "f", "test")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            lambda d: d.update(version=2),
            "has format version 2, this library reads version 1: use a matching",
            id="newer",
        ),
        pytest.param(lambda d: d.update(version="1"), "has format version 1", id="version-as-text"),
        pytest.param(
            lambda d: d.update(kind="statistics"), "holds 'statistics' .* expected 'test'", id="other-kind"
        ),
        pytest.param(lambda d: d.update(format="other"), r"\(other\), expected 'test'", id="other-library"),
        pytest.param(lambda d: without(d, "version"), "not one of kernel-distill", id="no-version"),
        pytest.param(lambda d: [], "not one of kernel-distill", id="list"),
        pytest.param(lambda d: 3, "not one of kernel-distill", id="number"),
        pytest.param(lambda d: "text", "not one of kernel-distill", id="text"),
    ],
)
def test_headers_that_do_not_fit_are_refused(edit, message, tmp_path):
    valid(tmp_path)
    rewrite(tmp_path / "f", edit)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "f", "test")


# --- Distilled sets ------------------------------------------------------------------------------------------

SETS = {
    "intercept": {"intercept": True, "per_class": 2},
    "centred": {"targets": "centred", "n_points": K - 1},
    "regression": {"task": "regression", "n_points": 3},
    "labels": {"class_names": tuple("abcd"), "provenance": {"note": "ü", "list": [1, 2.5, None]}},
    "float32": {"storage": "float32"},
    "float16": {"storage": "float16", "bounds": "data"},
    "uint8": {"storage": "uint8"},
    "transformed": {"transform": "zca-kip"},
    "whitened": {"transform": "zca-kornia"},
    "all-ridges": {"method": "all-ridges"},
    "label-solve": {"method": "label-solve"},
    "near-data": {"near": "data", "distilled_ridge": 0.3},
    "high": {"precision": "high", "feature_map": "fcnn"},
}


def same(first, again):
    for name in ("x", "y", "labels"):
        a, b = getattr(first, name), getattr(again, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert a.numpy().tobytes() == b.numpy().tobytes()
    for name in (
        "targets",
        "space",
        "distilled_ridge",
        "intercept",
        "certificate",
        "class_names",
        "provenance",
    ):
        assert getattr(again, name) == getattr(first, name)
    assert again.encoder.digest() == first.encoder.digest()
    assert torch.equal(again.model.weights, first.model.weights)
    assert torch.equal(again.model.bias, first.model.bias)
    assert again.full_model is None


@pytest.mark.parametrize("case", params_of(INVERTIBLE) + params_of(WIDE))
@pytest.mark.parametrize("transform", ["none", "standardize"])
def test_sets_of_every_map_come_back_bit_for_bit(case, transform, tmp_path):
    X, y = problem()
    X = case.inputs(X)
    first = distill(
        X,
        y,
        feature_map=case.name,
        feature_params=case.params,
        transform=transform,
        ridge=0.1,
        per_class=2,
        seed=5,
    )
    first.save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    same(first, again)
    for kind in (np.float64, np.float32):
        assert np.array_equal(
            again.decision_function(X.astype(kind)), first.decision_function(X.astype(kind))
        )


@pytest.mark.parametrize("options", [pytest.param(SETS[name], id=name) for name in SETS])
def test_sets_of_every_kind_come_back_bit_for_bit(options, tmp_path):
    X, y = problem()
    if options.get("task") == "regression":
        y = X[:, :2] ** 2
    if options.get("storage") == "uint8":
        X = np.clip(40 * X + 128, 0, 255).astype(np.uint8)
    first = distill(X, y, **{"feature_map": "identity", "ridge": 1.0, **options})
    first.save(tmp_path / "set")
    again = DistilledSet.load(str(tmp_path / "set"))
    same(first, again)
    assert np.array_equal(again.decision_function(X), first.decision_function(X))
    assert np.array_equal(again.predict(X), first.predict(X))
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "set").read_bytes()


def test_a_set_of_one_point_is_saved_and_loaded(tmp_path):
    """One point with an intercept predicts the mean: its features have no spread, and no condition number."""
    first = small_set(intercept=True, n_points=1)
    first.save(tmp_path / "set")
    same(first, load(tmp_path / "set"))


def test_text_labels_come_back(tmp_path):
    X, y = problem()
    names = np.array(["cat", "dog", "emu", "fox"])[y]
    first = distill(X, names, feature_map="identity", ridge=1.0)
    first.save(tmp_path / "set")
    again = load(tmp_path / "set")
    assert again.predict(X).tolist() == first.predict(X).tolist()
    assert set(again.predict(X)) <= set(names)
    assert again.hard_labels.tolist() == ["cat", "dog", "emu", "fox"]
    assert again.score(X, names) == first.score(X, names) > 0.5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            lambda d: without(d, "certificate"), "not a consistent distilled set", id="no-certificate"
        ),
        pytest.param(lambda d: d.update(extra=1), "not a consistent distilled set", id="unknown-field"),
        pytest.param(lambda d: d.update(space="elsewhere"), "not a consistent distilled set", id="space"),
        pytest.param(
            lambda d: d.update(space="features"),
            r"inconsistent: points \(4, 12\) .* rows of \(9,\)",
            id="other-space",
        ),
        pytest.param(
            lambda d: d.update(encoder={}), "encoder|transform|inconsistent|consistent", id="no-encoder"
        ),
        pytest.param(
            lambda d: d.update(targets={}), "targets|classes|inconsistent|consistent", id="no-targets"
        ),
        pytest.param(
            lambda d: d["targets"].update(n_outputs=7), "with 7 outputs do not have the classes", id="outputs"
        ),
        pytest.param(
            lambda d: d["encoder"]["feature_map"].update(name="fcn"),
            "unknown feature map 'fcn'; did you mean 'fcnn'",
            id="unknown-map",
        ),
        pytest.param(
            lambda d: d["encoder"]["transform"].update(name="stand"),
            "unknown transform 'stand'",
            id="unknown-transform",
        ),
        pytest.param(
            lambda d: d["encoder"]["feature_map"]["parameters"].update(input_shape=[7]),
            "inconsistent|shape|cannot be made again",
            id="map-shape",
        ),
        pytest.param(
            lambda d: d["encoder"]["feature_map"]["parameters"].update(wrong=1),
            "wrong|consistent|parameters",
            id="map-parameter",
        ),
        pytest.param(
            lambda d: d["encoder"].update(fingerprint=[0.0] * 18),
            "cannot be made again here: .* differ",
            id="fingerprint",
        ),
        pytest.param(lambda d: d["encoder"].update(precision="low"), "precision|consistent", id="precision"),
    ],
)
def test_sets_whose_header_does_not_fit_are_refused(edit, message, tmp_path):
    small_set(feature_map="fcnn", feature_params={"widths": 9}).save(tmp_path / "set")
    rewrite(tmp_path / "set", edit)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set")


@pytest.mark.parametrize("name", ["x", "y"])
def test_sets_without_their_points_are_refused(name, tmp_path):
    small_set().save(tmp_path / "set")
    header, tensors = read_file(tmp_path / "set", "distilled-set")
    del tensors[name]
    write_file(tmp_path / "set", "distilled-set", header, tensors, force=True)
    with pytest.raises(ValueError, match=f"not a consistent distilled set: '{name}'"):
        load(tmp_path / "set")


@pytest.mark.parametrize("case", params_of(INVERTIBLE, "fcnn-1", "fourier-gaussian", "conv-1", "coupling"))
def test_a_map_of_another_seed_is_refused_by_its_fingerprint(case, tmp_path):
    X, y = problem()
    distill(case.inputs(X), y, feature_map=case.name, feature_params=case.params, ridge=0.1).save(
        tmp_path / "set"
    )
    rewrite(tmp_path / "set", lambda d: d["encoder"]["feature_map"]["parameters"].update(seed=1))
    with pytest.raises(ValueError, match=rf"the '{case.name}' map of the file cannot be made again here"):
        load(tmp_path / "set")


def test_a_changed_transform_is_refused(tmp_path):
    small_set(transform="standardize").save(tmp_path / "set")
    header, tensors = read_file(tmp_path / "set", "distilled-set")
    for damaged in (torch.full((D,), float("nan"), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)):
        write_file(
            tmp_path / "set", "distilled-set", header, {**tensors, "transform.mean": damaged}, force=True
        )
        with pytest.raises(
            ValueError, match="'mean' of a stored 'standardize' transform must be finite float64"
        ):
            load(tmp_path / "set")


def test_saving_goes_through_the_same_door(tmp_path, monkeypatch):
    first = small_set()
    first.save(tmp_path / "set")
    before = (tmp_path / "set").read_bytes()
    with pytest.raises(FileExistsError, match="or force"):
        first.save(tmp_path / "set")
    with monkeypatch.context() as patch, pytest.raises(fail_write(patch), match="No space left"):
        first.save(tmp_path / "set", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set").read_bytes() == before


# --- No pickle -----------------------------------------------------------------------------------------------


def test_no_module_imports_pickle_or_calls_torch_load():
    """The syntax trees of the whole package: no pickle, nor anything that unpickles behind one's back."""
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    folders = {Path(module.__file__).parent for module in (kernel_distill, store, kernels, nn_baselines)}
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(paths) > 40
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            assert not {name.split(".")[0] for name in names} & banned, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "torch":
                    assert node.func.attr not in ("load", "save"), f"{path.name}:{node.lineno}"
                allowed = {word.arg: getattr(word.value, "value", True) for word in node.keywords}
                assert not allowed.get("allow_pickle", False), f"{path.name}:{node.lineno}"
                assert allowed.get("weights_only") is not False, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t["y"].__setitem__((0, 0), float("nan")), "not finite"),
        (lambda t: t["x"].__setitem__((0, 0), float("inf")), "not finite"),
        (lambda t: t["labels"].__setitem__(0, 99), "no class among"),
        (lambda t: t["labels"].__setitem__(0, -1), "no class among"),
        (lambda t: t.update(labels=t["labels"][1:]), "no class among"),
        (lambda t: t.update(labels=t["labels"].float()), "no class among"),
    ],
)
def test_sets_whose_arrays_do_not_fit_are_refused(edit, message, tmp_path):
    ds = small_set()
    labels = torch.arange(len(ds)) % ds.targets.n_outputs
    dataclasses.replace(ds, labels=labels).save(tmp_path / "set")
    header, tensors = read_file(tmp_path / "set", "distilled-set")
    edit(tensors)
    write_file(tmp_path / "set", "distilled-set", header, tensors, force=True)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    "changed",
    [{"kind": "ranked"}, {"kind": "values"}, {"classes": None}, {"classes": [0, 1]}],
)
def test_targets_that_do_not_fit_are_refused(changed):
    plain = Targets.from_labels([0, 1, 2]).parameters()
    assert Targets.restore(plain) == Targets.from_labels([0, 1, 2])
    with pytest.raises(ValueError, match=r"target encoding|do not have the classes"):
        Targets.restore({**plain, **changed})
